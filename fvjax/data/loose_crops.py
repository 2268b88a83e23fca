"""Square pictures that keep hair, hat and neck, which an aligned 112x112 crop cuts off."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fvjax.data.alignment import geometry
from fvjax.data.alignment.faces import check_detector, read_picture

SIZE = 224  # pixels of a side unless a caller asks for another size: the input of CLIP ViT-L/14 and FLIP
# CLIP's mean colour, with which LLaVA makes a picture square (`expand2square`); the network sees zeros there.
BACKGROUND = (122, 116, 104)
ZOOM_OUT = 2.0  # of `around`: the side shows twice as much as an aligned crop
MAX_SIZE = 2048  # pixels of a side


@dataclass(frozen=True)
class LooseCrop:
    """How pictures become squares.

    Args:
        size: pixels of a side.
        margin: of the face's box or of the whole picture, on each side.
        align: the detector that finds the face nearest to the centre, whose surroundings are taken, upright
            (:func:`around`); None takes the picture, or the box of a face, as it lies (:func:`square`).
    Raises:
        ValueError: a size or a margin out of range, or a detector that is not installed.
    """

    size: int = SIZE
    margin: float = 0.0
    align: str | None = None

    def __post_init__(self):
        if not 0 < self.size <= MAX_SIZE or not 0 <= self.margin <= 10:
            problem = f"--size={self.size} --margin={self.margin}"
            raise ValueError(f"{problem}: expected 1 to {MAX_SIZE} pixels, and a margin from 0 to 10")
        if self.align is not None:
            check_detector(self.align)

    def __call__(self, picture: NDArray[np.uint8], box: tuple[int, int, int, int] | None) -> NDArray[np.uint8]:
        """Return uint8 [size, size, 3] of a picture uint8 [h, w, 3]. Raises ValueError if there is no face to find."""
        if self.align is None:
            return square(picture, self.size, box, self.margin)
        found = read_picture(picture, self.align).faces
        if not len(found.points):
            height, width = picture.shape[:2]
            raise ValueError(f"no face found: in {width}x{height} pixels")
        return around(picture, found.points[0], self.size, ZOOM_OUT * (1 + 2 * self.margin))

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's entry."""
        return asdict(self)


def square(
    picture: NDArray[np.uint8],
    size: int = SIZE,
    box: tuple[int, int, int, int] | None = None,
    margin: float = 0.0,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
    background: tuple[int, int, int] = BACKGROUND,
) -> NDArray[np.uint8]:
    """Return a part of a picture, extended to a square and resized: uint8 [size, size, 3].

    Args:
        picture: uint8 [h, w, 3].
        size: pixels of a side.
        box: (left, top, right, bottom), right and bottom excluded; None takes the whole picture.
        margin: of the longer side of the box, on each of its sides; the picture ends where it ends, and what lies
            beyond has the background's colour.
    Raises:
        ValueError: a box that is empty or misses the picture, or a margin below 0.
    """
    height, width = picture.shape[:2]
    left, top, right, bottom = box or (0, 0, width, height)
    if not (left < right and top < bottom and left < width and top < height and right > 0 and bottom > 0):
        raise ValueError(f"the box (left, top, right, bottom) = {box} has no part of a picture of {width}x{height}")
    if margin < 0:
        raise ValueError(f"a margin of {margin}, expected at least 0")
    half = max(right - left, bottom - top) * (0.5 + margin)
    side = max(round(2 * half), 1)
    x, y = round((left + right) / 2 - half), round((top + bottom) / 2 - half)
    part = Image.fromarray(picture[max(y, 0) : max(y + side, 0), max(x, 0) : max(x + side, 0)])
    # The part is resized before it is put on the canvas, so that the canvas is never larger than the result.
    scale = size / side
    inner = max(round(part.width * scale), 1), max(round(part.height * scale), 1)
    canvas = Image.new("RGB", (size, size), background)
    canvas.paste(part.resize(inner, resample), (round(max(-x, 0) * scale), round(max(-y, 0) * scale)))
    return np.asarray(canvas)


def around(
    picture: NDArray[np.uint8], points: NDArray, size: int = SIZE, zoom_out: float = ZOOM_OUT
) -> NDArray[np.uint8]:
    """Return the surroundings of an upright face by its points: uint8 [size, size, 3].

    The face lies as in an aligned crop, in the middle of a side that shows `zoom_out` times as much.

    Args:
        picture: uint8 [h, w, 3].
        points: float [5, 2]: eyes, tip of the nose, corners of the mouth, in pixels (x, y).
    """
    cv2 = geometry.import_opencv()
    side = geometry.images.SIZE
    target = (geometry.template(points) - side / 2) * (size / side / zoom_out) + size / 2
    matrix = geometry.similarity(points, target)
    warped = cv2.warpAffine(picture, matrix, (size, size), borderMode=cv2.BORDER_CONSTANT, borderValue=BACKGROUND)
    return np.asarray(warped, np.uint8)
