"""The program that a run compiles, by shapes alone: its memory, its FLOPs, and the rematerialisation that fits."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from fvjax import tasks, trees
from fvjax.config import Config
from fvjax.console import say
from fvjax.parallel import distributed, sharding
from fvjax.planning import flops, memory
from fvjax.tasks.task import Task
from fvjax.training.model import RunModel, open_model
from fvjax.training.state import TrainState, make_learner
from fvjax.training.step import Recipe, train_step

REMAT = "none", "dots", "full"  # fastest first, and the one that takes most memory
FILLED = 0.9  # share of a device's memory that may be planned for: fragmentation and cuDNN's workspaces need the rest


class Program(NamedTuple):
    """What a run compiles: step(state, frozen, batch), its arguments' shapes and shardings, its results' shardings."""

    step: Callable
    arguments: tuple
    shardings: tuple
    results: Any
    model: RunModel
    task: Task


def has_layers(kind: str) -> bool:
    """Whether a kind of network is a loop over layers, which can be recomputed and has a choice of attention."""
    return kind != "iresnet"


@dataclass(frozen=True)
class Planner:
    """Plans the step of one config on one mesh, whose devices may be fake ones."""

    config: Config
    mesh: Mesh

    @cached_property
    def task(self) -> Task:
        return tasks.get(self.config.task)(self.config, Path())

    def program(self, *, reference: bool | None = None) -> Program:
        """Describe the training step of the config, or without training a batch of its predictions.

        reference: see :func:`open_model`; None: for an IResNet, whose arrangement for CPUs is not what is planned.
        """
        config, mesh, task = self.config, self.mesh, self.task
        if config.attention == "cudnn":  # no other backend has it; this one takes as little memory and as few FLOPs
            config = config.replace({"attention": "by_head"})
        if reference is None:
            reference = not has_layers(config.model.kind)
        model = open_model(config, task, mesh, reference=reference)
        lengths = {"epochs": config.epochs, "steps_per_epoch": 1, "steps": config.steps}
        learner = make_learner(config.optimizer, model.groups, **lengths)

        def init(key: jax.Array) -> TrainState:
            first = model.initial(key)
            opt = learner.tx.init(first["trainable"]) if config.trains else {}
            return TrainState(opt, first["stats"], jnp.zeros((), jnp.int32), first["trainable"])

        state = jax.eval_shape(init, model.key)
        of_state = model.state_shardings(state, mesh)
        frozen = model.frozen
        of_frozen = trees.unflatten({name: model.shardings[name] for name in trees.flatten(frozen)})
        batch = task.batch_shapes(config.batch_size // task.images_per_example)
        of_batch = jax.tree.map(lambda _: NamedSharding(mesh, sharding.BATCH), batch)
        if config.trains:
            recipe = Recipe(model, task, learner, config.accumulation, config.compat.last_micro_batch)
            step, results = partial(train_step, recipe), (of_state, sharding.replicated(mesh))
        else:
            step, results = partial(_predict, task, model), NamedSharding(mesh, sharding.BATCH)
        return Program(step, (state, frozen, batch), (of_state, of_frozen, of_batch), results, model, task)

    @cached_property
    def step(self) -> Program:
        """The program as the run compiles it."""
        return self.program()

    def model_flops(self) -> int:
        """Return the FLOPs of one step as it is written, over all devices.

        That is one plain step: accumulation and rematerialisation repeat forward passes, which are not model FLOPs.
        """
        plain = self.config.replace({"accumulation": 1, "compat.last_micro_batch": False})
        program = Planner(plain, self.mesh).program(reference=True)
        return flops.count(program.step, *program.arguments)

    def sizes(self) -> tuple[dict[str, int], int]:
        """Return the bytes of one device by what they are for (fvjax/plan.py has the formulas), and the bytes moved."""
        config, whole = self.config, self.step
        (state, frozen, batch), (of_state, of_frozen, of_batch) = whole.arguments, whole.shardings
        estimate, gradients, layer = self._share_of_one_device()
        layers = has_layers(config.model.kind)
        working = sum(estimate.alive[layer:]) if layers else sum(estimate.alive) - gradients
        without_optimizer = [(tree.trainable, tree.stats, tree.step) for tree in (state, of_state)]
        return {
            "base": bytes_per_device(frozen, of_frozen),
            "trained": bytes_per_device(*without_optimizer),
            "optimizer": bytes_per_device(state.opt, of_state.opt),
            "gradients": bytes_per_device(state.trainable, of_state.trainable) if config.trains else 0,
            "batch": 2 * bytes_per_device(batch, of_batch),
            "kept": max(sum(estimate.alive) - working - gradients, 0),
            "working set": working,
            "similarities": comparison_bytes(whole, self.mesh) if config.trains else 0,
        }, estimate.moved

    def _share_of_one_device(self) -> tuple[memory.Estimate, int, int]:
        """Estimate the step of one device's share of the batch.

        Returns the estimate, the bytes of its gradients (not sharded there), and how deep the loop over layers is.
        """
        config = self.config
        share = config.replace(
            {
                "batch_size": config.batch_size // sharding.rows(self.mesh),
                "compat.negatives_group": 0,
                "compat.batch_norm_group": 0,
                "head.classes": -(-config.head.classes // self.mesh.size),
            }
        )
        alone = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), list(self.mesh.devices.flatten()[:1]))
        local = Planner(share, alone).program()
        in_parts = config.trains and config.accumulation > 1 and not config.compat.last_micro_batch
        layer = 1 + bool(in_parts)
        kernels = layer + 1 if config.attention == "cudnn" else 0
        estimate = memory.estimate(local.step, *local.arguments, kernels=kernels)
        trainable = local.arguments[0].trainable, local.shardings[0].trainable
        return estimate, bytes_per_device(*trainable) if config.trains else 0, layer

    def remat_that_fits(self, limit: int) -> tuple[str, str]:
        """Return the fastest of REMAT whose step surely fits in `limit` bytes, or "full"; and why, in one line."""
        reasons = []
        for choice in REMAT:
            needed, _ = Planner(self.config.replace({"remat": choice}), self.mesh).sizes()
            least = sum(needed.values())
            most = least + needed["working set"]  # fvjax/plan.py: the working set is a range
            reasons.append(f"{choice} needs {least / 2**30:.1f} to {most / 2**30:.1f} GiB")
            if most <= FILLED * limit or not has_layers(self.config.model.kind):
                break
        else:
            reasons.append("which may be too much: raise config.accumulation, or lower config.batch_size")
        return choice, f"remat: {choice} ({', '.join(reasons)}; a device has {limit / 2**30:.1f})"

    def choose_remat(self) -> str:
        """Choose for this run's devices; of several processes the one with the smallest memory decides."""
        choice, reason = self.remat_that_fits(device_memory())
        say(reason)
        return max(distributed.exchange(choice), key=REMAT.index)

    def check_divides(self, rows: int) -> None:
        """Raise ValueError unless batches divide over so many devices; names settings that do."""
        config, per_example = self.config, self.task.images_per_example
        unit = per_example * config.accumulation
        sizes = {"eval.batch_size": ("eval.batch_size", config.eval.batch_size, 1)}
        if config.trains:
            parts = "" if config.accumulation == 1 else " / accumulation"
            name = f"batch_size{f' / {per_example}' if per_example > 1 else ''}{parts}"
            sizes[name] = ("batch_size", config.batch_size // unit, unit)
        wrong = [f"config.{name} = {size}" for name, (_, size, _) in sizes.items() if size % rows]
        remedy = [f"--config.{k}={-(-size // rows) * rows * unit}" for k, size, unit in sizes.values() if size % rows]
        if wrong:
            problem = f"{' and '.join(wrong)} do{'es' * (len(wrong) == 1)} not divide over the mesh's data x fsdp"
            raise ValueError(f"{problem} = {rows} devices; for example {' '.join(remedy)}")


def _predict(task: Task, model: RunModel, state: TrainState, frozen: Any, batch: Any) -> jax.Array:
    return task.predict(model.encoder, model.variables(state.trainable, state.stats, frozen), batch)


def compiled(program: Program) -> Any:
    """Compile for the program's mesh, whose devices may be fake ones."""
    arguments = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), program.arguments, program.shardings
    )
    donated = 0 if isinstance(program.results, tuple) else ()
    return jax.jit(program.step, donate_argnums=donated, out_shardings=program.results).lower(*arguments).compile()


# ---- memory ----------------------------------------------------------------------------------------------------------


def bytes_per_device(shapes: Any, shardings: Any) -> int:
    """Return the bytes of a tree of arrays that one device holds."""
    each = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, shapes, shardings)
    return sum(jax.tree.leaves(each))


def comparison_bytes(program: Program, mesh: Mesh) -> int:
    """Return what XLA assigns on one device for a loss over all embeddings and its gradient.

    The gradient is that with respect to the embeddings and to the parameters of a class head. 0 for a loss that does
    not compare examples with each other.
    """
    objective, task = program.task.objective(program.model.encoder), program.task
    if objective.compare is None:
        return 0
    state, frozen, batch = program.arguments
    of_state, of_frozen, _ = program.shardings
    by_rows = NamedSharding(mesh, sharding.BATCH)

    def embed(state, frozen, batch):
        variables = program.model.variables(state.trainable, state.stats, frozen)
        return objective.embed(variables, task.prepare(batch))[0]

    def loss(embeddings, head, state, frozen, batch):
        variables = program.model.variables(state.trainable | head, state.stats, frozen)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return objective.loss_of_embeddings(variables, embeddings, task.prepare(batch))

    embeddings = jax.eval_shape(embed, state, frozen, batch)
    head = {name: tree for name, tree in state.trainable.items() if name == "head"}
    of_head = {name: of_state.trainable[name] for name in head}
    results = sharding.replicated(mesh), (by_rows, of_head)
    arguments = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        (embeddings, head, state, frozen, batch),
        (by_rows, of_head, of_state, of_frozen, jax.tree.map(lambda _: by_rows, batch)),
    )
    jitted = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), out_shardings=results)
    analysis: Any = jitted.lower(*arguments).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def device_memory() -> int:
    """Return the bytes that a device of this process may take: its allocator's limit, or a CPU's share of memory."""
    local = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in local]
    return min(limits) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(local)
