"""Which conversations make up each row and each step."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from functools import partial

import numpy as np

from fvjax.data.plans import EpochPlan, shuffle_within

GROUPED_STEPS = 50  # of so many steps the rows are sorted by length, if rows of similar length go together


class ConversationPlan(EpochPlan):
    """Every conversation once in an epoch, in random order; the last step is filled up with empty rows.

    All rows of a step have the same length, the smallest of `buckets` that holds the longest of them, so that a
    training step is compiled once for each bucket (and for each number of tiles, a power of two).

    Args:
        tokens, tiles: int [n], of each conversation; no conversation is longer than the last bucket.
        rows_per_step: P, over all hosts.
        buckets: lengths in tokens, ascending.
        by_length: let rows of similar length share a step: rows of 50 steps are sorted, then those steps shuffled.
        packed: put several conversations into a row as long as they fit into the last bucket.
        leave_out: conversations that are not used.
    Raises:
        ValueError: no conversation is left, or one is longer than the last bucket.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        tiles: np.ndarray,
        rows_per_step: int,
        seed: int,
        *,
        buckets: Sequence[int],
        by_length: bool = False,
        packed: bool = False,
        leave_out: Sequence[int] | np.ndarray = (),
    ):
        super().__init__(len(tokens), rows_per_step, seed)
        self.tokens, self.tiles = np.asarray(tokens, np.int64), np.asarray(tiles, np.int64)
        self.buckets, self.by_length, self.packed = tuple(buckets), by_length, packed
        self.leave_out = np.asarray(leave_out, np.int64)
        used = np.setdiff1d(np.arange(len(tokens)), self.leave_out)
        if not len(used):
            raise ValueError("not one conversation to train on: every one is left out")
        if self.tokens[used].max() > self.buckets[-1]:
            worst = used[self.tokens[used].argmax()]
            raise ValueError(f"conversation {worst} has {self.tokens[worst]} tokens, more than {self.buckets[-1]}")
        self._rows = used[:, None]
        if packed:
            packs = pack(self.tokens[used], self.buckets[-1])
            self._rows = np.where(packs >= 0, used[packs], -1)
        taken = self._rows >= 0
        self._row_tokens = np.where(taken, self.tokens[self._rows], 0).sum(1)
        self._row_tiles = np.where(taken, self.tiles[self._rows], 0).sum(1)
        self.steps_per_epoch = -(-len(self._rows) // rows_per_step)

    def __reduce__(self):
        settings = {name: getattr(self, name) for name in ("buckets", "by_length", "packed", "leave_out")}
        return partial(ConversationPlan, **settings), (self.tokens, self.tiles, self.examples_per_step, self.seed)

    @property
    def rows(self) -> int:
        """Rows of an epoch, without the empty ones at its end."""
        return len(self._rows)

    def padding(self, epoch: int = 0) -> float:
        """Return the share of an epoch's tokens that are padding."""
        return float(1 - self._row_tokens.sum() / self._epoch(epoch)["length"].sum())

    def epoch_columns(self, bits: np.random.PCG64) -> dict[str, np.ndarray]:
        """Return "ids" int64 [P steps, S] (-1: none), and "length" and "tiles" of the step that a row belongs to."""
        order = shuffle_within(np.zeros(self.rows, int), bits)
        if self.by_length:
            order = self._sort_by_length(order, bits)
        total, per_step = self.steps_per_epoch * self.examples_per_step, self.examples_per_step
        order = np.append(order, np.full(total - len(order), -1))
        empty = order < 0
        ids = np.where(empty[:, None], -1, self._rows[order])
        longest = np.where(empty, 0, self._row_tokens[order]).reshape(-1, per_step).max(1)
        most = np.where(empty, 0, self._row_tiles[order]).reshape(-1, per_step).max(1)
        length = np.asarray(self.buckets)[np.searchsorted(self.buckets, longest)]
        tiles = 1 << np.ceil(np.log2(np.maximum(most, 1))).astype(np.int64)
        return {"ids": ids, "length": np.repeat(length, per_step), "tiles": np.repeat(tiles, per_step)}

    def _sort_by_length(self, order: np.ndarray, bits: np.random.PCG64) -> np.ndarray:
        """Sort the rows of each group of steps by length, and shuffle the full steps of a group."""
        size = GROUPED_STEPS * self.examples_per_step
        group = np.arange(len(order)) // size
        order = order[np.lexsort((self._row_tokens[order], group))]
        full = len(order) // self.examples_per_step
        steps = shuffle_within(np.arange(full) // GROUPED_STEPS, bits)
        whole = order[: full * self.examples_per_step].reshape(full, self.examples_per_step)[steps].reshape(-1)
        return np.append(whole, order[full * self.examples_per_step :])


def pack(tokens: np.ndarray, capacity: int) -> np.ndarray:
    """Put conversations together into rows of at most `capacity` tokens, the longest first into the fullest row.

    This is best-fit decreasing: every conversation goes where the least room is left over. It depends on the lengths
    alone, so the number of rows is the same in every epoch.

    Args:
        tokens: int [n], each at most `capacity`.
    Returns:
        int64 [rows, S], conversations in each row, filled up with -1.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens that still fit, row), sorted
    for i in np.argsort(-tokens, kind="stable"):
        need = int(tokens[i])
        at = bisect.bisect_left(room, (need, -1))
        if at < len(room):
            left, row = room.pop(at)
        else:
            left, row = capacity, len(rows)
            rows.append([])
        rows[row].append(int(i))
        bisect.insort(room, (left - need, row))
    widest = max(map(len, rows), default=1)
    return np.array([row + [-1] * (widest - len(row)) for row in rows], np.int64).reshape(-1, widest)
