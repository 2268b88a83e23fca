"""Test adapters as arrays, without a model: initialisation, scaling, merging, and the check for missing gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax.models import lora


def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float16)


BASE = {
    "stack/fc/kernel": leaf(3, 24, 5),
    "stack/fc/bias": leaf(3, 5),
    "head/kernel": leaf(6, 4),
    "conv/kernel": leaf(3, 3, 6, 4),
}


def test_what_is_drawn_and_how_large():
    adapters = lora.init(BASE, ["stack/fc", "head"], rank=7, count=4, key=jax.random.key(0))
    assert {name: (x.shape, x.dtype) for name, x in adapters.items()} == {
        "stack/fc/a": ((3, 24, 7), jnp.float32),
        "stack/fc/b": ((3, 7, 5), jnp.float32),
        "head/a": ((6, 7), jnp.float32),
        "head/b": ((7, 4), jnp.float32),
    }
    for name, inputs in (("stack/fc", 24), ("head", 6)):
        assert not adapters[f"{name}/b"].any()
        a, bound = np.asarray(adapters[f"{name}/a"]), (6 / inputs) ** 0.5
        assert bound * 0.9 < a.max() <= bound
        assert -bound <= a.min() < -0.9 * bound
        assert abs(a.mean()) < 0.2 * bound


def test_each_module_and_each_key_has_its_own_draw():
    alike = {f"{name}/kernel": leaf(6, 4) for name in "xyz"}
    first, other = (lora.init(alike, ["x", "y", "z"], 2, 3, jax.random.key(seed)) for seed in (0, 1))
    drawn = [np.asarray(tree[f"{name}/a"]).tobytes() for tree in (first, other) for name in "xyz"]
    assert len(set(drawn)) == 6
    alone = lora.init(alike, ["y"], 2, 1, jax.random.key(0))
    np.testing.assert_array_equal(alone["y/a"], first["y/a"])


def test_convolutions_are_no_targets_and_counts_are_of_layers():
    with pytest.raises(ValueError, match=r"target 'conv' matches no module; the modules are \['head', 'stack/fc'\]"):
        lora.init(BASE, ["head", "conv"], 2, 1, jax.random.key(0))
    with pytest.raises(ValueError, match=r"\['\.\*'\] give 4 adapters, expected 2: \['head', 'stack/fc'\]"):
        lora.init(BASE, [".*"], 2, 2, jax.random.key(0))


def test_only_b_is_scaled_and_only_a_is_transposed():
    a, b = jnp.arange(6.0).reshape(1, 3, 2), jnp.arange(8.0).reshape(1, 2, 4)
    got = lora.scaled({"m/a": a, "m/b": b}, 0.25)
    np.testing.assert_array_equal(got["m/a"][0], np.asarray(a)[0].T)
    np.testing.assert_array_equal(got["m/b"], np.asarray(b) / 4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_merging_adds_the_scaled_product_in_float32_and_rounds_once(dtype):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 3)).astype(np.float32), rng.normal(size=(2, 3, 4)).astype(np.float32)
    a[1] = 0  # this layer has nothing to add, so its bits stay, even those of a negative zero
    kernel = jnp.asarray(rng.normal(size=(2, 6, 4)), dtype).at[1, 0, 0].set(-0.0)
    params = {"m/kernel": kernel, "m/bias": jnp.ones(4, dtype)}
    merged = lora.merge(params, {"m/a": jnp.asarray(a), "m/b": jnp.asarray(b)}, 0.5)
    assert set(params) == set(merged)
    assert params["m/kernel"] is kernel, "the base itself is left alone"
    expected = np.asarray(kernel, np.float64) + 0.5 * (a.astype(np.float64) @ b)
    assert merged["m/kernel"].dtype == dtype
    near = np.asarray(jnp.asarray(expected, jnp.float32).astype(dtype), np.float64)
    rounding = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(merged["m/kernel"], np.float64), near, rtol=rounding, atol=1e-6)
    assert np.asarray(merged["m/kernel"][1]).tobytes() == np.asarray(kernel[1]).tobytes()
    np.testing.assert_array_equal(merged["m/bias"], params["m/bias"])


@pytest.mark.parametrize("lost", ["m/a", "m/b", "m/kernel"])
def test_merging_names_what_is_missing(lost):
    trees = {"m/kernel": jnp.ones((2, 2)), "m/a": jnp.ones((2, 1)), "m/b": jnp.ones((1, 2))}
    del trees[lost]
    params = {name: x for name, x in trees.items() if name.endswith("kernel")}
    with pytest.raises(ValueError, match="adapter m: needs m/a, m/b and the base's m/kernel"):
        lora.merge(params, {name: x for name, x in trees.items() if name not in params}, 1.0)


def test_zero_is_told_by_layer():
    g = np.zeros((3, 2, 2), np.float32)
    g[1, 1, 0] = 1e-30
    found = lora.is_zero({"stack/a": g, "one/b": g[0], "other/b": g[1]})
    assert found["stack/a"].tolist() == [True, False, True]
    assert {name: (x.shape, bool(x)) for name, x in found.items() if name != "stack/a"} == {
        "one/b": ((), True),
        "other/b": ((), False),
    }


ALIVE, DEAD = np.zeros(3, bool), np.array([True, False, True])


def test_the_dead_are_named_by_half_step_and_layer():
    # a may be zero at step 1, because b is zero then; b at step 2 is not checked again.
    lora.check_alive({"s/a": ~ALIVE, "s/b": ALIVE, "m/b": np.False_}, {"s/a": ALIVE, "s/b": ~ALIVE, "m/a": np.False_})
    with pytest.raises(ValueError, match=r"exactly zero: s/b layers \[0, 2\] \(first step\)\. Check"):
        lora.check_alive({"s/b": DEAD}, {"s/a": ALIVE})
    with pytest.raises(
        ValueError,
        match=r"zero: m/a \(after the first update\), s/a layers \[0, 2\] \(after the first update\)\. Check",
    ):
        lora.check_alive({"s/b": ALIVE}, {"s/a": DEAD, "m/a": np.True_})
