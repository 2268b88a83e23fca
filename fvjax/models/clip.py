"""CLIP: a tower for pictures and a tower for texts that share a space of features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fvjax.models.layers import Dense
from fvjax.models.text_transformer import TextTransformer
from fvjax.models.vision_transformer import VisionTransformer, pool
from fvjax.typing import Embeddings, Pixels


class CLIP(nn.Module):
    """The two towers (parameters ``vision/…``, ``text/…``), the pictures' projection and the scale of the logits."""

    vision: VisionTransformer
    text: TextTransformer

    def setup(self):
        self.project = Dense(self.text.projection, use_bias=False, dtype=self.vision.dtype)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), ())

    def images(self, pixels: Pixels) -> Embeddings:
        """Compute the features of pixels [N,H,W,3] (see ``vision.preprocess``), float32 [N, projection]."""
        return self.project(pool(self.vision(pixels), "cls")).astype(jnp.float32)

    def texts(self, ids: jax.Array) -> Embeddings:
        """Compute the features of texts, token ids int32 [N,L], float32 [N, projection]."""
        return self.text(ids)

    def logits(self, pixels: Pixels, ids: jax.Array) -> jax.Array:
        """Compute how well each of N pictures fits each of M texts, float32 [N,M]: scaled cosines."""
        images, texts = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (self.images(pixels), self.texts(ids)))
        return jnp.exp(self.logit_scale) * images @ texts.T

    def __call__(self, pixels: Pixels) -> jax.Array:
        """Read pixels and texts of one token, so that all parameters exist."""
        return self.logits(pixels, jnp.zeros((1, 1), jnp.int32))


def build(attributes: Mapping[str, Any], **changes: Any) -> CLIP:
    """Build a CLIP from {"vision": {…}, "text": {…}}; ``changes`` override attributes of both towers (dtype=…)."""
    return CLIP(
        VisionTransformer(**{**attributes["vision"], **changes}), TextTransformer(**attributes["text"], **changes)
    )
