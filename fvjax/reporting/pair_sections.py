"""The sections of a report about one benchmark of pairs: protocol, figures, curves, error rates, hardest pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fvjax.data.stores import Store
from fvjax.evals.finished import FinishedRun
from fvjax.evals.pair_scores import PairScores
from fvjax.reporting import figures, words
from fvjax.reporting.hardest import HardPair, face, find_store, hardest
from fvjax.reporting.page import Html, element, figure, join, paragraph, picture, table, two_lines
from fvjax.reporting.rates import OperatingPoint, operating_points

UNBROKEN = "\u2011"  # a hyphen at which no line ends: 1e-3 is one word
ROW_HEADS = ("row", "pairs", *(words.FIGURES[key].replace("-", UNBROKEN) for key in words.FIGURES))
RATE_HEADS = ("FMR at most", "threshold", "false matches", "their share, 95% interval", "FNMR", "95% interval")
HARD_HEADS = ("score", "pair", "fold", "picture a", "picture b")


@dataclass(frozen=True)
class Options:
    """What a reader asked for.

    Attributes:
        pictures: show the pictures of the hardest pairs.
        hardest: how many hardest pairs of each kind to list.
        stores: where to look for the pictures of benchmarks, before the places that the runs name.
        bootstrap: resamples behind bands and paired comparisons.
    """

    pictures: bool = False
    hardest: int = 10
    stores: tuple[Path, ...] = ()
    bootstrap: int = 2000


def benchmark_section(name: str, run: FinishedRun, benchmark: str, options: Options) -> Html:
    """Return the section of one benchmark of a run; `name` is the run's."""
    entry = run.results["benchmarks"][benchmark]
    scores, problem = _scores(run, benchmark)
    compared = f" In all, {len(np.union1d(scores.a, scores.b)):,} pictures are compared." if scores else ""
    sentences = [*words.protocol(run, entry), words.acquisition(entry) + compared, words.seen_sentence(entry)]
    parts = [
        element("h3", f"{benchmark}: {name}"),
        element("h4", "Protocol"),
        element("ul", *(element("li", sentence) for sentence in sentences)),
        table(ROW_HEADS, list(figure_rows(name, run, benchmark)), "Figures in per cent, with their 95% intervals."),
        element("h4", "Error rates by threshold"),
        rates_table(operating_points(entry, scores)),
        paragraph(words.threshold_sentence(entry)),
    ]
    if scores is None:
        parts.append(
            paragraph(f"No curves, thresholds, score distributions or hardest pairs: {problem}", class_="note")
        )
        return join(parts)
    parts += [_curves(name, benchmark, run, scores, options.bootstrap)]
    if options.hardest:
        parts.append(_hardest_section(run, benchmark, scores, options))
    return join(parts)


def _scores(run: FinishedRun, benchmark: str) -> tuple[PairScores | None, str]:
    """Return the scores of a benchmark, or None and why they are not there."""
    try:
        return run.scores(benchmark), ""
    except (ValueError, OSError) as error:
        return None, str(error)


# ---- tables


def figure_rows(name: str, run: FinishedRun, benchmark: str) -> Iterator[list[str]]:
    """Yield the rows of a benchmark's table: baselines, before training, the run, its other poolings, unseen people."""
    results, entry = run.results, run.results["benchmarks"][benchmark]
    for row, entries in (results.get("baselines") or {}).items():
        if benchmark in entries:
            yield figure_row(row, entries[benchmark])
    if entry.get("before_training"):
        yield figure_row(f"{name}, before training", entry["before_training"])
    yield figure_row(name, entry)
    for pool, entries in (results.get("pools") or {}).items():
        if benchmark in entries:
            yield figure_row(f"{name}, pooling {pool}", entries[benchmark])
    if entry.get("identity_disjoint"):
        yield figure_row(f"{name}, unseen people only", entry["identity_disjoint"])


def figure_row(name: str, entry: Mapping[str, Any]) -> list[str]:
    """Return the cells of one row, columns as in ROW_HEADS."""
    cells = [two_lines(words.value(entry[key]), words.interval(entry[key]["ci95"])) for key in words.FIGURES]
    return [name, f"{entry['n_pairs']:,}", *cells]


def rates_table(points: Sequence[OperatingPoint]) -> Html:
    """Return the table of false match rates with the threshold and the false non-match rate that belong to each."""
    caption = (
        "All pairs pooled. The threshold is the lowest one that accepts at most this share of the impostor pairs; it "
        "is chosen on the pairs that it is judged on. Shares in per cent; intervals of FNMR: bootstrap, of the share "
        "of false matches: Wilson."
    )
    return table(RATE_HEADS, [rate_row(point) for point in points], caption)


def rate_row(point: OperatingPoint) -> list[str]:
    """Return the cells of one operating point, columns as in RATE_HEADS."""
    measured = point.measured
    if measured is None:
        reason = f"{point.impostors:,} impostor pairs, {point.needed:,} needed"
        return [point.target, "not measured", reason, *("–",) * 3]
    low, high = (words.small_share(edge) for edge in measured.fmr_ci95)
    few = " (few)" if measured.false_matches < words.FEW else ""
    return [
        point.target,
        _threshold(measured.threshold),
        f"{measured.false_matches:,} of {point.impostors:,}{few}",
        f"{low} to {high}",
        words.percent(measured.fnmr),
        words.interval(measured.fnmr_ci95),
    ]


def _threshold(threshold: float | None) -> str:
    if threshold is None:
        return words.UNKNOWN
    return f"{threshold:.4f}" if math.isfinite(threshold) else "above all scores"


# ---- figures


def _curves(name: str, benchmark: str, run: FinishedRun, scores: PairScores, bootstrap: int) -> Html:
    """Return ROC, DET and the distributions of scores."""
    entry = run.results["benchmarks"][benchmark]
    count = figures.resamples(scores, min(bootstrap, 500))
    thresholds = {"best": entry["accuracy@best_threshold"], "FAR 1e-3": entry["accuracy@far=1e-3"]}
    lines = {label: its["threshold"] for label, its in thresholds.items()}
    band = f"The 95% band is drawn point by point from {count} resamples of the people."
    models = {name: [scores]}
    drawn = [
        (figures.roc(benchmark, models, count), "ROC", f"ROC: share of accepted genuine pairs over FMR. {band}"),
        (figures.det(benchmark, models, count), "DET", f"DET: FNMR over FMR on axes of normal deviates. {band}"),
        (
            figures.histogram(benchmark, scores, words.measure(run), lines),
            "distribution of scores",
            "Scores of genuine and impostor pairs, each kind adding up to 100%. Lines: the thresholds of both "
            "accuracies, means over the folds.",
        ),
    ]
    images = [
        figure(picture(data, "svg+xml", f"{kind} of {name} on {benchmark}"), caption) for data, kind, caption in drawn
    ]
    return element("div", *images, class_="figures")


# ---- hardest pairs


def _hardest_section(run: FinishedRun, benchmark: str, scores: PairScores, options: Options) -> Html:
    store, missing = find_store(run, benchmark, options.stores)
    parts = [element("h4", "Hardest pairs")]
    if store is None:
        parts.append(paragraph(f"{missing} So pictures have their record numbers alone.", class_="note"))
    kinds = ("Impostor pairs with the highest scores", "Genuine pairs with the lowest scores")
    for caption, pairs in zip(kinds, hardest(scores, options.hardest), strict=True):
        rows = [_hard_row(pair, store, options.pictures) for pair in pairs]
        parts.append(table(HARD_HEADS, rows, f"{caption}. Pairs, folds and records are numbered from 0.", text=True))
    return join(parts)


def _hard_row(pair: HardPair, store: Store | None, pictures: bool) -> list[str]:
    sides = [_side(record, store, pictures) for record in (pair.a, pair.b)]
    return [f"{pair.score:.4f}", f"{pair.number:,}", str(pair.fold), *sides]


def _side(record: int, store: Store | None, pictures: bool) -> Html:
    """Return the cell of one picture of a pair: its record number, and its file and person if the store is there."""
    if store is None:
        return join([f"record {record:,}"])
    person = store.identities[int(store.labels[record])]
    text = two_lines(f"record {record:,}", f"{store.sources[record]} (person: {person})")
    if not pictures:
        return text
    try:
        return join([picture(face(store, record), "jpeg", f"record {record}", "face"), " ", text])
    except (ValueError, OSError) as error:
        return join([text, element("small", f"no picture: {error}")])
