"""The terminal of a run: lines and progress bars, printed by process 0 alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import jax
from rich.console import Console
from rich.markup import escape
from rich.progress import track

# No markup: names of files and runs may hold [brackets]. Styled text is rich's Text.
_terminal = sys.stdout is not None and sys.stdout.isatty()
console = Console(highlight=False, markup=False, emoji=False, width=None if _terminal else 120)


def say(what: Any) -> None:
    """Print a line or a table of rich's, in process 0 only."""
    if jax.process_index() == 0:
        console.print(what)


def progress(what: Iterable, title: str, total: int) -> Iterable:
    """Iterate over `what` with a progress bar, if this is process 0 and its output is a terminal."""
    shown = console.is_terminal and jax.process_index() == 0
    return track(what, escape(title), total, console=console, disable=not shown, transient=True)
