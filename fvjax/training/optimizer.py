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
    then lr 0.5 (1 + cos(pi (e-W)/(E-W))). epoch_milestones: the same warm-up, then lr 0.1^k, where k milestones are at
    most e (torch's MultiStepLR). The others count steps, S in all, of which W are warm-up: lr s/W for s < W,
    so the first step has rate 0 (as in Hugging Face transformers); then lr times 0.5 (1 + cos(pi (s-W)/(S-W))) for
    cosine, (S-s)/(S-W) for linear, 1 for constant.

    Args:
        epochs, steps_per_epoch: how long training takes, unless `steps` says so.
    """
    if config.schedule in ("epoch_cosine", "epoch_milestones"):
        return _by_epochs(config, max(epochs, 1), steps_per_epoch)
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


def _by_epochs(config: OptimizerConfig, epochs: int, steps_per_epoch: int) -> Callable[[int | jax.Array], jax.Array]:
    e = np.arange(epochs, dtype=np.float64)
    warm = config.warmup_epochs
    after = 0.5 * (1 + np.cos(np.pi * (e - warm) / max(epochs - warm, 1)))
    if config.schedule == "epoch_milestones":
        after = 0.1 ** np.searchsorted(config.milestones, e, side="right")
    table = jnp.asarray(config.lr * np.where(e < warm, (e + 1) / max(warm, 1), after), jnp.float32)
    return lambda step: table[jnp.minimum(step // steps_per_epoch, epochs - 1)]


def make(config: OptimizerConfig, groups: Mapping[str, str], lr: Callable) -> optax.GradientTransformation:
    """Clip the global norm over what trains, but for `unclipped` groups; then one optimizer per group (`lr_scale`).

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

    scales, names = dict(config.lr_scale), set(groups.values())
    for key, named in (("lr_scale", scales), ("unclipped", config.unclipped), ("idle_rows", config.idle_rows)):
        if unknown := set(named) - names:
            raise ValueError(f"config.optimizer.{key} names no group that trains: {sorted(unknown)}")

    def labels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: groups["/".join(k.key for k in path)], params)

    def clipped(params):
        return jax.tree.map(lambda group: group not in config.unclipped, labels(params))

    clip = optax.clip_by_global_norm(config.clip)
    if config.unclipped:
        clip = optax.masked(clip, clipped)
    per_group: dict[Hashable, optax.GradientTransformation] = {g: one(scales.get(g, 1.0)) for g in names}
    for group in config.idle_rows:
        per_group[group] = leave_idle_rows(per_group[group])
    return optax.chain(clip, optax.partition(per_group, labels))


def leave_idle_rows(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return an optimizer that leaves rows as they are whose gradient is zero throughout: parameters and momenta.

    A row is what the first axis of an array counts, such as the centre of one class. Without this, weight decay and
    momentum would go on moving the centres of classes that a step left out.
    """

    def update(updates, state, params=None):
        idle = jax.tree.map(lambda g: jnp.all(g == 0, axis=tuple(range(1, g.ndim)), keepdims=True), updates)
        updates, new = inner.update(updates, state, params)
        of_state = optax.tree_utils.tree_map_params(
            inner.init, lambda _, rows: rows, new, idle, transform_non_params=lambda _: False
        )
        updates = jax.tree.map(lambda rows, u: jnp.where(rows, 0.0, u), idle, updates)
        return updates, jax.tree.map(jnp.where, of_state, state, new)

    return optax.GradientTransformation(inner.init, update)
