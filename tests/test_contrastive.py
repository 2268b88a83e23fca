"""Test InfoNCE over a large batch: computing the similarities by rows gives the same loss and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax.losses import contrastive
from fvjax.parallel import sharding


def value_and_grad(mesh=None):
    fn = jax.value_and_grad(lambda z: contrastive.loss(z, jnp.arange(z.shape[0] // 2), 0.07))
    where = jax.sharding.NamedSharding(mesh, sharding.BATCH) if mesh else None
    return jax.jit(fn, in_shardings=where, out_shardings=(None, where))


@pytest.mark.parametrize(("chunk", "images"), [(2**12, 256), (1000, 90)])  # 16 chunks; 9, as 8 do not divide 90
def test_rows_at_a_time_are_the_whole_matrix(monkeypatch, chunk, images):
    z = jax.random.normal(jax.random.key(0), (images, 32))
    loss, grad = value_and_grad()(z)
    monkeypatch.setattr(contrastive, "CHUNK", chunk)
    got, got_grad = value_and_grad()(z)
    assert float(got) == pytest.approx(float(loss), rel=1e-6)
    assert np.linalg.norm(got_grad - grad) <= 1e-6 * np.linalg.norm(grad)


def test_memory_of_32768_images_is_bounded(monkeypatch):
    mesh = sharding.make_mesh({"data": 8, "fsdp": 1, "tensor": 1}, jax.devices()[:8])

    def mebibytes() -> float:
        compiled = value_and_grad(mesh).lower(jax.ShapeDtypeStruct((32_768, 512), jnp.float32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 2**20

    chunked = mebibytes()
    monkeypatch.setattr(contrastive, "CHUNK", 2**62)
    whole = mebibytes()
    print(f"a device's temporaries: {chunked:.0f} MiB, {whole:.0f} MiB with all rows at once")
    assert chunked < 160
    assert whole > 32_768**2 * 4 / 8 / 2**20, "else there is nothing to be saved"


@pytest.mark.parametrize("chunk", [2**26, 20])  # all rows at once, and a few at a time
def test_two_pairs_of_one_identity_are_no_negatives_of_each_other(monkeypatch, chunk):
    monkeypatch.setattr(contrastive, "CHUNK", chunk)
    z, labels = np.asarray(jax.random.normal(jax.random.key(1), (10, 6))), np.array([3, 1, 3, 0, 1])
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    expected = []
    for i in range(10):
        others = [j for j in range(10) if labels[j // 2] != labels[i // 2] or j == i ^ 1]
        expected.append(np.log(np.sum(np.exp(u[others] @ u[i] / 0.1))) - u[i] @ u[i ^ 1] / 0.1)
    assert float(contrastive.loss(z, jnp.asarray(labels), 0.1)) == pytest.approx(np.mean(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("shape", "pairs", "more", "message"),
    [
        ((7, 4), 3, {}, r"embeddings \[7, 4\]: rows 2i and 2i\+1 are a pair"),
        ((8,), 4, {}, r"embeddings \[8\]"),
        ((0, 4), 0, {}, "P > 0"),
        ((8, 4), 8, {}, "one for each of the 4 pairs"),
        ((8, 4), 4, {"temperature": 0.0}, "must be above 0"),
        ((8, 4), 4, {"group": 3}, "group=3"),
        ((8, 4), 4, {"group": 6}, "divide the 8 images"),
    ],
)
def test_what_gives_a_number_without_a_meaning_is_refused(shape, pairs, more, message):
    with pytest.raises(ValueError, match=message):
        contrastive.loss(jnp.zeros(shape), jnp.arange(pairs), **{"temperature": 0.07, **more})
