"""The terminal of a run: lines and progress bars, printed by process 0 alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import track

WIDEST = 1000  # columns that a table may ask for
# No markup: names of files and runs may hold [brackets]. Styled text is rich's Text.
make_console = partial(Console, highlight=False, markup=False, emoji=False)
_terminal = sys.stdout is not None and sys.stdout.isatty()
console = make_console(width=None if _terminal else 120)


def say(what: Any) -> None:
    """Print a line or a table of rich's, in process 0 only.

    A table keeps its words and figures in a terminal that is too narrow for them: the terminal folds its lines.
    """
    if jax.process_index():
        return
    fits = Measurement.get(console, console.options.update(max_width=WIDEST), what)
    if fits.minimum <= console.width:
        console.print(what)
    else:
        make_console(width=fits.maximum).print(what)


def progress(what: Iterable, title: str, total: int) -> Iterable:
    """Iterate over `what` with a progress bar, if this is process 0 and its output is a terminal."""
    shown = console.is_terminal and jax.process_index() == 0
    return track(what, escape(title), total, console=console, disable=not shown, transient=True)
