"""Evaluations while a run trains: when they are due, what is kept of them, and which checkpoint is the best."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from fvjax import errors, files
from fvjax.console import say
from fvjax.tasks.task import Evaluator
from fvjax.training.checkpoint import Checkpoints
from fvjax.training.metrics import Writer
from fvjax.training.state import TrainState


@dataclass(frozen=True)
class EvaluationSchedule:
    """After which steps a run is evaluated.

    Attributes:
        every_steps: 0: only at the end. validates: whether there are validation data, which also judge the last step;
            without them the final report does.
    """

    every_steps: int
    total_steps: int
    validates: bool

    def due(self, step: int) -> bool:
        if not self.every_steps:
            return False
        if step == self.total_steps:
            return self.validates
        return step % self.every_steps == 0


class Evaluations:
    """Evaluates states of a run and notes the results in evaluations.jsonl.

    Args:
        seconds: how long the run has taken so far, over all its starts.
        writer: tells TensorBoard and trackers.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        schedule: EvaluationSchedule,
        checkpoints: Checkpoints,
        workdir: Path,
        steps_per_epoch: int,
        seconds: Callable[[], float],
        writer: Writer,
    ):
        self.evaluator, self.schedule, self.checkpoints, self.workdir = evaluator, schedule, checkpoints, workdir
        self.steps_per_epoch, self.seconds, self.writer = steps_per_epoch, seconds, writer
        self.done = {line["step"] for line in files.read_lines(workdir / "evaluations.jsonl")}
        self.validated: dict[int, dict[str, Any]] = {}  # entries by step, of this start

    def due(self, step: int) -> bool:
        return self.schedule.due(step)

    def missing(self, step: int) -> bool:
        """Whether a kill came between the checkpoint of a step and the end of its evaluation."""
        judged = not self.schedule.validates or step in self.checkpoints.accuracies
        return bool(step) and self.due(step) and not (step in self.done and judged)

    def evaluate(self, step: int, state: TrainState) -> None:
        """Evaluate a state that has just been saved."""
        summary: dict[str, dict[str, float]] = {}
        validation = None
        if self.schedule.validates:
            validation = self.evaluator.validate(state, f"step {step}")
            self.validated[step] = validation.entry
            summary |= self.evaluator.summary({"validation": validation.entry})
        if step < self.schedule.total_steps:  # at the end all benchmarks are run anyway
            summary |= self.evaluator.during(state, f"step {step}")
        self.append(step, summary)
        self.writer.evaluated(step, summary)
        if validation:
            self.checkpoints.validated(step, validation.score)

    def catch_up(self, step: int, state: TrainState, title: str) -> None:
        """Validate the last step if a kill came between its checkpoint and its validation."""
        if self.schedule.validates and step and step not in self.checkpoints.accuracies:
            validation = self.evaluator.validate(state, title)
            self.validated[step] = validation.entry
            self.checkpoints.validated(step, validation.score)

    def validation_entry(self, step: int, state: TrainState, title: str) -> dict[str, Any] | None:
        """Return the validation entry of a state for results.json, None without validation data."""
        if self.schedule.validates and step not in self.validated:
            self.validated[step] = self.evaluator.validate(state, title).entry
        return self.validated.get(step)

    def finish(self, step: int, summary: dict[str, dict[str, float]]) -> None:
        """Note the final evaluation of a run. Trackers get it at the last step, though the best one was evaluated."""
        if step and not self.schedule.validates:
            self.append(step, summary)
        self.writer.evaluated(self.schedule.total_steps, summary)

    def append(self, step: int, summary: dict[str, dict[str, float]]) -> None:
        """Add a line to evaluations.jsonl and print it. Process 0 only."""
        if jax.process_index():
            return
        line = {"step": step, "epoch": step / self.steps_per_epoch, "seconds": round(self.seconds(), 1), **summary}
        path = self.workdir / "evaluations.jsonl"
        files.keep_before(path, step)
        with errors.naming(path), path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        say(f"evaluation at step {step}: {self.evaluator.describe(summary)}")
