"""What a run says about its steps, and the checks that every step's results must pass."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fvjax import durations, trees
from fvjax.config import LogConfig
from fvjax.console import console, say
from fvjax.models import int8, lora
from fvjax.parallel import sharding
from fvjax.training import int8_base
from fvjax.training.metrics import Writer
from fvjax.training.state import TrainState


@dataclass(frozen=True)
class Workload:
    """How much a run has to do, for rates and the time that is left.

    Attributes:
        images_per_step: over all devices. unit: what they are, if not images.
        flops_per_step: of the model as it is written, over all devices.
        peak_flops: of all devices together, per second, in the dtype that is computed in; 0: not known.
    """

    images_per_step: int
    flops_per_step: float
    steps_per_epoch: int
    epochs: int
    total_steps: int
    peak_flops: float = 0.0
    unit: str = "images"


class TrainReporter:
    """Writes metrics.jsonl and the progress bar, or without a terminal a line at the end of each epoch and in between.

    Results are read one step late, so that the host does not wait for the device.

    Args:
        log: how often a step's values are written, and how often there is a line.
        last_saved: gives the step of the newest checkpoint, for errors.
        elapsed: gives the seconds since the command started.
    """

    def __init__(
        self,
        writer: Writer,
        workload: Workload,
        log: LogConfig,
        last_saved: Callable[[], int | None],
        elapsed: Callable[[], float],
    ):
        self.writer, self.work, self.log = writer, workload, log
        self.last_saved, self.elapsed = last_saved, elapsed
        self.pending: deque[tuple[int, dict[str, Any], float]] = deque()
        self.gate: dict[str, dict] = {}  # which adapters had no gradient at the first step
        self.updated = False  # whether a step had a rate above 0
        self.steps_seen = 0
        self.started = self.clock = self.line_printed = time.perf_counter()

    def add(self, step: int, values: dict[str, Any]) -> None:
        """Take the results of a step (numbered from 0), perhaps not computed yet, and report the one before."""
        self.pending.append((step, values, time.perf_counter()))
        if len(self.pending) > 1:
            self._report(*self.pending.popleft())

    def flush(self) -> None:
        """Report everything that is left. Nothing is saved before, or a loss that is not finite would be saved too."""
        while self.pending:
            self._report(*self.pending.popleft())

    def show_trace(self, table: Any) -> None:
        """Print where the time of traced steps went, once that is known."""
        if table is not None:
            self.writer.say(table)

    def restart_clock(self) -> None:
        """Leave the time since the last report out of the next rate: it went into saving or evaluating."""
        self.clock = time.perf_counter()

    def _report(self, step: int, values: dict[str, Any], added: float) -> None:
        dead = values.pop("dead", None)
        del values["request"]
        was_ready = values["loss"].is_ready()
        values = {key: value if isinstance(value, str) else float(value) for key, value in values.items()}
        self._check_finite(step, values)
        if dead is not None:
            self._check_adapters(step, dead, values["lr"])
        # A result that has been waiting does not say when it came. On a CPU that was when the step returned.
        now = added if was_ready and added > self.clock else time.perf_counter()
        seconds, self.clock = now - self.clock, now
        self.steps_seen += 1
        values[f"{self.work.unit}_per_s"] = self.work.images_per_step / seconds
        if tokens := values.get("tokens"):
            values["tokens_per_s"] = tokens / seconds
        if step % self.log.every_steps == 0:
            self.writer.write(step, values)
        text = (
            f"epoch {self._epoch(step)} loss {values['loss']:.4f} {rates(self.work, seconds, values.get('tokens', 0))}"
        )
        self.writer.show(step + 1, text)
        if self._line_due(step, now):
            self.line_printed = now
            since, left = durations.text(self.elapsed()), durations.text(self._left(step, now))
            done = f"step {step + 1}/{self.work.total_steps}"
            self.writer.say(f"{done} {text}, {since} since start, about {left} left")

    def _line_due(self, step: int, now: float) -> bool:
        """Whether to print a line where there is no terminal: after an epoch, or if the last one is long ago."""
        waited = bool(self.log.line_minutes) and now - self.line_printed >= 60 * self.log.line_minutes
        return not console.is_terminal and (waited or (step + 1) % self.work.steps_per_epoch == 0)

    def _left(self, step: int, now: float) -> float:
        """Estimate the seconds to the last step by the mean of this start's steps, evaluations in between included."""
        return (self.work.total_steps - step - 1) * (now - self.started) / self.steps_seen

    def _epoch(self, step: int) -> str:
        number = step // self.work.steps_per_epoch + 1
        return f"{number}/{self.work.epochs}" if self.work.epochs else f"{number}"

    def _check_adapters(self, step: int, dead: dict, rate: float) -> None:
        """Check a new run's adapters: every b at its first step, every a after the first update, which moves b from 0.

        A warm-up begins with the rate 0, so the first update need not be that of the first step.
        """
        if step == 0:
            self.gate["b"] = trees.flatten(jax.device_get(dead))
        elif self.updated and "b" in self.gate:
            lora.check_alive(self.gate.pop("b"), trees.flatten(jax.device_get(dead)))
        self.updated = self.updated or rate > 0

    def _check_finite(self, step: int, values: dict[str, Any]) -> None:
        if not np.isfinite([values["loss"], values["grad_norm"]]).all():
            raise FloatingPointError(
                f"step {step}: the loss is {values['loss']}, its gradient's norm {values['grad_norm']} (learning "
                f"rate {values['lr']:.3g}); the last checkpoint is step {self.last_saved()}"
            )


def describe_arrays(name: str, mesh: Mesh, frozen: Any, state: TrainState, int8_error: Mapping[str, Any]) -> None:
    """Print how many parameters a run has and trains, and how its arrays lie on the mesh.

    int8_error: of frozen kernels that are kept as int8, see :func:`fvjax.training.int8_base.read`.
    """
    trained = sum(x.size for x in trees.flatten(state.trainable).values())
    total = trained + int8.parameters(frozen)
    kind = jax.devices()[0].device_kind
    say(f"{name}: {total:,} parameters, {trained:,} train; mesh {dict(mesh.shape)} on {kind}")
    parts = {"frozen": frozen, "trainable": state.trainable, "stats": state.stats, "opt": state.opt}
    say(sharding.table(parts))
    if int8_error:
        say(int8_base.describe(trees.flatten(frozen), int8_error))


def rates(work: Workload, seconds: float, tokens: float = 0) -> str:
    """Describe the speed of a step that took so long: images, tokens and FLOPs per second, MFU, memory in use."""
    flops = work.flops_per_step / seconds
    text = f"{work.images_per_step / seconds:.0f} {work.unit}/s {flops / 1e9:.0f} GFLOP/s"
    if tokens:
        text = f"{tokens / seconds:.0f} tokens/s {text}"
    if work.peak_flops:
        text += f" MFU {flops / work.peak_flops:.1%}"
    if used := memory_in_use():
        text += f" {used / 2**30:.1f} GiB"
    return text


def memory_in_use() -> int:
    """Return the most bytes that a device of this process has had in use; 0 where its backend does not say."""
    return max((device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices())
