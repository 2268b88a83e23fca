"""The projector from patch tokens to visual tokens: a two-layer MLP, after pixel shuffle and a norm in InternVL."""

from __future__ import annotations

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fvjax.models.layers import Dense, DType, LayerNorm


class Projector(nn.Module):
    """Patch tokens [N,P,W] -> visual tokens [N, P / shuffle^2, width] in ``dtype``.

    InternVL's `mlp1` (OpenGVLab/InternVL, internvl_chat/…/modeling_internvl_chat.py, `extract_feature`) takes no CLS
    token. LLaVA's `mlp2x_gelu` has shuffle 1 and no norm, and takes any number of tokens.
    """

    width: int  # of the decoder
    shuffle: int = 2  # shuffle x shuffle patches become one token; InternVL's 1 / downsample_ratio
    ps_version: Literal["v1", "v2"] = "v2"
    norm: bool = True
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Project. Raises ValueError if the patches do not form a square of whole shuffle blocks."""
        if self.shuffle > 1:
            x = pixel_shuffle(x, self.shuffle, self.ps_version)
        if self.norm:
            x = LayerNorm(1e-5, self.dtype, name="norm")(x)
        x = jax.nn.gelu(Dense(self.width, dtype=self.dtype, name="fc1")(x), approximate=False)
        return Dense(self.width, dtype=self.dtype, name="fc2")(x)


def pixel_shuffle(x: jax.Array, size: int, version: Literal["v1", "v2"]) -> jax.Array:
    """Merge every size x size block of the square grid into one token: [N,P,W] -> [N, P / size^2, size^2 W].

    Channels are ordered (row in the block, column in the block, W). "v1" leaves the grid of blocks transposed.
    """
    n, patches, width = x.shape
    side = math.isqrt(patches)
    if side * side != patches or side % size:
        raise ValueError(f"{patches} patches do not form a square grid of whole {size}x{size} blocks")
    x = x.reshape(n, side // size, size, side // size, size, width)
    axes = {"v1": (0, 3, 1, 2, 4, 5), "v2": (0, 1, 3, 2, 4, 5)}[version]
    return x.transpose(axes).reshape(n, patches // size**2, size**2 * width)
