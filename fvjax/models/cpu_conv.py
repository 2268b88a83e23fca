"""3x3 convolutions arranged for XLA's CPU backend: the same sums as `lax.conv_general_dilated`, in another order.

Two of XLA's choices on the CPU cost a narrow ResNet time and memory (benchmarks/README.md): an image's three channels
fill no vector register; the weight gradient transposes both operands whole, which no cache holds. The input gradient is
XLA's own: arranged too, it made one gradient's rounding depend on the number of devices by 1.6e-5.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax


def _conv(x, kernel, stride=1):
    pad, dims = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=dims)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x, kernel, stride: int = 1):
    """x [N,H,W,in] with torch's padding 1 and kernel [3,3,in,out] -> [N,H/stride,W/stride,out]."""
    n, h, w, channels = x.shape
    if channels > 4 or stride != 1 or w % 2:
        return _conv(x, kernel, stride)
    # two neighbouring pixels are one of twice the channels; the kernel, shifted by a pixel, makes both outputs
    pairs = jnp.stack([jnp.pad(kernel, ((0, 0), (1 + i, 2 - i), (0, 0), (0, 0))) for i in range(2)], axis=-2)
    folded = _conv(x.reshape(n, h, w // 2, 2 * channels), pairs.reshape(3, 3, 2 * channels, -1))
    return folded.reshape(n, h, w, -1)


def _forward(x, kernel, stride):
    return conv3x3(x, kernel, stride), (x, kernel)


def _backward(stride, saved, g):
    x, kernel = saved
    return jax.vjp(lambda x: _conv(x, kernel, stride), x)[1](g)[0], _weight_gradient(x, kernel, stride, g)


def _weight_gradient(x, kernel, stride, g):
    """Of an image of each device at a time, as a product in which the outputs come first: the pixels are not turned."""
    (n, height, width, out), parts = g.shape, math.gcd(g.shape[0], jax.device_count())  # an image stays on its device
    dtype = jnp.promote_types(x.dtype, jnp.float32)

    def one(total, given):
        x, g = given  # [parts, rows, columns, channels]
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        down, across = ([slice(i, i + stride * (size - 1) + 1, stride) for i in range(3)] for size in (height, width))
        patches = jnp.concatenate([x[:, rows, columns] for rows in down for columns in across], -1)
        patches, g = (y.reshape(parts, height * width, -1) for y in (patches, g))
        return total + jnp.einsum("dpo,dpi->doi", g, patches, preferred_element_type=dtype), None

    given = [y.reshape(parts, n // parts, *y.shape[1:]).swapaxes(0, 1) for y in (x, g)]
    total, _ = lax.scan(one, jnp.zeros((parts, out, 9 * x.shape[-1]), dtype), tuple(given))
    return total.sum(0).T.reshape(kernel.shape).astype(kernel.dtype)


conv3x3.defvjp(_forward, _backward)
