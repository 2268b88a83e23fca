"""Which two images are trained on when: plans whose examples are pairs.

:class:`PairPlan`, for contrastive losses: every epoch pairs up each identity's images at random (an odd one is left
out) and deals the pairs out in rounds: round r holds the r-th pair of every identity that has one, in random order, cut
into batches. So no identity is twice in a batch, and every other pair of a batch is a true negative. A round's last
pairs that do not fill a batch are dropped; which identities those are changes with the epoch.

:class:`GenuineImpostorPlan`, for pairwise answers: every epoch draws half genuine and half impostor pairs anew.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from fvjax.data.plans import EpochPlan, shuffle_within
from fvjax.data.stores import Pairs


class PairsPlan(EpochPlan):
    """A plan of pairs, see :class:`fvjax.data.plans.Plan`: "ids" int64 [p, 2] and "labels" int32 [p].

    Attributes:
        labels: int64 [N], the identity of each record.
        eligible: identities with at least two images. single: identities with one image.
    """

    def __init__(self, labels: np.ndarray, pairs_per_batch: int, seed: int):
        super().__init__(len(labels), pairs_per_batch, seed)
        self.labels = labels
        _, self._counts = np.unique(labels, return_counts=True)
        self.eligible, self.single = int((self._counts >= 2).sum()), int((self._counts == 1).sum())
        # These do not change with the epoch: the records sorted by identity, and the number of each one's identity.
        self._order = np.argsort(labels, kind="stable")
        self._identity = np.repeat(np.arange(len(self._counts)), self._counts)

    def epoch_columns(self, bits: np.random.PCG64) -> dict[str, np.ndarray]:
        first, second, label = self.epoch_pairs(bits)
        return {"ids": np.stack([first, second], axis=1), "labels": label.astype(np.int32)}

    @abstractmethod
    def epoch_pairs(self, bits: np.random.PCG64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return an epoch's (first record, second record, label), each [steps_per_epoch * P]."""


class PairPlan(PairsPlan):
    """Genuine pairs, each identity at most once in a batch; the label is the identity.

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
        # These do not change either: where a pair starts among the records sorted by identity, and the pairs by round.
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
        return PairPlan, (self.labels, self.examples_per_step, self.seed)

    def epoch_pairs(self, bits: np.random.PCG64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        order = self._order[shuffle_within(self._identity, bits)]
        at = self._starts[shuffle_within(self._round, bits)][self._kept]
        first, second = order[at], order[at + 1]
        return first, second, self.labels[first]


class GenuineImpostorPlan(PairsPlan):
    """Genuine and impostor pairs (label 1, 0), half of each in every epoch, in random order.

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
        return GenuineImpostorPlan, (self.labels, self.examples_per_step, self.pairs_per_epoch, self.seed)

    def epoch_pairs(self, bits: np.random.PCG64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n = self.steps_per_epoch * self.examples_per_step
        counts, starts = self._counts, np.cumsum(self._counts) - self._counts
        images = self._order[shuffle_within(self._identity, bits)]  # each identity's in random order

        owner, turn = _take_turns(counts * (counts - 1) // 2, n // 2, bits)
        i, j = _match(turn, counts[owner])
        genuine = images[starts[owner] + i], images[starts[owner] + j]

        people = shuffle_within(np.zeros(len(counts), int), bits)
        size = n - n // 2
        couples = np.arange(min(size, len(people) * (len(people) - 1) // 2))
        a, b = (people[side] for side in _match(couples, np.full(len(couples), len(people))))
        some = (bits.random_raw(len(couples)) >> np.uint64(1)).astype(np.int64)  # which of their image pairs is first
        couple, turn = _take_turns(counts[a] * counts[b], size, bits)
        a, b, some = a[couple], b[couple], some[couple]
        i, j = np.divmod((some % (counts[a] * counts[b]) + turn) % (counts[a] * counts[b]), counts[b])
        impostor = images[starts[a] + i], images[starts[b] + j]

        order = shuffle_within(np.zeros(n, int), bits)
        label = np.repeat([1, 0], [n // 2, size])
        first, second = (np.concatenate(sides) for sides in zip(genuine, impostor))
        return first[order], second[order], label[order]


def validation(labels: np.ndarray, count: int, seed: int, folds: int = 10) -> Pairs:
    """Draw pairs to validate on, as :class:`GenuineImpostorPlan` does; every fold has equally many of both kinds.

    count: a multiple of 2 * folds. Raises ValueError as the plan does.
    """
    plan = GenuineImpostorPlan(labels, count, count, seed)
    columns = plan.examples(np.arange(count))
    (a, b), same = columns["ids"].T, columns["labels"]
    fold = np.empty(count, np.int64)
    for kind in (0, 1):
        fold[same == kind] = np.arange(count // 2) * folds // (count // 2)
    order = np.argsort(fold, kind="stable")
    a, b = a[order], b[order]
    return Pairs(a, b, same[order].astype(bool), fold[order], labels[a], labels[b])


def _take_turns(capacity: np.ndarray, n: int, bits: np.random.PCG64) -> tuple[np.ndarray, np.ndarray]:
    """Deal ``n`` turns out evenly.

    Nobody gets more turns than its capacity before everybody has reached theirs; then all start again. Nobody is two
    turns ahead of another that has turns left. Who gets the last turns is random.

    Returns:
        ``owner`` int64 [n]: which identity takes the turn; ``turn`` int64 [n]: how many turns it has had before.
    """
    rounds, n = divmod(n, int(capacity.sum()))
    low, high = 0, int(capacity.max())  # bisection for the most turns that everybody with that capacity can have
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(capacity, middle).sum() <= n else (low, middle - 1)
    turns = np.minimum(capacity, low)
    waiting = np.flatnonzero(capacity > low)
    drawn = waiting[shuffle_within(np.zeros(len(waiting), int), bits)][: n - turns.sum()]
    turns[drawn] += 1
    turns += rounds * capacity
    return np.repeat(np.arange(len(turns)), turns), np.arange(turns.sum()) - np.repeat(np.cumsum(turns) - turns, turns)


def _match(k: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pair number ``k`` of the size * (size - 1) / 2 pairs of 0 … size - 1, starting again after the last.

    The order is that of a round-robin tournament by the circle method, so every size // 2 consecutive pairs (counted
    from the first) are disjoint.
    """
    around = (size - 1) | 1
    day, table = np.divmod(k, np.maximum(size // 2, 1))
    i, j = (day + table + 1) % around, (day - table - 1) % around
    against_the_fixed = 2 * (table + 1) > around  # size is even, the last table: one player does not move
    return np.where(against_the_fixed, day % around, i), np.where(against_the_fixed, around, j)
