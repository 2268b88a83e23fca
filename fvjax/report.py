"""`python -m fvjax.report RUN… --out=report.html [--pictures] [--data=STORE …] [--hardest=N] [--bootstrap=N]`

Writes a report card of finished runs as one HTML page that needs nothing else: protocols, figures with 95% intervals,
ROC and DET curves with bands, distributions of scores, error rates by threshold, the hardest pairs, and what the
figures depend on. Several runs are compared pair by pair. A browser prints it as a PDF.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

import fvjax
from fvjax import compare, errors, files, startup
from fvjax.evals import paired
from fvjax.evals.finished import FinishedRun, read_run, short_names
from fvjax.reporting import run_sections
from fvjax.reporting.page import Html, element, page, paragraph
from fvjax.reporting.pair_sections import Options
from fvjax.reporting.run_sections import Comparison


def report(runs: Sequence[str | Path], options: Options | None = None) -> str:
    """Return the report card of finished runs, an HTML document.

    Raises ValueError: not a finished run, the same one twice, or results that another version of fvjax wrote.
    """
    paths, options = [Path(run) for run in runs], options or Options()
    if repeated := [path for n, path in enumerate(paths) if path.resolve() in [p.resolve() for p in paths[:n]]]:
        raise ValueError(f"{repeated[0]} is given twice")
    opened = dict(zip(short_names(paths), map(read_run, paths), strict=True))
    sections = [_section(name, run, options) for name, run in opened.items()]
    title = f"Report: {', '.join(opened)}"
    body = [element("h1", title), _made(), run_sections.summary_section(opened)]
    if len(opened) > 1:
        comparison = compare_runs(opened, options.bootstrap)
        body.append(run_sections.comparison_section(comparison, options.bootstrap))
    return page(title, [*body, *sections, run_sections.glossary()])


def _section(name: str, run: FinishedRun, options: Options) -> Html:
    """Return the section of a run. Raises ValueError if its results have another form than this version's."""
    try:
        return run_sections.run_section(name, run, options)
    except (KeyError, TypeError, AttributeError) as error:
        problem = f"another version of fvjax wrote it ({type(error).__name__}: {error}); evaluate again"
        raise ValueError(f"{run.workdir}/results.json: {problem}") from error


def _made() -> Html:
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return paragraph(f"Made on {date} by fvjax {fvjax.__version__} ({fvjax.code_version()}).", class_="note")


def compare_runs(runs: Mapping[str, FinishedRun], bootstrap: int) -> Comparison:
    """Compare runs on the benchmarks of pairs that they share, the first with each other one."""
    shared = [
        name for name in _first(runs).pair_benchmarks if all(name in run.pair_benchmarks for run in runs.values())
    ]
    if not shared:
        return Comparison(problem="they have no benchmark of pairs of faces in common.")
    paths = [run.workdir for run in runs.values()]
    try:
        found = compare.compare(paths, shared, bootstrap=bootstrap)
        models = compare.open_models(paths)
        curves = {name: {model.name: model.scores(name) for model in models} for name in shared}
    except (ValueError, OSError) as error:
        return Comparison(problem=errors.line(error))
    return Comparison(compare.HEADS, compare.rows(found, list(paired.FIGURES)), compare.NOTE, curves)


def _first(runs: Mapping[str, FinishedRun]) -> FinishedRun:
    return next(iter(runs.values()))


@startup.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    about = "Write a report card of finished runs: one HTML page with protocols, intervals, curves and error rates."
    parser = startup.Parser(prog="python -m fvjax.report", description=about, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="work directory of a finished run or evaluation")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="where the page is written")
    parser.add_argument("--pictures", action="store_true", help="show the pictures of the hardest pairs")
    parser.add_argument(
        "--data", type=Path, action="append", default=[], metavar="STORE", help="of a benchmark, if it has moved"
    )
    parser.add_argument("--hardest", type=int, default=10, metavar="N", help="pairs of each kind (%(default)s)")
    parser.add_argument("--bootstrap", type=int, default=2000, metavar="N", help="resamples (%(default)s)")
    flags = parser.parse_args(argv)
    if flags.bootstrap < 100 or flags.hardest < 0:
        raise ValueError(f"--bootstrap={flags.bootstrap} --hardest={flags.hardest}: at least 100, at least 0")
    if flags.out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out={flags.out}: it is written as HTML; give a name that ends in .html")
    if not flags.out.absolute().parent.is_dir():
        raise ValueError(f"--out={flags.out}: there is no folder {flags.out.parent}; make it first")
    options = Options(flags.pictures, flags.hardest, tuple(flags.data), flags.bootstrap)
    text = report(flags.runs, options)
    files.replace_file(flags.out, text)
    print(f"{flags.out}: {len(text.encode()):,} bytes; a browser prints it as a PDF")
    return 0


if __name__ == "__main__":
    startup.run(main)
