"""Compare margin losses and their gradients with torch twins, written from the published descriptions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax.losses import margin

torch = pytest.importorskip("torch", reason="needs tests/requirements-torch.txt")

RNG = np.random.default_rng(0)
NORMS = np.array([5, 12, 20, 30, 60, 90, 120, 200])
X = RNG.normal(size=(8, 16))
X = (X / np.linalg.norm(X, axis=-1, keepdims=True) * NORMS[:, None]).astype(np.float32)
CENTRES = RNG.normal(size=(10, 16)).astype(np.float32)
LABELS = np.array([0, 3, 9, 3, 1, 7, 5, 2])
X[0] = -40 * CENTRES[0] / np.linalg.norm(CENTRES[0]) + 3 * X[0]  # an angle near pi, where cos(theta + m) would rise
SCALE = 64.0


def twin_cosines(x, centres):
    return torch.nn.functional.normalize(x, dim=-1) @ torch.nn.functional.normalize(centres, dim=-1).T


def twin_entropy(cosines, replaced, scale=SCALE, smoothing=0.0):
    """Put `replaced` in place of the right cosines and return torch's own mean cross-entropy."""
    labels = torch.tensor(LABELS)
    logits = scale * cosines.scatter(1, labels[:, None], replaced[:, None])
    return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)


def right(cosines):
    return cosines.gather(1, torch.tensor(LABELS)[:, None])[:, 0]


def insightface(cosines, m2=0.5, m3=0.0):
    """ArcFace for m3 = 0 and CosFace for m2 = 0, as arcface_torch's losses describe them."""
    cosine = right(cosines)
    if m3:
        return cosine - m3
    turned = torch.cos(torch.arccos(cosine) + m2)
    return torch.where(cosine > math.cos(math.pi - m2), turned, cosine - m2 * math.sin(math.pi - m2))


def adaface(cosines, norms, mean, std, m=0.4, h=0.333, t_alpha=0.01):
    """Return AdaFace's replaced cosines and its statistics after the batch; the cosines are clamped before."""
    with torch.no_grad():
        norms = norms.clip(0.001, 100)
        mean = t_alpha * norms.mean() + (1 - t_alpha) * mean
        std = t_alpha * norms.std() + (1 - t_alpha) * std
        quality = (h * (norms - mean) / (std + 1e-3)).clip(-1, 1)
    theta = (right(cosines).arccos() - m * quality).clip(1e-3, math.pi - 1e-3)
    return theta.cos() - (m + m * quality), mean, std


def ours(function, x=X, centres=CENTRES, clip=0.0, extra=None, **settings):
    """Return our mean loss with its gradients by the embeddings and the centres."""

    def loss(x, centres):
        cosines, norms = margin.cosines(x, centres), margin.norms(x)
        if clip:
            cosines = jnp.clip(cosines, clip - 1, 1 - clip)
        count = len(centres)
        each = margin.cross_entropy(
            cosines, LABELS, np.arange(count), count, lambda c: function(c, norms), SCALE, **settings
        )
        return each.mean() + (extra(norms) if extra else 0.0)

    value, grads = jax.value_and_grad(loss, argnums=(0, 1))(x, centres)
    return [np.asarray(v) for v in (value, *grads)]


def theirs(loss):
    """Return the twin's loss, computed in float64, with its gradients."""
    x, centres = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (X, CENTRES))
    value = loss(x, centres)
    value.backward()
    assert x.grad is not None
    assert centres.grad is not None
    return value.item(), x.grad.numpy(), centres.grad.numpy()


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    for ours_, theirs_ in zip(found[1:], expected[1:]):
        assert np.linalg.norm(ours_ - theirs_) <= 1e-5 * np.linalg.norm(theirs_)


@pytest.mark.parametrize(("m2", "m3"), [(0.5, 0.0), (0.0, 0.4)], ids=["arcface", "cosface"])
def test_arcface_and_cosface_are_insightfaces(m2, m3):
    def loss(x, centres):
        cosines = twin_cosines(x, centres)
        return twin_entropy(cosines, insightface(cosines, m2, m3))

    assert right(twin_cosines(torch.tensor(X), torch.tensor(CENTRES))).min() < math.cos(math.pi - 0.5)
    assert_same(ours(lambda c, _: margin.combined(c, 1.0, m2, m3)), theirs(loss))


def test_label_smoothing_is_torchs():
    def loss(x, centres):
        cosines = twin_cosines(x, centres)
        return twin_entropy(cosines, right(cosines), smoothing=0.1)

    assert_same(ours(lambda c, _: c, smoothing=0.1), theirs(loss))


def test_adaface_is_the_published_one_and_its_statistics_follow_ten_steps():
    def loss(x, centres):
        cosines = twin_cosines(x, centres).clip(1e-3 - 1, 1 - 1e-3)
        replaced, _, _ = adaface(cosines, x.norm(dim=-1).detach(), 20.0, 100.0)
        return twin_entropy(cosines, replaced)

    def replace(cosine, norms):
        statistics = margin.update_norm_statistics(margin.initial_norm_statistics(), norms, 0.01)
        return margin.adaface(cosine, norms, statistics, 0.4, 0.333)

    assert_same(ours(replace, clip=1e-3), theirs(loss))
    statistics, mean, std = margin.initial_norm_statistics(), torch.tensor(20.0), torch.tensor(100.0)
    cosines = torch.zeros(8, 10)
    for step in range(10):
        norms = np.abs(RNG.normal(30 + step, 40, 8)).astype(np.float32)
        statistics = margin.update_norm_statistics(statistics, jnp.asarray(norms), 0.01)
        _, mean, std = adaface(cosines, torch.tensor(norms), mean, std)
        np.testing.assert_allclose(statistics, (mean, std), rtol=1e-6)
    assert float(statistics.mean) > 20.5
    assert float(statistics.std) < 97


def test_magface_and_its_regulariser():
    def loss(x, centres):
        cosines, norms = twin_cosines(x, centres), x.norm(dim=-1).clip(10, 110)
        m = (0.8 - 0.45) / (110 - 10) * (norms - 10) + 0.45
        cosine = right(cosines)
        fixed = cosine - torch.sin(math.pi - m) * m
        turned = torch.where(cosine > torch.cos(math.pi - m), torch.cos(cosine.arccos() + m), fixed)
        return twin_entropy(cosines, turned) + 35 * (norms / 110**2 + 1 / norms).mean()

    assert_same(ours(margin.magface, extra=lambda norms: 35 * margin.magface_regulariser(norms)), theirs(loss))


def test_classes_are_as_near_as_their_nearest_sub_centre():
    centres = RNG.normal(size=(10, 3, 16)).astype(np.float32)
    x, c = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (X, centres))
    cosines = torch.einsum(
        "nd,ckd->nck", torch.nn.functional.normalize(x, dim=-1), torch.nn.functional.normalize(c, dim=-1)
    ).amax(dim=-1)
    value = twin_entropy(cosines, insightface(cosines))
    value.backward()
    assert x.grad is not None
    assert c.grad is not None
    found = ours(lambda cosine, _: margin.combined(cosine, 1.0, 0.5, 0.0), centres=centres)
    assert_same(found, (value.item(), x.grad.numpy(), c.grad.numpy()))


def test_filtered_negatives_count_as_cosine_0():
    def loss(x, centres):
        cosines = twin_cosines(x, centres)
        dirty = (cosines > 0.2) & (torch.arange(10) != torch.tensor(LABELS)[:, None])
        assert dirty.any()
        cosines = torch.where(dirty, 0.0, cosines)
        return twin_entropy(cosines, insightface(cosines))

    assert_same(ours(lambda c, _: margin.combined(c, 1.0, 0.5, 0.0), filter_above=0.2), theirs(loss))
