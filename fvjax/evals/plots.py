"""Plot ROC and DET curves as PNG files, with all pairs of a benchmark pooled.

The false accept rate has a logarithmic axis, because verification operates at low rates. Curves start at one accepted
impostor pair: nothing was measured below that rate.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from fvjax import errors
from fvjax.evals import folds

Curves = Mapping[str, tuple[NDArray, NDArray]]  # name -> (scores float [M], labels bool [M])


def roc(path: str | os.PathLike, curves: Curves) -> None:
    """Plot the true accept rate over the false accept rate of each named benchmark to a PNG file."""
    figure, axes = _axes("ROC", curves)
    lowest = 1.0
    for name, (scores, labels) in curves.items():
        far, tar = folds.roc(scores, labels)
        x, y = _measured(far, tar, int((~labels).sum()))
        axes.plot(x, y, drawstyle="steps-post", label=_label(name, far, tar, len(labels)))
        lowest = min(lowest, y[0])
    axes.set(ylabel="true accept rate (TAR)", ylim=(np.floor(20 * lowest - 0.2) / 20, 1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(loc="best")
    _save(figure, path)


def det(path: str | os.PathLike, curves: Curves) -> None:
    """Plot the false reject rate over the false accept rate to a PNG file, both logarithmic, and mark the EER."""
    figure, axes = _axes("DET", curves)
    floor = min(1 / labels.sum() for _, labels in curves.values())
    for name, (scores, labels) in curves.items():
        far, tar = folds.roc(scores, labels)
        x, y = _measured(far, 1 - tar, int((~labels).sum()))
        label = _label(name, far, tar, len(labels))
        line = axes.plot(x, np.maximum(y, floor / 2), drawstyle="steps-post", label=label)
        axes.plot(*[folds.eer(far, tar)] * 2, "o", color=line[0].get_color(), markersize=5)
    axes.plot([1e-9, 1], [1e-9, 1], ":", color="0.6", linewidth=1, label="FRR = FAR")
    axes.set(yscale="log", ylabel="false reject rate (FRR)", ylim=(floor, 1))
    axes.legend(loc="best")
    _save(figure, path)


def _save(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure as a PNG file, and leave none that a full disk has cut short. Raises OSError naming the file."""
    try:
        with errors.naming(path):
            FigureCanvasAgg(figure).print_png(path)
    except OSError:
        Path(path).unlink(missing_ok=True)
        raise


def _axes(kind: str, curves: Curves):
    """Create a figure and axes with a logarithmic false accept rate, from the lowest one that was measured."""
    figure = Figure(figsize=(7, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(f"{kind}, all pairs of a benchmark pooled (no folds)", fontsize=10)
    left = min(1 / (~labels).sum() for _, labels in curves.values())
    axes.set(xscale="log", xlim=(left, 1), xlabel="false accept rate (FAR)")
    axes.grid(True, which="major", alpha=0.4)
    axes.grid(True, which="minor", alpha=0.12)
    return figure, axes


def _label(name: str, far: NDArray, tar: NDArray, pairs: int) -> str:
    return f"{name}, {pairs} pairs: AUC {100 * folds.auc(far, tar):.2f}%, EER {100 * folds.eer(far, tar):.2f}%"


def _measured(far: NDArray, y: NDArray, n_impostor: int) -> tuple[NDArray, NDArray]:
    """Keep the last point of every FAR from one accepted impostor pair on; log(FAR) is undefined to the left of it."""
    keep = (far >= 1 / n_impostor - 1e-9) & np.r_[far[1:] != far[:-1], True]
    return far[keep], y[keep]
