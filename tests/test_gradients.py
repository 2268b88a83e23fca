"""Test that the gradient does not depend on how a batch is divided, and test the variants of config.compat."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from configs import paper
from fvjax import trees
from fvjax.config import base
from fvjax.losses import accumulation
from fvjax.training import optimizer
from tests.parts import check, model_of
from tests.test_train import host, setup, tiny_resnet, tiny_vit

IDS = (3, 1, 4, 1, 5)


def tiny_pair():
    c = base()
    c.task, c.model.kind = "pair_answer", "vlm"
    c.model.vision_transformer.update(
        {"image_size": 56, "patch_size": 14, "width": 32, "depth": 2, "heads": 2, "mlp_dim": 64, "drop_path": 0.5}
    )
    c.model.decoder.update(
        {"vocab": 64, "width": 32, "depth": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp_dim": 64}
    )
    c.prompt.update({"ids": IDS, "yes_no_ids": (7, 9)})
    c.lora.update(
        {"rank": 4, "alpha": 8.0, "targets": ("vision/blocks/mlp/fc[12]", "decoder/blocks/mlp/.*"), "count": 10}
    )
    c.trainable = (("lora/.*", "adapter"), (".*", "frozen"))
    c.batch_size, c.epochs = 16, 1
    return c


def tiny_siamese():
    c = tiny_pair()
    c.task, c.model.pooling = "contrastive", "last_token"
    c.prompt.yes_no_ids = ()
    return c


def gradient(config, devices=1, **mesh):
    check(config)
    fn, state, frozen, batch, _ = setup(config, jax.devices()[:devices], **(mesh or {"data": devices}))
    if config.task == "pair_answer":
        batch["labels"] = batch["labels"] % 2
    loss, stats, grads = jax.jit(fn)(state, frozen, batch)
    return float(loss), host(stats), host(grads)


@functools.cache
def whole_batch(make):
    """Return the gradient of an unchanged config on one device, with which several tests compare."""
    return gradient(make())


def losses_of(config):
    """Return the function labels -> loss alone, which compiles much faster than with gradients."""
    check(config)
    fn, state, frozen, batch, _ = setup(config, jax.devices()[:1], data=1)
    loss = jax.jit(lambda *given: fn(*given)[0])
    return lambda labels: float(loss(state, frozen, {**batch, "labels": labels}))


def loss_of(config) -> float:
    labels = np.arange(config.batch_size // 2, dtype=np.int32)
    return losses_of(config)(labels % 2 if config.task == "pair_answer" else labels)


def assert_equal(got, expected):
    assert got[0] == pytest.approx(expected[0], rel=1e-6)
    for name, g in expected[2].items():
        distance = np.linalg.norm(got[2][name] - g) / np.linalg.norm(g)
        assert distance <= 1e-5, f"{name}: {distance:.1e}"


@pytest.mark.parametrize(
    ("make", "devices"),
    [(tiny_vit, 1), (tiny_siamese, 2), pytest.param(tiny_pair, 1, marks=pytest.mark.slow), (tiny_pair, 2)],
)
def test_a_batch_in_parts_is_the_whole_batch(make, devices):
    """The test includes drop-path, whose keys depend on the pair and not on its place in the batch."""
    config, whole = make(), whole_batch(make)
    config.accumulation = 4
    assert_equal(gradient(config, devices), whole)
    config.accumulation, config.model.vision_transformer.drop_path = 1, 0.0
    assert abs(loss_of(config) - whole[0]) > 1e-3, "no path was dropped"


@pytest.mark.parametrize("make", [tiny_siamese, pytest.param(tiny_pair, marks=pytest.mark.slow)])
def test_a_base_in_parts_on_all_axes_is_the_whole_base(make):
    """Use the papers' sharding rules; for embeddings, use GradCache as well."""
    config, whole = make(), whole_batch(make)
    config.sharding, config.accumulation = paper.BLOCKS + paper.WORDS + paper.REST, 2
    assert_equal(gradient(config, 8, data=2, fsdp=2, tensor=2), whole)


@pytest.mark.parametrize("make", [tiny_siamese, pytest.param(tiny_pair, marks=pytest.mark.slow)])
def test_devices_share_the_work(make):
    """If every device computed the whole batch, results would be the same, so the test counts each device's work."""

    def arithmetic(devices):
        config = make()
        config.sharding = ((".*", ()),)
        fn, state, frozen, batch, _ = setup(config, jax.devices()[:devices], data=devices)
        return jax.jit(fn).lower(state, frozen, batch).compile().cost_analysis()["flops"]

    assert arithmetic(2) <= 0.52 * arithmetic(1)


def test_yes_and_no_alone():
    config, whole = tiny_pair(), whole_batch(tiny_pair)[0]
    config.loss.pair_loss = "yes_no"
    loss, labels = losses_of(config), np.arange(8, dtype=np.int32) % 2
    two = loss(labels)
    assert two < whole - 1, "two answers instead of 64: log 2 instead of log 64"
    assert abs(loss(1 - labels) - two) > 1e-4


def reference_accumulation(config, parts: int, group: int):
    """Return the result of the reference's loop, which zeroes gradients before each backward pass, with loss / K."""
    fn, state, frozen, batch, groups = setup(config, jax.devices()[:1], data=1)
    micro_batches = accumulation.split(batch, parts)
    gpus = config.batch_size // parts // group
    for k in range(parts):
        micro = jax.tree.map(lambda x, k=k: x[k], micro_batches)
        grads, losses = None, []
        for gpu in range(gpus):  # gradients of GPUs are averaged
            mine = jax.tree.map(lambda x, gpu=gpu: x[gpu * group // 2 : (gpu + 1) * group // 2], micro)
            loss, _, g = fn(state, frozen, mine)
            g = jax.tree.map(lambda x: x / parts / gpus, g)
            grads = g if grads is None else jax.tree.map(np.add, grads, g)
            losses.append(loss)
    tx = optimizer.make(config.optimizer, groups, lambda step: 0.1)
    updates, _ = tx.update(grads, tx.init(state.trainable), state.trainable)
    return float(np.mean(losses)), host(grads), host(updates)


@pytest.mark.slow
def test_compat_accumulates_like_the_reference():
    config = tiny_vit()
    config.optimizer.clip = 1e-3  # below the gradient's norm, as only then its size does not matter
    plain = whole_batch(tiny_vit)
    loss, grads, updates = reference_accumulation(config, parts=2, group=4)
    config.accumulation = 2
    config.compat.update({"last_micro_batch": True, "negatives_group": 4})
    got = gradient(config)
    assert_equal(got, (loss, {}, grads))
    assert optax.global_norm(got[2]) < 0.9 * optax.global_norm(plain[2])
    _, state, _, _, groups = setup(config, jax.devices()[:1], data=1)
    tx = optimizer.make(config.optimizer, groups, lambda step: 0.1)
    tree = trees.unflatten(got[2])
    mine = host(tx.update(tree, tx.init(state.trainable), state.trainable)[0])
    for name, update in updates.items():
        np.testing.assert_allclose(mine[name], update, rtol=1e-4, atol=1e-9, err_msg=name)


def test_compat_negatives_of_one_group():
    config, whole = tiny_vit(), whole_batch(tiny_vit)[0]
    config.compat.negatives_group = 8
    fewer = loss_of(config)
    assert whole - fewer == pytest.approx(np.log(15 / 7), abs=0.2), "7 others instead of 15, all about as similar"
    config.compat.negatives_group = 16
    assert loss_of(config) == pytest.approx(whole, rel=1e-6)


def test_compat_batch_statistics_of_one_group():
    config = tiny_resnet()
    config.model.iresnet.dropout = 0.0
    model = model_of(config)
    encoder, variables = model.encoder, jax.jit(model.init)(jax.random.key(0))
    run = jax.jit(lambda encoder, *given: encoder(*given[:2], train=True, keys=given[2]), static_argnums=0)
    faces = np.random.default_rng(0).integers(0, 256, (12, 112, 112, 3), np.uint8)
    keys = jax.random.split(jax.random.key(1), 12)
    grouped = dataclasses.replace(encoder, norm_group=4)
    got, stats = run(grouped, variables, faces, keys)
    for at in range(0, 12, 4):
        alone, of_group = run(encoder, variables, faces[at : at + 4], keys[at : at + 4])
        np.testing.assert_allclose(got[at : at + 4], alone, rtol=1e-4, atol=1e-5)
        if at == 0:  # the others' running statistics are overwritten by the first GPU's
            for name, leaf in host(of_group).items():
                np.testing.assert_allclose(host(stats)[name], leaf, rtol=1e-4, atol=1e-6, err_msg=name)
    together, _ = run(encoder, variables, faces, keys)
    assert np.abs(got - together).max() > 1e-2
    assert model_of(config).encoder.norm_group == 0
    config.compat.batch_norm_group = 4
    assert model_of(config).encoder.norm_group == 4


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (tiny_vit, {"task": "pair_answer"}, "task=pair_answer: only a model of kind vlm"),
        (tiny_pair, {"model.pooling": "all_mean"}, "model.pooling: pair_answer has none"),
        (tiny_vit, {"eval.pools": ("mean",)}, "eval.pools: only a VLM's"),
        (tiny_siamese, {"eval.pools": ("visual_mean",)}, "model.pooling must be one of them"),
        (tiny_siamese, {"eval.pools": ("last_token", "cls")}, "eval.pools: visual_mean, all_mean, last_token are"),
        (tiny_pair, {"eval.flip_sum": True}, "eval.flip_sum"),
        (tiny_pair, {"prompt.text": "Who?"}, "prompt: give text or ids"),
        (tiny_vit, {"prompt.ids": (1,)}, "prompt: give text or ids"),
        (tiny_siamese, {"prompt.text": "Who?", "prompt.ids": ()}, "prompt: without init_from there is no tokenizer"),
        (tiny_pair, {"prompt.yes_no_ids": ()}, "prompt: without init_from there is no tokenizer"),
        (tiny_vit, {"accumulation": 3}, "its 8 pairs do not divide into config.accumulation=3 parts"),
        (tiny_vit, {"accumulation": 0}, "config.accumulation=0 must be at least 1"),
        (tiny_vit, {"compat.last_micro_batch": True}, "there is one part; set accumulation"),
        (tiny_pair, {"compat.negatives_group": 4}, "pair_answer has no negatives"),
        (tiny_vit, {"compat.batch_norm_group": 4}, "only an iresnet has batch statistics"),
        (tiny_vit, {"compat.negatives_group": 6}, "must be even and divide the 16 images"),
        (tiny_resnet, {"compat.batch_norm_group": 1}, "must be even and divide the 16 images"),
        (tiny_vit, {"init_parts.vision": "x"}, "init_parts: are of a model of kind vlm"),
    ],
)
def test_what_does_not_go_together_is_an_error(make, changes, message):
    config = make()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        check(config)


def test_batch_norm_refuses_parts():
    config = tiny_resnet()
    config.accumulation = 2
    with pytest.raises(ValueError, match="2 chunks: a model with batch norm must see the whole batch"):
        gradient(config)
