"""Binary cross-entropy over attributes, of which some may be unlabelled: FaceInsight (arXiv 2504.15624), equation 3."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def per_image(logits: jax.Array, labels: jax.Array, groups: Sequence[Sequence[int]] = ()) -> jax.Array:
    """Return each image's loss: the sum over its labelled attributes, float32 [N]. The loss of a batch is their mean.

    The cross-entropy is computed from logits in float32, because it would overflow from probabilities of few bits.

    Args:
        logits: [N, K], of Yes minus those of No; any float type.
        labels: int [N, K], 1 positive, -1 negative, 0 unlabelled, which counts nothing.
        groups: columns of classes that exclude each other. Each group has one softmax cross-entropy instead of a binary
            one per class; a row without a positive class in the group counts nothing for it.
    Raises:
        ValueError: arrays of different shapes, or a column in two groups or in none of the K.
    """
    if logits.shape != labels.shape:
        raise ValueError(f"logits {list(logits.shape)} and labels {list(labels.shape)} differ in shape")
    columns = [column for group in groups for column in group]
    if len(set(columns)) < len(columns) or not all(0 <= column < labels.shape[-1] for column in columns):
        raise ValueError(f"groups {[list(group) for group in groups]}: expected distinct columns of {labels.shape[-1]}")
    logits = logits.astype(jnp.float32)
    single = jnp.zeros(labels.shape[-1], bool).at[jnp.array(columns, int)].set(True)
    cells = jnp.where((labels != 0) & ~single, jax.nn.softplus(-labels * logits), 0.0)
    total = cells.sum(-1)
    for group in groups:
        total = total + _softmax(logits[:, jnp.array(group)], labels[:, jnp.array(group)])
    return total


def _softmax(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return -log of the softmax at the positive class, float32 [N]; 0 for rows without one."""
    positive = labels == 1
    chosen = jnp.where(positive, logits, 0.0).sum(-1)
    return jnp.where(positive.any(-1), jax.nn.logsumexp(logits, axis=-1) - chosen, 0.0)
