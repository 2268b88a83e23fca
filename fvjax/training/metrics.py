"""What a run reports while it goes: metrics.jsonl, TensorBoard and a progress line. Process 0 only."""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fvjax import errors
from fvjax.config import Config

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


class Writer:
    """Appends one JSON line per step; on resume, lines of steps that are about to be redone are cut off."""

    def __init__(self, workdir: Path, config: Config, step: int):
        self.active = jax.process_index() == 0
        if not self.active:
            return
        path = workdir / "metrics.jsonl"
        if path.exists():
            keep_before(path, step)
        self.file = path.open("a", buffering=1)
        self.board = None
        if config.tensorboard:
            self.board = Board(workdir / "tb", step)
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=300,
            disable=not console.is_terminal,
            transient=True,
        )

    def start(self, step: int, total: int) -> None:
        if self.active:
            self.task = self.progress.add_task("compiling", total=total, completed=step)
            self.progress.start()

    def write(self, step: int, values: dict[str, float | str]) -> None:
        """One line {"step": …, **values}."""
        if not self.active:
            return
        with errors.naming(self.file.name):
            self.file.write(json.dumps({"step": step, **values}) + "\n")
        if self.board:
            self.board.write(step, {k: v for k, v in values.items() if isinstance(v, float)})

    def show(self, step: int, text: str) -> None:
        if self.active:
            self.progress.update(self.task, completed=step, description=text)

    def say(self, text: Any) -> None:  # or a table of rich
        if self.active:
            self.progress.console.print(text)

    def close(self) -> None:
        if not self.active:
            return
        # what has failed already is to be told, not that closing failed as well
        ignored = (OSError,) if sys.exc_info()[1] else ()
        self.progress.stop()
        with contextlib.suppress(*ignored), errors.naming(self.file.name):
            self.file.close()
        with contextlib.suppress(*ignored):
            if self.board:
                self.board.close()


class Board:
    """TensorBoard events, written by whoever calls: the thread of tensorboardX's SummaryWriter dies when the disk is
    full, and the steps after that would wait for it for ever."""

    def __init__(self, path: Path, step: int):
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        protos: Any = event_pb2  # its classes are made at run time
        path.mkdir(exist_ok=True)
        self.path, self.scalar, self.event = path, summary.scalar, protos.Event
        start = protos.SessionLog(status=protos.SessionLog.START)
        with errors.naming(path):
            self.events = event_file_writer.EventsWriter(str(path / "events"))
            # what an earlier start wrote of this step and later ones is not shown
            self.events.write_event(self.event(wall_time=time.time(), step=step, session_log=start))
        self.flushed = time.monotonic()

    def write(self, step: int, values: dict[str, float]) -> None:
        with errors.naming(self.path):
            for key, value in values.items():
                self.events.write_event(self.event(wall_time=time.time(), step=step, summary=self.scalar(key, value)))
            if time.monotonic() > self.flushed + 60:
                self.events.flush()
                self.flushed = time.monotonic()

    def close(self) -> None:
        with errors.naming(self.path):
            self.events.close()


def replace_file(path: Path, text: str) -> None:
    """Write all of a file at once: a kill or a full disk leaves the old one or the new one."""
    tmp = path.with_name(f"{path.name}.tmp")
    with errors.naming(path):
        try:
            tmp.write_text(text)
            tmp.replace(path)
        finally:
            tmp.unlink(missing_ok=True)


def read(path: Path) -> list[dict]:
    """The lines of a JSON-lines file, without one that a kill cut short; [] if there is none."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _step(line) < float("inf")]


def keep_before(path: Path, step: int) -> None:
    """Cut from a JSON-lines file what is of `step` or later, and a line that a kill cut short."""
    kept = [line for line in path.read_text().splitlines() if _step(line) < step] if path.exists() else []
    replace_file(path, "".join(f"{line}\n" for line in kept))


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut short by a kill
