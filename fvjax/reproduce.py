"""`python -m fvjax.reproduce [--scale=small|paper] [--seeds=N] [--rows=NAME…] [--workdir=DIR] [--plan] [--yes]`

Runs the rows of LLM-FaceVerification's table that the data and weights here allow, and ends with its table beside the
published one. First comes a plan: every run, what it lacks and the command that prepares that, the time and the disk
that it takes. What was begun goes on, what is finished is not repeated, and a row that fails does not stop the others.

`--scale=small` needs no data: it asks the same questions with tiny networks, mostly on procedural faces, and its
figures are not comparable with the published ones. `--config.KEY=VALUE` goes to every run. Exit code 0; 1 if a run
failed; 2 with one line for what the caller can mend; 75 after Ctrl-C or SIGTERM: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from rich.console import Console

from fvjax import files, startup
from fvjax.data.progress import progress_bar
from fvjax.reproduction import estimates, execution, plans, tables
from fvjax.reproduction.plans import Planned
from fvjax.reproduction.published import SCALES, Row
from fvjax.reproduction.runs import Run, plan
from fvjax.reproduction.tables import Outcome
from fvjax.training import preemption

SET_FOR_EACH_RUN = ("--config.seed", "--config.data.synthetic.dir")


def chosen_rows(scale: str, names: Sequence[str]) -> list[Row]:
    """Return the rows of a scale, or those with the names of --rows. Raises ValueError: there is no such row."""
    rows = {row.name: row for row in SCALES[scale].rows}
    wanted = [name for text in names for name in text.split(",")]
    if unknown := [name for name in wanted if name not in rows]:
        raise ValueError(f"--rows={unknown[0]}: the rows of --scale={scale} are {', '.join(rows)}")
    return [row for name, row in rows.items() if not wanted or name in wanted]


def agreed(planned: Sequence[Planned], yes: bool) -> bool:
    """Ask on a terminal whether to start. Raises ValueError without a terminal and without --yes."""
    due = [one for one in planned if one.is_due]
    if yes or not due:
        return True
    if not sys.stdin.isatty():
        raise ValueError("nobody can be asked whether to start without a terminal; add --yes, or --plan to stop here")
    return input(f"Start {len(due)} runs? [y/N] ").strip().lower() in ("y", "yes")


def outcomes(planned: Sequence[Planned], failed: Mapping[Run, str]) -> list[Outcome]:
    """Return what became of each row, once everything has run."""
    out = []
    for row in dict.fromkeys(one.run.row for one in planned):
        own = [one for one in planned if one.run.row == row]
        problems = {one.run: failed.get(one.run) or one.problem for one in own}
        finished = [run for run in problems if not problems[run] and run.results() is not None]
        reasons = [
            f"seed {run.seed}: {problems[run] or 'it left no results'}" for run in problems if run not in finished
        ]
        out.append(Outcome(row, tuple(run.workdir for run in finished), tuple(reasons)))
    return out


def write(scale: str, found: Sequence[Outcome], settings: Sequence[str], workdir: Path) -> str:
    """Write table.txt, table.md and reproduction.json; return the table for this terminal."""
    with progress_bar() as bar:
        task = bar.add_task("resamples", total=None)
        report = tables.report(scale, found, settings, lambda count: bar.advance(task, count))
    workdir.mkdir(parents=True, exist_ok=True)
    files.replace_file(workdir / "reproduction.json", json.dumps(report, indent=1))
    files.replace_file(workdir / "table.txt", tables.as_text(report, 120))
    files.replace_file(workdir / "table.md", tables.as_markdown(report))
    return tables.as_text(report, min(Console().width, 120))


def reproduce(arguments: argparse.Namespace, settings: Sequence[str]) -> int:
    """Plan, run and print the table; return the exit code. Raises ValueError, OSError and Stopped."""
    if arguments.seeds < 1:
        raise ValueError(f"--seeds={arguments.seeds}: at least 1")
    workdir = Path(arguments.workdir or f"runs/reproduce_{arguments.scale}")
    jax.config.update("jax_platforms", "cpu")  # planning computes nothing, and the runs need the GPUs' memory
    runs = plan(chosen_rows(arguments.scale, arguments.rows), arguments.seeds, workdir, settings)
    planned = plans.examine(runs, estimates.find_gpus())
    Console(markup=False, emoji=False, highlight=False).print(plans.table(planned))
    print("\n".join(plans.remarks(planned, workdir)), flush=True)
    if arguments.plan:
        return 0
    if all(one.problem for one in planned):
        raise ValueError("no row can run; the lines above say what each of them lacks")
    if not agreed(planned, arguments.yes):
        return 0
    failed = execution.run_all([one.run for one in planned if one.is_due], lambda line: print(line, flush=True))
    print(write(arguments.scale, outcomes(planned, failed), settings, workdir), end="")
    print(f"Written to {workdir}: table.txt, table.md, reproduction.json")
    for run, reason in failed.items():
        print(f"fvjax: {run.row.name}, seed {run.seed} failed: {reason}", file=sys.stderr)
    return 1 if failed else 0


@startup.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    about = "Run the rows of the paper's table, or small versions of them, and print them beside the published figures."
    parser = startup.Parser(prog="python -m fvjax.reproduce", description=about, allow_abbrev=False)
    parser.add_argument("--scale", choices=list(SCALES), default="small", help="laptop or full size (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each row (%(default)s)")
    parser.add_argument("--rows", action="append", default=[], metavar="NAME", help="only these (repeated, or a,b)")
    parser.add_argument("--workdir", metavar="DIR", help="where everything goes (default: runs/reproduce_SCALE)")
    parser.add_argument("--plan", action="store_true", help="stop after the plan")
    parser.add_argument("--yes", action="store_true", help="start without asking")
    given = list(sys.argv[1:] if argv is None else argv)
    settings = [argument for argument in given if argument.startswith("--config.")]
    arguments = parser.parse_args([argument for argument in given if argument not in settings])
    try:
        if own := [setting for setting in settings if setting.partition("=")[0] in SET_FOR_EACH_RUN]:
            raise ValueError(f"{own[0]}: every run has its own; use --seeds and --workdir")
        if bare := [setting for setting in settings if "=" not in setting]:
            raise ValueError(f"{bare[0]}: settings look like --config.KEY=VALUE")
        return reproduce(arguments, settings)
    except execution.Stopped as stopped:
        print(f"fvjax: {stopped}; the same command goes on from there", file=sys.stderr)
        return preemption.EXIT_CODE


if __name__ == "__main__":
    startup.run(main)
