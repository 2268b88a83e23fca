"""Contrastive verification: both images of an identity pair are embedded, all others in the batch are negatives."""

import jax
import jax.numpy as jnp

from fvjax.typing import Embeddings

CHUNK = 2**26  # similarities at a time, 256 MiB; a batch of up to 8,192 images is one chunk


def loss(embeddings: Embeddings, labels: jax.Array, temperature: float, group: int = 0) -> jax.Array:
    """InfoNCE over the global batch (NT-Xent): each of the 2P images against the 2P - 2 of other identities.

    Args:
        embeddings: [2P, D], any scale; rows 2i and 2i+1 are the two images of pair i.
        labels: int [P], identity of each pair. No identity comes twice in a batch, so none is masked here.
        temperature: tau of the softmax over cosine similarities (seed: 0.07).
        group: images (consecutive ones) that are each other's negatives; 0: all 2P. The mean over groups is what the
            reference's code computes, whose negatives are those of one GPU.
    Returns:
        float32 scalar, the mean over the 2P images.

    Under `jax.jit` with a sharded batch the similarity matrix spans all devices, so the value does not depend on how
    many there are. Each device has its rows of it, and of a large batch only some at a time, forward and backward:
    CHUNK elements over all devices. Source: LLM-FaceVerification scenarios 1 and 2; equal to its golden losses.
    """
    if group:  # no identity comes twice, so the labels say nothing about a group either
        groups = embeddings.reshape(-1, group, embeddings.shape[-1])
        return jnp.mean(jax.vmap(lambda each: loss(each, labels, temperature))(groups))
    z = embeddings.astype(jnp.float32)
    z = z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
    n = z.shape[0]
    chunks = next(k for k in range(max(1, n * n // CHUNK), n + 1) if n % k == 0)

    def denominators(part):
        own, rows = part  # [n/chunks], [n/chunks, D]
        similarity = jnp.matmul(rows, z.T, precision=jax.lax.Precision.HIGHEST) / temperature
        similarity = jnp.where(own[:, None] == jnp.arange(n), -jnp.inf, similarity)
        return jax.nn.logsumexp(similarity, axis=-1)

    own = jnp.arange(n)
    if chunks == 1:
        sums = denominators((own, z))
    else:  # a part has rows r, r + chunks, …: as many of each device, and no row moves
        parts = [jnp.swapaxes(x.reshape(n // chunks, chunks, *x.shape[1:]), 0, 1) for x in (own, z)]
        sums = jax.lax.map(jax.checkpoint(denominators), tuple(parts))  # else the backward pass would keep all rows
    positive = jnp.sum(z.reshape(n // 2, 2, -1).prod(axis=1), axis=-1) / temperature  # one per pair, same both ways
    return jnp.mean(sums) - jnp.mean(positive)
