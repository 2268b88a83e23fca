"""`python -m fvjax.compare RUN RUN … [--benchmark=NAME] [--format=…] [--dst=DIR]`

Compares finished runs on the benchmarks that all of them were evaluated on: each figure with its interval, and how far
each model is from the first, pair by pair on the same people. Runs whose configs differ in nothing but the seed count
as one model and are shown by their mean and their spread. `--dst` also writes ROC and DET plots of all models together
(PNG and PDF), the table, and comparison.json.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fvjax import config, files, startup
from fvjax.data.progress import progress_bar
from fvjax.evals import comparison_plots, paired
from fvjax.evals.finished import FinishedRun, read_run, short_names
from fvjax.evals.pair_scores import PairScores

HEADS = ("benchmark", "figure", "model", "seeds", "value", "std over seeds", "95% interval")
HEADS += ("difference to first", "its 95% interval", "p")
SHOWN = ("accuracy@best_threshold", "tar@far=1e-3", "eer")
NOTE = (
    "Figures in per cent. Intervals: 95%, bootstrap over identities; both models of a difference are judged on the "
    "same resamples. p: two-sided, of no difference to the first model. They hold for the trained models: what other "
    "seeds would give is seen in the spread over seeds only."
)


@dataclass(frozen=True)
class Model:
    """A run, or several that differ in their seed: their names, work directories, seeds and results.json."""

    name: str
    workdirs: tuple[Path, ...]
    seeds: tuple[int, ...]
    results: tuple[dict[str, Any], ...]

    def scores(self, benchmark: str) -> list[PairScores]:
        """Read the scores of every seed. Raises ValueError: a file is missing or of other data than results.json."""
        runs = zip(self.workdirs, self.results, strict=True)
        return [FinishedRun(workdir, {}, results).scores(benchmark) for workdir, results in runs]


def compare(
    runs: Sequence[str | Path],
    benchmarks: Sequence[str] = (),
    *,
    bootstrap: int = 2000,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Compare finished runs, the first one with each other one.

    Args:
        runs: work directories. Those whose configs differ in the seed alone are one model.
        benchmarks: names; (): all that every run was evaluated on.
        bootstrap, seed: of the resamples, see :func:`fvjax.evals.paired.resample`.
        progress: show a bar on standard error, if that is a terminal.
    Returns:
        JSON-ready {"models": {name: {"runs", "seeds"}}, "benchmarks": {name: {"n_pairs", "figures": {figure: {model:
        {"mean", "std_over_seeds", "seeds", "ci95", "to_first"}}}}}, "intervals"}. "to_first" is None for the first
        model, otherwise as :func:`fvjax.evals.paired.difference` returns it.
    Raises:
        ValueError: not a finished run, no common benchmark, or not the same pairs. OSError.
    """
    models = open_models(runs)
    out: dict[str, Any] = {
        "models": {m.name: {"runs": [str(each) for each in m.workdirs], "seeds": list(m.seeds)} for m in models},
        "benchmarks": {},
        "intervals": f"95% percentile bootstrap over identities, {bootstrap} resamples, seed {seed}, paired",
    }
    names = _common(models, benchmarks)
    with progress_bar(progress) as bar:
        task = bar.add_task("resamples", total=bootstrap * len(names) * len(models))
        for name in names:
            out["benchmarks"][name] = _compare_on(name, models, bootstrap, seed, partial(bar.advance, task))
    return out


def _compare_on(
    benchmark: str, models: Sequence[Model], bootstrap: int, seed: int, done: Callable[[int], object]
) -> dict[str, Any]:
    """Return the entry of one benchmark, see :func:`compare`; `done` as for :func:`fvjax.evals.paired.resample`."""
    scores = {model.name: model.scores(benchmark) for model in models}
    paired.check_same_pairs({model: each[0] for model, each in scores.items()})
    measured = {
        model: paired.resample(each, bootstrap=bootstrap, seed=seed, done=done) for model, each in scores.items()
    }
    first = measured[models[0].name]
    figures = {
        figure: {
            model: {
                **paired.summary(its, figure),
                "to_first": None if its is first else paired.difference(its, first, figure),
            }
            for model, its in measured.items()
        }
        for figure in paired.FIGURES
    }
    return {"n_pairs": len(next(iter(scores.values()))[0].same), "figures": figures}


def open_models(runs: Sequence[str | Path]) -> list[Model]:
    """Read the configs and results of runs, and join those that differ in their seed alone, in the order given.

    Raises ValueError: fewer than two runs, the same run twice, or not a finished run.
    """
    paths = [Path(run) for run in runs]
    if len(paths) < 2:
        raise ValueError("give at least two runs (work directories of finished experiments) to compare")
    if repeated := [str(path) for n, path in enumerate(paths) if path.resolve() in [p.resolve() for p in paths[:n]]]:
        raise ValueError(f"{repeated[0]} is given twice; a run is equal to itself")
    return _joined(paths)


def open_model(name: str, runs: Sequence[str | Path]) -> Model:
    """Read finished runs of one recipe as a model. Raises ValueError: they are not, or differ in more than the seed."""
    first, *others = _joined([Path(run) for run in runs])
    if others:
        raise ValueError(f"{first.workdirs[0]} and {others[0].workdirs[0]} differ in more than their seed")
    return dataclasses.replace(first, name=name)


def _joined(paths: Sequence[Path]) -> list[Model]:
    """Read the configs and results of runs, and join those that differ in their seed alone. Raises ValueError."""
    groups: dict[str, list[tuple[Path, int, dict[str, Any]]]] = {}
    for path in paths:
        run = read_run(path)
        key = config.hash_without(run.settings, ("seed", "name")) + str(run.results.get("base_hash"))
        groups.setdefault(key, []).append((path, run.settings.get("seed", 0), run.results))
    names = short_names([group[0][0] for group in groups.values()])
    return [
        Model(name, *(tuple(column) for column in zip(*group, strict=True)))
        for name, group in zip(names, groups.values(), strict=True)
    ]


def _common(models: Sequence[Model], wanted: Sequence[str]) -> list[str]:
    """Return the benchmarks to compare on. Raises ValueError: a wanted one is missing, or there is no common one."""
    evaluated = {str(w): list(r["benchmarks"]) for m in models for w, r in zip(m.workdirs, m.results, strict=True)}
    for name in wanted:
        for workdir, names in evaluated.items():
            if name not in names:
                raise ValueError(f"--benchmark={name}: {workdir} was evaluated on {', '.join(names)}")
    first = next(iter(evaluated.values()))
    common = [name for name in first if all(name in names for names in evaluated.values())]
    if not common:
        listed = "; ".join(f"{workdir}: {', '.join(names)}" for workdir, names in evaluated.items())
        raise ValueError(f"the runs have no benchmark in common ({listed})")
    return list(wanted) or common


# ---- what is printed


def rows(comparison: Mapping[str, Any], figures: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the cells of a comparison, a row for each benchmark, figure and model; columns as in HEADS."""
    out = []
    for benchmark, entry in comparison["benchmarks"].items():
        for figure in figures:
            for model, its in entry["figures"][figure].items():
                to_first = its["to_first"]
                cells = [f"{100 * its['mean']:.2f}", _std(its["std_over_seeds"]), _interval(its["ci95"])]
                cells += ["", "", ""]
                if to_first is not None:
                    cells[3:] = [
                        f"{100 * to_first['difference']:+.2f}",
                        _interval(to_first["ci95"], "+"),
                        _p(to_first["p"]),
                    ]
                out.append((benchmark, figure, model, str(its["seeds"]), *cells))
    return out


def _std(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _interval(edges: Sequence[float] | None, sign: str = "") -> str:
    return "" if edges is None else " to ".join(f"{100 * edge:{sign}.1f}" for edge in edges)


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def as_table(cells: Sequence[tuple[str, ...]], width: int) -> str:
    """Format rows for a terminal: a block for each benchmark and figure, models below one another, names whole."""
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, markup=False, emoji=False)
    for benchmark, figure in dict.fromkeys((row[0], row[1]) for row in cells):
        table = Table(title=f"{benchmark}: {figure}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("model", overflow="fold", min_width=9)
        for head in ("value", "95% interval", "to first", "95% interval", "p"):
            table.add_column(head, justify="right", overflow="fold")
        for row in (each for each in cells if each[:2] == (benchmark, figure)):
            seeds = f" ± {row[5]}" if row[5] else ""
            name = row[2] + (f"\n({row[3]} seeds)" if row[5] else "")
            table.add_row(name, row[4] + seeds, row[6], row[7], row[8], row[9])
        console.print(table)
    console.print(NOTE)
    return out.getvalue()


def as_markdown(cells: Sequence[tuple[str, ...]]) -> str:
    lines = [HEADS, ("---",) * len(HEADS), *([cell.replace("|", "\\|") for cell in row] for row in cells)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{NOTE}\n"


def as_csv(cells: Sequence[tuple[str, ...]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([HEADS, *cells])
    return out.getvalue()


def as_latex(cells: Sequence[tuple[str, ...]]) -> str:
    """Format rows as a tabular of the booktabs package."""
    special = {**{c: f"\\{c}" for c in "&%$#_{}"}, "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\\": "/"}

    def line(row: Sequence[str]) -> str:
        return " & ".join("".join(special.get(c, c) for c in cell) for cell in row) + " \\\\\n"

    body = "".join(line(row) for row in cells)
    top = f"\\begin{{tabular}}{{lll{'r' * (len(HEADS) - 3)}}}\n\\toprule\n{line(HEADS)}\\midrule\n"
    return f"{top}{body}\\bottomrule\n\\end{{tabular}}\n% {NOTE}\n"


FORMATS: dict[str, Callable[[Sequence[tuple[str, ...]]], str]] = {
    "markdown": as_markdown,
    "csv": as_csv,
    "latex": as_latex,
}


def write(comparison: Mapping[str, Any], models: Sequence[Model], folder: Path) -> list[str]:
    """Write table.txt, comparison.json and the plots of every benchmark; return the file names."""
    folder.mkdir(parents=True, exist_ok=True)
    files.replace_file(folder / "comparison.json", json.dumps(comparison, indent=1))
    files.replace_file(folder / "table.txt", as_table(rows(comparison, list(paired.FIGURES)), 120))
    written = ["comparison.json", "table.txt"]
    for benchmark in comparison["benchmarks"]:
        curves = {model.name: model.scores(benchmark) for model in models}
        for draw in (comparison_plots.roc, comparison_plots.det):
            written += [file.name for file in draw(folder, benchmark, curves)]
    return written


@startup.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    about = "Compare finished runs on the same pairs: figures, paired differences, p-values, ROC and DET plots."
    parser = startup.Parser(prog="python -m fvjax.compare", description=about, allow_abbrev=False)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="work directory; the first is what others are compared to"
    )
    parser.add_argument("--benchmark", action="append", default=[], metavar="NAME", help="default: all that they share")
    parser.add_argument("--figure", action="append", default=[], choices=list(paired.FIGURES), help="default: three")
    parser.add_argument("--format", choices=["table", "json", *FORMATS], default="table", help="(%(default)s)")
    parser.add_argument("--dst", type=Path, metavar="DIR", help="also write plots, table.txt and comparison.json there")
    parser.add_argument("--bootstrap", type=int, default=2000, metavar="N", help="resamples (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the resamples (%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.bootstrap < 100:
        raise ValueError(f"--bootstrap={arguments.bootstrap}: at least 100 resamples, or there is no interval")
    resamples = {"bootstrap": arguments.bootstrap, "seed": arguments.seed}
    shown = arguments.format != "json" or sys.stdout.isatty()  # no bar beside what a program reads
    found = compare(arguments.runs, arguments.benchmark, **resamples, progress=shown)
    cells = rows(found, arguments.figure or SHOWN)
    if arguments.format == "json":
        print(json.dumps(found, indent=1))
    elif arguments.format == "table":
        print(as_table(cells, min(Console().width, 120)), end="")
    else:
        print(FORMATS[arguments.format](cells), end="")
    if arguments.dst:
        written = write(found, open_models(arguments.runs), arguments.dst)
        print(f"Written to {arguments.dst}: {', '.join(written)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    startup.run(main)
