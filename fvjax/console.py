"""The terminal of a run: lines and progress bars, printed by process 0 alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import jax
from rich.console import Console
from rich.progress import track

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def say(what: Any) -> None:
    """Print a line or a table of rich's, in process 0 only."""
    if jax.process_index() == 0:
        console.print(what)


def progress(what: Iterable, title: str, total: int) -> Iterable:
    """Iterate over `what` with a progress bar, if this is process 0 and its output is a terminal."""
    shown = console.is_terminal and jax.process_index() == 0
    return track(what, title, total, console=console, disable=not shown, transient=True)
