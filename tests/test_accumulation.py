"""Test GradCache: any number of chunks gives the result of one batch, on any number of devices and with drop-path."""

import functools
import re
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax import trees
from fvjax.config import base
from fvjax.losses import accumulation, contrastive
from fvjax.models import encoder as encoders
from fvjax.models import lora
from fvjax.parallel import sharding
from fvjax.training import optimizer
from fvjax.training.state import Learner
from fvjax.training.step import Recipe, gradients, train_step
from tests.parts import state_with, task_of

N = 32  # faces, so that each of 8 devices has one in each of 4 chunks
TOWER = {"image_size": 28, "patch_size": 14, "width": 16, "depth": 3, "heads": 2, "mlp_dim": 32, "drop_path": 0.4}
ENCODER = encoders.build("vision_transformer", TOWER, "mean")
PARAMS = ENCODER.init(jax.random.key(0))["params"]


def loss(embeddings):
    return contrastive.loss(embeddings, jnp.arange(N // 2), 0.07)


def embed(trainable, faces, keys, train=True):
    adapters = trees.unflatten(lora.scaled(trainable, 2.0))
    return ENCODER({"params": PARAMS, "lora": adapters}, faces, train=train, keys=keys)[0]


def one_batch(trainable, faces, keys):
    return jax.value_and_grad(lambda t: loss(embed(t, faces, keys)))(trainable)


def chunked(chunks, trainable, faces, keys):
    return cached(embed, loss, trainable, faces, keys, chunks)


def cached(embed, loss, trainable, faces, keys, chunks, stats=MappingProxyType({})):
    """Return (loss, gradients) of a loss over the whole batch, computed in the given number of chunks."""
    objective = accumulation.WholeBatch(
        lambda trainable, inputs: (embed(trainable, *inputs), {}), lambda embeddings, _: loss(embeddings)
    )
    value, _, grads = objective.gradients(lambda trainable: trainable, trainable, (faces, keys), stats, chunks)
    return value, grads


@pytest.fixture(scope="module")
def inputs():
    """Return adapters (none of which is zero), faces and keys."""
    adapters = lora.init(trees.flatten(PARAMS), ("blocks/.*",), 4, 12, jax.random.key(1))
    adapters = {n: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape) for n, x in adapters.items()}
    faces = np.random.default_rng(0).integers(0, 256, (N, 112, 112, 3), np.uint8)
    return adapters, jnp.asarray(faces), jax.random.split(jax.random.key(3), N)


def on(devices: int, inputs):
    """Return the same inputs, with faces and keys split over this number of devices."""
    mesh = sharding.make_mesh(base().mesh, jax.devices()[:devices])
    place = functools.partial(jax.device_put, device=jax.sharding.NamedSharding(mesh, sharding.BATCH))
    adapters, faces, keys = inputs
    return jax.device_put(adapters, sharding.replicated(mesh)), place(faces), place(keys)


@pytest.fixture(scope="module")
def whole(inputs):
    """Return loss and gradients of the batch as a whole, with which all divisions are compared."""
    return jax.jit(one_batch)(*inputs)


FEWER_CHUNKS_ON_EIGHT = [pytest.param(chunks, 8, marks=pytest.mark.slow) for chunks in (1, 2)]


@pytest.mark.parametrize(("chunks", "devices"), [(1, 1), (2, 1), (4, 1), (4, 8), *FEWER_CHUNKS_ON_EIGHT])
def test_chunks_equal_one_batch(inputs, whole, chunks, devices):
    value, grads = whole
    got, got_grads = jax.jit(functools.partial(chunked, chunks))(*on(devices, inputs))
    assert float(got) == pytest.approx(float(value), rel=1e-6)
    assert got_grads.keys() == grads.keys()
    for name, g in grads.items():
        distance = np.linalg.norm(got_grads[name] - g) / np.linalg.norm(g)
        assert distance <= 1e-5, f"{name}: {distance:.1e}"
        assert got_grads[name].dtype == jnp.float32


def test_paths_are_dropped_in_these_tests(inputs):
    """The tests of keys detect a wrong key only if some paths are really dropped."""
    adapters, faces, keys = inputs
    run = jax.jit(embed, static_argnums=3)
    dropped, other = run(adapters, faces, keys), run(adapters, faces, keys[::-1])
    kept = run(adapters, faces, keys, False)
    assert (np.abs(dropped - kept).max(axis=1) > 1e-3).mean() > 0.5
    assert abs(loss(dropped) - loss(other)) > 1e-3


def test_half_precision_gradients_are_summed_in_float32():
    """In bfloat16, 256 + 1 would be 256."""
    faces, keys = jnp.ones((8, 1), jnp.bfloat16).at[0].set(256), jax.random.split(jax.random.key(0), 8)
    w = {"w": jnp.ones((1, 1), jnp.bfloat16)}
    embed = lambda w, x, _: (x @ w["w"]).astype(jnp.float32)  # noqa: E731
    _, grads = cached(embed, jnp.sum, w, faces, keys, 8)
    assert grads["w"].dtype == jnp.float32
    assert float(grads["w"][0, 0]) == 263


def test_no_face_changes_its_device(inputs):
    compiled = jax.jit(functools.partial(chunked, 4)).lower(*on(8, inputs)).compile().as_text()
    assert "all-reduce" in compiled, "nothing is exchanged at all: is the batch split?"
    moves = r"= \(?u8\[.*? (?:all-gather|all-to-all|collective-permute)[\w-]*\("
    assert not re.findall(moves, compiled)


def test_activations_are_those_of_a_chunk(inputs):
    def memory(chunks):
        program = jax.jit(functools.partial(chunked, chunks)).lower(*on(1, inputs))  # compiled by the test above
        return program.compile().memory_analysis().temp_size_in_bytes

    assert memory(4) < 0.5 * memory(1)


def test_rows_come_back_in_order():
    x = jnp.arange(24).reshape(12, 2)
    parts = accumulation.split(x, 3)
    assert parts.shape == (3, 4, 2)
    assert parts[1, :, 0].tolist() == [2, 8, 14, 20]
    np.testing.assert_array_equal(accumulation.join(parts), x)


def test_what_cannot_be_chunked_is_refused(inputs):
    stats = {"batch_stats": {"bn": {"mean": jnp.zeros(3)}}}
    with pytest.raises(ValueError, match="2 chunks: a model with batch norm must see the whole batch"):
        cached(embed, loss, *inputs, 2, stats)
    whole = functools.partial(cached, embed, loss, chunks=1, stats=stats)
    assert jax.eval_shape(whole, *inputs)[0].shape == ()
    for chunks in (3, 0):
        with pytest.raises(ValueError, match=f"a batch of 32 rows does not divide into {chunks} chunks"):
            chunked(chunks, *inputs)


@pytest.fixture(scope="module")
def linear():
    """Return recipe, trained parameters and a batch of 8 pairs for a model that multiplies some pixels by a matrix."""

    def encoder(variables, faces, **_):
        return faces.reshape(len(faces), -1)[:, ::4001].astype(jnp.float32) @ variables["params"]["w"] / 255, {}

    config = base()
    config.batch_size, config.data.flip = 16, False
    width = len(range(0, 112 * 112 * 3, 4001))
    trainable = {"params": {"w": jax.random.normal(jax.random.key(0), (width, 4))}}
    mesh = sharding.one_device()
    model = SimpleNamespace(encoder=encoder, variables=lambda trainable, stats, frozen: trainable, mesh=mesh)
    images = jax.random.randint(jax.random.key(1), (8, 2, 112, 112, 3), 0, 256).astype(jnp.uint8)
    recipe = Recipe(model, task_of(config), None)  # type: ignore[arg-type]
    return recipe, trainable, {"images": images, "labels": jnp.arange(8), "index": jnp.arange(8)}


def compiled(function, recipe: Recipe):
    return jax.jit(functools.partial(function, recipe))


def test_what_a_step_says_of_its_gradient_is_before_clipping_and_the_rate(linear):
    recipe, trainable, batch = linear
    loss, _, gradient = compiled(gradients, recipe)(state_with(trainable), {}, batch)
    norm = float(jnp.linalg.norm(gradient["params"]["w"]))
    config = base().optimizer
    config.update({"clip": norm / 4, "lr": 0.5, "weight_decay": 0.0})
    tx = optimizer.make(config, {"params/w": "all"}, lambda step: 0.5)
    recipe = replace(recipe, learner=Learner(tx, lambda step: 0.125 * step))
    state = state_with(trainable, opt=tx.init(trainable), step=6)
    new, values = compiled(train_step, recipe)(state, {}, batch)
    assert float(values["loss"]) == pytest.approx(float(loss), rel=1e-6)
    assert float(values["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    assert (float(values["lr"]), int(new.step)) == (0.75, 7), "the rate of the step that was done"
    moved = trainable["params"]["w"] - new.trainable["params"]["w"]
    np.testing.assert_allclose(moved, 0.5 * gradient["params"]["w"] / 4, rtol=1e-4, atol=1e-9)


def test_the_last_part_alone_is_divided_by_the_number_of_parts(linear):
    """Test compat.last_micro_batch, which imitates the reference. test_gradients.py has the reference's loop (slow)."""
    recipe, trainable, batch = linear
    last = jax.tree.map(lambda x: accumulation.split(x, 4)[-1], batch)
    loss, _, alone = compiled(gradients, recipe)(state_with(trainable), {}, last)
    parts = replace(recipe, parts=4, last_part_only=True)
    got_loss, _, got = compiled(gradients, parts)(state_with(trainable), {}, batch)
    assert float(got_loss) == pytest.approx(float(loss), rel=1e-6)
    np.testing.assert_allclose(got["params"]["w"], alone["params"]["w"] / 4, rtol=1e-5)
