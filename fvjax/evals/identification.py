"""Identification protocols (1:N): who of a gallery is this, if anybody? Figures from the outcomes of searches.

A probe is *mated* if the gallery has an entry of its person, otherwise *non-mated*. A search finds somebody if its
highest score reaches the threshold. The terms are those of ISO/IEC 19795-1 and of NIST's FRTE 1:N:

- rank of a mated probe: 1 + the entries of other people that score at least as high as its own person's best entry.
  Ranks count from 1, and a tie counts against the system. With several entries of one person, entries are counted and
  not people.
- FPIR, false positive identification rate: the share of non-mated probes that find somebody.
- FNIR, false negative identification rate: the share of mated probes whose own person is not at rank 1, or scores
  below the threshold. TPIR is 1 - FNIR.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fvjax.evals import intervals

RANKS = (1, 5, 10)
BLOCK = 256  # rows of scores at a time: 1 GB for a gallery of a million


@dataclass(frozen=True)
class Outcomes:
    """What the search found for each of P probes.

    Attributes:
        highest: float [P], the score of the most similar entry of the gallery.
        mate: float [P], the highest score of an entry of the probe's own person; NaN for a non-mated probe.
        rank: int64 [P], of that entry; 0 for a non-mated probe.
    """

    highest: NDArray
    mate: NDArray
    rank: NDArray

    @property
    def mated(self) -> NDArray:
        """Bool [P]."""
        return self.rank > 0

    @classmethod
    def concatenate(cls, parts: Iterable[Outcomes]) -> Outcomes:
        columns = zip(*((part.highest, part.mate, part.rank) for part in parts))
        return cls(*(np.concatenate(column) for column in columns))


def outcomes(scores: ArrayLike, probe_people: ArrayLike, gallery_people: ArrayLike) -> Outcomes:
    """Return the outcomes of P searches among N entries.

    Args:
        scores: float [P, N], higher = more alike.
        probe_people: [P], numbers of people. gallery_people: [N], likewise.
    Raises:
        ValueError: an empty gallery, other shapes, or a score that is not finite.
    """
    scores, probe_people, gallery_people = map(np.asarray, (scores, probe_people, gallery_people))
    if scores.ndim != 2 or not scores.shape[1] or scores.shape != (*probe_people.shape, *gallery_people.shape):
        raise ValueError(
            f"scores {list(scores.shape)} for {probe_people.shape} probes and {gallery_people.shape} entries of a "
            "gallery; expected one score for each probe and entry, of one entry or more"
        )
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite: the embeddings are broken, so nothing was evaluated")
    own = probe_people[:, None] == gallery_people
    mated = own.any(axis=1)
    mate = np.where(own, scores, -np.inf).max(axis=1)
    others_above = ((scores >= mate[:, None]) & ~own).sum(axis=1)
    return Outcomes(scores.max(axis=1), np.where(mated, mate, np.nan), np.where(mated, 1 + others_above, 0))


def threshold(impostors: ArrayLike, rate: float) -> float | None:
    """Return the lowest threshold that accepts at most a share of some scores; accepted is score >= threshold.

    Args:
        impostors: float [n], of pairs of different people, or the highest scores of non-mated probes.
        rate: the share, above 0 and below 1.
    Returns:
        a number just above the score that must be rejected, in the precision of the scores; None if fewer than
        1 / rate scores are there, as the threshold would then be a guess.
    """
    if not 0 < rate < 1:
        raise ValueError(f"a rate of {rate:g}: choose one above 0 and below 1")
    impostors = np.asarray(impostors)
    accepted = accepted_at(len(impostors), rate)
    if not accepted:
        return None
    rejected = len(impostors) - accepted - 1  # the index, from the lowest, of the highest score to reject
    highest = np.partition(impostors, rejected)[rejected]
    return float(np.nextafter(highest, highest.dtype.type(np.inf)))


def accepted_at(count: int, rate: float) -> int:
    """Return how many of `count` impostor scores may be accepted at a rate."""
    return math.floor(count * rate + 1e-9)


def needed(rate: float) -> int:
    """Return how many impostor scores a rate needs, so that one of them may be accepted."""
    return math.ceil(1 / rate - 1e-9)


def figures(found: Outcomes, *, fpirs: Sequence[float] = (0.01, 0.1), ranks: Sequence[int] = RANKS) -> dict[str, Any]:
    """Compute the figures of some searches, JSON-ready.

    Returns:
        "probes", "mated" and "non_mated" count probes. "rank-K" is {"value", "ci95", "hits"}: the share of mated probes
        of rank K or better; its value is None without mated probes. "fnir@fpir=X" is {"value", "ci95", "threshold",
        "false_positives", "non_mated", "needed"}: FNIR at the lowest threshold whose FPIR is at most X. It is None if
        there are no mated probes; so is the threshold if there are fewer non-mated probes than "needed". Intervals are
        Wilson's, which take probes for independent.
    """
    mated = found.mated
    n_mated = int(mated.sum())
    result: dict[str, Any] = {"probes": len(mated), "mated": n_mated, "non_mated": len(mated) - n_mated}
    for k in ranks:
        hits = int((mated & (found.rank <= k)).sum())
        result[f"rank-{k}"] = {**_share(hits, n_mated), "hits": hits}
    for fpir in fpirs:
        result[f"fnir@fpir={fpir:g}"] = _fnir(found, fpir)
    return result


def _fnir(found: Outcomes, fpir: float) -> dict[str, Any]:
    mated = found.mated
    strangers = found.highest[~mated]
    limit = threshold(strangers, fpir)
    figure: dict[str, Any] = {"value": None, "ci95": None}
    if limit is not None:
        hits = int((found.mate[found.rank == 1] >= limit).sum())
        figure = _share(int(mated.sum()) - hits, int(mated.sum()))
    return {
        **figure,
        "threshold": limit,
        "false_positives": None if limit is None else int((strangers >= limit).sum()),
        "non_mated": len(strangers),
        "needed": needed(fpir),
    }


def _share(count: int, total: int) -> dict[str, Any]:
    """Return a proportion and its interval, both None of nothing."""
    if not total:
        return {"value": None, "ci95": None}
    return {"value": count / total, "ci95": intervals.wilson(count, total)}


def det(found: Outcomes) -> tuple[NDArray, NDArray, NDArray]:
    """Return the points of the DET curve: (threshold, FPIR, FNIR), each float64 [T], from the highest threshold down.

    There is a point for each distinct highest score of a non-mated probe.

    Raises ValueError unless there are mated and non-mated probes.
    """
    mated = found.mated
    if mated.all() or not mated.any():
        raise ValueError(f"a DET curve needs mated and non-mated probes, and {mated.sum()} of {len(mated)} are mated")
    strangers, hits = np.sort(found.highest[~mated]), np.sort(found.mate[found.rank == 1])
    thresholds = np.unique(strangers)[::-1]
    false_positives = len(strangers) - np.searchsorted(strangers, thresholds)
    found_mates = len(hits) - np.searchsorted(hits, thresholds)
    return thresholds.astype(np.float64), false_positives / len(strangers), 1 - found_mates / mated.sum()


def find_others(vectors: NDArray, people: NDArray, rows: NDArray, threshold: float) -> NDArray:
    """Search for some entries of a gallery among the entries of its other people.

    Args:
        vectors: float [N, D] of length 1. people: int [N], numbers of people.
        rows: int [P], the entries that are searched for.
        threshold: somebody is found if a cosine reaches it.
    Returns:
        bool [P], whether somebody is found.
    """
    found = np.zeros(len(rows), bool)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        others = people[block][:, None] != people
        found[start : start + BLOCK] = ((vectors[block] @ vectors.T >= threshold) & others).any(axis=1)
    return found
