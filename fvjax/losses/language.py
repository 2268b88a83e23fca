"""Cross-entropy over the tokens that a language model has to predict."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

NONE = -1  # a target that does not count
POSITIONS = 1024  # about so many have their logits at the same time,
CHUNKS = 16, 64  # but at least and at most so many of each row


def next_token_loss(
    logits: Callable[[jax.Array], jax.Array], states: jax.Array, targets: jax.Array, chunk: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Sum the cross-entropy of the next token over the positions that count.

    Logits are computed for `chunk` tokens of each row at a time (None: fewer the more rows there are), and again in
    the backward pass, so that no array [N, T, vocab] exists. Each row's counted positions are moved to its front first;
    chunks without any are skipped.

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

    @jax.checkpoint
    def loss_of_chunk(states: jax.Array, targets: jax.Array) -> jax.Array:
        def counted() -> jax.Array:
            return jnp.where(targets == NONE, 0.0, _cross_entropy(logits(states), targets)).sum()

        return jax.lax.cond((targets != NONE).any(), counted, lambda: jnp.float32(0))

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + loss_of_chunk(*part), None

    def in_chunks(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(len(x), -1, chunk, *x.shape[2:]), 1, 0)

    total, _ = jax.lax.scan(add, jnp.float32(0), (in_chunks(states), in_chunks(targets)))
    return total, (targets != NONE).sum().astype(jnp.float32)


def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Compute -log p(target) of logits float32 [..., vocab]; undefined where the target is NONE."""
    # A comparison instead of an index: a sharded vocabulary then needs no more than a sum over devices.
    chosen = jnp.where(jnp.arange(logits.shape[-1]) == targets[..., None], logits, 0).sum(-1)
    return jax.nn.logsumexp(logits, axis=-1) - chosen
