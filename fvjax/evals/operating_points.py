"""Operating points: the thresholds at which an evaluated model decides, and what is known about their error rates.

The threshold of `accuracy@far=1e-3` is in results.json. Those for other rates are computed from the scores beside it,
by the same rule: each fold's threshold is chosen on the scores of the other folds, and their mean is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fvjax.evals import folds, identification, intervals, pair_scores
from fvjax.evals.pair_scores import PairScores

AGAIN = "the thresholds of other rates are computed from the scores"


class Threshold(NamedTuple):
    """A threshold for an error rate.

    Attributes:
        value: the mean over folds.
        errors: how many scores of the other folds lie on its wrong side, floor(rate * scores).
        scores: how many scores of that kind the other folds have; the fewest of all folds, if they differ.
    """

    value: float
    errors: int
    scores: int


class Measured(NamedTuple):
    """A threshold that was measured: from it on a pair is accepted.

    Attributes:
        threshold, far: the threshold and the false accept rate that it was chosen for.
        measured_on: the benchmark and what else the threshold rests on, JSON-ready; see :func:`measured`.
    """

    threshold: float
    far: float
    measured_on: dict[str, Any]


def of_entry(entry: Mapping[str, Any]) -> Threshold:
    """Return the threshold of accuracy@far=1e-3 of a benchmark's entry of results.json, for folds of equal size.

    In each fold it is the `errors`-th highest of the `scores` impostor scores of the other folds, if there are any, or
    just above all of them if `errors` is 0.
    """
    own = entry["n_impostor"] // entry["n_folds"] if entry["n_folds"] > 1 else 0
    others = entry["n_impostor"] - own
    return Threshold(entry["accuracy@far=1e-3"]["threshold"], int(others * folds.FOLD_FAR + 1e-9), others)


def at_far(pairs: PairScores, far: float) -> Threshold:
    """Choose the threshold at a false accept rate: the k-th highest of n impostor scores, k = floor(n * far).

    Raises ValueError if there are too few impostor scores for one of them to be accepted.
    """
    others = _other_folds(pairs, ~pairs.same, far, "FAR", "impostor")
    return _mean([np.sort(scores)[-_count(scores, far)] for scores in others], others, far)


def at_fnmr(pairs: PairScores, fnmr: float) -> Threshold:
    """Choose the threshold at a false non-match rate: of n genuine scores, k = floor(n * fnmr) lie below it.

    Raises ValueError if there are too few genuine scores for one of them to be rejected.
    """
    others = _other_folds(pairs, pairs.same, fnmr, "FNMR", "genuine")
    return _mean([np.sort(scores)[_count(scores, fnmr)] for scores in others], others, fnmr)


def _other_folds(pairs: PairScores, chosen: NDArray, rate: float, name: str, kind: str) -> list[NDArray]:
    """Return for each fold the scores of the other folds, or all if there is one fold, of the chosen pairs."""
    scores, fold = pairs.scores[chosen], pairs.fold[chosen]
    numbers = np.unique(pairs.fold)
    others = [scores[fold != number] if len(numbers) > 1 else scores for number in numbers]
    fewest, needed = min(len(each) for each in others), identification.needed(rate)
    if fewest < needed:
        possible = f"a rate of {1 / fewest:.2g} or more" if fewest > 1 else "another benchmark"
        raise ValueError(f"{name} {rate:g} needs {needed:,} {kind} scores, and there are {fewest:,}; choose {possible}")
    return others


def _count(scores: NDArray, rate: float) -> int:
    return int(len(scores) * rate + 1e-9)


def _mean(thresholds: list[np.floating], others: list[NDArray], rate: float) -> Threshold:
    fewest = min(others, key=len)
    return Threshold(float(np.mean(np.array(thresholds, np.float64))), _count(fewest, rate), len(fewest))


def choose(results: Mapping[str, Any], name: str | None, file: Path) -> str:
    """Return the benchmark whose threshold is used: ``name``, or the first whose people training did not see.

    If there is none of which that is known, it is the first of which nothing is known.

    Raises ValueError: there is no such benchmark, or training has seen people of all. KeyError: another version's file.
    """
    entries = results["benchmarks"]
    if name is not None and name not in entries:
        raise ValueError(f"--benchmark={name}: {file} has {', '.join(entries)}")
    seen = {each: entry["identities_seen_in_training"] for each, entry in entries.items()}
    unseen = [each for each in seen if seen[each] == 0] or [each for each in seen if seen[each] is None]
    if name is None and not unseen:
        names = "|".join(entries)
        raise ValueError(f"{file}: training saw identities of every benchmark; choose --benchmark={names}")
    return name or unseen[0]


def measured(workdir: Path, results: Mapping[str, Any], name: str | None, far: float | None = None) -> Measured:
    """Return a threshold of an evaluation, and what it was measured on.

    Args:
        workdir: the folder of results.json.
        results: its contents.
        name: the benchmark, see :func:`choose`.
        far: None: the threshold of accuracy@far=1e-3 that results.json has. Otherwise it is computed from the scores.
    Raises:
        ValueError: no such benchmark, its scores are missing or of other data, or too few of them for ``far``.
        KeyError: another version of fvjax wrote results.json.
    """
    name = choose(results, name, workdir / "results.json")
    entry = results["benchmarks"][name]
    if far is None:
        chosen = of_entry(entry)
    else:
        chosen = _located(at_far, pair_scores.of_benchmark(workdir, results, name, AGAIN), far, f"--far={far:g}", name)
    measured_on = {
        "benchmark": name,
        "n_impostor": entry["n_impostor"],
        "n_impostor_per_fold": chosen.scores,
        "impostors_above_per_fold": chosen.errors,
        "identities_seen_in_training": entry["identities_seen_in_training"],
        "data_hash": entry["data_hash"],
        "flip_sum": results["flip_sum"],
        "step": results["step"],
        "evaluated": _evaluated(entry.get("evaluation", results.get("evaluation"))),
    }
    return Measured(chosen.value, folds.FOLD_FAR if far is None else far, measured_on)


def lower(workdir: Path, results: Mapping[str, Any], name: str, fnmr: float) -> dict[str, Any]:
    """Return the threshold below which two pictures show different persons, JSON-ready.

    Returns:
        {"fnmr", "threshold", "n_genuine_per_fold", "genuine_below_per_fold", "fnmr_ci95"}; the last is Wilson's
        interval of the share of genuine scores below the threshold.
    Raises:
        ValueError, KeyError: as :func:`measured`.
    """
    pairs = pair_scores.of_benchmark(workdir, results, name, AGAIN)
    chosen = _located(at_fnmr, pairs, fnmr, f"--unsure={fnmr:g}", name)
    return {
        "fnmr": fnmr,
        "threshold": chosen.value,
        "n_genuine_per_fold": chosen.scores,
        "genuine_below_per_fold": chosen.errors,
        "fnmr_ci95": intervals.wilson(chosen.errors, chosen.scores),
    }


def _located(
    rule: Callable[[PairScores, float], Threshold], pairs: PairScores, rate: float, flag: str, name: str
) -> Threshold:
    """Apply a rule; its ValueError begins with the flag and the benchmark."""
    try:
        return rule(pairs, rate)
    except ValueError as error:
        raise ValueError(f"{flag}: benchmark {name}: {error}") from error


def _evaluated(evaluation: Mapping[str, str] | None) -> str | None:
    """Return the date of an evaluation, and its name if it has one; None if an older version wrote the results."""
    return None if evaluation is None else " ".join(filter(None, (evaluation["date"], evaluation["name"])))
