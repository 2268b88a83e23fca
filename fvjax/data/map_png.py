"""Maps of class ids as grey PNG files, of which nothing larger than expected is ever decoded."""

from __future__ import annotations

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fvjax.data.picture_bytes import PNG


def encode(classes: NDArray[np.uint8]) -> bytes:
    """Return the PNG file of class ids uint8 [h, w]."""
    file = io.BytesIO()
    Image.fromarray(classes, "L").save(file, "PNG")
    return file.getvalue()


def decode(data: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the class ids uint8 [h, w] of a PNG file; of one with a palette, the palette's indices.

    Raises ValueError: no PNG, a damaged one, one that is neither grey nor has a palette, or another size than `shape`.
    """
    if not data.startswith(PNG) or len(data) < 29:
        raise ValueError("not a PNG file, expected a map of class ids")
    width, height, bits, colour = struct.unpack(">IIBB", data[16:26])
    if (height, width) != tuple(shape):
        raise ValueError(f"a map of {width}x{height} pixels, expected {shape[1]}x{shape[0]}")
    if bits != 8 or colour not in (0, 3):
        raise ValueError("a PNG file that is neither grey nor has a palette of 8 bits, expected a map of class ids")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            return np.array(picture, np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"a damaged PNG file ({error})") from error
