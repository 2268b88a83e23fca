"""A table of many columns that becomes several tables, one below the other, where the terminal is too narrow for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

WIDEST = 10_000  # columns of a terminal that is wide enough for everything


@dataclass
class WideTable:
    """A table for rich to print. All texts are rich's markup.

    Attributes:
        first: head of the first column, which every part begins with.
        columns: heads of the others, which are never divided.
        rows: the cells of each row, one more than there are `columns`.
    """

    title: str
    caption: str
    first: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        parts = self._parts(console, options)
        for number, part in enumerate(parts):
            yield self._table(part, title=number == 0, caption=len(parts) == 1)
        if len(parts) > 1:
            yield Text(self.caption, style="table.caption")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the least width of the widest part of one column, and the width of the whole table."""
        narrowest = max(self._widths(console, options, [column]).minimum for column in range(len(self.columns)))
        return Measurement(narrowest, self._widths(console, options, range(len(self.columns))).maximum)

    def _parts(self, console: Console, options: ConsoleOptions) -> list[list[int]]:
        """Divide the columns, in order, so that each part fits if it can."""
        parts: list[list[int]] = [[]]
        for column in range(len(self.columns)):
            longer = [*parts[-1], column]
            if parts[-1] and self._widths(console, options, longer).minimum > options.max_width:
                parts.append([column])
            else:
                parts[-1] = longer
        return parts

    def _widths(self, console: Console, options: ConsoleOptions, columns: Sequence[int]) -> Measurement:
        return Measurement.get(
            console, options.update(max_width=WIDEST), self._table(columns, title=False, caption=False)
        )

    def _table(self, columns: Sequence[int], title: bool, caption: bool) -> Table:
        out = Table(
            title=self.title if title else None,
            caption=self.caption if caption else None,
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
            caption_justify="left",
        )
        out.add_column(self.first, min_width=20, overflow="fold")
        texts = [[Text.from_markup(cell, emoji=False) for cell in row] for row in self.rows]
        for column in columns:
            head = Text.from_markup(self.columns[column], emoji=False)
            lines = (line for text in (head, *(row[1 + column] for row in texts)) for line in text.plain.splitlines())
            # without min_width rich would count the longest word of a line that is not to be broken
            out.add_column(head, justify="right", no_wrap=True, min_width=max(map(cell_len, lines), default=0))
        for first, *others in texts:
            out.add_row(first, *(others[column] for column in columns))
        return out
