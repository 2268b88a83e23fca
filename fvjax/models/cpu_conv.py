"""3x3 convolutions arranged for XLA's CPU backend: the results of `lax.conv_general_dilated` by faster sums.

- Wide convolutions of stride 1 on enough images, and their gradients, use Winograd's F(2x2, 3x3) (Lavin and Gray,
  arXiv:1509.09308). It computes a 2x2 block of outputs from a 4x4 block of inputs with 16 products instead of 36, and
  matrix products run faster on a CPU than XLA's convolutions. In float32 it is as exact as XLA's convolution
  (tests/test_cpu_conv.py); in fewer bits the sums of inputs would be rounded before they are multiplied.
- A convolution of three channels does not fill a vector register, so two neighbouring pixels are treated as one.
- XLA's weight gradient transposes both operands as a whole, which exceeds every cache. Here it is computed image by
  image.
- XLA's input gradient of a strided convolution multiplies by zeros. Here it is four convolutions without them.

benchmarks/README.md has what each of them saves.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

# Winograd's method needs this many channels in and out: with fewer, its additional sums outweigh the saved products.
WIDE = 32
# It needs this many products per kernel element: with fewer (two photographs), it does not repay its compile time.
WORK = 1e8
# Pixels that a device processes at a time, so that intermediate results stay in its cache.
PIXELS = 56 * 56


def _conv(x, kernel, stride=1):
    pad, dims = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=dims)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x, kernel, stride: int = 1):
    """Convolve x [N,H,W,in] with kernel [3,3,in,out] and torch's padding 1 -> [N,H/stride,W/stride,out]."""
    n, h, w, channels = x.shape
    if _use_winograd(x, kernel, stride):
        return _winograd(x, kernel)
    if channels > 4 or stride != 1 or w % 2:
        return _conv(x, kernel, stride)
    # Two neighbouring pixels become one with twice the channels; the kernel and its shift by a pixel give both outputs.
    pairs = jnp.stack([jnp.pad(kernel, ((0, 0), (1 + i, 2 - i), (0, 0), (0, 0))) for i in range(2)], axis=-2)
    folded = _conv(x.reshape(n, h, w // 2, 2 * channels), pairs.reshape(3, 3, 2 * channels, -1))
    return folded.reshape(n, h, w, -1)


def _forward(x, kernel, stride):
    return conv3x3(x, kernel, stride), (x, kernel)


def _backward(stride, residuals, g):
    x, kernel = residuals
    if _use_winograd(x, kernel, stride):
        return _winograd(g, kernel, transposed=True), _winograd_weight_gradient(x, g)
    if stride == 2 and not (x.shape[1] % 2 or x.shape[2] % 2):
        by_input = _strided_input_gradient(kernel, g)
    else:
        by_input = jax.linear_transpose(lambda x: _conv(x, kernel, stride), x)(g)[0]
    return by_input, _weight_gradient(x, kernel, stride, g)


conv3x3.defvjp(_forward, _backward)


def _strided_input_gradient(kernel, g):
    """Compute the input gradient for stride 2 by one convolution for each position within 2x2 pixels.

    kernel [3,3,in,out], g [N,H,W,out] -> [N,2H,2W,in].
    """
    # The kernel's rows (or columns) that an even input row was multiplied by, then those of an odd one, in the order of
    # the output rows: the first belongs to g's row of the same index.
    taps = slice(1, 2), slice(2, None, -2)

    def pixels(row, column):
        pad, dims = ((0, row), (0, column)), ("NHWC", "HWOI", "NHWC")
        return lax.conv_general_dilated(g, kernel[taps[row], taps[column]], (1, 1), pad, dimension_numbers=dims)

    both = [jnp.stack([pixels(row, 0), pixels(row, 1)], 3) for row in range(2)]
    return jnp.stack(both, 2).reshape(len(g), 2 * g.shape[1], 2 * g.shape[2], -1)


def _split(x, images):
    """Split x [N,...] into [devices, parts, n, ...] with n <= images, so that every image stays on its device.

    There are several parts even if all images fit into one: otherwise XLA would keep the tiles of the forward pass,
    4 times the size of x, for the gradient.
    """
    devices = math.gcd(len(x), jax.device_count())
    own = len(x) // devices
    n = next(n for n in range(max(1, min(images, own // 2)), 0, -1) if own % n == 0)
    return x.reshape(devices, own // n, n, *x.shape[1:])


def _fold(step, carry, *arrays):
    """Return carry after step(i, carry, *part i of each array) -> carry for all parts, which are axis 1.

    A scan would need the parts as the first axis, for which XLA copies x.
    """

    def body(i, carry):
        return step(i, carry, *(lax.dynamic_index_in_dim(x, i, 1, keepdims=False) for x in arrays))

    return lax.fori_loop(0, arrays[0].shape[1], body, carry)


def _weight_gradient(x, kernel, stride, g):
    """Compute the weight gradient from one image of each device at a time.

    It is a product [out, 9 in], with the outputs first, so that the pixels need not be transposed.
    """
    height, width = g.shape[1:3]
    dtype = jnp.promote_types(x.dtype, jnp.float32)

    def add_image(_, total, x, g):
        x = jnp.pad(x[:, 0], ((0, 0), (1, 1), (1, 1), (0, 0)))  # [devices, rows, columns, channels]
        down, across = ([slice(i, i + stride * (size - 1) + 1, stride) for i in range(3)] for size in (height, width))
        patches = jnp.concatenate([x[:, rows, columns] for rows in down for columns in across], -1)
        patches, g = (y.reshape(len(y), height * width, -1) for y in (patches, g))
        return total + jnp.einsum("dpo,dpi->doi", g, patches, preferred_element_type=dtype)

    xs, gs = _split(x, 1), _split(g, 1)
    total = _fold(add_image, jnp.zeros((len(xs), g.shape[-1], 9 * x.shape[-1]), dtype), xs, gs)
    return total.sum(0).T.reshape(kernel.shape).astype(kernel.dtype)


# ---- Winograd's method, with the paper's B, G and A. A tile's 16 numbers are a list of 16 arrays. --------------------


def _use_winograd(x, kernel, stride):
    work = x.size * kernel.shape[-1]
    return stride == 1 and work >= WORK and x.dtype == jnp.float32 and min(kernel.shape[2:]) >= WIDE


def _transform_rows_and_columns(transform, x, axes):
    """Apply a transform to rows and then to columns: [x00, x01, …], each an array of one number per tile."""
    return [y for rows in transform(x, axes[0]) for y in transform(rows, axes[1])]


def _every_other(x, axis, starts):
    last = x.shape[axis] - max(starts)
    return [lax.slice_in_dim(x, i, i + last, 2, axis) for i in starts]


def _tiles(x):
    """Compute B' d B of all tiles d, 4x4 pixels, 2 apart: [devices, images, H, W, C] -> 16 of [devices, tiles, C]."""

    def transform(x, axis):
        a, b, c, d = _every_other(x, axis, range(4))
        return a - c, b + c, c - b, b - d

    x = jnp.pad(x, [(0, 0), (0, 0), *((1, 1 + size % 2) for size in x.shape[2:4]), (0, 0)])
    return [y.reshape(len(x), -1, x.shape[-1]) for y in _transform_rows_and_columns(transform, x, (2, 3))]


def _spread(g):
    """Compute A g A' of all 2x2 blocks of g: [devices, images, H, W, C] -> 16 of [devices, tiles, C]."""

    def transform(g, axis):
        a, b = _every_other(g, axis, range(2))
        return a, a + b, a - b, -b

    g = jnp.pad(g, [(0, 0), (0, 0), *((0, size % 2) for size in g.shape[2:4]), (0, 0)])
    return [y.reshape(len(g), -1, g.shape[-1]) for y in _transform_rows_and_columns(transform, g, (2, 3))]


def _winograd(x, kernel, transposed=False):
    """Compute A' [(G k G') * (B' d B)] A, where * multiplies element by element and sums over channels.

    transposed: use the kernel of the input gradient, kernel[::-1, ::-1].swapaxes(2, 3), without creating it.
    """
    _, h, w, _ = x.shape
    out = kernel.shape[2 if transposed else 3]

    def transform(k, axis):
        a, b, c = (lax.index_in_dim(k, i, axis, keepdims=False) for i in range(3))
        return a, (a + b + c) / 2, (a - b + c) / 2, c

    # 16 arrays instead of one, which the loop would slice in every iteration
    kernels = _transform_rows_and_columns(transform, kernel, (0, 0))
    if transposed:  # reversing a, b, c permutes transform's four results to the last, second, third, first
        kernels = [kernels[4 * i + j] for i in (3, 1, 2, 0) for j in (3, 1, 2, 0)]
    sums = "dpo,io->dpi" if transposed else "dpi,io->dpo"

    def write_images(i, done, x):
        m = [jnp.einsum(sums, tile, k) for tile, k in zip(_tiles(x), kernels, strict=True)]
        rows = [[m[j] + m[4 + j] + m[8 + j], m[4 + j] - m[8 + j] - m[12 + j]] for j in range(4)]
        both = [jnp.stack([a + b + c, b - c - d], 2) for a, b, c, d in zip(*rows, strict=True)]
        both = [y.reshape(*x.shape[:2], -(-h // 2), w + w % 2, out) for y in both]
        y = jnp.stack(both, 3).reshape(*x.shape[:2], h + h % 2, w + w % 2, out)[:, :, :h, :w]
        return lax.dynamic_update_index_in_dim(done, y, i, 1)

    xs = _split(x, PIXELS // (h * w))
    return _fold(write_images, jnp.zeros((*xs.shape[:-1], out), x.dtype), xs).reshape(-1, h, w, out)


def _winograd_weight_gradient(x, g):
    """Compute G' [(A g A') * (B' d B)] G, where * multiplies element by element and sums over tiles."""

    def add_images(_, total, x, g):
        pairs = zip(total, _tiles(x), _spread(g), strict=True)
        return [a + jnp.einsum("dpo,dpi->doi", z, y) for a, y, z in pairs]

    def transform(k, axis):
        a, b, c, d = (lax.index_in_dim(k, i, axis, keepdims=False) for i in range(4))
        return a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d

    xs, gs = (_split(y, PIXELS // (g.shape[1] * g.shape[2])) for y in (x, g))
    total = _fold(add_images, [jnp.zeros((len(xs), g.shape[-1], x.shape[-1]), g.dtype)] * 16, xs, gs)
    m = jnp.stack([y.sum(0).T for y in total]).reshape(4, 4, x.shape[-1], -1)
    return jnp.stack(_transform_rows_and_columns(transform, m, (0, 0))).reshape(3, 3, x.shape[-1], -1)
