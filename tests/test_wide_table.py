"""Test the table that becomes several where a terminal is too narrow: every line, character by character."""

import io

import pytest
from rich.console import Console

from fvjax.evals.wide_table import WideTable

WHOLE = """
                 results
                                     CFP
 row                            LFW   FP
 ───────────────────────────────────────
 resnet :smile:        99.55 ± 0.30   87
in per cent
"""
LFW = """
              results
 row                            LFW
 ──────────────────────────────────
 resnet :smile:        99.55 ± 0.30
"""
CFP = """
                       CFP
 row                    FP
 ─────────────────────────
 resnet :smile:         87
"""


def shown(width: int, **changes) -> list[str]:
    """Return the lines of a small table on a terminal of `width` columns, without empty ones."""
    settings = {"title": "results", "caption": "in per cent", "first": "row", "columns": ["LFW", "CFP\nFP"]}
    rows = [["resnet :smile:", "99.55 ± 0.30", "87"]]
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(WideTable(**{**settings, "rows": rows, **changes}))
    return lines(console.file.getvalue())


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("width", [41, 200])
def test_where_it_fits_it_is_one_table(width):
    assert shown(width) == lines(WHOLE)


@pytest.mark.parametrize("width", [36, 40])
def test_where_it_does_not_each_part_has_the_first_column_and_the_end_has_the_caption(width):
    assert shown(width) == lines(LFW) + lines(CFP) + ["in per cent"]


def test_a_column_alone_is_shown_as_far_as_the_terminal_goes():
    assert shown(30) == [
        "              results",
        " row",
        " ─────────────────────────────",
        " resnet :smile:        99.55 ±",
        *lines(CFP),
        "in per cent",
    ]


def test_rows_follow_each_other_without_empty_lines():
    console = Console(width=41, file=io.StringIO(), color_system=None)
    console.print(WideTable("results", "in per cent", "row", ["LFW", "FP"], [["a", "99", "87"], ["b", "1", "2"]]))
    assert [line.rstrip() for line in console.file.getvalue().splitlines()] == [
        "            results",
        "",
        " row                   LFW  FP",
        " ─────────────────────────────",
        " a                      99  87",
        " b                       1   2",
        "",
        "in per cent",
    ]


def test_four_columns_become_three_parts_in_order():
    table = shown(36, columns=["A", "B", "C", "D"], rows=[["a", "99.55", "1234567", "87654321", "x"]])
    assert [line for line in table if line.lstrip().startswith(("row", "a"))] == [
        " row                       A",
        " a                     99.55",
        " row                         B",
        " a                     1234567",
        " row                          C  D",
        " a                     87654321  x",
    ]
    assert table[-1] == "in per cent"


def test_a_column_without_any_text_takes_no_room():
    assert shown(60, columns=["", "X"], rows=[["a", "", "1"]])[1::2] == [
        " row                     X",
        " a                       1",
    ]


def test_long_names_are_folded_and_cells_are_not_broken():
    table = shown(41, rows=[["a name of more than twenty columns", "99.55 ± 0.30", "87"]])
    assert table[4:6] == [" a name of more than   99.55 ± 0.30   87", " twenty columns"]


def test_its_measure_is_from_its_widest_part_to_the_whole():
    console = Console(width=200, color_system=None)
    table = WideTable("t", "c", "row", ["LFW", "FP"], [["resnet", "99.55 ± 0.30", "87"]])
    measure = table.__rich_measure__(console, console.options)
    assert (measure.minimum, measure.maximum) == (36, 40)
