"""Label files of facial expressions: ExpW and RAF-DB. Their seven expressions have the same names in a store.

ExpW      label.lst                   angry_clerk_12.jpg 0 195 83 256 368 67.0027 0
                                      picture, face in it, top, left, right, bottom, confidence, label
RAF-DB    list_patition_label.txt     train_00001.jpg 5          (so spelt); its picture is train_00001_aligned.jpg
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fvjax.data.attributes import Attributes
from fvjax.data.readers import label_files
from fvjax.data.readers.label_files import LabelledPicture, LabelSet

EXPRESSIONS = ("Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Neutral")
EXPW_LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")  # in the order of EXPRESSIONS
RAFDB_LABELS = {
    "1": "Surprise",
    "2": "Fear",
    "3": "Disgust",
    "4": "Happiness",
    "5": "Sadness",
    "6": "Anger",
    "7": "Neutral",
}
EXPW_VAL, EXPW_TEST = 0.1, 0.1  # shares of the photographs; there is no official split
_GROUPS = {"expression": EXPRESSIONS}
_NUMBER = re.compile(r"[0-9]{1,6}")
_CONFIDENCE = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_RAFDB_NAME = re.compile(r"(train|test)_[0-9]+\.jpg")


class Face(NamedTuple):
    """One face of ExpW: the photograph, its number there, its box in pixels, the confidence and the label's number."""

    image: str
    face: int
    top: int
    left: int
    right: int
    bottom: int
    confidence: float
    label: int

    @property
    def name(self) -> str:
        """ExpW's name of the label."""
        return EXPW_LABELS[self.label]


def read_expw(file: Path) -> list[Face]:
    """Read label.lst.

    Raises:
        ValueError: no such file, a line with other values, an empty box, or a face that is listed twice. The message
            names the line.
    """
    faces: dict[tuple[str, int], Face] = {}
    for number, line in label_files.lines(file):
        location = f"{file} line {number}"
        values = line.split()
        if len(values) != 8:
            expected = "picture, face, top, left, right, bottom, confidence, label"
            raise ValueError(f"{location}: {len(values)} values, expected {expected}")
        image, face, *box, confidence, label = values
        if wrong := [value for value in (face, *box) if not _NUMBER.fullmatch(value)]:
            raise ValueError(f"{location}: {wrong[0]!r:.100} is no number of pixels, or of a face")
        if not _CONFIDENCE.fullmatch(confidence):
            raise ValueError(f"{location}: the confidence {confidence!r:.100} is no number")
        if not _NUMBER.fullmatch(label) or int(label) >= len(EXPW_LABELS):
            raise ValueError(f"{location}: the label {label!r:.100}; expected 0 ({EXPW_LABELS[0]}) to 6 (neutral)")
        top, left, right, bottom = map(int, box)
        entry = Face(image, int(face), top, left, right, bottom, float(confidence), int(label))
        if entry.right <= entry.left or entry.bottom <= entry.top:
            raise ValueError(f"{location}: an empty box; the order is top, left, right, bottom")
        if (image, entry.face) in faces:
            raise ValueError(f"{location}: face {face} of {image!r:.100} is listed twice; remove one of the lines")
        faces[image, entry.face] = entry
    if not faces:
        raise ValueError(f"{file}: no face is listed")
    return list(faces.values())


def read_rafdb(file: Path) -> dict[str, str]:
    """Read list_patition_label.txt: file name -> one of EXPRESSIONS.

    Raises:
        ValueError: no such file, a line with other values, another name than train_… or test_…, or one listed twice.
            The message names the line.
    """
    labels: dict[str, str] = {}
    for number, line in label_files.lines(file):
        location = f"{file} line {number}"
        values = line.split()
        if len(values) != 2 or not _RAFDB_NAME.fullmatch(values[0]):
            raise ValueError(f"{location}: {line!r:.100}; expected a line such as train_00001.jpg 5")
        if values[1] not in RAFDB_LABELS:
            raise ValueError(f"{location}: the label {values[1]!r:.100}; expected 1 (Surprise) to 7 (Neutral)")
        if values[0] in labels:
            raise ValueError(f"{location}: {values[0]} is listed twice; remove one of the lines")
        labels[values[0]] = RAFDB_LABELS[values[1]]
    if not labels:
        raise ValueError(f"{file}: no picture is listed")
    return labels


def expw(labels: Path, share: float) -> LabelSet:
    """Read ExpW: a face is a picture of its own. The faces of a photograph are in one split.

    Args:
        share: of all photographs, chosen by their names.
    """
    label_files.check_share("--share", share)
    attributes = Attributes(EXPRESSIONS, _GROUPS, dataset="expw")
    chosen = [face for face in read_expw(labels) if label_files.is_chosen(face.image, share)]
    return LabelSet(attributes, list(_expw_pictures(attributes, chosen)))


def _expw_pictures(attributes: Attributes, faces: list[Face]) -> Iterator[LabelledPicture]:
    for face in faces:
        box = face.left, face.top, face.right, face.bottom
        row = attributes.row([EXPRESSIONS[face.label]]).tobytes()
        split = label_files.part(face.image, EXPW_VAL, EXPW_TEST)
        yield LabelledPicture(face.image, row, split, box=box, source=f"{face.image}#{face.face}")


def rafdb(labels: Path, val: float, share: float) -> LabelSet:
    """Read RAF-DB's basic expressions.

    Args:
        val: about this share of the training pictures is for validation.
        share: of all pictures, chosen by their names.
    """
    label_files.check_share("--share", share)
    attributes = Attributes(EXPRESSIONS, _GROUPS, dataset="rafdb")
    pictures = []
    for name, expression in read_rafdb(labels).items():
        if label_files.is_chosen(name, share):
            split = "test" if name.startswith("test_") else label_files.part(name, val)
            row = attributes.row([expression]).tobytes()
            pictures.append(LabelledPicture(f"{name.removesuffix('.jpg')}_aligned.jpg", row, split))
    return LabelSet(attributes, pictures)
