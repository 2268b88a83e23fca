"""Test margins by hand at the edges, the class head on several devices, its samples, and the settings of the task."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax.config import base, typed
from fvjax.data.plans import ClassPlan
from fvjax.losses import margin
from fvjax.losses.class_head import ClassHead
from fvjax.parallel import sharding
from tests import parts

COS, SIN = math.cos(0.5), math.sin(0.5)


def arcface(cosine):
    return margin.combined(jnp.asarray(cosine, jnp.float32), 1.0, 0.5, 0.0)


# ---- margins by hand


def test_arcface_by_hand_at_the_edges():
    border = math.cos(math.pi - 0.5)
    cosine = np.array([1.0, 0.0, border + 1e-3, border - 1e-3, -1.0])
    last = border + 1e-3
    expected = [COS, -SIN, last * COS - math.sqrt(1 - last**2) * SIN, border - 1e-3 - 0.5 * SIN, -1 - 0.5 * SIN]
    np.testing.assert_allclose(arcface(cosine), expected, atol=1e-6)


def test_cosface_and_the_combination_by_hand():
    cosine = jnp.array([1.0, 0.5, -1.0])
    np.testing.assert_allclose(margin.combined(cosine, 1.0, 0.0, 0.4), [0.6, 0.1, -1.4], atol=1e-6)
    both = margin.combined(cosine, 1.0, 0.5, 0.1)
    np.testing.assert_allclose(both, [COS - 0.1, math.cos(math.pi / 3 + 0.5) - 0.1, -1.1 - 0.5 * SIN], atol=1e-6)


def test_sphereface_by_hand():
    """Degrees 0, 60, 120, 180 with a factor of 2: cos 0, cos 120, and -cos t - 2 from 180 on."""
    found = margin.combined(jnp.array([1.0, 0.5, -0.5, -1.0]), 2.0, 0.0, 0.0)
    np.testing.assert_allclose(found, [1.0, -0.5, -1.5, -3.0], atol=1e-5)


@pytest.mark.parametrize(("m1", "m2", "m3"), [(1.0, 0.5, 0.0), (1.35, 0.0, 0.0), (2.0, 0.3, 0.1)])
def test_every_margin_falls_with_the_angle(m1, m2, m3):
    theta = np.linspace(0, math.pi, 400)
    values = np.asarray(margin.combined(jnp.cos(jnp.asarray(theta)), m1, m2, m3))
    assert (np.diff(values) < 1e-6).all()
    assert (values <= np.cos(theta) + 1e-6).all()


@pytest.mark.parametrize("kind", ["arcface", "sphereface", "adaface", "magface"])
@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_at_cosines_of_1_and_minus_1_are_finite_in_bfloat16(kind, sign):
    """The embedding lies exactly on its centre, or opposite to it, or is zero."""
    centres = jnp.eye(4, 8)
    x = (sign * 3 * centres[jnp.array([0, 1, 2])]).astype(jnp.bfloat16).at[2].set(0)
    labels = jnp.array([0, 1, 2])

    def loss(x, centres):
        norms = margin.norms(x)
        statistics = margin.update_norm_statistics(margin.initial_norm_statistics(), norms, 0.01)
        replaced = {
            "arcface": arcface,
            "sphereface": lambda c: margin.combined(c, 1.5, 0.0, 0.0),
            "adaface": lambda c: margin.adaface(c, norms, statistics, 0.4, 0.333),
            "magface": lambda c: margin.magface(c, norms),
        }
        return margin.cross_entropy(margin.cosines(x, centres), labels, jnp.arange(4), 4, replaced[kind], 64.0).mean()

    value, (by_x, by_centres) = jax.value_and_grad(loss, argnums=(0, 1))(x, centres)
    assert value.dtype == jnp.float32
    assert np.isfinite(value)
    assert np.isfinite(by_x.astype(jnp.float32)).all()
    assert np.isfinite(by_centres).all()
    assert float(jnp.abs(by_centres).max()) > 0


@pytest.mark.parametrize(("columns", "classes"), [([0, 1, 2], 2), ([0, 7, 10], 10)], ids=["all", "a sample"])
def test_the_loss_by_hand(columns, classes):
    """Cosines 0.8 and 0, ArcFace, scale 2: the right logit is 2 cos(arccos(0.8) + 0.5). Padding takes no part.

    Smoothing spreads its share over the classes that the step compares with, so that the target adds up to one.
    """
    found = margin.cross_entropy(
        jnp.array([[0.8, 0.0, 0.9]]), jnp.array([0]), jnp.array(columns), classes, arcface, 2.0, smoothing=0.2
    )
    logits = 2 * math.cos(math.acos(0.8) + 0.5), 0.0
    entropy = [math.log(sum(map(math.exp, logits))) - x for x in logits]
    assert float(found[0]) == pytest.approx(0.9 * entropy[0] + 0.1 * entropy[1], rel=1e-6)


# ---- the class head


def in_step(head: ClassHead, devices: int, x, centres, labels, key=0):
    """Return the loss and its gradients on this number of devices, and the compiled program's text."""
    mesh = sharding.make_mesh({"data": devices, "fsdp": 1, "tensor": 1}, jax.devices()[:devices])

    def loss(x, centres):
        chosen, columns = head.select(centres, labels, jax.random.key(key))
        cosines = sharding.constrain(margin.cosines(x, chosen), jax.sharding.PartitionSpec(None, sharding.AXES))
        return margin.cross_entropy(cosines, labels, columns, head.classes, arcface, 16.0).mean()

    def step(x, centres):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.value_and_grad(loss, argnums=(0, 1))(x, centres)

    put = (sharding.whole(x, mesh), sharding.whole(centres, mesh, jax.sharding.PartitionSpec(sharding.AXES)))
    compiled = jax.jit(step).lower(*put).compile()
    value, grads = compiled(*put)
    return float(value), *(np.asarray(g) for g in grads), compiled.as_text()


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1)
    labels = jnp.asarray(rng.integers(0, 200, 16))
    head = ClassHead(200, 8)
    return rng.normal(size=(16, 8)).astype(np.float32), np.asarray(head.init(jax.random.key(0))), labels


@pytest.mark.parametrize("rate", [1.0, 0.6])
def test_the_head_is_the_same_on_1_2_4_and_8_devices(inputs, rate):
    x, centres, labels = inputs
    head = ClassHead(200, 8, sample_rate=rate)
    value, by_x, by_centres, _ = in_step(head, 1, x, centres, labels)
    for devices in (2, 4, 8):
        found, of_x, of_centres, text = in_step(head, devices, x, centres, labels)
        assert found == pytest.approx(value, rel=1e-6)
        for ours, theirs in ((of_x, by_x), (of_centres, by_centres)):
            assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)
    gathered = [line for line in text.splitlines() if " all-gather(" in line]
    sizes = [line.split(" = ")[1].split(" ")[0] for line in gathered]
    assert all(size.startswith("f32[16,8]") for size in sizes), f"only the batch's embeddings are gathered: {sizes}"


def test_a_sample_of_all_classes_is_the_full_head(inputs):
    x, centres, labels = inputs
    full = ClassHead(200, 8)
    sampled = ClassHead(200, 8, sample_rate=1 - 1e-9)  # every row of every group, through the sampling code
    assert sampled.sampled_rows * sampled.groups == sampled.rows
    for found, expected in zip(in_step(sampled, 1, x, centres, labels)[:3], in_step(full, 1, x, centres, labels)[:3]):
        assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


def test_a_sample_holds_the_batchs_classes_and_every_other_one_equally_often():
    head = ClassHead(1000, 4, sample_rate=0.1)
    labels = jnp.array([3, 4, 5, 700, 3])
    draw = jax.jit(jax.vmap(lambda key: head.sample(labels, key)))
    rows = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    classes = rows + np.arange(head.groups)[:, None] * (head.rows // head.groups)
    drawn = np.zeros(head.rows, int)
    np.add.at(drawn, classes.reshape(-1), 1)
    assert set(np.asarray(labels).tolist()) <= set(np.flatnonzero(drawn == 4000)), "the batch's own classes"
    assert drawn[1000:].sum() == 0, "padding"
    others = np.setdiff1d(np.arange(1000), labels)
    first, last = others[others < 128], others[others >= 128 * 7]
    share = drawn / 4000
    for group, kept in ((first, 13 - 3), (others[(others >= 128) & (others < 256)], 13), (last, 13)):
        np.testing.assert_allclose(share[group].mean(), kept / len(group), rtol=1e-6)
        assert np.abs(share[group] - kept / len(group)).max() < 5 * math.sqrt(0.1 * 0.9 / 4000)


def test_the_sum_over_a_sample_is_unbiased():
    """The mean over samples of (sum over sampled negatives) / rate is the sum over all negatives."""
    head = ClassHead(1024, 4, sample_rate=0.125)
    values = jnp.exp(jax.random.normal(jax.random.key(1), (1024,)))

    def negatives(key):
        columns = head.sample(jnp.array([7]), key) + 128 * jnp.arange(8)[:, None]
        return jnp.where(columns == 7, 0.0, values[columns]).sum()

    sums = np.asarray(jax.vmap(negatives)(jax.random.split(jax.random.key(2), 3000)))
    first, rest = values[:128].sum() - values[7], values[128:].sum()
    expected = float(first * 15 / 127 + rest * 16 / 128)  # one place of the first group is the batch's own class
    assert sums.mean() == pytest.approx(expected, abs=4 * float(sums.std()) / math.sqrt(3000))
    assert expected == pytest.approx(float(0.125 * (values.sum() - values[7])), rel=0.02)


def test_samples_that_are_too_small_are_refused():
    ClassHead(1000, 4, sample_rate=0.1).check_sample(12)
    with pytest.raises(ValueError, match=r"sample_rate=0.01 leaves 16 of 1000 classes, so a batch of 64"):
        ClassHead(1000, 4, sample_rate=0.01).check_sample(64)
    with pytest.raises(ValueError, match=r"keeps 13 of 128 rows in each of config.head.groups=8 groups.*raise it"):
        ClassHead(1000, 4, sample_rate=0.1).check_sample(64)


def test_padding_is_zero_and_divides():
    head = ClassHead(200, 4, subcentres=3)
    centres = head.init(jax.random.key(0))
    assert centres.shape == (256, 3, 4)
    assert not np.asarray(centres[200:]).any()
    assert np.asarray(centres[:200]).any(axis=(1, 2)).all()
    assert ClassHead(200, 4, groups=6).rows == 384


# ---- the plan


def test_the_class_plan_is_a_function_of_seed_and_step():
    labels = np.repeat(np.arange(5), 4)
    plan = ClassPlan(labels, 6, seed=3)
    assert plan.steps_per_epoch == 3
    first = plan.examples(np.arange(18))
    assert len(np.unique(first["ids"])) == 18
    np.testing.assert_array_equal(first["labels"], labels[first["ids"][:, 0]])
    again = ClassPlan(labels, 6, seed=3).examples(np.arange(6, 12))
    np.testing.assert_array_equal(again["ids"], first["ids"][6:12])
    assert (plan.examples(np.arange(18, 36))["ids"] != first["ids"]).any()


# ---- settings


def config(**changes):
    c = base()
    c.task, c.trainable = "margin", (("head/.*", "head"), (".*", "backbone"))
    c.batch_size, c.epochs = 16, 1
    c.update(changes)
    return c


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": ((".*", "frozen"),)}, r"leaves head/centres frozen; put \('head/.\*', 'head'\) first"),
        ({"margin": {"m2": 3.5}}, r"config.margin.m2=3.5: must be from 0 to 3.1"),
        ({"margin": {"smoothing": 1.0}}, "config.margin.smoothing=1.0"),
        ({"margin": {"m1": 0.5}}, "m1=0.5 is at least 1"),
        ({"margin": {"t_alpha": 0.0}}, "config.margin.t_alpha=0.0"),
        ({"head": {"sample_rate": 0.0}}, "config.head.sample_rate=0.0: must be above 0"),
        ({"head": {"sample_rate": 0.5}}, "add 'head' to config.optimizer.idle_rows"),
        ({"head": {"classes": -1}}, "config.head.classes=-1: must not be negative"),
        ({"accumulation": 3}, "config.batch_size=16 does not divide into 3 parts"),
        ({"compat": {"negatives_group": 8}}, "negatives are classes, not images"),
        ({"compat": {"batch_norm_group": 5}}, "config.compat.batch_norm_group=5"),
        ({"eval": {"pools": ("all_mean",)}}, "evaluates the pooling that it trains"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        parts.check(config(**changes))


def test_the_head_needs_the_number_of_identities(tmp_path):
    c = config(data={"train": str(tmp_path / "nowhere")})
    with pytest.raises(ValueError, match=r"nowhere' cannot be counted, it is not there; set config.head.classes"):
        _ = parts.task_of(c).classes  # type: ignore[attr-defined]
    c.head.classes = 7
    assert parts.task_of(c).classes == 7  # type: ignore[attr-defined]
    assert typed(c).task == "margin"
