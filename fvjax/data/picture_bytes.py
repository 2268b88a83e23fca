"""Encoded pictures as bytes: where a picture ends in its file, its scans, and the same picture without its metadata.

Cameras append videos, depth maps and further pictures to a JPEG ("motion photos"), and editors leave metadata that
nobody can read. JPEG, PNG and WebP are told apart by their first bytes; no pixel is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

JPEG = b"\xff\xd8"
PNG = b"\x89PNG\r\n\x1a\n"
MAX_SEGMENTS = 1 << 16  # of a JPEG that are followed; the largest have a few hundred
# A marker that has a length or ends the picture: neither stuffing, fill and TEM, nor a restart, nor a start.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
_START_OF_SCAN, _END_OF_IMAGE, _COMMENT = 0xDA, 0xD9, 0xFE
_APP0, _APP1, _ADOBE, _APP15 = 0xE0, 0xE1, 0xEE, 0xEF
_WEBP_METADATA = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}  # chunks, and their flags in VP8X


def trim(data: bytes) -> bytes:
    """Return a picture's file without the bytes behind the picture; other files and damaged ones as they are."""
    if data.startswith(JPEG):
        ends = [end for marker, _, end in _jpeg_segments(data) if marker == _END_OF_IMAGE]
    elif data.startswith(PNG):
        ends = [end for name, _, end in _png_chunks(data) if name == b"IEND"]
    elif _is_webp(data):
        ends = [8 + int.from_bytes(data[4:8], "little")]
    else:
        ends = []
    return data[: ends[0]] if ends and ends[0] < len(data) else data


def media_type(data: bytes) -> str:
    """Return the media type of a JPEG, PNG or WebP file. Raises ValueError for any other."""
    if data.startswith(JPEG):
        return "image/jpeg"
    if data.startswith(PNG):
        return "image/png"
    if _is_webp(data):
        return "image/webp"
    raise ValueError("neither JPEG, PNG nor WebP")


def jpeg_scans(data: bytes) -> int:
    """Count the scans of a JPEG. What lies behind its end, or in its metadata, is not counted."""
    segments = list(_jpeg_segments(data))
    if len(segments) == MAX_SEGMENTS:
        return data.count(bytes([0xFF, _START_OF_SCAN]))
    return sum(marker == _START_OF_SCAN for marker, *_ in segments)


def without_metadata(data: bytes, keep_exif: bool) -> bytes:
    """Return a picture's file without comments, colour profiles, previews, XMP and, unless ``keep_exif``, EXIF."""
    if data.startswith(JPEG):
        return _jpeg_without_metadata(data, keep_exif)
    if data.startswith(PNG):
        return _png_without_metadata(data, keep_exif)
    return _webp_without_metadata(data, keep_exif) if _is_webp(data) else data


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, first byte, last byte + 1) of a JPEG's segments up to its end, at most MAX_SEGMENTS.

    A scan's segment is its header; the entropy-coded bytes that follow contain no other marker.
    """

    def follow() -> Iterator[tuple[int, int, int]]:
        at = 0
        while found := _MARKER.search(data, at):
            marker, at = data[found.end() - 1], found.end()
            if marker != _END_OF_IMAGE:
                at += int.from_bytes(data[at : at + 2], "big")
            yield marker, found.start(), at
            if marker == _END_OF_IMAGE:
                return

    return islice(follow(), MAX_SEGMENTS)


def _jpeg_without_metadata(data: bytes, keep_exif: bool) -> bytes:
    parts, at = [], 0
    for marker, start, end in _jpeg_segments(data):
        if marker == _START_OF_SCAN:
            break
        is_exif = marker == _APP1 and data.startswith(b"Exif\0", start + 4)
        if (is_exif and not keep_exif) or (_is_jpeg_metadata(marker) and not is_exif):
            parts.append(data[at:start])
            at = end
    return b"".join([*parts, data[at:]])


def _is_jpeg_metadata(marker: int) -> bool:
    """Tell whether decoders do without a segment; they need JFIF's and Adobe's to know the colours."""
    return marker == _COMMENT or (_APP0 < marker <= _APP15 and marker != _ADOBE)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, first byte, last byte + 1) of a PNG's chunks up to its end."""
    at, name = len(PNG), b""
    while at + 12 <= len(data) and name != b"IEND":
        name, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield name, at, end
        at = end


def _png_without_metadata(data: bytes, keep_exif: bool) -> bytes:
    """Keep the chunks that decoding needs, whose names begin with a capital, and transparency."""
    kept = {b"tRNS", *([b"eXIf"] if keep_exif else [])}
    chunks = [data[start:end] for name, start, end in _png_chunks(data) if name[:1].isupper() or name in kept]
    return b"".join([PNG, *chunks])


def _is_webp(data: bytes) -> bool:
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


def _webp_without_metadata(data: bytes, keep_exif: bool) -> bytes:
    dropped = {name: flag for name, flag in _WEBP_METADATA.items() if not (keep_exif and name == b"EXIF")}
    chunks, at = [], 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        chunk = bytearray(data[at : at + 8 + size + size % 2])
        if name == b"VP8X" and len(chunk) > 8:
            chunk[8] &= 0xFF ^ sum(dropped.values())
        if name not in dropped:
            chunks.append(bytes(chunk))
        at += 8 + size + size % 2
    body = b"".join([b"WEBP", *chunks])
    return b"RIFF" + len(body).to_bytes(4, "little") + body
