"""A vision-language model: vision tower, projector and decoder in one module.

It embeds an image, or answers a question about two images with the next token. The decoder then reads

    [BOS] + visual tokens of one or more images + text ids

without chat template or image tags, as in LLM-FaceVerification. For conversations see fvjax/models/conversation.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fvjax.models.cache import Cache
from fvjax.models.decoder import Decoder
from fvjax.models.projector import Projector
from fvjax.models.vision_transformer import VisionTransformer
from fvjax.typing import Embeddings, Images, Keys, Pixels

POOLS = ("visual_mean", "all_mean", "last_token")


class VLM(nn.Module):
    """A vision-language model with parameters ``vision/…``, ``projector/…`` and ``decoder/…``.

    Attributes:
        bos: id of the first token.
        bridge: optional module between tower and projector, patch tokens [N,P,W] -> [N,P',W'] (cross-attention, a
            graph …).
    """

    vision: VisionTransformer
    projector: Projector
    decoder: Decoder
    bos: int
    bridge: nn.Module | None = None

    @property
    def image_tokens(self) -> int:
        """Number of visual tokens of one image of the tower's own size."""
        return (self.vision.image_size // self.vision.patch_size // self.projector.shuffle) ** 2

    @nn.nowrap
    def preprocess(self, images: Images) -> Pixels:
        """Convert uint8 images [N,H,W,3] to the tower's input."""
        return self.vision.preprocess(images)

    def visual(self, pixels: Pixels, *, train: bool = False, keys: Keys | None = None) -> jax.Array:
        """Compute visual tokens [N,V,D] of pixels [N,H,W,3]. ``keys`` [N]: one PRNG key per image, for drop-path."""
        x = self.vision(pixels, train=train, keys=keys)[:, 1:]
        return self.projector(x if self.bridge is None else self.bridge(x))

    def sequence(self, visual: jax.Array, text: Sequence[int]) -> jax.Array:
        """Put visual tokens [N,V,D] of one or more images between BOS and the text -> embeddings [N,1+V+T,D]."""
        count = visual.shape[1]
        index = np.broadcast_to(1 + np.arange(count), (visual.shape[0], count))
        return splice(self._embed_text([self.bos] * (1 + count) + list(text), visual.shape[0]), visual, index)

    def embed(
        self, pixels: Pixels, text: Sequence[int], pool: str, *, train: bool = False, keys: Keys | None = None
    ) -> Embeddings:
        """Embed one image and a text, float32 [N,D]; see :meth:`pooled`. ``keys`` [N] as in :meth:`visual`."""
        return self.pooled(self.visual(pixels, train=train, keys=keys), text, pool)

    def pools(self, pixels: Pixels, text: Sequence[int], pools: tuple[str, ...]) -> jax.Array:
        """Embed one image and a text by each pooling, float32 [N,len(pools),D], in one forward pass."""
        visual = self.visual(pixels)
        states = self.decoder(self.sequence(visual, text))
        return jnp.stack([pool_states(states, pool, visual.shape[1]) for pool in pools], axis=1)

    def pooled(self, visual: jax.Array, text: Sequence[int], pool: str) -> Embeddings:
        """Embed visual tokens [N,V,D] and a text: pool the decoder's states after its final norm to float32 [N,D].

        pool: "visual_mean" averages over the visual tokens, which later text cannot change, so the text is left out;
            "all_mean" averages over all tokens; "last_token" takes the last one. Raises ValueError for another one.
        """
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r} is unknown; known are {POOLS}")
        x = self.sequence(visual, () if pool == "visual_mean" else text)
        return pool_states(self.decoder(x, last=pool == "last_token"), pool, visual.shape[1])

    def pair(
        self,
        a: Pixels,
        b: Pixels,
        text: Sequence[int],
        rows: Sequence[int] | None = None,
        *,
        train: bool = False,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """Read two images and a question -> logits of the answer's first token, float32 [N, vocab].

        ``rows``: compute the logits of these ids only, [N, len(rows)]. ``keys`` [N,2]: one for each image of a pair.
        """
        pixels = jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])  # keeps both images of a pair on one device
        visual = self.visual(pixels, train=train, keys=None if keys is None else keys.reshape(-1))
        return self.answer(visual.reshape(a.shape[0], -1, visual.shape[-1]), text, rows)

    def answer(self, visual: jax.Array, text: Sequence[int], rows: Sequence[int] | None = None) -> jax.Array:
        """Read visual tokens [N,V,D] of all images and a text -> logits of the next token, as in :meth:`pair`."""
        return self.decoder.logits(self.decoder(self.sequence(visual, text), last=True)[:, 0], rows)

    def prefix(self, visual: jax.Array, tokens: int) -> Cache:
        """Compute the decoder's cache after BOS and visual tokens [N,V,D]; ``tokens`` more tokens will follow.

        Pairs with the same first image share it: repeat or select rows, axis 1 of k and v.
        """
        x = self.sequence(visual, ())
        cache = self.decoder.new_cache(x.shape[0])
        return self.decoder.extend(x, cache, last=True, tokens=x.shape[1] + tokens)[1]

    def pair_after(
        self, prefix: Cache, visual: jax.Array, text: Sequence[int], rows: Sequence[int] | None = None
    ) -> jax.Array:
        """Read the second images' visual tokens [N,V,D] and the question after the first ones' :meth:`prefix`.

        Returns the logits of the answer's first token, as :meth:`pair` does.
        """
        x = jnp.concatenate([visual, self._embed_text(text, visual.shape[0])], axis=1)
        return self.decoder.logits(self.decoder.extend(x, prefix, last=True)[0][:, 0], rows)

    def __call__(self, pixels: Pixels, text: Sequence[int] = ()) -> jax.Array:
        """Read one image and a text -> logits of the next token, float32 [N, vocab]."""
        return self.answer(self.visual(pixels), text)

    def _embed_text(self, ids: Sequence[int], n: int) -> jax.Array:
        embedded = self.decoder.embed_tokens(np.array(ids, np.int32))
        return jnp.broadcast_to(embedded, (n, *embedded.shape))


def splice(embedded: jax.Array, tokens: jax.Array, index: jax.Array | np.ndarray) -> jax.Array:
    """Put tokens [N,V,D] into embedded [N,T,D] at index int [N,V]; an index of T or more drops its token."""
    # By vmap over rows: otherwise a sharded batch is gathered, and every device computes all that follows.
    put = jax.vmap(lambda row, new, at: row.at[at].set(new, mode="drop"))
    return put(embedded, tokens.astype(embedded.dtype), index)


def pool_states(states: jax.Array, pool: str, visual: int) -> Embeddings:
    """Pool the decoder's states [N,T,D], which start with BOS and ``visual`` visual tokens, to float32 [N,D]."""
    states = states.astype(jnp.float32)
    if pool == "last_token":
        return states[:, -1]
    return (states[:, 1 : 1 + visual] if pool == "visual_mean" else states).mean(axis=1)
