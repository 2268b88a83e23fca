"""The sections of a report about whole runs: summary, comparison, groups of people, other tasks, origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fvjax.evals import verification
from fvjax.evals.comparison_plots import Models
from fvjax.evals.finished import FinishedRun
from fvjax.reporting import figures, words
from fvjax.reporting.page import Html, element, facts, figure, join, paragraph, picture, table, two_lines
from fvjax.reporting.pair_sections import ROW_HEADS, Options, benchmark_section, figure_row

GROUPS_CAUTION = (
    "Read these rows with care. Each group is a list of pairs of its own with thresholds of its own, so they do not "
    "say how one common threshold treats the groups. A group of few people has a wide interval: differences that the "
    "intervals span show nothing. The labels are those of the benchmark's authors."
)
GLOSSARY = (
    ("genuine, impostor pair", "two pictures of one person; of two persons"),
    (
        "FMR, FNMR",
        "false match rate: share of impostor pairs accepted (FAR in results.json); false non-match rate: share of "
        "genuine pairs not accepted (1 - TAR). The names are those of ISO/IEC 19795-1",
    ),
    ("EER, AUC", "error rate where FMR and FNMR are equal; area under the ROC curve"),
    (
        "95% interval",
        "what other people's faces might have given with this trained model. It does not cover what another seed of "
        "training would have given, nor pictures of another kind than the benchmark's",
    ),
    ("failure to acquire", "pictures that a benchmark names and in which no face was found, or that were missing"),
)


@dataclass(frozen=True)
class Comparison:
    """Several runs judged on the same pairs.

    Attributes:
        heads, rows: the table of :mod:`fvjax.compare`; a row begins with its benchmark.
        note: what the columns mean.
        curves: the scores of every model by benchmark.
        problem: why there is no comparison, or "".
    """

    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    note: str = ""
    curves: Mapping[str, Models] = field(default_factory=dict)
    problem: str = ""


# ---- several runs


def summary_section(runs: Mapping[str, FinishedRun]) -> Html:
    """Return the figures of all runs on all benchmarks of pairs in one table."""
    rows = [
        [two_lines(benchmark, name), *figure_row(name, run.results["benchmarks"][benchmark])[1:]]
        for benchmark in dict.fromkeys(b for run in runs.values() for b in run.pair_benchmarks)
        for name, run in runs.items()
        if benchmark in run.pair_benchmarks
    ]
    if not rows:
        return join([element("h2", "Summary", class_="first"), paragraph("No run has a benchmark of pairs of faces.")])
    heads = ("benchmark, model", *ROW_HEADS[1:])
    caption = "Figures in per cent, with their 95% intervals. The protocols stand with each benchmark below."
    return join([element("h2", "Summary", class_="first"), table(heads, rows, caption)])


def comparison_section(comparison: Comparison, bootstrap: int) -> Html:
    """Return the paired differences of several runs, with ROC and DET curves of all."""
    parts = [element("h2", "Comparison", class_="first")]
    if comparison.problem:
        return join([*parts, paragraph(f"The runs are not compared: {comparison.problem}")])
    for benchmark, models in comparison.curves.items():
        rows = [comparison_row(row) for row in comparison.rows if row[0] == benchmark]
        count = figures.resamples(next(iter(models.values()))[0], min(bootstrap, 500))
        drawn = [(kind, draw(benchmark, models, count)) for kind, draw in (("ROC", figures.roc), ("DET", figures.det))]
        images = [
            figure(
                picture(data, "svg+xml", f"{kind} of all models on {benchmark}"), f"{kind} of all models, 95% bands."
            )
            for kind, data in drawn
        ]
        parts += [
            element("h3", benchmark),
            table(("model and figure", *comparison.heads[3:]), rows, "In per cent."),
            element("div", *images, class_="figures"),
        ]
    return join([*parts, paragraph(comparison.note, class_="note")])


def comparison_row(row: Sequence[str]) -> list[str]:
    """Return a row of :mod:`fvjax.compare` without its benchmark, figure and model in one cell."""
    _, figure_name, model, *cells = row
    return [two_lines(model, words.FIGURES[figure_name]), *(cell or "–" for cell in cells)]


# ---- one run


def run_section(name: str, run: FinishedRun, options: Options) -> Html:
    """Return everything about one run."""
    parts = [element("h2", f"Run {name}"), _model_section(run)]
    parts += [benchmark_section(name, run, benchmark, options) for benchmark in run.pair_benchmarks]
    parts += [
        other_benchmark(benchmark, entry)
        for benchmark, entry in run.results["benchmarks"].items()
        if benchmark not in run.pair_benchmarks
    ]
    if run.pair_benchmarks:
        parts.append(groups_section(run))
    return join([*parts, _validation(run), _failed(run), origin_section(run)])


def _model_section(run: FinishedRun) -> Html:
    return join([element("h3", "What was evaluated"), facts(words.model_facts(run))])


def groups_section(run: FinishedRun) -> Html:
    """Return the rows of the groups of people that a benchmark has, with a caution; say so if there are none."""
    parts, benchmarks = [element("h3", "Groups of people")], run.results["benchmarks"]
    for whole, found in (run.results.get("groups") or {}).items():
        members = verification.GROUPS.get(whole, ())
        rows = [figure_row(member, benchmarks[member]) for member in members if member in benchmarks]
        lowest, highest = (f"{each[0]} {words.percent(each[1])}" for each in (found["lowest"], found["highest"]))
        sentence = (
            f"{whole}, accuracy at the best threshold over its groups: mean {words.percent(found['mean'])}, standard "
            f"deviation {words.percent(found['std'])}, lowest {lowest}, highest {highest}."
        )
        parts += [paragraph(sentence), table(("group", *ROW_HEADS[1:]), rows, "In per cent, with 95% intervals.")]
    if len(parts) == 1:
        none = f"No benchmark of this run has labels of groups ({', '.join(verification.GROUPS)} would), so how the "
        return join([*parts, paragraph(f"{none}figures differ between groups of people is {words.UNKNOWN}.")])
    return join([*parts, paragraph(GROUPS_CAUTION, class_="caution")])


def other_benchmark(benchmark: str, entry: Mapping[str, Any]) -> Html:
    """Return the section of a benchmark that is not of pairs: a table of questions with options, or one line."""
    title = element("h3", benchmark)
    if "generated" in entry and "by_kind" in entry:
        kinds = {"all": entry, "all, before training": entry.get("before_training") or {}, **entry["by_kind"]}
        rows = [[kind, *_question_cells(its)] for kind, its in kinds.items() if its]
        heads = ("questions", "number", "generated", "chosen", "majority", "random")
        caption = (
            "Shares of right answers in per cent, with 95% Wilson intervals. Generated: the text that the model "
            "writes; chosen: the option that it finds most probable; majority: always the most frequent answer; "
            "random: guessing."
        )
        return join([title, table(heads, rows, caption)])
    kind = "of FaceXBench's questions" if "generation" in entry else "of a task that reports do not know"
    where = "their tables are printed by the evaluation, and all figures are in results.json"
    return join([title, paragraph(f"This benchmark is {kind}: {where}. It is not in this report.")])


def _question_cells(entry: Mapping[str, Any]) -> list[str]:
    shares = [
        two_lines(words.percent(entry[key]["value"]), words.interval(entry[key]["ci95"]))
        for key in ("generated", "chosen")
    ]
    return [f"{entry['n']:,}", *shares, *(words.percent(entry[key]) for key in ("majority", "random"))]


def _validation(run: FinishedRun) -> Html:
    found = run.results.get("validation")
    if not found:
        return join([])
    if "n_pairs" in found:
        rows = [figure_row("validation", found)]
        caption = "Pairs of people of the validation data; the best checkpoint was chosen by them, so they flatter."
        return join([element("h3", "Validation"), table(ROW_HEADS, rows, caption)])
    listed = ", ".join(f"{key} {value}" for key, value in found.items() if isinstance(value, int | float))
    return join([element("h3", "Validation"), paragraph(listed)])


def _failed(run: FinishedRun) -> Html:
    failed = run.results.get("failed") or {}
    if not failed:
        return join([])
    lines = [element("li", f"{benchmark}: {reason}") for benchmark, reason in failed.items()]
    return join([element("h3", "Benchmarks that could not be evaluated"), element("ul", *lines, class_="caution")])


def origin_section(run: FinishedRun) -> Html:
    """Return what the figures depend on: versions, devices, hashes, dates; what a run did not note is said."""
    results, evaluation = run.results, run.results.get("evaluation", {})
    environment = evaluation.get("environment", {})
    old = "an older version of fvjax did not note it"
    devices = evaluation.get("devices") or environment.get("devices")
    trained = f"{words.UNKNOWN}: trained elsewhere" if run.is_foreign else "none: nothing was trained"
    listed = [
        ("evaluated", words.or_unknown(evaluation.get("date"), old)),
        ("name of the evaluation", evaluation.get("name") or "none was given"),
        ("seconds", _seconds(run)),
        ("precision", words.or_unknown(results.get("dtype"))),
        ("devices", words.or_unknown(devices, old)),
        *(
            (key, words.or_unknown(environment.get(key), old))
            for key in ("processor", "system", "python", "jax", "numpy")
        ),
        ("code version", words.or_unknown(results.get("code_version"))),
        ("hash of the config", results.get("config_hash") or "none: a foreign model has no config of a run"),
        (
            f"hash of the {'model' if run.is_foreign else 'base'}",
            results.get("base_hash") or "none: no weights that it started from",
        ),
        ("hash of the training data", results.get("train_data_hash") or trained),
        *(
            (f"hash of {name}", words.or_unknown(entry.get("data_hash")))
            for name, entry in results["benchmarks"].items()
        ),
        ("work directory", str(run.workdir)),
    ]
    return join([element("h3", "Origin of the figures"), facts(listed), _later(run)])


def _seconds(run: FinishedRun) -> str:
    seconds = run.results.get("seconds")
    if not seconds:
        return f"{words.UNKNOWN}: an older version of fvjax did not note them"
    return f"{seconds:,} ({'the evaluation' if run.is_foreign else 'training and evaluation, all starts together'})"


def _later(run: FinishedRun) -> Html:
    """Return the list of later evaluations, whose figures are in folders of their own."""
    later = run.results.get("evaluations") or []
    if not later:
        return paragraph("There is one evaluation, this one.", class_="note")
    rows = [
        [each.get("date", ""), each.get("name") or "–", ", ".join(each.get("benchmarks", ())), each.get("folder", "")]
        for each in later
    ]
    caption = "Later evaluations. Their figures are in these folders; benchmarks that were new are in this report, too."
    return table(("date", "name", "benchmarks", "folder"), rows, caption, text=True)


def glossary() -> Html:
    """Return what the terms mean."""
    return join([element("h2", "How to read this", class_="first"), facts(GLOSSARY)])
