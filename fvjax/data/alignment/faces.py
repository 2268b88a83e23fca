"""The faces of one picture: where they are, and their aligned crops."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fvjax.data import images
from fvjax.data.alignment import geometry
from fvjax.data.alignment.detectors import Detector, Face, by_distance, detector, find, usable

CHOICES = ("centre", "largest", "all")


class Faces(NamedTuple):
    """The n faces of a picture, the one nearest to its centre first. Pixels are x, y of the upright picture."""

    crops: NDArray  # uint8 [n, 112, 112, 3] RGB, aligned to ArcFace's five points
    boxes: NDArray  # float32 [n, 4]: left, top, right, bottom
    points: NDArray  # float32 [n, 5, 2]: eyes, tip of the nose, corners of the mouth; left in the picture first
    scores: NDArray  # float32 [n], the detector's confidence, 0 to 1; NaN for a picture that is itself a crop


@dataclass(frozen=True)
class Picture:
    """A picture and its faces.

    Attributes:
        name: the file, for messages.
        pixels: uint8 [h, w, 3] RGB, upright.
        faces: its faces; none is an error only for those who need one.
        is_crop: whether the picture has a crop's size, so that it was taken as it is and no detector saw it.
    """

    name: str
    pixels: NDArray
    faces: Faces
    is_crop: bool

    @property
    def size(self) -> str:
        """The width and height, for messages."""
        return f"{self.pixels.shape[1]}x{self.pixels.shape[0]}"

    def chosen(self, face: str) -> list[int]:
        """Return the numbers of the faces that ``face`` means: the nearest to the centre, the largest, or all.

        Raises ValueError for another word, and for a picture without a face.
        """
        if face not in CHOICES:
            raise ValueError(f"face={face!r}: there are {', '.join(CHOICES)}")
        if not len(self.faces.boxes):
            raise ValueError(
                f"{self.name}: no face found in {self.size} pixels; give a picture in which the face is larger, "
                f"upright and seen from the front, or an aligned crop of {images.SIZE}x{images.SIZE}"
            )
        if face == "all":
            return list(range(len(self.faces.boxes)))
        sides = self.faces.boxes[:, 2:] - self.faces.boxes[:, :2]
        return [int(np.argmax(sides.prod(axis=1)))] if face == "largest" else [0]

    def enlargement(self, number: int) -> float:
        """Return how many times larger than in the picture a face is in its crop."""
        to_crop = geometry.similarity(self.faces.points[number], geometry.TEMPLATE)
        return float(np.hypot(*to_crop[:, 0]))


def faces(picture: str | Path | NDArray, detector: str = "mtcnn") -> Faces:
    """Find the faces of a picture, and align them as ``python -m fvjax.data.prepare … --align`` does.

    A picture of 112x112 pixels is taken for an aligned crop: it is its own only face, whose box is its frame and whose
    points are the template's.

    Args:
        picture: a JPEG, PNG, BMP or WebP file, or uint8 [h, w, 3] RGB.
        detector: see :func:`fvjax.data.alignment.detectors.detector`.
    Returns:
        the faces, nearest to the centre first; with n = 0 if there are none.
    Raises:
        ValueError: no picture, or the detector (the `align` extra) is not installed.
    """
    return read_picture(picture, detector).faces


def read_picture(picture: str | Path | NDArray, detector: str = "mtcnn") -> Picture:
    """Read a picture and find its faces, as :func:`faces`."""
    if isinstance(picture, np.ndarray):
        name, pixels = "the picture", picture
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise ValueError(f"a picture must be uint8 [h, w, 3] RGB, not {pixels.dtype} {list(pixels.shape)}")
    else:
        name, pixels = str(picture), read_pixels(Path(picture))
    if pixels.shape[:2] == images.FACE_SIZE:
        height, width = images.FACE_SIZE
        frame, nan = np.array([0, 0, width, height]), float("nan")
        return Picture(name, pixels, _stack([pixels], [Face(geometry.TEMPLATE, frame, nan)]), True)
    try:
        detect = _detector(detector)
    except ValueError as error:
        crop = f"no aligned crop of {images.SIZE}x{images.SIZE}"
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise ValueError(f"{name}: {size} pixels, {crop}, so its face must be found: {error}") from error
    found = by_distance(usable(find(detect, pixels)), pixels)
    # Encoded and decoded, because the crops of a store are JPEGs, and the model was measured on those.
    crops = [images.decode(images.encode(geometry.warp(pixels, face.points)), name) for face in found]
    return Picture(name, pixels, _stack(crops, found), False)


def read_pixels(file: Path) -> NDArray:
    """Read an upright picture uint8 [h, w, 3] RGB; one of a crop's size as a store would hold it."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    data = file.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about pictures that are refused anyway
        try:
            return images.decode(images.to_jpeg(data, str(file)), str(file))
        except images.WrongSize:
            return images.photograph(data, str(file))


def check_detector(name: str) -> None:
    """Raise ValueError unless there is such a detector, and it is installed (the `align` or `scrfd` extra)."""
    _detector(name)


@functools.cache
def _detector(name: str) -> Detector:
    return detector(name)[0]


def _stack(crops: list[NDArray], found: list[Face]) -> Faces:
    n = len(found)
    return Faces(
        np.array(crops, np.uint8).reshape(n, *images.FACE_SIZE, 3),
        np.array([face.box for face in found], np.float32).reshape(n, 4),
        np.array([face.points for face in found], np.float32).reshape(n, 5, 2),
        np.array([face.score for face in found], np.float32),
    )
