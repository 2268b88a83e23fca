"""What a training run changes from step to step, and how it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fvjax.config import OptimizerConfig
from fvjax.training import optimizer
from fvjax.training.model import RunModel


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    Attributes:
        opt: the optimizer's state.
        stats: {"batch_stats": …} of a model with batch norm, and "head_stats" of a loss that keeps statistics.
        step: int32 scalar, how many steps are done. trainable: what trains, float32, a nested dict.
    """

    opt: Any
    stats: Any
    step: Any
    trainable: Any

    def as_dict(self) -> dict[str, Any]:
        """Return the state as checkpoints store and hash it."""
        return {"opt": self.opt, "stats": self.stats, "step": self.step, "trainable": self.trainable}

    @classmethod
    def from_dict(cls, parts: dict[str, Any]) -> Self:
        return cls(**parts)


@dataclass(frozen=True)
class Learner:
    """How a state is updated. `rate`: learning rate by step."""

    tx: optax.GradientTransformation
    rate: Callable[[Any], jax.Array]

    def init(self, model: RunModel, key: jax.Array) -> TrainState:
        """Return the state before training, without pretrained weights."""
        first = model.initial(key)
        opt = self.tx.init(first["trainable"])
        return TrainState(opt, first["stats"], jnp.zeros((), jnp.int32), first["trainable"])


def make_learner(
    config: OptimizerConfig, groups: Mapping[str, str], *, epochs: int, steps_per_epoch: int, steps: int = 0
) -> Learner:
    """Make the optimizer and its schedule; `groups`: optimizer group of each parameter that trains."""
    rate = optimizer.schedule(config, epochs=epochs, steps_per_epoch=steps_per_epoch, steps=steps)
    return Learner(optimizer.make(config, groups, rate), rate)


def abstract_state(learner: Learner, model: RunModel, mesh: Mesh) -> TrainState:
    """Return the state's leaves as ShapeDtypeStructs with their shardings."""
    shapes = jax.eval_shape(lambda key: learner.init(model, key), model.key)
    shardings = model.state_shardings(shapes, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def start_state(learner: Learner, model: RunModel, mesh: Mesh) -> TrainState:
    """Return the state before training, every leaf initialised or read where it will live."""

    def init(key):
        return learner.init(model, key)

    shardings = model.state_shardings(jax.eval_shape(init, model.key), mesh)
    state = jax.jit(init, out_shardings=shardings)(model.key)
    started = model.start({"trainable": state.trainable, "stats": state.stats})
    return TrainState(state.opt, started["stats"], state.step, started["trainable"])
