"""Decoded uint8 batches from a store. What a batch holds follows from plan and step, never from workers or hosts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags

from fvjax import errors
from fvjax.data.images import SIZE
from fvjax.data.pairs import Plan
from fvjax.data.stores import Store


def train_batches(
    store: Store,
    plan: Plan,
    *,
    start_step: int,
    num_steps: int,
    rows: np.ndarray | None = None,
    workers: int = 0,
    threads: int = 4,
    prefetch: int = 4,
    decoded: np.ndarray | None = None,
    images: bool = True,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches ``start_step`` … ``start_step + num_steps - 1`` of ``plan``, this host's part of each.

    Args:
        rows: int [p], which of a step's P pairs this host needs; None: all.
        workers: decoding processes (0: this process). threads: decoding threads in each.
        prefetch: batches kept ready in each process.
        decoded: all of the store's faces as :func:`decode_all` gives them; None decodes each when it is needed.
        images: False leaves them out, for somebody who has them by record number.
    Yields:
        images uint8 [p, 2, 112, 112, 3] RGB, labels int32 [p] (see `pairs.Pair`), index int64 [p] (global pair
        index, the number to derive random keys from), ids int64 [p, 2] (record numbers).
    Raises:
        ValueError: the plan is not of this store, there is no such row, or an image is broken (named).
        errors.WorkerLost: a decoding process was killed.
    """
    total = plan.pairs_per_batch
    if len(plan.labels) != len(store):
        raise ValueError(f"the plan is over {len(plan.labels)} images, {store.path} has {len(store)}")
    rows = np.arange(total) if rows is None else rows
    if not ((rows >= 0) & (rows < total)).all():
        raise ValueError(f"rows {rows.min()} to {rows.max()} of a batch that has {total} pairs")
    if start_step < 0 or num_steps < 0:
        raise ValueError(f"start_step={start_step} and num_steps={num_steps} must not be negative")

    def load(step: int) -> dict[str, Any]:
        index = step * total + rows
        pairs = [plan[int(i)] for i in index]
        ids = np.array([(a, b) for a, b, _ in pairs], np.int64)
        out: dict[str, Any] = {
            "labels": np.array([label for *_, label in pairs], np.int32),
            "index": index,
            "ids": ids,
        }
        if images:
            faces = store.images(ids.reshape(-1)) if decoded is None else decoded[ids]
            out["images"] = faces.reshape(-1, 2, SIZE, SIZE, 3)
        return out

    # Grain's elements are whole batches, which threads and workers take in turn: the same sequence for any number.
    batches = grain.MapDataset.source(range(start_step, start_step + num_steps)).map(load)
    return _watched(_read(batches, workers, threads, prefetch))


def decode_all(store: Store, *, threads: int, track: Callable[[Iterable, int], Iterable]) -> np.ndarray:
    """All faces of a store, uint8 [N, 112, 112, 3] RGB: 37,632 bytes each.

    Args:
        threads: decoding threads. track: wraps the batches, given how many there are, to show progress.
    Raises:
        ValueError: a broken image (named), or not so much memory.
    """
    needed = len(store) * SIZE * SIZE * 3
    free = available_memory()
    if needed > free:
        raise ValueError(
            f"{store.path}: {len(store):,} decoded faces need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are "
            "free; set config.data.cache=none"
        )
    out, done = np.empty((len(store), SIZE, SIZE, 3), np.uint8), 0
    for faces, count in track(eval_batches(store, np.arange(len(store)), 256, threads=threads), -(-len(store) // 256)):
        out[done : done + count] = faces[:count]
        done += count
    return out


def available_memory() -> float:
    """Bytes that can be had without swapping; infinity where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return next((1024 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), math.inf)


def eval_batches(
    store: Store, indices: Sequence[int] | np.ndarray, batch_size: int, *, threads: int = 4
) -> Iterator[tuple[np.ndarray, int]]:
    """Records ``indices`` in order as (uint8 [batch_size, 112, 112, 3], how many of them count).

    The last batch is filled up by repeating its last face, so that a compiled function sees one shape.
    """
    n = len(indices)
    padded = np.append(indices, np.repeat(indices[-1:], -n % batch_size)).astype(np.int64)
    batches = grain.MapDataset.source(list(padded.reshape(-1, batch_size))).map(store.images)
    for i, faces in enumerate(_read(batches, 0, threads, threads)):
        yield faces, min(batch_size, n - i * batch_size)


def _watched(batches: Iterable) -> Iterator:
    try:
        yield from batches
    except RuntimeError as error:
        if code := re.search(r"Worker process was terminated unexpectedly with exit code (-?\d+)", str(error)):
            told = f"a data worker ended with {code[1]} (-9: killed, often for lack of memory; config.data.workers)"
            raise errors.WorkerLost(told) from None
        raise


def _read(batches: grain.MapDataset, workers: int, threads: int, prefetch: int) -> grain.IterDataset:
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, prefetch))
    dataset = batches.to_iter_dataset(read_options=options)
    if workers:
        if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, which a caller without absl never parsed
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return dataset
