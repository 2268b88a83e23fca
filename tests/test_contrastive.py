"""InfoNCE over a large batch computes some rows of the similarities at a time, with the same loss and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax.losses import contrastive
from fvjax.parallel import sharding


def value_and_grad(mesh=None):
    fn = jax.value_and_grad(lambda z: contrastive.loss(z, jnp.zeros(z.shape[0] // 2, jnp.int32), 0.07))
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
