"""Square pictures that keep hair, hat and neck, which an aligned 112x112 crop cuts off."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fvjax.data.alignment import geometry

SIZE = 224  # pixels of a side unless a caller asks for another size: the input of CLIP ViT-L/14 and FLIP
# CLIP's mean colour, with which LLaVA makes a picture square (`expand2square`); the network sees zeros there.
BACKGROUND = (122, 116, 104)
ZOOM_OUT = 2.0  # of `around`: the side shows twice as much as an aligned crop


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
