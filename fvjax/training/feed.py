"""Training batches on the devices: decoded when they are needed, or gathered from images decoded once (data.cache)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fvjax.config import DataConfig
from fvjax.console import progress
from fvjax.data import pipeline
from fvjax.data.plans import Plan
from fvjax.data.stores import Store
from fvjax.data.stores.store import RecordStore
from fvjax.parallel import sharding


def batches(
    data: DataConfig,
    store: RecordStore,
    plan: Plan,
    mesh: Mesh,
    *,
    start_step: int,
    num_steps: int,
    features: Sequence[str] = (),
    read: pipeline.Read | None = None,
) -> Iterator[dict[str, jax.Array]]:
    """Yield the batches from `start_step` on, split over the mesh; the same ones whatever `data` says about caching.

    Args:
        features, read: what a batch holds, see :func:`fvjax.data.pipeline.train_batches`.

    Yields:
        what :func:`fvjax.data.pipeline.train_batches` yields, as global arrays, without the record numbers. Every
        process reads the rows that its devices hold.
    Raises:
        ValueError: a broken image, or images that do not fit into memory decoded.
    """
    table, decoded = None, None
    if data.cache != "none":
        decoded = pipeline.decode_all(
            cast(Store, store),
            threads=data.threads,
            track=lambda what, n: progress(what, "decoding", n, count=len(store), unit="faces"),
        )
    if data.cache == "device" and decoded is not None:  # whole on each device: a step may need any image
        table, decoded = sharding.whole(decoded, mesh, PartitionSpec()), None
    gather = jax.jit(lambda table, ids: table[ids], out_shardings=NamedSharding(mesh, sharding.BATCH))
    for batch in pipeline.train_batches(
        store,
        plan,
        start_step=start_step,
        num_steps=num_steps,
        rows=sharding.rows_here(plan.examples_per_step, mesh),
        workers=data.workers,
        threads=data.threads,
        prefetch=data.prefetch,
        decoded=decoded,
        images=table is None,
        features=features,
        read=read,
    ):
        if table is None:
            batch.pop("ids", None)
        arrays = sharding.batch(batch, mesh)
        if table is not None:
            arrays["images"] = gather(table, arrays.pop("ids"))
        yield arrays
