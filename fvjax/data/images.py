"""Bytes to faces and back: uint8 [112, 112, 3] RGB, with errors that name the file or record.

JPEG is decoded with simplejpeg (libjpeg-turbo); what it refuses (CMYK, stray bytes) gets a second try with Pillow.
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

SIZE = 112
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")  # what these are; Pillow knows dozens, and runs Ghostscript for some
MAX_PIXELS = 4096 * 4096  # nobody's aligned crop; refused from the header, before memory is spent on it
MAX_WORK = 16 * MAX_PIXELS  # pixels times scans; each scan of a progressive JPEG, of ten bytes, goes over all pixels
MAX_PHOTOGRAPH = 8192 * 8192  # 200 MB decoded


class WrongSize(ValueError):
    """The image is readable but not a 112x112 face: a mistake of preparation rather than a broken file."""


def decode(jpeg: bytes, where: str, out: np.ndarray | None = None) -> np.ndarray:
    """JPEG bytes -> uint8 [112, 112, 3] RGB (grey is repeated over the channels).

    Args:
        jpeg: a whole JPEG file.
        where: what the error should name, such as "store/train record 17 (a/1.jpg)".
        out: uint8 [112, 112, 3], contiguous, to decode into; None makes a new one.
    Raises:
        WrongSize: the header says another size than 112x112 (nothing has been decoded then).
        ValueError: not a JPEG, truncated, or not RGB-able.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError as error:
        raise ValueError(f"{where}: not a JPEG ({error}, {len(jpeg)} bytes)") from error
    _check_size(jpeg, int(width), int(height), where)
    try:
        return simplejpeg.decode_jpeg(jpeg, colorspace="RGB", buffer=out)
    except ValueError:
        face = np.asarray(_open(jpeg, where, ("JPEG",)))
        if out is None:
            return face
        out[:] = face
        return out


def check(jpeg: bytes, where: str) -> None:
    """Raise what :func:`decode` raises, in half the time: every coefficient is read, but 14x14 pixels are computed."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
        if (width, height) == (SIZE, SIZE):
            _check_scans(jpeg, SIZE, SIZE, where)
            simplejpeg.decode_jpeg(jpeg, colorspace="RGB", min_height=1, min_width=1, min_factor=8)
            return
    except ValueError:
        pass
    decode(jpeg, where)  # which has the words, and the last one


def encode(face: np.ndarray, quality: int = 95) -> bytes:
    """uint8 [112, 112, 3] RGB -> JPEG bytes (4:4:4, so that colour edges survive)."""
    if face.dtype != np.uint8 or face.shape != (SIZE, SIZE, 3):
        raise ValueError(f"a face is uint8 [{SIZE},{SIZE},3], got {face.dtype} {list(face.shape)}")
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(face), quality=quality, colorspace="RGB", colorsubsampling="444", fastdct=False
    )


def to_jpeg(data: bytes, where: str, resize: bool = False) -> bytes:
    """Any image file -> the JPEG bytes to store. A 112x112 JPEG is kept byte for byte, everything else is re-encoded:
    also CMYK, which few readers expect, and what EXIF says is to be turned, because decoders do not ask EXIF.

    Args:
        data: the file's bytes. where: its name, for errors.
        resize: bring square images of another size to 112x112 (bilinear, antialiased) instead of refusing them.
    Raises:
        WrongSize: another size and no ``resize``, or not square. ValueError: not an image, or broken.
    """
    if data[:2] == b"\xff\xd8":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            pass  # Pillow has the last word below
        else:
            _check_size(data, int(width), int(height), where, resize)
            plain = colours in ("Gray", "YCbCr", "RGB") and _upright(data, where)
            if (width, height) == (SIZE, SIZE) and plain:
                return data
    image = _open(data, where, FORMATS, any_size=resize)
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return encode(np.asarray(image))


def photograph(data: bytes, where: str) -> np.ndarray:
    """Any image file -> uint8 [h, w, 3] RGB, upright as EXIF says.

    Args:
        data: the file's bytes. where: its name, for errors.
    Raises:
        ValueError: not an image, broken, or of more than MAX_PHOTOGRAPH pixels.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PHOTOGRAPH:
            raise ValueError(f"{image.width}x{image.height} pixels in the header, refused; scale it down")
        _check_scans(data, image.width, image.height, where)
        return np.array(_rgb(image))
    except Exception as error:  # as below
        raise ValueError(f"{where}: cannot be read as an image ({error})") from error


def _upright(jpeg: bytes, where: str) -> bool:
    """Whether EXIF leaves the pixels as they lie. Raises ValueError if that cannot be read."""
    if b"Exif\0\0" not in jpeg:  # nearly always, and Pillow takes longer to say so
        return True
    try:
        return Image.open(io.BytesIO(jpeg)).getexif().get(ExifTags.Base.Orientation, 1) == 1
    except Exception as error:  # as below
        raise ValueError(f"{where}: its EXIF data cannot be read ({error}); remove it") from error


def _open(data: bytes, where: str, formats: tuple[str, ...], any_size: bool = False) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        _check_size(data, *image.size, where, any_size)
        return _rgb(image)
    except WrongSize:
        raise
    except Exception as error:  # Pillow's plugins raise many types (OSError, SyntaxError, struct.error, …)
        raise ValueError(f"{where}: cannot be read as an image ({error})") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode not in ("L", "P", "RGB", "RGBA", "CMYK"):
        raise ValueError(f"mode {image.mode} has no plain 8-bit RGB form; convert it first")
    return ImageOps.exif_transpose(image).convert("RGB")


def _check_size(data: bytes, width: int, height: int, where: str, any_size: bool = False) -> None:
    if width * height > MAX_PIXELS:
        raise WrongSize(f"{where}: {width}x{height} pixels in the header, refused; faces are {SIZE}x{SIZE} crops")
    _check_scans(data, width, height, where)
    if (width, height) == (SIZE, SIZE):
        return
    if not any_size:
        raise WrongSize(f"{where}: {width}x{height}, expected {SIZE}x{SIZE}; align it, or prepare with --resize")
    if width != height:
        raise WrongSize(f"{where}: {width}x{height} is not square, so it is no aligned crop; align it first")


def _check_scans(data: bytes, width: int, height: int, where: str) -> None:
    if data[:2] == b"\xff\xd8" and (scans := data.count(b"\xff\xda")) * width * height > MAX_WORK:
        raise ValueError(f"{where}: refused, a JPEG of {width}x{height} in {scans} scans")
