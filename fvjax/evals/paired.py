"""Compare models on the same pairs: differences of their figures with intervals and p-values. Pure numpy.

Both models see the same people, so their figures rise and fall together from sample to sample, and the interval of the
difference is narrower than the intervals of the two figures suggest. Here every resample of the identities (the vertex
bootstrap of :mod:`fvjax.evals.folds`) judges both models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvjax.evals import folds
from fvjax.evals.pair_scores import PairScores

FIGURES = {  # name as in results.json -> name in folds.figures
    "accuracy@best_threshold": "best",
    "accuracy@far=1e-3": "far",
    **{f"tar@far={far}": f"tar/{far}" for far in folds.FARS},
    "auc": "auc",
    "eer": "eer",
}
Figures = Mapping[str, NDArray]  # by name, [resamples]


@dataclass(frozen=True)
class Resampled:
    """The figures of one model, or of one recipe trained with several seeds, over all resamples of a benchmark.

    Attributes:
        values: figure -> [seeds], measured on the benchmark itself.
        samples: figure -> float64 [resamples], the mean over seeds in each resample of the identities.
    """

    values: Mapping[str, NDArray]
    samples: Figures


def resample(
    seeds: Sequence[PairScores],
    *,
    bootstrap: int = 2000,
    seed: int = 0,
    done: Callable[[int], object] = lambda count: None,
) -> Resampled:
    """Measure all figures on a benchmark and on resamples of its identities.

    Args:
        seeds: the scores of one model, or of one recipe trained with several seeds.
        bootstrap: the number of resamples.
        seed: of the resamples. Two calls with one seed and the same pairs see the same resamples.
        done: is told how many more resamples have been judged, to show progress.
    Raises:
        ValueError: the scores are not of the same pairs.
    """
    pairs = seeds[0]
    check_same_pairs({str(number): each for number, each in enumerate(seeds)})
    order = np.argsort(pairs.fold, kind="stable")
    labels, sizes = pairs.same[order], np.unique(pairs.fold, return_counts=True)[1].tolist()
    identities = folds.identity_numbers(labels, pairs.identity_a[order], pairs.identity_b[order])
    scores = [each.scores[order].astype(np.float64) for each in seeds]
    whole = np.ones((1, len(labels)), np.int32)
    measured = [folds.figures(each, labels, sizes, whole) for each in scores]
    sums: dict[str, list[NDArray]] = {name: [] for name in FIGURES}
    for weights in folds.resamples(labels, identities, bootstrap, seed):
        parts = [folds.figures(each, labels, sizes, weights) for each in scores]
        for name, key in FIGURES.items():
            sums[name].append(np.mean([part[key] for part in parts], 0))
        done(len(weights))
    values = {name: np.array([one[key][0] for one in measured]) for name, key in FIGURES.items()}
    return Resampled(values, {name: np.concatenate(parts or [np.empty(0)]) for name, parts in sums.items()})


def difference(a: Resampled, b: Resampled, figure: str) -> dict[str, Any]:
    """Compare one figure of two models that :func:`resample` measured with the same resamples.

    The interval holds for the trained models, or for the means over the seeds that were trained: it says what other
    people's faces might have given, not what other seeds might have.

    Returns:
        JSON-ready {"difference": a - b, "ci95": [low, high], "p": two-sided}. p is twice the smaller share of resamples
        on one side of zero (a tie counts for both), at most 1 and at least 2 / (resamples + 1). ci95 and p are None if
        the figure is not defined in any resample.
    """
    value = float(a.values[figure].mean() - b.values[figure].mean())
    sample = a.samples[figure] - b.samples[figure]
    sample = sample[~np.isnan(sample)]
    if not len(sample):
        return {"difference": value, "ci95": None, "p": None}
    share = min(np.sum(sample <= 0), np.sum(sample >= 0)) + 1
    ci95 = [float(edge) for edge in np.percentile(sample, [2.5, 97.5])]
    return {"difference": value, "ci95": ci95, "p": float(min(1.0, 2 * share / (len(sample) + 1)))}


def summary(one: Resampled, figure: str) -> dict[str, Any]:
    """Return a figure as JSON-ready {"mean", "std_over_seeds", "seeds", "ci95"}; the std is None for one seed."""
    values, sample = one.values[figure], one.samples[figure]
    sample = sample[~np.isnan(sample)]
    return {
        "mean": float(values.mean()),
        "std_over_seeds": float(values.std(ddof=1)) if len(values) > 1 else None,
        "seeds": len(values),
        "ci95": [float(edge) for edge in np.percentile(sample, [2.5, 97.5])] if len(sample) else None,
    }


def check_same_pairs(scores: Mapping[str, PairScores]) -> None:
    """Raise ValueError if scores, by the name of their model, are not of the same pairs of the same pictures."""
    (first, reference), *others = scores.items()
    for name, each in others:
        for what, mine, its in (
            ("pictures", reference.data_hash, each.data_hash),
            ("list of pairs", reference.pairs_hash, each.pairs_hash),
        ):
            if mine != its:
                raise ValueError(
                    f"{first} and {name} were not evaluated on the same {what}, so pairs cannot be matched"
                )
        for column in ("a", "b", "same", "fold", "identity_a", "identity_b"):
            if not np.array_equal(getattr(reference, column), getattr(each, column)):
                raise ValueError(f"{first} and {name}: their scores are not of the same pairs ({column} differs)")


def bands(seeds: Sequence[PairScores], rates: NDArray, *, bootstrap: int = 500, seed: int = 0) -> NDArray:
    """Compute the 95% band of the true accept rate at false accept rates, point by point.

    rates: float [R]. Returns float64 [2, R], the lower and the upper edge, of the mean over seeds.
    """
    pairs = seeds[0]
    identities = folds.identity_numbers(pairs.same, pairs.identity_a, pairs.identity_b)
    curves = []
    for weights in folds.resamples(pairs.same, identities, bootstrap, seed):
        curves.append(np.mean([true_accept_rates(each, rates, weights) for each in seeds], 0))
    return np.nanpercentile(np.concatenate(curves), [2.5, 97.5], axis=0)


def true_accept_rates(scores: PairScores, rates: NDArray, weights: NDArray | None = None) -> NDArray:
    """Return the share of genuine pairs accepted at the lowest threshold with a false accept rate of at most each rate.

    rates: float [R]; weights: int [B, M] or None. Returns float64 [R] or [B, R].
    """
    far, tar = folds.roc(scores.scores.astype(np.float64), scores.same, weights)
    last = np.sum(far[..., None, :] <= rates[:, None] + 1e-9, -1) - 1
    return np.take_along_axis(tar, np.maximum(last, 0), -1)
