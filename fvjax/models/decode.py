"""Read one token after the others through the layers of a decoder, which is what text generation does most of the time.

The decoder scans over its stacked layers. On a CPU, the scan copies each layer's weights and cache before it uses them.
A prompt has enough tokens to make up for that, but with one token a copy takes as long as the product. On a CPU,
weights and cache are therefore sliced once, into arrays for each layer, and the program contains every layer. It takes
longer to compile and the slices take memory, so on accelerators and for large decoders the scan remains.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from fvjax.models.cache import Cache
from fvjax.models.decoder import Block, Decoder
from fvjax.models.rotary import positions_at

Layers = list[dict[str, Any]]  # the variables of each layer's Block
# Decoders whose sliced weights have more bytes than this are scanned: otherwise the memory might not suffice.
SLICED_BYTES = 4 * 2**30


class LayerCaches(NamedTuple):
    """A :class:`Cache` with free capacity in which every layer has its own arrays."""

    layers: list[tuple[jax.Array, jax.Array]]  # keys and values of each layer, [N, capacity, kv_heads, head_dim]
    length: jax.Array  # int32 [N]: tokens of each row


def slice_layers(decoder: Decoder, variables: dict[str, Any]) -> Layers | None:
    """Slice the stacked weights by layer, or return None if the decoder is to be scanned.

    Matrices are converted to the decoder's ``dtype``, which the scan does again for every token.
    """
    stacks = {name: jax.tree.map(jnp.asarray, tree["blocks"]) for name, tree in variables.items() if "blocks" in tree}
    size = sum(leaf.size for leaf in jax.tree.leaves(stacks)) * jnp.dtype(decoder.dtype).itemsize
    if jax.default_backend() != "cpu" or size > SLICED_BYTES:
        return None

    def layer_of(stack: jax.Array, i: int) -> jax.Array:
        is_matrix = stack.ndim > 2  # Dense converts it in any case; norms compute with what is stored
        return _slice(stack, i, decoder.dtype if is_matrix else stack.dtype)

    return [jax.tree.map(partial(layer_of, i=i), stacks) for i in range(decoder.depth)]


def slice_cache(cache: Cache, layers: Layers | None) -> Cache | LayerCaches:
    """Slice a cache with capacity by layer, if the weights are."""
    if layers is None:
        return cache
    pairs = [(_slice(cache.k, i, cache.k.dtype), _slice(cache.v, i, cache.v.dtype)) for i in range(len(layers))]
    return LayerCaches(pairs, cast(jax.Array, cache.length))  # it has capacity, so it counts


@partial(jax.jit, static_argnames="dtype")
def _slice(stack: jax.Array, i: int, dtype: Any) -> jax.Array:
    return lax.dynamic_index_in_dim(stack, i, keepdims=False).astype(dtype)


def grow(cache: Cache | LayerCaches, capacity: int) -> Cache | LayerCaches:
    """Return a cache with room for ``capacity`` tokens in every row."""

    def pad(leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 1:  # lengths
            return leaf
        more = [(0, 0)] * leaf.ndim
        more[-3] = (0, capacity - leaf.shape[-3])
        return jnp.pad(leaf, more)

    return jax.tree.map(pad, cache)


def read_token(
    decoder: Decoder, variables: dict[str, Any], layers: Layers | None, token: jax.Array, cache: Cache | LayerCaches
) -> tuple[jax.Array, Cache | LayerCaches]:
    """Read one more token of each row -> (logits of the next one, float32 [N, vocab], cache with it).

    Args:
        variables: the decoder's, with the stacked weights.
        layers, cache: the results of :func:`slice_layers` and :func:`slice_cache`.
        token: int32 [N].
    """
    if layers is None:
        return decoder.apply(variables, token, cache, method=_scan)  # type: ignore[return-value]
    return decoder.apply(variables, token, cache, layers, method=_read_layers)  # type: ignore[return-value]


def _scan(decoder: Decoder, token: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    states, cache = decoder.extend(decoder.embed_tokens(token[:, None]), cache)
    return decoder.logits(states[:, 0]), cache


def _read_layers(
    decoder: Decoder, token: jax.Array, cache: LayerCaches, layers: Layers
) -> tuple[jax.Array, LayerCaches]:
    block = Block(**decoder.block_attributes(), parent=None)
    capacity = cache.layers[0][0].shape[1]
    positions = positions_at(decoder, cache.length[:, None], capacity)._replace(start=cache.length)
    x, longer = decoder.embed_tokens(token[:, None]), []
    for weights, past in zip(layers, cache.layers):
        x, past = block.apply(weights, x, past, positions)
        longer.append(past)
    return decoder.logits(decoder.final_norm(x)[:, 0]), LayerCaches(longer, cache.length + 1)
