"""What the face verification tasks share: their stores, batches of pairs, and augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fvjax import runtime
from fvjax.config import BenchmarkConfig, DataConfig, SyntheticConfig
from fvjax.console import console
from fvjax.data import synthetic
from fvjax.data.images import SIZE
from fvjax.data.pairs import PairsPlan
from fvjax.data.stores import Store
from fvjax.models import preprocess
from fvjax.parallel import distributed
from fvjax.tasks.task import Batch, Examples

MANY = 500  # faces that are worth starting processes to draw them


def synthetic_store(config: SyntheticConfig, workdir: Path, split: str) -> Path:
    """Return where the embedded faces of a split lie; the name holds everything that they are drawn with.

    The test set's name begins with the number of training identities, because its people are numbered from there on, so
    that nobody is in both.
    """
    sizes = (config.identities, config.images)
    if split == "test":
        sizes = (config.identities, config.test_identities, config.test_images, config.test_pairs)
    drawn_with = "_".join(str(n) for n in (*sizes, config.difficulty, config.seed))
    return Path(config.dir or workdir) / f"synthetic_{split}_{drawn_with}"


def draw_synthetic(config: SyntheticConfig, workdir: Path) -> None:
    """Draw the embedded faces that do not exist yet. All processes must call it; process 0 draws."""
    test = range(config.identities, config.identities + config.test_identities)
    for split, people, images, pairs in (
        ("train", range(config.identities), config.images, None),
        ("test", test, config.test_images, config.test_pairs),
    ):
        path = synthetic_store(config, workdir, split)
        if jax.process_index() == 0 and not path.exists():
            count = len(people) * images
            console.print(f"Drawing {count:,} synthetic faces ({split})")
            workers = min(runtime.cores(), 8) if count >= MANY else 1
            how: dict[str, Any] = {"difficulty": config.difficulty, "pairs": pairs, "workers": workers}
            synthetic.write(path, people, images, config.seed, split=split, **how)
    distributed.exchange("drawn")


def open_store(data: DataConfig, workdir: Path) -> Store | None:
    """Open the training store; embedded synthetic faces are drawn first if they do not exist yet."""
    if data.synthetic.identities:
        draw_synthetic(data.synthetic, workdir)
        return Store(synthetic_store(data.synthetic, workdir, "train"), "train")
    return Store(data.train, data.split) if data.train else None


def image_size(data: DataConfig, benchmarks: dict[str, BenchmarkConfig]) -> tuple[int, int]:
    """Return the size of the pictures: the training store's, or a benchmark's; that of aligned crops without any."""
    stores = [(data.train, data.split), *((each.store, "test") for each in benchmarks.values())]
    for path, split in stores:
        if path and Path(path).is_dir():
            return Store(path, split).image_size
    return SIZE, SIZE


def check_size(store: Store, size: tuple[int, int]) -> None:
    """Raise ValueError unless a store's images have the size that the model is made for."""
    if store.image_size != size:
        (h, w), (height, width) = store.image_size, size
        raise ValueError(
            f"{store.path}: its images are {h}x{w}, the model's are {height}x{width}; prepare it again at that size"
        )


def pair_examples(store: Store, plan: PairsPlan, single: str) -> Examples:
    """Describe a plan of pairs for the log; `single`: what becomes of identities with one image."""
    people = f"{plan.eligible + plan.single:,} identities ({plan.single:,} with one image, {single})"
    steps = f"{plan.examples_per_step} pairs a step, {plan.steps_per_epoch} steps an epoch"
    return Examples(store, plan, f"{len(store):,} images, {people}; {steps}", identities=store.identities)


def pair_shapes(count: int, size: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a batch of `count` pairs of images."""
    return {
        "images": jax.ShapeDtypeStruct((count, 2, *size, 3), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((count,), jnp.int32),
        "index": jax.ShapeDtypeStruct((count,), jnp.int32),
    }


def face_shapes(count: int, size: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a batch of `count` single images."""
    return pair_shapes(count, size) | {"images": jax.ShapeDtypeStruct((count, 1, *size, 3), jnp.uint8)}


def augment(batch: Batch, seed: int, flip: bool) -> dict[str, jax.Array]:
    """Give every image its own random key and, with `flip`, mirror it with probability 1/2.

    Keys depend on the global number of the image alone, never on the device, host or row that it is on, nor on how the
    batch is split.

    Args:
        batch: images uint8 [P, k, H, W, 3], index int [P], and more.
    Returns:
        the batch with "keys" [P, k].
    """
    images = batch["images"]
    count = images.shape[1]
    numbers = (count * batch["index"][:, None] + jnp.arange(count)).reshape(-1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)
    if flip:
        images = preprocess.flip(images.reshape(-1, *images.shape[2:]), keys).reshape(images.shape)
    return {**batch, "images": images, "keys": keys.reshape(images.shape[:2])}
