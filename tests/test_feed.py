"""Test that the cache of decoded faces does not change the batches."""

import jax
import numpy as np
import pytest

from fvjax.config import base, typed
from fvjax.data import pipeline, synthetic
from fvjax.data.pairs import PairPlan
from fvjax.parallel import sharding
from fvjax.training import feed
from tests.parts import check, pairs_of


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("feed") / "faces", range(8), 4, 0, split="train")


@pytest.mark.parametrize("cache", ["none", "host", "device"])
@pytest.mark.parametrize("devices", [1, 4])
def test_batches_are_the_plans_wherever_the_faces_are(store, cache, devices):
    config, plan = base(), PairPlan(store.labels, 4, seed=3)
    config.data.cache = cache
    mesh = sharding.make_mesh({"data": devices, "fsdp": 1, "tensor": 1}, jax.devices()[:devices])
    got = list(feed.batches(typed(config).data, store, plan, mesh, start_step=3, num_steps=5))
    assert len(got) == 5
    for step, batch in enumerate(got, 3):
        pairs = pairs_of(plan, range(4 * step, 4 * step + 4))
        assert set(batch) == {"images", "labels", "index"}
        assert batch["index"].tolist() == list(range(4 * step, 4 * step + 4))
        assert batch["labels"].tolist() == [label for *_, label in pairs]
        want = np.stack([store.images([a, b]) for a, b, _ in pairs])
        assert np.array_equal(batch["images"], want)
        assert batch["images"].sharding.spec == sharding.BATCH
        assert {shard.data.shape[0] for shard in batch["images"].addressable_shards} == {4 // devices}


def test_more_faces_than_memory_are_refused(store, monkeypatch):
    assert 2**20 < pipeline.available_memory() < 2**50
    monkeypatch.setattr(pipeline, "available_memory", lambda: 2.0**20)
    with pytest.raises(
        ValueError, match=r"faces: 32 decoded images need 0\.0 GiB, 0\.0 GiB are free; set config.data.cache"
    ):
        pipeline.decode_all(store, threads=1, track=lambda what, n: what)


def test_a_cache_goes_without_workers():
    config = base()
    config.data.cache, config.data.workers = "host", 2
    with pytest.raises(ValueError, match=r"config.data.cache='host' leaves data.workers no decoding"):
        check(config)
