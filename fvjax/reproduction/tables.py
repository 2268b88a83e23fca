"""The table of a reproduction beside the published one, as data, text and Markdown."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fvjax import compare
from fvjax.evals import paired
from fvjax.reproduction.published import BENCHMARKS, PAPER, SCALES, SOURCE, Row, titles

BOOTSTRAP = 1000  # resamples behind each interval
OURS = ("row", "benchmark", "here", "± seeds", "95% interval", "seeds")  # ± seeds: standard deviation over seeds
BESIDE = (*OURS, "published", "difference")
ALONE = (*OURS, "small version of")
TEXTS = ("row", "benchmark", "small version of")  # columns without figures
PUBLISHED = ("row", "published", *BENCHMARKS.values())
Cells = list[tuple[str, ...]]


@dataclass(frozen=True)
class Outcome:
    """What became of a row: the work directories of finished runs, and a line for each run that is not finished."""

    row: Row
    workdirs: tuple[Path, ...]
    reasons: tuple[str, ...]


def report(
    scale: str, outcomes: Sequence[Outcome], settings: Sequence[str], done: Callable[[int], object] = lambda _: None
) -> dict[str, Any]:
    """Return the contents of reproduction.json.

    Args:
        settings: that the command changed in every config. done: see :func:`fvjax.evals.paired.resample`.
    Returns:
        JSON-ready {"scale", "comparable", "figure", "settings", "notes", "source", "intervals", "rows": {name:
        {"title", "config", "status", "reasons", "runs", "seeds", "published", "small_version_of", "benchmarks":
        {name: {figure: {"mean", "std_over_seeds", "seeds", "ci95"}}}}}}. Figures are shares, published ones per cent.
    """
    chosen = SCALES[scale]
    notes = [*chosen.notes]
    if settings:
        notes.append(f"Not the published settings: {' '.join(settings)}.")
    return {
        "scale": scale,
        "comparable": chosen.is_published and not settings,
        "figure": chosen.figure,
        "settings": list(settings),
        "notes": notes,
        "source": SOURCE,
        "intervals": f"95% percentile bootstrap over identities, {BOOTSTRAP} resamples, seed 0",
        "rows": {outcome.row.name: _entry(outcome, done) for outcome in outcomes},
    }


def _entry(outcome: Outcome, done: Callable[[int], object]) -> dict[str, Any]:
    row, reasons, benchmarks, seeds = outcome.row, list(outcome.reasons), {}, []
    if outcome.workdirs:
        try:
            model = compare.open_model(row.title, outcome.workdirs)
            seeds, benchmarks = list(model.seeds), _figures(model, done)
        except (ValueError, OSError) as error:  # such as scores that somebody has removed
            reasons.append(str(error))
    return {
        "title": row.title,
        "config": row.config,
        "status": "not run" if not benchmarks else "incomplete" if reasons else "finished",
        "reasons": reasons,
        "runs": [str(path) for path in outcome.workdirs],
        "seeds": seeds,
        "published": dict(row.published),
        "small_version_of": row.counterpart,
        "benchmarks": benchmarks,
    }


def _figures(model: compare.Model, done: Callable[[int], object]) -> dict[str, Any]:
    """Return the summary of every figure by benchmark, over the seeds of a row."""
    out = {}
    for benchmark in model.results[0]["benchmarks"]:
        measured = paired.resample(model.scores(benchmark), bootstrap=BOOTSTRAP, done=done)
        out[benchmark] = {figure: paired.summary(measured, figure) for figure in paired.FIGURES}
    return out


# ---- cells


def cells(found: Mapping[str, Any]) -> Cells:
    """Return the rows of the table: columns as in BESIDE at full size, as in ALONE at a small one."""
    beside = SCALES[found["scale"]].is_published
    out = []
    for entry in found["rows"].values():
        figures: Mapping[str, Any] = entry["benchmarks"] or {key: {} for key in entry["published"] or ("",)}
        for benchmark, its in figures.items():
            mine, published = its.get(found["figure"]), entry["published"].get(benchmark)
            ours = (entry["title"], BENCHMARKS.get(benchmark, benchmark), *_ours(mine))
            out.append((*ours, *(_theirs(mine, published) if beside else [titles()[entry["small_version_of"]]])))
    return out


def _ours(its: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the cells of a figure that was measured here, None if the row did not run."""
    if its is None:
        return "not run", "", "", "0"
    spread, edges = its["std_over_seeds"], its["ci95"]
    return (
        f"{100 * its['mean']:.2f}",
        "" if spread is None else f"{100 * spread:.2f}",
        "" if edges is None else " to ".join(f"{100 * edge:.2f}" for edge in edges),
        str(its["seeds"]),
    )


def _theirs(its: Mapping[str, Any] | None, published: float | None) -> tuple[str, str]:
    """Return the cells of a published figure: itself, and how far ours is from it."""
    if published is None:
        return "", ""
    return f"{published:.2f}", "" if its is None else f"{100 * its['mean'] - published:+.2f}"


def published_cells() -> Cells:
    """Return the published table."""
    return [(row.name, row.title, *(f"{row.published[name]:.2f}" for name in BENCHMARKS)) for row in PAPER.rows]


def not_run(found: Mapping[str, Any]) -> list[str]:
    """Return the lines below the table about runs that are missing: "ROW: not run: REASON"."""
    return [
        f"{name}: not run: {line}"
        for name, entry in found["rows"].items()
        for reason in entry["reasons"]
        for line in reason.splitlines()
    ]


# ---- text


def as_text(found: Mapping[str, Any], width: int) -> str:
    """Format the table for a terminal of so many columns; at a small scale the published one stands below."""
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, markup=False, emoji=False)
    for heads, lines in (_narrow(found), *_tables(found)[1:]):
        console.print(_rich(heads, lines))
    for line in (*not_run(found), *_notes(found)):
        console.print(line)
    return out.getvalue()


def as_markdown(found: Mapping[str, Any]) -> str:
    """Format the same as Markdown."""
    parts = []
    for heads, lines in _tables(found):
        rows = [heads, ("---",) * len(heads), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
        parts.append("".join(f"| {' | '.join(row)} |\n" for row in rows))
    parts += [f"{line}\n" for line in (*not_run(found), *_notes(found))]
    return "\n".join(parts)


def _notes(found: Mapping[str, Any]) -> list[str]:
    return [*found["notes"], f"Intervals: {found['intervals']}; they hold for the trained models."]


def _tables(found: Mapping[str, Any]) -> list[tuple[tuple[str, ...], Cells]]:
    if SCALES[found["scale"]].is_published:
        return [(BESIDE, cells(found))]
    return [(ALONE, cells(found)), (PUBLISHED, published_cells())]


def _narrow(found: Mapping[str, Any]) -> tuple[tuple[str, ...], Cells]:
    """Return the main table with fewer columns, which fit 80 characters.

    Rows are called by their names, and only once; a spread stands behind its figure, a difference behind the published
    one.
    """
    names = {entry["title"]: name for name, entry in found["rows"].items()}
    counterparts = {title: name for name, title in titles().items()}
    out: Cells = []
    seen: set[str] = set()
    for row, benchmark, here, spread, interval, seeds, last, *difference in cells(found):
        name = "" if row in seen else names[row]
        if name and spread:
            name += f"\n({seeds} seeds)"
        seen.add(row)
        last = f"{last} ({difference[0]})" if difference and difference[0] else counterparts.get(last, last)
        out.append((name, benchmark, f"{here} ± {spread}" if spread else here, interval, last))
    beside = SCALES[found["scale"]].is_published
    return ("row", "benchmark", "here", "95% interval", "published" if beside else ALONE[-1]), out


def _rich(heads: Sequence[str], lines: Cells) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        is_text = head in TEXTS
        table.add_column(head, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for line in lines:
        table.add_row(*line)
    return table
