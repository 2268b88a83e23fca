"""Cross-entropy over the tokens that a language model has to predict."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

NONE = -1  # a target that does not count
POSITIONS = 1024  # about so many have their logits at the same time,
CHUNKS = 16, 64  # but at least and at most so many of each row


def next_token_loss(
    logits: Callable[[jax.Array], jax.Array], states: jax.Array, targets: jax.Array, chunk: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Sum the cross-entropy of the next token over the positions that count.

    Logits are computed for `chunk` tokens of each row at a time (None: fewer the more rows there are), so that no array
    [N, T, vocab] exists. If gradients are asked for, a chunk's are computed with its loss, while its logits exist. Each
    row's counted positions are moved to its front first; chunks without any are skipped.

    Args:
        logits: states [N, chunk, D] -> float32 [N, chunk, vocab]; the vocabulary may be sharded.
        states: [N, T, D], the decoder's.
        targets: int32 [N, T], the id that should follow each token, or NONE.
    Returns:
        float32 sum of the losses in nats, float32 number of counted positions.
    """
    order = jnp.argsort(targets == NONE, axis=1, stable=True)
    states, targets = (jax.vmap(lambda row, at: row[at])(x, order) for x in (states, targets))
    rows, tokens = targets.shape
    least, most = CHUNKS
    chunk = min(chunk or max(least, min(most, POSITIONS // rows)), tokens)
    states = jnp.pad(states, ((0, 0), (0, -tokens % chunk), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, -tokens % chunk)), constant_values=NONE)

    def in_chunks(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(len(x), -1, chunk, *x.shape[2:]), 1, 0)

    chunks = in_chunks(states), in_chunks(targets)
    head, parameters = jax.closure_convert(logits, chunks[0][0])
    return _sum_of_chunks(head, *chunks, parameters), (targets != NONE).sum().astype(jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_of_chunks(head: Callable, states: jax.Array, targets: jax.Array, parameters: list[jax.Array]) -> jax.Array:
    """Sum the losses of chunks, states [C, N, chunk, D] and targets [C, N, chunk]; `head` computes their logits."""

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        states, targets = part
        loss = partial(_loss_of_chunk, head, states, parameters, targets)
        return total + _unless_empty(targets, loss, jnp.float32(0)), None

    return lax.scan(add, jnp.float32(0), (states, targets))[0]


def _sum_of_chunks_forward(head, states, targets, parameters):
    """Return the sum, and its gradients by the states and by those of the parameters that train (None for others)."""
    trains = [parameter.perturbed for parameter in parameters]
    states, targets, parameters = states.value, targets.value, [parameter.value for parameter in parameters]

    def loss_of(states, trained, targets):
        trained = iter(trained)
        every = [next(trained) if trains else value for trains, value in zip(trains, parameters)]
        return _loss_of_chunk(head, states, every, targets)

    trained = [value for value, trains in zip(parameters, trains) if trains]
    none = jax.tree.map(jnp.zeros_like, (jnp.float32(0), (states[0], trained)))

    def add(sums, part):
        states, targets = part
        differentiate = partial(jax.value_and_grad(loss_of, (0, 1)), states, trained, targets)
        loss, (by_states, by_trained) = _unless_empty(targets, differentiate, none)
        return jax.tree.map(jnp.add, sums, (loss, by_trained)), by_states

    (total, by_trained), by_states = lax.scan(add, (none[0], none[1][1]), (states, targets))
    by_trained = iter(by_trained)
    return total, (by_states, [next(by_trained) if trains else None for trains in trains])


def _sum_of_chunks_backward(head, gradients, by_total):
    del head
    by_states, by_parameters = jax.tree.map(lambda x: (x * by_total).astype(x.dtype), gradients)
    return by_states, None, by_parameters


_sum_of_chunks.defvjp(_sum_of_chunks_forward, _sum_of_chunks_backward, symbolic_zeros=True)


def _unless_empty(targets: jax.Array, compute: Callable[[], Any], otherwise: Any) -> Any:
    """Return what `compute` does for targets of which any counts, or `otherwise`, a tree of the same shapes."""
    return lax.cond((targets != NONE).any(), compute, lambda: otherwise)


def _loss_of_chunk(head: Callable, states: jax.Array, parameters: list[jax.Array], targets: jax.Array) -> jax.Array:
    return jnp.where(targets == NONE, 0.0, _cross_entropy(head(states, *parameters), targets)).sum()


def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Compute -log p(target) of logits float32 [..., vocab]; undefined where the target is NONE."""
    # A comparison instead of an index: a sharded vocabulary then needs no more than a sum over devices.
    chosen = jnp.where(jnp.arange(logits.shape[-1]) == targets[..., None], logits, 0).sum(-1)
    return jax.nn.logsumexp(logits, axis=-1) - chosen
