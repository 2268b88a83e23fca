"""The loss of pairwise verification: a model reads two images and answers Yes (one person) or No as the next token."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fvjax.typing import Labels


def losses(logits: jax.Array, labels: Labels, yes_no_ids: Sequence[int], over: str = "vocab") -> jax.Array:
    """Return the cross-entropy of each pair's right answer.

    Args:
        logits: [P, V] at the last position, any float type.
        labels: int [P], 1 for a genuine pair (Yes), 0 for an impostor pair (No).
        yes_no_ids: (Yes, No), columns of the logits.
        over: "vocab" for all V tokens, as in LLM-FaceVerification's code; "yes_no" for these two, as in its text.
    Returns:
        float32 [P]. The loss of a batch is their mean.
    Raises:
        ValueError: an unknown `over`.
    """
    logits = logits.astype(jnp.float32)
    answers = logits[:, jnp.asarray(yes_no_ids)]
    if over not in ("vocab", "yes_no"):
        raise ValueError(f"loss over {over!r}: choose 'vocab' or 'yes_no'")
    right = jnp.where(labels == 1, answers[:, 0], answers[:, 1])
    return jax.nn.logsumexp(logits if over == "vocab" else answers, axis=-1) - right


def p_yes(logits: jax.Array, yes_no_ids: Sequence[int]) -> jax.Array:
    """Compute the verification score from logits [P, V]: the probability of Yes among Yes and No, float32 [P]."""
    yes, no = yes_no_ids
    return jax.nn.sigmoid(logits[:, yes].astype(jnp.float32) - logits[:, no].astype(jnp.float32))
