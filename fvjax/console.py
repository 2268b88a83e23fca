"""The terminal of a run: lines and progress bars, printed by process 0 alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import track

from fvjax import durations

WIDEST = 1000  # columns that a table may ask for
LINE_SECONDS = 60.0  # between two lines about progress where there is no terminal
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


def progress(what: Iterable, title: str, total: int, *, count: int = 0, unit: str = "batches") -> Iterable:
    """Iterate over `what` and show how far that is, in process 0 only.

    On a terminal there is a progress bar. Elsewhere there is a line every LINE_SECONDS, and none about what is done
    sooner: "vit: lfw: 1,280 of 7,701 images, 213 images/s, about 30 s left".

    Args:
        total: how many items `what` has. count: how many units they stand for altogether; 0: each item is one.
        unit: what is counted.
    """
    if jax.process_index():
        return what
    if not console.is_terminal:
        return _with_lines(what, title, total, count or total, unit)
    return track(what, escape(title), total, console=console, transient=True)


def _with_lines(what: Iterable, title: str, total: int, count: int, unit: str) -> Iterator:
    """Iterate over `what`, and print a line now and then; arguments as of :func:`progress`."""
    started = said = time.perf_counter()
    for number, item in enumerate(what):
        now = time.perf_counter()
        if number and now - said >= LINE_SECONDS:
            said, done = now, number * count // total
            rate = done / (now - started)
            left = durations.text((count - done) / rate)
            say(f"{title}: {done:,} of {count:,} {unit}, {rate:.3g} {unit}/s, about {left} left")
        yield item
