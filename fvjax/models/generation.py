"""Text generation: continue a prompt token by token, greedily or by sampling."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fvjax.models import decode
from fvjax.models.cache import Cache
from fvjax.models.decode import LayerCaches, Layers
from fvjax.models.decoder import Decoder
from fvjax.typing import Keys


class _Progress(NamedTuple):
    """The state of the generation loop."""

    step: jax.Array | int  # tokens generated so far
    ids: jax.Array  # int32 [N, max_tokens]
    counts: jax.Array  # int32 [N]: tokens of each row, its end-of-sequence token included
    done: jax.Array  # bool [N]
    token: jax.Array  # int32 [N]: the last one of each row, not yet in `cache`
    cache: Cache | LayerCaches


def generate(
    decoder: Decoder,
    variables: dict[str, Any],
    x: jax.Array,
    lengths: jax.Array | np.ndarray | None = None,
    *,
    max_tokens: int,
    eos: tuple[int, ...],
    keys: Keys | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Continue a prompt until every row has ended: greedily without ``keys``, else by sampling.

    Args:
        variables: the decoder's: {"params": …}, and "lora" if it has adapters.
        x: embeddings [N,T,D] of the prompt; ``lengths`` int32 [N] if the rows are padded on the right.
        eos: ids that end a row.
        keys: one typed PRNG key per row, [N]; a row's samples depend only on its own key and the step.
        temperature, top_p: for sampling. top_p keeps the most probable tokens that together have at least that much.
    Returns:
        (ids int32 [N, max_tokens], padded with eos[0]; number of tokens [N], including the one that ended the row).
    Raises ValueError: prompt and answer exceed the decoder's positions, or a setting is out of range.
    """
    if not eos or max_tokens < 1 or temperature <= 0 or not 0 < top_p <= 1:
        settings = f"max_tokens={max_tokens}, eos={eos}, temperature={temperature}, top_p={top_p}"
        raise ValueError(f"generate: {settings}; needs at least 1 token, an eos, temperature > 0, 0 < top_p <= 1")
    layers = decode.slice_layers(decoder, variables) if max_tokens > 1 else None
    sampling = {"temperature": temperature, "top_p": top_p}
    return _generate(decoder, variables, layers, x, lengths, keys, max_tokens=max_tokens, eos=eos, **sampling)


@partial(jax.jit, static_argnames=("decoder", "max_tokens", "eos", "temperature", "top_p"))
def _generate(
    decoder: Decoder,
    variables: dict[str, Any],
    layers: Layers | None,
    x: jax.Array,
    lengths: jax.Array | np.ndarray | None,
    keys: Keys | None,
    *,
    max_tokens: int,
    eos: tuple[int, ...],
    temperature: float,
    top_p: float,
) -> tuple[jax.Array, jax.Array]:
    n, tokens, _ = x.shape

    def write(progress: _Progress, logits: jax.Array, cache: Cache | LayerCaches) -> _Progress:
        """Choose the next token of every row by its logits, and write it into `ids`."""
        step, ids, counts, done = progress[:4]
        token = jnp.where(done, eos[0], _choose(logits, step, keys, temperature, top_p))
        ids, counts = ids.at[:, step].set(token), counts + ~done
        return _Progress(step + 1, ids, counts, done | jnp.isin(token, jnp.array(eos)), token, cache)

    # Inside the compiled program of a caller, the barrier keeps XLA from slicing the weights again for every token.
    layers = lax.optimization_barrier(layers)

    def body(progress: _Progress) -> _Progress:
        return write(progress, *decode.read_token(decoder, variables, layers, progress.token, progress.cache))

    logits, cache = read_prompt(decoder, variables, x, lengths, tokens + max_tokens)
    ids, zeros = jnp.full((n, max_tokens), eos[0], jnp.int32), jnp.zeros(n, jnp.int32)
    start = _Progress(0, ids, zeros, jnp.zeros(n, bool), zeros, decode.slice_cache(cache, layers))
    first = write(start, logits, start.cache)
    final = lax.while_loop(lambda p: (p.step < max_tokens) & ~p.done.all(), body, first)
    return final.ids, final.counts


@partial(jax.jit, static_argnames=("decoder", "capacity"))
def read_prompt(
    decoder: Decoder, variables: dict[str, Any], x: jax.Array, lengths: jax.Array | np.ndarray | None, capacity: int
) -> tuple[jax.Array, Cache]:
    """Read prompts, embeddings [N,T,D] of `lengths` tokens -> (logits of the next token [N,vocab], cache)."""
    cache = decoder.new_cache(x.shape[0], capacity)
    states, cache = decoder.apply(variables, x, cache, last=True, lengths=lengths, method="extend")
    return decoder.apply(variables, states[:, 0], method="logits"), cache  # type: ignore[return-value]


@partial(jax.jit, static_argnames=("decoder", "count", "temperature", "top_p"), donate_argnames="cache")
def next_tokens(
    decoder: Decoder,
    variables: dict[str, Any],
    layers: Layers | None,
    logits: jax.Array,
    cache: Cache | LayerCaches,
    step: jax.Array | int,
    keys: Keys | None = None,
    *,
    count: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> tuple[jax.Array, jax.Array, Cache | LayerCaches]:
    """Generate `count` more tokens -> (ids int32 [N,count], logits of the token after them, cache with them).

    Args:
        layers: the weights as :func:`fvjax.models.decode.slice_layers` returns them.
        logits, cache: of what was read so far; the cache, sliced as the weights are, has room for `count` more tokens.
            It is overwritten: use the returned one.
        step: tokens that were generated before, for the keys. keys, temperature, top_p: as for :func:`generate`.
    """

    def one(carry: tuple[jax.Array, Any], step: jax.Array) -> tuple[tuple[jax.Array, Any], jax.Array]:
        logits, cache = carry
        token = _choose(logits, step, keys, temperature, top_p)
        return decode.read_token(decoder, variables, layers, token, cache), token

    (logits, cache), ids = lax.scan(one, (logits, cache), step + jnp.arange(count))
    return ids.T, logits, cache


def stream(
    decoder: Decoder,
    variables: dict[str, Any],
    x: jax.Array,
    lengths: jax.Array | np.ndarray,
    *,
    max_tokens: int,
    eos: tuple[int, ...],
    keys: Keys | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    at_a_time: int = 8,
) -> Iterator[np.ndarray]:
    """Continue prompts as :func:`generate` does, and yield the ids of `at_a_time` tokens of all rows, int32 [N,k].

    Ends when every row has ended; what follows an id of `eos` in a row means nothing. The cache begins with room for
    a short answer and doubles when it is full, so that a high `max_tokens` costs nothing. Raises ValueError as soon as
    prompt and answer exceed the decoder's positions.
    """
    tokens = int(np.max(lengths))
    capacity = _room(decoder, x.shape[1], x.shape[1] + max(64, at_a_time))
    layers = decode.slice_layers(decoder, variables)
    logits, read = read_prompt(decoder, variables, x, lengths, capacity)
    cache = decode.slice_cache(read, layers)
    done = np.zeros(len(x), bool)
    step = 0
    while step < max_tokens:
        decoder.check_length(tokens + step + 1)
        room = decoder.max_tokens - tokens - step
        count = at_a_time if at_a_time <= room else min(room, max_tokens - step)
        needed = tokens + step + count
        if needed > capacity:
            capacity = _room(decoder, needed, 2 * capacity)
            cache = decode.grow(cache, capacity)
        ids, logits, cache = next_tokens(
            decoder, variables, layers, logits, cache, step, keys, count=count, temperature=temperature, top_p=top_p
        )
        ids = np.asarray(ids)[:, : max_tokens - step]
        step += count
        yield ids
        done |= np.isin(ids, eos).any(1)
        if done.all():
            return


def _room(decoder: Decoder, needed: int, wanted: int) -> int:
    """Return a cache's capacity: the wanted tokens if the decoder has the positions for them, at least the needed ones.

    Dynamic scaling depends on the capacity, so it exceeds the positions of training only if the needed tokens do.
    """
    positions = decoder.positions if needed <= decoder.positions else decoder.max_tokens
    return max(needed, min(wanted, positions))


def _choose(logits: jax.Array, step: jax.Array | int, keys: Keys | None, temperature: float, top_p: float) -> jax.Array:
    """Choose the next tokens int32 [N] by their logits: the most probable ones, or by sampling with keys [N]."""
    if keys is None:
        return logits.argmax(-1).astype(jnp.int32)
    probable = _most_probable(logits / temperature, top_p)
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    return jax.vmap(jax.random.categorical)(step_keys, probable).astype(jnp.int32)


def _most_probable(logits: jax.Array, top_p: float) -> jax.Array:
    """Keep the logits [N, vocab] of the most probable tokens that together reach ``top_p``; set the others to -inf."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probability = jax.nn.softmax(ordered, axis=-1)
    more_probable = jnp.cumsum(probability, axis=-1) - probability  # the sum over all tokens before this one
    least = jnp.where(more_probable < top_p, ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits < least, -jnp.inf, logits)
