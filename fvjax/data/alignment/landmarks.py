"""Lists of known facial points."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fvjax.data import names, picture_files
from fvjax.data.alignment.geometry import similarity, template


def read_landmarks(file: Path, lines: Sequence[tuple[int, str]]) -> dict[str, NDArray]:
    """Parse lines "FILE<tab>…<tab>x<tab>y<tab>…" to points by file name: float [5, 2], or [3, 2] for CFP's fiducials.

    The file name is followed by zero, two (source, confidence) or three columns (and the number of faces), which are
    not read, and then by the five points in the template's order. If the second column is "fiducial3", three points
    follow the third column. Blanks may stand for the tabs if no file name has one. File names are returned in the form
    of :func:`fvjax.data.names.path`.

    Args:
        file: the name for errors.
        lines: (line number, line) without comments.
    Raises:
        ValueError: another number of columns, no numbers, a file named twice, or points in the mirrored order.
    """
    points_of, mirrored = {}, 0
    for number, line in lines:
        cells = line.rstrip().split("\t" if "\t" in line else None)
        three = len(cells) == 9 and cells[1] == "fiducial3"
        if not three and len(cells) not in (11, 13, 14):
            raise ValueError(
                f"{file}:{number}: {len(cells)} columns; expected a file and five points x y, tab-separated"
            )
        try:
            points = np.array([float(cell) for cell in cells[-6 if three else -10 :]]).reshape(-1, 2)
            similarity(points, template(points))
        except ValueError as error:
            raise ValueError(f"{file}:{number}: {error}") from error
        name = names.path(cells[0])
        if name in points_of:
            raise ValueError(f"{file}:{number}: {name} a second time")
        points_of[name] = points
        mirrored += _is_mirrored(points)
    if 2 * mirrored > len(points_of):  # single faces in profile may look mirrored
        raise ValueError(f"{file}: the points are in the mirrored order; the left eye in the picture must come first")
    return points_of


def match_landmarks(points_of: dict[str, NDArray], files: Sequence[str]) -> dict[str, NDArray]:
    """Return the points of those ``files`` that the list of :func:`read_landmarks` names.

    A picture may have another suffix than in the list, if only one row and one file fit.
    """
    rows: dict[str, list[str]] = defaultdict(list)
    for name in points_of:
        rows[picture_files.without_suffix(name)].append(name)
    files_of = {file: names.path(file) for file in files}
    exact = {file: points_of[name] for file, name in files_of.items() if name in points_of}
    others: dict[str, list[str]] = defaultdict(list)
    for file, name in files_of.items():
        others[picture_files.without_suffix(name)].append(file)
    for stem, same_stem in others.items():
        if len(same_stem) == 1 and len(rows[stem]) == 1:
            exact.setdefault(same_stem[0], points_of[rows[stem][0]])
    return exact


def _is_mirrored(points: NDArray) -> bool:
    """Tell whether the points fit the template's mirror image better than the template."""
    z, w = ((p - p.mean(axis=0)) @ [1, 1j] for p in (points, template(points)))
    return bool(abs(z @ w) > abs(np.vdot(z, w)))
