"""Which examples are trained on when: pure functions of (seed, step), whatever the number of hosts or workers."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict

import numpy as np


class Plan(ABC):
    """An endless sequence of examples; step s is made of the examples s * P to (s + 1) * P - 1. Thread-safe, picklable.

    Attributes:
        records: how many records the store has that the plan was made for.
        examples_per_step: P, over all hosts.
        steps_per_epoch: full batches in an epoch; must depend on counts alone, never on the seed.
        seed: any non-negative int.
    """

    records: int
    examples_per_step: int
    steps_per_epoch: int
    seed: int

    @abstractmethod
    def examples(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Describe the examples with the global numbers `index`, int [p], counted over all epochs.

        Returns:
            "ids", int64 [p, …]: the record numbers of each example. Further columns [p, …] become part of the batch
            under their names.
        """


class EpochPlan(Plan):
    """A plan that works out one epoch at a time, from a generator seeded with (seed, epoch), and keeps two of them."""

    def __init__(self, records: int, examples_per_step: int, seed: int):
        self.records, self.examples_per_step, self.seed = records, examples_per_step, seed
        self._epochs: OrderedDict[int, dict[str, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def examples(self, index: np.ndarray) -> dict[str, np.ndarray]:
        if len(index) and index.min() < 0:
            raise IndexError(f"example {index.min()}: the plan starts at 0")
        epochs, places = np.divmod(index, self.steps_per_epoch * self.examples_per_step)
        parts = [(epoch, places[epochs == epoch]) for epoch in (np.unique(epochs) if len(index) else (0,))]
        columns = [{name: x[at] for name, x in self._epoch(int(epoch)).items()} for epoch, at in parts]
        if len(columns) == 1:
            return columns[0]
        order = np.argsort(np.argsort(epochs, kind="stable"), kind="stable")
        return {name: np.concatenate([each[name] for each in columns])[order] for name in columns[0]}

    def _epoch(self, epoch: int) -> dict[str, np.ndarray]:
        with self._lock:  # one thread computes a new epoch, the others wait for it
            if epoch not in self._epochs:
                bits = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
                self._epochs[epoch] = self.epoch_columns(bits)
            self._epochs.move_to_end(epoch)
            while len(self._epochs) > 2:  # two, because prefetching crosses the border between epochs
                self._epochs.popitem(last=False)
            return self._epochs[epoch]

    @abstractmethod
    def epoch_columns(self, bits: np.random.PCG64) -> dict[str, np.ndarray]:
        """Return the columns of one epoch's examples, each [steps_per_epoch * P, …]; see :meth:`Plan.examples`."""


class ShufflePlan(EpochPlan):
    """Every record once in an epoch, in random order. The last records that do not fill a batch are left out.

    Which ones those are changes with the epoch. Raises ValueError: P is not in 1 … records.
    """

    def __init__(self, records: int, examples_per_step: int, seed: int):
        super().__init__(records, examples_per_step, seed)
        if not 1 <= examples_per_step <= records:
            raise ValueError(
                f"config.batch_size={examples_per_step}, but the store has {records} records; choose 1 … {records}"
            )
        self.steps_per_epoch = records // examples_per_step

    def __reduce__(self):
        return ShufflePlan, (self.records, self.examples_per_step, self.seed)

    def epoch_columns(self, bits: np.random.PCG64) -> dict[str, np.ndarray]:
        order = shuffle_within(np.zeros(self.records, int), bits)
        return {"ids": order[: self.steps_per_epoch * self.examples_per_step, None]}


class ClassPlan(ShufflePlan):
    """The same with "labels", int32 [p]: the class of each example, for losses that compare with classes.

    labels: int64 [N], the class of each record, numbered from 0.
    """

    def __init__(self, labels: np.ndarray, examples_per_step: int, seed: int):
        super().__init__(len(labels), examples_per_step, seed)
        self.labels = labels

    def __reduce__(self):
        return ClassPlan, (self.labels, self.examples_per_step, self.seed)

    def epoch_columns(self, bits: np.random.PCG64) -> dict[str, np.ndarray]:
        ids = super().epoch_columns(bits)["ids"]
        return {"ids": ids, "labels": self.labels[ids[:, 0]].astype(np.int32)}


def shuffle_within(groups: np.ndarray, bits: np.random.PCG64) -> np.ndarray:
    """Return a permutation that shuffles the places of each group; `groups` is sorted and below 2**24."""
    # Raw bits and a stable sort: numpy promises these for ever, unlike the stream of Generator.permutation.
    keys = (groups.astype(np.uint64) << np.uint64(40)) | (bits.random_raw(len(groups)) >> np.uint64(24))
    return np.argsort(keys, kind="stable")
