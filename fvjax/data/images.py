"""Encoding and decoding of images: bytes to uint8 [H, W, 3] RGB and back, with errors that name the file or record.

JPEGs are decoded with simplejpeg (libjpeg-turbo). What it refuses (CMYK, stray bytes) gets a second try with Pillow.
Sizes are (height, width); unless a caller asks for another one, images are 112x112 face crops.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from fvjax import errors
from fvjax.data import picture_bytes

SIZE = 112  # of a face crop, as preparation and the synthetic faces make them
FACE_SIZE = (SIZE, SIZE)
FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "WEBP",
)  # of picture_files.SUFFIXES; Pillow knows dozens, and runs Ghostscript for some
MAX_PIXELS = 4096 * 4096  # no aligned crop is larger; refused from the header, before memory is spent on it
MAX_PHOTOGRAPH = 8192 * 8192  # pixels, 200 MB decoded
# Pixels times scans: each scan of a progressive JPEG, of ten bytes, goes over all pixels (0.15 s for the largest).
# Encoders write 10 scans, 18 for CMYK.
MAX_WORK = 20 * MAX_PHOTOGRAPH
MAX_SIDE = 65_535  # pixels, JPEG's own limit; the tables of a resize grow with the side
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK")  # with an 8-bit RGB form; alpha is dropped
_UPRIGHT = {  # by EXIF's orientation, which is 1 for upright pictures
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class WrongSize(ValueError):
    """The image is readable but of another size than expected: a mistake of preparation rather than a broken file."""


class TooManyScans(ValueError):
    """A JPEG that would take far longer to decode than its size suggests."""


def silence_pillow() -> None:
    """Keep Pillow's warnings off the terminal of a command, for the whole process.

    They are about images that we refuse, in one line, when they are far smaller, and about metadata that we ignore.
    """
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


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

    A JPEG of that size is kept byte for byte up to its end, everything else is re-encoded. So are CMYK JPEGs, which few
    readers expect, and images that EXIF says are rotated, because decoders do not ask EXIF.

    Args:
        data: the file's bytes.
        location: the file's name, for errors.
        resize: resize square images of another size to 112x112 (bilinear, antialiased) instead of refusing them.
    Raises:
        WrongSize: another size without ``resize``, or not square.
        ValueError: not an image, or broken.
    """
    data = picture_bytes.trim(data)
    if data.startswith(picture_bytes.JPEG):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            pass  # Pillow decides below
        else:
            _check_size(data, int(width), int(height), location, FACE_SIZE, resize)
            keep = colours in ("Gray", "YCbCr", "RGB") and _is_upright(data)
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

    def check_size(width: int, height: int) -> None:
        if width * height > MAX_PHOTOGRAPH or max(width, height) > MAX_SIDE:
            raise ValueError(f"{width}x{height} pixels in the header, refused; scale it down")
        _check_scans(data, width, height, location)

    data = picture_bytes.trim(data)
    return _decode_with_pillow(data, location, formats, check_size)


def _open(
    data: bytes, location: str, formats: tuple[str, ...], size: tuple[int, int], resize: bool = False
) -> Image.Image:
    return _decode_with_pillow(
        data, location, formats, lambda width, height: _check_size(data, width, height, location, size, resize)
    )


def _decode_with_pillow(
    data: bytes, location: str, formats: tuple[str, ...], check_size: Callable[[int, int], None]
) -> Image.Image:
    """Decode to RGB, upright. Metadata that cannot be read are ignored: they say nothing about the picture.

    Args:
        check_size: raises an error for a (width, height) that is refused.
    Raises:
        WrongSize, TooManyScans: as ``check_size``.
        ValueError: the picture cannot be read.
    """

    def attempt(file: bytes) -> Image.Image:
        image = Image.open(io.BytesIO(file), formats=formats)
        check_size(*image.size)
        return _to_rgb(image)

    try:
        return attempt(data)
    except (WrongSize, TooManyScans):
        raise
    except Exception as error:  # Pillow's plugins raise many types (OSError, SyntaxError, struct.error, …)
        for keep_exif in (True, False):
            stripped = picture_bytes.without_metadata(data, keep_exif)
            if stripped != data:
                try:
                    return attempt(stripped)
                except Exception:  # the first error is the one to report
                    continue
        raise ValueError(f"{location}: cannot be read as an image ({_reason(error, formats)})") from error


def _reason(error: Exception, formats: tuple[str, ...]) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"no {', '.join(formats)} file"
    return errors.without_addresses(str(error)) or type(error).__name__


def _is_upright(jpeg: bytes) -> bool:
    """Tell whether EXIF leaves the pixels as they are."""
    if b"Exif\0\0" not in jpeg:  # nearly always, and Pillow takes longer to say so
        return True
    try:
        return _orientation(Image.open(io.BytesIO(jpeg), formats=("JPEG",))) not in _UPRIGHT
    except Exception:  # as in _decode_with_pillow, which decides
        return False


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation; 1, upright, if there is none or the EXIF data cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises many types
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode not in MODES:
        raise ValueError(f"mode {image.mode} has no plain 8-bit RGB form; convert it first")
    turn = _UPRIGHT.get(_orientation(image))
    upright = image if turn is None else image.transpose(turn)
    if upright.mode == "P" and "transparency" in upright.info:
        upright = upright.convert("RGBA")  # Pillow warns of the direct way, which gives the same
    return upright.convert("RGB")


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
    pixels = width * height
    # Counting marks anywhere in the file is fast, and never too low.
    if not data.startswith(picture_bytes.JPEG) or data.count(b"\xff\xda") * pixels <= MAX_WORK:
        return
    if (scans := picture_bytes.jpeg_scans(data)) * pixels > MAX_WORK:
        raise TooManyScans(f"{location}: refused, a JPEG of {width}x{height} in {scans} scans")
