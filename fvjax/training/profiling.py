"""Trace some training steps (`--profile=N`) and show where the time of the first device went.

jax's profiler writes to WORKDIR/profile/: `perfetto_trace.json.gz` opens at https://ui.perfetto.dev, the folder in
TensorBoard with its profile plugin. The table sums XLA's operations by the module that asked for them, read from the
names that JAX gives operations, and by pass: forward, backward, recomputed (remat), and none of these (input, loss of
what does not train, optimizer).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Group
from rich.table import Table

SKIP = 2  # steps before the first one that is traced: the first compiles, the second fills buffers
# Parts of an operation's name that say how it was called, not what it is for.
CALLS = {"while", "body", "cond", "closed_call", "checkpoint", "rematted_computation", "init_variables"}
CONTAINERS = {"while", "call", "conditional", "async-start", "async-done"}  # their time is that of their contents


class Op(NamedTuple):
    """One run of an operation: HLO name, start and end in nanoseconds."""

    name: str
    start: float
    end: float


def check_steps(count: int, left: int) -> None:
    """Raise ValueError if there are too few steps left to trace `count` of them."""
    if count and left < SKIP + count:
        raise ValueError(f"--profile={count}: needs {SKIP} steps before, and only {left} are to be trained")


class Trace:
    """Traces some steps of a run, in process 0 only.

    Args:
        count: how many steps, 0: none. first: number of the first step of this start.
    """

    def __init__(self, workdir: Path, count: int, first: int):
        self.folder, self.count, self.text = workdir / "profile", count if jax.process_index() == 0 else 0, ""
        self.begin, self.end, self.running = first + SKIP, first + SKIP + count, False

    def before(self, number: int, step: Any, *args: Any) -> Any:
        """Prepare for step `number`, of the jitted function `step` and its arguments; return the function to call.

        In a traced run that is `step` compiled, so that names can be looked up in its text.
        """
        if self.count and number == self.begin - SKIP:
            step = step.lower(*args).compile()
            self.text = step.as_text()
        if self.count and number == self.begin:
            jax.block_until_ready(args)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # thousands of Python calls a step, which nobody asked for
            jax.profiler.start_trace(self.folder, create_perfetto_trace=True, profiler_options=options)
            self.running = True
        return step

    def after(self, number: int, state: Any) -> Group | None:
        """Take the state before step `number`; return the table if the step before it was the last one to trace."""
        if not self.running or number != self.end:
            return None
        jax.block_until_ready(state)
        self.close()
        newest = max(self.folder.rglob("*.xplane.pb"), key=lambda p: p.stat().st_mtime)
        return table(operations(newest), self.text, self.end - self.begin, str(self.folder))

    def close(self) -> None:
        """End a trace that a stop or an error cut short: a process can have only one at a time."""
        if self.running:
            self.running = False
            jax.profiler.stop_trace()


def operations(file: Path) -> list[Op]:
    """Return what the first device ran, from a profiler's .xplane.pb."""
    operations = []
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        if plane.name.startswith("/device:") and not plane.name.endswith(":0"):
            continue  # a CPU's devices share one plane and say their number with each operation
        for line in plane.lines:
            if plane.name.startswith("/device:") and not line.name.startswith("Stream"):
                continue  # made of the streams' events by the profiler
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats and stats.get("device_ordinal", 0) == 0:
                    operations.append(Op(str(stats["hlo_op"]), event.start_ns, event.start_ns + event.duration_ns))
    return operations


def names(text: str) -> dict[str, tuple[str, str]]:
    """Return {HLO operation: (its opcode, JAX's name or "")} from a compiled program's text."""
    out = {}
    for line in text.splitlines():
        if op := re.match(r"\s+(?:ROOT )?%([\w.\-]+) = .*? ([\w\-]+)\(", line):
            called = re.search(r'op_name="([^"]*)"', line)
            out[op[1]] = op[2], called[1] if called else ""
    return out


def group(name: str) -> tuple[str, str]:
    """Return (module, pass) by JAX's name for an operation, such as jit(step)/transpose(jvp(Net))/while/body/mul."""
    of = "recomputed" if "rematted" in name else "backward" if "transpose(" in name else "forward"
    if "jvp(" not in name:
        of = ""
    parts = [part for part in name.split("/")[:-1] if re.fullmatch(r"\w+", part) and part not in CALLS]
    return "/".join(parts) or "outside of modules", of


def busy(ops: Iterable[Op]) -> float:
    """Return the nanoseconds in which at least one of the operations ran."""
    total, until = 0.0, float("-inf")
    for op in sorted(ops, key=lambda op: op.start):
        total += max(0.0, op.end - max(op.start, until))
        until = max(until, op.end)
    return total


def table(ops: list[Op], text: str, steps: int, folder: str, top: int = 15) -> Group:
    """Make a table of the groups of operations that took longest, with their share of all operations' time."""
    known = names(text)
    ops = [op for op in ops if op.name in known and known[op.name][0] not in CONTAINERS]
    if not ops:
        return Group(f"{folder}: {steps} steps, but no operation of theirs is known by name: see the trace itself")
    sums: dict[tuple[str, str], list[float]] = {}
    for op in ops:
        sums.setdefault(group(known[op.name][1]), []).append(op.end - op.start)
    together = sum(op.end - op.start for op in ops)
    span = max(op.end for op in ops) - min(op.start for op in ops)
    summary = (
        f"{steps} steps in {folder}: {span / steps / 1e6:,.1f} ms a step, no operation of the step on the first device "
        f"for {1 - busy(ops) / span:.1%} of it"
    )
    out = Table("module", "pass", "operations", "ms a step", "share", box=None, pad_edge=False)
    for (module, of), times in sorted(sums.items(), key=lambda item: -sum(item[1]))[:top]:
        each = sum(times) / steps / 1e6
        out.add_row(module, of, f"{len(times) / steps:,.0f}", f"{each:,.2f}", f"{sum(times) / together:.1%}")
    return Group(summary, out)
