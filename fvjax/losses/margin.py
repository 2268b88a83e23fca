"""Margin losses: a softmax over identities whose right cosine is made worse before the scale is applied.

A margin is a function of the cosine of an image with the centre of its own identity. It makes that cosine smaller, so
that the image must come closer to its centre, and leaves all other cosines as they are. All is computed in float32.

Sources: ArcFace (arXiv:1801.07698), CosFace (arXiv:1801.09414), SphereFace (arXiv:1704.08063), AdaFace
(arXiv:2204.00964), MagFace (arXiv:2103.06627), sub-centre ArcFace (ECCV 2020), Partial FC (arXiv:2203.15565). Where a
paper leaves something open, the behaviour is that of insightface's arcface_torch and of AdaFace's published code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fvjax.typing import Embeddings, Labels

ADAFACE_EPS = 1e-3  # AdaFace keeps cosines and angles so far from the ends of their range
ADAFACE_NORMS = (1e-3, 100.0)  # and norms within these bounds
MAGFACE_NORMS = (10.0, 110.0)  # MagFace: margins grow between these norms …
MAGFACE_MARGINS = (0.45, 0.8)  # … from the first to the second of these
Margin = Callable[[jax.Array], jax.Array]  # from the right cosines [N] to what stands in their place, float32 [N]


class NormStatistics(NamedTuple):
    """Running mean and standard deviation of the embeddings' norms, float32 scalars: AdaFace's state."""

    mean: jax.Array
    std: jax.Array


def initial_norm_statistics() -> NormStatistics:
    """Return the statistics that AdaFace starts with, a mean of 20 and a standard deviation of 100."""
    return NormStatistics(jnp.float32(20.0), jnp.float32(100.0))


# ---- cosines ---------------------------------------------------------------------------------------------------------


def normalise(x: jax.Array) -> jax.Array:
    """Scale the last axis to length 1, in float32. A vector of zeros stays zero and has no gradient."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return jnp.where(square > 0, x * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def norms(embeddings: Embeddings) -> jax.Array:
    """Return the norms of embeddings [N, D], float32 [N]; the gradient at a vector of zeros is zero."""
    square = jnp.sum(jnp.square(embeddings.astype(jnp.float32)), axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def cosines(embeddings: Embeddings, centres: jax.Array) -> jax.Array:
    """Return the cosine of every embedding with every class, float32 [N, C], from -1 to 1.

    Args:
        embeddings: [N, D], any scale and float type.
        centres: [C, D], or [C, K, D] for K sub-centres: a class then has the cosine of its nearest one.
    """
    high = jax.lax.Precision.HIGHEST
    if centres.ndim == 2:
        products = jnp.einsum("nd,cd->nc", normalise(embeddings), normalise(centres), precision=high)
    else:
        every = jnp.einsum("nd,ckd->nck", normalise(embeddings), normalise(centres), precision=high)
        products = jnp.max(every, axis=-1)
    return jnp.clip(products, -1.0, 1.0)


# ---- margins ---------------------------------------------------------------------------------------------------------


def add_angle(cosine: jax.Array, angle: jax.Array | float) -> jax.Array:
    """Return cos(theta + angle), and beyond theta = pi - angle what keeps it decreasing (ArcFace).

    There, where cos(theta + angle) would rise again, it is cos(theta) - angle * sin(angle), as in insightface.

    Args:
        cosine: cos(theta), float32 [N].
        angle: in radians, from 0 to pi.
    The gradient is finite everywhere; at a cosine of exactly -1 or 1, where that of the sine is not, it is taken as 0.
    """
    square = 1.0 - cosine * cosine
    sine = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    turned = cosine * jnp.cos(angle) - sine * jnp.sin(angle)
    return jnp.where(cosine > jnp.cos(math.pi - angle), turned, cosine - angle * jnp.sin(angle))


def combined(cosine: jax.Array, m1: float, m2: float, m3: float) -> jax.Array:
    """Return cos(m1 * theta + m2) - m3 of the right cosines [N].

    ArcFace is (1, m2, 0), CosFace (1, 0, m3), SphereFace (m1, 0, 0). It decreases with theta everywhere: with m1 = 1 as
    :func:`add_angle` says, otherwise by SphereFace's continuation (-1)^k cos(t) - 2k for t from k pi to (k + 1) pi.
    """
    if m1 == 1.0:
        return (add_angle(cosine, m2) if m2 else cosine) - m3
    inside = jnp.abs(cosine) < 1.0
    ends = jnp.where(cosine > 0, 0.0, math.pi)
    angle = m1 * jnp.where(inside, jnp.arccos(jnp.where(inside, cosine, 0.0)), ends) + m2
    half_turns = jnp.floor(angle / math.pi)
    sign = 1.0 - 2.0 * jnp.mod(half_turns, 2.0)
    return sign * jnp.cos(angle) - 2.0 * half_turns - m3


def update_norm_statistics(statistics: NormStatistics, norms: jax.Array, t_alpha: float) -> NormStatistics:
    """Return AdaFace's statistics after a batch of norms [N]: t_alpha of the batch's and the rest of the old ones.

    The standard deviation is the unbiased one, as torch's. No gradient flows through it.
    """
    clipped = jax.lax.stop_gradient(jnp.clip(norms, *ADAFACE_NORMS))
    mean, std = jnp.mean(clipped), jnp.std(clipped, ddof=1)
    return NormStatistics(
        mean * t_alpha + (1.0 - t_alpha) * statistics.mean, std * t_alpha + (1.0 - t_alpha) * statistics.std
    )


def adaface(cosine: jax.Array, norms: jax.Array, statistics: NormStatistics, m: float, h: float) -> jax.Array:
    """Return AdaFace's margin of the right cosines [N]: sharp pictures, whose norms are large, get the harder one.

    With q the standardised norm times h, from -1 to 1: cos(theta - m q) - (m + m q).

    Args:
        norms: of the embeddings, float32 [N]; without gradient.
        statistics: with this batch's norms already in them.
    """
    clipped = jax.lax.stop_gradient(jnp.clip(norms, *ADAFACE_NORMS))
    quality = jnp.clip(h * (clipped - statistics.mean) / (statistics.std + ADAFACE_EPS), -1.0, 1.0)
    theta = jnp.arccos(jnp.clip(cosine, ADAFACE_EPS - 1.0, 1.0 - ADAFACE_EPS))
    theta = jnp.clip(theta - m * quality, ADAFACE_EPS, math.pi - ADAFACE_EPS)
    return jnp.cos(theta) - (m + m * quality)


def magface(cosine: jax.Array, norms: jax.Array) -> jax.Array:
    """Return MagFace's margin of the right cosines [N]: an ArcFace margin that grows with the norm, with gradient."""
    (low, high), (least, most) = MAGFACE_NORMS, MAGFACE_MARGINS
    angle = (most - least) / (high - low) * (jnp.clip(norms, low, high) - low) + least
    return add_angle(cosine, angle)


def magface_regulariser(norms: jax.Array) -> jax.Array:
    """Return the mean of MagFace's g(a) = 1 / a + a / 110^2, which draws norms [N] towards 110; a scalar."""
    low, high = MAGFACE_NORMS
    clipped = jnp.clip(norms, low, high)
    return jnp.mean(1.0 / clipped + clipped / high**2)


# ---- the loss --------------------------------------------------------------------------------------------------------


def cross_entropy(
    cosine: jax.Array,
    labels: Labels,
    columns: jax.Array,
    classes: int,
    margin: Margin,
    scale: float,
    *,
    smoothing: float = 0.0,
    filter_above: float = 0.0,
) -> jax.Array:
    """Return each image's softmax cross-entropy against the classes, float32 [N].

    Sums and maxima over columns are all that depends on other columns, so columns may be split over devices.

    Args:
        cosine: float32 [N, C] from :func:`cosines`.
        labels: int [N], the class of each image; it must be among the columns.
        columns: int [C], which class each column is of. Columns from `classes` on are padding and take no part.
        margin: of the right cosines; the scale comes after it.
        smoothing: share of the target that is spread evenly over all classes.
        filter_above: negatives with a larger cosine are probably the same person under two labels, and count as 0
            (insightface's inter-class filtering); 0: none are.
    """
    right, real = labels[:, None] == columns, columns < classes
    if filter_above:
        cosine = jnp.where(~right & (cosine > filter_above), 0.0, cosine)
    target = scale * margin(jnp.sum(jnp.where(right, cosine, 0.0), axis=-1))
    logits = jnp.where(right, target[:, None], scale * cosine)
    logits = jnp.where(real, logits, -jnp.inf)
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    log_sum = highest + jnp.log(jnp.sum(jnp.exp(logits - highest[:, None]), axis=-1))
    if not smoothing:
        return log_sum - target
    mean = jnp.sum(jnp.where(real, logits, 0.0), axis=-1) / jnp.sum(real)
    return log_sum - (1.0 - smoothing) * target - smoothing * mean
