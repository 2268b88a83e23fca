"""Estimate what a traced function keeps in memory and moves through it, by its jaxpr, as `fvjax.planning.flops` counts.

The program is gone through in the order it is written, with what XLA's fusion does in the main:

- results of matrix products, convolutions, reductions, gathers and loops are written to memory, and so is what a
  matrix product, a convolution or a loop reads; reshapes and transposes are views;
- all other operations are fused into whoever reads them: they take no memory, and are computed again for each reader;
- a value lives from the operation that writes it to the last one that reads it, directly or through fused ones;
- what a loop stacks up for a later one (the activations kept for the backward pass) is there from the start, as XLA
  zeroes it early; what it carries is updated in place; one iteration's own values come on top.

So `alive` is a lower estimate of a compiler that fuses this well: what is kept between loops is exact (within 1% of
XLA's own figure, tests/test_plan.py), the values of one iteration are up to half of what XLA's CPU backend takes, which
copies the operands of transposed products.
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
    """In bytes. `alive`: at the fullest moment, outside of loops, then in the loop that runs, in one inside it …; the
    arguments of the function are not in it. `moved`: read and written by everything that is not fused away.
    """

    alive: tuple[int, ...]
    moved: int


class _Value:
    """`stored`: it is in memory, else fused. `sources`: what is read from memory to have it."""

    def __init__(self, aval: Any, stored: bool = False):
        self.size = aval.size * aval.dtype.itemsize
        self.stored, self.sources = stored, {self}


def estimate(fn: Callable, *args: Any, kernels: int = 0) -> Estimate:
    """Of `fn` at the shapes of `args` (arrays or ShapeDtypeStructs), on one device.

    kernels: loops nested this deep are each one kernel that keeps its own values on the chip (by_head attention
    standing for cuDNN's); 0: there are none.
    """
    return _estimate(jax.make_jaxpr(fn)(*args).jaxpr, 1, kernels)


def _estimate(jaxpr: Any, depth: int, kernels: int) -> Estimate:
    inputs = [_Value(v.aval, stored=True) for v in jaxpr.invars]
    program: list[tuple] = []
    results = [v for v in _inline(jaxpr, inputs, program) if v is not None]
    program = _needed(program, results)
    _store(program, results)
    last: dict[_Value, int] = {}  # when a stored value is read for the last time
    for at, (_, reads, values) in enumerate(program):
        sources = set().union(*(v.sources for v in reads if v is not None))
        for value in values:
            value.sources = {value} if value.stored else sources
        if any(v.stored for v in values):
            last |= dict.fromkeys(sources, at)
    last |= {source: len(program) for value in results for source in value.sources}

    sizes = {}  # what is alive
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
    """Append (equation, what it reads, what it gives) to `program`, calls inlined; literals are None."""
    values: dict[Any, _Value | None] = dict(zip(jaxpr.invars, inputs))
    values |= {v: _Value(v.aval, stored=True) for v in jaxpr.constvars}
    for eqn in jaxpr.eqns:
        reads = [None if isinstance(v, Literal) else values[v] for v in eqn.invars]
        if eqn.primitive.name in INLINED:
            inner = next(iter(jaxprs_in_params(eqn.params)))
            found = _inline(getattr(inner, "jaxpr", inner), reads, program)
        elif eqn.primitive.name in VIEWS and reads[0] is not None:
            found = [reads[0]]
        else:
            found = [_Value(v.aval) for v in eqn.outvars]
            program.append((eqn, reads, found))
        values |= zip(eqn.outvars, found)
    return [None if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]


def _needed(program: list[tuple], results: list) -> list[tuple]:
    """Without what nothing depends on."""
    wanted, kept = set(results), []
    for step in reversed(program):
        if wanted & set(step[2]):
            wanted |= set(step[1])
            kept.append(step)
    return kept[::-1]


def _store(program: list[tuple], results: list) -> None:
    for eqn, reads, values in program:
        name = eqn.primitive.name
        for value in values if name in READERS | REDUCTIONS else ():
            value.stored = True
        for value in reads if name in READERS else ():
            if value is not None:
                value.stored = True
    for value in results:
        value.stored = True
