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
                f"pairs_per_batch={pairs_per_batch}, half of config.batch_size, but there are {self.eligible} "
                f"identities with two or more images (and {self.single} with one) and none may be twice in a batch; "
                f"choose 1 … {self.eligible}"
            )
        # What does not change with the epoch: records by identity, where a pair starts among them, the pairs by round.
        self._order = np.argsort(labels, kind="stable")
        self._identity = np.repeat(np.arange(len(counts)), counts)
        position = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.flatnonzero((position % 2 == 0) & (position + 1 < np.repeat(counts, counts)))
        by_round = np.argsort(position[starts] // 2, kind="stable")
        self._starts = starts[by_round]
        self._round = position[self._starts] // 2
        sizes = np.bincount(self._round)
        rank = np.arange(len(starts)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        self._kept = rank < np.repeat(sizes - sizes % pairs_per_batch, sizes)
        self.steps_per_epoch = int(self._kept.sum()) // pairs_per_batch
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
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
        order = self._order[_shuffle_within(self._identity, bits)]
        at = self._starts[_shuffle_within(self._round, bits)][self._kept]
        return order[at], order[at + 1]


def _shuffle_within(groups: np.ndarray, bits: np.random.PCG64) -> np.ndarray:
    """A permutation that shuffles each group's places; ``groups`` is sorted and below 2**24."""
    # Raw bits and a stable sort: numpy promises these for ever, unlike the stream of Generator.permutation.
    keys = (groups.astype(np.uint64) << np.uint64(40)) | (bits.random_raw(len(groups)) >> np.uint64(24))
    return np.argsort(keys, kind="stable")
