"""The decoder's key-value cache."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Cache(NamedTuple):
    """Keys and values of the tokens that a decoder has read, so that the next call computes only the new ones.

    With ``length``, each row has its own number of tokens and new ones are written after them, into free capacity.
    Without it every row is full, and a call returns a longer cache with the new tokens appended, which is faster.
    """

    k: jax.Array  # [depth, N, capacity, kv_heads, head_dim]
    v: jax.Array
    length: jax.Array | None  # int32 [N]: tokens of each row


def append(
    past: tuple[jax.Array, jax.Array], new: tuple[jax.Array, jax.Array], start: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Add new keys and values [N,T,kv_heads,head_dim] to one layer's cached ones [N,capacity,kv_heads,head_dim].

    ``start`` int32 [N] is where each row's tokens are written within the capacity; None appends T to the capacity.
    """
    if start is None:
        return jnp.concatenate([past[0], new[0]], 1), jnp.concatenate([past[1], new[1]], 1)
    write = jax.vmap(lambda row, tokens, start: lax.dynamic_update_slice(row, tokens, (start, 0, 0)))
    return write(past[0], new[0], start), write(past[1], new[1], start)
