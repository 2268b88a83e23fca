"""Count the arithmetic of a traced function: matrix products and convolutions, loops multiplied out."""

import math
from collections.abc import Callable

import jax
from jax.extend.core import jaxprs_in_params


def count(fn: Callable, *args) -> int:
    """Count FLOPs (2 per multiply-add) of `fn` at the shapes of `args` (arrays or ShapeDtypeStructs), by its jaxpr.

    Only `dot_general` and convolutions count, as is usual for *model* FLOPs. The body of a `scan` counts each time;
    recomputation under remat counts too, so trace with remat="none" for the model's own arithmetic.
    """
    return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            total += 2 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[d] for d in contract)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, dims = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
            macs = eqn.outvars[0].aval.size * math.prod(kernel) // kernel[dims.rhs_spec[0]]
            # The zeros that a dilated operand inserts are no arithmetic of the model.
            total += 2 * macs // math.prod(eqn.params["lhs_dilation"])
        else:
            times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
            total += times * sum(_count(getattr(j, "jaxpr", j)) for j in jaxprs_in_params(eqn.params))
    return total
