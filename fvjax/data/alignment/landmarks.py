"""Lists of known facial points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fvjax.data.alignment.geometry import similarity, template


def read_landmarks(file: Path, lines: Sequence[tuple[int, str]]) -> dict[str, NDArray]:
    """Parse lines "FILE<tab>…<tab>x<tab>y<tab>…" to points by file name: float [5, 2], or [3, 2] for CFP's fiducials.

    The file name is followed by zero, two (source, confidence) or three columns (and the number of faces), which are
    not read, and then by the five points in the template's order. If the second column is "fiducial3", three points
    follow the third column.

    Args:
        file: the name for errors.
        lines: (line number, line) without comments.
    Raises:
        ValueError: another number of columns, no numbers, a file named twice, or points in the mirrored order.
    """
    points_of, mirrored = {}, 0
    for number, line in lines:
        cells = line.split("\t")
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
        if cells[0] in points_of:
            raise ValueError(f"{file}:{number}: {cells[0]} a second time")
        points_of[cells[0]] = points
        mirrored += _is_mirrored(points)
    if 2 * mirrored > len(points_of):  # single faces in profile may look mirrored
        raise ValueError(f"{file}: the points are in the mirrored order; the left eye in the picture must come first")
    return points_of


def _is_mirrored(points: NDArray) -> bool:
    """Tell whether the points fit the template's mirror image better than the template."""
    z, w = ((p - p.mean(axis=0)) @ [1, 1j] for p in (points, template(points)))
    return bool(abs(z @ w) > abs(np.vdot(z, w)))
