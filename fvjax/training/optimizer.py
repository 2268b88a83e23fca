"""Which parameters train, with what optimizer and at what rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fvjax import trees
from fvjax.config import OptimizerConfig

FROZEN = "frozen"


def split(variables: Mapping, rules: Any) -> tuple[dict, dict, dict[str, str]]:
    """Prune a variable tree into what trains and what is frozen.

    Args:
        variables: nested {"params": …, "lora": …}; leaves may be abstract.
        rules: ordered (regex over names such as "params/conv1/kernel", group) pairs; group "frozen" does not train.
    Returns:
        (trainable, frozen, groups): two nested trees without common leaves, and group by name of what trains.
    Raises:
        ValueError: a leaf that no rule matches, a rule that decides nothing.
    """
    flat = trees.flatten(variables)
    groups = trees.first_match(tuple(map(tuple, rules)), flat, "trainable rule (config.trainable)")
    trained = {n: g for n, g in groups.items() if g != FROZEN}
    return (
        trees.unflatten({n: flat[n] for n in trained}),
        trees.unflatten({n: flat[n] for n in flat if n not in trained}),
        trained,
    )


def merge(*parts: Mapping) -> dict:
    """Put pruned trees back together: the inverse of :func:`split`."""
    return trees.unflatten({n: leaf for part in parts for n, leaf in trees.flatten(part).items()})


def schedule(
    config: OptimizerConfig, *, epochs: int, steps_per_epoch: int, steps: int = 0
) -> Callable[[int | jax.Array], jax.Array]:
    """Return the learning rate as a function of the step (0 for the first one).

    epoch_cosine, LLM-FaceVerification's: constant within epoch e of E, of which W are warm-up: lr (e+1)/W for e < W,
    then lr 0.5 (1 + cos(pi (e-W)/(E-W))). The others count steps, S in all, of which W are warm-up: lr s/W for s < W,
    so the first step has rate 0 (as in Hugging Face transformers); then lr times 0.5 (1 + cos(pi (s-W)/(S-W))) for
    cosine, (S-s)/(S-W) for linear, 1 for constant.

    Args:
        epochs, steps_per_epoch: how long training takes, unless `steps` says so.
    """
    if config.schedule == "epoch_cosine":
        return _epoch_cosine(config, max(epochs, 1), steps_per_epoch)
    total = max(steps or epochs * steps_per_epoch, 1)
    warm = config.warmup_steps or math.ceil(config.warmup_ratio * total)
    if warm > total:
        raise ValueError(f"config.optimizer.warmup_steps={warm}: training has {total} steps")

    def rate(step: int | jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warm) / max(total - warm, 1), 0, 1)
        after = {"cosine": 0.5 * (1 + jnp.cos(jnp.pi * progress)), "linear": 1 - progress, "constant": 1.0}
        return config.lr * jnp.where(step < warm, step / max(warm, 1), after[config.schedule])

    return rate


def _epoch_cosine(config: OptimizerConfig, epochs: int, steps_per_epoch: int) -> Callable[[int | jax.Array], jax.Array]:
    e = np.arange(epochs, dtype=np.float64)
    warm = config.warmup_epochs
    cosine = 0.5 * (1 + np.cos(np.pi * (e - warm) / max(epochs - warm, 1)))
    table = jnp.asarray(config.lr * np.where(e < warm, (e + 1) / max(warm, 1), cosine), jnp.float32)
    return lambda step: table[jnp.minimum(step // steps_per_epoch, epochs - 1)]


def make(config: OptimizerConfig, groups: Mapping[str, str], lr: Callable) -> optax.GradientTransformation:
    """Clip the global norm over everything that trains, then one optimizer per group (rates by `lr_scale`).

    sgd: weight decay is added to the gradient before momentum, as in torch. adamw: decoupled decay.
    Updates and params are the trainable tree that :func:`split` returned, or a flat tree with the same names.
    """

    def one(scale: float) -> optax.GradientTransformation:
        rate = optax.scale_by_learning_rate(lambda step: scale * lr(step))
        decay = optax.add_decayed_weights(config.weight_decay)
        if config.name == "sgd":
            return optax.chain(decay, optax.trace(config.momentum), rate)
        if config.name == "adamw":
            return optax.chain(optax.scale_by_adam(config.b1, config.b2, config.eps), decay, rate)
        raise ValueError(f"config.optimizer.name={config.name!r}: choose sgd or adamw")

    scales = dict(config.lr_scale)
    unknown = set(scales) - set(groups.values())
    if unknown:
        raise ValueError(f"config.optimizer.lr_scale names no group that trains: {sorted(unknown)}")

    def labels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: groups["/".join(k.key for k in path)], params)

    per_group: dict[Hashable, optax.GradientTransformation] = {g: one(scales.get(g, 1.0)) for g in set(groups.values())}
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.partition(per_group, labels))
