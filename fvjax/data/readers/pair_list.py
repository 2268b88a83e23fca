"""Lists of pairs of one's own: a CSV file that says which two pictures show one person.

    a,b,same,fold,identity_a,identity_b
    ann/1.jpg,ann/2.png,1,1,Ann,Ann
    ann/1.jpg,bob.jpg,0,1,Ann,Bob

Semicolons or tabs may stand for the commas. The columns fold, identity_a and identity_b are optional.
"""

from __future__ import annotations

import csv
import io
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fvjax.data import names
from fvjax.data.alignment.aligner import Aligner
from fvjax.data.readers import benchmarks
from fvjax.data.readers.benchmark_lists import NamedPair
from fvjax.data.readers.files import FileNames, read_text, require_directory
from fvjax.data.readers.insightface_bin import derive_identities
from fvjax.data.stores import Store

REQUIRED, IDENTITIES = ("a", "b", "same"), ("identity_a", "identity_b")
COLUMNS = (*REQUIRED, "fold", *IDENTITIES)
SAME = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
DERIVED = "derived from genuine pairs"  # what manifests say about identities that no list names


@dataclass(frozen=True)
class Row:
    """A line of a list: two files, whether they show one person, and the fold and identities if the list has them."""

    line: int
    a: str
    b: str
    same: bool
    fold: str = ""
    identity_a: str = ""
    identity_b: str = ""

    @property
    def files(self) -> frozenset[str]:
        """Both files, or the one of a picture with itself."""
        return frozenset((self.a, self.b))


def pairs(
    src: Path,
    dst: Path,
    *,
    pairs: Path,
    name: str | None,
    policy: str,
    resize: bool,
    aligner: Aligner | None = None,
) -> Store:
    """Convert a CSV list of pairs (columns a, b, same, and perhaps fold, identity_a, identity_b) to a benchmark.

    Folds are numbered in the order in which the list first names them; without the column there is one. Without the
    columns of identities, pictures that genuine pairs connect are one identity, as of a .bin, and the manifest says so.

    Args:
        src: the folder that the list's paths are relative to.
        pairs: the list.
        name: of the benchmark; None: the list's name without its suffix.
        policy: what to do about pictures that are missing or cannot be used, and about pairs that are labelled
            different although other pairs make them one person: "fail" on them, or "drop" the pairs.
    Raises:
        ValueError: a malformed line, labels or identities that contradict each other, a fold of one kind of pair, a
            missing picture. The message names the list and the line.
    """
    name = pairs.stem if name is None else name
    if not name.isidentifier():
        raise ValueError(f"--name={name}: a benchmark's name has letters, digits and underscores; choose another")
    rows = find_pictures(require_directory(src), pairs, read_pair_list(pairs), policy)
    check_labels(pairs, rows)
    has_names = bool(rows[0].identity_a)
    facts: dict[str, Any] = {"fold_labels": list(dict.fromkeys(row.fold for row in rows)) if rows[0].fold else None}
    if not has_names:
        rows, contradictory = derived(pairs, rows, policy)
        facts |= {"identities": DERIVED, "contradictory_pairs": contradictory}
    check_folds(pairs, rows)
    numbers = {fold: number for number, fold in enumerate(dict.fromkeys(row.fold for row in rows))}
    named = [NamedPair(row.a, row.b, row.identity_a, row.identity_b, numbers[row.fold]) for row in rows]
    named.sort(key=lambda pair: pair.fold)  # stable: the order of the list within a fold
    return benchmarks.convert(
        src, dst, {name: named}, [str(src), str(pairs)], policy, resize, aligner, facts={name: facts}
    )


def read_pair_list(file: Path) -> list[Row]:
    """Read a list of pairs, in its order.

    Names of files keep the form that the list has; those of people take that of :func:`fvjax.data.names.identity`.

    Raises:
        ValueError: no such file, not CSV, a column that is missing or unknown, a line with other than one value for
            each column, an empty value, a path that leads out of the folder, or no pair at all.
    """
    rows = [_parse(row, line, file) for line, row in _cells(file)]
    if not rows:
        raise ValueError(f"{file}: no pair is listed; expected lines such as 'ann/1.jpg,ann/2.jpg,1' below the header")
    return rows


def _cells(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, values by column) of each line that is not blank."""
    text = read_text(file)
    head = text.lstrip().partition("\n")[0]
    reader = csv.reader(
        io.StringIO(text, newline=""), strict=True, delimiter=max(",;\t", key=head.count), skipinitialspace=True
    )
    columns: list[str] = []
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not columns:
                columns = [cell.lower() for cell in cells]
                _check_columns(f"{file}:{reader.line_num}", columns)
                continue
            if len(cells) != len(columns):
                raise ValueError(
                    f"{file}:{reader.line_num}: {len(cells)} values, but the header has {len(columns)} columns; put "
                    "names that hold the separator in double quotes"
                )
            yield reader.line_num, dict(zip(columns, cells))
    except csv.Error as error:
        raise ValueError(f"{file}:{reader.line_num}: not CSV ({error}); write the list again as CSV") from error


def _check_columns(location: str, columns: Sequence[str]) -> None:
    expected = f"the header must have {', '.join(REQUIRED)}, and may have fold, {' and '.join(IDENTITIES)}"
    if missing := [name for name in REQUIRED if name not in columns]:
        raise ValueError(f"{location}: no column {missing[0]!r}; {expected}")
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise ValueError(f"{location}: unknown column {unknown[0]!r}, remove it; {expected}")
    if len(set(columns)) != len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise ValueError(f"{location}: the column {twice!r} is there twice, remove one; {expected}")
    if len(set(IDENTITIES) & set(columns)) == 1:
        raise ValueError(f"{location}: of {' and '.join(IDENTITIES)} there is one; add the other or remove both")


def _parse(cells: Mapping[str, str], line: int, file: Path) -> Row:
    location = f"{file}:{line}"
    if empty := [column for column, value in cells.items() if not value]:
        raise ValueError(f"{location}: no value for {empty[0]}; fill it in, or remove the line")
    for path in (cells["a"], cells["b"]):
        if os.path.isabs(path) or ".." in names.path(path).split("/"):
            raise ValueError(f"{location}: {path!r} must be relative to --src and not lead out of it; correct it")
    same = SAME.get(cells["same"].lower())
    if same is None:
        raise ValueError(f"{location}: same is {cells['same']!r:.100}, expected one of {', '.join(SAME)}")
    people = {column: names.identity(cells[column]) for column in IDENTITIES if column in cells}
    if people and same != (people["identity_a"] == people["identity_b"]):
        labelled = "the same person" if same else "different persons"
        raise ValueError(
            f"{location}: labelled {labelled}, but the identities are {people['identity_a']!r} and "
            f"{people['identity_b']!r}; correct one of them"
        )
    return Row(line, cells["a"], cells["b"], same, cells.get("fold", ""), **people)


def find_pictures(src: Path, file: Path, rows: Sequence[Row], policy: str) -> list[Row]:
    """Return the rows with the files below ``src`` that their names mean (:class:`FileNames`).

    Raises:
        ValueError: several files could be meant, or one is missing and ``policy`` is not "drop".
    """
    file_names = FileNames(src)
    known: dict[str, str] = {}
    missing: dict[str, int] = {}  # the line that first names it
    for row in rows:
        for name in (row.a, row.b):
            if name in known:
                continue
            try:
                found = file_names.find(name)
            except ValueError as error:
                raise ValueError(f"{file}:{row.line}: {error}") from error
            if found is None:
                missing.setdefault(names.path(name), row.line)
            # One name for each file, so that two lines about it are seen to be about one.
            known[name] = os.path.normpath(found) if found else names.path(name)
    if missing and policy != "drop":
        first, line = next(iter(missing.items()))
        raise ValueError(
            f"{file}:{line}: {src / first} is missing, and {len(missing) - 1} more of the {len(set(known.values()))} "
            "pictures that the list names; supply them, or leave out their pairs with --policy=drop"
        )
    return [replace(row, a=known[row.a], b=known[row.b]) for row in rows]


def check_labels(file: Path, rows: Sequence[Row]) -> None:
    """Raise ValueError for lines about the same pictures that contradict each other; it names both."""
    labelled: dict[frozenset[str], Row] = {}
    person: dict[str, tuple[str, int]] = {}
    for row in rows:
        earlier = labelled.setdefault(row.files, row)
        if earlier.same != row.same:
            raise ValueError(
                f"{file}:{row.line}: {row.a} and {row.b} are labelled {_label(row)} here and {_label(earlier)} in line "
                f"{earlier.line}; correct or remove one of the lines"
            )
        if len(row.files) == 1 and not row.same:
            raise ValueError(f"{file}:{row.line}: {row.a} and itself are labelled {_label(row)}; correct the line")
        for picture, identity in ((row.a, row.identity_a), (row.b, row.identity_b)):
            known, line = person.setdefault(picture, (identity, row.line))
            if known != identity:
                raise ValueError(
                    f"{file}:{row.line}: {picture} shows {identity!r} here and {known!r} in line {line}; correct one"
                )


def _label(row: Row) -> str:
    return f"same={int(row.same)}"


def derived(file: Path, rows: Sequence[Row], policy: str) -> tuple[list[Row], list[int]]:
    """Name the identities of a list that has none: pictures that genuine pairs connect are one identity.

    Returns:
        the rows with identities, and the lines of those left out because they are labelled different, but are one
        person by the genuine pairs.
    Raises:
        ValueError: there is such a line, and ``policy`` is not "drop". It names the lines that make them one person.
    """
    number = {picture: i for i, picture in enumerate(sorted({each for row in rows for each in (row.a, row.b)}))}
    ends = np.array([(number[row.a], number[row.b]) for row in rows if row.same], np.int64).reshape(-1, 2)
    identity = derive_identities(len(number), ends)
    named = [
        replace(
            row, identity_a=_derived_name(identity[number[row.a]]), identity_b=_derived_name(identity[number[row.b]])
        )
        for row in rows
    ]
    contradictory = [row for row in named if row.same != (row.identity_a == row.identity_b)]
    if contradictory and policy != "drop":
        row = contradictory[0]
        lines = ", ".join(str(line) for line in _connection(rows, row.a, row.b))
        raise ValueError(
            f"{file}:{row.line}: {row.a} and {row.b} are labelled same=0, but are one person by the genuine pairs of "
            f"lines {lines} (and {len(contradictory) - 1} more such lines); correct them, or leave them out with "
            "--policy=drop"
        )
    left_out = {row.line for row in contradictory}
    return [row for row in named if row.line not in left_out], sorted(left_out)


def _derived_name(number: int) -> str:
    return f"derived {number:06d}"


def _connection(rows: Sequence[Row], a: str, b: str) -> list[int]:
    """Return the lines of the fewest genuine pairs that lead from picture a to picture b."""
    neighbours: dict[str, list[tuple[str, int]]] = {}
    for row in rows:
        if row.same:
            neighbours.setdefault(row.a, []).append((row.b, row.line))
            neighbours.setdefault(row.b, []).append((row.a, row.line))
    lines: dict[str, list[int]] = {a: []}
    pending = deque([a])
    while b not in lines:
        picture = pending.popleft()
        for other, line in neighbours[picture]:
            if other not in lines:
                lines[other] = [*lines[picture], line]
                pending.append(other)
    return sorted(lines[b])


def check_folds(file: Path, rows: Sequence[Row]) -> None:
    """Raise ValueError for a list, or a fold of it, that has pairs of one kind only."""
    kinds: dict[str, set[bool]] = {}
    for row in rows:
        kinds.setdefault(row.fold, set()).add(row.same)
    if not kinds:
        raise ValueError(f"{file}: no pair is left")
    for fold, its in kinds.items():
        if len(its) == 1:
            lacking = "pairs of different persons (same=0)" if True in its else "pairs of one person (same=1)"
            part = f"the fold {fold!r} has" if fold else "the list has"
            raise ValueError(f"{file}: {part} no {lacking}, so it cannot be evaluated; add some")


def summary(benchmark: Mapping[str, Any]) -> list[str]:
    """Return lines for the user about a benchmark's entry of the manifest; none if another reader made it."""
    if "fold_labels" not in benchmark:
        return []
    lines = []
    if len(benchmark["fold_sizes"]) == 1:
        lines.append("  one fold: thresholds are chosen on the pairs that they are judged on, so accuracies flatter")
    if benchmark["identities"] == DERIVED:
        count = len(benchmark["contradictory_pairs"])
        lines.append(
            f"  identities are {DERIVED}, as the list names nobody: intervals are on the narrow side; {count} "
            "contradictory pairs left out"
        )
    if benchmark["genuine"] != benchmark["impostor"]:
        lines.append("  genuine and impostor pairs are not as many: an accuracy depends on how they are mixed")
    return lines
