"""Read the collectives of a compiled program from its text: what XLA's partitioner made of the sharding."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s32": 4, "u32": 4, "s64": 8, "u64": 8, "f16": 2, "bf16": 2, "f32": 4, "f64": 8}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


class Collective(NamedTuple):
    kind: str  # of KINDS
    size: int  # bytes of the result
    group: tuple[int, ...]  # numbers of the devices in one of its groups
    times: int  # how often it runs, with the trip counts of the loops around it multiplied

    @property
    def sent(self) -> float:
        """Bytes that each device sends, over all its runs."""
        return self.times * self.size * share(self.kind, len(self.group))


def share(kind: str, n: int) -> float:
    """Return how much each of n members sends, as a multiple of the result (ring algorithms)."""
    factors = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": min(n - 1, 1)}
    return factors.get(kind, (n - 1) / n)


def collectives(text: str, devices: int) -> list[Collective]:
    """Return the collectives of `compiled.as_text()`, without groups of one device.

    Raises ValueError: a loop without a known trip count, or a notation that is not known here.
    """
    widened = widened_names(text)
    by_computation: dict[str, list[tuple[str, int, tuple[int, ...]]]] = {}
    called: dict[str, list[tuple[str, int]]] = {}  # (computation, times), by caller
    name = entry = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line):
            name = head[2]
            entry = name if head[1] else entry
            by_computation[name], called[name] = [], []
        elif op := re.match(rf"\s+(?:ROOT )?%[\w.\-]+ = (.+?) ({'|'.join(KINDS)})(?:-start)?\(", line):
            by_computation[name].append((op[2], size_of(line, op[1], widened), group_of(line, devices)))
        elif loop := re.search(r" while\(.*body=%([\w.\-]+)", line):
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            called[name].append((loop[1], int(trips[1]) if trips else 0))
        elif call := re.search(r" call\(.*to_apply=%([\w.\-]+)", line):
            called[name].append((call[1], 1))

    def run(name: str, times: int) -> list[Collective]:
        out = [Collective(*one, times) for one in by_computation[name] if len(one[2]) > 1]
        for other, trips in called[name]:
            inner = run(other, times * trips)
            if inner and not trips:
                raise ValueError(f"{other}: how often this loop with collectives runs is not known")
            out += inner
        return out

    return run(entry, 1)


def size_of(line: str, shapes: str, widened: set[str]) -> int:
    """Return the bytes of a collective's results on an accelerator; `shapes`: the results as the line gives them.

    An accelerator adds bfloat16 as it is. A CPU widens it to float32 and calls the sum "promoted", but it may combine
    such sums with sums of float32 and name them all after one: then those count as bfloat16 whose operand is in
    `widened`.
    """
    sizes = [BYTES[kind] * math.prod(_numbers(dims)) for kind, dims in SHAPE.findall(shapes)]
    operands = re.findall(r"%([\w.\-]+)", line.partition(f" = {shapes} ")[2].partition(")")[0])
    if len(sizes) == len(operands) > 1 and widened.intersection(operands):
        return sum(size // 2 if name in widened else size for size, name in zip(sizes, operands))
    promoted = re.search(r"to_apply=%[\w.\-]*promoted", line)
    return sum(sizes) // 2 if promoted else sum(sizes)


def widened_names(text: str) -> set[str]:
    """Return the names of float32 values that are converted bfloat16 ones, also as the results of fusions."""
    half = set(re.findall(r"%([\w.\-]+) = bf16\[", text))
    conversions = re.findall(r"%([\w.\-]+) = f32\[\S* convert\(%([\w.\-]+)\)", text)
    widened = {name for name, operand in conversions if operand in half}
    fusions = re.findall(r"%([\w.\-]+) = f32\[\S* fusion\(.*calls=%([\w.\-]+)", text)
    roots = dict(re.findall(r"^%([\w.\-]+) \([^\n]*\{\n(?:[^}\n].*\n)*?  ROOT %([\w.\-]+) =", text, re.MULTILINE))
    return widened | {name for name, called in fusions if roots.get(called) in widened}


def group_of(line: str, devices: int) -> tuple[int, ...]:
    """Return the first group of a collective's line, in any of XLA's notations."""
    order = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if mesh := re.search(rf"replica_groups=mesh\[(.*?)\](?:, device_ids=\({order}\))? \{{([^:]*?)\}}", line):
        names, sizes = zip(*re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        ids = (_iota(mesh[2], mesh[3]) if mesh[2] else np.arange(devices)).reshape([int(size) for size in sizes])
        axes = [names.index(axis) for axis in re.findall(r"'(\w+)'", mesh[4])]
        count = math.prod(ids.shape[axis] for axis in axes)
        return tuple(np.moveaxis(ids, axes, range(len(axes))).reshape(count, -1)[:, 0].tolist())
    if grid := re.search(rf"replica_groups=\[(\d+),(\d+)\]<={order}", line):
        return tuple(_iota(grid[3], grid[4]).reshape(int(grid[1]), int(grid[2]))[0].tolist())
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", line):
        return tuple(_numbers(listed[1]))
    if "replica_groups={}" in line:
        return tuple(range(devices))
    raise ValueError(f"a collective's devices are written in a notation that is not known here: {line.strip()[:300]}")


def _iota(dims: str, order: str | None) -> np.ndarray:
    ids = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    return ids.transpose(_numbers(order)) if order else ids


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
