"""Build single parts of a run for tests, from the ConfigDict of a config file."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fvjax import tasks
from fvjax.config import Config, typed
from fvjax.parallel import sharding
from fvjax.planning import estimate
from fvjax.tasks.task import Task
from fvjax.training.model import RunModel, open_model
from fvjax.training.state import TrainState, make_learner, start_state
from fvjax.training.step import Recipe


def task_of(config, folder: Path = Path()) -> Task:
    c = typed(config)
    return tasks.get(c.task)(c, folder)


def model_of(config, mesh: Mesh | None = None, *, reference: bool = False) -> RunModel:
    return open_model(typed(config), task_of(config), mesh or sharding.one_device(), reference=reference)


def recipe_of(config, mesh: Mesh | None = None, *, steps_per_epoch: int = 1, reference: bool = False) -> Recipe:
    c, model = typed(config), model_of(config, mesh, reference=reference)
    learner = make_learner(c.optimizer, model.groups, epochs=c.epochs, steps_per_epoch=steps_per_epoch, steps=c.steps)
    return Recipe(model, task_of(config), learner, c.accumulation, c.compat.last_micro_batch)


def start_of(recipe: Recipe, mesh: Mesh | None = None) -> TrainState:
    return start_state(recipe.learner, recipe.model, mesh or sharding.one_device())


def plan_of(config, folder: Path):
    """Return (store, plan) of the training data. Synthetic data are drawn first."""
    task = task_of(config, folder)
    store = task.open_store()
    assert store is not None
    return store, task.examples(store).plan


def pairs_of(plan, numbers) -> list[tuple[int, int, int]]:
    """Return (first record, second record, label) of the pairs with these global numbers."""
    columns = plan.examples(np.array(list(numbers), np.int64))
    return [(int(a), int(b), int(label)) for (a, b), label in zip(columns["ids"], columns["labels"])]


def check(config) -> None:
    """Check a config by its own rules and then by those of its task."""
    typed(config).check()
    tasks.get(config.task).check(typed(config))


def bounds_of(c: Config, planned, machine) -> dict[str, float]:
    return estimate.bounds(c.data, c.dtype, planned, machine)


def verdict_of(c: Config, planned, device) -> str:
    return estimate.verdict(c.model.kind, c.attention, c.trains, planned, device)


def state_with(trainable, stats=None, opt=(), step=0) -> TrainState:
    return TrainState(opt, stats or {}, jnp.int32(step), trainable)
