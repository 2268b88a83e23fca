"""Figures of a report as SVG: ROC and DET with bands, and the two distributions of scores."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fvjax.evals import comparison_plots
from fvjax.evals.comparison_plots import COLOURS, Models
from fvjax.evals.pair_scores import PairScores

MOST_WEIGHTS = 10**8  # pairs x resamples behind a band: some ten seconds
BINS = 60


def resamples(scores: PairScores, wanted: int) -> int:
    """Return how many resamples a band gets: fewer for a very long list of pairs."""
    return max(min(50, wanted), min(wanted, MOST_WEIGHTS // len(scores.same)))


def roc(benchmark: str, models: Models, bootstrap: int) -> bytes:
    """Draw 1 - FNMR over FMR with 95% bands. Raises ValueError if the models were not evaluated on the same pairs."""
    return _svg(comparison_plots.roc_figure(_plain(benchmark), _plain_names(models), bootstrap=bootstrap))


def det(benchmark: str, models: Models, bootstrap: int) -> bytes:
    """Draw FNMR over FMR on normal deviates with 95% bands. Errors as :func:`roc`."""
    return _svg(comparison_plots.det_figure(_plain(benchmark), _plain_names(models), bootstrap=bootstrap))


def histogram(benchmark: str, scores: PairScores, measure: str, thresholds: Mapping[str, float]) -> bytes:
    """Draw how the scores of genuine and of impostor pairs are distributed, with thresholds as vertical lines.

    measure: what a score is. thresholds: by what they are for.
    """
    figure = Figure(figsize=(4.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    values = scores.scores.astype(np.float64)
    edges = np.histogram_bin_edges(values, BINS)
    for name, kind, colour, hatch in (
        ("impostor", ~scores.same, COLOURS[1], ""),
        ("genuine", scores.same, COLOURS[0], "////"),
    ):
        count = int(kind.sum())
        shares = np.histogram(values[kind], edges)[0] / count
        style: dict[str, Any] = {"facecolor": "none" if hatch else f"{colour}55", "edgecolor": colour, "hatch": hatch}
        axes.stairs(shares, edges, fill=True, label=f"{name} ({count:,})", linewidth=1.2, **style)
    for number, (name, threshold) in enumerate(thresholds.items()):
        line = ("--", ":", "-.")[number % 3]
        axes.axvline(threshold, color="black", linestyle=line, linewidth=1.1, label=f"{_plain(name)}: {threshold:.4f}")
    axes.set_title(f"Scores on {_plain(benchmark)}", fontsize=9)
    axes.set(xlabel=f"score ({measure})", ylabel="share of the pairs of a kind")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.tick_params(labelsize=8)
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize=6.5, ncols=2, loc="upper center")
    return _svg(figure)


def _plain(text: str) -> str:
    """Return a name as matplotlib has to be given it: a dollar sign begins no formula."""
    return text.replace("$", r"\$")


def _plain_names(models: Models) -> Models:
    return {_plain(name): seeds for name, seeds in models.items()}


def _svg(figure: Figure) -> bytes:
    """Return a figure as an SVG without a date, so that equal figures are equal files; its text is drawn as shapes."""
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "fvjax", "svg.fonttype": "path"}):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return out.getvalue()
