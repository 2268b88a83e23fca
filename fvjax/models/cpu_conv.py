"""3x3 convolutions arranged for XLA's CPU backend: what `lax.conv_general_dilated` gives, by other sums.

Wide ones of stride 1, of enough images, are Winograd's F(2x2, 3x3), of Lavin and Gray, arXiv:1509.09308: two rows and
columns of outputs from four of inputs take 16 products where the definition takes 36, and matrix products run faster
there than XLA's convolutions. So do their gradients. In float32 they are as exact as XLA's (tests/test_cpu_conv.py); in
fewer bits the sums of inputs would be rounded before they are multiplied. Of the others: an image's three channels fill
no vector register, so two pixels are taken as one; XLA's weight gradient transposes both operands whole, which no cache
holds, and its input gradient of a strided one multiplies by zeros. What each brings is in benchmarks/README.md.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

WIDE = 32  # channels in and out, from which the fewer products outweigh the sums around them
WORK = 1e8  # products per tap, from which steps soon save what compiling takes longer: not for two photographs
PIXELS = 56 * 56  # of a device at a time: what is made of more leaves its cache


def _conv(x, kernel, stride=1):
    pad, dims = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=dims)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x, kernel, stride: int = 1):
    """x [N,H,W,in] with torch's padding 1 and kernel [3,3,in,out] -> [N,H/stride,W/stride,out]."""
    n, h, w, channels = x.shape
    if _by_tiles(x, kernel, stride):
        return _winograd(x, kernel)
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
    if _by_tiles(x, kernel, stride):
        return _winograd(g, kernel, turned=True), _winograd_weight_gradient(x, g)
    if stride == 2 and not (x.shape[1] % 2 or x.shape[2] % 2):
        by_input = _strided_input_gradient(kernel, g)
    else:
        by_input = jax.linear_transpose(lambda x: _conv(x, kernel, stride), x)(g)[0]
    return by_input, _weight_gradient(x, kernel, stride, g)


conv3x3.defvjp(_forward, _backward)


def _strided_input_gradient(kernel, g):
    """Of stride 2: kernel [3,3,in,out], g [N,H,W,out] -> [N,2H,2W,in], by a convolution for each of 2x2 pixels."""
    taps = slice(1, 2), slice(2, None, -2)  # what multiplied an even row, and an odd one: first g's of the same index

    def pixels(row, column):
        pad, dims = ((0, row), (0, column)), ("NHWC", "HWOI", "NHWC")
        return lax.conv_general_dilated(g, kernel[taps[row], taps[column]], (1, 1), pad, dimension_numbers=dims)

    both = [jnp.stack([pixels(row, 0), pixels(row, 1)], 3) for row in range(2)]
    return jnp.stack(both, 2).reshape(len(g), 2 * g.shape[1], 2 * g.shape[2], -1)


def _parts(x, images):
    """x [N,...] -> [devices, turns, n, ...], n <= images: an image stays on its device, and several take turns there.

    Turns even where all would fit: else XLA keeps the tiles of the forward pass, 4 times x, for the gradient.
    """
    devices = math.gcd(len(x), jax.device_count())
    own = len(x) // devices
    n = next(n for n in range(max(1, min(images, own // 2)), 0, -1) if own % n == 0)
    return x.reshape(devices, own // n, n, *x.shape[1:])


def _in_turn(some, done, *parts):
    """some(i, done, *part i of each) -> done, for all turns. A scan would have turns first, for which XLA copies x."""

    def one(i, done):
        return some(i, done, *(lax.dynamic_index_in_dim(x, i, 1, keepdims=False) for x in parts))

    return lax.fori_loop(0, parts[0].shape[1], one, done)


def _weight_gradient(x, kernel, stride, g):
    """Of an image of each device at a time, as a product in which the outputs come first: the pixels are not turned."""
    (height, width), dtype = g.shape[1:3], jnp.promote_types(x.dtype, jnp.float32)

    def one(_, total, x, g):
        x = jnp.pad(x[:, 0], ((0, 0), (1, 1), (1, 1), (0, 0)))  # [devices, rows, columns, channels]
        down, across = ([slice(i, i + stride * (size - 1) + 1, stride) for i in range(3)] for size in (height, width))
        patches = jnp.concatenate([x[:, rows, columns] for rows in down for columns in across], -1)
        patches, g = (y.reshape(len(y), height * width, -1) for y in (patches, g))
        return total + jnp.einsum("dpo,dpi->doi", g, patches, preferred_element_type=dtype)

    xs, gs = _parts(x, 1), _parts(g, 1)
    total = _in_turn(one, jnp.zeros((len(xs), g.shape[-1], 9 * x.shape[-1]), dtype), xs, gs)
    return total.sum(0).T.reshape(kernel.shape).astype(kernel.dtype)


# ---- Winograd's, with the paper's B, G and A; a tile's 16 numbers are a list of 16 arrays ----------------------------


def _by_tiles(x, kernel, stride):
    work = x.size * kernel.shape[-1]
    return stride == 1 and work >= WORK and x.dtype == jnp.float32 and min(kernel.shape[2:]) >= WIDE


def _twice(one, x, axes):
    """A transform of rows, then the same one of columns: [x00, x01, …], each without neighbours in a row or column."""
    return [y for rows in one(x, axes[0]) for y in one(rows, axes[1])]


def _every_other(x, axis, starts):
    last = x.shape[axis] - max(starts)
    return [lax.slice_in_dim(x, i, i + last, 2, axis) for i in starts]


def _tiles(x):
    """B' d B of all tiles d, 4x4 pixels, 2 apart: [devices, images, H, W, C] -> 16 of [devices, tiles, C]."""

    def one(x, axis):
        a, b, c, d = _every_other(x, axis, range(4))
        return a - c, b + c, c - b, b - d

    x = jnp.pad(x, [(0, 0), (0, 0), *((1, 1 + size % 2) for size in x.shape[2:4]), (0, 0)])
    return [y.reshape(len(x), -1, x.shape[-1]) for y in _twice(one, x, (2, 3))]


def _spread(g):
    """A g A' of all 2x2 pixels of g: [devices, images, H, W, C] -> 16 of [devices, tiles, C]."""

    def one(g, axis):
        a, b = _every_other(g, axis, range(2))
        return a, a + b, a - b, -b

    g = jnp.pad(g, [(0, 0), (0, 0), *((0, size % 2) for size in g.shape[2:4]), (0, 0)])
    return [y.reshape(len(g), -1, g.shape[-1]) for y in _twice(one, g, (2, 3))]


def _winograd(x, kernel, turned=False):
    """A' [(G k G') * (B' d B)] A, where * multiplies element by element and adds over channels.

    turned: with the kernel of the input gradient, kernel[::-1, ::-1].swapaxes(2, 3), which is not made.
    """
    (_, h, w, _), out = x.shape, kernel.shape[2 if turned else 3]

    def one(k, axis):
        a, b, c = (lax.index_in_dim(k, i, axis, keepdims=False) for i in range(3))
        return a, (a + b + c) / 2, (a - b + c) / 2, c

    kernels = _twice(one, kernel, (0, 0))  # 16 arrays, not one: a loop would slice it in every turn
    if turned:  # a, b, c -> c, b, a makes of one's four numbers the last, second, third, first
        kernels = [kernels[4 * i + j] for i in (3, 1, 2, 0) for j in (3, 1, 2, 0)]
    sums = "dpo,io->dpi" if turned else "dpi,io->dpo"

    def some(i, done, x):
        m = [jnp.einsum(sums, tile, k) for tile, k in zip(_tiles(x), kernels, strict=True)]
        rows = [[m[j] + m[4 + j] + m[8 + j], m[4 + j] - m[8 + j] - m[12 + j]] for j in range(4)]
        both = [jnp.stack([a + b + c, b - c - d], 2) for a, b, c, d in zip(*rows, strict=True)]
        both = [y.reshape(*x.shape[:2], -(-h // 2), w + w % 2, out) for y in both]
        y = jnp.stack(both, 3).reshape(*x.shape[:2], h + h % 2, w + w % 2, out)[:, :, :h, :w]
        return lax.dynamic_update_index_in_dim(done, y, i, 1)

    xs = _parts(x, PIXELS // (h * w))
    return _in_turn(some, jnp.zeros((*xs.shape[:-1], out), x.dtype), xs).reshape(-1, h, w, out)


def _winograd_weight_gradient(x, g):
    """G' [(A g A') * (B' d B)] G, where * multiplies element by element and adds over tiles."""

    def some(_, total, x, g):
        pairs = zip(total, _tiles(x), _spread(g), strict=True)
        return [a + jnp.einsum("dpo,dpi->doi", z, y) for a, y, z in pairs]

    def one(k, axis):
        a, b, c, d = (lax.index_in_dim(k, i, axis, keepdims=False) for i in range(4))
        return a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d

    xs, gs = (_parts(y, PIXELS // (g.shape[1] * g.shape[2])) for y in (x, g))
    total = _in_turn(some, [jnp.zeros((len(xs), g.shape[-1], x.shape[-1]), g.dtype)] * 16, xs, gs)
    m = jnp.stack([y.sum(0).T for y in total]).reshape(4, 4, x.shape[-1], -1)
    return jnp.stack(_twice(one, m, (0, 0))).reshape(3, 3, x.shape[-1], -1)
