"""FaceXBench's tables for the terminal, each at most 80 columns wide, and the text of its results.txt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fvjax.evals.facexbench import CATEGORIES, category_names

WAYS = {"generation": "generated", "letters": "letters"}
CAPTION = (
    "'generated': the letter that FaceXBench's rules find in the generated text, none counts as wrong; 'letters': the "
    "most probable option letter as the answer's first token; 'majority': always naming the row's most frequent right "
    "letter, shown beside it; 'random': expected from guessing. Second lines are 95% Wilson intervals."
)


def table(entry: Mapping[str, Any], name: str) -> Table:
    """Format the table of one model: a row for all questions, and one for each category in the published order.

    Args:
        entry: of results.json, see :func:`fvjax.evals.facexbench.entry`.
        name: the model's name.
    """
    out = _new_table(f"FaceXBench (%): {name}", f"{CAPTION} {_counts(entry)}")
    out.add_column("", min_width=16, overflow="fold")
    _add_accuracy_columns(out, entry)
    rest = entry["without_fairface"]
    _add_row(out, "[bold]Overall[/bold]", entry, ("overall",))
    if rest is not None:
        _add_row(out, "  without FairFace", rest, ("overall",))
    for category in category_names(entry):
        path = "category", category
        _add_row(out, escape(_title(category)), entry, path)
        if rest is not None and _n_questions(rest, path) not in (0, _n_questions(entry, path)):
            _add_row(out, "  without FairFace", rest, path)
    return out


def details(entry: Mapping[str, Any], name: str) -> Table:
    """Format the table of one model with a row for each sub-task, below its category."""
    out = _new_table(f"FaceXBench by sub-task (%): {name}", f"{CAPTION} {_counts(entry)}")
    out.add_column("", min_width=20, overflow="fold")
    _add_accuracy_columns(out, entry)
    for category in category_names(entry):
        out.add_row(*_styled(f"[bold]{escape(_title(category))}[/bold]"))
        titles = CATEGORIES[category].sub_categories if category in CATEGORIES else {}
        for sub_category in entry["sub_categories"][category]:
            title = f"  {escape(titles.get(sub_category, sub_category))}"
            _add_row(out, title, entry, ("sub_category", sub_category))
    return out


def comparison(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Format several models' results as the published tables are: a row for each, a column for each category.

    Args:
        results: entries of results.json by row name.
    """
    names = dict.fromkeys(category for entry in results.values() for category in category_names(entry))
    categories = [c for c in CATEGORIES if c in names] + [c for c in names if c not in CATEGORIES]
    paths = [("overall",), *(("category", category) for category in categories)]
    rows = [row for name, entry in results.items() for row in _comparison_rows(name, entry)]
    baselines = dict.fromkeys(
        (title, tuple(cells))
        for entry in results.values()
        for title, cells in (
            ("majority letter", [_majority_cell(entry, path) for path in paths]),
            ("random", [_random_cell(entry, path) for path in paths]),
        )
    )
    caption = "Second lines are 95% Wilson intervals, third lines numbers of questions. Majority: always naming the "
    caption += "column's most frequent right letter."
    out = _new_table("FaceXBench (%)", caption)
    out.padding, out.show_edge = (0, 0), False  # so that seven columns and a name fit in 80 columns
    out.add_column("", min_width=9, overflow="fold")
    for head in ["Overall", *(CATEGORIES[c].short if c in CATEGORIES else c[:9] for c in categories)]:
        out.add_column(Text(head, style="table.header"), justify="right", no_wrap=True)
    for title, figures, way in rows:
        cells = [_accuracy_cell(figures[way], path, with_count=True) for path in paths]
        out.add_row(*_styled(title, *cells))
    for title, cells in baselines:
        out.add_row(*_styled(f"[dim]{title}[/dim]", *cells))
    return out


def results_text(entry: Mapping[str, Any], name: str) -> str:
    """Write the text of FaceXBench's results.txt, from the generated answers; categories in the published order.

    Raises ValueError if nothing was generated: the published figures are of generated text only.
    """
    figures = entry["generation"]
    if figures is None:
        raise ValueError("results.txt is made of generated answers, and none were; evaluate by generation")

    def line(title: str, figure: Mapping[str, Any]) -> str:
        correct, total = figure["correct"], figure["n_questions"]
        return f"{title}: {100 * correct / total:.2f}% ({correct}/{total})"

    categories = category_names(entry)
    sub_categories = [name for category in categories for name in entry["sub_categories"][category]]
    lines = [f"Model Name: {name} | Total Questions: {entry['n_questions']}"]
    lines += [line("Total Accuracy", figures["overall"]), "", "Category Accuracies:"]
    lines += [line(category, figures["category"][category]) for category in categories]
    lines += ["", "Sub-category Accuracies:"]
    lines += [line(sub_category, figures["sub_category"][sub_category]) for sub_category in sub_categories]
    lines += ["", "Number of Images Accuracies:"]
    lines += [line(num_images, figure) for num_images, figure in figures["num_images"].items()]
    return "".join(f"{text}\n" for text in lines)


def _new_table(title: str, caption: str) -> Table:
    return Table(
        title=Text(title, style="table.title"),
        caption=Text(caption, style="table.caption"),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption_justify="left",
    )


def _styled(*cells: str) -> list[Text]:
    """Return cells with their markup applied, as the console of a run shows strings as they are."""
    return [Text.from_markup(cell, emoji=False) for cell in cells]


def _add_accuracy_columns(out: Table, entry: Mapping[str, Any]) -> None:
    """Add the columns that :func:`_add_row` fills."""
    for head in ["questions", *(head for way, head in WAYS.items() if entry[way]), "majority", "random"]:
        out.add_column(head, justify="right", no_wrap=True)


def _add_row(out: Table, title: str, figures: Mapping[str, Any], path: tuple[str, ...]) -> None:
    accuracies = [_accuracy_cell(figures[way], path) for way in WAYS if figures[way]]
    baselines = _majority_cell(figures, path), _random_cell(figures, path)
    out.add_row(*_styled(title, str(_n_questions(figures, path)), *accuracies, *baselines))


def _comparison_rows(name: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Yield (title, figures, way of answering) of one model's rows."""
    for way, head in WAYS.items():
        if entry[way]:
            yield f"[bold]{escape(name)}[/bold]\n{head}", entry, way
            if entry["without_fairface"]:
                yield " without\n FairFace", entry["without_fairface"], way


def _title(category: str) -> str:
    return CATEGORIES[category].title if category in CATEGORIES else category


def _figure(figures: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any] | None:
    """Return the figure of one group; None if there is no such group."""
    figure: Any = figures
    for key in path:
        figure = figure.get(key)
        if figure is None:
            return None
    return figure


def _n_questions(figures: Mapping[str, Any], path: tuple[str, ...]) -> int:
    figure = _figure(figures["random"], path)
    return 0 if figure is None else figure["n_questions"]


def _accuracy_cell(figures: Mapping[str, Any], path: tuple[str, ...], *, with_count: bool = False) -> str:
    figure = _figure(figures, path)
    if figure is None:
        return "–"
    low, high = (f"{100 * edge:.0f}" if edge in (0, 1) else f"{100 * edge:.1f}" for edge in figure["ci95"])
    count = f"\n[dim]n={figure['n_questions']}[/dim]" if with_count else ""
    return f"{100 * figure['accuracy']:.2f}\n[dim]{low}–{high}[/dim]{count}"


def _majority_cell(figures: Mapping[str, Any], path: tuple[str, ...]) -> str:
    figure = _figure(figures["majority"], path)
    return "–" if figure is None else f"{100 * figure['accuracy']:.2f} {figure['letter']}"


def _random_cell(figures: Mapping[str, Any], path: tuple[str, ...]) -> str:
    figure = _figure(figures["random"], path)
    return "–" if figure is None else f"{100 * figure['accuracy']:.2f}"


def _counts(entry: Mapping[str, Any]) -> str:
    """Say how many answers could not be read, were cut, and agree."""
    n, parts = entry["n_questions"], []
    if generation := entry["generation"]:
        overall = generation["overall"]
        parts.append(f"Of {n} generated answers, {overall['unparsed']} had no letter and {overall['cut']} were cut.")
    if agreement := entry["agreement"]:
        overall = agreement["overall"]
        parts.append(f"The two ways agree on {overall['agree']} of {n} questions ({100 * overall['share']:.1f}%).")
    return " ".join(parts)
