"""Training batches on the devices: decoded when they are needed, or from faces decoded once (config.data.cache)."""

from collections.abc import Iterator

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fvjax import evaluate
from fvjax.config import Config
from fvjax.data import pipeline
from fvjax.data.pairs import Plan
from fvjax.data.stores import Store
from fvjax.parallel import sharding


def batches(
    config: Config, store: Store, plan: Plan, mesh: Mesh, *, start_step: int, num_steps: int
) -> Iterator[dict[str, jax.Array]]:
    """Batches `start_step` … of `plan`, split over the mesh; the same ones whatever `config.data` says about caching.

    Yields:
        images uint8 [P,2,112,112,3], labels int32 [P], index int32 [P], as `train.gradients` takes them.
        Every process reads the rows that its devices hold.
    Raises:
        ValueError: a broken image, or faces that do not fit into memory decoded.
    """
    cache, table, decoded = config.data.cache, None, None
    if cache != "none":
        decoded = pipeline.decode_all(
            store, threads=config.data.threads, track=lambda what, n: evaluate.progress(what, "decoding faces", n)
        )
    if cache == "device" and decoded is not None:  # whole on each device: what a step needs is anywhere in it
        table, decoded = sharding.whole(decoded, mesh, PartitionSpec()), None
    gather = jax.jit(lambda table, ids: table[ids], out_shardings=NamedSharding(mesh, sharding.BATCH))
    keep = ("labels", "index", "images" if table is None else "ids")
    for batch in pipeline.train_batches(
        store,
        plan,
        start_step=start_step,
        num_steps=num_steps,
        rows=sharding.rows_here(plan.pairs_per_batch, mesh),
        workers=config.data.workers,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
        decoded=decoded,
        images=table is None,
    ):
        placed = sharding.batch({key: batch[key] for key in keep}, mesh)
        if table is not None:
            placed["images"] = gather(table, placed.pop("ids"))
        yield placed
