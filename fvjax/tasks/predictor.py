"""A run's model as compiled functions: what is compiled once serves every state of the run.

Of several processes each has all inputs and all results on its host; its devices compute their share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from fvjax.parallel import sharding


class Trained(Protocol):
    """What a prediction needs of a training state."""

    @property
    def step(self) -> Any: ...

    @property
    def trainable(self) -> Any: ...

    @property
    def stats(self) -> Any: ...


class Predictor:
    """Compiles functions of a model's variables.

    Args:
        variables: (trainable, stats, frozen) -> the variables that the network is applied to.
        frozen: what does not train, on its devices. mesh: where functions run.
        base_hash: of the pretrained files, for whoever keeps results of the model; "" without any.
    """

    def __init__(
        self, variables: Callable[[Any, Any, Any], Mapping[str, Any]], frozen: Any, mesh: Mesh, base_hash: str = ""
    ):
        self.variables, self.frozen, self.mesh, self.base_hash = variables, frozen, mesh, base_hash

    def compile(self, function: Callable, *, gather: bool = True) -> Callable:
        """Compile `function(variables, *arrays)` -> a function of (state, *arrays).

        gather: every process gets the whole result; otherwise it stays where the compiler puts it.
        """

        def call(trainable, stats, frozen, *args):
            return function(self.variables(trainable, stats, frozen), *args)

        out: NamedSharding | None = sharding.replicated(self.mesh) if gather else None
        compiled = jax.jit(call, out_shardings=out)

        def run(state: Trained, *args: Any) -> Any:
            return compiled(state.trainable, state.stats, self.frozen, *args)

        return run

    def put(self, rows: np.ndarray) -> jax.Array:
        """Put rows that every process has onto the devices, split over data and fsdp."""
        return sharding.whole(np.asarray(rows), self.mesh)
