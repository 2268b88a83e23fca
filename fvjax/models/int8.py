"""Frozen kernels as 8-bit integers with one float32 scale for each output channel.

    W [in, out]  is kept as  q int8 [in, out] and s float32 [out];  q * s takes its place

A channel's largest weight becomes 127 or -127 (symmetric, without an offset), and every other one is rounded to the
nearest multiple of s. So no weight is off by more than s / 2, which is at most 1/254 of its channel's largest.

The kernels of attention and MLP in the layers of a tower or decoder are kept so. Embeddings, the output head, norms,
biases, the patch embedding and the projector are not: together they are small, and the head's errors would go straight
into the logits. Scales are a collection of variables of their own, beside `params` and `lora`; Dense reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fvjax import trees

KERNELS = r"params/(.*/)?blocks/(attn|mlp)/\w+/kernel"  # names of what is kept as int8
LARGEST = 127
ROWS, CHANNELS = 64, 1024  # of a kernel that are quantised at a time, so that they stay in a CPU's cache


class Quantised(NamedTuple):
    """A kernel as integers, and how far it is from the original.

    Attributes:
        q: int8 [..., in, out]. scale: float32 [..., out].
        squared_error, squared_weight: float32 [..., out], sums over a channel of (W - q s)^2 and of W^2.
        largest_error: float32 [..., out], a channel's largest |W - q s| by its largest |W|; at most 1/254.
    """

    q: np.ndarray
    scale: np.ndarray
    squared_error: np.ndarray
    squared_weight: np.ndarray
    largest_error: np.ndarray


def is_quantised(name: str) -> bool:
    """Whether the variable of this name is kept as int8 when kernels are."""
    return re.fullmatch(KERNELS, name) is not None


def scale_name(kernel: str) -> str:
    """Return the name of a kernel's scales."""
    return kernel.replace("params/", "scales/", 1)


def parameters(variables: Mapping[str, Any]) -> int:
    """Count the parameters in nested variables. Scales are part of how a kernel is kept, so they do not count."""
    return sum(x.size for name, x in trees.flatten(variables).items() if not name.startswith("scales/"))


def quantise(kernel: np.ndarray) -> Quantised:
    """Quantise a kernel [in, out] of any float dtype up to float32.

    The bound on the error holds exactly, not only up to rounding: scales are rounded down, and quotients that lie
    half-way between two integers, as far as float32 can tell, are rounded in float64. Raises ValueError for weights
    that are not finite.
    """
    outputs = kernel.shape[1]
    parts = [_quantise_channels(kernel[:, start : start + CHANNELS]) for start in range(0, outputs, CHANNELS)]
    return Quantised(*(np.concatenate(fields, axis=-1) for fields in zip(*parts)))


def _quantise_channels(kernel: np.ndarray) -> Quantised:
    largest = np.abs(kernel).max(0).astype(np.float64)
    if not np.isfinite(largest).all():
        raise ValueError("has weights that are not finite, which no integer can stand for")
    scale = (largest / LARGEST).astype(np.float32)
    scale = np.where(LARGEST * scale.astype(np.float64) > largest, np.nextafter(scale, np.float32(0)), scale)
    divisor = np.where(scale == 0, np.float32(1), scale)
    q = np.empty(kernel.shape, np.int8)
    error, weight, worst = np.zeros((3, kernel.shape[1]))  # in multiples of the scale
    for start in range(0, len(kernel), ROWS):
        rows = kernel[start : start + ROWS].astype(np.float32)
        quotients = rows / divisor
        rounded = np.rint(quotients)
        remainders = np.abs(quotients - rounded)
        if (ties := remainders > 0.4999).any():
            exact = rows[ties].astype(np.float64) / np.broadcast_to(divisor, rows.shape)[ties]
            rounded[ties] = np.rint(exact)
        q[start : start + ROWS] = rounded
        error += np.einsum("ij,ij->j", remainders, remainders)
        weight += np.einsum("ij,ij->j", quotients, quotients)
        worst = np.maximum(worst, remainders.max(0))
    squared = np.square(scale.astype(np.float64))
    sums = error * squared, weight * squared, worst * scale / np.where(largest == 0, 1, largest)
    return Quantised(q, scale, *(x.astype(np.float32) for x in sums))


@jax.custom_vjp
def product(x: jax.Array, q: jax.Array, scale: jax.Array) -> jax.Array:
    """Compute x @ (q * scale) in x's dtype: x [..., in], q int8 [in, out], scale float32 [out].

    The scales multiply the product and not q, so no dequantised kernel is kept; the backward pass reads q again.
    Differentiable by x alone.
    """
    return _times(x @ q.astype(x.dtype), scale)


def _product_forward(x, q, scale):
    return product(x, q, scale), (q, scale)


def _product_backward(residuals, dy):
    q, scale = residuals
    return _times(dy, scale) @ q.astype(dy.dtype).T, None, None


product.defvjp(_product_forward, _product_backward)


def _times(x, scale):
    """Multiply in float32 -> x's dtype; a scale in bfloat16 would be off by up to 1/512 for a whole channel."""
    return (x.astype(jnp.float32) * scale).astype(x.dtype)
