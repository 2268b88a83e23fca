"""Estimate from a function's jaxpr how much it keeps in memory and how much it moves.

The estimate walks through the program in the order in which it is written and models the main effects of XLA's fusion:

- The results of matrix products, convolutions, reductions, gathers and loops are written to memory, and so are the
  operands of matrix products, convolutions and loops. Reshapes and transposes are views.
- All other operations are fused into their readers: they take no memory and are computed again for each reader.
- A value lives from the operation that writes it to the last one that reads it, directly or through fused operations.
- What a loop stacks up for a later loop (the activations kept for the backward pass) exists from the start, because
  XLA zeroes it early. Carried values are updated in place. The values of one iteration come on top.

So `alive` is a lower estimate for a compiler that fuses this well. What is kept between loops is exact (within 1% of
XLA's own figure, tests/test_plan.py); the values of one iteration are as little as half of what XLA's CPU backend
takes, which copies the operands of transposed products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal, jaxprs_in_params

INLINED = {"jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2"}
VIEWS = {"reshape", "transpose", "squeeze", "expand_dims", "copy", "name", "sharding_constraint"}
REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "argmax", "cumsum"}
PRODUCTS = {"dot_general", "conv_general_dilated"}
LOOPS = {"scan", "while", "cond"}
READERS = PRODUCTS | LOOPS | {"gather", "scatter", "scatter-add", "dynamic_update_slice", "sort", "concatenate"}


class Estimate(NamedTuple):
    """Bytes.

    Attributes:
        alive: at the fullest moment: outside of loops, then in the loop that runs, in the loop inside it, and so on.
            The arguments of the function are not included.
        moved: read and written by everything that is not fused away.
    """

    alive: tuple[int, ...]
    moved: int


class _Value:
    """A value of the program: `stored` in memory or fused; `sources` are the stored values that it is computed from."""

    def __init__(self, aval: Any, stored: bool = False):
        self.size = aval.size * aval.dtype.itemsize
        self.stored, self.sources = stored, {self}


def estimate(fn: Callable, *args: Any, kernels: int = 0) -> Estimate:
    """Estimate `fn` at the shapes of `args` (arrays or ShapeDtypeStructs), on one device.

    kernels: loops nested this deep count as one kernel that keeps its own values on the chip (attention by head stands
    for cuDNN's); 0: there are none.
    """
    return _estimate(jax.make_jaxpr(fn)(*args).jaxpr, 1, kernels)


def _estimate(jaxpr: Any, depth: int, kernels: int) -> Estimate:
    inputs = [_Value(v.aval, stored=True) for v in jaxpr.invars]
    program: list[tuple] = []
    results = [v for v in _inline(jaxpr, inputs, program) if v is not None]
    program = _needed(program, results)
    _store(program, results)
    last: dict[_Value, int] = {}  # the operation that reads a stored value for the last time
    for at, (_, reads, values) in enumerate(program):
        sources = set().union(*(v.sources for v in reads if v is not None))
        for value in values:
            value.sources = {value} if value.stored else sources
        if any(v.stored for v in values):
            last |= dict.fromkeys(sources, at)
    last |= {source: len(program) for value in results for source in value.sources}

    sizes = {}  # bytes of the values that are alive
    for eqn, _, values in program:
        if eqn.primitive.name == "scan":
            sizes |= {v: v.size for v in values[eqn.params["num_carry"] :] if v in last}
    alive, moved = (0,), 0
    for at, (eqn, reads, values) in enumerate(program):
        name, inside = eqn.primitive.name, ()
        new = [v for v in values if v.stored]
        if not new:
            continue
        ending = {v for v in sizes if last[v] == at}
        in_place = ending if name not in PRODUCTS | REDUCTIONS | LOOPS else set()
        if name == "scan":
            first = eqn.params["num_consts"]
            in_place = ending & set(reads[first : first + eqn.params["num_carry"]])
        if name == "scan" and depth != kernels:
            body = _estimate(eqn.params["jaxpr"].jaxpr, depth + 1, kernels)
            inside = body.alive
            moved += body.moved * eqn.params["length"]
        else:
            moved += sum(s.size for s in set().union(*(v.sources for v in reads if v is not None)))
            moved += sum(v.size for v in new)
        for value in in_place:
            del sizes[value]
        sizes |= {v: v.size for v in new if v in last}
        alive = max(alive, (sum(sizes.values()), *inside), key=sum)
        for value in ending - in_place:
            del sizes[value]
    return Estimate(alive, moved)


def _inline(jaxpr: Any, inputs: list, program: list) -> list:
    """Append (equation, operands, results) to `program`, with calls inlined; literals are None."""
    values: dict[Any, _Value | None] = dict(zip(jaxpr.invars, inputs))
    values |= {v: _Value(v.aval, stored=True) for v in jaxpr.constvars}
    for eqn in jaxpr.eqns:
        reads = [None if isinstance(v, Literal) else values[v] for v in eqn.invars]
        if eqn.primitive.name in INLINED:
            inner = next(iter(jaxprs_in_params(eqn.params)))
            results = _inline(getattr(inner, "jaxpr", inner), reads, program)
        elif eqn.primitive.name in VIEWS and reads[0] is not None:
            results = [reads[0]]
        else:
            results = [_Value(v.aval) for v in eqn.outvars]
            program.append((eqn, reads, results))
        values |= zip(eqn.outvars, results)
    return [None if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]


def _needed(program: list[tuple], results: list) -> list[tuple]:
    """Remove equations whose results are never used (dead code elimination)."""
    wanted, needed = set(results), []
    for step in reversed(program):
        if wanted & set(step[2]):
            wanted |= set(step[1])
            needed.append(step)
    return needed[::-1]


def _store(program: list[tuple], results: list) -> None:
    """Mark the values that are written to memory."""
    for eqn, reads, values in program:
        name = eqn.primitive.name
        for value in values if name in READERS | REDUCTIONS else ():
            value.stored = True
        for value in reads if name in READERS else ():
            if value is not None:
                value.stored = True
    for value in results:
        value.stored = True
