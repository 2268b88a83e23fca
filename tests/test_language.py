"""Test the loss in chunks and its gradients against the same written without chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax.losses import language

ROWS, TOKENS, WIDTH, VOCABULARY, CHUNK = 3, 20, 8, 33, 7


@pytest.fixture(scope="module")
def example():
    """Return states, a head, and targets: most do not count, none of the second row, and some fill two chunks."""
    rng = np.random.default_rng(0)
    states, head = (rng.normal(size=shape).astype(np.float32) for shape in ((ROWS, TOKENS, WIDTH), (VOCABULARY, WIDTH)))
    targets = rng.integers(0, VOCABULARY, (ROWS, TOKENS)).astype(np.int32)
    targets[rng.random(targets.shape) < 0.5] = language.NONE
    targets[1] = language.NONE
    return states, head, targets


def mean_loss(states, head, targets):
    total, count = language.next_token_loss(lambda x: x @ head.T, states, targets, CHUNK)
    return total / count


def written_out(states, head, targets):
    chosen = jnp.take_along_axis(jax.nn.log_softmax(states @ head.T), jnp.maximum(targets, 0)[..., None], -1)[..., 0]
    return -jnp.where(targets >= 0, chosen, 0).sum() / (targets >= 0).sum()


def test_gradients_by_states_and_by_a_head_that_trains(example):
    *arguments, targets = example
    (loss, found), (expected_loss, expected) = (
        jax.value_and_grad(f, (0, 1))(*arguments, targets) for f in (mean_loss, written_out)
    )
    np.testing.assert_allclose([loss, mean_loss(*example)], expected_loss, rtol=1e-6)
    for got, wanted in zip(found, expected):
        assert np.linalg.norm(got - wanted) <= 1e-6 * np.linalg.norm(wanted)


def test_half_precision_states_have_gradients_of_their_own_dtype(example):
    states, head, targets = example
    half = jnp.asarray(states, jnp.bfloat16)
    found = jax.grad(mean_loss)(half, head, targets)
    expected = jax.grad(written_out)(half.astype(jnp.float32), head, targets)
    assert found.dtype == jnp.bfloat16
    assert np.linalg.norm(found.astype(jnp.float32) - expected) <= 5e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize(("trains", "products"), [((), 1), ((0,), 2), ((0, 1), 3)])
def test_logits_are_computed_once_and_a_frozen_head_has_no_gradient(example, trains, products):
    step = jax.value_and_grad(mean_loss, trains) if trains else mean_loss
    assert str(jax.make_jaxpr(step)(*example)).count("dot_general[") == products
