"""When to save and when to stop, decided by all processes together: each must do the same after the same step."""

from __future__ import annotations

import enum
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fvjax.parallel import sharding
from fvjax.training.preemption import Request


class Action(enum.IntEnum):
    """What to do after a step, in rising priority."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class Agreement:
    """Finds the highest-priority action that any process asks for.

    Args:
        request: whether somebody asked this process to stop. every_minutes: how often process 0 asks for a checkpoint,
            0: never.
    """

    def __init__(self, request: Request, every_minutes: float, mesh: Mesh):
        self.request, self.mesh = request, mesh
        self.every_seconds = 60 * (every_minutes or float("inf"))
        self.alone, self.first = jax.process_count() == 1, jax.process_index() == 0
        self.saved_at = time.monotonic()

    def propose(self, step: jax.Array) -> int | jax.Array:
        """Say before a step what this process wants after it; return what to hand to that step.

        step: the state's, of before. Several processes get an array that is known once `step` is.
        """
        wanted = self._wanted()
        self.request.unsaved = True
        return wanted if self.alone else highest(wanted, step, self.mesh)

    def decide(self, proposed: int | jax.Array) -> Action:
        """Return the action after the step that `proposed` was handed to."""
        if self.alone and self.request.asked:
            return Action.STOP
        return Action(int(proposed))

    def saved(self, action: Action) -> None:
        """Note that everything is saved. Raises Preempted if the action was to stop, or a signal has come since."""
        self.saved_at = time.monotonic()
        self.request.saved(stop=action == Action.STOP)

    def _wanted(self) -> Action:
        if self.request.asked:
            return Action.STOP
        late = self.first and time.monotonic() > self.saved_at + self.every_seconds
        return Action.SAVE if late else Action.GO_ON


def highest(wanted: int, step: jax.Array, mesh: Mesh) -> jax.Array:
    """Return the highest-priority action that any process wants, an int32 scalar that all of them have.

    It depends on `step`, so it cannot overlap with the previous training step, and the next step depends on it. On a
    CPU only such dependencies keep programs in order: collectives of two programs that run at the same time may meet
    the wrong ones of another process.
    """
    each = NamedSharding(mesh, PartitionSpec(sharding.AXES))
    everyones = jax.make_array_from_callback((mesh.size,), each, lambda _: np.full(1, wanted, np.int32))
    return _maximum(everyones, step, sharding.replicated(mesh))


@functools.partial(jax.jit, static_argnums=2)
def _maximum(wanted: jax.Array, step: jax.Array, out: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.max(wanted) + 0 * step, out)
