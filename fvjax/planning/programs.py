"""What a training step needs of a device, by shapes alone: the program, its memory, the remat that fits."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from fvjax import trees
from fvjax.config import Config
from fvjax.losses import contrastive
from fvjax.models.encoder import Encoder
from fvjax.parallel import distributed, sharding
from fvjax.planning import memory
from fvjax.training import loop, optimizer, train_state

REMAT = "none", "dots", "full"  # by speed, and by how much memory they take
FILLED = 0.9  # of a device's memory may be planned for: fragmentation, cuDNN's workspaces


class Program(NamedTuple):
    """What a run compiles: step(state, frozen, batch), its arguments as shapes, their shardings and the results'."""

    step: Callable
    given: tuple
    placed: tuple
    results: Any
    encoder: Encoder


def forward(config: Config, encoder: Encoder, state: dict, frozen: dict, batch: dict) -> jax.Array:
    """What a config that trains nothing computes, of images uint8 [P,2,112,112,3]."""
    variables, images = train_state.variables_of(config, state["trainable"], frozen, state["stats"]), batch["images"]
    if config.task == "pair_answer":
        return encoder.answer(variables, images[:, 0], images[:, 1], encoder.yes_no)
    return encoder(variables, images.reshape(-1, *images.shape[2:]))[0]


def program(config: Config, mesh: jax.sharding.Mesh, plain: bool | None = None) -> Program:
    """`plain`: see build_encoder; None: an IResNet is, since its arrangement for CPUs is none for what is planned."""
    if config.attention == "cudnn":  # of no other backend; as little memory, as few FLOPs
        config = config.copy_and_resolve_references()
        config.attention = "by_head"
    opened = train_state.open_model(config, mesh, plain=config.model.kind == "iresnet" if plain is None else plain)
    lr = optimizer.schedule(config.optimizer, config.epochs, 1)
    tx = optimizer.make(config.optimizer, opened.groups, lr)

    def init(key):
        first = train_state.initial(config, opened.encoder, key)
        opt = tx.init(first["trainable"]) if config.epochs else {}
        return {**first, "opt": opt, "step": jnp.zeros((), jnp.int32)}

    shape = jax.eval_shape(init, jax.random.key(0))
    where = train_state.state_shardings(shape, opened.placed, mesh)
    state, frozen, batch = loop.abstract_step(config, shape, opened.frozen)
    frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(config.base_dtype)), frozen)
    at = trees.unflatten({name: opened.placed[name] for name in trees.flatten(frozen)})
    by_rows = jax.tree.map(lambda _: NamedSharding(mesh, sharding.BATCH), batch)
    if config.epochs:
        step, results = partial(loop.step_fn, config, opened.encoder, tx, lr), (where, sharding.replicated(mesh))
    else:
        step, results = partial(forward, config, opened.encoder), NamedSharding(mesh, sharding.BATCH)
    return Program(step, (state, frozen, batch), (where, at, by_rows), results, opened.encoder)


def compiled(program: Program) -> Any:
    """For the program's mesh, of which no device needs to be there but as a fake one."""
    given = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), program.given, program.placed)
    donated = 0 if isinstance(program.results, tuple) else ()
    return jax.jit(program.step, donate_argnums=donated, out_shardings=program.results).lower(*given).compile()


def held(shapes: Any, placed: Any) -> int:
    """Bytes of one device."""
    each = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, shapes, placed)
    return sum(jax.tree.leaves(each))


def loss_bytes(config: Config, mesh: jax.sharding.Mesh, width: int) -> int:
    """What XLA assigns InfoNCE over all embeddings [images, width], and its gradient by them, on one device."""
    by_rows = NamedSharding(mesh, sharding.BATCH)
    z = jax.ShapeDtypeStruct((config.batch_size, width), jnp.float32, sharding=by_rows)
    labels = jax.ShapeDtypeStruct((config.batch_size // 2,), jnp.int32, sharding=by_rows)

    def loss(z, labels):
        return contrastive.loss(z, labels, config.loss.temperature, config.compat.negatives_group)

    done = jax.jit(jax.value_and_grad(loss), out_shardings=(sharding.replicated(mesh), by_rows)).lower(z, labels)
    analysis: Any = done.compile().memory_analysis()
    return analysis.temp_size_in_bytes


def sizes(config: Config, mesh: jax.sharding.Mesh, whole: Program) -> tuple[dict[str, int], int]:
    """Bytes of one device, by what they are for (plan.py has the formulas), and those moved; whole: of `config`."""
    (state, frozen, batch), (at, of_base, by_rows) = whole.given, whole.placed
    one = config.copy_and_resolve_references()  # a device's share of the batch
    one.batch_size //= mesh.shape["data"] * mesh.shape["fsdp"]
    one.compat.update({"negatives_group": 0, "batch_norm_group": 0})
    alone = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, mesh.devices.flatten()[:1])
    local, in_parts = program(one, alone), config.task == "pair_answer" or config.accumulation > 1
    layer = 1 + bool(config.epochs and in_parts and not config.compat.last_micro_batch)  # depth of the loop over them
    found = memory.estimate(local.step, *local.given, kernels=layer + 1 if config.attention == "cudnn" else 0)
    trains = bool(config.epochs)
    gradients = trains * held(local.given[0]["trainable"], local.placed[0]["trainable"])  # unsharded, as in `found`
    working = sum(found.alive[layer:]) if config.model.kind != "iresnet" else sum(found.alive) - gradients
    similarities = 0
    if trains and config.task == "contrastive":
        width = jax.eval_shape(partial(forward, one, local.encoder), *local.given).shape[-1]
        similarities = loss_bytes(config, mesh, width)
    return {
        "base": held(frozen, of_base),
        "trained": held({**state, "opt": ()}, {**at, "opt": ()}),
        "optimizer": held(state["opt"], at["opt"]),
        "gradients": trains * held(state["trainable"], at["trainable"]),
        "batch": 2 * held(batch["images"], by_rows["images"]),
        "kept": max(sum(found.alive) - working - gradients, 0),
        "working set": working,
        "similarities": similarities,
    }, found.moved


def remat(config: Config, mesh: jax.sharding.Mesh, limit: int) -> tuple[str, str]:
    """The fastest of REMAT whose step surely fits in `limit` bytes of a device, and a line about why; else "full"."""
    told = []
    for choice in REMAT:
        one = config.copy_and_resolve_references()
        one.remat = choice
        found, _ = sizes(one, mesh, program(one, mesh))
        most = sum(found.values()) + found["working set"]  # plan.py: the working set is a range
        told.append(f"{choice} needs {(most - found['working set']) / 2**30:.1f} to {most / 2**30:.1f} GiB")
        if most <= FILLED * limit or config.model.kind == "iresnet":
            break
    else:
        told.append("which may be too much: raise config.accumulation, or lower config.batch_size")
    return choice, f"remat: {choice} ({', '.join(told)}; a device has {limit / 2**30:.1f})"


def chosen(config: Config, mesh: jax.sharding.Mesh, say: Callable[[str], None]) -> str:
    """For this process's devices; of several processes the one for the smallest memory, which all must have."""
    choice, why = remat(config, mesh, device_memory())
    say(why)
    return max(distributed.exchange(choice), key=REMAT.index)


def device_memory() -> int:
    """Bytes that a device of this process may take: as its allocator says, of a CPU its share of the machine's."""
    local = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in local]
    return min(limits) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(local)
