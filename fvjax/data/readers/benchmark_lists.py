"""The lists of pairs that LFW and CFP publish."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from fvjax.data import names
from fvjax.data.readers.files import read_lines, require_directory


class NamedPair(NamedTuple):
    """A line of a protocol: two files relative to --src, each with its identity, and the fold (from 0)."""

    a: str
    b: str
    identity_a: str
    identity_b: str
    fold: int


def read_lfw(file: Path) -> list[NamedPair]:
    """Parse LFW's pairs.txt: "folds n", then per fold n lines "name i j" and n lines "name i name j".

    Tabs or blanks separate the cells. A name may have blanks, and is compared in the form of
    :func:`fvjax.data.names.identity`.

    Raises:
        ValueError: a malformed line. The message names file and line.
    """
    (_, head), *lines = read_lines(file)
    try:
        folds, n = [int(x) for x in head.split()] if len(head.split()) == 2 else (1, int(head))
    except ValueError:
        folds = n = 0
    if min(folds, n) < 1:
        raise ValueError(f"{file}:1: expected 'folds pairs' such as '10\\t300', got {head!r}")
    if len(lines) != 2 * folds * n:
        raise ValueError(f"{file}: {len(lines)} pairs, but its first line promises 2 x {folds} x {n}")
    pairs = []
    for i, (number, line) in enumerate(lines):
        fold, within = divmod(i, 2 * n)
        pairs.append(_lfw_pair(f"{file}:{number}", line, fold, same=within < n))
    return pairs


def _lfw_pair(location: str, line: str, fold: int, same: bool) -> NamedPair:
    cells = _lfw_cells(line, 3 if same else 4)
    if not cells:
        kind = "same: 'name i j'" if same else "different: 'name i name j'"
        raise ValueError(
            f"{location}: expected a pair of the kind {kind}, got {line!r}; where a name has a number for a word, "
            "tabs must separate names and numbers"
        )
    a, b = names.identity(cells[0]), names.identity(cells[0] if same else cells[2])
    if not same and a == b:
        raise ValueError(f"{location}: {line!r} is among the different pairs of its fold, but is one person")
    return NamedPair(f"{a}/{a}_{int(cells[1]):04d}.jpg", f"{b}/{b}_{int(cells[-1]):04d}.jpg", a, b, fold)


def _lfw_cells(line: str, count: int) -> list[str]:
    """Divide a line into names and numbers; return [] if that is not possible, or in several ways."""
    cells = [cell.strip() for cell in line.rstrip().split("\t")]
    if len(cells) != count:  # blanks separate them, and words of names
        words = line.split()
        numbers = [i for i, word in enumerate(words) if word.isdecimal()]
        if len(numbers) != 2 or numbers[-1] != len(words) - 1 or (count == 3) != (numbers[0] == len(words) - 2):
            return []
        first, last = numbers
        between = [" ".join(words[first + 1 : last])] if count == 4 else []
        cells = [" ".join(words[:first]), words[first], *between, words[last]]
    return cells if all(cells) and (cells[1] + cells[-1]).isdecimal() else []


def read_cfp(protocol: Path, kind: str) -> list[NamedPair]:
    """Parse CFP's Protocol folder.

    Args:
        kind: "FF" or "FP". In FP the first index of a pair is of the frontal list.
    Raises:
        ValueError: a malformed line or a missing file. The message names file and line.
    """
    lists = [_read_cfp_images(protocol / f"Pair_list_{letter}.txt") for letter in kind]
    folder = protocol / "Split" / kind
    pairs = []
    for fold, name in enumerate(
        sorted(e.name for e in os.scandir(require_directory(folder)) if e.is_dir() and not names.leftover(e.name))
    ):
        pairs += _read_cfp_pairs(folder / name / "same.txt", lists, fold, same=True)
        pairs += _read_cfp_pairs(folder / name / "diff.txt", lists, fold, same=False)
    if not pairs:
        raise ValueError(f"{folder}: no folds here; expected 01/same.txt, 01/diff.txt, …")
    return pairs


def _read_cfp_images(file: Path) -> dict[str, list[str]]:
    """Return [identity, view, file name] by index."""
    paths = {}
    for number, line in read_lines(file):
        cells = line.split(maxsplit=1)
        if len(cells) != 2 or len(parts := names.path(cells[1]).split("/")[-3:]) != 3:
            raise ValueError(f"{file}:{number}: expected 'index …/ID/view/NN.jpg', got {line!r}")
        if cells[0] in paths:
            raise ValueError(f"{file}:{number}: the index {cells[0]} a second time; correct or remove one of the lines")
        paths[cells[0]] = parts
    return paths


def _read_cfp_pairs(file: Path, lists: list[dict[str, list[str]]], fold: int, same: bool) -> list[NamedPair]:
    pairs = []
    for number, line in read_lines(file):
        cells = line.replace(",", " ").split()
        if len(cells) != 2 or any(cell not in paths for cell, paths in zip(cells, lists)):
            raise ValueError(f"{file}:{number}: expected two indices of the pair lists, got {line!r}")
        a, b = (paths[cell] for cell, paths in zip(cells, lists))
        if (a[0] == b[0]) != same:
            raise ValueError(f"{file}:{number}: {line!r} are identities {a[0]} and {b[0]}, in {file.name}")
        pairs.append(NamedPair("/".join(a), "/".join(b), a[0], b[0], fold))
    return pairs
