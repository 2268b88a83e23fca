"""The contrastive loss: the two images of an identity are a positive pair, all others in the batch are negatives."""

import jax
import jax.numpy as jnp

from fvjax.typing import Embeddings

CHUNK = 2**26  # similarities computed at a time, 256 MiB; a batch of up to 8,192 images is one chunk


def loss(embeddings: Embeddings, labels: jax.Array, temperature: float, group: int = 0) -> jax.Array:
    """Compute InfoNCE over the global batch (NT-Xent): each of 2P images against the 2P - 2 of other identities.

    Args:
        embeddings: [2P, D], any scale; rows 2i and 2i+1 are the two images of pair i.
        labels: int [P], identity of each pair. Two pairs of one identity are no negatives of each other; in fvjax's own
            batches an identity occurs once.
        temperature: tau of the softmax over cosine similarities (reference: 0.07).
        group: number of consecutive images that are each other's negatives; 0: all 2P. The loss is the mean over
            groups, as in the reference's code, in which negatives come from one GPU.
    Returns:
        float32 scalar, the mean over the 2P images.

    Under `jax.jit` with a sharded batch the similarity matrix spans all devices, so the value does not depend on their
    number. Each device computes its own rows, and for a large batch only some of them at a time, forward and backward:
    CHUNK elements over all devices. Source: LLM-FaceVerification scenarios 1 and 2; equal to its golden losses.
    """
    _check(embeddings, labels, temperature, group)
    if group:
        groups = embeddings.reshape(-1, group, embeddings.shape[-1])
        each = jax.vmap(lambda rows, ids: loss(rows, ids, temperature))(groups, labels.reshape(len(groups), -1))
        return jnp.mean(each)
    z = embeddings.astype(jnp.float32)
    z = z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
    n, ids = z.shape[0], jnp.repeat(labels, 2)
    chunks = next(k for k in range(max(1, n * n // CHUNK), n + 1) if n % k == 0)

    def denominators(part):
        own, its_id, rows = part  # [n/chunks], [n/chunks], [n/chunks, D]
        similarity = jnp.matmul(rows, z.T, precision=jax.lax.Precision.HIGHEST) / temperature
        # itself and further pairs of its identity, but not its partner: rows 2i and 2i+1 differ in the last bit
        masked = (its_id[:, None] == ids) & ((own ^ 1)[:, None] != jnp.arange(n))
        similarity = jnp.where(masked, -jnp.inf, similarity)
        return jax.nn.logsumexp(similarity, axis=-1)

    own = jnp.arange(n)
    if chunks == 1:
        sums = denominators((own, ids, z))
    else:  # a part has rows r, r + chunks, …: equally many of each device, and no row moves to another device
        parts = [jnp.swapaxes(x.reshape(n // chunks, chunks, *x.shape[1:]), 0, 1) for x in (own, ids, z)]
        sums = jax.lax.map(jax.checkpoint(denominators), tuple(parts))  # recomputed, or all rows would be saved
    positive = jnp.sum(z.reshape(n // 2, 2, -1).prod(axis=1), axis=-1) / temperature  # symmetric, so one per pair
    return jnp.mean(sums) - jnp.mean(positive)


def _check(embeddings: Embeddings, labels: jax.Array, temperature: float, group: int) -> None:
    """Raise ValueError for shapes and settings that give a number without a meaning; costs nothing under `jax.jit`."""
    if embeddings.ndim != 2 or len(embeddings) % 2 or not len(embeddings):
        raise ValueError(
            f"embeddings {list(embeddings.shape)}: rows 2i and 2i+1 are a pair, so give [2P, D] with P > 0"
        )
    if labels.shape != (len(embeddings) // 2,):
        raise ValueError(f"labels {list(labels.shape)}: give one for each of the {len(embeddings) // 2} pairs")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    if group and (group % 2 or len(embeddings) % group):
        raise ValueError(f"group={group}: must be even and divide the {len(embeddings)} images")
