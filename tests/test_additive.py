"""Test losses that add up over examples or tokens: any number of parts gives the result of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax.losses.accumulation import Additive, split

STATS = {"batch_stats": {"bn": {"mean": np.zeros(3, np.float32)}}}


def same(trainable):
    return trainable


def weighted_product(variables, inputs):
    """Return the sum of m w x and the sum of m: every example has the loss w x and the weight m."""
    return (inputs["m"] * inputs["x"] * variables["w"]).sum(), inputs["m"].sum(), {}


# Part k of K has examples k, k + K, …, so two parts have the weights 4 and 2, and one of four parts has the weight 0.
INPUTS = {"x": jnp.array([1.0, 2.0, 3.0, 4.0]), "m": jnp.array([1.0, 0.0, 3.0, 2.0])}
W = {"w": jnp.float32(2.0)}


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_sums_are_divided_once_by_the_weight_of_the_whole_batch(parts):
    """The sum of m x is 1 + 0 + 9 + 8 = 18 and that of m is 6, so the gradient is 3 and the loss, with w = 2, is 6."""
    loss, stats, grads = Additive(weighted_product).gradients(same, W, INPUTS, {}, parts)
    assert float(loss) == pytest.approx(6.0, rel=1e-6)
    assert float(grads["w"]) == pytest.approx(3.0, rel=1e-6)
    assert stats == {}
    assert loss.dtype == grads["w"].dtype == jnp.float32


def test_a_mean_of_the_parts_means_would_be_another_loss():
    """The means of the parts are 10 / 4 w and 8 / 2 w, so the mean of the means is 3.25 w and not 3 w."""
    parts = [Additive(weighted_product).gradients(same, W, part, {}, 1)[0] for part in halves(INPUTS)]
    assert [float(loss) for loss in parts] == [5.0, 8.0]
    assert float(np.mean(parts)) == 6.5


def halves(inputs):
    divided = split(inputs, 2)
    return [jax.tree.map(lambda x, k=k: x[k], divided) for k in range(2)]


def token_loss(variables, inputs):
    """Return the summed cross-entropy of labelled tokens and their number, as for a conversation's answers."""
    logits = inputs["hidden"] @ variables["params"]["head"] + variables["params"]["bias"]
    each = -jnp.take_along_axis(jax.nn.log_softmax(logits), inputs["labels"][..., None], axis=-1)[..., 0]
    return jnp.where(inputs["mask"], each, 0).sum(), inputs["mask"].sum().astype(jnp.float32), {}


@pytest.fixture(scope="module")
def tokens():
    """Return (trained parameters, inputs): 8 rows of 5 tokens, of which 0 to 5 are labelled."""
    draw = np.random.default_rng(0)
    trainable = {"params": {"head": draw.normal(size=(6, 7)), "bias": draw.normal(size=7)}}
    inputs = {
        "hidden": draw.normal(size=(8, 5, 6)).astype(np.float32),
        "labels": draw.integers(0, 7, (8, 5)),
        "mask": np.arange(5) < np.array([0, 1, 5, 2, 4, 1, 3, 1])[:, None],
    }
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), trainable), jax.tree.map(jnp.asarray, inputs)


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_label_tokens_in_parts_equal_the_whole_batch(tokens, parts):
    trainable, inputs = tokens

    def mean(trainable):
        logits = inputs["hidden"] @ trainable["params"]["head"] + trainable["params"]["bias"]
        right = jax.nn.log_softmax(logits)[np.arange(8)[:, None], np.arange(5), inputs["labels"]]
        return -right[inputs["mask"]].mean()

    expected, gradient = jax.value_and_grad(mean)(trainable)
    run = jax.jit(lambda t, x: Additive(token_loss).gradients(same, t, x, {}, parts))
    loss, _, grads = run(trainable, inputs)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for name, g in gradient["params"].items():
        distance = np.linalg.norm(grads["params"][name] - g) / np.linalg.norm(g)
        assert distance <= 1e-5, f"{name}: {distance:.1e}"


def test_what_trains_is_bound_to_what_is_frozen(tokens):
    """Only trained parameters have a gradient, even if they reach the loss through frozen parameters."""
    trainable, inputs = tokens
    frozen = {"bias": trainable["params"]["bias"]}

    def bind(variables):
        return {"params": {"head": variables["scale"] * trainable["params"]["head"], **frozen}}

    (loss, _, grads), (other, _, others) = (
        Additive(token_loss).gradients(bind, {"scale": jnp.float32(0.5)}, inputs, {}, parts) for parts in (1, 4)
    )
    assert grads.keys() == others.keys() == {"scale"}
    assert float(loss) == pytest.approx(float(other), rel=1e-6)
    assert abs(float(grads["scale"])) > 0.1
    assert float(grads["scale"]) == pytest.approx(float(others["scale"]), rel=1e-5)


def test_half_precision_gradients_are_summed_in_float32():
    """Sum eight parts with gradients 256, 1, 1, …; in bfloat16, 256 + 1 would be 256."""
    inputs = {"x": jnp.ones(8, jnp.bfloat16).at[0].set(256), "m": jnp.ones(8, jnp.float32) / 8}

    def loss(variables, part):
        return (part["x"] * variables["w"]).astype(jnp.float32).sum(), part["m"].sum(), {}

    total, _, grads = Additive(loss).gradients(same, {"w": jnp.ones((), jnp.bfloat16)}, inputs, {}, 8)
    assert grads["w"].dtype == jnp.float32
    assert (float(grads["w"]), float(total)) == (263.0, 263.0)
    _, _, whole = Additive(loss).gradients(same, {"w": jnp.ones((), jnp.bfloat16)}, inputs, {}, 1)
    assert whole["w"].dtype == jnp.float32, "as the optimizer gets it from any number of parts"


def test_the_weight_may_be_a_count_of_any_type():
    def loss(variables, inputs):
        return (inputs["x"] * variables["w"]).sum(), jnp.int32(len(inputs["x"])), {}

    for parts in (1, 2):
        value, _, grads = Additive(loss).gradients(same, W, INPUTS, {}, parts)
        assert (float(value), float(grads["w"])) == (5.0, 2.5)


def test_batch_statistics_need_the_whole_batch():
    def loss(variables, inputs):
        return (inputs["x"] * variables["w"]).sum(), jnp.float32(4), {"batch_stats": inputs["x"].mean()}

    _, stats, _ = Additive(loss).gradients(same, W, INPUTS, STATS, 1)
    assert float(stats["batch_stats"]) == 2.5, "the new ones"
    with pytest.raises(
        ValueError, match=r"^2 chunks: a model with batch norm must see the whole batch at once; use 1$"
    ):
        Additive(loss).gradients(same, W, INPUTS, STATS, 2)


@pytest.mark.parametrize("parts", [3, 0, 5])
def test_parts_must_divide_the_batch(parts):
    with pytest.raises(ValueError, match=f"a batch of 4 rows does not divide into {parts} chunks"):
        Additive(weighted_product).gradients(same, W, INPUTS, {}, parts)


def test_it_embeds_and_compares_nothing():
    assert Additive(weighted_product).embed is Additive(weighted_product).compare is None
