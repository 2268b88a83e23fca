"""The lists of pairs that LFW and CFP publish."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

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
    cells = line.split()
    if len(cells) != (3 if same else 4) or not (cells[1] + cells[-1]).isdecimal():
        kind = "same: 'name i j'" if same else "different: 'name i name j'"
        raise ValueError(f"{location}: expected a pair of the kind {kind}, got {line!r}")
    a, b = cells[0], cells[0] if same else cells[2]
    if not same and a == b:
        raise ValueError(f"{location}: {line!r} is among the different pairs of its fold, but is one person")
    return NamedPair(f"{a}/{a}_{int(cells[1]):04d}.jpg", f"{b}/{b}_{int(cells[-1]):04d}.jpg", a, b, fold)


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
        sorted(entry.name for entry in os.scandir(require_directory(folder)) if entry.is_dir())
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
        cells = line.split()
        if len(cells) != 2 or len(parts := cells[1].split("/")[-3:]) != 3:
            raise ValueError(f"{file}:{number}: expected 'index …/ID/view/NN.jpg', got {line!r}")
        paths[cells[0]] = parts
    return paths


def _read_cfp_pairs(file: Path, lists: list[dict[str, list[str]]], fold: int, same: bool) -> list[NamedPair]:
    pairs = []
    for number, line in read_lines(file):
        cells = line.split(",")
        if len(cells) != 2 or any(cell.strip() not in paths for cell, paths in zip(cells, lists)):
            raise ValueError(f"{file}:{number}: expected two indices of the pair lists, got {line!r}")
        a, b = (paths[cell.strip()] for cell, paths in zip(cells, lists))
        if (a[0] == b[0]) != same:
            raise ValueError(f"{file}:{number}: {line!r} are identities {a[0]} and {b[0]}, in {file.name}")
        pairs.append(NamedPair("/".join(a), "/".join(b), a[0], b[0], fold))
    return pairs
