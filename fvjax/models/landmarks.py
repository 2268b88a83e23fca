"""Facial landmarks for a vision-language model: tokens of face regions, and attention of visual tokens to them.

Sources: Face-LLaVA (arXiv:2504.07198), section 3, and its released code, which differ: see the variants of
:class:`RegionAttention`.
"""

from __future__ import annotations

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fvjax.face_regions import POINTS, REGIONS
from fvjax.models.layers import Dense, DType, LayerNorm

Variant = Literal["paper", "simple", "masked"]
Grid = Literal["xy", "rowcol"]


class LandmarkProjector(nn.Module):
    """Landmarks float32 [..., 68, 2] -> landmark tokens [..., R, width] in ``dtype``.

    The landmarks are (x, y) from 0 to 1 across the picture. A linear layer for each region gives its local token, one
    for all points gives the global token, and a region's token is their sum.

    Attributes:
        kind: "regions" gives R = 9 tokens; "linear" has one local token of all points, as the released config says.
        parts: which tokens are used; "global" alone is R = 1.
    """

    width: int  # of the decoder
    kind: Literal["regions", "linear"] = "regions"
    parts: Literal["both", "local", "global"] = "both"
    dtype: DType = jnp.float32

    @property
    def tokens(self) -> int:
        """Number of landmark tokens of one picture or frame."""
        return len(REGIONS) if self.kind == "regions" and self.parts != "global" else 1

    @nn.compact
    def __call__(self, points: jax.Array) -> jax.Array:
        """Project. Raises ValueError for another number of points."""
        if points.shape[-2:] != (POINTS, 2):
            raise ValueError(f"landmarks {list(points.shape)}: expected [..., {POINTS}, 2]")
        token = jnp.zeros((), self.dtype)
        if self.parts != "global":
            token = self._local(points)
        if self.parts != "local":
            token = token + self._dense("global", points)[..., None, :]
        return token

    @nn.nowrap
    def _dense(self, name: str, points: jax.Array) -> jax.Array:
        """Project points [..., P, 2], flattened to (x0, y0, x1, …), by one layer."""
        return Dense(self.width, dtype=self.dtype, name=name)(points.reshape(*points.shape[:-2], -1))

    @nn.nowrap
    def _local(self, points: jax.Array) -> jax.Array:
        if self.kind == "linear":
            return self._dense("local", points)[..., None, :]
        regions = [self._dense(f"local_{name}", points[..., np.array(at), :]) for name, at in REGIONS.items()]
        return jnp.stack(regions, axis=-2)


class RegionAttention(nn.Module):
    """Visual tokens h [..., V, D] of a picture, refined by attention to its landmark tokens t [..., R, D] -> like h.

    With o = the heads of softmax(q k' / sqrt(D / heads) + m) v, where q comes from h, and k and v from t:

        variant     m                             refined
        paper       minus distance                out(o) + h
        simple      none                          scale * linear(norm(h + out(o))) + h
        masked      softmax of minus distance     scale * linear(norm(h + o)) + h

    Distances are between a patch's centre and the mean of a region's points. "paper" is the published text; "simple" is
    what the released scripts train; "masked" is in the released code, and no script uses it. A CLS token (V is a square
    plus one) is nowhere: all its distances are 0.

    Attributes:
        scale: of the branch; the released code had 0.001 before it had 0.1.
        grid: "rowcol" measures distances as the released code of "masked" does, to the transposed grid of patches.
    """

    variant: Variant = "paper"
    heads: int = 8
    scale: float = 0.1
    grid: Grid = "xy"
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, visual: jax.Array, tokens: jax.Array, points: jax.Array) -> jax.Array:
        """Refine. points: the landmarks [..., 68, 2]. Raises ValueError for sizes or settings that do not fit."""
        width = visual.shape[-1]
        if self.variant not in ("paper", "simple", "masked"):
            raise ValueError(f"attention variant {self.variant!r} is unknown; known are paper, simple and masked")
        if width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width of {width}")
        q, k, v = (
            Dense(width, dtype=self.dtype, name=name)(x).reshape(*x.shape[:-1], self.heads, -1)
            for name, x in (("q", visual), ("k", tokens), ("v", tokens))
        )
        o = self._heads(q, k, v, self.bias(points, visual.shape[-2], tokens.shape[-2]))
        if self.variant != "masked":
            o = Dense(width, dtype=self.dtype, name="out")(o)
        if self.variant == "paper":
            return o + visual
        normal = LayerNorm(1e-5, self.dtype, name="norm")(visual + o)
        return self.scale * Dense(width, dtype=self.dtype, name="linear")(normal) + visual

    @nn.nowrap
    def bias(self, points: jax.Array, visual: int, regions: int) -> jax.Array | None:
        """Return what is added to the scores of ``visual`` tokens, float32 [..., visual, regions]; None for nothing.

        Raises ValueError for a variant with distances if the landmark tokens are not those of the nine regions.
        """
        if self.variant == "simple":
            return None
        if regions != len(REGIONS):
            raise ValueError(f"attention {self.variant!r} needs the {len(REGIONS)} region tokens, not {regions}")
        distances = region_distances(points, visual, self.grid)
        return -distances if self.variant == "paper" else jax.nn.softmax(-distances)

    @nn.nowrap
    def _heads(self, q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None) -> jax.Array:
        """Attend: q [..., V, H, d], k, v [..., R, H, d] -> [..., V, H * d]. Scores and softmax are float32."""
        scores = jnp.einsum("...vhd,...rhd->...hvr", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        if bias is not None:
            scores = scores + bias[..., None, :, :]
        o = jnp.einsum("...hvr,...rhd->...vhd", jax.nn.softmax(scores).astype(self.dtype), v)
        return o.reshape(*o.shape[:-2], -1)


def region_distances(points: jax.Array, visual: int, grid: Grid) -> jax.Array:
    """Compute the distances of patches to the regions' means, float32 [..., visual, 9], of landmarks [..., 68, 2].

    The patches form a square, row by row; a CLS token in front of them has distances 0. "rowcol" takes (row, column)
    for (x, y), as the released code does. Raises ValueError if ``visual`` is not a square, or a square plus one.
    """
    side = math.isqrt(visual)
    if visual - side * side > 1 or not side:
        raise ValueError(f"{visual} visual tokens are neither a square grid nor one with a CLS token")
    points = points.astype(jnp.float32)
    means = jnp.stack([points[..., np.array(at), :].mean(-2) for at in REGIONS.values()], axis=-2)
    centres = (np.arange(side, dtype=np.float32) + 0.5) / side
    rows, columns = (each.reshape(-1) for each in np.meshgrid(centres, centres, indexing="ij"))
    places = np.stack([columns, rows] if grid == "xy" else [rows, columns], axis=-1)
    away = jnp.linalg.norm(places[:, None] - means[..., None, :, :], axis=-1)
    cls = jnp.zeros((*away.shape[:-2], visual - side * side, away.shape[-1]), away.dtype)
    return jnp.concatenate([cls, away], axis=-2)
