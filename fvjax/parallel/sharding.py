"""The device mesh and where every array lives on it."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from rich.table import Table

from fvjax import trees

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(shape: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Make the mesh ("data", "fsdp", "tensor") over all devices, or those given; one size may be -1 (what is left)."""
    devices = jax.devices() if devices is None else devices
    sizes = [shape[axis] for axis in AXES]
    if sizes.count(-1) > 1:
        raise ValueError(f"config.mesh: only one of {AXES} may be -1, got {sizes}")
    known = math.prod(s for s in sizes if s != -1)
    if -1 in sizes and known > 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise ValueError(f"config.mesh: {dict(zip(AXES, sizes))} does not make up the {len(devices)} devices here")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def one_device() -> Mesh:
    """Make a mesh of the first device alone."""
    return make_mesh(dict.fromkeys(AXES, 1), jax.devices()[:1])


def rows(mesh: Mesh) -> int:
    """Return how many ways a batch is split: over data x fsdp."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def by_rules(tree: Mapping, rules, mesh: Mesh) -> dict:
    """Return a NamedSharding for every leaf of a nested tree.

    Args:
        tree: leaves with `.shape`; names are matched as in :func:`fvjax.trees.first_match`.
        rules: ordered (regex, axes) pairs; axes: per dimension a mesh axis name, several of them or None; shorter means
            replicated.
    Raises:
        ValueError: an unmatched leaf or rule, more axes than dimensions, a dimension that does not divide.
    """
    flat = trees.flatten(tree)
    specs = trees.first_match(tuple(map(tuple, rules)), flat, "sharding rule (config.sharding)")
    out = {}
    for name, spec in specs.items():
        shape = flat[name].shape
        if len(spec) > len(shape):
            raise ValueError(f"config.sharding: {name} has shape {shape}, fewer dimensions than {tuple(spec)}")
        for size, axis in zip(shape, spec):
            parts = math.prod(mesh.shape[one] for one in ((axis,) if isinstance(axis, str) else axis or ()))
            if size % parts:
                raise ValueError(f"config.sharding: {name} {shape} does not divide over {axis}={parts}")
        out[name] = NamedSharding(mesh, PartitionSpec(*spec))
    return trees.unflatten(out)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """Say how a value of a step lies on the step's mesh; outside of one, where there is no mesh, return it as it is."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, spec)


def rows_here(size: int, mesh: Mesh) -> np.ndarray:
    """Return which of a batch's `size` rows this process's devices hold, in order; int [n]."""
    slices = NamedSharding(mesh, BATCH).addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[index] for index in slices]))


def batch(arrays: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Make global arrays, split over data and fsdp; every process passes the host rows of :func:`rows_here`."""
    sharding = NamedSharding(mesh, BATCH)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in arrays.items()}


def whole(x: np.ndarray, mesh: Mesh, spec: PartitionSpec = BATCH) -> jax.Array:
    """Make a global array, split over data and fsdp or as `spec` says, of one that every process has whole."""
    return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda index: x[index])


def table(parts: Mapping[str, object]) -> Table:
    """Make a table of how arrays lie on the mesh, with the bytes that one device holds of them.

    Args:
        parts: name -> tree of arrays, or of shapes with shardings.
    """
    out = Table("part", "arrays", "e.g.", "split over", "MiB", "MiB a device", box=None, pad_edge=False)
    total = 0
    for part, tree in parts.items():
        by_spec: dict[str, list[tuple[str, int, int]]] = {}
        for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
            name = re.sub(".*?(?=params/|lora/)", "", jax.tree_util.keystr(path, simple=True, separator="/"))
            split = ", ".join(str(axis) for axis in x.sharding.spec if axis) or "nothing"
            here = math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            by_spec.setdefault(split, []).append((name, x.size * x.dtype.itemsize, here))
        for split, leaves in by_spec.items():
            whole, here = sum(leaf[1] for leaf in leaves), sum(leaf[2] for leaf in leaves)
            total += here
            sizes = (f"{n / 2**20:,.1f}" for n in (whole, here))
            out.add_row(part, f"{len(leaves):,}", max(leaves, key=lambda leaf: leaf[1])[0], split, *sizes)
    out.add_row("together", "", "", "", "", f"{total / 2**20:,.1f}")
    return out
