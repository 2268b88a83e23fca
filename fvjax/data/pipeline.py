"""Decoded uint8 batches from a store. What a batch holds follows from plan and step, never from workers or hosts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import grain
import numpy as np
from absl import flags

from fvjax import errors
from fvjax.data.plans import Plan
from fvjax.data.stores import Store
from fvjax.data.stores.store import RecordStore

Read = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def train_batches(
    store: RecordStore,
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
    features: Sequence[str] = (),
    read: Read | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches ``start_step`` … ``start_step + num_steps - 1`` of ``plan``, this host's part of each.

    Args:
        rows: int [p], which of a step's P examples this host needs; None: all.
        workers: decoding processes (0: this process). threads: decoding threads in each.
        prefetch: batches kept ready in each process.
        decoded: all of the store's images as :func:`decode_all` gives them; None decodes each when it is needed.
        images: False leaves them out, for a caller that has them by record number.
        features: further arrays of the store's records that a batch holds under their names.
        read: instead, a picklable function from the plan's columns of this host's examples to all arrays of a batch.
    Yields:
        the plan's columns ("ids" int64 [p, …], record numbers, and what else it has), "index" int64 [p] (the global
        number of each example, to derive random keys from), "images" uint8 [p, …, H, W, 3] RGB in the shape of the
        ids, and the features likewise. With `read`: what it returns and "index".
    Raises:
        ValueError: the plan is not of this store, there is no such row, or a record is broken (named).
        errors.WorkerLost: a decoding process was killed.
    """
    total = plan.examples_per_step
    if plan.records != len(store):
        raise ValueError(f"the plan is over {plan.records} images, {store.path} has {len(store)}")
    rows = np.arange(total) if rows is None else rows
    if not ((rows >= 0) & (rows < total)).all():
        raise ValueError(f"rows {rows.min()} to {rows.max()} of a batch that has {total} examples")
    if start_step < 0 or num_steps < 0:
        raise ValueError(f"start_step={start_step} and num_steps={num_steps} must not be negative")

    read = read or partial(read_faces, cast(Store, store), decoded, images, tuple(features))

    def load(step: int) -> dict[str, np.ndarray]:
        index = step * total + rows
        return {**read(plan.examples(index)), "index": index}

    # Grain's elements are whole batches, which threads and workers take in turn: the same sequence for any number.
    batches = grain.MapDataset.source(range(start_step, start_step + num_steps)).map(load)
    return _watched(_read(batches, workers, threads, prefetch))


def read_faces(
    store: Store, decoded: np.ndarray | None, images: bool, features: Sequence[str], columns: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the arrays of some examples that a face store has: the plan's columns, images and further features."""
    ids = columns["ids"]
    out = dict(columns)
    if images:
        flat = store.images(ids.reshape(-1)) if decoded is None else decoded[ids.reshape(-1)]
        out["images"] = flat.reshape(*ids.shape, *flat.shape[1:])
    for name, values in store.read(ids.reshape(-1), features).items():
        out[name] = values.reshape(*ids.shape, *values.shape[1:])
    return out


def decode_all(store: Store, *, threads: int, track: Callable[[Iterable, int], Iterable]) -> np.ndarray:
    """Decode all images of a store: uint8 [N, H, W, 3] RGB.

    Args:
        threads: decoding threads. track: wraps the iteration over batches, of which it gets the number, to show
            progress.
    Raises:
        ValueError: a broken image (named), or too little memory.
    """
    shape = (len(store), *store.image_size, 3)
    needed = math.prod(shape)
    free = available_memory()
    if needed > free:
        raise ValueError(
            f"{store.path}: {len(store):,} decoded images need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are "
            "free; set config.data.cache=none"
        )
    out = np.empty(shape, np.uint8)
    batches = eval_batches(store, np.arange(len(store)), 256, threads=threads)
    done = 0
    for images, count in track(batches, -(-len(store) // 256)):
        out[done : done + count] = images[:count]
        done += count
    return out


def available_memory() -> float:
    """Return the bytes that can be allocated without swapping; infinity if the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return next((1024 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), math.inf)


def eval_batches(
    store: Store, indices: Sequence[int] | np.ndarray, batch_size: int, *, threads: int = 4
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the records ``indices`` in order as (uint8 [batch_size, H, W, 3], how many of them count).

    The last batch is filled up by repeating its last image, so that a compiled function sees one shape.
    """
    n = len(indices)
    padded = np.append(indices, np.repeat(indices[-1:], -n % batch_size)).astype(np.int64)
    batches = grain.MapDataset.source(list(padded.reshape(-1, batch_size))).map(store.images)
    for i, images in enumerate(_read(batches, 0, threads, threads)):
        yield images, min(batch_size, n - i * batch_size)


def _watched(batches: Iterable) -> Iterator:
    try:
        yield from batches
    except RuntimeError as error:
        if code := re.search(r"Worker process was terminated unexpectedly with exit code (-?\d+)", str(error)):
            reason = f"a data worker ended with {code[1]} (-9: killed, often for lack of memory; config.data.workers)"
            raise errors.WorkerLost(reason) from None
        raise


def _read(batches: grain.MapDataset, workers: int, threads: int, prefetch: int) -> grain.IterDataset:
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, prefetch))
    dataset = batches.to_iter_dataset(read_options=options)
    if workers:
        if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, which a caller without absl never parsed
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return dataset
