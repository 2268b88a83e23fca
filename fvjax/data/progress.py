"""Progress bars on standard error, shown on a terminal only: a log or a script gets just the one line of an error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def track(files: Sequence[str]) -> Iterable[str]:
    """Iterate over ``files`` with a progress bar."""
    with progress_bar() as bar:
        yield from bar.track(files, description="faces")
