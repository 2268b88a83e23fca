"""Rotary position embeddings: frequencies by scaling method, and the rotation of queries and keys."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Scaling = Literal["plain", "linear", "dynamic", "llama3"]


class RotarySettings(Protocol):
    """The attributes of a decoder that its rotary frequencies depend on."""

    head_dim: int
    positions: int
    rope: Scaling
    rope_theta: float
    rope_factor: float
    rope_original: int
    rope_low: float
    rope_high: float


class Positions(NamedTuple):
    """The positions of one call's tokens in their sequences; the same in every layer."""

    cos: jax.Array  # float32 [N or 1, T, head_dim / 2]
    sin: jax.Array
    index: jax.Array  # int32 [N or 1, T]: position in the sequence, from 0
    start: jax.Array | None  # int32 [N]: row of the cache to write at; None without a cache, or if it is appended to
    lengths: jax.Array | None  # int32 [N]: tokens of each row before its padding; None if no row is padded
    # int32 [N, T]: which of the sequences packed into a row a token belongs to; None: each row is one sequence
    segments: jax.Array | None = None


def positions_at(model: RotarySettings, index: jax.Array, tokens: int) -> Positions:
    """Return positions int32 [N or 1, T] with their rotations, in a sequence of ``tokens`` in the end."""
    angles = index[:, :, None].astype(jnp.float32) * rope_frequencies(model, tokens)
    return Positions(jnp.cos(angles), jnp.sin(angles), index, None, None)


def packed_positions(model: RotarySettings, segments: jax.Array) -> Positions:
    """Return the positions of tokens in rows of consecutive sequences; they count from 0 in each sequence.

    segments: int32 [N,T], equal for the tokens of one sequence and different from the sequence before it.
    Raises ValueError if dynamic scaling would make a sequence depend on the length of the row that it is packed into.
    """
    if model.rope == "dynamic" and segments.shape[1] > model.positions:
        length = segments.shape[1]
        raise ValueError(f"rows of {length} tokens are longer than the decoder's {model.positions} positions: unpack")
    place = jnp.arange(segments.shape[1], dtype=jnp.int32)[None]
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    index = place - lax.cummax(jnp.where(begins, place, 0), axis=1)
    return positions_at(model, index, segments.shape[1])._replace(segments=segments)


def rotate(x: jax.Array, positions: Positions) -> jax.Array:
    """Rotate x [N,T,heads,dim] by its positions in float32, pairing dimension i with i + dim/2."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = positions.cos[:, :, None], positions.sin[:, :, None]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def rope_frequencies(model: RotarySettings, tokens: int) -> np.ndarray:
    """Return the radians per position, float32 [head_dim / 2], for a sequence of ``tokens``.

    Sources: modeling_internlm2.py for "dynamic" (NTK-aware), transformers' modeling_rope_utils.py for the others.
    """
    dim, factor = model.head_dim, model.rope_factor
    theta = model.rope_theta
    if model.rope == "dynamic" and tokens > model.positions:
        theta *= (factor * tokens / model.positions - (factor - 1)) ** (dim / (dim - 2))
    unscaled = 1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    if model.rope == "linear":
        return (unscaled / factor).astype(np.float32)
    if model.rope != "llama3":
        return unscaled.astype(np.float32)
    rotations = model.rope_original * unscaled / (2 * math.pi)  # full turns within the original context length
    smooth = np.clip((rotations - model.rope_low) / (model.rope_high - model.rope_low), 0, 1)
    return ((1 - smooth) * unscaled / factor + smooth * unscaled).astype(np.float32)
