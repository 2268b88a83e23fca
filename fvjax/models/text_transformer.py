"""CLIP's text tower: a causal transformer whose state at the end of a text, projected, is the text's feature.

Source: transformers (models/clip/modeling_clip.py), openai/CLIP (clip/model.py).
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fvjax.models.layers import Attend, Dense, DType, LayerNorm
from fvjax.models.vision_transformer import Attention, Mlp


class Block(nn.Module):
    """Pre-norm causal attention and MLP, for a scan over layers: x [N,L,width] -> (like x, None)."""

    heads: int
    mlp_dim: int
    norm_eps: float
    act: str
    dtype: DType
    attention: Attend

    @nn.compact
    def __call__(self, x):
        attn = Attention(self.heads, True, False, self.norm_eps, self.attention, self.dtype, causal=True, name="attn")
        x = x + attn(LayerNorm(self.norm_eps, self.dtype, name="norm1")(x))
        mlp = Mlp(self.mlp_dim, self.act, self.dtype, name="mlp")
        return x + mlp(LayerNorm(self.norm_eps, self.dtype, name="norm2")(x)), None


class TextTransformer(nn.Module):
    """Token ids int32 [N,L], with begin and end tokens -> features float32 [N, projection], not normalised.

    Layers are scanned as in :class:`fvjax.models.vision_transformer.VisionTransformer`. What follows the end of a text
    does not change its feature, as attention is causal.

    Attributes:
        positions: the most tokens of a text.
        projection: width of the features, which CLIP's pictures share.
        end: id of the token whose first place is the end; None: the place of the largest id, as in OpenAI's code.
    """

    vocab: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    projection: int
    positions: int = 77
    end: int | None = None
    norm_eps: float = 1e-5
    act: Literal["gelu", "quick_gelu"] = "quick_gelu"
    dtype: DType = jnp.float32
    attention: Attend = "auto"

    def setup(self):
        normal = nn.initializers.normal
        self.embed = self.param("embed", normal(0.02), (self.vocab, self.width))
        self.pos = self.param("pos", normal(0.01), (self.positions, self.width))
        self.blocks = nn.scan(
            Block, variable_axes={"params": 0, "scales": 0, "lora": 0}, split_rngs={"params": True}, length=self.depth
        )(self.heads, self.mlp_dim, self.norm_eps, self.act, self.dtype, self.attention)
        self.final_norm = LayerNorm(self.norm_eps, self.dtype)
        self.project = Dense(self.projection, use_bias=False, dtype=self.dtype)

    def states(self, ids: jax.Array) -> jax.Array:
        """Compute the last layer's states [N,L,width], before the final norm.

        Raises ValueError: a text with more tokens than there are positions.
        """
        if ids.shape[1] > self.positions:
            raise ValueError(f"a text of {ids.shape[1]} tokens; this tower reads at most {self.positions}")
        x = self.embed[ids].astype(self.dtype) + self.pos[: ids.shape[1]].astype(self.dtype)
        return self.blocks(x)[0]

    def pooled(self, ids: jax.Array) -> jax.Array:
        """Compute the normed state at the end of each text, [N,width]."""
        ends = jnp.argmax(ids if self.end is None else ids == self.end, axis=1)
        states = self.final_norm(self.states(ids))
        return jnp.take_along_axis(states, ends[:, None, None], axis=1)[:, 0]

    def __call__(self, ids: jax.Array) -> jax.Array:
        return self.project(self.pooled(ids)).astype(jnp.float32)
