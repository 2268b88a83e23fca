"""The format of one RecordIO record of a face, and what is reported about records."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

MAGIC = 0xCED7230A
MARK = struct.pack("<I", MAGIC)
LENGTH = (1 << 29) - 1  # the bits of a part's word that are its length
HEAD = struct.Struct("<II")  # magic number, word of kind and length
IRHEADER = struct.Struct("<IfQQ")
MAX_RECORD = 16 << 20  # bytes; longer records are rejected unread, so that a damaged length costs no memory
MAX_LABEL = 1 << 24  # from here on float32 skips integers


class Rejected(NamedTuple):
    """A record or a line of an .idx that was left out, and why.

    ``record`` is the number in the file (of an .idx: the line), ``offset`` and ``end`` the first byte and the last + 1
    in the .rec.
    """

    file: str
    record: int
    offset: int
    end: int
    reason: str

    @property
    def kind(self) -> str:
        """The kind of reason, to be counted."""
        if Path(self.file).suffix == ".idx":
            return "line of the .idx without a record"
        reason = self.reason.partition(": ")[2]
        return "damaged" if reason.endswith("damaged") else re.split(r":| \(|,", reason, maxsplit=1)[0]


class Header(NamedTuple):
    """A record with two labels and no image: a range of keys, first and last + 1."""

    number: int
    offset: int
    key: int
    labels: np.ndarray


class Images(NamedTuple):
    """The images of a .rec in file order; columns of N entries."""

    number: np.ndarray  # int64, among all records of the file
    offset: np.ndarray  # int64, the record's first byte
    size: np.ndarray  # int32, bytes of the record
    label: np.ndarray  # int32
    key: np.ndarray  # uint64


def parse(data: bytes) -> tuple[np.ndarray, int, bytes, int]:
    """Parse the record that ``data`` starts with.

    Returns:
        labels float32 [1 or more], the id, the image file's bytes, and the number of bytes of ``data`` that the record
        takes.
    Raises:
        ValueError: there is no record here; the message says why.
    """
    payload, size = _join_parts(data)
    if len(payload) < IRHEADER.size:
        raise ValueError(f"{len(payload)} bytes, too few for its header of {IRHEADER.size}")
    flag, label, id_, _ = IRHEADER.unpack_from(payload)
    image_start = IRHEADER.size + 4 * flag
    if image_start > len(payload):
        raise ValueError(f"promises {flag} labels, has room for {(len(payload) - IRHEADER.size) // 4}")
    labels = np.frombuffer(payload, "<f4", flag, IRHEADER.size) if flag else np.array([label], "<f4")
    return labels, id_, payload[image_start:], size


def _join_parts(data: bytes) -> tuple[bytes, int]:
    """Return the payload of the record that ``data`` starts with, and the bytes of ``data`` that it takes."""
    parts, at = [], 0
    while True:
        if len(data) < at + HEAD.size:
            raise ValueError(f"only {len(data)} bytes up to the next record or the end: truncated or damaged")
        magic, word = HEAD.unpack_from(data, at)
        kind, length = word >> 29, word & LENGTH
        if magic != MAGIC:
            raise ValueError(f"no magic number at its byte {at}: damaged")
        if kind not in ((2, 3) if parts else (0, 1)):
            raise ValueError(f"a part of kind {kind} {'within' if parts else 'at the start of'} a record: damaged")
        start = at + HEAD.size
        at = start + (length + 3) // 4 * 4
        if at > MAX_RECORD:
            raise ValueError(f"its length is {at} bytes, more than any face has ({MAX_RECORD}): damaged")
        if at > len(data):
            raise ValueError(f"its length is {at} bytes, but only {len(data)} follow: truncated or damaged")
        parts.append(data[start : start + length])
        if kind in (0, 3):
            return MARK.join(parts), at


def read_bytes(file: BinaryIO, offset: int, n: int) -> bytes:
    """Read ``n`` bytes of an open .rec, at most MAX_RECORD."""
    return os.pread(file.fileno(), min(int(n), MAX_RECORD), int(offset))


def identity(labels: np.ndarray) -> int:
    """Return the identity that a record's labels name. Raises ValueError if the first is no integer in range."""
    label = float(labels[0])
    if not 0 <= label < MAX_LABEL or label != int(label):
        raise ValueError(f"label {label:g} is no identity, which is an integer from 0 to {MAX_LABEL - 1}")
    return int(label)


def location(rec: Path, number: Any, offset: Any) -> str:
    """Name a record in an error or a rejection."""
    return f"{rec.name} record {int(number)} at byte {int(offset)}"


def rejection(rec: Path, number: int, start: int, end: int, reason: str) -> Rejected:
    """Report a damaged record, its location in the reason."""
    return Rejected(str(rec), number, start, end, f"{location(rec, number, start)}: {reason}")
