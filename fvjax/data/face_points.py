"""The 68 facial points of a picture, or of each frame of a clip: how they are checked, stored and read from files.

Everywhere in the project points are (x, y) from 0 to 1 across the picture. Files hold pixels of a crop, by default one
of 256x256, as Face-LLaVA's do.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fvjax.face_regions import POINTS

Points = NDArray[np.float32]  # [pictures, 68, 2]
CROP = 256  # pixels, the side of the crops of Face-LLaVA's landmark files
LEAST, MOST = -1.0, 2.0  # a face may reach out of its crop, but pixels are no fractions of a picture
MAX_FILE_BYTES = 64 << 20  # of a landmark file: 100,000 frames
_SHOWN = 80  # characters of a header in an error
_FLOAT_KINDS, _KINDS = "f", "fiu"


def check(points: NDArray, pictures: int) -> Points:
    """Return the points of one picture or clip as float32 [pictures, 68, 2].

    Raises:
        ValueError: another number of pictures or points, several faces, numbers that are not finite or no fractions of
            a picture. What stands before the colon is the kind of mistake.
    """
    array = np.asarray(points)
    if array.dtype.kind not in _FLOAT_KINDS or array.ndim != 3 or array.shape[1:] != (POINTS, 2):
        raise ValueError(f"malformed landmarks: {array.dtype} {list(array.shape)}, expected float [n, {POINTS}, 2]")
    if len(array) != pictures:
        raise ValueError(f"landmarks of another length: {len(array)} pictures, expected {pictures}")
    if not np.isfinite(array).all():
        raise ValueError("landmarks that are not finite: NaN or infinity; leave out the points of such a picture")
    if array.min() < LEAST or array.max() > MOST:
        low, high = float(array.min()), float(array.max())
        raise ValueError(f"landmarks in pixels: {low:.1f} to {high:.1f}; divide by the picture's width and height")
    return array.astype(np.float32)


def encode(points: NDArray, pictures: int) -> bytes:
    """Return the bytes that a store keeps: float32, little-endian. Raises ValueError as :func:`check` does."""
    return check(points, pictures).astype("<f4").tobytes()


def decode(data: bytes, pictures: int) -> Points:
    """Return the points that a store keeps. Raises ValueError if the bytes do not fit."""
    if len(data) != pictures * POINTS * 2 * 4:
        raise ValueError(f"landmarks of {len(data)} bytes, {pictures} pictures have {pictures * POINTS * 8}")
    return check(np.frombuffer(data, "<f4").reshape(pictures, POINTS, 2), pictures)


def normalise(pixels: NDArray, side: float = CROP) -> Points:
    """Divide points in pixels by the side of the crop that they were found in: float32, the same shape."""
    return (np.asarray(pixels) / side).astype(np.float32)


def read_npy(file: Path, frames: int | None, side: float = CROP) -> Points:
    """Read a landmark file (.npy, pixels of a crop): float32 [n, 68, 2], from 0 to 1.

    An image has 136 numbers in the shape [136], [68, 2] or [1, 68, 2]. A clip has [frames, 68, 2].

    Args:
        file: read without pickle, and only if its size is as its header says.
        frames: of the clip, all those of its file; None: it is of an image.
        side: of the crop in pixels.
    Raises:
        ValueError: no such file, a pickle, another number of points, faces or frames, or numbers that are not finite.
            What stands before the first colon is the kind of mistake.
    """
    pixels = _load(file)
    count = 1 if frames is None else frames
    if frames is None and pixels.size == 2 * POINTS and pixels.shape in ((2 * POINTS,), (POINTS, 2), (1, POINTS, 2)):
        pixels = pixels.reshape(1, POINTS, 2)
    if (pixels.ndim == 4 and pixels.shape[1] > 1) or (frames is None and pixels.ndim == 3 and len(pixels) > 1):
        faces = pixels.shape[1] if pixels.ndim == 4 else len(pixels)
        raise ValueError(f"several faces: {file.name} has the points of {faces} faces, expected one; choose one")
    if pixels.shape[1:] != (POINTS, 2) or pixels.ndim != 3:
        expected = f"[{count}, {POINTS}, 2]"
        raise ValueError(f"malformed landmarks: {file.name} has the shape {list(pixels.shape)}, expected {expected}")
    if len(pixels) != count:
        raise ValueError(f"landmarks of another length: {file.name} has {len(pixels)} frames, the clip {count}")
    try:
        return check(normalise(pixels, side), count)
    except ValueError as error:
        kind, _, text = str(error).partition(":")
        raise ValueError(f"{kind}: {file.name}:{text}") from None


def _load(file: Path) -> NDArray:
    """Return the array of a .npy file of numbers, checked before memory is spent on it. Raises ValueError."""
    try:
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ValueError(f"malformed landmarks: {file.name} has {size} bytes, at most {MAX_FILE_BYTES}")
        with file.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = reader[version](stream)
            announced = stream.tell() + math.prod(shape) * dtype.itemsize
            if dtype.hasobject or dtype.kind not in _KINDS:
                raise ValueError(f"no numbers but {str(dtype)[:_SHOWN]}; pickles are never loaded")
            if announced != size:
                raise ValueError(f"{size} bytes, {announced} expected")
            stream.seek(0)
            return np.load(stream, allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"missing landmarks: {file.name}") from None
    except (ValueError, KeyError, OSError, EOFError, TypeError, SyntaxError) as error:
        if str(error).startswith("malformed landmarks"):
            raise
        raise ValueError(f"malformed landmarks: {file.name} is no .npy file of numbers ({str(error)[:200]})") from None
