"""A model's scores: whether its input is read as it was in training, and whether thresholds fit the scores.

The same pairs are scored with the pictures as they are, and with variants of them: channels swapped, upside down, with
the values of another normalisation, a little larger, smaller or shifted. A model does best with what it was trained on.
If a variant separates genuine from impostor pairs clearly better, the pictures or the model's input are not what they
should be, and the variant says in what respect.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fvjax.data.stores import Pairs
from fvjax.diagnosis.face_sets import FaceSet
from fvjax.diagnosis.findings import Check, Finding
from fvjax.diagnosis.labels import auc, choose_pairs
from fvjax.evals import folds

# Pictures float32 [M, 112, 112, 3] twice, values as from 0 to 255 -> higher = more alike, float [M].
Score = Callable[[NDArray, NDArray], NDArray]
SURE = 3.0  # standard errors by which a variant must be better
BETTER = 1.03  # times the separation
RESAMPLES = 400
CHANCE = 0.55  # AUC up to which a model knows nothing
GAP = 0.02  # of accuracy that a threshold may lose
READING = "compare how the weights' own code reads pictures (channel order, mean, std) with how they are read here"


@dataclass(frozen=True)
class Variant:
    """Another reading of the pictures, float32 [M, 112, 112, 3] -> the same, and what it means if it does better."""

    name: str
    finding: str
    problem: str
    change: Callable[[NDArray], NDArray]


class Normalisation(NamedTuple):
    """A normalisation (x / 255 - mean) / std of pixels x, as one number or one for each channel."""

    name: str
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]


HALF = Normalisation("values from -1 to 1", 0.5, 0.5)
UNIT = Normalisation("values from 0 to 1", 0.0, 1.0)
RAW = Normalisation("values from 0 to 255", 0.0, 1 / 255)
IMAGENET = Normalisation("ImageNet's mean and std", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _renormalised(used: Normalisation, meant: Normalisation) -> Callable[[NDArray], NDArray]:
    """Return what makes a model that normalises with ``used`` compute what it would with ``meant``."""

    def change(faces: NDArray) -> NDArray:
        return 255 * (np.asarray(used.mean) + np.asarray(used.std) / meant.std * (faces / 255 - meant.mean))

    return change


def _zoomed(scale: float) -> Callable[[NDArray], NDArray]:
    """Return what enlarges faces about the middle; beyond the edge everything is as at the edge."""

    def change(faces: NDArray) -> NDArray:
        size = faces.shape[1]
        places = ((np.arange(size) - (size - 1) / 2) / scale + (size - 1) / 2).clip(0, size - 1)
        low = np.minimum(places.astype(int), size - 2)
        part = places - low
        faces = faces[:, low] * (1 - part)[:, None, None] + faces[:, low + 1] * part[:, None, None]
        return faces[:, :, low] * (1 - part)[:, None] + faces[:, :, low + 1] * part[:, None]

    return change


def _shifted(down: int, right: int) -> Callable[[NDArray], NDArray]:
    """Return what shifts faces; beyond the edge everything is as at the edge."""

    def change(faces: NDArray) -> NDArray:
        places = np.arange(faces.shape[1])
        rows, columns = (np.clip(places - by, 0, len(places) - 1) for by in (down, right))
        return faces[:, rows][:, :, columns]

    return change


CHANNELS = "the model expects the channels in another order than the pictures have"
VALUES = "the model expects pixels that are normalised in another way"
CROPS = "the model expects faces of another size or at another place in the crop"
TURNED = "the model expects faces that are turned"
VARIANTS = (
    Variant("channels swapped", "model-channel-order", CHANNELS, lambda faces: faces[..., ::-1]),
    Variant("upside down", "model-orientation", TURNED, lambda faces: faces[:, ::-1]),
    *(
        Variant(f"{meant.name} instead of {used.name}", "model-normalisation", VALUES, _renormalised(used, meant))
        for used, meant in ((HALF, UNIT), (HALF, IMAGENET), (HALF, RAW), (UNIT, HALF), (IMAGENET, HALF), (RAW, HALF))
    ),
    Variant("faces 1.15 times as large", "model-template", CROPS, _zoomed(1.15)),
    Variant("faces 0.87 times as large", "model-template", CROPS, _zoomed(1 / 1.15)),
    Variant("faces 8 px to the left", "model-template", CROPS, _shifted(0, -8)),
    Variant("faces 8 px to the right", "model-template", CROPS, _shifted(0, 8)),
    Variant("faces 8 px up", "model-template", CROPS, _shifted(-8, 0)),
    Variant("faces 8 px down", "model-template", CROPS, _shifted(8, 0)),
)


def separation(scores: NDArray, same: NDArray, weights: NDArray | None = None) -> NDArray:
    """Return the distance of the means of genuine and impostor scores in standard deviations (d'), for each row of
    weights [..., M] (None: ones)."""
    weights = np.ones(len(scores)) if weights is None else weights
    moments = []
    for kind in (same, ~same):
        share = weights * kind / np.maximum((weights * kind).sum(-1, keepdims=True), 1e-9)
        mean = (share * scores).sum(-1)
        moments.append((mean, (share * scores**2).sum(-1) - mean**2))
    (genuine, spread), (impostor, other_spread) = moments
    return (genuine - impostor) / np.sqrt(np.maximum((spread + other_spread) / 2, 1e-12))


def check_model(faces: FaceSet, name: str, pairs: Pairs, score: Score, count: int) -> tuple[Check, NDArray, NDArray]:
    """Check a model on at most ``count`` pairs, with the pictures as they are and with VARIANTS.

    Returns:
        the check; the scores of the pairs, empty if they mean nothing; and the pairs' rows.
    """
    title, nothing = f"model on {name}", np.empty(0)
    rows = choose_pairs(pairs, count)
    same = pairs.same[rows]
    if min(same.sum(), (~same).sum()) < 10:
        return Check(title, "fewer than 10 genuine or impostor pairs", skipped=True), nothing, rows
    a, b = (faces.faces(ids[rows]).astype(np.float32) for ids in (pairs.a, pairs.b))
    plain = np.asarray(score(a, b), np.float64)
    if problem := _broken(plain, same):
        return Check(title, problem.evidence, (problem,)), nothing, rows
    resamples = np.random.default_rng(0).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), RESAMPLES)
    base, base_resampled = separation(plain, same), separation(plain, same, resamples)
    better: list[tuple[float, Variant]] = []
    undecided: list[tuple[float, str]] = []
    figures: dict[str, Any] = {"pairs": len(rows), "auc": auc(plain, same)[0], "as they are": round(float(base), 3)}
    for variant in VARIANTS:
        scores = np.asarray(score(variant.change(a).astype(np.float32), variant.change(b).astype(np.float32)))
        value = float(separation(scores, same))
        gain = separation(scores, same, resamples) - base_resampled
        figures[variant.name] = round(value, 3)
        if value > BETTER * base and gain.mean() > SURE * gain.std():
            better.append((value, variant))
        elif value > BETTER * base and gain.mean() > 0:
            undecided.append(
                (value, _undecided(variant.name, value, len(rows) * (SURE * gain.std() / gain.mean()) ** 2))
            )
    evidence = f"AUC {figures['auc']:.3f} and separation {base:.2f} of {len(rows)} pairs"
    found = ()
    if better:
        value, variant = max(better, key=lambda entry: entry[0])
        shown = f"{evidence}; with {variant.name} the separation is {value:.2f}"
        found = (Finding(variant.finding, variant.problem, shown, READING),)
    elif undecided:
        evidence += max(undecided)[1]
    return Check(title, evidence, found, figures), plain, rows


def _undecided(name: str, value: float, pairs: float) -> str:
    """Say that a reading is better by no more than chance may be, and from how many pairs on that would be known."""
    wanted = 100 * math.ceil(pairs / 100)
    return f"; with {name} it is {value:.2f}, which may be chance: --pairs={wanted} or more would tell"


def _broken(scores: NDArray, same: NDArray) -> Finding | None:
    """Return what is wrong with scores that no other reading of the pictures could help; None if nothing is."""
    if not np.isfinite(scores).all():
        evidence = f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite"
        return Finding("model-broken", "the model's scores are no numbers", evidence, "evaluate in float32; retrain")
    if np.ptp(scores) < 1e-3:
        evidence = f"all scores are between {scores.min():.4f} and {scores.max():.4f}"
        remedy = "load the weights (a strict load reports what is missing), or look at the training's loss"
        return Finding("model-collapsed", "the model gives all pictures the same embedding", evidence, remedy)
    area, error = auc(scores, same)
    if area < 0.5 - SURE * error:
        evidence = f"AUC {area:.3f} of {len(scores)} pairs"
        remedy = "scores must be higher for the same person: give a cosine and not a distance, and check the labels"
        return Finding("scores-inverted", "genuine pairs have lower scores than impostor pairs", evidence, remedy)
    return None


def check_threshold(name: str, scores: NDArray, pairs: Pairs, threshold: float, origin: str) -> Check:
    """Check that a threshold fits the scores of a benchmark's pairs: float [M], and who says so."""
    measured = folds.verification(scores, pairs.same, pairs.fold_sizes, bootstrap=0)["accuracy@best_threshold"]
    accuracy = float(((scores >= threshold) == pairs.same).mean())
    tenfold = f"10-fold {measured['mean']:.1%} at {measured['threshold']:.4f}"
    evidence = f"accuracy {accuracy:.1%} at {threshold:.4f} ({origin}), {tenfold}"
    found = []
    if accuracy < measured["mean"] - GAP:
        problem = "the threshold does not belong to these scores"
        remedy = "choose it on the other folds of this model's scores, with the same flip and measure (--mode=eval)"
        found.append(Finding("threshold", problem, evidence, remedy))
    return Check(f"threshold on {name}", evidence, tuple(found), {"accuracy": accuracy, "ten_fold": measured["mean"]})
