"""MXNet RecordIO files of faces, as insightface packs them (train.rec, train.idx, property), made into stores.

A .rec is a sequence of parts, each at a multiple of four bytes: the magic number, a word that holds kind (3 bits) and
length (29 bits), so many bytes, zeros up to the next multiple of four. Kind 0 is a whole record. Where a record's own
bytes hold the magic number at a multiple of four, the writer leaves it out and cuts there: kinds 1, 2, …, 2, 3
(dmlc-core, recordio.h). So the number marks parts and nothing else, and behind damage one reads on from the next mark.

A record is IRHeader (flag uint32, label float32, id uint64, id2 uint64), ``flag`` float32 labels that replace the
header's, and the bytes of an image file. Its identity is the first label. insightface adds header records with two
labels and no image: key 0 says which keys, first and last + 1, are the identities', and each of those which keys are
that identity's images.

The .rec is read from end to end and says what there is; it is enough. Files beside it are believed only if they agree:
.idx ("key<TAB>offset" a line; without it a record's key is its header's id), property ("identities,112,112"), .lst
("key<TAB>label…<TAB>path", as im2rec writes it).

A conversion works in .NAME.partial beside its destination, a shard at a time, and leaves finished ones there when it is
killed; the same command then does the rest. The bytes of a store depend neither on that nor on the number of workers.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import struct
import threading
import warnings
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from rich.progress import Progress

from fvjax import errors
from fvjax.data import images, store

MAGIC = 0xCED7230A
MARK, LENGTH = struct.pack("<I", MAGIC), (1 << 29) - 1
HEAD, IRHEADER = struct.Struct("<II"), struct.Struct("<IfQQ")
MAX_RECORD = 16 << 20  # bytes; longer ones are rejected unread, so that a damaged length costs no memory
MAX_REJECTED = 100_000  # beyond that a file is something else, or lost
MAX_LABEL = 1 << 24  # from here on float32 leaves integers out
BLOCK = 4 << 20  # words of a .rec looked at at once
AHEAD = 9  # words from a record's mark to its first label behind IRHeader


class Rejected(NamedTuple):
    """What was left out: number in the file (for an .idx: line), first byte and last + 1 in the .rec, and why."""

    file: str
    record: int
    offset: int
    end: int
    reason: str


class Header(NamedTuple):
    """A record with two labels and no image: keys, first and last + 1."""

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
    """The record that ``data`` starts with.

    Returns:
        labels float32 [1 or more], id, the image file's bytes, and how many bytes of ``data`` the record takes.
    Raises:
        ValueError: why there is no record here.
    """
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
        start, at = at + HEAD.size, at + HEAD.size + (length + 3) // 4 * 4
        if at > MAX_RECORD:
            raise ValueError(f"says it has {at} bytes, more than any face ({MAX_RECORD}): damaged")
        if at > len(data):
            raise ValueError(f"says it has {at} bytes, only {len(data)} are there: truncated or damaged")
        parts.append(data[start : start + length])
        if kind in (0, 3):
            break
    payload = MARK.join(parts)
    if len(payload) < IRHEADER.size:
        raise ValueError(f"{len(payload)} bytes, too few for its header of {IRHEADER.size}")
    flag, label, id_, _ = IRHEADER.unpack_from(payload)
    image = IRHEADER.size + 4 * flag
    if image > len(payload):
        raise ValueError(f"promises {flag} labels, has room for {(len(payload) - IRHEADER.size) // 4}")
    labels = np.frombuffer(payload, "<f4", flag, IRHEADER.size) if flag else np.array([label], "<f4")
    return labels, id_, payload[image:], at


def scan(rec: Path, advance: Callable[[int], Any]) -> tuple[Images, list[Header], list[Rejected]]:
    """Find every record of a .rec; images are not decoded. Memory: 32 bytes an image, and 100 MB.

    Args:
        rec: the file. advance: called with how many more bytes have been read.
    Returns:
        images, header records, and what is neither; every byte of the file is in one of them.
    Raises:
        ValueError: more than 100,000 records are damaged.
    """
    size, numbered = rec.stat().st_size, 0
    columns = array("q"), array("q"), array("i"), array("i"), array("Q")
    headers: list[Header] = []
    rejected: list[Rejected] = []
    with open(rec, "rb") as file:
        for rows, following in _starts(file, size, advance):
            at, word, flag, bits, id_, marked = rows.T
            key, after, length = id_.view(np.uint64), np.append(at[1:], following), word & LENGTH
            end = at + HEAD.size + (length + 3) // 4 * 4
            value = bits.astype(np.uint32).view(np.float32)
            with np.errstate(invalid="ignore"):
                good = (marked == 1) & (word <= LENGTH) & (end <= after) & (end - at <= MAX_RECORD)
                good &= (length > IRHEADER.size + 4 * flag) & (value >= 0) & (value < MAX_LABEL)
                label = np.where(good, value, 0).astype(np.int32)
                good &= label == value
            notes: dict[int, str | np.ndarray] = {}
            for i in np.flatnonzero(~good).tolist():  # the few that need a closer look
                end[i] = after[i]
                try:
                    labels, key[i], image, taken = parse(_bytes(file, at[i], after[i] - at[i]))
                    end[i] = at[i] + taken
                    if image:
                        label[i], good[i] = _identity(labels), True
                    elif len(labels) == 2:
                        notes[i] = labels
                    else:
                        raise ValueError("there is no image in it")
                except ValueError as error:
                    notes[i] = str(error)
            stray = end < after  # behind a whole record, bytes that belong to none
            number = numbered + np.arange(len(rows)) + np.cumsum(stray) - stray
            numbered += len(rows) + int(stray.sum())
            for i in sorted({*notes, *np.flatnonzero(stray).tolist()}):
                n, start, middle, stop = (int(x[i]) for x in (number, at, end, after))
                note = notes.get(i)
                if isinstance(note, np.ndarray):
                    headers.append(Header(n, start, int(key[i]), note))
                elif note is not None:
                    rejected.append(_rejected(rec, n, start, middle, note))
                if stray[i]:
                    reason = f"{stop - middle} bytes that belong to no record: damaged"
                    rejected.append(_rejected(rec, n + 1, middle, stop, reason))
            if len(rejected) > MAX_REJECTED:
                raise ValueError(
                    f"{rec}: no RecordIO file of faces: more than {MAX_REJECTED} records are rejected, the first: "
                    f"{rejected[0].reason}"
                )
            for column, values in zip(columns, (number, at, (end - at).astype(np.int32), label, key)):
                column.frombytes(values[good].tobytes())
    return Images(*(np.asarray(column) for column in columns)), headers, rejected


def _starts(file: BinaryIO, size: int, advance: Callable[[int], Any]) -> Iterator[tuple[np.ndarray, int]]:
    """Where records start, by the magic number: rows int64 [n, 6] and the start that follows the last of them.

    A row: byte, its word of kind and length, flag, the bits of the first label, id, 1 if the magic number is there.
    """
    block = min(BLOCK, size // 4 + 1)
    words = np.empty(block + AHEAD, "<u4")
    held = np.zeros((0, 6), np.int64)
    for first in range(0, size, 4 * block):
        file.seek(first)
        words.view(np.uint8)[file.readinto(words) :] = 0  # pyright: ignore[reportAttributeAccessIssue]
        at = np.flatnonzero(words[:block] == MAGIC)
        at = at[~np.isin(words[at + 1] >> 29, (2, 3))]  # later parts start no record
        if not first and (not len(at) or at[0]):
            at = np.append(0, at)  # what lies before the first record
        label = np.where(words[at + 2] > 0, words[at + 8], words[at + 3])
        id_ = words[at + 4] | words[at + 5].astype(np.uint64) << np.uint64(32)
        new = 4 * at + first, words[at + 1], words[at + 2], label, id_, words[at] == MAGIC
        rows = np.concatenate([held, np.stack([column.astype(np.int64) for column in new], 1)])
        if first + 4 * block >= size:
            yield rows, size
        else:  # the last one goes on to the next start, wherever that is
            held = rows[-1:].copy()
            yield rows[:-1], int(held[0, 0])
        advance(min(4 * block, size - first))


def _bytes(file: BinaryIO, at: int, n: int) -> bytes:
    return os.pread(file.fileno(), min(int(n), MAX_RECORD), int(at))


def _identity(labels: np.ndarray) -> int:
    label = float(labels[0])
    if not 0 <= label < MAX_LABEL or label != int(label):
        raise ValueError(f"label {label:g} is no identity, which is an integer from 0 to {MAX_LABEL - 1}")
    return int(label)


def _where(rec: Path, number: Any, offset: Any) -> str:
    return f"{rec.name} record {int(number)} at byte {int(offset)}"


def _rejected(rec: Path, number: int, start: int, end: int, why: str) -> Rejected:
    return Rejected(str(rec), number, start, end, f"{_where(rec, number, start)}: {why}")


# ---- the files beside a .rec


def read(rec: Path, resize: bool, advance: Callable[[int], Any]) -> tuple[Images, list[Header], list[Rejected]]:
    """:func:`scan`, and whether the .idx, property and .lst beside the .rec agree with it; keys are the .idx's.

    Raises:
        ValueError: what disagrees, with file and line or record.
    """
    found, headers, rejected = scan(rec, advance)
    if (idx := rec.with_suffix(".idx")).is_file():
        found, headers, lost = _apply_idx(rec, idx, found, headers, rejected)
        rejected = rejected + lost
    if not len(found.label):
        raise ValueError(f"{rec}: not one image" + (f"; the first rejected: {rejected[0].reason}" if rejected else ""))
    order = np.argsort(found.key, kind="stable")
    if (lst := rec.with_suffix(".lst")).is_file():
        _check_lst(lst, rec, found, order)
    if (file := rec.with_name("property")).is_file():
        _check_property(file, len(np.unique(found.label)), bool(rejected), resize)
    if headers:
        _check_headers(rec, found, order, headers, bool(rejected))
    return found, headers, rejected


def _lines(file: Path, form: str, most: int) -> Iterator[tuple[int, list[str]]]:
    """(line number, its tab-separated cells)"""
    with open(file, encoding="utf-8", errors="backslashreplace") as text:
        for number, line in enumerate(iter(lambda: text.readline(most), ""), 1):
            cells = line.rstrip("\n").split("\t")
            if len(cells) < 2 or len(line) == most:
                raise _bad_line(file, number, form, line)
            yield number, cells


def _bad_line(file: Path, number: int, form: str, line: Any) -> ValueError:
    return ValueError(f"{file}:{number}: expected {form}, got {str(line)[:60]!r}; remove the file, the .rec is enough")


def _apply_idx(
    rec: Path, idx: Path, found: Images, headers: list[Header], rejected: list[Rejected]
) -> tuple[Images, list[Header], list[Rejected]]:
    keys, offsets = array("Q"), array("q")
    form, most = "'key<TAB>offset'", len(found.label) + len(headers) + len(rejected) + MAX_REJECTED
    for line, cells in _lines(idx, form, 64):
        try:
            key, offset = (int(cell) for cell in cells)
            keys.append(key)
            offsets.append(offset)
        except (ValueError, OverflowError):
            raise _bad_line(idx, line, form, "\t".join(cells)) from None
        if line > most:
            raise ValueError(f"{idx}: more lines than {rec.name} has records; of another file? remove it")
    key, offset = np.asarray(keys), np.asarray(offsets)
    for values, what in ((key, "key"), (offset, "offset")):
        if len(twice := np.flatnonzero(np.diff(np.sort(values)) == 0)):
            raise ValueError(f"{idx}: {what} {np.sort(values)[twice[0]]} comes twice; remove it, the .rec is enough")
    order = np.argsort(offset)
    starts = np.concatenate([found.offset, np.array([h.offset for h in headers], np.int64)])
    place = np.minimum(np.searchsorted(offset, starts, sorter=order), max(len(offset) - 1, 0))
    here = offset[order[place]] == starts if len(offset) else np.zeros(len(starts), bool)
    if not here.all():
        raise ValueError(f"{idx}: no line for the record at byte {starts[~here][0]} of {rec.name}; remove it")
    of_start = key[order[place]]
    lost, at = [], np.array([r.offset for r in rejected], np.int64)
    for i in np.flatnonzero(~np.isin(offset, np.concatenate([starts, at]))).tolist():
        k = int(np.searchsorted(at, offset[i])) - 1
        if offset[i] >= (size := rec.stat().st_size):
            where = f"its end at byte {size}"
        elif k >= 0 and offset[i] < rejected[k].end:
            where = "damage"
        else:
            raise ValueError(f"{idx}:{i + 1}: no record of {rec.name} starts at byte {offset[i]}; remove the .idx")
        reason = f"{idx.name}:{i + 1}: key {key[i]} should be at byte {offset[i]} of {rec.name}, behind {where}"
        lost.append(Rejected(str(idx), i + 1, int(offset[i]), int(offset[i]), reason))
    n = len(found.label)
    headers = [header._replace(key=int(k)) for header, k in zip(headers, of_start[n:])]
    return found._replace(key=of_start[:n]), headers, lost


def _check_lst(lst: Path, rec: Path, found: Images, order: np.ndarray) -> None:
    keys, labels = array("q"), array("d")
    form = "im2rec's 'key<TAB>label<TAB>path'"
    for line, cells in _lines(lst, form, 8192):
        try:
            keys.append(int(cells[0]))
            labels.append(float(cells[1]))
        except (ValueError, OverflowError):
            raise _bad_line(lst, line, form, "\t".join(cells)) from None
    key, label = np.asarray(keys).astype(np.uint64), np.asarray(labels)
    place = np.minimum(np.searchsorted(found.key, key, sorter=order), len(order) - 1)
    image = order[place]
    wrong = np.flatnonzero((found.key[image] == key) & (found.label[image] != label))
    if len(wrong):
        i = wrong[0]
        where = _where(rec, found.number[image[i]], found.offset[image[i]])
        raise ValueError(f"{lst}:{i + 1}: label {label[i]:g} of key {key[i]}, but {found.label[image[i]]} in {where}")


def _check_property(file: Path, identities: int, damaged: bool, resize: bool) -> None:
    with open(file, encoding="utf-8", errors="backslashreplace") as opened:
        text = opened.read(256)
    try:
        says, height, width = (int(cell) for cell in text.split(","))
    except ValueError:
        raise ValueError(f"{file}: expected 'identities,112,112', got {text[:60]!r}; correct or remove it") from None
    if (height, width) != (images.SIZE, images.SIZE) and not resize:
        raise ValueError(f"{file}: says {height}x{width}, faces are {images.SIZE}x{images.SIZE}; prepare with --resize")
    if identities > says or (identities < says and not damaged):
        raise ValueError(f"{file}: says {says} identities, the records have {identities}; correct or remove it")


def _check_headers(rec: Path, found: Images, order: np.ndarray, headers: list[Header], damaged: bool) -> None:
    """Whether insightface's header records agree with the images' labels; ``damaged`` files may lack some of either."""
    key, label = found.key[order], found.label[order]
    if len(twice := np.flatnonzero(key[1:] == key[:-1])):
        raise ValueError(f"{rec}: header records name images by key, but {key[twice[0]]} is of several; add the .idx")
    if len(firsts := [_where(rec, h.number, h.offset) for h in headers if h.key == 0]) > 1:
        raise ValueError(f"{firsts[1]}: a second header of key 0, the first is {firsts[0]}; add the .idx")
    times = np.zeros(len(key) + 1, np.int64)  # how many identities have an image
    labels = set()
    for header in headers:
        where = _where(rec, header.number, header.offset)
        first, last = header.labels.tolist()
        if not 0 <= first <= last < 2**53 or first != int(first) or last != int(last):
            raise ValueError(
                f"{where}: its header says keys {first:g} to {last:g}; these are no keys, get the file again"
            )
        if header.key == 0:
            keys = {h.key for h in headers if h.key}
            missing = int(last - first) - len(keys)
            if len({k for k in keys if first <= k < last}) < len(keys) or (missing and not damaged):
                raise ValueError(f"{where}: says keys {first:g} to {last:g} - 1 are identities, there are {len(keys)}")
            continue
        low, high = np.searchsorted(key, np.array([first, last], np.uint64))
        inside = label[low:high]
        times[low] += 1
        times[high] -= 1
        says = f"{where}: says keys {first:g} to {last:g} - 1 are one identity, but"
        if len(other := np.flatnonzero(inside != inside[:1])):
            raise ValueError(
                f"{says} {key[low]} has label {inside[0]} and {key[low + other[0]]} label {inside[other[0]]}"
            )
        if high - low != last - first and not damaged:
            raise ValueError(f"{says} {high - low} of them are images")
        if len(inside) and int(inside[0]) in labels:
            raise ValueError(f"{says} others of label {inside[0]} are in another header's")
        labels.update(inside[:1].tolist())
    times = np.cumsum(times)[:-1]
    wrong = np.flatnonzero((times > 1) | (times < (any(h.key for h in headers) and not damaged)))
    if len(wrong):
        i = order[wrong[0]]
        where = _where(rec, found.number[i], found.offset[i])
        raise ValueError(f"{where}: key {found.key[i]} is in the headers of {times[wrong[0]]} identities, not of one")


# ---- conversion


def select(labels: np.ndarray, top: int | None, val: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which images are kept, under which identity, and which of them are for validation.

    Of an identity with n images, floor(val * n) are for validation; which, depends on seed, label and image alone.

    Args:
        labels: int [N]. top: how many identities with the most images; of equals those with lower labels. None: all.
        val: 0 <= val < 1. seed: >= 0.
    Returns:
        the kept labels, ascending; int64 [N], the index into them, or -1; bool [N], True for validation.
    """
    names, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
    kept = np.sort(np.lexsort((names, -counts))[:top])
    index = np.full(len(names), -1)
    index[kept] = np.arange(len(kept))
    # raw bits and a stable sort, because numpy promises these for ever
    draw = np.random.PCG64(np.random.SeedSequence([seed])).random_raw(len(labels))
    order = np.lexsort((draw, which))
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return names[kept], index[which], rank < np.floor(counts * val + 1e-9)[which]


class Job(NamedTuple):
    """A shard to write, of n records."""

    dst: Path  # what errors name
    rec: Path
    numbers: np.ndarray  # int64 [n]
    offsets: np.ndarray  # int64 [n]
    sizes: np.ndarray  # int32 [n]
    names: np.ndarray  # int32 [n], the labels in the .rec
    labels: np.ndarray  # int64 [n], those in the store
    file: Path
    done: Path  # what is known of the finished shard, in JSON; beside it .digests, 32 bytes a record
    resize: bool

    def source(self, number: int) -> str:
        return f"{self.rec.name}#{number}"

    def rejected(self, i: int, why: str) -> Rejected:
        start = int(self.offsets[i])
        return Rejected(str(self.rec), int(self.numbers[i]), start, start + int(self.sizes[i]), why)


def write_shard(job: Job) -> int:
    """Write one shard, unless it is there, and return the number of records it was made from. Stopped at any moment,
    it leaves no file that looks finished."""
    if job.done.is_file() and json.loads(job.done.read_text())["sha256"] == _sha256(job.file):
        return len(job.numbers)
    tmp = job.done.with_name(f"{job.done.stem}.{os.getpid()}.tmp")
    shard, digests, rejected = store.Shard(tmp, job.dst), bytearray(), []
    columns = job.numbers, job.offsets, job.sizes, job.names, job.labels
    try:
        with open(job.rec, "rb") as file:
            for i, (number, offset, size, name, label) in enumerate(zip(*(column.tolist() for column in columns))):
                where = _where(job.rec, number, offset)
                try:
                    *_, image, _ = parse(_bytes(file, offset, size))
                except ValueError as error:
                    raise ValueError(f"{job.rec}: changed while it was read: {where}: {error}") from error
                try:
                    jpeg = images.to_jpeg(image, where, job.resize)
                    images.check(jpeg, where)
                except images.WrongSize as error:  # of all images more likely than of one
                    raise ValueError(f"{job.rec}: {error}") from error
                except ValueError as error:
                    rejected.append((i, str(error)))
                    continue
                digests += shard.add(jpeg, label, str(name), job.source(number))
        shard.close()
    except BaseException:
        shard.abandon()
        tmp.unlink(missing_ok=True)
        raise
    known = {"records": shard.records, "bytes": shard.bytes, "rejected": rejected, "sha256": _sha256(tmp)}
    tmp.replace(job.file)
    job.done.with_suffix(".digests").write_bytes(digests)
    tmp.write_text(json.dumps(known))
    tmp.replace(job.done)
    return len(job.numbers)


def _sha256(file: Path) -> str:
    if not file.is_file():
        return ""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def convert(
    src: Path, dst: Path, *, top: int | None, val: float, seed: int, workers: int, resize: bool, bar: Progress
) -> store.Store:
    """A .rec (or the folder with train.rec) -> the training store ``dst`` and, within it, the validation store
    ``dst``/val (split "val") of the same identities under the same numbers.

    An identity's name is its label in the .rec, a record's source is FILE.rec#NUMBER, counted from 0. Records that are
    damaged or no face are left out and listed; one that is no 112x112 image is an error unless ``resize``. Without
    images for validation there is no DST/val.

    Args:
        top, val, seed: see :func:`select`. workers: processes. bar: shows what is being done.
    Returns:
        the training store. In its manifest, and in that of DST/val, "recordio" counts records of both together: read =
        written + rejected, and, counted apart, headers and images left_out because of ``top``.
    Raises:
        ValueError: an option, a file that disagrees with another, nothing usable, or ``dst`` is there.
        OSError: the disk is full or cannot be written to.
    """
    rec = src / "train.rec" if src.is_dir() else src
    if not rec.is_file():
        raise ValueError(f"{rec}: no such file; --src is a .rec or the folder with train.rec")
    if not rec.name.isprintable():
        raise ValueError(f"{rec.name!r}: a .rec's name goes into the store and must be plain text; rename it")
    if not 0 <= val < 1 or seed < 0 or workers < 1 or (top is not None and top < 1):
        raise ValueError(
            f"--top={top} --val={val} --seed={seed} --workers={workers}: expected 0 <= val < 1, others >= 1"
        )
    store.must_not_exist(dst)
    work = dst.with_name(f".{dst.name}.partial")
    with errors.naming(dst), _claim(work, dst):
        task = bar.add_task(f"reading {rec.name}", total=rec.stat().st_size)
        found, headers, rejected = read(rec, resize, lambda n: bar.advance(task, n))
        names, label, is_val = select(found.label, top, val, seed)
        if top is not None and top > len(names):
            raise ValueError(f"--top={top}: {rec} has {len(names)} identities")
        options = {"top": top, "val": val, "seed": seed, "resize": resize}
        _same_plan(work, rec, found, options)
        jobs = _jobs(dst, work, rec, found, label, is_val, resize)
        task = bar.add_task("faces", total=int((label >= 0).sum()))
        counts = {"headers": len(headers), "left_out": int((label < 0).sum()), **options}
        try:
            for n in _run([job for part in jobs.values() for job in part], workers):
                bar.advance(task, n)
            _finish(work, rec, jobs, names, rejected, counts)
        except ValueError:
            shutil.rmtree(work / "done")  # no rerun would get further
            raise
        store.move(work / "store", dst)
        shutil.rmtree(work)
    return store.Store(dst)


@contextlib.contextmanager
def _claim(work: Path, dst: Path) -> Iterator[None]:
    """Have the working folder for oneself. After an error it stays if a shard is finished."""
    (work / "done").mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{work}: another process is at work there; wait for it, or choose another --dst"
            ) from None
        try:
            yield
        except Exception as error:
            if not any((work / "done").glob("*.json")):
                shutil.rmtree(work, ignore_errors=True)
            elif isinstance(error, OSError):
                kept = f"finished shards stay in {work}, the same command goes on from there"
                raise OSError(f"{dst}: {kept}: {error.strerror or error}") from error
            raise


def _same_plan(work: Path, rec: Path, found: Images, options: dict[str, Any]) -> None:
    """Note what is converted and how, or raise ValueError if the folder's finished shards are of something else."""
    stat, digest = rec.stat(), hashlib.sha256()
    for column in found:
        digest.update(column.data)
    sizes = {"format": store.FORMAT, "shard_records": store.SHARD_RECORDS, "bytes": stat.st_size}
    plan = json.dumps({**options, **sizes, "name": rec.name, "mtime": stat.st_mtime_ns, "found": digest.hexdigest()})
    if not (file := work / "plan.json").is_file():
        file.with_suffix(".tmp").write_text(plan)
        file.with_suffix(".tmp").replace(file)
    elif file.read_text() != plan:
        raise ValueError(f"{work} is of another source, other options or another version; remove it")


def _jobs(
    dst: Path, work: Path, rec: Path, found: Images, label: np.ndarray, is_val: np.ndarray, resize: bool
) -> dict[str, list[Job]]:
    for old in (work / "done").glob("*.tmp"):
        old.unlink()
    (work / "store" / "val").mkdir(parents=True, exist_ok=True)
    jobs = {}
    for split, folder, wanted in (("val", work / "store" / "val", is_val), ("train", work / "store", ~is_val)):
        chosen = np.flatnonzero(wanted & (label >= 0))
        pieces = [chosen[i : i + store.SHARD_RECORDS] for i in range(0, len(chosen), store.SHARD_RECORDS)]
        jobs[split] = [
            Job(
                dst,
                rec,
                found.number[piece],
                found.offset[piece],
                found.size[piece],
                found.label[piece],
                label[piece],
                folder / name,
                work / "done" / f"{split}-{i:05d}.json",
                resize,
            )
            for i, (piece, name) in enumerate(zip(pieces, store.shard_names(split, len(pieces))))
        ]
    return jobs


def _run(jobs: list[Job], workers: int) -> Iterator[int]:
    """Write shards and yield the number of records of each one finished."""
    workers = min(workers, len(jobs))
    if workers == 1:
        yield from map(write_shard, jobs)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _attend)
    try:
        for future in as_completed([pool.submit(write_shard, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool as error:
        raise OSError("a worker was killed, perhaps for want of memory; try fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _attend() -> None:
    """A worker leaves interrupts to its parent, and ends when that ends in whatever way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # as in prepare
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _finish(
    work: Path,
    rec: Path,
    jobs: dict[str, list[Job]],
    names: np.ndarray,
    rejected: list[Rejected],
    counts: dict[str, Any],
) -> None:
    """Make stores of the shards, and check that every record is accounted for."""
    scanned = len(rejected)
    known = {split: [json.loads(job.done.read_text()) for job in part] for split, part in jobs.items()}
    written = {split: sum(k["records"] for k in part) for split, part in known.items()}
    bad = {
        split: [job.rejected(i, why) for job, k in zip(part, known[split]) for i, why in k["rejected"]]
        for split, part in jobs.items()
    }
    rejected = rejected + bad["train"] + ([] if written["val"] else bad.pop("val"))
    bad["train"] = sorted(rejected, key=lambda r: (r.offset, r.file))
    counts["read"] = scanned + sum(len(job.numbers) for part in jobs.values() for job in part)
    counts |= {"written": sum(written.values()), "rejected": sum(map(len, bad.values()))}
    assert counts["written"] + counts["rejected"] == counts["read"], counts
    if not written["train"]:
        raise ValueError(f"{rec}: not one usable image; the first rejected: {bad['train'][0].reason}")
    for split, part in jobs.items():
        folder = work / "store" / ("val" if split == "val" else "")
        if not written[split]:
            shutil.rmtree(folder)
            continue
        digest, labels, sources = hashlib.sha256(), [], bytearray()
        for job, k in zip(part, known[split]):
            digest.update(job.done.with_suffix(".digests").read_bytes())
            left = np.delete(np.arange(len(job.numbers)), np.array([i for i, _ in k["rejected"]], int))
            labels.append(job.labels[left])
            sources += "".join(f"{job.source(number)}\n" for number in job.numbers[left].tolist()).encode()
        store.describe(
            folder,
            split,
            shards=[(k["records"], k["bytes"]) for k in known[split]],
            labels=np.concatenate(labels),
            sources=sources,
            identities=[str(name) for name in names],
            data_hash=digest.hexdigest(),
            rejected=[{k: v for k, v in r._asdict().items() if k != "end"} for r in bad[split]],
            info={"sources": [str(rec)], "recordio": counts},
        )
