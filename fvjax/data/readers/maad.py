"""MAAD-Face's label file: 47 attributes of VGGFace2's pictures, of which about a fifth are undefined.

    Filename,Identity,Male,Young,…
    n000002/0001_01.jpg,2,-1,1,…          1 positive, -1 negative, 0 undefined

The rows are those of VGGFace2's training set followed by those of its test set; people are in ascending order in each,
so the test set begins where their numbers fall. The release also has a pickle, which is not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fvjax.data.attributes import Attributes
from fvjax.data.readers import label_files
from fvjax.data.readers.label_files import LabelledPicture, LabelSet
from fvjax.data.readers.picture_tree import LeftOut

_HEADER = (
    "Male Young Middle_Aged Senior Asian White Black Rosy_Cheeks Shiny_Skin Bald Wavy_Hair Receding_Hairline Bangs "
    "Sideburns Black_Hair Blond_Hair Brown_Hair Gray_Hair No_Beard Mustache 5_o_Clock_Shadow Goatee Oval_Face "
    "Square_Face Round_Face Double_Chin High_Cheekbones Chubby Obstructed_Forehead Fully_Visible_Forehead Brown_Eyes "
    "Bags_Under_Eyes Bushy_Eyebrows Arched_Eyebrows Mouth_Closed Smiling Big_Lips Big_Nose Pointy_Nose Heavy_Makeup "
    "Wearing_Hat Wearing_Earrings Wearing_Necktie Wearing_Lipstick No_Eyewear Eyeglasses Attractive"
)
NAMES = tuple(_HEADER.split())
HEADER = ("filename", "identity")  # of the first two columns, in lower case
VALUES = {"1": 1, "-1": -1, "0": 0, "1.0": 1, "-1.0": -1, "0.0": 0}


class Row(NamedTuple):
    """One picture: its file, the number of its person, and int8 [47] as bytes."""

    file: str
    identity: int
    labels: bytes


def read_rows(file: Path) -> tuple[tuple[str, ...], Iterator[tuple[int, Row]]]:
    """Return the attributes' names in the file's order and an iterator over (line number, row).

    Raises:
        ValueError: no such file, not CSV in UTF-8, other columns, or a row with another value than 1, 0 and -1 (also
            written 1.0). The message names the line.
    """
    if file.suffix.lower() in (".pkl", ".pickle"):
        raise ValueError(f"{file}: a pickle can run code and is not read; take MAAD-Face.csv of the same release")
    table = label_files.table(file)
    number, header = next(table, (0, []))
    if tuple(name.lower() for name in header[:2]) != HEADER:
        raise ValueError(f"{file} line {number}: expected the columns Filename, Identity and 47 attributes")
    names = tuple(header[2:])
    label_files.check_header(names, NAMES, f"{file} line {number}")
    return names, _rows(file, table)


def _rows(file: Path, table: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, Row]]:
    for number, (picture, person, *cells) in table:
        location = f"{file} line {number}"
        if not person.isdecimal() or len(person) > 9:
            raise ValueError(f"{location}: the person {person!r:.100}; expected a number")
        if wrong := [cell for cell in cells if cell not in VALUES]:
            raise ValueError(f"{location}: the value {wrong[0]!r:.100}; expected 1, -1 or 0 (undefined)")
        if not picture:
            raise ValueError(f"{location}: no file name")
        yield number, Row(picture, int(person), np.array([VALUES[cell] for cell in cells], np.int8).tobytes())


def read(labels: Path, val: float, share: float) -> LabelSet:
    """Read MAAD-Face's labels.

    Args:
        labels: MAAD-Face.csv.
        val: about this share of the training set's people is for validation.
        share: of all pictures, chosen by their names: the data set has 3.3 million.
    Raises:
        ValueError: as :func:`read_rows`, a picture that is listed twice, or people in another order than VGGFace2's.
            Pictures without a single label are left out.
    """
    label_files.check_share("--share", share)
    names, rows = read_rows(labels)
    result = LabelSet(Attributes(names, dataset="maad", has_identities=True), [])
    seen: set[str] = set()
    split, last, total = "train", -1, 0
    for number, row in rows:
        total += 1
        if row.identity < last:
            if split == "test":
                problem = "the people are in another order than VGGFace2's, which says what is its test set"
                raise ValueError(f"{labels} line {number}: {problem}; take the file as it was released")
            split = "test"
        last = row.identity
        if not label_files.is_chosen(row.file, share):
            continue
        if row.file in seen:
            raise ValueError(f"{labels} line {number}: {row.file!r:.100} is listed twice; remove one of the lines")
        seen.add(row.file)
        if not any(row.labels):
            result.left_out.append(LeftOut(row.file, f"no label: all {len(names)} attributes are undefined"))
            continue
        chosen = split if split == "test" else label_files.part(str(row.identity), val)
        result.pictures.append(LabelledPicture(row.file, row.labels, chosen, str(row.identity)))
    if not total:
        raise ValueError(f"{labels}: no picture is listed")
    if split == "train":
        result.notes.append(f"{labels}: the people's numbers never fall, so there is no test set in it")
    return result
