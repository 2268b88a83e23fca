"""Conversations through a VLM: the caller gives every token id, with a placeholder for each visual token.

The functions are methods of a VLM or LLaVA in all but name: `net.apply(variables, …, method=conversation.read)`.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax

from fvjax.models.llava import LLaVA, Media
from fvjax.models.vlm import VLM, splice


def visual_tokens(net: VLM, tiles: jax.Array) -> jax.Array:
    """Compute the visual tokens of each row's tiles, uint8 [N,K,H,W,3] of the tower's size -> [N, K * V, D]."""
    rows, count = tiles.shape[:2]
    visual = net.visual(net.preprocess(tiles.reshape(rows * count, *tiles.shape[2:])))
    return visual.reshape(rows, -1, visual.shape[-1])


def embed(net: VLM | LLaVA, tokens: jax.Array, tiles: jax.Array | Media, places: jax.Array | None) -> jax.Array:
    """Embed token ids int32 [N,T] and put each row's visual tokens over its placeholders -> [N,T,D].

    Args:
        tiles: uint8 [N,K,H,W,3], each row's tiles in order; the number of a row's own may be smaller. For a LLaVA its
            media, which hold their places.
        places: int32 [N, K * V], where in the row each visual token stands; T or more for tiles that a row lacks.
    """
    embedded = net.decoder.embed_tokens(tokens)
    if isinstance(net, LLaVA):
        assert isinstance(tiles, Mapping)
        return splice(embedded, *net.media_tokens(tiles)) if tiles else embedded
    assert not isinstance(tiles, Mapping)
    assert places is not None
    return splice(embedded, visual_tokens(net, tiles), places)


def read(
    net: VLM | LLaVA,
    tokens: jax.Array,
    tiles: jax.Array | Media,
    places: jax.Array | None,
    segments: jax.Array | None = None,
) -> jax.Array:
    """Read conversations -> the decoder's states after its final norm, [N,T,D]. Arguments as for :func:`embed`.

    segments: int32 [N,T] if several conversations share a row, see ``Decoder.__call__``.
    """
    return net.decoder(embed(net, tokens, tiles, places), segments=segments)


def logits(net: VLM | LLaVA, states: jax.Array) -> jax.Array:
    """Compute logits of the decoder's states [..., D] -> float32 [..., vocab]."""
    return net.decoder.logits(states)
