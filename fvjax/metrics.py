"""What a run reports while it goes: metrics.jsonl, TensorBoard and a progress line. Process 0 only."""

import json
import sys
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(workdir / "tb"), purge_step=step)
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

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line {"step": …, **values}."""
        if not self.active:
            return
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        if self.board:
            for key, value in values.items():
                self.board.add_scalar(key, value, step)

    def show(self, step: int, text: str) -> None:
        if self.active:
            self.progress.update(self.task, completed=step, description=text)

    def say(self, text: str) -> None:
        if self.active:
            self.progress.console.print(text)

    def close(self) -> None:
        if self.active:
            self.progress.stop()
            self.file.close()
            if self.board:
                self.board.close()


def replace_file(path: Path, text: str) -> None:
    """Write all of a file at once: a kill leaves the old one or the new one."""
    tmp = path.with_name(f"{path.name}.tmp")
    tmp.write_text(text)
    tmp.replace(path)


def keep_before(path: Path, step: int) -> None:
    """Cut from a JSON-lines file what is of `step` or later, and a line that a kill cut short."""
    kept = [line for line in path.read_text().splitlines() if _step(line) < step] if path.exists() else []
    replace_file(path, "".join(f"{line}\n" for line in kept))


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut short by a kill
