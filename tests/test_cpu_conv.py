"""Test that the convolutions written for the CPU equal XLA's own, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax.models import cpu_conv
from fvjax.models.cpu_conv import WIDE, conv3x3
from fvjax.models.layers import conv2d
from fvjax.planning import flops

SHAPES = [  # rows, columns, in, out, stride: every branch, and the sizes that need the fallback
    (112, 112, 3, 4, 1),
    (112, 112, 4, 5, 2),
    (112, 112, 5, 4, 1),
    (56, 56, 6, 6, 1),
    (28, 28, 6, 8, 2),
    (7, 7, 8, 8, 1),
    (9, 9, 3, 4, 1),
    (9, 8, 5, 4, 2),
    (8, 9, 5, 4, 2),
    (28, 28, WIDE, WIDE, 2),
    (28, 28, WIDE, WIDE - 1, 1),
]
TILES = [(28, 28, WIDE, 40), (7, 7, 64, WIDE), (9, 6, WIDE, WIDE), (1, 1, WIDE, WIDE)]


@pytest.mark.parametrize(("rows", "columns", "inputs", "outputs", "stride"), SHAPES)
def test_values_and_gradients(rows, columns, inputs, outputs, stride):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((6, rows, columns, inputs)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, inputs, outputs)), jnp.float32)
    want, want_back = jax.vjp(lambda x, k: conv2d(x, k, stride), x, kernel)
    got, got_back = jax.vjp(lambda x, k: conv3x3(x, k, stride), x, kernel)
    g = jnp.asarray(rng.standard_normal(want.shape), jnp.float32)
    for a, b in zip((got, *got_back(g)), (want, *want_back(g)), strict=True):
        assert a.shape == b.shape
        assert float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) < 1e-6


def errors(convolve, x, kernel, g):
    """Compute the relative errors of values and both gradients, compared with float64."""
    got, back = jax.vjp(convolve, x, kernel)
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(y), jnp.float64) for y in (x, kernel, g)]
        want, want_back = jax.vjp(lambda x, k: conv2d(x, k, 1), *exact[:2])
        pairs = zip((got, *back(g)), (want, *want_back(exact[2])), strict=True)
        return [float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) for a, b in pairs]


@pytest.mark.parametrize("images", [1, 6])
@pytest.mark.parametrize(("rows", "columns", "inputs", "outputs"), TILES)
def test_fewer_products_are_as_exact(rows, columns, inputs, outputs, images, monkeypatch):
    monkeypatch.setattr(cpu_conv, "WORK", 0)
    rng = np.random.default_rng(1)
    shapes = (images, rows, columns, inputs), (3, 3, inputs, outputs), (images, rows, columns, outputs)
    given = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
    ours, xla = (errors(convolve, *given) for convolve in (conv3x3, lambda x, k: conv2d(x, k, 1)))
    assert all(a < max(1.5 * b, 4e-7) for a, b in zip(ours, xla, strict=True)), (ours, xla)


def products(convolve, dtype, images, width):
    """Count the FLOPs of values and both gradients."""
    shapes = (images, 14, 14, width), (3, 3, width, width), (images, 14, 14, width)
    given = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return flops.count(lambda x, k, g: jax.vjp(convolve, x, k)[1](g), *given)


@pytest.mark.parametrize(
    ("dtype", "images", "width", "share"),
    [
        ("float32", 16, 256, 16 / 36),  # IResNet-50
        ("float32", 128, 64, 16 / 36),  # configs/small_real.py
        ("bfloat16", 16, 256, 1),
        ("float32", 2, 256, 1),  # two photographs
        ("float32", 32, 24, 1),  # configs/quickstart.py
        ("float32", 8192, WIDE - 1, 1),
    ],
)
def test_fewer_products(dtype, images, width, share):
    assert products(conv3x3, dtype, images, width) == share * products(
        lambda x, k: conv2d(x, k, 1), dtype, images, width
    )
