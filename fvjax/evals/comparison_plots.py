"""ROC and DET curves of several models on one benchmark, each with its 95% band, as PNG and PDF.

Error rates are named as in ISO/IEC 19795-1: false match rate (FMR, what biometrics literature also calls FAR at the
level of comparisons) and false non-match rate (FNMR). The axes of the DET plot are normal deviates, on which the curve
of two normal score distributions is a straight line. Models differ in colour and in dashes, so that a print without
colours can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray
from scipy.stats import norm

from fvjax.evals import paired
from fvjax.evals.pair_scores import PairScores, file_name

Models = Mapping[str, Sequence[PairScores]]  # name -> its scores, with several seeds one for each
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito
DASHES = ("-", "--", "-.", ":")
TICKS = (1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)  # of the DET plot
POINTS = 60  # false match rates at which curves and bands are drawn


def roc(folder: Path, benchmark: str, models: Models, *, bootstrap: int = 500) -> list[Path]:
    """Draw 1 - FNMR over FMR to roc_BENCHMARK.png and .pdf; return the two files. Errors as :func:`roc_figure`."""
    return _save(roc_figure(benchmark, models, bootstrap=bootstrap), folder / f"roc_{file_name(benchmark)}")


def roc_figure(benchmark: str, models: Models, *, bootstrap: int = 500) -> Figure:
    """Draw 1 - FNMR over FMR. Raises ValueError if the models were not evaluated on the same pairs."""
    figure, axes, rates = _axes(f"ROC on {benchmark}", models)
    lowest = 1.0
    for name, seeds, style in _styled(models):
        value, (low, high) = _curve(seeds, rates, bootstrap)
        axes.plot(rates, value, label=name, **style)
        axes.fill_between(rates, low, high, color=style["color"], alpha=0.15, linewidth=0)
        lowest = min(lowest, float(low.min()))
    axes.set(xscale="log", xlim=(rates[0], 1), ylim=(max(0.0, np.floor(20 * lowest) / 20), 1.0))
    axes.set(xlabel="false match rate (FMR)", ylabel="true match rate (1 - FNMR)")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(loc="lower right", fontsize=7)
    return figure


def det(folder: Path, benchmark: str, models: Models, *, bootstrap: int = 500) -> list[Path]:
    """Draw FNMR over FMR on normal deviates to det_BENCHMARK.png and .pdf; return the two files. Errors as `roc`."""
    return _save(det_figure(benchmark, models, bootstrap=bootstrap), folder / f"det_{file_name(benchmark)}")


def det_figure(benchmark: str, models: Models, *, bootstrap: int = 500) -> Figure:
    """Draw FNMR over FMR on normal deviates. Errors as :func:`roc_figure`."""
    figure, axes, rates = _axes(f"DET on {benchmark}", models)
    genuine = min(int(seeds[0].same.sum()) for seeds in models.values())
    floor = 0.5 / genuine  # below one rejected pair nothing was measured; a curve that gets there leaves the picture
    inside = (rates > 0) & (rates < 1)
    for name, seeds, style in _styled(models):
        value, (low, high) = _curve(seeds, rates[inside], bootstrap)
        x = norm.ppf(rates[inside])
        axes.plot(x, norm.ppf(np.clip(1 - value, floor, 1 - 1e-9)), label=name, **style)
        below, above = (norm.ppf(np.clip(1 - edge, floor, 1 - 1e-9)) for edge in (high, low))
        axes.fill_between(x, below, above, color=style["color"], alpha=0.15, linewidth=0)
    _deviates(axes.xaxis, rates[0])
    _deviates(axes.yaxis, floor)
    axes.set(xlim=(norm.ppf(rates[0]), norm.ppf(0.95)), ylim=(norm.ppf(floor), norm.ppf(0.95)))
    axes.set(xlabel="false match rate (FMR)", ylabel="false non-match rate (FNMR)")
    axes.legend(loc="upper right", fontsize=7)
    return figure


def _axes(title: str, models: Models):
    """Return a figure for print, its axes, and the false match rates from one accepted impostor pair on."""
    paired.check_same_pairs({f"{name} {n}": each for name, seeds in models.items() for n, each in enumerate(seeds)})
    first = next(iter(models.values()))[0]
    figure = Figure(figsize=(4.5, 3.6), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(True, which="major", alpha=0.35, linewidth=0.6)
    rates = np.r_[np.geomspace(1 / (~first.same).sum(), 1, POINTS), np.linspace(0.5, 0.95, 10)]
    return figure, axes, np.unique(rates)


def _styled(models: Models):
    """Yield (label, seeds, how its line looks) for each model."""
    for number, (name, seeds) in enumerate(models.items()):
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)], "linewidth": 1.4}
        yield f"{name} (mean of {len(seeds)} seeds)" if len(seeds) > 1 else name, seeds, style


def _curve(seeds: Sequence[PairScores], rates: NDArray, bootstrap: int) -> tuple[NDArray, NDArray]:
    """Return the true match rate [R] at each rate, mean over seeds, and its band [2, R]."""
    value = np.mean([paired.true_accept_rates(each, rates) for each in seeds], 0)
    return value, paired.bands(seeds, rates, bootstrap=bootstrap)


def _deviates(axis, lowest: float) -> None:
    """Label an axis of normal deviates with the rates that they stand for."""
    ticks = [tick for tick in TICKS if tick >= lowest]
    axis.set_major_locator(FixedLocator(norm.ppf(ticks).tolist()))
    axis.set_major_formatter(FixedFormatter([f"{100 * tick:g}%" for tick in ticks]))
    axis.set_minor_locator(NullLocator())


def _save(figure: Figure, stem: Path) -> list[Path]:
    files = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".png", ".pdf")]
    FigureCanvasAgg(figure).print_png(files[0])
    FigureCanvasPdf(figure).print_pdf(files[1])
    return files
