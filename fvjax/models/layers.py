"""Layers that the models share. Parameters may be stored in any float dtype; ``dtype`` is the compute dtype."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from fvjax.models import int8
from fvjax.models.cpu_conv import conv3x3

DType = Any
FLIP, DROPOUT, DROP_PATH = 1, 2, 3  # the uses of a per-image key; see fold_in
Attend = Literal["auto", "xla", "by_head", "cudnn"]  # implementations of self_attend
# Checkpoint name of the residuals that remat "dots" saves for the backward pass: the results of matrix products, each
# with its adapter's added, and of attention.
SAVED = "kept"
REMAT = {
    "dots": jax.checkpoint_policies.save_only_these_names(SAVED),
    "full": jax.checkpoint_policies.nothing_saveable,
}
# Queries per block of by_head: their logits fit a CPU's cache, and later keys of a causal sequence are skipped.
QUERIES = 128  # see benchmarks/ablations.py


def fold_in(keys, use: int):
    """Derive keys [N] for one use, so that flip, dropout and drop-path are independent with one PRNG key per image."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, use)


def _torch_linear(key, shape, dtype=jnp.float32):
    """Initialise like torch's Linear: uniform with bound 1/sqrt(in); ``shape`` is [in, …]."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Dense(nn.Module):
    """y = x @ kernel + bias, plus (x @ a.T) @ b if the collection ``lora`` has ``a`` [r, in] and ``b`` [r, out].

    ``fvjax.models.lora.scaled`` makes that collection, with the scale in ``b``. kernel [in, out]; result in ``dtype``.
    The kernel is int8 if the collection ``scales`` has its scales [out], see ``fvjax.models.int8``.
    """

    features: int
    use_bias: bool = True
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = x.astype(self.dtype)
        kernel = self.param("kernel", _torch_linear, (x.shape[-1], self.features))
        if self.has_variable("scales", "kernel"):
            y = int8.product(x, kernel, self.get_variable("scales", "kernel"))
        else:
            y = x @ kernel.astype(self.dtype)
        if self.has_variable("lora", "a"):
            y = y + low_rank(x, *(self.get_variable("lora", key).astype(self.dtype) for key in "ab"))
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return checkpoint_name(y, SAVED)


@jax.custom_vjp
def low_rank(x, a, b):
    """Compute (x @ a.T) @ b in one dtype: x [..., in], a [r, in], b [r, out].

    The gradients by a and b are written as products with r rows, because XLA would otherwise transpose the large x and
    the gradient of y (on a CPU that takes 6 to 8 times as long as the product).
    """
    return _low_rank_forward(x, a, b)[0]


def _low_rank_forward(x, a, b):
    inner = checkpoint_name(x @ a.T, SAVED)
    return inner @ b, (x, a, b, inner)


def _low_rank_backward(residuals, dy):
    x, a, b, inner = residuals
    dinner = dy @ b.T
    rows = tuple(range(x.ndim - 1))
    over_rows = partial(lax.dot_general, dimension_numbers=((rows, rows), ((), ())))
    return dinner @ a, over_rows(dinner, x), over_rows(inner, dy)


low_rank.defvjp(_low_rank_forward, _low_rank_backward)


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


class GatedMlp(nn.Module):
    """Gated MLP: down(silu(gate(x)) * up(x))."""

    dim: int
    bias: bool
    dtype: DType

    @nn.compact
    def __call__(self, x):
        dense = partial(Dense, use_bias=self.bias, dtype=self.dtype)
        y = jax.nn.silu(dense(self.dim, name="gate")(x)) * dense(self.dim, name="up")(x)
        return dense(x.shape[-1], name="down")(y)


def last_token(x: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """Return the last token of each row before its padding: x [N,T,…] -> [N,1,…]."""
    if lengths is None:
        return x[:, -1:]
    return jnp.take_along_axis(x, (lengths - 1).reshape(-1, *[1] * (x.ndim - 1)), axis=1)


def attend(q, k, v, mask=None):
    """Compute softmax attention, like `jax.nn.dot_product_attention` but without transposing the logits on a CPU.

    q [N,T,heads,dim]; k, v [N,S,kv_heads,dim]: query head h uses key head h // (heads / kv_heads). mask: bool
    [N or 1,T,S], true for the keys that a query attends to. Logits and softmax are float32; the result [N,T,heads,dim]
    has v's dtype.
    """
    n, tokens, heads, dim = q.shape
    q = q.reshape(n, tokens, k.shape[2], -1, dim).transpose(0, 2, 3, 1, 4)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    logits = jnp.einsum("nkgtd,nksd->nkgts", q, k, preferred_element_type=jnp.float32) * dim**-0.5
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, -jnp.inf)
    y = jnp.einsum("nkgts,nksd->nkgtd", jax.nn.softmax(logits).astype(v.dtype), v)
    return y.transpose(0, 3, 1, 2, 4).reshape(n, tokens, heads, dim)


def self_attend(q, k, v, *, causal: bool, implementation: Attend):
    """Let a sequence's last T tokens :func:`attend` to all of its S tokens; if ``causal``, not to later ones.

    implementation: "xla" is :func:`attend`; "by_head" computes one key head after the other; "auto" is "by_head" on a
    CPU and "xla" elsewhere; "cudnn" is NVIDIA's fused kernel for half precision ("xla" if T < S, which the kernel's
    causal mask does not support).
    """
    n, tokens, heads, dim = q.shape
    if implementation == "cudnn" and tokens == k.shape[1]:
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
    if implementation in ("xla", "cudnn") or (implementation == "auto" and jax.default_backend() != "cpu"):
        mask = jnp.tri(tokens, k.shape[1], k.shape[1] - tokens, dtype=bool)[None] if causal else None
        return attend(q, k, v, mask)
    q = q.reshape(n, tokens, k.shape[2], -1, dim).transpose(2, 0, 3, 1, 4)
    y: Any = by_head(q, k.transpose(2, 0, 1, 3), v.transpose(2, 0, 1, 3), causal)
    return y.transpose(1, 3, 0, 2, 4).reshape(n, tokens, heads, dim)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def by_head(q, k, v, causal: bool):
    """Compute softmax attention by key head: q [kv_heads,N,heads/kv_heads,T,dim], k, v [kv_heads,N,S,dim] -> like q.

    With ``causal`` the queries belong to the last T of S tokens.

    A head's logits fit a CPU's cache and are never saved: the gradient recomputes them from q, k and the logarithms of
    their sums, as FlashAttention does (Dao et al. 2022, algorithm 4).
    """
    return _by_head_forward(q, k, v, causal)[0]


def _by_head_forward(q, k, v, causal):
    def attend_head(head):
        q, k, v = head
        outs, log_sums = [], []
        for rows, keys in _blocks(q.shape[2], k.shape[1], causal):
            logits = _logits(q[:, :, rows], k[:, keys], causal)
            top = logits.max(-1, keepdims=True)
            p = jnp.exp(logits - top)
            total = p.sum(-1, keepdims=True)
            outs.append(_einsum("ngts,nsd->ngtd", p.astype(v.dtype), v[:, keys]) / total)
            log_sums.append(top + jnp.log(total))
        return jnp.concatenate(outs, 2).astype(v.dtype), jnp.concatenate(log_sums, 2)

    y, log_sums = checkpoint_name(lax.map(attend_head, (q, k, v)), SAVED)
    return y, (q, k, v, y, log_sums)


def _by_head_backward(causal, residuals, dy):
    def differentiate_head(head):
        q, k, v, y, log_sums, dy = head
        dq = []
        # [N,dim,S] instead of [N,S,dim], so that the probabilities p need not be transposed
        dk, dv = (jnp.zeros(x.swapaxes(1, 2).shape, jnp.float32) for x in (k, v))
        inner = (dy.astype(jnp.float32) * y).sum(-1, keepdims=True)
        for rows, keys in _blocks(q.shape[2], k.shape[1], causal):
            p = jnp.exp(_logits(q[:, :, rows], k[:, keys], causal) - log_sums[:, :, rows])
            dp = _einsum("ngtd,nsd->ngts", dy[:, :, rows], v[:, keys])
            dlogits = (p * (dp - inner[:, :, rows]) * q.shape[-1] ** -0.5).astype(q.dtype)
            dq.append(_einsum("ngts,nsd->ngtd", dlogits, k[:, keys]))
            dk = dk.at[:, :, keys].add(_einsum("ngtd,ngts->nds", q[:, :, rows], dlogits))
            dv = dv.at[:, :, keys].add(_einsum("ngtd,ngts->nds", dy[:, :, rows], p.astype(dy.dtype)))
        return jnp.concatenate(dq, 2).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)

    dq, dk, dv = lax.map(differentiate_head, (*residuals, dy))
    return dq, dk.swapaxes(2, 3), dv.swapaxes(2, 3)


by_head.defvjp(_by_head_forward, _by_head_backward)
_einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)


def _blocks(tokens: int, keys: int, causal: bool) -> Iterator[tuple[slice, slice]]:
    """Yield (queries, the keys that they attend to) for blocks of a sequence's last tokens."""
    count = -(-tokens // QUERIES)
    ends = [tokens * (i + 1) // count for i in range(count)]
    for start, end in zip([0, *ends], ends):
        yield slice(start, end), slice(0, keys - tokens + end if causal else keys)


def _logits(q, k, causal: bool):
    """Compute logits float32 [N,g,t,s] of queries [N,g,t,dim] and keys [N,s,dim].

    With ``causal`` the last query attends to all keys.
    """
    logits = _einsum("ngtd,nsd->ngts", q, k) * q.shape[-1] ** -0.5
    if not causal:
        return logits
    tokens, keys = q.shape[2], k.shape[1]
    return jnp.where(jnp.tri(tokens, keys, keys - tokens, dtype=bool), logits, -jnp.inf)


def conv2d(x, kernel, stride: int = 1):
    """Convolve with torch's symmetric padding (k-1)//2: x [N,H,W,in], kernel [k,k,in,out]."""
    size = kernel.shape[0]
    pad = (size - 1) // 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad), (pad, pad)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


class Conv(nn.Module):
    """Convolution without bias, kernel [k, k, in, out]. ``on_cpu`` selects the implementation in ``cpu_conv``."""

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
    """torch's BatchNorm over all axes but the last. Unlike flax's, its running variance is the unbiased one.

    Under jit the statistics cover the global batch. Computed in float32 (or x's float64); result in ``dtype``.
    Collection ``batch_stats``: ``mean`` and ``var`` [C], updated when ``train`` and the collection is mutable.
    """

    eps: float = 1e-5
    momentum: float = 0.1  # as in torch: the weight of the new value
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
            # The moments are taken of a reshaped copy, not by x.mean(axes), so that their gradients are added to each
            # other before they are added to x's. A constant added to x's large gradient is rounded to the same side
            # everywhere, and then a bias two layers before, whose gradient is a small sum of large terms, was 3.4e-5
            # off. The variance takes a second pass because mean(x^2) - mean^2 loses digits if a channel hardly varies.
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
    """Apply inverted dropout to x [N, …]; image i's mask depends only on keys[i], not on its row in the batch."""
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(fold_in(keys, DROPOUT))
    return jnp.where(keep, x / (1 - rate), 0)
