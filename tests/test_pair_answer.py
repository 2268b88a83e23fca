"""Test the pairwise task: Yes/No cross-entropy and P(Yes), against a loop and the reference's results."""

from math import exp, log

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax.losses import pair_answer

YES, NO = 5, 2


def mean_loss(*args):
    return pair_answer.losses(*args).mean()


@pytest.fixture(scope="module")
def golden():
    with np.load("tests/golden/internvl_tiny/golden.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("over", ["vocab", "yes_no"])
def test_loss_against_a_loop(over):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (7, 11)).astype(np.float32), rng.integers(0, 2, 7)
    total = 0.0
    for row, label in zip(logits.astype(float).tolist(), labels.tolist()):
        among = row if over == "vocab" else [row[YES], row[NO]]
        total -= log(exp(row[YES] if label else row[NO]) / sum(exp(x) for x in among))
    got = mean_loss(jnp.asarray(logits), jnp.asarray(labels), (YES, NO), over)
    assert got.dtype == jnp.float32
    assert float(got) == pytest.approx(total / 7, rel=1e-6)


def test_the_vocabulary_is_the_default():
    logits, labels = jnp.arange(12.0).reshape(2, 6), jnp.array([1, 0])
    assert mean_loss(logits, labels, (5, 2)) == mean_loss(logits, labels, (5, 2), "vocab")
    with pytest.raises(ValueError, match="loss over 'yesno': choose 'vocab' or 'yes_no'"):
        mean_loss(logits, labels, (5, 2), "yesno")


def test_half_precision_logits_are_summed_in_float32():
    """In bfloat16, the sum over 4,096 equal logits would stop at 256."""
    logits = jnp.full((3, 4096), 20, jnp.bfloat16)
    assert float(mean_loss(logits, jnp.array([0, 1, 0]), (YES, NO))) == pytest.approx(log(4096), rel=1e-6)
    p = pair_answer.p_yes(logits.at[:, YES].add(0.125), (YES, NO))
    assert p.dtype == jnp.float32
    np.testing.assert_allclose(p, 1 / (1 + exp(-0.125)), rtol=1e-6)


def test_p_yes_of_extreme_logits_is_finite():
    logits = jnp.zeros((2, 6)).at[:, YES].set(jnp.array([1e4, -1e4]))
    assert pair_answer.p_yes(logits, (YES, NO)).tolist() == [1.0, 0.0]
    grads = jax.grad(lambda x: mean_loss(x, jnp.array([0, 1]), (YES, NO), "yes_no"))(logits)
    assert np.isfinite(grads).all()


def test_p_yes_is_the_references(golden):
    """The softmax is over the two answers; over the vocabulary the figures would be 0.002 instead of 0.5."""
    got = pair_answer.p_yes(jnp.asarray(golden["pair_logits"]), golden["yes_no_ids"].tolist())
    np.testing.assert_allclose(got, golden["pair_pyes"], rtol=1e-6)


def test_loss_is_the_references(golden):
    logits, labels = jnp.asarray(golden["pair_lora_logits"]), jnp.asarray(golden["pair_labels"])
    got = mean_loss(logits, labels, golden["yes_no_ids"].tolist())
    assert float(got) == pytest.approx(float(golden["s3_loss0"]), rel=1e-6)
