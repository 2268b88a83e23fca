"""The convolutions arranged for the CPU give what XLA's own give, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax.models.cpu_conv import conv3x3
from fvjax.models.layers import conv2d

SHAPES = [  # rows, columns, in, out, stride: every branch, and the sizes that must fall back
    (112, 112, 3, 4, 1),
    (112, 112, 4, 5, 2),
    (112, 112, 5, 4, 1),
    (56, 56, 6, 6, 1),
    (28, 28, 6, 8, 2),
    (7, 7, 8, 8, 1),
    (9, 9, 3, 4, 1),
    (9, 8, 5, 4, 2),
    (8, 9, 5, 4, 2),
]


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
