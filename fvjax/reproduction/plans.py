"""What a reproduction will do: every run, whether it can start, the time and the disk that it takes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from fvjax import durations, errors
from fvjax.reproduction import estimates
from fvjax.reproduction.estimates import Estimate, Gpus
from fvjax.reproduction.runs import Progress, Run

MB = 1e6


@dataclass(frozen=True)
class Planned:
    """A run with what is known about it before it starts. `problem`: why it cannot, "" if it can."""

    run: Run
    progress: Progress
    problem: str
    time: Estimate
    disk: int

    @property
    def is_due(self) -> bool:
        """Whether the run is to be started, or to go on."""
        return self.progress in (Progress.NEW, Progress.BEGUN)


def examine(runs: Sequence[Run], gpus: Gpus | None) -> list[Planned]:
    """Look at each run's files and estimate what is left. Nothing is written, and nothing is computed on a GPU."""
    return [_examine(run, [r for r in runs if r.row == run.row and r != run], gpus) for run in runs]


def _examine(run: Run, siblings: Sequence[Run], gpus: Gpus | None) -> Planned:
    progress, problem = run.progress()
    if problem:
        return Planned(run, progress, problem, Estimate(None, ""), 0)
    try:
        time = estimates.time_left(run, siblings, gpus)
        disk = 0 if progress is Progress.FINISHED else estimates.disk(run)
    except (ValueError, OSError) as error:  # such as a broken store
        return Planned(run, Progress.BLOCKED, errors.line(error), Estimate(None, ""), 0)
    return Planned(run, progress, "", time, disk)


def table(planned: Sequence[Planned]) -> Table:
    """Return the plan for rich to print, a line for each run."""
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("row", "seed", "state", "time left", "disk, MB", "how the time was estimated"):
        out.add_column(head, justify="right" if head in ("seed", "time left", "disk, MB") else "left", overflow="fold")
    for one in planned:
        state = one.progress.value
        if one.progress is Progress.BEGUN:
            state += f", step {one.run.saved_step()}"
        left = "" if one.problem else "unknown" if one.time.seconds is None else durations.text(one.time.seconds)
        disk = f"{one.disk / MB:,.0f}" if one.disk else ""
        out.add_row(one.run.row.name, str(one.run.seed), state, left, disk, one.time.basis)
    return out


def remarks(planned: Sequence[Planned], workdir: Path) -> list[str]:
    """Return the lines below the plan: what is missing and the command that prepares it, sums of time and disk."""
    lines = []
    missing: dict[str, list[str]] = {}  # problem -> rows, as several rows often lack the same file
    for one in planned:
        for problem in one.problem.splitlines():
            missing.setdefault(problem, [])
            if one.run.row.name not in missing[problem]:
                missing[problem].append(one.run.row.name)
    lines += [f"{', '.join(rows)}: {problem}" for problem, rows in missing.items()]
    due = [one for one in planned if one.is_due]
    known = [one.time.seconds for one in due if one.time.seconds is not None]
    unknown = len(due) - len(known)
    time = f"about {durations.text(sum(known))}" if known else "unknown"
    if known and unknown:
        time += f", and {unknown} of unknown length"
    lines.append(f"{len(due)} of {len(planned)} runs to do, one after the other: {time}" if due else "Nothing to run")
    if due:
        needed = sum(one.disk for one in due) + estimates.faces_on_disk([one.run for one in due])
        existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        short = "; NOT ENOUGH" if needed > free else ""
        lines.append(f"disk: about {needed / MB:,.0f} MB at most, {free / MB:,.0f} MB are free in {workdir}{short}")
    return lines
