"""The training loop: step, report, save, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fvjax.tasks.task import Batch
from fvjax.training import checkpoint
from fvjax.training.agreement import Agreement
from fvjax.training.profiling import Trace
from fvjax.training.reporter import TrainReporter
from fvjax.training.state import TrainState
from fvjax.training.validation import Evaluations


@dataclass(frozen=True)
class Saves:
    """Which steps are saved, and with what facts.

    Attributes:
        facts: what a checkpoint must agree on with the run that resumes from it. seconds: the run's time so far.
    """

    checkpoints: checkpoint.Checkpoints
    every_steps: int
    total_steps: int
    facts: Mapping[str, Any]
    seconds: Callable[[], float]

    def due(self, step: int) -> bool:
        return step % self.every_steps == 0 or step == self.total_steps

    def save(self, step: int, state: TrainState) -> None:
        self.checkpoints.save(step, state.as_dict(), {**self.facts, "seconds": self.seconds()})


def train(
    state: TrainState,
    frozen: Any,
    batches: Iterable[Batch],
    train_step: Callable,
    *,
    agreement: Agreement,
    reporter: TrainReporter,
    saves: Saves,
    evaluations: Evaluations,
    trace: Trace,
    hash_every: int,
) -> TrainState:
    """Train on all `batches` and return the last state, which is saved.

    Args:
        train_step: compiled (state, frozen, batch, request) -> (state, values), see fvjax.training.step.
        hash_every: steps between hashes of state and batch among the values, 0: none.
    Raises:
        Preempted: somebody asked to stop; everything is saved. FloatingPointError: a loss is not finite.
    """
    step = int(state.step)
    if evaluations.missing(step):
        evaluations.evaluate(step, state)
    for batch in batches:
        request = agreement.propose(state.step)
        train_step = trace.before(step, train_step, state, frozen, batch, request)
        state, values = train_step(state, frozen, batch, request)
        step += 1
        reporter.show_trace(trace.after(step, state))
        if hash_every and step % hash_every == 0:
            values |= {"state_hash": checkpoint.digest(state.as_dict()), "batch_hash": checkpoint.digest(batch)}
        reporter.add(step - 1, values)
        action = agreement.decide(request)
        if not (action or saves.due(step) or evaluations.due(step)):
            continue
        reporter.flush()
        saves.save(step, state)
        agreement.saved(action)
        if evaluations.due(step):
            evaluations.evaluate(step, state)
        reporter.restart_clock()
    saves.checkpoints.wait()
    return state
