"""Verification protocols: compute named figures with 95% intervals from the scores of labelled pairs. Pure numpy.

A pair is *genuine* (label true, one person) or *impostor*. A pair is accepted as "same" if score >= threshold. Every
figure is computed from pair weights, which are all one for the value and the multiplicities in a resample for the
interval, so that the same code computes a value and its interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fvjax.evals import identification

FARS = {"1e-1": 1e-1, "1e-2": 1e-2, "1e-3": 1e-3}
SMALL_FARS = {"1e-4": 1e-4, "1e-5": 1e-5, "1e-6": 1e-6}  # measured with enough impostor pairs only
ONE_FOLD = "chosen on the pairs that they are judged on, as there is one fold: accuracies flatter"
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
    """Compute all figures of one benchmark, as plain Python numbers (JSON-ready).

    - ``accuracy@best_threshold``: for each fold, the threshold is the most accurate one on the *other* folds.
      Candidates are the midpoints between neighbouring scores of those folds, accept-all and accept-none; ties take
      the lowest.
    - ``accuracy@far=1e-3`` (LLM-FaceVerification's protocol): for each fold, the threshold is the k-th highest of the n
      impostor scores of the other folds, k = floor(n * 0.001), or the highest + 1e-6 if k = 0.
      Both give the mean over folds, the population std over folds and the mean of the folds' thresholds.
    - ``tar@far=X``, over all pairs: the share of genuine pairs accepted at the lowest threshold whose false accept
      rate is <= X (no interpolation), and the number of impostor pairs accepted at that threshold. X is 1e-1 to 1e-3,
      and 1e-4 to 1e-6, for which the figure is None if there are fewer than 1 / X impostor pairs; "impostors" says how
      many there are, and "needed" how many it takes.
    - ``auc``: by trapezoids, so ties count half. ``eer``: the point where FAR = 1 - TAR on the ROC that joins
      neighbouring thresholds linearly (FAR and TAR are both interpolated).
    - ``ci95``: percentile bootstrap; every resample repeats the whole protocol, thresholds included, fold by fold for
      the fold means. With identities it is the vertex bootstrap (Snijders & Borgatti, "Non-parametric standard errors
      and tests for network statistics", Connections 22(2), 1999; for 1:1 face verification see Fogliato, Patil &
      Perona, "Confidence intervals for error rates in 1:1 matching tasks", IJCV 2024): identities are drawn with
      replacement, a genuine pair is weighted by its identity's multiplicity and an impostor pair by the product of its
      two identities'. If identities are in few impostor pairs, these intervals are too wide (by sqrt(3) at most).
      Without identities pairs are drawn, which ignores that pairs share persons: the intervals are too narrow if a few
      persons are in many pairs.

    Args:
        scores: float [M], higher = more alike, pairs ordered by fold.
        labels: bool (or 0/1) [M], true = genuine.
        fold_sizes: pairs per fold, in order; sums to M. With a single fold, as of LFW's View 1, thresholds are chosen
            on the pairs that they are judged on, and the entry ``thresholds`` says so.
        identities_a, identities_b: [M] integers or names, both or neither: the persons in the two images of a pair.
        bootstrap: number of resamples; 0 gives ``ci95: None``.
        seed: seed of the resampling.
    Raises:
        ValueError: wrong lengths, a score that is not finite, a label other than 0/1, an empty fold, a fold
            without genuine or without impostor pairs, identities that contradict a label.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    sizes = [int(size) for size in fold_sizes]
    _check(scores, labels, sizes)
    labels = labels.astype(bool)
    identities = identity_numbers(labels, identities_a, identities_b)

    value = figures(scores, labels, sizes, np.ones((1, len(scores)), np.int32))
    parts = [figures(scores, labels, sizes, w) for w in resamples(labels, identities, bootstrap, seed)]
    samples = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
    n_impostor = int((~labels).sum())
    return {
        "n_pairs": len(labels),
        "n_genuine": len(labels) - n_impostor,
        "n_impostor": n_impostor,
        "n_folds": len(sizes),
        **({"thresholds": ONE_FOLD} if len(sizes) == 1 else {}),
        "accuracy@best_threshold": _fold_mean(value, samples, "best"),
        "accuracy@far=1e-3": _fold_mean(value, samples, "far"),
        **{f"tar@far={far}": _tar(value, samples, far, n_impostor) for far in FARS},
        **{f"tar@far={far}": _small_tar(value, samples, far, n_impostor) for far in SMALL_FARS},
        "auc": {"value": float(value["auc"][0]), "ci95": _ci95(samples, "auc")},
        "eer": {"value": float(value["eer"][0]), "ci95": _ci95(samples, "eer")},
        "intervals": _describe_intervals(identities is not None, bootstrap, seed),
    }


def _fold_mean(value: dict[str, NDArray], samples: dict[str, NDArray], name: str) -> dict[str, Any]:
    """Return the mean, std, interval and mean threshold of an accuracy over the folds."""
    per_fold, thresholds = value[f"{name}/folds"][0], value[f"{name}/thresholds"][0]
    return {
        "mean": float(per_fold.mean()),
        "std": float(per_fold.std()),
        "ci95": _ci95(samples, name),
        "threshold": float(thresholds.mean()),
    }


def _tar(value: dict[str, NDArray], samples: dict[str, NDArray], far: str, n_impostor: int) -> dict[str, Any]:
    """Return the figure of TAR at a FAR, with the number of impostor pairs that it rests on."""
    return {
        "value": float(value[f"tar/{far}"][0]),
        "ci95": _ci95(samples, f"tar/{far}"),
        "impostors_above": round(float(value[f"reached/{far}"][0]) * n_impostor),
    }


def _small_tar(value: dict[str, NDArray], samples: dict[str, NDArray], far: str, n_impostor: int) -> dict[str, Any]:
    """Return the figure of TAR at a small FAR: None unless one impostor pair or more may be accepted at it."""
    counts = {"impostors": n_impostor, "needed": identification.needed(SMALL_FARS[far])}
    if n_impostor < counts["needed"]:
        return {"value": None, "ci95": None, "impostors_above": None, **counts}
    return {**_tar(value, samples, far, n_impostor), **counts}


def _ci95(samples: dict[str, NDArray], name: str) -> list[float] | None:
    """Return the 95% interval of a figure; None if there are no resamples, or none for which it is defined."""
    sample = samples.get(name, np.empty(0))
    sample = sample[~np.isnan(sample)]  # of a tiny benchmark, a resample may lack the pairs that a figure needs
    return [float(edge) for edge in np.percentile(sample, [2.5, 97.5])] if len(sample) else None


def _describe_intervals(by_identity: bool, bootstrap: int, seed: int) -> str:
    """Describe how the intervals were computed, for results.json."""
    if not bootstrap:
        return "none (bootstrap=0)"
    unit = "identities (vertex bootstrap: Snijders & Borgatti 1999, Fogliato et al. 2024)" if by_identity else "pairs"
    return (
        f"95% percentile bootstrap over {unit}, {bootstrap} resamples, seed {seed}; every resample chooses its "
        "thresholds anew, fold by fold for the fold means"
    )


def roc(scores: NDArray, labels: NDArray, weights: NDArray | None = None) -> tuple[NDArray, NDArray]:
    """Compute (FAR, TAR) from "accept none" to "accept all", one step per distinct score; float64 [..., G + 1].

    scores float [M], labels bool [M], weights [..., M] (None: ones). A curve is NaN if its genuine or its impostor
    pairs have no weight.
    """
    order = np.argsort(-scores, kind="stable")
    scores, labels = scores[order], labels[order]
    weights = np.ones(len(scores)) if weights is None else weights[..., order]
    last = _last_of_ties(scores)

    def accept_rate(pairs: NDArray) -> NDArray:
        accepted = np.cumsum(weights * pairs, -1, dtype=np.float64)[..., last]
        with np.errstate(invalid="ignore"):
            accepted /= accepted[..., -1:].copy()
        return np.concatenate([0 * accepted[..., :1], accepted], -1)  # 0 * keeps NaN

    return accept_rate(~labels), accept_rate(labels)


def auc(far: NDArray, tar: NDArray) -> NDArray:
    """Compute the area under the curve (FAR, TAR) of :func:`roc`, by trapezoids."""
    return np.trapezoid(tar, far, axis=-1)


def eer(far: NDArray, tar: NDArray) -> NDArray:
    """Compute the equal error rate: FAR where FAR = 1 - TAR on :func:`roc`'s curve, linear between thresholds."""
    gap = far + tar - 1  # rises from -1 (accept none) to 1 (accept all), never falls
    right = np.argmax(gap >= 0, -1)[..., None]  # at least 1, unless the curve is NaN

    def take(curve: NDArray, index: NDArray) -> NDArray:
        return np.take_along_axis(curve, index, -1)[..., 0]

    left = np.maximum(right - 1, 0)
    with np.errstate(invalid="ignore"):
        fraction = -take(gap, left) / (take(gap, right) - take(gap, left))
    return take(far, left) + fraction * (take(far, right) - take(far, left))


def _last_of_ties(ordered: NDArray) -> NDArray:
    """Return the index of the last of every run of equal scores: a threshold can only cut there."""
    return np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])


def _best_threshold(scores: NDArray, labels: NDArray, weights: NDArray) -> NDArray:
    """Choose the most accurate threshold of the training folds for each row of weights [B, n] -> [B]."""
    order = np.argsort(scores, kind="stable")
    scores, weights = scores[order], weights[:, order]
    last = _last_of_ties(scores)
    between = (scores[last[:-1]] + scores[last[:-1] + 1]) / 2
    cuts = np.r_[scores[0] - 1e-6, between, scores[-1] + 1e-6]
    # Moving the threshold up past a score gains a rejected impostor pair or loses an accepted genuine one.
    gain = np.cumsum(weights * np.where(labels[order], -1, 1).astype(np.int32), 1, dtype=np.int32)[:, last]
    return cuts[np.argmax(np.c_[np.zeros(len(gain), gain.dtype), gain], 1)]


def _far_threshold(scores: NDArray, labels: NDArray, weights: NDArray) -> NDArray:
    """Choose the threshold of accuracy@far=1e-3, see :func:`verification`, for each row of weights [B, n] -> [B]."""
    impostors = np.flatnonzero(~labels)
    impostors = impostors[np.argsort(-scores[impostors], kind="stable")]
    above = np.cumsum(weights[:, impostors], 1, dtype=np.int32)
    k = np.floor(above[:, -1] * FOLD_FAR + 1e-9)
    index = np.argmax(above >= np.maximum(k, 1)[:, None], 1)  # the k-th impostor; the first for k = 0
    return scores[impostors][index] + np.where(k == 0, 1e-6, 0)


def figures(scores: NDArray, labels: NDArray, sizes: Sequence[int], weights: NDArray) -> dict[str, NDArray]:
    """Compute every figure for each row of weights [B, M] -> [B]; "…/folds" and "…/thresholds" are [B, folds]."""
    far, tar = roc(scores, labels, weights)
    out = {"auc": auc(far, tar), "eer": eer(far, tar)}
    for name, target in (FARS | SMALL_FARS).items():
        # 1e-9: the FAR of exactly k of n pairs may be rounded to just above the target
        index = (np.sum(far <= target + 1e-9, -1) - 1)[:, None]
        out[f"tar/{name}"] = np.take_along_axis(tar, index, 1)[:, 0]
        out[f"reached/{name}"] = np.take_along_axis(far, index, 1)[:, 0]

    fold = np.repeat(np.arange(len(sizes)), sizes)
    rules = {"best": _best_threshold, "far": _far_threshold}
    for name in rules:
        out[f"{name}/folds"], out[f"{name}/thresholds"] = np.empty((2, len(weights), len(sizes)))
    for f in range(len(sizes)):
        test = fold == f
        train = ~test if len(sizes) > 1 else test
        test_weights, train_weights = weights[:, test], weights[:, train]
        for name, choose in rules.items():
            threshold = choose(scores[train], labels[train], train_weights)
            correct = (scores[test] >= threshold[:, None]) == labels[test]
            out[f"{name}/thresholds"][:, f] = threshold
            with np.errstate(invalid="ignore"):  # a resample may leave a fold empty
                out[f"{name}/folds"][:, f] = (test_weights * correct).sum(1) / test_weights.sum(1)
    for name in rules:
        defined = ~np.isnan(out[f"{name}/folds"])
        with np.errstate(invalid="ignore"):
            out[name] = np.where(defined, out[f"{name}/folds"], 0).sum(1) / defined.sum(1)
    return out


def resamples(labels: NDArray, identities: NDArray | None, number: int, seed: int) -> Iterator[NDArray]:
    """Draw bootstrap resamples; yield the weights of the M pairs in them, int32 [rows, M], a few rows at a time.

    identities: int [2, M], numbered from 0 (see :func:`verification`), or None to draw pairs.
    """
    rng = np.random.default_rng(seed)
    n = len(labels) if identities is None else int(identities.max()) + 1
    chunk = max(1, 2**21 // max(n, len(labels)))  # bounds the memory, not the result
    for start in range(0, number, chunk):
        rows = min(chunk, number - start)
        draws = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        weights = np.bincount(draws.ravel(), minlength=rows * n).reshape(rows, n).astype(np.int32)
        if identities is not None:
            weights = weights[:, identities[0]] * np.where(labels, np.int32(1), weights[:, identities[1]])
        yield weights


def _check(scores: NDArray, labels: NDArray, sizes: Sequence[int]) -> None:
    """Raise ValueError for scores, labels or folds that no protocol can evaluate."""
    if scores.ndim != 1 or labels.shape != scores.shape or sum(sizes) != len(scores):
        raise ValueError(
            f"scores {scores.shape}, labels {labels.shape} and fold sizes (sum {sum(sizes)}) must be of the same pairs"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1 (1 = same person), got {np.unique(labels)[:5].tolist()}")
    if not np.isfinite(scores).all():
        row = int(np.argmin(np.isfinite(scores)))
        raise ValueError(
            f"the score of pair {row} is {scores[row]}: the embeddings are broken, so nothing was evaluated"
        )
    if not sizes or min(sizes) < 1:
        raise ValueError(f"a fold has at least one pair, got sizes {list(sizes)}")
    for f, part in enumerate(np.split(labels.astype(bool), np.cumsum(sizes)[:-1])):
        if part.all() or not part.any():
            raise ValueError(f"fold {f} has no {'impostor' if part.all() else 'genuine'} pairs ({len(part)} pairs)")


def identity_numbers(labels: NDArray, a: ArrayLike | None, b: ArrayLike | None) -> NDArray | None:
    """Number the identities of both images of each pair from 0 to n-1, int [2, M]; None without identities."""
    if a is None and b is None:
        return None
    if a is None or b is None or np.shape(a) != labels.shape or np.shape(b) != labels.shape:
        raise ValueError(f"identities_a and identities_b: give both, with one identity for each of {len(labels)} pairs")
    names, numbers = np.unique(np.stack([np.asarray(a), np.asarray(b)]), return_inverse=True)
    numbers = numbers.reshape(2, -1)
    wrong = np.flatnonzero((numbers[0] == numbers[1]) != labels)
    if len(wrong):
        row, kind = int(wrong[0]), "genuine" if labels[wrong[0]] else "impostor"
        raise ValueError(f"pair {row} is labelled {kind}, but its identities are {names[numbers[:, row]].tolist()}")
    return numbers
