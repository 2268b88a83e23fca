"""LoRA: low-rank adapters as a separate float32 tree beside a frozen base.

    adapters = lora.init(params, ("blocks/mlp/fc1", "blocks/mlp/fc2"), rank=8, count=48, key=key)
    model.apply({"params": base, "lora": trees.unflatten(lora.scaled(adapters, alpha / rank))}, x)

Flat names are the module's plus ``/a`` [in, rank] and ``/b`` [rank, out]; those of a scanned stack have a leading
layer axis.
Sources: Hu et al., LoRA (arXiv:2106.09685); initialisation as in LLM-FaceVerification ("kaiming") or as in PEFT's
default, by which FaceLLM was trained ("peft", peft/tuners/lora/layer.py: kaiming_uniform with a = sqrt 5).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

# Variance of a times its number of inputs, by the name of an initialisation; the bound of the uniform draw follows.
INITS = {"kaiming": 2.0, "peft": 1 / 3}


def init(
    params: Mapping[str, Any],
    targets: Sequence[str],
    rank: int,
    count: int,
    key: jax.Array,
    init: Literal["kaiming", "peft"] = "kaiming",
) -> dict[str, jax.Array]:
    """Create float32 adapters: a is uniform with a bound that depends on ``init``, b is zero.

    Args:
        params: flat tree of the base, names without the collection; leaves need only ``.shape``.
        targets: regexes, each matching the whole name of a module ("blocks/mlp/fc[12]").
        rank: inner dimension.
        count: expected number of adapters; a stack of L layers counts L times.
        key: typed PRNG key; each module's values depend only on it and on the module's name.
        init: "kaiming" has the bound sqrt(6 / in), "peft" 1 / sqrt(in).
    Raises:
        ValueError: a target matches no module with a kernel, the number of adapters is not ``count``, or ``init`` is
            unknown.
    """
    if init not in INITS:
        raise ValueError(f"LoRA initialisation {init!r} is unknown; known are {sorted(INITS)}")
    modules = {name.removesuffix("/kernel"): leaf.shape for name, leaf in params.items() if name.endswith("/kernel")}
    modules = {name: shape for name, shape in modules.items() if len(shape) <= 3}  # not convolutions
    for target in targets:
        if not any(re.fullmatch(target, name) for name in modules):
            raise ValueError(f"LoRA target {target!r} matches no module; the modules are {sorted(modules)}")
    targeted = {n: s for n, s in modules.items() if any(re.fullmatch(target, n) for target in targets)}
    total = sum(shape[0] if len(shape) == 3 else 1 for shape in targeted.values())
    if total != count:
        raise ValueError(f"LoRA targets {list(targets)} give {total} adapters, expected {count}: {sorted(targeted)}")
    adapters = {}
    for name, (*stack, inputs, outputs) in targeted.items():
        bound = (3 * INITS[init] / inputs) ** 0.5
        module_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        adapters[f"{name}/a"] = jax.random.uniform(module_key, (*stack, inputs, rank), jnp.float32, -bound, bound)
        adapters[f"{name}/b"] = jnp.zeros((*stack, rank, outputs), jnp.float32)
    return adapters


def scaled(adapters: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Convert adapters to what Dense reads: every b times ``scale`` (alpha / rank), every a as [rank, in].

    Differentiable. The transposition happens here, outside the loop over layers, because inside XLA would fuse it with
    a product (see layers.low_rank).
    """
    return {name: leaf * scale if name.endswith("/b") else leaf.swapaxes(-1, -2) for name, leaf in adapters.items()}


def merge(params: Mapping[str, Any], adapters: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Add the adapters to the base, in the base's dtypes.

    For export only: training a merged half-precision base would round small updates away.
    Raises ValueError for an adapter without its kernel or its other half.
    """
    merged = dict(params)
    for module in sorted({name.rsplit("/", 1)[0] for name in adapters}):
        a, b = adapters.get(f"{module}/a"), adapters.get(f"{module}/b")
        kernel = params.get(f"{module}/kernel")
        if a is None or b is None or kernel is None:
            raise ValueError(f"adapter {module}: needs {module}/a, {module}/b and the base's {module}/kernel")
        delta = jnp.matmul(a, b, precision="highest") * scale
        total = (jnp.asarray(kernel, jnp.float32) + delta).astype(kernel.dtype)
        merged[f"{module}/kernel"] = jnp.where(delta == 0, kernel, total)  # keeps -0.0, which -0.0 + 0 would not
    return merged


def is_zero(grads: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Test whether each adapter's gradient is exactly zero: bool [layers] for a stack, else []. Can run inside jit."""
    return {name: (g == 0).all(axis=(-2, -1)) for name, g in grads.items()}


def check_alive(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Check on the host that no new adapter is dead, once b has moved.

    a is multiplied by b, and b starts at zero: at the first step only b can have a gradient, after the first update
    also a. A warm-up from the rate 0 makes that update a later one than the first step's.

    Args:
        first, second: the results of :func:`is_zero` for the first step's gradients and for those after the first
            update, flat names.
    Raises:
        ValueError: the gradient of a b was zero at the first step, or that of an a after the first update; names all of
            them by layer.
    """
    dead = []
    for moment, half, zero in (("first step", "/b", first), ("after the first update", "/a", second)):
        for name in sorted(n for n in zero if n.endswith(half)):
            layers = np.asarray(zero[name])
            if layers.any():
                which = f" layers {np.flatnonzero(layers).tolist()}" if layers.ndim else ""
                dead.append(f"{name}{which} ({moment})")
    if dead:
        raise ValueError(
            f"dead adapters, their gradient is exactly zero: {', '.join(dead)}. Check that the loss depends on these "
            "modules (config.lora.targets, the pooling, pictures in the data), and that drop-path does not drop a "
            "layer for all images of a small batch"
        )
