"""Losses over a batch, and their gradients when its activations do not fit into memory at once.

A loss says which of three kinds it is. An :class:`Additive` loss adds up over examples or tokens, so a batch can be
split into parts: the parts' sums and weights are added and divided once, by the weight of the whole batch. A
:class:`WholeBatch` loss compares every example with every other, so the mean over parts would be another loss. Its
gradient takes three passes (GradCache): embed all parts without keeping activations; take the loss and its gradient
with respect to the embeddings over the whole batch; then run each part again and pull its share of that gradient back.
That costs one more forward pass. A :class:`Headed` loss does the same and has parameters of its own, such as the
centres of a class head. Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup
(arXiv:2101.06983).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Variables = Mapping[str, Any]  # collections that a network is applied to: {"params": …, "lora": …, …}
Inputs = Any  # tree of arrays whose first axis counts examples
Bind = Callable[[Any], Variables]  # from what trains to everything the network needs


@dataclass(frozen=True)
class Additive:
    """A loss that adds up over examples or tokens.

    Attributes:
        loss: (variables, inputs) -> (sum of the losses, sum of their weights, new batch statistics); the first two are
            float32 scalars. The weight is how many examples or label tokens there are, so it must not depend on the
            variables. The statistics are empty for a model that has none.
    """

    loss: Callable[[Variables, Inputs], tuple[jax.Array, jax.Array, Mapping]]
    embed: None = None  # it has neither of these
    compare: None = None

    def gradients(
        self, bind: Bind, trainable: Any, inputs: Inputs, stats: Mapping, parts: int
    ) -> tuple[jax.Array, Mapping, Any]:
        """Return (sum / weight over the whole batch, new batch statistics, gradient); see :func:`check_parts`."""
        check_parts(parts, stats)
        if parts == 1:

            def mean(trainable):
                total, weight, new = self.loss(bind(trainable), inputs)
                return total / weight, new

            (loss, stats), grads = jax.value_and_grad(mean, has_aux=True)(trainable)
            return loss.astype(jnp.float32), stats, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

        def add(sums, part):
            def total_of(trainable):
                total, weight, _ = self.loss(bind(trainable), part)
                return total, weight

            (total, weight), grads = jax.value_and_grad(total_of, has_aux=True)(trainable)
            return jax.tree.map(lambda s, x: s + x.astype(jnp.float32), sums, (total, weight, grads)), None

        zero = jnp.zeros((), jnp.float32)
        zeros = (zero, zero, jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trainable))
        (total, weight, grads), _ = jax.lax.scan(add, zeros, split(inputs, parts))
        return total / weight, stats, jax.tree.map(lambda g: g / weight, grads)


@dataclass(frozen=True)
class Headed:
    """A loss over the embeddings of a whole batch that has parameters or running statistics of its own.

    Attributes:
        embed: (variables, inputs [n, …]) -> ([n, …] embeddings, new batch statistics). An example's embeddings may
            depend on that example alone, unless the model has batch statistics.
        compare: (variables, embeddings [N, …], inputs [N, …]), the last two of the whole batch -> (scalar loss, new
            statistics of the loss, {} if it has none).
    """

    embed: Callable[[Variables, Inputs], tuple[jax.Array, Mapping]]
    compare: Callable[[Variables, jax.Array, Inputs], tuple[jax.Array, Mapping]]

    def gradients(
        self, bind: Bind, trainable: Any, inputs: Inputs, stats: Mapping, parts: int
    ) -> tuple[jax.Array, Mapping, Any]:
        """Return (loss, new statistics, gradient), equal for any number of parts; see :func:`check_parts`."""
        check_parts(parts, stats)
        if parts == 1:

            def whole(trainable):
                variables = bind(trainable)
                embeddings, new = self.embed(variables, inputs)
                loss, of_loss = self.compare(variables, embeddings, inputs)
                return loss, {**new, **of_loss}

            (loss, new), grads = jax.value_and_grad(whole, has_aux=True)(trainable)
            return loss, new, grads

        def embed(trainable, part):
            return self.embed(bind(trainable), part)[0]

        def compare(trainable, embeddings):
            return self.compare(bind(trainable), embeddings, inputs)

        divided = split(inputs, parts)
        embeddings = join(jax.lax.map(lambda part: embed(trainable, part), divided))
        both = jax.value_and_grad(compare, argnums=(0, 1), has_aux=True)
        (loss, new), (of_head, pull) = both(trainable, embeddings)

        def backward(total, chunk):
            part, pull = chunk
            _, vjp = jax.vjp(lambda trainable: embed(trainable, part), trainable)
            return jax.tree.map(lambda sum, g: sum + g.astype(jnp.float32), total, vjp(pull)[0]), None

        start = jax.tree.map(lambda g: g.astype(jnp.float32), of_head)
        grads, _ = jax.lax.scan(backward, start, (divided, split(pull, parts)))
        return loss.astype(jnp.float32), {**stats, **new}, grads

    def loss_of_embeddings(self, variables: Variables, embeddings: jax.Array, inputs: Inputs) -> jax.Array:
        """Return the loss of a whole batch, of which the embeddings are known."""
        return self.compare(variables, embeddings, inputs)[0]


@dataclass(frozen=True)
class WholeBatch:
    """A loss that compares the examples of a batch with each other.

    Attributes:
        embed: as of :class:`Headed`. compare: (embeddings [N, …], inputs [N, …]), both of the whole batch -> scalar.
    """

    embed: Callable[[Variables, Inputs], tuple[jax.Array, Mapping]]
    compare: Callable[[jax.Array, Inputs], jax.Array]

    def gradients(
        self, bind: Bind, trainable: Any, inputs: Inputs, stats: Mapping, parts: int
    ) -> tuple[jax.Array, Mapping, Any]:
        """Return (loss, new batch statistics, gradient), equal for any number of parts; see :func:`check_parts`."""
        whole = Headed(self.embed, lambda _, embeddings, inputs: (self.compare(embeddings, inputs), {}))
        return whole.gradients(bind, trainable, inputs, stats, parts)

    def loss_of_embeddings(self, variables: Variables, embeddings: jax.Array, inputs: Inputs) -> jax.Array:
        """Return the loss of a whole batch, of which the embeddings are known."""
        del variables
        return self.compare(embeddings, inputs)


Objective = Additive | WholeBatch | Headed


def check_parts(parts: int, stats: Mapping) -> None:
    """Raise ValueError if a model with batch norm, which must see the whole batch at once, is given it in parts."""
    if parts > 1 and "batch_stats" in stats:
        raise ValueError(f"{parts} chunks: a model with batch norm must see the whole batch at once; use 1")


def split(tree: Any, chunks: int) -> Any:
    """Cut [N, …] into [K, N / K, …]; chunk k has the rows k, k + K, …

    Devices hold consecutive rows of a batch, so every chunk has equally many rows of each device and no row moves.
    Raises ValueError: K does not divide N.
    """

    def one(x):
        if chunks < 1 or x.shape[0] % chunks:
            raise ValueError(f"a batch of {x.shape[0]} rows does not divide into {chunks} chunks")
        return jnp.swapaxes(x.reshape(x.shape[0] // chunks, chunks, *x.shape[1:]), 0, 1)

    return jax.tree.map(one, tree)


def join(x: jax.Array) -> jax.Array:
    """Put chunks [K, n, …] back in the order of the batch: the inverse of :func:`split`."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
