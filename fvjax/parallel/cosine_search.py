"""Exact search for the most similar rows by cosine: a block of the gallery at a time, divided over all devices."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.typing import NDArray

ENTRIES, PROBES = 1 << 15, 1 << 8  # rows of a block over all devices; its scores take 32 MB


class Nearest(NamedTuple):
    """What the search found for each of P probes among N entries."""

    index: NDArray  # int64 [P, k], the most similar entries, k = min(top, N); of equal ones the first comes first
    score: NDArray  # float32 [P, k], their cosines, falling
    mate: NDArray  # float32 [P], the highest score of an entry of the probe's person; -inf if there is none
    rank: NDArray  # int64 [P], 1 + the entries of other people with at least that score; 0 if there is none


class _Blocks:
    """The gallery in blocks [devices, rows, D], and whose the rows are; the last block is filled up with zeros."""

    def __init__(self, gallery: NDArray, people: NDArray, top: int):
        self.gallery, self.people = gallery, people
        devices = jax.devices()
        per_device = -(-min(len(gallery), ENTRIES) // len(devices))
        self.shape = len(devices), max(1 << (per_device - 1).bit_length(), top)
        mesh = jax.make_mesh((len(devices),), ("devices",), axis_types=(AxisType.Auto,), devices=devices)
        self._sharding = NamedSharding(mesh, PartitionSpec("devices"))

    def __iter__(self) -> Iterator[tuple[int, int, jax.Array, jax.Array]]:
        """Yield (number of the first entry, how many entries count, entries, whose they are)."""
        size = self.shape[0] * self.shape[1]
        for start in range(0, len(self.gallery), size):
            rows = self.gallery[start : start + size]
            fill = size - len(rows)
            entries = np.pad(rows, ((0, fill), (0, 0))).reshape(*self.shape, -1)
            people = np.pad(self.people[start : start + size], (0, fill)).reshape(self.shape)
            placed = jax.device_put((entries, people.astype(np.int32)), self._sharding)
            yield start, len(rows), *placed


def nearest(probes: NDArray, gallery: NDArray, probe_people: NDArray, gallery_people: NDArray, *, top: int) -> Nearest:
    """Find the `top` most similar entries of each probe, and how its own person ranks.

    The memory that it takes beside its arguments and its result is that of a few blocks. Ranks come from a second pass,
    whose scores are those of the first as long as the devices compute equal programs equally.

    Args:
        probes, gallery: float32 [P, D] and [N, D], rows of length 1, none of them empty.
        probe_people, gallery_people: int [P] and [N], numbers of people from 0.
    """
    top = min(top, len(gallery))
    blocks = _Blocks(gallery, gallery_people, top)
    index, score = np.zeros((len(probes), 0), np.int64), np.zeros((len(probes), 0), np.float32)
    mate = np.full(len(probes), -np.inf, np.float32)
    for start, count, entries, people in blocks:
        parts = [_best(p, entries, people, count, who, top=top) for p, who in _probe_blocks(probes, probe_people)]
        values, positions, own = (_joined(column, len(probes)) for column in zip(*parts))
        index, score = _merged(index, score, positions + start, values, top)
        mate = np.maximum(mate, own.max(axis=1))
    rank = np.isfinite(mate).astype(np.int64)
    for _, count, entries, people in blocks if rank.any() else ():
        limits = _probe_blocks(mate[:, None], probe_people)
        parts = [
            _others_above(p, entries, people, count, who, limit[:, 0])
            for (p, who), (limit, _) in zip(_probe_blocks(probes, probe_people), limits)
        ]
        rank += np.where(rank > 0, _joined(parts, len(probes)).sum(axis=1), 0)
    return Nearest(index, score, mate, rank)


def _scores(probes: jax.Array, entries: jax.Array, count: jax.Array) -> jax.Array:
    """Return the cosines [devices, p, rows]; those of rows that fill a block up are -inf."""
    scores = jnp.einsum("pd,sgd->spg", probes, entries, precision=jax.lax.Precision.HIGHEST)
    numbers = jnp.arange(entries.shape[0] * entries.shape[1]).reshape(entries.shape[0], 1, -1)
    return jnp.where(numbers < count, scores, -jnp.inf)


@partial(jax.jit, static_argnames="top")
def _best(
    probes: jax.Array, entries: jax.Array, people: jax.Array, count: jax.Array, probe_people: jax.Array, top: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return each device's best scores and their positions in the block, [p, devices, top]; own best [p, devices]."""
    scores = _scores(probes, entries, count)
    best, index = jax.lax.top_k(scores, top)
    index += entries.shape[1] * jnp.arange(entries.shape[0])[:, None, None]
    own = jnp.where(people[:, None] == probe_people[:, None], scores, -jnp.inf).max(axis=-1)
    return best.swapaxes(0, 1), index.swapaxes(0, 1), own.T


@jax.jit
def _others_above(
    probes: jax.Array,
    entries: jax.Array,
    people: jax.Array,
    count: jax.Array,
    probe_people: jax.Array,
    mate: jax.Array,
) -> jax.Array:
    """Count the entries of other people that score at least `mate` [p]: int [p, devices]."""
    above = _scores(probes, entries, count) >= mate[:, None]
    return (above & (people[:, None] != probe_people[:, None])).sum(axis=-1).T


def _probe_blocks(rows: NDArray, people: NDArray) -> Iterator[tuple[NDArray, NDArray]]:
    """Yield blocks of rows and whose they are, the last one filled up with its first row."""
    size = min(PROBES, 1 << (len(rows) - 1).bit_length())
    for start in range(0, len(rows), size):
        chosen = np.arange(start, start + size)
        chosen[chosen >= len(rows)] = start
        yield rows[chosen], people[chosen].astype(np.int32)


def _joined(parts: tuple | list, count: int) -> NDArray:
    """Join the results of blocks of probes: [count, everything else]."""
    return np.concatenate([np.asarray(part).reshape(len(part), -1) for part in parts])[:count]


def _merged(
    index: NDArray, score: NDArray, new_index: NDArray, new_score: NDArray, top: int
) -> tuple[NDArray, NDArray]:
    """Return the best of two lists of candidates, each [P, …]; of equal scores the lower index comes first."""
    index, score = np.concatenate([index, new_index], axis=1), np.concatenate([score, new_score], axis=1)
    order = np.lexsort((index, -score))[:, :top]
    return np.take_along_axis(index, order, 1), np.take_along_axis(score, order, 1)
