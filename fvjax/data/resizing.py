"""Pictures of any size to the square of a vision tower: padding, resizing with and without antialiasing, cropping.

Resizing is a product with one matrix for each axis. Its results are those of torch's `interpolate` with
align_corners=False on floats; with antialiasing, torchvision since 0.17 resizes tensors so.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

MEAN_COLOUR = (122, 116, 104)  # of CLIP's normalisation; LLaVA pads with it
KERNELS = ("bicubic", "bilinear")
SQUARES = ("pad", "crop")
_CUBIC = {True: -0.5, False: -0.75}  # of the cubic, with and without antialiasing


def to_square(
    picture: NDArray[np.uint8], side: int, *, square: str = "crop", kernel: str = "bicubic", antialias: bool = True
) -> NDArray[np.uint8]:
    """Resize a picture so that its shorter side has ``side`` pixels, and cut out the centre: uint8 [side, side, 3].

    Args:
        picture: uint8 [H, W, 3]. One of [side, side, 3] is returned as it is.
        square: "pad": first pad to a square with MEAN_COLOUR, the picture in the centre. "crop": do not.
        kernel: one of KERNELS.
        antialias: whether the kernel widens when a picture shrinks.
    Raises:
        ValueError: an unknown square or kernel.
    """
    if square not in SQUARES or kernel not in KERNELS:
        raise ValueError(f"square={square!r}, kernel={kernel!r}: choose of {', '.join(SQUARES)}; {', '.join(KERNELS)}")
    if square == "pad":
        picture = pad(picture)
    height, width, _ = picture.shape
    if (height, width) != (side, side):
        size = (side, side * width // height) if height <= width else (side * height // width, side)
        picture = resize(picture, size, kernel, antialias)
    top, left = round((picture.shape[0] - side) / 2), round((picture.shape[1] - side) / 2)
    return picture[top : top + side, left : left + side]


def pad(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pad a picture to a square with MEAN_COLOUR, the picture in the centre."""
    height, width, _ = picture.shape
    if height == width:
        return picture
    side = max(height, width)
    padded = np.empty((side, side, 3), np.uint8)
    padded[:] = MEAN_COLOUR
    top, left = (side - height) // 2, (side - width) // 2
    padded[top : top + height, left : left + width] = picture
    return padded


def resize(
    picture: NDArray[np.uint8], size: tuple[int, int], kernel: str = "bicubic", antialias: bool = True
) -> NDArray[np.uint8]:
    """Resize uint8 [H, W, C] to (height, width), rounded to uint8."""
    rows, columns = (weights(old, new, kernel, antialias) for old, new in zip(picture.shape[:2], size, strict=True))
    resized = np.einsum("yh,hwc->ywc", rows, picture.astype(np.float32), optimize=True)
    resized = np.einsum("xw,ywc->yxc", columns, resized, optimize=True)
    return np.clip(np.round(resized), 0, 255).astype(np.uint8)


@functools.lru_cache(64)
def weights(old: int, new: int, kernel: str, antialias: bool) -> NDArray[np.float32]:
    """Return the matrix [new, old] that resizes one axis."""
    scale = old / new
    widening = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(new) + 0.5) * scale - 0.5
    if antialias:  # outside the picture there is nothing
        distances = (np.arange(old) - centres[:, None]) / widening
        matrix = _kernel(distances, kernel, _CUBIC[True])
        return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)
    if kernel == "bilinear":
        centres = np.maximum(centres, 0)
    matrix = np.zeros((new, old))
    first = np.floor(centres).astype(int)
    for offset in range(-1, 3):  # outside the picture there is its border, repeated
        at = first + offset
        np.add.at(matrix, (np.arange(new), np.clip(at, 0, old - 1)), _kernel(at - centres, kernel, _CUBIC[False]))
    return matrix.astype(np.float32)


def _kernel(distance: NDArray, kernel: str, a: float) -> NDArray:
    x = np.abs(distance)
    if kernel == "bilinear":
        return np.maximum(1 - x, 0)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))
