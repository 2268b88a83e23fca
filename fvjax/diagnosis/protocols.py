"""Whether the folds of a benchmark are those of its protocol."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fvjax.data.stores import Pairs
from fvjax.diagnosis.findings import Check, Finding

# Benchmarks whose official folds share no person and are half genuine, half impostor; pairs in one of ten folds.
OFFICIAL = {"lfw": 600, "ff": 700, "fp": 700, "cfp_ff": 700, "cfp_fp": 700}
FOLDS = 10
BALANCE = 0.1  # from one half
IN_ORDER = "evaluate the pairs in their published order (prepare the set again); shuffle nothing, not even with a seed"


def check_folds(name: str, pairs: Pairs) -> Check:
    """Check that folds are balanced, and those of LFW and CFP also that they are the official ones."""
    sizes = np.bincount(pairs.fold)
    genuine = np.bincount(pairs.fold[pairs.same], minlength=len(sizes))
    selfs, repeats = int((pairs.a == pairs.b).sum()), _repeats(pairs)
    people, shared = _shared(pairs)
    evidence = (
        f"{len(sizes)} folds of {sizes.min()} to {sizes.max()} pairs, {genuine.min()} to {genuine.max()} genuine; "
        f"{shared} of {people} people in several folds; {repeats} repeated pairs, {selfs} of a picture with itself"
    )
    figures = {"folds": len(sizes), "genuine": genuine.tolist(), "shared_people": shared, "people": people}
    found = _official_findings(name, sizes, genuine, shared, evidence)
    if not found and np.any(np.abs(genuine / sizes - 0.5) > BALANCE):
        problem = "folds are not balanced, so that thresholds and accuracies of the folds are not comparable"
        found.append(Finding("folds-unbalanced", problem, f"{evidence}; expected about half of each", IN_ORDER))
    if selfs:
        problem = f"{selfs} pairs are of a picture with itself"
        found.append(Finding("self-pairs", problem, evidence, "remove them: they are accepted whatever the model"))
    return Check(f"folds of {name}", evidence, tuple(found), {**figures, "repeated": repeats, "self": selfs})


def _official_findings(name: str, sizes: NDArray, genuine: NDArray, shared: int, evidence: str) -> list[Finding]:
    """Return what is wrong with the folds of a benchmark with published ones; nothing for another benchmark.

    Pairs that were dropped with --policy=drop leave folds that are a little smaller.
    """
    if name not in OFFICIAL or len(sizes) != FOLDS or sizes.max() > OFFICIAL[name]:
        return []
    uneven = bool((np.abs(2 * genuine - sizes) > OFFICIAL[name] - sizes).any())
    if not uneven and not shared:
        return []
    problem = f"the folds are not {name}'s: its pairs were shuffled, or stand in another order"
    half = OFFICIAL[name] // 2
    return [
        Finding("folds-shuffled", problem, f"{evidence}; expected {half} genuine each, and nobody in two", IN_ORDER)
    ]


def _repeats(pairs: Pairs) -> int:
    ends = np.sort(np.stack([pairs.a, pairs.b]), 0)
    return len(pairs.a) - np.unique(ends, axis=1).shape[1]


def _shared(pairs: Pairs) -> tuple[int, int]:
    """Return the number of identities, and of those that are in more than one fold."""
    people = np.concatenate([pairs.identity_a, pairs.identity_b])
    seen = np.unique(np.stack([people, np.tile(pairs.fold, 2)]), axis=1)
    _, counts = np.unique(seen[0], return_counts=True)
    return len(counts), int((counts > 1).sum())
