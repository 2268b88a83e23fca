"""What a finished run leaves and prints: results.json, plots, its table, and one table of several runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from fvjax import files
from fvjax.console import say
from fvjax.tasks.task import Report


def publish(workdir: Path, results: dict[str, Any], report: Report) -> None:
    """Write results.json and the plots, and print the table. Process 0 only."""
    if jax.process_index():
        return
    files.replace_file(workdir / "results.json", json.dumps(results, indent=1))
    if report.table is not None:
        say(report.table)
    report.plot(workdir)
    names = [path.name for path in sorted(workdir.glob("*.png"))]
    say(f"Everything about this run is in {workdir} ({', '.join(['results.json', 'metrics.jsonl', *names])})")


def check_complete(runs: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raise ValueError, after everything else is written, if a benchmark of a finished run could not be evaluated.

    runs: work directory -> contents of its results.json.
    """
    failed = [f"benchmark {n}: {text}" for one in runs.values() for n, text in one.get("failed", {}).items()]
    if failed:
        written = ", ".join(f"{workdir}/results.json" for workdir in runs)
        raise ValueError(f"{'; '.join(failed)} (everything else is in {written})")


def compare(runs: Mapping[Path, Callable[[Mapping[str, Any]], Any]]) -> None:
    """Print one table of several finished experiments, or one for each kind of task. Process 0 only.

    runs: work directory -> how its task compares results, see `Task.comparison`.
    """
    if jax.process_index():
        return
    tables: dict[Any, dict[str, Any]] = {}
    for workdir, comparison in runs.items():
        tables.setdefault(comparison, {})[workdir.name] = json.loads((workdir / "results.json").read_text())
    for comparison, results in tables.items():
        say(comparison(results))
