"""Finding every record of a .rec, past any damage, without decoding an image."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fvjax.data.readers.recordio import records
from fvjax.data.readers.recordio.records import (
    HEAD,
    IRHEADER,
    LENGTH,
    MAGIC,
    MAX_LABEL,
    Header,
    Images,
    Rejected,
    identity,
    parse,
    read_bytes,
    rejection,
)

MAX_REJECTED = 100_000  # with more damage the file is something else, or lost
BLOCK = 4 << 20  # words of a .rec searched at a time
LOOKAHEAD = 9  # words from a record's mark to its first label behind IRHeader


class _Block(NamedTuple):
    """The records that start in one block of a .rec; columns of n entries."""

    start: np.ndarray  # int64, first byte
    end: np.ndarray  # int64, last byte + 1
    next_start: np.ndarray  # int64, the first byte of the following record
    label: np.ndarray  # int32
    key: np.ndarray  # uint64
    is_image: np.ndarray  # bool
    stray: np.ndarray  # bool, whether bytes that belong to no record follow
    exceptions: dict[int, str | np.ndarray]  # by row: why it is no record, or the two labels of a header record


def scan(rec: Path, advance: Callable[[int], Any]) -> tuple[Images, list[Header], list[Rejected]]:
    """Find every record of a .rec. Images are not decoded. Memory: 32 bytes an image, plus 100 MB.

    Args:
        rec: the file.
        advance: called with the number of bytes read since its last call.
    Returns:
        images, header records, and rejections; every byte of the file is in one of them.
    Raises:
        ValueError: more than 100,000 records are damaged.
    """
    size, record_count = rec.stat().st_size, 0
    columns = array("q"), array("q"), array("i"), array("i"), array("Q")
    headers: list[Header] = []
    rejected: list[Rejected] = []
    with open(rec, "rb") as file:
        for rows, following in _record_starts(file, size, advance):
            block = _parse_block(file, rows, following)
            number = record_count + np.arange(len(rows)) + np.cumsum(block.stray) - block.stray
            record_count += len(rows) + int(block.stray.sum())
            _report_exceptions(rec, block, number, headers, rejected)
            if len(rejected) > MAX_REJECTED:
                raise ValueError(
                    f"{rec}: no RecordIO file of faces: more than {MAX_REJECTED} records are rejected, the first: "
                    f"{rejected[0].reason}"
                )
            sizes = (block.end - block.start).astype(np.int32)
            for column, values in zip(columns, (number, block.start, sizes, block.label, block.key)):
                column.frombytes(values[block.is_image].tobytes())
    return Images(*(np.asarray(column) for column in columns)), headers, rejected


def _parse_block(file: BinaryIO, rows: np.ndarray, following: int) -> _Block:
    """Interpret the rows of :func:`_record_starts`, whole records at once and exceptions one by one."""
    start, word, flag, bits, id_, marked = rows.T
    key, after, length = id_.view(np.uint64), np.append(start[1:], following), word & LENGTH
    end = start + HEAD.size + (length + 3) // 4 * 4
    value = bits.astype(np.uint32).view(np.float32)
    with np.errstate(invalid="ignore"):
        is_image = (marked == 1) & (word <= LENGTH) & (end <= after) & (end - start <= records.MAX_RECORD)
        is_image &= (length > IRHEADER.size + 4 * flag) & (value >= 0) & (value < MAX_LABEL)
        label = np.where(is_image, value, 0).astype(np.int32)
        is_image &= label == value
    exceptions: dict[int, str | np.ndarray] = {}
    for i in np.flatnonzero(~is_image).tolist():  # the few that must be parsed one by one
        end[i] = after[i]
        try:
            labels, key[i], image, taken = parse(read_bytes(file, start[i], after[i] - start[i]))
            end[i] = start[i] + taken
            if image:
                label[i], is_image[i] = identity(labels), True
            elif len(labels) == 2:
                exceptions[i] = labels
            else:
                raise ValueError("there is no image in it")
        except ValueError as error:
            exceptions[i] = str(error)
    stray = end < after
    return _Block(start, end, after, label, key, is_image, stray, exceptions)


def _report_exceptions(
    rec: Path, block: _Block, number: np.ndarray, headers: list[Header], rejected: list[Rejected]
) -> None:
    """Append the block's header records and rejections to the lists."""
    for i in sorted({*block.exceptions, *np.flatnonzero(block.stray).tolist()}):
        n, start, end, next_start = (int(x[i]) for x in (number, block.start, block.end, block.next_start))
        exception = block.exceptions.get(i)
        if isinstance(exception, np.ndarray):
            headers.append(Header(n, start, int(block.key[i]), exception))
        elif exception is not None:
            rejected.append(rejection(rec, n, start, end, exception))
        if block.stray[i]:
            reason = f"{next_start - end} bytes that belong to no record: damaged"
            rejected.append(rejection(rec, n + 1, end, next_start, reason))


def _record_starts(file: BinaryIO, size: int, advance: Callable[[int], Any]) -> Iterator[tuple[np.ndarray, int]]:
    """Find where records start, by the magic number.

    Yields:
        rows int64 [n, 6] and the start that follows the last of them. A row: byte, word of kind and length, flag, the
        bits of the first label, id, and 1 if the magic number is there (only the file's first byte may lack it).
    """
    block = min(BLOCK, size // 4 + 1)
    words = np.empty(block + LOOKAHEAD, "<u4")
    pending = np.zeros((0, 6), np.int64)
    for first in range(0, size, 4 * block):
        file.seek(first)
        words.view(np.uint8)[file.readinto(words) :] = 0  # pyright: ignore[reportAttributeAccessIssue]
        at = np.flatnonzero(words[:block] == MAGIC)
        at = at[~np.isin(words[at + 1] >> 29, (2, 3))]  # later parts start no record
        if not first and (not len(at) or at[0]):
            at = np.append(0, at)  # the bytes before the first record
        label = np.where(words[at + 2] > 0, words[at + 8], words[at + 3])
        id_ = words[at + 4] | words[at + 5].astype(np.uint64) << np.uint64(32)
        new = 4 * at + first, words[at + 1], words[at + 2], label, id_, words[at] == MAGIC
        rows = np.concatenate([pending, np.stack([column.astype(np.int64) for column in new], 1)])
        if first + 4 * block >= size:
            yield rows, size
        else:  # the last record extends to the next start, which a later block has
            pending = rows[-1:].copy()
            yield rows[:-1], int(pending[0, 0])
        advance(min(4 * block, size - first))
