"""Which two images of whom are trained on when: identity pairs as a pure function of (seed, epoch, position).

Every epoch pairs up each identity's images at random (an odd one rests) and deals the pairs out in rounds: round r
holds the r-th pair of every identity that has one, in random order, cut into batches. So no identity is twice in a
batch, and every other pair of a batch is a true negative. A round's last pairs that do not fill a batch are dropped;
which identities those are changes with the epoch.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    a: int  # record number
    b: int  # record number
    identity: int


class PairPlan:
    """Endless sequence of pairs; batch s is ``[plan[i] for i in range(s * P, (s + 1) * P)]``. Thread-safe, picklable.

    Args:
        labels: int64 [N], the identity of each record.
        pairs_per_batch: P, over all hosts.
        seed: any non-negative int.
    Attributes:
        eligible: identities with at least two images. single: identities with one image, never drawn.
        steps_per_epoch: full batches per epoch; depends on the counts of images per identity alone.
    Raises:
        ValueError: P is not in 1 … eligible.
    """

    def __init__(self, labels: np.ndarray, pairs_per_batch: int, seed: int):
        self.labels, self.pairs_per_batch, self.seed = labels, pairs_per_batch, seed
        _, counts = np.unique(labels, return_counts=True)
        self.eligible, self.single = int((counts >= 2).sum()), int((counts == 1).sum())
        if not 1 <= pairs_per_batch <= self.eligible:
            raise ValueError(
                f"pairs_per_batch={pairs_per_batch}, but there are {self.eligible} identities with two or more images "
                f"(and {self.single} with one) and none may be twice in a batch; choose 1 … {self.eligible}"
            )
        per_identity = np.bincount(counts // 2)  # [k] = identities with k pairs
        round_sizes = np.cumsum(per_identity[:0:-1])[::-1]  # [r] = identities with more than r pairs
        self.steps_per_epoch = int((round_sizes // pairs_per_batch).sum())
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self):
        return PairPlan, (self.labels, self.pairs_per_batch, self.seed)

    def __getitem__(self, i: int) -> Pair:
        """The pair with global index ``i`` >= 0, counted over all epochs."""
        if i < 0:
            raise IndexError(f"pair {i}: the plan starts at 0")
        epoch, i = divmod(i, self.steps_per_epoch * self.pairs_per_batch)
        with self._lock:  # one thread computes a new epoch, the others wait for it
            if epoch not in self._epochs:
                self._epochs[epoch] = self._plan(epoch)
            self._epochs.move_to_end(epoch)
            while len(self._epochs) > 2:  # two, because prefetching crosses the border
                self._epochs.popitem(last=False)
            first, second = self._epochs[epoch]
        return Pair(int(first[i]), int(second[i]), int(self.labels[first[i]]))

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        # Raw bits and stable sorts: numpy promises these for ever, unlike the streams of Generator.permutation.
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
        order = np.lexsort((bits.random_raw(len(self.labels)), self.labels))  # by identity, shuffled within
        labels = self.labels[order]
        starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
        position = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
        has_partner = np.r_[labels[1:] == labels[:-1], False]
        at = np.flatnonzero((position % 2 == 0) & has_partner)
        rounds = position[at] // 2
        shuffled = np.lexsort((bits.random_raw(len(at)), rounds))
        at, sizes = at[shuffled], np.bincount(rounds)
        rank = np.arange(len(at)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        at = at[rank < np.repeat(sizes // self.pairs_per_batch * self.pairs_per_batch, sizes)]
        return order[at], order[at + 1]
