"""Verification protocols: scores of labelled pairs in, named figures with 95% intervals out. Pure numpy.

A pair is *genuine* (label true, one person) or *impostor*. Everywhere a pair counts as "same" if score >= threshold.
Every figure is computed from pair weights: all ones for the value, the resample's multiplicities for the interval, so
a value and its interval come out of the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FARS = {"1e-1": 1e-1, "1e-2": 1e-2, "1e-3": 1e-3}
FOLD_FAR = 1e-3  # of accuracy@far=1e-3


def verification(
    scores: ArrayLike,
    labels: ArrayLike,
    fold_sizes: Sequence[int],
    *,
    identities_a: ArrayLike | None = None,
    identities_b: ArrayLike | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of one benchmark, as plain Python numbers (JSON-ready).

    - ``accuracy@best_threshold``: per fold, the threshold that is right most often on the *other* folds; candidates are
      the midpoints between neighbouring scores of those folds, plus accept-all and accept-none; ties take the lowest.
    - ``accuracy@far=1e-3`` (LLM-FaceVerification's protocol): per fold, the n impostor scores of the other folds in
      descending order, k = floor(n * 0.001); the threshold is the k-th of them, or the largest + 1e-6 if k = 0.
      Both give the mean over folds, the population std over folds and the mean of the folds' thresholds.
    - ``tar@far=X``, over all pairs: the share of genuine pairs accepted at the lowest threshold whose false accept
      rate is <= X (no interpolation), and how many impostor pairs lie at or above that threshold.
    - ``auc``: trapezoids, ties count half. ``eer``: where FAR = 1 - TAR on the ROC that joins neighbouring thresholds
      linearly (FAR and TAR both interpolated).
    - ``ci95``: percentile bootstrap; every resample redoes the whole protocol, thresholds included, fold by fold for
      the fold means. With identities: the vertex bootstrap (Snijders & Borgatti, "Non-parametric standard errors and
      tests for network statistics", Connections 22(2), 1999; for 1:1 face verification see Fogliato, Patil & Perona,
      "Confidence intervals for error rates in 1:1 matching tasks", IJCV 2024). Identities are drawn with replacement; a
      genuine pair weighs its identity's multiplicity, an impostor pair the product of its two identities'. Where an
      identity is in few impostor pairs that errs on the wide side (by sqrt(3) at most). Without identities pairs are
      drawn, which ignores that pairs share persons: too narrow where a few persons are in many pairs.

    Args:
        scores: float [M], higher = more alike, pairs ordered by fold.
        labels: bool (or 0/1) [M], true = genuine.
        fold_sizes: pairs per fold, in order; sums to M.
        identities_a, identities_b: [M] integers or names, both or neither: who is on the two images of a pair.
        bootstrap: resamples; 0 gives ``ci95: None``.
        seed: of the resampling.
    Raises:
        ValueError: wrong lengths, a score that is not finite, a label other than 0/1, fewer than two folds, a fold
            without genuine or without impostor pairs, identities that contradict a label.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    sizes = [int(size) for size in fold_sizes]
    _check(scores, labels, sizes)
    labels = labels.astype(bool)
    people = _people(labels, identities_a, identities_b)

    value = _figures(scores, labels, sizes, np.ones((1, len(scores)), np.int32))
    samples = _bootstrap(scores, labels, sizes, people, bootstrap, seed)

    def ci95(name: str) -> list[float] | None:
        # A resample may lack what a figure needs (tiny benchmarks): it then says nothing about that figure.
        sample = samples[name][~np.isnan(samples[name])] if bootstrap else np.empty(0)
        return [float(edge) for edge in np.percentile(sample, [2.5, 97.5])] if len(sample) else None

    def fold_mean(name: str) -> dict[str, Any]:
        per_fold, thresholds = value[f"{name}/folds"][0], value[f"{name}/thresholds"][0]
        mean, std, threshold = float(per_fold.mean()), float(per_fold.std()), float(thresholds.mean())
        return {"mean": mean, "std": std, "ci95": ci95(name), "threshold": threshold}

    unit = "pairs"
    if people is not None:
        unit = "identities (vertex bootstrap: Snijders & Borgatti 1999, Fogliato et al. 2024)"
    intervals = f"95% percentile bootstrap over {unit}, {bootstrap} resamples, seed {seed}; every resample chooses its "
    intervals += "thresholds anew, fold by fold for the fold means"
    n_impostor = int((~labels).sum())
    return {
        "n_pairs": len(labels),
        "n_genuine": len(labels) - n_impostor,
        "n_impostor": n_impostor,
        "n_folds": len(sizes),
        "accuracy@best_threshold": fold_mean("best"),
        "accuracy@far=1e-3": fold_mean("far"),
        **{
            f"tar@far={far}": {
                "value": float(value[f"tar/{far}"][0]),
                "ci95": ci95(f"tar/{far}"),
                "impostors_above": round(float(value[f"reached/{far}"][0]) * n_impostor),
            }
            for far in FARS
        },
        "auc": {"value": float(value["auc"][0]), "ci95": ci95("auc")},
        "eer": {"value": float(value["eer"][0]), "ci95": ci95("eer")},
        "intervals": intervals if bootstrap else "none (bootstrap=0)",
    }


def roc(scores: NDArray, labels: NDArray, weights: NDArray | None = None) -> tuple[NDArray, NDArray]:
    """(FAR, TAR) from "accept none" to "accept all", one step per distinct score; float64 [..., G + 1].

    scores float [M], labels bool [M], weights [..., M] (None: ones). Without genuine or impostor weight: NaN.
    """
    order = np.argsort(-scores, kind="stable")
    scores, labels = scores[order], labels[order]
    weights = np.ones(len(scores)) if weights is None else weights[..., order]
    last = _last_of_ties(scores)

    def share(kind: NDArray) -> NDArray:
        above = np.cumsum(weights * kind, -1, dtype=np.float64)[..., last]
        with np.errstate(invalid="ignore"):
            above /= above[..., -1:].copy()
        return np.concatenate([0 * above[..., :1], above], -1)  # 0 * keeps NaN

    return share(~labels), share(labels)


def auc(far: NDArray, tar: NDArray) -> NDArray:
    """Area under (FAR, TAR) of :func:`roc`, by trapezoids."""
    return np.trapezoid(tar, far, axis=-1)


def eer(far: NDArray, tar: NDArray) -> NDArray:
    """Equal error rate of :func:`roc`'s curve: FAR where FAR = 1 - TAR, linear between neighbouring thresholds."""
    gap = far + tar - 1  # from -1 (accept none) to 1 (accept all), never falling
    right = np.argmax(gap >= 0, -1)[..., None]  # at least 1, unless the curve is NaN

    def at(curve: NDArray, index: NDArray) -> NDArray:
        return np.take_along_axis(curve, index, -1)[..., 0]

    left = np.maximum(right - 1, 0)
    with np.errstate(invalid="ignore"):
        part = -at(gap, left) / (at(gap, right) - at(gap, left))
    return at(far, left) + part * (at(far, right) - at(far, left))


def _last_of_ties(ordered: NDArray) -> NDArray:
    """Index of the last of every run of equal scores: only there can a threshold cut."""
    return np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])


def _best_threshold(scores: NDArray, labels: NDArray, weights: NDArray) -> NDArray:
    """weights [B, n] of the training folds -> thresholds [B]."""
    order = np.argsort(scores, kind="stable")
    scores, weights = scores[order], weights[:, order]
    last = _last_of_ties(scores)
    between = (scores[last[:-1]] + scores[last[:-1] + 1]) / 2
    cuts = np.r_[scores[0] - 1e-6, between, scores[-1] + 1e-6]
    # Moving the threshold up past a score gains an impostor pair or loses a genuine one.
    gain = np.cumsum(weights * np.where(labels[order], -1, 1).astype(np.int32), 1, dtype=np.int32)[:, last]
    return cuts[np.argmax(np.c_[np.zeros(len(gain), gain.dtype), gain], 1)]


def _far_threshold(scores: NDArray, labels: NDArray, weights: NDArray) -> NDArray:
    """The threshold of accuracy@far=1e-3, as :func:`verification` says. weights [B, n] -> thresholds [B]."""
    impostors = np.flatnonzero(~labels)
    impostors = impostors[np.argsort(-scores[impostors], kind="stable")]
    above = np.cumsum(weights[:, impostors], 1, dtype=np.int32)
    k = np.floor(above[:, -1] * FOLD_FAR + 1e-9)
    at = np.argmax(above >= np.maximum(k, 1)[:, None], 1)  # the k-th impostor; the first for k = 0
    return scores[impostors][at] + np.where(k == 0, 1e-6, 0)


def _figures(scores: NDArray, labels: NDArray, sizes: Sequence[int], weights: NDArray) -> dict[str, NDArray]:
    """weights [B, M] -> every figure, [B]; "…/folds" and "…/thresholds" are [B, folds]."""
    far, tar = roc(scores, labels, weights)
    figures = {"auc": auc(far, tar), "eer": eer(far, tar)}
    for name, target in FARS.items():
        # 1e-9: the FAR of exactly k of n pairs may round to just above the target
        at = (np.sum(far <= target + 1e-9, -1) - 1)[:, None]
        figures[f"tar/{name}"] = np.take_along_axis(tar, at, 1)[:, 0]
        figures[f"reached/{name}"] = np.take_along_axis(far, at, 1)[:, 0]

    fold = np.repeat(np.arange(len(sizes)), sizes)
    chosen = {"best": _best_threshold, "far": _far_threshold}
    for name in chosen:
        figures[f"{name}/folds"], figures[f"{name}/thresholds"] = np.empty((2, len(weights), len(sizes)))
    for f in range(len(sizes)):
        test, train = fold == f, fold != f
        test_weights, train_weights = weights[:, test], weights[:, train]
        for name, choose in chosen.items():
            threshold = choose(scores[train], labels[train], train_weights)
            right = (scores[test] >= threshold[:, None]) == labels[test]
            figures[f"{name}/thresholds"][:, f] = threshold
            with np.errstate(invalid="ignore"):  # a resample may leave a fold empty
                figures[f"{name}/folds"][:, f] = (test_weights * right).sum(1) / test_weights.sum(1)
    for name in chosen:
        filled = ~np.isnan(figures[f"{name}/folds"])
        with np.errstate(invalid="ignore"):
            figures[name] = np.where(filled, figures[f"{name}/folds"], 0).sum(1) / filled.sum(1)
    return figures


def _bootstrap(
    scores: NDArray, labels: NDArray, sizes: Sequence[int], people: NDArray | None, resamples: int, seed: int
) -> dict[str, NDArray]:
    """Figures of every resample, [resamples]. people: int [2, M], or None to draw pairs."""
    rng = np.random.default_rng(seed)
    n = len(scores) if people is None else int(people.max()) + 1
    chunk = max(1, 2**21 // max(n, len(scores)))  # bounds the memory, not the result
    parts = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.int32)
        if people is not None:
            weights = weights[:, people[0]] * np.where(labels, np.int32(1), weights[:, people[1]])
        parts.append(_figures(scores, labels, sizes, weights))
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def _check(scores: NDArray, labels: NDArray, sizes: Sequence[int]) -> None:
    if scores.ndim != 1 or labels.shape != scores.shape or sum(sizes) != len(scores):
        raise ValueError(
            f"scores {scores.shape}, labels {labels.shape}, fold sizes ({sum(sizes)} in all): must be the same pairs"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1 (1 = same person), got {np.unique(labels)[:5].tolist()}")
    if not np.isfinite(scores).all():
        row = int(np.argmin(np.isfinite(scores)))
        raise ValueError(f"the score of pair {row} is {scores[row]}: the embeddings are broken, nothing was evaluated")
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"at least two folds of at least one pair are needed, got sizes {list(sizes)}")
    for f, part in enumerate(np.split(labels.astype(bool), np.cumsum(sizes)[:-1])):
        if part.all() or not part.any():
            raise ValueError(f"fold {f} has no {'impostor' if part.all() else 'genuine'} pairs ({len(part)} pairs)")


def _people(labels: NDArray, a: ArrayLike | None, b: ArrayLike | None) -> NDArray | None:
    """Identities of both sides as integers 0..n-1, [2, M]."""
    if a is None and b is None:
        return None
    if a is None or b is None or np.shape(a) != labels.shape or np.shape(b) != labels.shape:
        raise ValueError(f"identities_a and identities_b: give both, with one identity for each of {len(labels)} pairs")
    names, people = np.unique(np.stack([np.asarray(a), np.asarray(b)]), return_inverse=True)
    people = people.reshape(2, -1)
    wrong = np.flatnonzero((people[0] == people[1]) != labels)
    if len(wrong):
        row, kind = int(wrong[0]), "genuine" if labels[wrong[0]] else "impostor"
        raise ValueError(f"pair {row} is labelled {kind}, but its identities are {names[people[:, row]].tolist()}")
    return people
