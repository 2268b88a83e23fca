"""Test the optimizer against numpy, for every key of config.optimizer, and the rate at the edges of an epoch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fvjax import trees
from fvjax.config import OptimizerConfig
from fvjax.parallel import sharding
from fvjax.training import optimizer
from fvjax.training.model import shardings_of_state

BASE = {"name": "sgd", "lr": 0.1, "warmup_epochs": 2, "clip": 1e9, "weight_decay": 0.0, "momentum": 0.0}
ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "lr_scale": {}}


def settings(**changes):
    return OptimizerConfig(**(BASE | ADAM | changes))


def updates(config, gradients, w=2.0, rate=lambda step: 0.1, name="w", group="all"):
    """Return the updates of one weight over several steps, with its value held at w."""
    tx = optimizer.make(config, {name: group}, rate)
    params = {name: jnp.array([w], jnp.float32)}
    state, out = tx.init(params), []
    for gradient in gradients:
        update, state = tx.update({name: jnp.array([gradient], jnp.float32)}, state, params)
        out.append(float(update[name][0]))
    return out


@pytest.mark.parametrize(
    "changes",
    [{}, {"b1": 0.5}, {"b2": 0.9}, {"eps": 0.3}, {"weight_decay": 0.2}, {"b1": 0.0, "b2": 0.5, "weight_decay": 0.01}],
)
def test_adamw_is_the_papers(changes):
    """Test algorithm 2 of Loshchilov & Hutter, with the rate on the decay as in torch.

    b1 and b2 only matter after the first step.
    """
    c, m, v, expected = settings(name="adamw", **changes), 0.0, 0.0, []
    gradients = (0.5, -0.3, 2.0)
    for t, g in enumerate(gradients, 1):
        m, v = c.b1 * m + (1 - c.b1) * g, c.b2 * v + (1 - c.b2) * g * g
        step = (m / (1 - c.b1**t)) / (np.sqrt(v / (1 - c.b2**t)) + c.eps)
        expected.append(-0.1 * (step + c.weight_decay * 2.0))
    np.testing.assert_allclose(updates(c, gradients), expected, rtol=2e-5)


@pytest.mark.parametrize(
    "changes", [{}, {"momentum": 0.5}, {"weight_decay": 0.2}, {"momentum": 0.9, "weight_decay": 0.1}]
)
def test_sgd_is_torchs(changes):
    c, moving, expected = settings(**changes), 0.0, []
    gradients = (0.5, -0.3, 2.0)
    for g in gradients:
        moving = c.momentum * moving + g + c.weight_decay * 2.0
        expected.append(-0.1 * moving)
    np.testing.assert_allclose(updates(c, gradients), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_rate_is_of_the_step_and_of_the_group(name):
    """Step 0 is the first. A group that lr_scale does not name has the plain rate."""
    rates = jnp.array([0.1, 0.2, 0.4])
    for scale in ({}, {"all": 3.0}):
        c = settings(name=name, lr_scale=scale)
        got = updates(c, [1.0, 1.0, 1.0], rate=lambda step: rates[step])
        np.testing.assert_allclose(got, -scale.get("all", 1.0) * np.asarray(rates), rtol=2e-5)
    c = settings(name=name, lr_scale={"a": 3.0})
    np.testing.assert_allclose(updates(c, [1.0], group="a"), [-0.3], rtol=2e-5)


def test_one_norm_over_all_groups_is_clipped():
    tx = optimizer.make(settings(clip=1.0, lr_scale={"b": 2.0}), {"x": "a", "deep/y": "b"}, lambda step: 0.1)
    for gradient, share in ((3.0, 1 / 5), (0.3, 1.0)):  # norms 5 and 0.5
        grads = {"x": jnp.array([gradient]), "deep": {"y": jnp.array([gradient / 3 * 4])}}
        got, _ = tx.update(grads, tx.init(grads), grads)
        assert float(got["x"][0]) == pytest.approx(-0.1 * share * gradient)
        assert float(got["deep"]["y"][0]) == pytest.approx(-0.2 * share * gradient / 3 * 4)


def test_a_group_that_is_not_clipped_does_not_count_to_the_norm():
    config = settings(clip=1.0, unclipped=("head",))
    tx = optimizer.make(config, {"body": "body", "head": "head"}, lambda step: 0.1)
    grads = {"body": jnp.array([3.0, 4.0]), "head": jnp.array([300.0])}
    got, _ = tx.update(grads, tx.init(grads), grads)
    np.testing.assert_allclose(got["body"], [-0.1 * 3 / 5, -0.1 * 4 / 5], rtol=1e-6)
    np.testing.assert_allclose(got["head"], [-30.0], rtol=1e-6)


@pytest.mark.parametrize("rows", [(), ("head",)])
def test_rows_without_a_gradient_stay_as_they_are(rows):
    """Row 0 has no gradient in the second of three steps: it then neither decays nor goes on with its momentum."""
    config = settings(momentum=0.9, weight_decay=0.1, idle_rows=rows)
    tx = optimizer.make(config, {"w": "head"}, lambda step: 0.1)
    weights = {"w": jnp.array([[2.0, 1.0], [2.0, 1.0]])}
    state, moving, expected = tx.init(weights), np.zeros((2, 2)), np.array([[2.0, 1.0], [2.0, 1.0]])
    for gradient in ([[1.0, -1.0], [0.5, 0.0]], [[0.0, 0.0], [-1.0, -1.0]], [[0.5, 0.0], [0.5, 0.5]]):
        update, state = tx.update({"w": jnp.array(gradient)}, state, weights)
        weights = {"w": weights["w"] + update["w"]}
        moves = np.any(gradient, axis=1, keepdims=True) | (not rows)
        moving = np.where(moves, 0.9 * moving + gradient + 0.1 * expected, moving)
        expected = np.where(moves, expected - 0.1 * moving, expected)
        np.testing.assert_allclose(weights["w"], expected, rtol=1e-5)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"config\.optimizer\.name='lion': choose sgd or adamw"):
        optimizer.make(settings(name="lion"), {"w": "all"}, lambda step: 0.1)
    with pytest.raises(ValueError, match=r"names no group that trains: \['a', 'b'\]"):
        optimizer.make(settings(lr_scale={"b": 1.0, "a": 1.0, "all": 1.0}), {"w": "all"}, lambda step: 0.1)


@pytest.mark.parametrize(
    ("warm", "epochs", "expected"),
    [
        (0, 4, [1, (2 + np.sqrt(2)) / 4, 0.5, (2 - np.sqrt(2)) / 4]),
        (1, 3, [1, 1, 0.5]),
        (2, 4, [0.5, 1, 1, 0.5]),
        (2, 2, [0.5, 1]),  # warm-up only
        (4, 2, [0.25, 0.5]),  # ends before the warm-up does
        (0, 1, [1]),
        (0, 0, [1]),  # an evaluation without training has a schedule too
    ],
)
def test_the_rate_at_the_edges_of_an_epoch(warm, epochs, expected):
    lr = optimizer.schedule(settings(lr=0.3, warmup_epochs=warm), epochs=epochs, steps_per_epoch=5)
    for epoch, share in enumerate(expected):
        for step in (5 * epoch, 5 * epoch + 4):
            assert float(lr(jnp.int32(step))) == pytest.approx(0.3 * share, rel=1e-6), (epoch, step)
    assert float(lr(5 * len(expected) + 3)) == pytest.approx(0.3 * expected[-1])  # past the end: the last rate
    assert lr(0).dtype == jnp.float32


def test_split_and_merge_are_inverses_and_frozen_is_not_a_group():
    variables = {"params": {"conv": {"kernel": 1, "bias": 2}, "head": {"kernel": 3}}, "lora": {"conv": {"a": 4}}}
    rules = [["params/head/.*", "head"], ["lora/.*", "adapter"], ["params/conv/bias", "frozen"], [".*", "frozen"]]
    trainable, frozen, groups = optimizer.split(variables, rules)
    assert trainable == {"params": {"head": {"kernel": 3}}, "lora": {"conv": {"a": 4}}}
    assert frozen == {"params": {"conv": {"kernel": 1, "bias": 2}}}
    assert groups == {"params/head/kernel": "head", "lora/conv/a": "adapter"}
    assert optimizer.merge(trainable, frozen) == optimizer.merge(frozen, trainable) == variables
    with pytest.raises(ValueError, match=r"^trainable rule \(config\.trainable\): nothing matches 'lora/conv/a'"):
        optimizer.split(variables, rules[:1] + rules[2:3])


@pytest.mark.parametrize(("name", "moments"), [("sgd", 1), ("adamw", 2)])
def test_moments_live_where_their_parameters_live(name, moments):
    """Moments are sharded like their parameters, however deep the name.

    Whole moments would cost the memory that fsdp saves.
    """
    mesh = sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
    shapes = {"fc/kernel": (8, 4), "blocks/mlp/fc1/kernel": (2, 8, 4), "blocks/mlp/fc1/bias": (2, 4)}
    leaves = {f"params/{name}": jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    trainable = trees.unflatten(leaves)
    rules = ((".*blocks.*kernel", (None, "fsdp", "tensor")), (".*fc/kernel", ("fsdp",)), (".*", ()))
    placed = trees.flatten(sharding.by_rules(trainable, rules, mesh))
    groups = {name: "deep" if "blocks" in name else "shallow" for name in leaves}
    tx = optimizer.make(settings(name=name), groups, lambda step: 0.1)
    state = {"trainable": trainable, "stats": {}, "opt": jax.eval_shape(tx.init, trainable)}
    where = shardings_of_state(state, placed, mesh)
    for of, count in ((where["trainable"], 1), (where["opt"], moments)):
        found = [(jax.tree_util.keystr(path), at.spec) for path, at in jax.tree_util.tree_flatten_with_path(of)[0]]
        assert [spec for key, spec in found if "'fc1'" in key and "kernel" in key] == [
            PartitionSpec(None, "fsdp", "tensor")
        ] * count
        assert [spec for key, spec in found if "'fc'" in key] == [PartitionSpec("fsdp")] * count
        assert {spec for key, spec in found if "kernel" not in key} == {PartitionSpec()}
