"""What readers of attribute label files have in common: pictures with labels, lines, tables, and splits by name."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fvjax.data.attributes import Attributes
from fvjax.data.readers.files import MAX_LIST_BYTES, encoding_of
from fvjax.data.readers.picture_tree import LeftOut

MAX_LINE = 1 << 16  # characters; a file with longer lines is no label file


class LabelledPicture(NamedTuple):
    """One picture, or one face of a picture, and its labels.

    Attributes:
        file: relative to the folder of the pictures.
        labels: int8 [K] as bytes.
        split: "train", "val" or "test".
        identity: the person's name; None if nobody says.
        box: (left, top, right, bottom) of the face in pixels; None for the whole picture.
        source: the name in the store, if it is not `file`.
    """

    file: str
    labels: bytes
    split: str
    identity: str | None = None
    box: tuple[int, int, int, int] | None = None
    source: str = ""


@dataclass
class LabelSet:
    """The pictures of a data set: their columns, what was left out, and notes for the user."""

    attributes: Attributes
    pictures: list[LabelledPicture]
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line without its end) of a text file, without blank lines; the file is never held as a whole.

    Raises:
        ValueError: no such file, too large, not in UTF-8 (or UTF-16 with a byte order mark), or a line that is too
            long. The message names the file and the line.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    if (size := file.stat().st_size) > MAX_LIST_BYTES:
        raise ValueError(f"{file}: {size} bytes, at most {MAX_LIST_BYTES}; is it a label file?")
    with file.open("rb") as binary:
        encoding = encoding_of(binary.read(4))
    number = 0
    try:
        with file.open(encoding=encoding) as text:
            while line := text.readline(MAX_LINE):
                number += 1
                if len(line) == MAX_LINE:
                    raise ValueError(f"{file} line {number}: more than {MAX_LINE} characters; is it a label file?")
                if line.strip():
                    yield number, line.rstrip("\n")
    except UnicodeDecodeError as error:
        problem = f"not in UTF-8 ({error.reason}); save it as UTF-8"
        raise ValueError(f"{file} after line {number}: {problem}") from error


def table(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, values) of a CSV file whose values have no ends of lines; the first are the header's.

    Raises ValueError as :func:`lines`, for a malformed line, and for one with another number of values than the header.
    """
    width = 0
    for number, line in lines(file):
        try:
            (values,) = csv.reader(io.StringIO(line, newline=""), strict=True)
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{file} line {number}: not a line of a CSV file ({error})") from error
        width = width or len(values)
        if len(values) != width:
            raise ValueError(f"{file} line {number}: {len(values)} values, but the header has {width}")
        yield number, [value.strip() for value in values]


def position(name: str, purpose: str) -> float:
    """Return a number from 0 to 1 that depends on the name and the purpose alone, evenly distributed over names."""
    digest = hashlib.sha256(f"{purpose}\0{name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little") / 2**64


def is_chosen(name: str, share: float) -> bool:
    """Tell whether a picture belongs to the chosen share of all; a larger share has all pictures of a smaller one."""
    return share >= 1 or position(name, "share") < share


def part(name: str, val: float, test: float = 0.0) -> str:
    """Return "val" or "test" for about these shares of all names, else "train"."""
    place = position(name, "split")
    return "val" if place < val else "test" if place < val + test else "train"


def check_share(flag: str, value: float) -> None:
    """Raise ValueError unless a share is above 0 and at most 1."""
    if not 0 < value <= 1:
        raise ValueError(f"{flag}={value}: expected a share above 0, at most 1")


def check_header(found: Sequence[str], expected: Sequence[str], location: str) -> None:
    """Raise ValueError unless the attributes that a file names are the expected ones, in any order."""
    if twice := [name for name in found if found.count(name) > 1]:
        raise ValueError(f"{location}: the attribute {twice[0]!r} occurs twice")
    if unknown := [name for name in found if name not in expected]:
        raise ValueError(
            f"{location}: unknown attribute {unknown[0]!r:.100}; expected the {len(expected)} of the data set"
        )
    if missing := [name for name in expected if name not in found]:
        raise ValueError(f"{location}: the attribute {missing[0]!r} is missing, of {len(expected)}")
