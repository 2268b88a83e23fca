"""Test attention by head: it equals jax's own attention, and remat does not add arithmetic."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax.models.layers import QUERIES, REMAT, Dense, self_attend
from fvjax.planning import flops


def draw(tokens, heads, kv_heads, dim, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(tokens), 4)
    sizes = (heads, kv_heads, kv_heads, heads)
    return [jax.random.normal(key, (2, tokens, n, dim)).astype(dtype) for key, n in zip(keys, sizes)]


@partial(jax.jit, static_argnums=0)
def value_and_gradients(attend, q, k, v, dy):
    y, back = jax.vjp(attend, q, k, v)
    return y, *back(dy)


def all_of(attend, *given):
    arrays = value_and_gradients(attend, *given)
    return {name: np.asarray(x, np.float32) for name, x in zip(["y", "q", "k", "v"], arrays)}


@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads"), [(2, 4, 4), (QUERIES, 6, 2), (QUERIES + 1, 4, 4), (300, 6, 2)]
)
@pytest.mark.parametrize("causal", [False, True])
def test_by_head_is_attention(tokens, heads, kv_heads, causal):
    given = draw(tokens, heads, kv_heads, 16)
    got = all_of(partial(self_attend, causal=causal, implementation="by_head"), *given)
    for other in (
        partial(self_attend, causal=causal, implementation="xla"),
        partial(jax.nn.dot_product_attention, is_causal=causal, implementation="xla"),
    ):
        for name, want in all_of(other, *given).items():
            distance = np.linalg.norm(got[name] - want) / np.linalg.norm(want)
            assert distance <= 1e-6, f"{name}: {distance:.1e}"


@pytest.mark.parametrize("implementation", ["by_head", "xla", "cudnn"])
@pytest.mark.parametrize("last", [1, 5, 150])
def test_the_last_tokens_of_a_longer_sequence(last, implementation):
    """If there are fewer queries than keys, they are the last ones, and attend to everything before them."""
    q, k, v, dy = draw(300, 6, 2, 16)
    want = all_of(partial(self_attend, causal=True, implementation="xla"), q, k, v, dy.at[:, :-last].set(0))
    attend = partial(self_attend, causal=True, implementation=implementation)
    got = all_of(attend, q[:, -last:], k, v, dy[:, -last:])
    for name, x in got.items():
        expected = want[name][:, -last:] if name in "yq" else want[name]
        assert np.linalg.norm(x - expected) <= 1e-6 * np.linalg.norm(expected), name


def test_by_head_in_half_precision():
    given = draw(200, 4, 2, 16, jnp.bfloat16)
    got = all_of(partial(self_attend, causal=True, implementation="by_head"), *given)
    exact = all_of(partial(self_attend, causal=True, implementation="xla"), *(x.astype(jnp.float32) for x in given))
    for name, want in exact.items():
        assert np.linalg.norm(got[name] - want) <= 1e-2 * np.linalg.norm(want), name


def test_a_large_logit_does_not_overflow():
    q, k, v, dy = draw(130, 2, 2, 16)
    for name, x in all_of(partial(self_attend, causal=False, implementation="by_head"), 40 * q, 40 * k, v, dy).items():
        assert np.isfinite(x).all(), name


@pytest.mark.parametrize("policy", ["dots", "full"])
def test_what_remat_computes_again(policy):
    """With "dots" the forward pass is saved (not the logits, which the gradient recomputes), with "full" it is not."""
    attend = partial(self_attend, causal=False, implementation="by_head")

    def layer(x, kernel):  # a projection, as in a model, whose result "dots" saves
        projected: Any = Dense(192, use_bias=False).apply({"params": {"kernel": kernel}}, x)
        q, k, v = (y.reshape(2, 64, 4, 16) for y in jnp.split(projected, 3, -1))
        return attend(q, k, v).sum()

    args = jax.ShapeDtypeStruct((2, 64, 64), jnp.float32), jax.ShapeDtypeStruct((64, 192), jnp.float32)
    plain = flops.count(jax.grad(layer), *args)
    again = flops.count(jax.grad(jax.checkpoint(layer, policy=REMAT[policy])), *args)
    projection, forward = 2 * 2 * 64 * 64 * 192, 2 * 2 * 2 * 64 * 64 * 64
    assert again - plain == {"dots": 0, "full": projection + forward}[policy]


def test_dots_keeps_a_sum_and_not_its_terms():
    """ "dots" saves the sum of a product and its adapter, and the adapter's r columns; neither is recomputed."""

    def layer(lora, kernel, x):
        y: Any = Dense(48, use_bias=False).apply({"params": {"kernel": kernel}, "lora": lora}, jnp.tanh(x))
        return jnp.sin(y).sum()

    def kept(lora, kernel, x):
        return jax.tree.leaves(jax.vjp(jax.checkpoint(layer, policy=REMAT["dots"]), lora, kernel, x)[1])

    lora = {"a": jax.ShapeDtypeStruct((4, 16), jnp.float32), "b": jax.ShapeDtypeStruct((4, 48), jnp.float32)}
    args = lora, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((16, 48), (64, 16)))
    shapes = [x.shape for x in jax.eval_shape(kept, *args)]
    assert [shapes.count((64, columns)) for columns in (48, 4)] == [1, 1]
    remat = jax.checkpoint(layer, policy=REMAT["dots"])
    assert flops.count(jax.grad(layer), *args) == flops.count(jax.grad(remat), *args)


def test_later_keys_are_left_out():
    """Of 8 blocks of queries the first attends to one block of keys, the last to 8: 36 of 64."""
    given = draw(8 * QUERIES, 2, 1, 16)[:3]
    whole, causal = (
        flops.count(partial(self_attend, causal=causal, implementation="by_head"), *given) for causal in (False, True)
    )
    assert causal / whole == 36 / 64
