"""What a finished run leaves and prints: results.json, plots, scores, its table, and one table of several runs."""

from __future__ import annotations

import datetime
import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from fvjax import files, runtime
from fvjax.console import say
from fvjax.tasks.task import Report

Results = dict[str, Any]  # the contents of results.json
SAME_MODEL = ("step", "base_hash", "config_hash")
OF_ONE_EVALUATION = {"benchmarks", "groups", "pools", "baselines", "validation", "failed", "evaluation", "evaluations"}
MAY_DIFFER = {*OF_ONE_EVALUATION, "seconds", "code_version"}
BESIDE = ("results.json", "roc.png", "det.png", "scores")  # what an evaluation leaves in its folder


def publish(workdir: Path, results: Results, report: Report, name: str = "") -> Results:
    """Write results.json, the plots and scores, and print the table: process 0 only. Return this evaluation, dated.

    Nothing of an earlier evaluation is lost. results.json has the first one of the newest model:

    - Of the same model with other settings or benchmarks, everything goes to evaluations/DATE. results.json lists that
      folder, and gains those benchmarks that it lacks if they were evaluated with its settings.
    - Of a model that was trained further, the new figures take the place of the old ones, which move to
      evaluations/DATE.
    - The same figures once more change nothing but the drawings.

    name: of this evaluation, config.eval.name.
    """
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    evaluation = {"name": name, "date": date, "environment": runtime.environment(), **report.origin}
    results = json.loads(json.dumps({**results, "evaluation": evaluation}))  # as it will be read
    if jax.process_index():
        return results
    file = workdir / "results.json"
    earlier = json.loads(file.read_text()) if file.exists() else None
    folder = workdir
    if earlier is None:
        _write(file, results)
    elif any(earlier.get(key) != results.get(key) for key in SAME_MODEL):
        moved = _move(workdir, earlier, date)
        say(f"The figures of step {earlier.get('step')} are in {moved} from now on")
        _write(file, results)
    elif not _has_all(earlier, results):
        folder = _new_folder(workdir, date)
        _write(folder / "results.json", results)
        _write(file, _with(earlier, results, str(folder.relative_to(workdir))))
        say(f"{workdir} has been evaluated before, so the whole of this evaluation is in {folder}")
    if report.table is not None:
        say(report.table)
    report.save(folder)
    names = [path.name for path in sorted(folder.glob("*.png"))]
    say(f"Everything about this run is in {workdir} ({', '.join(['results.json', 'metrics.jsonl', *names])})")
    return results


def _write(file: Path, results: Results) -> None:
    files.replace_file(file, json.dumps(results, indent=1))


def _settings(results: Results) -> Results:
    """Return what all benchmarks of an evaluation share: the model, its precision, flips …"""
    return {key: value for key, value in results.items() if key not in MAY_DIFFER}


def _has_all(earlier: Results, results: Results) -> bool:
    """Tell whether an evaluation holds every figure of a later one."""
    figures = {key: results.get(key) for key in ("pools", "baselines", "validation")}
    return (
        _settings(earlier) == _settings(results)
        and all(_figures(earlier, name) == _figures(results, name) for name in results["benchmarks"])
        and all(earlier.get(key) == value for key, value in figures.items() if value)
        and not set(results.get("failed", {})) - set(earlier.get("failed", {}))
    )


def _figures(results: Results, benchmark: str) -> dict[str, Any] | None:
    """Return the entry of a benchmark without what says when it was evaluated."""
    entry = results["benchmarks"].get(benchmark)
    return entry and {key: value for key, value in entry.items() if key != "evaluation"}


def _with(earlier: Results, results: Results, folder: str) -> Results:
    """Return an evaluation to which a later one is added: to the list, and with the same settings its benchmarks."""
    item = {**results["evaluation"], "folder": folder}
    listed = {**item, "benchmarks": list(results["benchmarks"])}
    out = {**earlier, "evaluations": [*earlier.get("evaluations", []), listed]}
    if _settings(earlier) != _settings(results):
        return out
    new = _new(results["benchmarks"], earlier["benchmarks"])
    out["benchmarks"] = {
        **earlier["benchmarks"],
        **{name: {**entry, "evaluation": item} for name, entry in new.items()},
    }
    for key in ("pools", "baselines"):
        rows = {**results.get(key, {}), **earlier.get(key, {})}
        out[key] = {row: {**results.get(key, {}).get(row, {}), **rows[row]} for row in rows}
    failed = {**earlier.get("failed", {}), **results.get("failed", {})}
    out["failed"] = _new(failed, out["benchmarks"])
    return out if out["failed"] else {key: value for key, value in out.items() if key != "failed"}


def _new(entries: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in entries.items() if name not in known}


def _move(workdir: Path, earlier: Results, date: str) -> Path:
    """Move an evaluation's files out of the way; return where they are."""
    folder = _new_folder(workdir, earlier.get("evaluation", {}).get("date", f"before-{date}"))
    for name in BESIDE:
        if (workdir / name).exists():
            shutil.move(workdir / name, folder / name)
    return folder


def _new_folder(workdir: Path, date: str) -> Path:
    """Make the folder of an evaluation, with a number behind its date if several fall into one second."""
    names = [date, *(f"{date}-{number}" for number in range(2, 1000))]
    folder = next(workdir / "evaluations" / name for name in names if not (workdir / "evaluations" / name).exists())
    folder.mkdir(parents=True)
    return folder


def check_complete(runs: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raise ValueError, after everything else is written, if a benchmark of a finished run could not be evaluated.

    runs: work directory -> contents of its results.json.
    """
    failed = [f"benchmark {n}: {text}" for one in runs.values() for n, text in one.get("failed", {}).items()]
    if failed:
        written = ", ".join(f"{workdir}/results.json" for workdir in runs)
        raise ValueError(f"{'; '.join(failed)} (everything else is in {written})")


def compare(runs: Mapping[Path, Callable[[Mapping[str, Any]], Any]]) -> None:
    """Print one table of several finished experiments, or one for each kind of task, and write it to table.txt.

    The file lies in the folder that holds their work directories. Process 0 only.

    runs: work directory -> how its task compares results, see `Task.comparison`.
    """
    if jax.process_index():
        return
    tables: dict[Any, dict[str, Any]] = {}
    for workdir, comparison in runs.items():
        tables.setdefault(comparison, {})[workdir.name] = json.loads((workdir / "results.json").read_text())
    text = io.StringIO()
    paper = Console(file=text, width=120, highlight=False, markup=False, emoji=False)
    for comparison, results in tables.items():
        table = comparison(results)
        say(table)
        paper.print(table)
    files.replace_file(next(iter(runs)).parent / "table.txt", text.getvalue())
