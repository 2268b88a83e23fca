"""Thresholds of a benchmark with the error rates that they have there. Pure numpy.

Error rates have the names of ISO/IEC 19795-1: the false match rate (FMR, what results.json calls FAR) is the share of
impostor pairs that are accepted, the false non-match rate (FNMR, 1 - TAR) the share of genuine pairs that are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fvjax.evals import folds, identification, intervals
from fvjax.evals.pair_scores import PairScores

TARGETS = {**folds.FARS, **folds.SMALL_FARS}  # "1e-1" … "1e-6"


@dataclass(frozen=True)
class ErrorRates:
    """What a threshold does to all pairs, pooled.

    Attributes:
        threshold: None if the scores are not there; infinite if the highest scores are impostors'.
        false_matches, fmr_ci95: impostor pairs accepted, and the Wilson interval of their share.
        fnmr, fnmr_ci95: the false non-match rate and its bootstrap interval; None without resamples.
    """

    threshold: float | None
    false_matches: int
    fmr_ci95: list[float]
    fnmr: float
    fnmr_ci95: tuple[float, float] | None


@dataclass(frozen=True)
class OperatingPoint:
    """The lowest threshold whose false match rate is at most a target.

    Attributes:
        target: the false match rate, as in results.json.
        impostors, needed: how many impostor pairs there are, and how many it takes for one to be accepted.
        measured: None if there are too few impostor pairs.
    """

    target: str
    impostors: int
    needed: int
    measured: ErrorRates | None


def operating_points(entry: Mapping[str, Any], scores: PairScores | None) -> list[OperatingPoint]:
    """Return the operating points of a benchmark at TARGETS.

    Args:
        entry: of results.json, which has the rates and their intervals.
        scores: of its pairs, which have the thresholds; None if they are not there.
    """
    return [_operating_point(entry, scores, target) for target in TARGETS]


def _operating_point(entry: Mapping[str, Any], scores: PairScores | None, target: str) -> OperatingPoint:
    impostors, needed = entry["n_impostor"], identification.needed(TARGETS[target])
    tar = entry.get(f"tar@far={target}", {"value": None})  # older versions lack the small rates
    if impostors < needed or tar["value"] is None:
        return OperatingPoint(target, impostors, needed, None)
    above, edges = tar["impostors_above"], tar["ci95"]
    measured = ErrorRates(
        threshold=None if scores is None else lowest_threshold(scores, TARGETS[target]),
        false_matches=above,
        fmr_ci95=intervals.wilson(above, impostors),
        fnmr=1 - tar["value"],
        fnmr_ci95=None if edges is None else (1 - edges[1], 1 - edges[0]),
    )
    return OperatingPoint(target, impostors, needed, measured)


def lowest_threshold(scores: PairScores, rate: float) -> float:
    """Return the lowest score that, as a threshold, accepts at most this share of the impostor pairs.

    Infinity if no score does: then the highest scores are impostors'.
    """
    impostors = np.sort(scores.scores[~scores.same])[::-1]
    allowed = math.floor(len(impostors) * rate + 1e-9)
    if allowed >= len(impostors):
        return float(scores.scores.min())
    above = scores.scores[scores.scores > impostors[allowed]]
    return float(above.min()) if len(above) else math.inf
