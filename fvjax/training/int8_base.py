"""The frozen base of a run with its kernels as int8 (config.base_kernels): shapes, shardings, reading and the error."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fvjax.models import int8

THREADS = min(os.cpu_count() or 1, 16)  # that read and quantise layers; each holds one layer's kernel


def check_rules(groups: Mapping[str, str], rules: Sequence[tuple[str, Any]]) -> None:
    """Raise ValueError if a rule of config.trainable trains a kernel that is kept as int8; `groups`: what trains."""
    for name in filter(int8.is_quantised, groups):
        rule = next(pattern for pattern, _ in rules if re.fullmatch(pattern, name))
        raise ValueError(
            f"config.base_kernels=int8: the rule {rule!r} of config.trainable trains {name}, which would be kept as "
            "integers; make it frozen and train adapters (config.lora), or set base_kernels=base_dtype"
        )


def with_int8_kernels(
    frozen: Mapping[str, jax.ShapeDtypeStruct], shardings: Mapping[str, NamedSharding]
) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, NamedSharding]]:
    """Return flat shapes and shardings with int8 kernels and their scales, which live where the outputs live."""
    shapes, places = dict(frozen), dict(shardings)
    for name in filter(int8.is_quantised, frozen):
        *stack, inputs, outputs = frozen[name].shape
        at = shardings[name]
        spec = [*at.spec, *[None] * len(frozen[name].shape)][: len(frozen[name].shape)]
        shapes[name] = jax.ShapeDtypeStruct((*stack, inputs, outputs), jnp.int8)
        shapes[int8.scale_name(name)] = jax.ShapeDtypeStruct((*stack, outputs), jnp.float32)
        places[int8.scale_name(name)] = NamedSharding(at.mesh, PartitionSpec(*spec[:-2], spec[-1]))
    return shapes, places


class _Stack:
    """A stack of kernels [layers, in, out] in a checkpoint, quantised in the parts that this process's devices hold.

    Scales depend on all inputs, so a part has all of them, also where they are sharded.
    """

    def __init__(self, name: str, source: Any):
        self.name, self.source = name, source
        self.parts: dict[tuple[int, ...], int8.Quantised] = {}

    def part(self, layers: slice, outputs: slice) -> int8.Quantised:
        """Return the quantised kernels of some layers and output channels, reading each part once."""
        depth, inputs, width = self.source.shape
        (first, end, _), (left, right, _) = layers.indices(depth), outputs.indices(width)
        key = first, end, left, right
        if key not in self.parts:
            channels = (end - first, right - left)
            sums = (np.empty(channels, np.float32) for _ in range(4))
            out = int8.Quantised(np.empty((end - first, inputs, right - left), np.int8), *sums)

            def read(layer: int) -> None:
                for whole, one in zip(out, int8.quantise(np.asarray(self.source[layer, :, left:right]))):
                    whole[layer - first] = one

            with ThreadPoolExecutor(THREADS) as threads:
                list(threads.map(read, range(first, end)))
            self.parts[key] = out
        return self.parts[key]

    def array(self, field: str, at: NamedSharding) -> jax.Array:
        """Return a field of the quantised stack, [layers, out], as a global array."""
        depth, _, width = self.source.shape

        def field_of(index: Any) -> np.ndarray:
            return getattr(self.part(*index), field)

        return jax.make_array_from_callback((depth, width), at, field_of)

    def integers(self, at: NamedSharding) -> jax.Array:
        """Return q [layers, in, out] as a global array."""

        def integers_of(index: Any) -> np.ndarray:
            return self.part(index[0], index[2]).q[:, index[1]]

        return jax.make_array_from_callback(self.source.shape, at, integers_of)


def read(
    sources: Mapping[str, Any], shardings: Mapping[str, NamedSharding]
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Read stacks of kernels [layers, in, out] as int8, one stack after the other.

    The devices get integers and scales only; the original weights are never on one.

    Args:
        sources: by parameter name; have a shape and are indexed like arrays.
        shardings: of the kernels and scales, by name.
    Returns:
        kernels and scales by name, and the error of each stack by module name: the mean and the worst of its kernels'
        relative errors |W - q s| / |W| (Frobenius norms), and the largest error of a weight by its channel's largest
        weight. Four digits; the same on any number of devices.
    """
    arrays, errors = {}, {}
    for name, source in sources.items():
        stack, at = _Stack(name, source), shardings[int8.scale_name(name)]
        try:
            arrays[name] = stack.integers(shardings[name])
        except ValueError as problem:
            raise ValueError(f"{name.removeprefix('params/')} {problem}") from None
        arrays[int8.scale_name(name)] = stack.array("scale", at)
        errors[name.removeprefix("params/").removesuffix("/kernel")] = _error(stack, at)
    return arrays, errors


def _error(stack: _Stack, at: NamedSharding) -> dict[str, float]:
    everywhere = jax.jit(lambda x: x, out_shardings=NamedSharding(at.mesh, PartitionSpec()))
    fields = ("squared_error", "squared_weight", "largest_error")
    error, weight, largest = (np.asarray(everywhere(stack.array(f, at)), np.float64) for f in fields)
    total = weight.sum(-1)
    relative = np.sqrt(error.sum(-1) / np.where(total == 0, 1, total))
    values = {"mean": relative.mean(), "worst": relative.max(), "largest": largest.max()}
    return {key: float(f"{value:.4g}") for key, value in values.items()}


def describe(frozen: Mapping[str, Any], errors: Mapping[str, Mapping[str, float]]) -> str:
    """Describe in one line how far an int8 base is from the original; `errors`: as :func:`read` returns them.

    frozen: the flat base.
    """
    kernels = [x for x in frozen.values() if x.dtype == jnp.int8]
    worst = max(errors, key=lambda name: errors[name]["worst"])
    mean = sum(one["mean"] for one in errors.values()) / len(errors)
    return (
        f"int8 base: {sum(x.shape[0] for x in kernels)} kernels in {sum(x.size for x in kernels) / 1e9:,.3f} GB. "
        f"|W - q s| / |W| is {mean:.3%} on average and at most {errors[worst]['worst']:.3%} ({worst}); no weight is "
        f"off by more than {max(one['largest'] for one in errors.values()):.4%} of its channel's largest (bound 1/254)"
    )
