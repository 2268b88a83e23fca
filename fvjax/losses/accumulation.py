"""The gradient of a loss over a batch whose activations do not fit, chunk by chunk: equal to that of the whole batch.

A loss that is a mean over examples is the mean of the chunks' losses (:func:`mean`). A contrastive one compares every
embedding with every other, so that mean would be another loss. Instead (:func:`grad_cache`): embed all chunks without
keeping activations; the loss and its gradient by the embeddings, on the whole batch; then each chunk again, pulling its
part of that gradient back. Costs one more forward pass. Source: Gao et al., Scaling Deep Contrastive Learning Batch
Size under Memory Limited Setup (arXiv:2101.06983).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fvjax.typing import Embeddings, Keys


def grad_cache(
    embed: Callable[[Any, jax.Array, Keys], Embeddings],
    loss: Callable[[Embeddings], jax.Array],
    trainable: Any,
    faces: jax.Array,
    keys: Keys,
    *,
    chunks: int,
    batch_stats: Mapping,
) -> tuple[jax.Array, Any]:
    """``loss(embed(trainable, faces, keys))`` and its gradient by ``trainable``, equal for any number of chunks.

    Args:
        embed: (trainable, faces [n, …], keys [n]) -> [n, D]; a row's embedding may depend on its own face and key only.
        loss: [N, D], in the order of ``faces`` -> scalar.
        trainable: any tree.
        faces: [N, …]. keys: one PRNG key per face; each goes with its face into the forward pass and the backward one.
        chunks: K; activations of N / K faces are alive at a time.
        batch_stats: the model's; must be empty if K > 1, as batch norm would see the chunk instead of the batch.
    Returns:
        float32 loss, float32 gradients.
    Raises:
        ValueError: K does not divide N, or K > 1 for a model with batch statistics.
    """
    if chunks > 1 and batch_stats:
        raise ValueError(f"{chunks} chunks: a model with batch norm must see the whole batch at once; use 1")
    parts = split((faces, keys), chunks)
    embeddings = join(jax.lax.map(lambda part: embed(trainable, *part), parts))
    value, pull = jax.value_and_grad(loss)(embeddings)

    def backward(total, chunk):
        part, pull = chunk
        _, vjp = jax.vjp(lambda trainable: embed(trainable, *part), trainable)
        return jax.tree.map(lambda sum, g: sum + g.astype(jnp.float32), total, vjp(pull)[0]), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trainable)
    grads, _ = jax.lax.scan(backward, zeros, (parts, split(pull, chunks)))
    return value.astype(jnp.float32), grads


def mean(loss: Callable[..., jax.Array], trainable: Any, batch: Any, *, chunks: int) -> tuple[jax.Array, Any]:
    """The mean over chunks of ``loss(trainable, *chunk)`` and its gradient by ``trainable``.

    That of the whole batch, for any number of chunks, if ``loss`` is a mean over rows.

    Args:
        batch: tuple of arrays [N, …], whose rows go together.
        chunks: K; activations of N / K rows are alive at a time.
    Returns:
        float32 loss, float32 gradients.
    Raises:
        ValueError: K does not divide N.
    """

    if chunks == 1:  # a loop of one turn is not unrolled, and what surrounds it is not fused with it
        return jax.tree.map(lambda x: x.astype(jnp.float32), jax.value_and_grad(loss)(trainable, *batch))

    def one(total, chunk):
        found = jax.value_and_grad(loss)(trainable, *chunk)
        return jax.tree.map(lambda sum, x: sum + x.astype(jnp.float32) / chunks, total, found), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trainable)
    return jax.lax.scan(one, (jnp.zeros((), jnp.float32), zeros), split(batch, chunks))[0]


def split(tree: Any, chunks: int) -> Any:
    """[N, …] -> [K, N / K, …]; chunk k has rows k, k + K, …

    Devices hold consecutive rows of a batch, so every chunk has as many of each device, and no row moves.
    """

    def one(x):
        if chunks < 1 or x.shape[0] % chunks:
            raise ValueError(f"a batch of {x.shape[0]} rows does not divide into {chunks} chunks")
        return jnp.swapaxes(x.reshape(x.shape[0] // chunks, chunks, *x.shape[1:]), 0, 1)

    return jax.tree.map(one, tree)


def join(x: jax.Array) -> jax.Array:
    """The inverse of :func:`split`."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
