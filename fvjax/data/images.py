"""Encoding and decoding of images: bytes to uint8 [H, W, 3] RGB and back, with errors that name the file or record.

JPEGs are decoded with simplejpeg (libjpeg-turbo). What it refuses (CMYK, stray bytes) gets a second try with Pillow.
Sizes are (height, width); unless a caller asks for another one, images are 112x112 face crops.
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

SIZE = 112  # of a face crop, as preparation and the synthetic faces make them
FACE_SIZE = (SIZE, SIZE)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")  # of these suffixes; Pillow knows dozens, and runs Ghostscript for some
MAX_PIXELS = 4096 * 4096  # no aligned crop is larger; refused from the header, before memory is spent on it
MAX_WORK = 16 * MAX_PIXELS  # pixels times scans; each scan of a progressive JPEG, of ten bytes, goes over all pixels
MAX_PHOTOGRAPH = 8192 * 8192  # pixels, 200 MB decoded
MAX_SIDE = 65_535  # pixels, JPEG's own limit; the tables of a resize grow with the side


class WrongSize(ValueError):
    """The image is readable but of another size than expected: a mistake of preparation rather than a broken file."""


def decode(jpeg: bytes, location: str, out: np.ndarray | None = None, size: tuple[int, int] = FACE_SIZE) -> np.ndarray:
    """Decode a JPEG to uint8 [H, W, 3] RGB; grey is repeated over the channels.

    Args:
        jpeg: a whole JPEG file.
        location: the name for errors, such as "store/train record 17 (a/1.jpg)".
        out: uint8 [H, W, 3], contiguous, to decode into; None makes a new array.
        size: the expected (height, width).
    Raises:
        WrongSize: the header has another size (nothing has been decoded then).
        ValueError: not a JPEG, truncated, or without an RGB form.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError as error:
        raise ValueError(f"{location}: not a JPEG ({error}, {len(jpeg)} bytes)") from error
    _check_size(jpeg, int(width), int(height), location, size)
    try:
        return simplejpeg.decode_jpeg(jpeg, colorspace="RGB", buffer=out)
    except ValueError:
        image = np.asarray(_open(jpeg, location, ("JPEG",), size))
        if image.shape[:2] != size:
            raise WrongSize(f"{location}: EXIF says it is rotated; re-encode it upright") from None
        if out is None:
            return image
        out[:] = image
        return out


def check(jpeg: bytes, location: str, size: tuple[int, int] = FACE_SIZE) -> None:
    """Raise whatever :func:`decode` would raise, in half the time.

    Every coefficient is read, but only an eighth of the width and height (14x14 of 112x112 pixels) is computed.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
        if (height, width) == size:
            _check_scans(jpeg, size[1], size[0], location)
            simplejpeg.decode_jpeg(jpeg, colorspace="RGB", min_height=1, min_width=1, min_factor=8)
            return
    except ValueError:
        pass
    decode(jpeg, location, size=size)  # words the error, or succeeds with Pillow


def encode(image: np.ndarray, quality: int = 95, size: tuple[int, int] = FACE_SIZE) -> bytes:
    """Encode uint8 [H, W, 3] RGB of the expected ``size`` as JPEG (4:4:4, so that colour edges survive)."""
    if image.dtype != np.uint8 or image.shape != (*size, 3):
        raise ValueError(f"expected an image uint8 [{size[0]},{size[1]},3], got {image.dtype} {list(image.shape)}")
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="444", fastdct=False
    )


def to_jpeg(data: bytes, location: str, resize: bool = False) -> bytes:
    """Convert any image file to the JPEG bytes of a 112x112 face.

    A JPEG of that size is kept byte for byte, everything else is re-encoded. So are CMYK JPEGs, which few readers
    expect, and images that EXIF says are rotated, because decoders do not ask EXIF.

    Args:
        data: the file's bytes.
        location: the file's name, for errors.
        resize: resize square images of another size to 112x112 (bilinear, antialiased) instead of refusing them.
    Raises:
        WrongSize: another size without ``resize``, or not square.
        ValueError: not an image, or broken.
    """
    if data[:2] == b"\xff\xd8":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            pass  # Pillow decides below
        else:
            _check_size(data, int(width), int(height), location, FACE_SIZE, resize)
            keep = colours in ("Gray", "YCbCr", "RGB") and _is_upright(data, location)
            if (height, width) == FACE_SIZE and keep:
                return data
    image = _open(data, location, FORMATS, FACE_SIZE, resize)
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return encode(np.asarray(image))


def photograph(data: bytes, location: str) -> np.ndarray:
    """Decode any image file to uint8 [H, W, 3] RGB, rotated upright as EXIF says.

    Args:
        data: the file's bytes.
        location: the file's name, for errors.
    Raises:
        ValueError: not an image, broken, of more than MAX_PHOTOGRAPH pixels, or with a side above MAX_SIDE.
    """
    return np.array(open_photograph(data, location))


def open_photograph(data: bytes, location: str, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Decode an image file of one of these ``formats`` as :func:`photograph` does, to a Pillow image in RGB."""
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        if image.width * image.height > MAX_PHOTOGRAPH or max(image.size) > MAX_SIDE:
            raise ValueError(f"{image.width}x{image.height} pixels in the header, refused; scale it down")
        _check_scans(data, image.width, image.height, location)
        return _to_rgb(image)
    except Exception as error:  # as in _open
        raise ValueError(f"{location}: cannot be read as an image ({error})") from error


def _is_upright(jpeg: bytes, location: str) -> bool:
    """Tell whether EXIF leaves the pixels as they are. Raises ValueError if the EXIF data cannot be read."""
    if b"Exif\0\0" not in jpeg:  # nearly always, and Pillow takes longer to say so
        return True
    try:
        return Image.open(io.BytesIO(jpeg)).getexif().get(ExifTags.Base.Orientation, 1) == 1
    except Exception as error:  # as in _open
        raise ValueError(f"{location}: its EXIF data cannot be read ({error}); remove it") from error


def _open(
    data: bytes, location: str, formats: tuple[str, ...], size: tuple[int, int], resize: bool = False
) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        _check_size(data, *image.size, location, size, resize)
        return _to_rgb(image)
    except WrongSize:
        raise
    except Exception as error:  # Pillow's plugins raise many types (OSError, SyntaxError, struct.error, …)
        raise ValueError(f"{location}: cannot be read as an image ({error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode not in ("L", "P", "RGB", "RGBA", "CMYK"):
        raise ValueError(f"mode {image.mode} has no plain 8-bit RGB form; convert it first")
    return ImageOps.exif_transpose(image).convert("RGB")


def _check_size(
    data: bytes, width: int, height: int, location: str, size: tuple[int, int], resize: bool = False
) -> None:
    """Raise WrongSize unless the image has the expected ``size``, or is square and will be resized."""
    expected = f"{size[1]}x{size[0]}"
    if width * height > MAX_PIXELS:
        raise WrongSize(f"{location}: {width}x{height} pixels in the header, refused; expected {expected}")
    _check_scans(data, width, height, location)
    if (height, width) == size:
        return
    if not resize:
        remedy = "align it, or prepare with --resize" if size == FACE_SIZE else "resize it"
        raise WrongSize(f"{location}: {width}x{height}, expected {expected}; {remedy}")
    if width != height:
        raise WrongSize(f"{location}: {width}x{height} is not square, so it is no aligned crop; align it first")


def _check_scans(data: bytes, width: int, height: int, location: str) -> None:
    if data[:2] == b"\xff\xd8" and (scans := data.count(b"\xff\xda")) * width * height > MAX_WORK:
        raise ValueError(f"{location}: refused, a JPEG of {width}x{height} in {scans} scans")
