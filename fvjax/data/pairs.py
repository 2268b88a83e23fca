"""Which two images are trained on when: pairs as a pure function of (seed, epoch, position).

:class:`PairPlan`, for contrastive losses: every epoch pairs up each identity's images at random (an odd one rests) and
deals the pairs out in rounds: round r holds the r-th pair of every identity that has one, in random order, cut into
batches. So no identity is twice in a batch, and every other pair of a batch is a true negative. A round's last pairs
that do not fill a batch are dropped; which identities those are changes with the epoch.

:class:`GenuineImpostorPlan`, for pairwise answers: every epoch draws half genuine and half impostor pairs anew.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from fvjax.data.stores import Pairs


class Pair(NamedTuple):
    a: int  # record number
    b: int  # record number
    label: int  # PairPlan: the identity. GenuineImpostorPlan: 1 genuine, 0 impostor


class Plan(ABC):
    """Endless sequence of pairs; batch s is ``[plan[i] for i in range(s * P, (s + 1) * P)]``. Thread-safe, picklable.

    Attributes:
        labels: int64 [N], the identity of each record. pairs_per_batch: P, over all hosts. steps_per_epoch.
        eligible: identities with at least two images. single: identities with one image.
    """

    pairs_per_batch: int
    steps_per_epoch: int

    def __init__(self, labels: np.ndarray, pairs_per_batch: int, seed: int):
        self.labels, self.pairs_per_batch, self.seed = labels, pairs_per_batch, seed
        _, self._counts = np.unique(labels, return_counts=True)
        self.eligible, self.single = int((self._counts >= 2).sum()), int((self._counts == 1).sum())
        # What does not change with the epoch: records by identity, and the number of each one's identity.
        self._order = np.argsort(labels, kind="stable")
        self._identity = np.repeat(np.arange(len(self._counts)), self._counts)
        self._epochs: OrderedDict[int, tuple[np.ndarray, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, i: int) -> Pair:
        """The pair with global index ``i`` >= 0, counted over all epochs."""
        if i < 0:
            raise IndexError(f"pair {i}: the plan starts at 0")
        epoch, i = divmod(i, self.steps_per_epoch * self.pairs_per_batch)
        with self._lock:  # one thread computes a new epoch, the others wait for it
            if epoch not in self._epochs:
                bits = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
                self._epochs[epoch] = self._plan(bits)
            self._epochs.move_to_end(epoch)
            while len(self._epochs) > 2:  # two, because prefetching crosses the border
                self._epochs.popitem(last=False)
            first, second, label = self._epochs[epoch]
        return Pair(int(first[i]), int(second[i]), int(label[i]))

    @abstractmethod
    def _plan(self, bits: np.random.PCG64) -> tuple[np.ndarray, ...]:
        """An epoch's (first record, second record, label), each [steps_per_epoch * P]."""


class PairPlan(Plan):
    """Genuine pairs, each identity at most once in a batch; the label is the identity. See :class:`Plan`.

    Args:
        labels: int64 [N], the identity of each record.
        pairs_per_batch: P, over all hosts.
        seed: any non-negative int.
    Attributes:
        single: identities with one image, never drawn.
        steps_per_epoch: full batches per epoch; depends on the counts of images per identity alone.
    Raises:
        ValueError: P is not in 1 … eligible.
    """

    def __init__(self, labels: np.ndarray, pairs_per_batch: int, seed: int):
        super().__init__(labels, pairs_per_batch, seed)
        counts = self._counts
        if not 1 <= pairs_per_batch <= self.eligible:
            raise ValueError(
                f"pairs_per_batch={pairs_per_batch}, half of config.batch_size, but there are {self.eligible} "
                f"identities with two or more images (and {self.single} with one) and none may be twice in a batch; "
                f"choose 1 … {self.eligible}"
            )
        # Nor do these change: where a pair starts among the records by identity, the pairs by round.
        position = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.flatnonzero((position % 2 == 0) & (position + 1 < np.repeat(counts, counts)))
        by_round = np.argsort(position[starts] // 2, kind="stable")
        self._starts = starts[by_round]
        self._round = position[self._starts] // 2
        sizes = np.bincount(self._round)
        rank = np.arange(len(starts)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        self._kept = rank < np.repeat(sizes - sizes % pairs_per_batch, sizes)
        self.steps_per_epoch = int(self._kept.sum()) // pairs_per_batch

    def __reduce__(self):
        return PairPlan, (self.labels, self.pairs_per_batch, self.seed)

    def _plan(self, bits: np.random.PCG64) -> tuple[np.ndarray, ...]:
        order = self._order[_shuffle_within(self._identity, bits)]
        at = self._starts[_shuffle_within(self._round, bits)][self._kept]
        first, second = order[at], order[at + 1]
        return first, second, self.labels[first]


class GenuineImpostorPlan(Plan):
    """Genuine and impostor pairs (label 1, 0), half of each in every epoch, in random order. See :class:`Plan`.

    An epoch is ``pairs_per_epoch // P`` full batches; what is left over is not drawn, and nothing is lost by that, as
    every epoch draws anew from everything. Of an odd number the odd one is an impostor pair. Within an epoch

    - genuine pairs: identities take turns. An identity has its next turn only after all others that still have an
      unused pair of images, and its images are used evenly. An identity with one image has none.
    - impostor pairs: pairs of identities take turns likewise, so that every identity is in about as many. Identities
      with one image take part.
    - no pair, in either order, comes twice before all pairs of its kind have come once.

    Every epoch relabels identities and images at random, so each of them is drawn equally often in the long run.

    Args:
        labels: int64 [N], the identity of each record.
        pairs_per_batch: P, over all hosts.
        pairs_per_epoch: LLM-FaceVerification's scenario 3 has 100,000.
        seed: any non-negative int.
    Raises:
        ValueError: P is not in 1 … pairs_per_epoch, fewer than two identities, or none with two images.
    """

    def __init__(self, labels: np.ndarray, pairs_per_batch: int, pairs_per_epoch: int, seed: int):
        super().__init__(labels, pairs_per_batch, seed)
        self.pairs_per_epoch = pairs_per_epoch
        if not 1 <= pairs_per_batch <= pairs_per_epoch:
            raise ValueError(
                f"pairs_per_batch={pairs_per_batch}, half of config.batch_size, but an epoch has "
                f"{pairs_per_epoch} pairs; choose 1 … {pairs_per_epoch}"
            )
        if not self.eligible or self.eligible + self.single < 2:
            raise ValueError(
                f"there are {self.eligible} identities with two or more images and {self.single} with one; genuine "
                "pairs need one of the former, impostor pairs any two; train on a store with more"
            )
        self.steps_per_epoch = pairs_per_epoch // pairs_per_batch

    def __reduce__(self):
        return GenuineImpostorPlan, (self.labels, self.pairs_per_batch, self.pairs_per_epoch, self.seed)

    def _plan(self, bits: np.random.PCG64) -> tuple[np.ndarray, ...]:
        n = self.steps_per_epoch * self.pairs_per_batch
        counts, starts = self._counts, np.cumsum(self._counts) - self._counts
        images = self._order[_shuffle_within(self._identity, bits)]  # each identity's in random order

        who, turn = _take_turns(counts * (counts - 1) // 2, n // 2, bits)
        i, j = _match(turn, counts[who])
        genuine = images[starts[who] + i], images[starts[who] + j]

        people = _shuffle_within(np.zeros(len(counts), int), bits)
        size = n - n // 2
        couples = np.arange(min(size, len(people) * (len(people) - 1) // 2))
        a, b = (people[side] for side in _match(couples, np.full(len(couples), len(people))))
        some = (bits.random_raw(len(couples)) >> np.uint64(1)).astype(np.int64)  # which of their image pairs is first
        couple, turn = _take_turns(counts[a] * counts[b], size, bits)
        a, b, some = a[couple], b[couple], some[couple]
        i, j = np.divmod((some % (counts[a] * counts[b]) + turn) % (counts[a] * counts[b]), counts[b])
        impostor = images[starts[a] + i], images[starts[b] + j]

        order = _shuffle_within(np.zeros(n, int), bits)
        label = np.repeat([1, 0], [n // 2, size])
        first, second = (np.concatenate(sides) for sides in zip(genuine, impostor))
        return first[order], second[order], label[order]


def validation(labels: np.ndarray, count: int, seed: int, folds: int = 10) -> Pairs:
    """Pairs to validate on, as :class:`GenuineImpostorPlan` draws them; every fold has as many of both kinds.

    count: a multiple of 2 * folds. Raises ValueError as the plan does.
    """
    plan = GenuineImpostorPlan(labels, count, count, seed)
    a, b, same = (np.array(column) for column in zip(*(plan[i] for i in range(count))))
    fold = np.empty(count, np.int64)
    for kind in (0, 1):
        fold[same == kind] = np.arange(count // 2) * folds // (count // 2)
    order = np.argsort(fold, kind="stable")
    a, b = a[order], b[order]
    return Pairs(a, b, same[order].astype(bool), fold[order], labels[a], labels[b])


def _take_turns(capacity: np.ndarray, n: int, bits: np.random.PCG64) -> tuple[np.ndarray, np.ndarray]:
    """Deal ``n`` turns out evenly: int64 [n] whose it is and int64 [n] its how-manieth (from 0).

    Nobody has more turns than its capacity before all have as many, and then all start again; nobody is two turns
    ahead of another that has turns left. Whose the last turns are is drawn.
    """
    rounds, n = divmod(n, int(capacity.sum()))
    low, high = 0, int(capacity.max())  # the most turns that everybody (with that capacity) can have
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(capacity, middle).sum() <= n else (low, middle - 1)
    turns = np.minimum(capacity, low)
    waiting = np.flatnonzero(capacity > low)
    drawn = waiting[_shuffle_within(np.zeros(len(waiting), int), bits)][: n - turns.sum()]
    turns[drawn] += 1
    turns += rounds * capacity
    return np.repeat(np.arange(len(turns)), turns), np.arange(turns.sum()) - np.repeat(np.cumsum(turns) - turns, turns)


def _match(k: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair number ``k`` of the size * (size - 1) / 2 pairs of 0 … size - 1, counted on from the first after the last.

    A round-robin tournament by the circle method: every size // 2 pairs from the first on are disjoint.
    """
    around = (size - 1) | 1
    day, table = np.divmod(k, np.maximum(size // 2, 1))
    i, j = (day + table + 1) % around, (day - table - 1) % around
    against_the_fixed = 2 * (table + 1) > around  # size is even, the last table: one player does not move
    return np.where(against_the_fixed, day % around, i), np.where(against_the_fixed, around, j)


def _shuffle_within(groups: np.ndarray, bits: np.random.PCG64) -> np.ndarray:
    """A permutation that shuffles each group's places; ``groups`` is sorted and below 2**24."""
    # Raw bits and a stable sort: numpy promises these for ever, unlike the stream of Generator.permutation.
    keys = (groups.astype(np.uint64) << np.uint64(40)) | (bits.random_raw(len(groups)) >> np.uint64(24))
    return np.argsort(keys, kind="stable")
