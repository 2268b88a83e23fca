"""The pairs that a model judges worst, and the pictures behind them as far as their store is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fvjax.data import images
from fvjax.data.stores import Store
from fvjax.evals.finished import FinishedRun
from fvjax.evals.pair_scores import PairScores


@dataclass(frozen=True)
class HardPair:
    """A pair: its number in the list of pairs, its fold and the record numbers of its pictures, all from 0."""

    number: int
    fold: int
    a: int
    b: int
    score: float


def hardest(scores: PairScores, count: int) -> tuple[list[HardPair], list[HardPair]]:
    """Return the impostor pairs with the highest scores and the genuine pairs with the lowest, the worst first.

    Of equal scores, the pair that comes first in the list comes first.
    """
    badness = np.where(scores.same, -scores.scores, scores.scores)
    order = np.argsort(-badness, kind="stable")
    chosen = [order[scores.same[order] == kind][:count] for kind in (False, True)]
    impostors, genuine = ([_hard_pair(scores, int(number)) for number in numbers] for numbers in chosen)
    return impostors, genuine


def _hard_pair(scores: PairScores, number: int) -> HardPair:
    fold, a, b = (int(column[number]) for column in (scores.fold, scores.a, scores.b))
    return HardPair(number, fold, a, b, float(scores.scores[number]))


def find_store(run: FinishedRun, benchmark: str, given: Sequence[Path]) -> tuple[Store | None, str]:
    """Open the store that a benchmark of a run was evaluated on.

    It is looked for where the run had it and among the stores `given`, and recognised by its hash.

    Returns:
        the store, or None and in a sentence why it is not there.
    """
    settings = run.settings.get("eval", {}).get("benchmarks", {}).get(benchmark, {})
    named = [run.evaluation(benchmark).get("stores", {}).get(benchmark), settings.get("store")]
    candidates = list(dict.fromkeys([*given, *(Path(name) for name in named if name)]))
    for folder in candidates:
        try:
            store = Store(folder, "test")
        except (ValueError, OSError):
            continue
        if store.data_hash == run.results["benchmarks"][benchmark]["data_hash"]:
            return store, ""
    looked = f"; it is not in {', '.join(map(str, candidates))}" if candidates else ""
    return None, f"The store with these pictures is not at hand{looked}. --data=STORE says where it is."


def face(store: Store, record: int) -> bytes:
    """Encode the picture of a record anew: the JPEG holds nothing but pixels. Raises ValueError: it is damaged."""
    return images.encode(store.image(record))
