"""Tables of attribute recognition for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from fvjax.evals.attributes import AVERAGES

TITLES = {"macro": "attribute mean", "samples": "picture mean", "micro": "all cells"}


def table(entries: Mapping[str, Mapping[str, Any]]) -> Table:
    """Format a table with a row for each model: accuracy, the three averages, mAP and the share that breaks a rule.

    Args:
        entries: of results.json by the row's name, see :func:`fvjax.evals.attributes.entry`.
    """
    caption = "P, R and F1 as means over attributes, over pictures, and over all cells. 'rules': pictures whose "
    caption += "predictions break a rule. Second lines are 95% intervals."
    out = Table(title="Attributes (%)", caption=caption, box=box.SIMPLE_HEAD, caption_justify="left")
    for column in ("", "accuracy", *(f"F1 {TITLES[average]}" for average in AVERAGES), "mAP", "rules"):
        out.add_column(column, justify="left" if not column else "right")
    for name, entry in entries.items():
        figures = [
            entry["mean_accuracy_over_attributes"],
            *(entry[average]["f1"] for average in AVERAGES),
            entry["map"],
        ]
        figures.append(entry["violations"]["rate"] if "violations" in entry else {"value": None, "ci95": None})
        out.add_row(escape(name), *(_cell(figure) for figure in figures))
    return out


def by_attribute(entry: Mapping[str, Any], name: str) -> Table:
    """Format a table with a row for each attribute of one model."""
    out = Table(title=f"Attributes (%): {escape(name)}", box=box.SIMPLE_HEAD)
    for column in ("", "labelled", "positive", "accuracy", "P", "R", "F1", "AP"):
        out.add_column(column, justify="left" if not column else "right")
    for attribute, row in entry["by_attribute"].items():
        shares = [row[key] for key in ("accuracy", "precision", "recall", "f1", "average_precision")]
        out.add_row(escape(attribute), str(row["labelled"]), str(row["positive"]), *map(_percent, shares))
    return out


def confusion(entry: Mapping[str, Any], group: str) -> Table:
    """Format the confusion matrix of a group of classes: rows are right, columns predicted."""
    found = entry["classes"][group]
    out = Table(title=f"{escape(group)}: right in rows, predicted in columns", box=box.SIMPLE_HEAD)
    out.add_column("")
    names: Sequence[str] = found["names"]
    for name in (*names, "recall"):
        out.add_column(escape(name), justify="right")
    for name, row, recall in zip(names, found["confusion_rows_true"], found["recall_per_class"]):
        out.add_row(escape(name), *map(str, row), _percent(recall))
    return out


def by_group(entry: Mapping[str, Any], question: str) -> Table:
    """Format the accuracy of a question for the pictures of each class of the other questions."""
    out = Table(title=f"{escape(question)} (%) by group", caption="95% Wilson intervals", box=box.SIMPLE_HEAD)
    for column in ("", "pictures", "accuracy", "majority"):
        out.add_column(column, justify="left" if not column else "right")
    for other, rows in entry["classes"][question]["by"].items():
        for name, row in rows.items():
            low, high = row["accuracy"]["ci95"]
            accuracy = f"{_percent(row['accuracy']['value'])} ({100 * low:.1f}-{100 * high:.1f})"
            out.add_row(escape(f"{other}: {name}"), str(row["n"]), accuracy, _percent(row["majority"]))
    return out


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _cell(figure: Mapping[str, Any]) -> str:
    edges = figure["ci95"]
    return _percent(figure["value"]) + (f"\n{100 * edges[0]:.1f}-{100 * edges[1]:.1f}" if edges else "")
