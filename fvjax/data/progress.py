"""Progress bars on standard error, shown on a terminal only: a log or a script gets just the one line of an error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


def progress_bar(shown: bool = True) -> Progress:
    """Make a progress bar; `shown`: False keeps it away from a terminal too."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not (shown and console.is_terminal),
    )


def track(items: Sequence[T], description: str = "faces") -> Iterable[T]:
    """Iterate over ``items`` with a progress bar."""
    with progress_bar() as bar:
        yield from bar.track(items, description=description)
