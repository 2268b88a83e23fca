"""Text generation: continue a prompt token by token, greedily or by sampling."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fvjax.models.cache import Cache
from fvjax.models.decoder import Decoder
from fvjax.typing import Keys


class _Progress(NamedTuple):
    """The state of the generation loop."""

    step: jax.Array | int  # tokens generated so far
    ids: jax.Array  # int32 [N, max_tokens]
    counts: jax.Array  # int32 [N]: tokens of each row, its end-of-sequence token included
    done: jax.Array  # bool [N]
    token: jax.Array  # int32 [N]: chosen, not yet in `ids`
    cache: Cache


@partial(jax.jit, static_argnames=("decoder", "max_tokens", "eos", "temperature", "top_p"))
def generate(
    decoder: Decoder,
    variables: dict[str, Any],
    x: jax.Array,
    lengths: jax.Array | None = None,
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
    n, tokens, _ = x.shape

    def choose(states, step):
        logits: Any = decoder.apply(variables, states[:, 0], method="logits")
        if keys is None:
            return logits.argmax(-1).astype(jnp.int32)
        logits = _most_probable(logits / temperature, top_p)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        return jax.vmap(jax.random.categorical)(step_keys, logits).astype(jnp.int32)

    def body(progress: _Progress) -> _Progress:
        step, ids, counts, done, token, cache = progress
        token = jnp.where(done, eos[0], token)
        ids, counts = ids.at[:, step].set(token), counts + ~done
        done = done | jnp.isin(token, jnp.array(eos))
        embedded = decoder.apply(variables, token[:, None], method="embed_tokens")
        states, cache = _extend(decoder, variables, embedded, cache)
        return _Progress(step + 1, ids, counts, done, choose(states, step + 1), cache)

    cache = decoder.new_cache(n, tokens + max_tokens)
    states, cache = _extend(decoder, variables, x, cache, last=True, lengths=lengths)
    ids, counts = jnp.full((n, max_tokens), eos[0], jnp.int32), jnp.zeros(n, jnp.int32)
    start = _Progress(0, ids, counts, jnp.zeros(n, bool), choose(states, 0), cache)
    final = lax.while_loop(lambda p: (p.step < max_tokens) & ~p.done.all(), body, start)
    return final.ids, final.counts


def _extend(decoder: Decoder, variables: dict[str, Any], x: Any, cache: Cache, **options: Any) -> tuple[Any, Cache]:
    return decoder.apply(variables, x, cache, **options, method="extend")  # type: ignore[return-value]


def _most_probable(logits: jax.Array, top_p: float) -> jax.Array:
    """Keep the logits [N, vocab] of the most probable tokens that together reach ``top_p``; set the others to -inf."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probability = jax.nn.softmax(ordered, axis=-1)
    more_probable = jnp.cumsum(probability, axis=-1) - probability  # the sum over all tokens before this one
    least = jnp.where(more_probable < top_p, ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits < least, -jnp.inf, logits)
