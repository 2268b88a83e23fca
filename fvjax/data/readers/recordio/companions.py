"""The files beside a .rec (.idx, .lst, property) and its header records: checked for agreement with its images."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fvjax.data import images
from fvjax.data.readers.recordio.records import Header, Images, Rejected, location
from fvjax.data.readers.recordio.scanner import MAX_REJECTED, scan

MAX_EXACT = 1 << 24  # every integer below is a float32
FACE2REC2_BOX = 7  # cells of a line of face2rec2's list up to the box of the face; landmarks follow


def read(rec: Path, resize: bool, advance: Callable[[int], Any]) -> tuple[Images, list[Header], list[Rejected]]:
    """Scan a .rec (:func:`scan`) and check .idx, property and .lst beside it. Keys are those of the .idx.

    Raises:
        ValueError: the files disagree. The message names file and line, or the record.
    """
    faces, headers, rejected = scan(rec, advance)
    if (idx := rec.with_suffix(".idx")).is_file():
        faces, headers, lost = _apply_idx(rec, idx, faces, headers, rejected)
        rejected = rejected + lost
    if not len(faces.label):
        raise ValueError(f"{rec}: not one image" + (f"; the first rejected: {rejected[0].reason}" if rejected else ""))
    order = np.argsort(faces.key, kind="stable")
    if (lst := rec.with_suffix(".lst")).is_file():
        _check_lst(lst, rec, faces, order)
    if (file := rec.with_name("property")).is_file():
        check_property(file, len(np.unique(faces.label)), bool(rejected), resize)
    if headers:
        _check_headers(rec, faces, order, headers, bool(rejected))
    return faces, headers, rejected


def _lines(file: Path, form: str, max_length: int, separator: str | None = "\t") -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, the line's cells), without blank lines and a byte-order mark.

    A line without the separator, and every line if that is None, is separated at blanks.
    """
    with open(file, encoding="utf-8-sig", errors="backslashreplace") as text:
        for number, line in enumerate(iter(lambda: text.readline(max_length), ""), 1):
            if not line.strip() and len(line) < max_length:
                continue
            cells = line.rstrip("\n").split(separator if separator and separator in line else None)
            if len(cells) < 2 or len(line) == max_length:
                raise _bad_line(file, number, form, line)
            yield number, cells


def _bad_line(file: Path, number: int, form: str, line: Any) -> ValueError:
    return ValueError(f"{file}:{number}: expected {form}, got {str(line)[:60]!r}; remove the file, the .rec is enough")


# ---- .idx


def _apply_idx(
    rec: Path, idx: Path, faces: Images, headers: list[Header], rejected: list[Rejected]
) -> tuple[Images, list[Header], list[Rejected]]:
    """Return images and headers with the keys of the .idx, and rejections for its lines that point into damage."""
    line, key, offset = _read_idx(idx, rec, len(faces.label) + len(headers) + len(rejected) + MAX_REJECTED)
    order = np.argsort(offset)
    starts = np.concatenate([faces.offset, np.array([h.offset for h in headers], np.int64)])
    place = np.minimum(np.searchsorted(offset, starts, sorter=order), max(len(offset) - 1, 0))
    listed = offset[order[place]] == starts if len(offset) else np.zeros(len(starts), bool)
    if not listed.all():
        raise ValueError(f"{idx}: no line for the record at byte {starts[~listed][0]} of {rec.name}; remove it")
    lost = _lost_lines(rec, idx, line, key, offset, starts, rejected)
    key_of_start = key[order[place]]
    n = len(faces.label)
    headers = [header._replace(key=int(k)) for header, k in zip(headers, key_of_start[n:])]
    return faces._replace(key=key_of_start[:n]), headers, lost


def _read_idx(idx: Path, rec: Path, max_lines: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return number int64, key uint64 and offset int64 of every line. ValueError if one is malformed or repeated."""
    numbers, keys, offsets = array("q"), array("Q"), array("q")
    form = "'key<TAB>offset'"
    for line, cells in _lines(idx, form, 64, separator=None):
        try:
            key, offset = (int(cell) for cell in cells)
            keys.append(key)
            offsets.append(offset)
            numbers.append(line)
        except (ValueError, OverflowError):
            raise _bad_line(idx, line, form, "\t".join(cells)) from None
        if len(keys) > max_lines:
            raise ValueError(f"{idx}: more lines than {rec.name} has records; of another file? remove it")
    for values, column in ((np.asarray(keys), "key"), (np.asarray(offsets), "offset")):
        if len(twice := np.flatnonzero(np.diff(np.sort(values)) == 0)):
            raise ValueError(f"{idx}: {column} {np.sort(values)[twice[0]]} comes twice; remove it, the .rec is enough")
    return np.asarray(numbers), np.asarray(keys), np.asarray(offsets)


def _lost_lines(
    rec: Path,
    idx: Path,
    line: np.ndarray,
    key: np.ndarray,
    offset: np.ndarray,
    starts: np.ndarray,
    rejected: list[Rejected],
) -> list[Rejected]:
    """Return rejections for lines whose record is damaged or cut off.

    Raises:
        ValueError: a line points into a record that is whole.
    """
    size = rec.stat().st_size
    lost, damaged = [], np.array([r.offset for r in rejected], np.int64)
    for i in np.flatnonzero(~np.isin(offset, np.concatenate([starts, damaged]))).tolist():
        k = int(np.searchsorted(damaged, offset[i])) - 1
        if offset[i] >= size:
            obstacle = f"its end at byte {size}"
        elif k >= 0 and offset[i] < rejected[k].end:
            obstacle = "damage"
        else:
            raise ValueError(f"{idx}:{line[i]}: no record of {rec.name} starts at byte {offset[i]}; remove the .idx")
        reason = f"{idx.name}:{line[i]}: key {key[i]} should be at byte {offset[i]} of {rec.name}, behind {obstacle}"
        lost.append(Rejected(str(idx), int(line[i]), int(offset[i]), int(offset[i]), reason))
    return lost


# ---- .lst and property


def _check_lst(lst: Path, rec: Path, faces: Images, order: np.ndarray) -> None:
    """Raise ValueError if the .lst has another label for a key than the .rec; ``order`` sorts the images by key."""
    line, key, label = _read_lst(lst)
    place = np.minimum(np.searchsorted(faces.key, key, sorter=order), len(order) - 1)
    image = order[place]
    wrong = np.flatnonzero((faces.key[image] == key) & (faces.label[image] != label))
    if len(wrong):
        i = wrong[0]
        record = location(rec, faces.number[image[i]], faces.offset[image[i]])
        claim = f"{lst}:{line[i]}: label {label[i]:g} of key {key[i]}"
        raise ValueError(f"{claim}, but {faces.label[image[i]]} in {record}; remove the list, the .rec is enough")


def _read_lst(lst: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return number int64, key uint64 and label float64 of every line of a list of packed images.

    im2rec's lines begin with key and label. face2rec2's are aligned (1 or 0), path and label, and for an image that was
    not aligned its box and landmarks; keys are then the numbers, from 1, of the lines with an image to pack.

    Raises:
        ValueError: a line of neither form. The message names it.
    """
    numbers, keys, labels = array("q"), array("q"), array("d")
    form = "im2rec's 'key<TAB>label<TAB>path' or face2rec2's 'aligned<TAB>path<TAB>label'"
    for line, cells in _lines(lst, form, 8192):
        try:
            if _is_face2rec2(cells):
                if cells[0] == "0" and len(cells) <= FACE2REC2_BOX:
                    continue  # without landmarks it was not packed
                key, label = len(keys) + 1, float(cells[2])
            else:
                key, label = int(cells[0]), float(cells[1])
            keys.append(key)
            labels.append(label)
            numbers.append(line)
        except (ValueError, OverflowError):
            raise _bad_line(lst, line, form, "\t".join(cells)) from None
    return np.asarray(numbers), np.asarray(keys).astype(np.uint64), np.asarray(labels)


def _is_face2rec2(cells: list[str]) -> bool:
    """Return whether a line of a list is face2rec2's: its second cell is a path, where im2rec has a label."""
    try:
        float(cells[1])
    except ValueError:
        return len(cells) > 2 and cells[0] in ("0", "1")
    return False


def check_property(file: Path, identities: int, damaged: bool, resize: bool) -> None:
    """Raise ValueError if the file ``property`` has another image size or number of identities than the records.

    A ``damaged`` .rec may have lost identities.
    """
    with open(file, encoding="utf-8-sig", errors="backslashreplace") as opened:
        text = opened.read(256)
    try:
        promised, height, width = (int(cell) for cell in text.replace(",", " ").split())
    except ValueError:
        raise ValueError(f"{file}: expected 'identities,112,112', got {text[:60]!r}; correct or remove it") from None
    if (height, width) != images.FACE_SIZE and not resize:
        raise ValueError(f"{file}: says {height}x{width}, faces are {images.SIZE}x{images.SIZE}; prepare with --resize")
    if identities > promised or (identities < promised and not damaged):
        raise ValueError(f"{file}: says {promised} identities, the records have {identities}; correct or remove it")


# ---- header records


class _KeyRange(NamedTuple):
    """The range of keys that a header record names. It has them as float32, which rounds integers above 2^24."""

    first: float
    last: float  # + 1
    outer: tuple[int, int]  # the longest range of keys that is rounded to these numbers
    inner: tuple[int, int]  # the shortest

    @classmethod
    def of(cls, header: Header, record: str) -> _KeyRange:
        """Raises ValueError if the labels of the header are no range of keys."""
        first, last = header.labels.tolist()
        if not 0 <= first <= last < 2**53 or first != int(first) or last != int(last):
            raise ValueError(
                f"{record}: its header has keys {first:g} to {last:g}; these are no keys, get the file again"
            )
        (low, high), (last_low, last_high) = _rounded_to(first), _rounded_to(last)
        return cls(first, last, (low, last_high), (high, max(high, last_low)))


def _rounded_to(number: float) -> tuple[int, int]:
    """Return the lowest and the highest integer that is ``number`` as a float32."""
    if number < MAX_EXACT:
        return int(number), int(number)
    half = int(np.spacing(np.float32(number))) // 2
    low, high = int(number) - half, int(number) + half
    return low + int(np.float32(low) != number), high - int(np.float32(high) != number)


def _check_headers(rec: Path, faces: Images, order: np.ndarray, headers: list[Header], damaged: bool) -> None:
    """Raise ValueError if insightface's header records disagree with the images' labels.

    Args:
        order: sorts the images by key.
        damaged: whether records are missing, so that counts may be lower than the headers say.
    """
    key, label = faces.key[order], faces.label[order]
    if len(twice := np.flatnonzero(key[1:] == key[:-1])):
        raise ValueError(f"{rec}: header records name images by key, but several have {key[twice[0]]}; add the .idx")
    if len(roots := [location(rec, h.number, h.offset) for h in headers if h.key == 0]) > 1:
        raise ValueError(f"{roots[1]}: a second header of key 0, the first is {roots[0]}; add the .idx")
    # By key order: identities that begin here minus those that ended, by their shortest and their longest ranges.
    certain, possible = np.zeros((2, len(key) + 1), np.int64)
    labels: set[int] = set()
    for header in headers:
        record = location(rec, header.number, header.offset)
        named = _KeyRange.of(header, record)
        if header.key == 0:
            _check_root(record, named, {h.key for h in headers if h.key}, damaged)
            continue
        low, high, lowest, highest = np.searchsorted(key, np.array([*named.inner, *named.outer], np.uint64))
        certain[low] += 1
        certain[high] -= 1
        possible[lowest] += 1
        possible[highest] -= 1
        _check_identity(record, named, key[low:high], label[low:high], labels, damaged)
    certain, possible = np.cumsum(certain)[:-1], np.cumsum(possible)[:-1]  # headers that name each image
    wrong = np.flatnonzero((certain > 1) | (possible < (any(h.key for h in headers) and not damaged)))
    if len(wrong):
        i = order[wrong[0]]
        image, owners = location(rec, faces.number[i], faces.offset[i]), max(certain[wrong[0]], possible[wrong[0]])
        raise ValueError(f"{image}: key {faces.key[i]} is in the headers of {owners} identities, not of one")


def _check_root(record: str, named: _KeyRange, keys: set[int], damaged: bool) -> None:
    """Check the header of key 0, whose range covers the keys of the identities' headers."""
    inside = sum(named.outer[0] <= key < named.outer[1] for key in keys)
    is_count = named.inner[1] - named.inner[0] <= len(keys) <= named.outer[1] - named.outer[0]
    if inside < len(keys) or not (is_count or damaged):
        claim = f"{record}: says keys {named.first:.0f} to {named.last:.0f} - 1 are identities"
        raise ValueError(f"{claim}, but there are {len(keys)}")


def _check_identity(
    record: str, named: _KeyRange, key: np.ndarray, label: np.ndarray, labels: set[int], damaged: bool
) -> None:
    """Check an identity's header against the images that it names for certain, and add their label to ``labels``."""
    claim = f"{record}: says keys {named.first:.0f} to {named.last:.0f} - 1 are one identity, but"
    if len(other := np.flatnonzero(label != label[:1])):
        raise ValueError(f"{claim} {key[0]} has label {label[0]} and {key[other[0]]} label {label[other[0]]}")
    if len(key) != named.inner[1] - named.inner[0] and not damaged:
        raise ValueError(f"{claim} {len(key)} of them are images")
    if len(label) and int(label[0]) in labels:
        raise ValueError(f"{claim} others of label {label[0]} are in another header's")
    labels.update(label[:1].tolist())
