"""What a run reports: metrics.jsonl, TensorBoard, other trackers and a progress bar. Process 0 only."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fvjax import errors, files, plugins
from fvjax.config import LogConfig
from fvjax.console import console


class Tracker(Protocol):
    """A further place for the metrics. A plug-in is called with (run name, work directory, first step) to make one.

    It may have two more methods, as :class:`Board` does: `settings`, which gets the config of the run when it starts,
    and `picture`.
    """

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Writer:
    """Appends one JSON line per step, and tells TensorBoard and trackers about steps and evaluations.

    Nothing is written before :meth:`open`; on resume, that cuts off the lines of steps that are about to be repeated.

    Args:
        active: False: nothing is ever written.
    """

    def __init__(self, name: str, workdir: Path, config: LogConfig, active: bool = True):
        self.name, self.workdir, self.config = name, workdir, config
        self.may_open = active and jax.process_index() == 0
        self.active = False

    @contextmanager
    def opened(self, step: int) -> Iterator[None]:
        """Open everything for a run that starts at `step`, and close it at the end."""
        self.open(step)
        try:
            yield
        finally:
            self.close()

    def open(self, step: int) -> None:
        """Open the file and all trackers. Raises ValueError: a tracker is unknown or lacks its package."""
        if not self.may_open:
            return
        config, path = self.config, self.workdir / "metrics.jsonl"
        if path.exists():
            files.keep_before(path, step)
        self.file = path.open("a", buffering=1)
        self.board = Board(self.workdir / "tb", step) if config.tensorboard else None
        self.trackers: list[Tracker] = [self.board] if self.board else []
        self.trackers += [open_tracker(tracker, self.name, self.workdir, step) for tracker in config.trackers]
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
        self.active = True
        settings = self.workdir / "config.json"
        if settings.exists():
            for tracker in self.trackers:
                _call(tracker, "settings", json.loads(settings.read_text()))

    @contextmanager
    def showing(self, step: int, total: int) -> Iterator[None]:
        """Show a progress bar of training from `step` to `total`, on a terminal."""
        self.start(step, total)
        try:
            yield
        finally:
            if self.active:
                self.progress.stop()

    def start(self, step: int, total: int) -> None:
        if self.active:
            self.task = self.progress.add_task("compiling", total=total, completed=step)
            self.progress.start()

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Write one line {"step": …, **values}; trackers get the numbers of it."""
        if not self.active:
            return
        with errors.naming(self.file.name):
            self.file.write(json.dumps({"step": step, **values}) + "\n")
        for tracker in self.trackers:
            tracker.write(step, {k: v for k, v in values.items() if isinstance(v, float)})

    def evaluated(self, step: int, summary: Mapping[str, Mapping[str, Any]]) -> None:
        """Give trackers the figures of an evaluation after `step` steps as "eval/BENCHMARK/FIGURE".

        They stand at the last of these steps, which is number `step` - 1, so that a resumed run keeps them.
        """
        if not self.active:
            return
        named = {f"eval/{name}/{key}": value for name, figures in summary.items() for key, value in figures.items()}
        numbers = {key: float(value) for key, value in named.items() if isinstance(value, int | float)}
        for tracker in self.trackers if numbers else ():
            tracker.write(max(step - 1, 0), numbers)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Give TensorBoard, and with config.log.send_pictures all trackers, a picture uint8 [H, W, 3]."""
        if not self.active:
            return
        for tracker in self.trackers if self.config.send_pictures else filter(None, [self.board]):
            _call(tracker, "picture", step, name, pixels)

    def show(self, step: int, text: str) -> None:
        if self.active:
            self.progress.update(self.task, completed=step, description=text)

    def say(self, text: Any) -> None:
        """Print a line or a table above the progress bar."""
        if self.active:
            self.progress.console.print(text)

    def close(self) -> None:
        """Close the file and all trackers, also if one of them fails.

        Raises the first error, unless the run has failed already: then that error is the one to report.
        """
        if not self.active:
            return
        failing = sys.exc_info()[1] is not None
        problem: Exception | None = None
        self.progress.stop()
        for close in (self._close_file, *(tracker.close for tracker in self.trackers)):
            try:
                close()
            except Exception as error:  # trackers have their packages' own types
                problem = problem or error
        if problem and not failing:
            raise problem

    def _close_file(self) -> None:
        with errors.naming(self.file.name):
            self.file.close()


class Board:
    """TensorBoard events, written by the calling thread.

    Figures are scalars, the config of the run is a text and the first batch an image.

    The thread of tensorboardX's SummaryWriter dies when the disk is full, and later steps would wait for it for ever.
    """

    def __init__(self, path: Path, step: int):
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        protos: Any = event_pb2  # its classes are made at run time
        path.mkdir(exist_ok=True)
        self.path, self.step, self.summary, self.event = path, step, summary, protos.Event
        start = protos.SessionLog(status=protos.SessionLog.START)
        with errors.naming(path):
            self.events = event_file_writer.EventsWriter(str(path / "events"))
            # TensorBoard then hides what an earlier start wrote about this step and later ones.
            self.events.write_event(self.event(wall_time=time.time(), step=step, session_log=start))
        self.flushed = time.monotonic()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        with errors.naming(self.path):
            for key, value in values.items():
                self._add(step, self.summary.scalar(key, value))
            if time.monotonic() > self.flushed + 60:
                self.events.flush()
                self.flushed = time.monotonic()

    def settings(self, config: Mapping[str, Any]) -> None:
        """Write the config of the run as a text, which TensorBoard shows as a block of code."""
        lines = json.dumps(config, indent=1, sort_keys=True).splitlines()
        with errors.naming(self.path):
            self._add(self.step, self.summary.text("config", "\n".join(f"    {line}" for line in lines)))

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Write a picture uint8 [H, W, 3]."""
        with errors.naming(self.path):
            self._add(step, self.summary.image(name, pixels, dataformats="HWC"))

    def _add(self, step: int, summary: Any) -> None:
        self.events.write_event(self.event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        with errors.naming(self.path):
            self.events.close()


def _call(tracker: Tracker, method: str, *values: Any) -> None:
    """Call a method that a tracker of a user's own need not have."""
    getattr(tracker, method, lambda *_: None)(*values)


def open_tracker(spec: str, name: str, workdir: Path, step: int) -> Tracker:
    """Open `wandb`, `mlflow` or a plug-in. Raises ValueError: unknown, or its package is not installed."""
    known = {"wandb": WandbTracker, "mlflow": MlflowTracker}
    if plugins.is_spec(spec):
        return plugins.load(spec)(name, workdir, step)
    if spec not in known:
        raise ValueError(f"config.log.trackers: {spec!r} is unknown; choose {' or '.join(known)}, or module:name")
    try:
        return known[spec](name, workdir, step)
    except ModuleNotFoundError as error:
        raise ValueError(f"config.log.trackers: {spec} needs a package; pip install {error.name}") from error


class WandbTracker:
    """Weights & Biases. Runs of one work directory continue each other there."""

    def __init__(self, name: str, workdir: Path, step: int):
        import wandb  # type: ignore[import-not-found]  # optional

        del step  # wandb itself refuses steps that it has
        self.wandb = wandb
        self.run = wandb.init(project="fvjax", name=name, id=_run_id(workdir), resume="allow", dir=workdir)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def settings(self, config: Mapping[str, Any]) -> None:
        self.run.config.update(dict(config), allow_val_change=True)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        self.run.log({name: self.wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        self.run.finish()


class MlflowTracker:
    """MLflow, at MLFLOW_TRACKING_URI or in WORKDIR/mlruns."""

    def __init__(self, name: str, workdir: Path, step: int):
        import os

        import mlflow  # type: ignore[import-not-found]  # optional

        del step
        self.mlflow = mlflow
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri((workdir / "mlruns").absolute().as_uri())
        mlflow.set_experiment("fvjax")
        mlflow.start_run(run_name=name, tags={"fvjax.run": _run_id(workdir)})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        legal = {re.sub(r"[^\w\-. /]", "_", key): value for key, value in values.items()}  # no @ and no =
        self.mlflow.log_metrics(legal, step=step)

    def settings(self, config: Mapping[str, Any]) -> None:
        self.mlflow.log_dict(dict(config), "config.json")

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        self.mlflow.log_image(pixels, f"{name}_step_{step}.png")

    def close(self) -> None:
        self.mlflow.end_run()


def _run_id(workdir: Path) -> str:
    """Return the name under which a tracker continues the run of a work directory, kept in that directory."""
    file = workdir / "tracker_id"
    if not file.exists():
        import secrets

        files.replace_file(file, secrets.token_hex(8))
    return file.read_text().strip()
