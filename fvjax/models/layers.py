"""Layers the models share. Parameters may be stored in any float dtype; ``dtype`` is what is computed in."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fvjax.models.cpu_conv import conv3x3

DType = Any
FLIP, DROPOUT, DROP_PATH = 1, 2, 3  # what one per-image key is used for; see fold_in
REMAT = {  # what a layer's backward pass finds saved
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def fold_in(keys, use: int):
    """Keys [N] for one use, so that one PRNG key per image serves flip, dropout and drop-path independently."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, use)


def _torch_linear(key, shape, dtype=jnp.float32):
    """torch's default for Linear: uniform with bound 1/sqrt(in); ``shape`` is [in, …]."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Dense(nn.Module):
    """y = x @ kernel + bias, plus (x @ a) @ b where the collection ``lora`` holds ``a`` [in, r] and ``b`` [r, out].

    The adapters' scale is already in ``b`` (see ``fvjax.lora.scaled``). kernel [in, out]; result in ``dtype``.
    """

    features: int
    use_bias: bool = True
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = x.astype(self.dtype)
        kernel = self.param("kernel", _torch_linear, (x.shape[-1], self.features))
        y = x @ kernel.astype(self.dtype)
        if self.has_variable("lora", "a"):
            a, b = self.get_variable("lora", "a"), self.get_variable("lora", "b")
            y = y + (x @ a.astype(self.dtype)) @ b.astype(self.dtype)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, computed in float32; result in ``dtype``."""

    eps: float
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:]).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:]).astype(jnp.float32)
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * lax.rsqrt(lax.square(x).mean(-1, keepdims=True) + self.eps)
        return (x * scale + bias).astype(self.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32; result in ``dtype``."""

    eps: float
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:]).astype(jnp.float32)
        x = x.astype(jnp.float32)
        x = x * lax.rsqrt(lax.square(x).mean(-1, keepdims=True) + self.eps)
        return (x * scale).astype(self.dtype)


def attend(q, k, v, mask=None):
    """Softmax attention, as `jax.nn.dot_product_attention`, whose order of axes makes the CPU transpose the logits.

    q [N,T,heads,dim]; k, v [N,S,kv_heads,dim]: query head h goes with key head h // (heads / kv_heads). mask: bool
    [N or 1,T,S], what may be looked at. Logits and softmax in float32; result [N,T,heads,dim] in v's dtype.
    """
    n, tokens, heads, dim = q.shape
    q = q.reshape(n, tokens, k.shape[2], -1, dim).transpose(0, 2, 3, 1, 4)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    logits = jnp.einsum("nkgtd,nksd->nkgts", q, k, preferred_element_type=jnp.float32) * dim**-0.5
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, -jnp.inf)
    y = jnp.einsum("nkgts,nksd->nkgtd", jax.nn.softmax(logits).astype(v.dtype), v)
    return y.transpose(0, 3, 1, 2, 4).reshape(n, tokens, heads, dim)


def conv2d(x, kernel, stride: int = 1):
    """Convolution with torch's symmetric padding (k-1)//2: x [N,H,W,in], kernel [k,k,in,out]."""
    size = kernel.shape[0]
    if size == 1 and stride > 1:  # XLA's CPU backward of a strided 1x1 is 3x slower than slicing first
        x, stride = x[:, ::stride, ::stride], 1
    pad = (size - 1) // 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad), (pad, pad)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


class Conv(nn.Module):
    """Convolution without bias, kernel [k, k, in, out]. ``on_cpu`` picks the order of sums, see ``cpu_conv``."""

    features: int
    size: int
    stride: int = 1
    kernel_init: Any = nn.initializers.normal(0.1)
    dtype: DType = jnp.float32
    on_cpu: bool = False

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        convolve: Any = conv3x3 if self.on_cpu and self.size == 3 else conv2d
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


class BatchNorm(nn.Module):
    """torch's BatchNorm over all axes but the last, which flax's is not: torch's running variance is unbiased.

    Under jit the statistics are those of the global batch. Computed in float32 (or x's float64); result in ``dtype``.
    Collection ``batch_stats``: ``mean`` and ``var`` [C], updated when ``train`` and the collection is mutable.
    """

    eps: float = 1e-5
    momentum: float = 0.1  # torch's sense: the weight of the new value
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        channels = x.shape[-1]
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        scale = self.param("scale", nn.initializers.ones, (channels,)).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,)).astype(x.dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if train:
            count = x.size // channels
            if count < 2:
                raise ValueError("BatchNorm in training needs more than one value per channel; use a larger batch")
            # Of an array of their own (not x.mean(axes)), so that the gradients by the moments are added to each other
            # before they join x's: a constant added to x's large one is rounded to one side all over the image, and a
            # bias two layers before, whose gradient is a small sum of large terms, was 3.4e-5 off. The variance in a
            # second pass: mean(x^2) - mean^2 loses digits where a channel hardly varies.
            flat = x.reshape(-1, channels)
            mean = flat.mean(0)
            var = lax.square(flat - mean).mean(0)
            if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
                m = self.momentum
                running_mean.value = (1 - m) * running_mean.value + m * mean
                running_var.value = (1 - m) * running_var.value + m * var * (count / (count - 1))
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * lax.rsqrt(var + self.eps)
        return (x * factor + (bias - mean * factor)).astype(self.dtype)


class PReLU(nn.Module):
    """max(x, 0) + slope * min(x, 0) with one slope per channel, [C]."""

    @nn.compact
    def __call__(self, x):
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],))
        return jnp.where(x >= 0, x, x * slope.astype(x.dtype))


def dropout(x, rate: float, keys):
    """Inverted dropout of x [N, …]; image i's mask depends on keys[i] alone, wherever the image stands in the batch."""
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(fold_in(keys, DROPOUT))
    return jnp.where(keep, x / (1 - rate), 0)
