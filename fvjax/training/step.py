"""One training step, a pure function of state, frozen parameters and batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fvjax import trees
from fvjax.losses import accumulation
from fvjax.models import lora
from fvjax.parallel import sharding
from fvjax.tasks.task import Batch, Task
from fvjax.training.model import RunModel
from fvjax.training.state import Learner, TrainState


@dataclass(frozen=True)
class Recipe:
    """What a step computes.

    Attributes:
        parts: into how many parts a batch is split to save memory.
        last_part_only: as the reference's code, use the gradient of the last part alone, divided by their number.
    """

    model: RunModel
    task: Task
    learner: Learner
    parts: int = 1
    last_part_only: bool = False


def gradients(recipe: Recipe, state: TrainState, frozen: Any, batch: Batch) -> tuple[jax.Array, Any, Any]:
    """Return the loss, the new batch statistics and the gradient of what trains, for a global batch.

    Random draws are keyed by the global number of an example, so they do not depend on the device, host or row that it
    is on, nor on how the batch is split.
    """
    parts = recipe.parts
    if recipe.last_part_only:  # the reference sets the gradients of the other parts to zero before it uses them
        batch, parts = jax.tree.map(lambda x: accumulation.split(x, parts)[-1], batch), 1
    inputs = recipe.task.prepare(batch)

    def bind(trainable):
        return recipe.model.variables(trainable, state.stats, frozen)

    objective = recipe.task.objective(recipe.model.encoder)
    with jax.sharding.use_abstract_mesh(recipe.model.mesh.abstract_mesh):  # a class head says how its logits are split
        loss, stats, grads = objective.gradients(bind, state.trainable, inputs, state.stats, parts)
    if recipe.last_part_only:
        grads = jax.tree.map(lambda g: g / recipe.parts, grads)
    return loss, stats, grads


def train_step(recipe: Recipe, state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
    """Return the state after one step and {"loss", "lr", "grad_norm" (before clipping)}.

    With adapters also "dead": which of them have no gradient, see :func:`fvjax.models.lora.is_zero`.
    """
    loss, stats, grads = gradients(recipe, state, frozen, batch)
    updates, opt = recipe.learner.tx.update(grads, state.opt, state.trainable)
    trainable = jax.tree.map(jnp.add, state.trainable, updates)
    values: dict[str, Any] = {
        "loss": loss,
        "lr": recipe.learner.rate(state.step),
        "grad_norm": optax.global_norm(grads),
    }
    values |= recipe.task.counts(batch)
    if "lora" in grads:
        values["dead"] = lora.is_zero(trees.flatten(grads["lora"]))
    return TrainState(opt, stats, state.step + 1, trainable), values


def train_step_with_request(
    recipe: Recipe, state: TrainState, frozen: Any, batch: Batch, request: Any
) -> tuple[TrainState, dict[str, Any]]:
    """Do :func:`train_step` and return `request` among the values, so that a step waits for it (see agreement)."""
    state, values = train_step(recipe, state, frozen, batch)
    return state, {**values, "request": request}


def compile_step(recipe: Recipe, state: TrainState, mesh: Mesh) -> Callable:
    """Compile (state, frozen, batch, request) -> (state, values); the state's arrays are donated.

    state: the state's leaves as shapes with shardings.
    """
    shardings = jax.tree.map(lambda x: x.sharding, state), sharding.replicated(mesh)
    return jax.jit(partial(train_step_with_request, recipe), donate_argnums=0, out_shardings=shardings)
