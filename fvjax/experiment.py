"""One experiment from its config to results.json: model, data, state, evaluation before, training, evaluation after."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import jax

import fvjax
from fvjax import files, tasks
from fvjax.config import Config
from fvjax.console import say
from fvjax.parallel import sharding
from fvjax.planning import devices, programs
from fvjax.results import publish
from fvjax.tasks.predictor import Predictor
from fvjax.tasks.task import Evaluator
from fvjax.training import feed, first_batch, preemption, profiling
from fvjax.training.agreement import Agreement
from fvjax.training.checkpoint import Checkpoints
from fvjax.training.facts import create_workdir, run_facts
from fvjax.training.loop import Saves, train
from fvjax.training.metrics import Writer
from fvjax.training.model import open_model, pretrained_hash, prompt_facts
from fvjax.training.reporter import TrainReporter, Workload, describe_arrays
from fvjax.training.state import TrainState, abstract_state, make_learner, start_state
from fvjax.training.step import Recipe, compile_step
from fvjax.training.validation import Evaluations, EvaluationSchedule


def run(
    config: Config,
    workdir: Path,
    *,
    train: bool,
    request: preemption.Request | None = None,
    profile: int = 0,
) -> dict[str, Any]:
    """Train (or resume) in `workdir` and evaluate; with train=False only evaluate what was trained there.

    All of several processes call this.

    Args:
        request: lets a signal handler ask the loop to save and stop. Without one the run cannot be interrupted cleanly.
        profile: how many steps to trace, see :mod:`fvjax.training.profiling`.
    Returns:
        the contents of results.json.
    Raises:
        ValueError: user errors, such as a bad key, a missing file, a mismatched checkpoint. Preempted: asked to stop.
    """
    experiment = Experiment(config, workdir, train, request or preemption.Request(), profile)
    state = experiment.load_state()
    experiment.describe(state)
    with experiment.writer.opened(int(state.step)):
        experiment.evaluate_before(state)
        return experiment.report(experiment.train(state))


class Experiment:
    """The parts of a run, built from its config; user errors are raised before anything is written."""

    def __init__(self, config: Config, workdir: Path, trains: bool, request: preemption.Request, profile: int):
        self.started = time.perf_counter()
        self.seconds_before = 0.0  # of earlier starts
        self.code_version = fvjax.code_version()  # now, as the files may change while the run goes on
        self.workdir, self.trains, self.request, self.profile = workdir, trains, request, profile
        self._before_file = workdir / "before_training.json"
        self.mesh = sharding.make_mesh(vars(config.mesh))
        self.task = tasks.get(config.task)(config, workdir)
        planner = programs.Planner(config, self.mesh)
        planner.check_divides(sharding.rows(self.mesh))
        if config.remat == "auto":
            config = config.replace({"remat": planner.choose_remat() if trains and config.trains else "none"})
        self.config = config
        self.model = open_model(config, self.task, self.mesh)
        self._open_data()
        evaluation_hashes = self.task.data_hashes()
        self.facts = self._facts()
        self._start()
        create_workdir(workdir, config.to_json(), {**self.facts, **evaluation_hashes})
        predictor = Predictor(self.model.variables, self.frozen, self.mesh, self.facts["base_hash"])
        seen = set(self.examples.identities) if self.examples else set()
        self.evaluator: Evaluator = self.task.evaluator(self.model.encoder, predictor, seen)
        self.checkpoints = Checkpoints(workdir, config.checkpoint)
        self.request.before_leaving = self.checkpoints.wait
        self.writer = Writer(config.name, workdir, config.log, trains)
        every = config.eval.every_epochs * self.steps_per_epoch
        schedule = EvaluationSchedule(every, self.total_steps, bool(config.data.val))
        self.evaluations = Evaluations(
            self.evaluator, schedule, self.checkpoints, workdir, self.steps_per_epoch, self.seconds, self.writer
        )

    # ---- building the parts

    def _open_data(self) -> None:
        self.store = self.task.open_store()
        self.examples = None
        self.steps_per_epoch = 1
        if self.config.trains:
            if self.store is None:
                raise ValueError("config.data.train is empty and config.epochs is not 0; give a store to train on")
            self.examples = self.task.examples(self.store)
            self.steps_per_epoch = self.examples.plan.steps_per_epoch
            if not self.steps_per_epoch:
                unit = f"{self.examples.plan.examples_per_step} examples"
                raise ValueError(f"config.batch_size={self.config.batch_size}: not one full batch of {unit}")
        self.total_steps = self.config.steps or self.config.epochs * self.steps_per_epoch

    def _start(self) -> None:
        c = self.config
        lengths = {"epochs": c.epochs, "steps_per_epoch": self.steps_per_epoch, "steps": c.steps}
        learner = make_learner(c.optimizer, self.model.groups, **lengths)
        self.recipe = Recipe(self.model, self.task, learner, c.accumulation, c.compat.last_micro_batch)
        self.initial_state = start_state(learner, self.model, self.mesh)
        self.frozen, errors = self.model.read_base()
        self.facts |= {"int8_error": errors} if errors else {}
        self.state_shapes = abstract_state(learner, self.model, self.mesh)

    def _facts(self) -> dict[str, Any]:
        c = self.config
        return run_facts(
            base_hash=pretrained_hash(c.init_from, c.init_parts, c.base_kernels),
            store=self.store,
            plan=self.examples.plan if self.examples else None,
            seed=c.seed,
            validation_hash=self.task.validation_hash(),
            plugin_sources=c.plugin_sources(),
            prompt=prompt_facts(self.model.encoder),
            task=self.task.facts(),
        )

    # ---- what a run does, in order

    def load_state(self) -> TrainState:
        """Return the newest checkpoint's state, or the one before training."""
        newest = self.checkpoints.newest(self.state_shapes.as_dict(), self.facts, say)
        if newest is None:
            if not self.trains and self.config.trains:
                raise ValueError(f"{self.workdir} has no checkpoint yet, so there is nothing trained to evaluate")
            state = self.initial_state
        else:
            step, parts = newest
            state = TrainState.from_dict(parts)
            self.seconds_before = self.checkpoints.meta(step)["seconds"]
            say(f"Restored step {step} of {self.workdir}")
        del self.initial_state  # its arrays are donated to the first step, or not needed
        left = self.total_steps - int(state.step) if self.trains else 0
        profiling.check_steps(self.profile, left)
        return state

    def describe(self, state: TrainState) -> None:
        """Print the parameters and where they live, the data and the steps."""
        c = self.config
        describe_arrays(c.name, self.mesh, self.frozen, state, self.facts.get("int8_error", {}))
        if self.examples:
            length = f"{c.steps} steps" if c.steps else f"{c.epochs} epochs"
            say(f"{self.examples.description}, {length}")
            if c.log.show:
                say(self.task.show(self.store, c.log.show))

    def evaluate_before(self, state: TrainState) -> None:
        """Evaluate before training into before_training.json, unless an earlier start has done it."""
        wanted = self.config.eval.before_training and self.trains and self.total_steps and int(state.step) == 0
        if wanted and not self._before_file.exists():
            entries = self.evaluator.entries(state, "before training")
            self.writer.evaluated(0, self.evaluator.summary(entries))
            if jax.process_index() == 0:
                files.replace_file(self._before_file, json.dumps(entries, indent=1))

    def train(self, state: TrainState) -> TrainState:
        """Train the steps that are left."""
        step = int(state.step)
        if not (self.trains and self.store and self.examples and step < self.total_steps):
            return state
        c = self.config
        compiled = compile_step(self.recipe, self.state_shapes, self.mesh)
        examples, left = self.examples, self.total_steps - step
        batches = feed.batches(
            c.data, examples.store, examples.plan, self.mesh, start_step=step, num_steps=left, **examples.contents
        )
        batches = first_batch.drawn(batches, self.task.pictures, self.writer, step)
        trace = profiling.Trace(self.workdir, self.profile, step)
        reporter = TrainReporter(self.writer, self._workload(), c.log, self.checkpoints.latest, self.elapsed)
        saves = Saves(self.checkpoints, c.checkpoint.every_steps, self.total_steps, self.facts, self.seconds)
        with closing(trace), self.writer.showing(step, self.total_steps):
            state = train(
                state,
                self.frozen,
                batches,
                compiled,
                agreement=Agreement(self.request, c.checkpoint.every_minutes, self.mesh),
                reporter=reporter,
                saves=saves,
                evaluations=self.evaluations,
                trace=trace,
                hash_every=c.log.state_hash_every,
            )
        say(f"Trained to step {int(state.step)}, {self.elapsed():.0f} s since start")
        return state

    def _workload(self) -> Workload:
        c = self.config
        return Workload(
            images_per_step=c.batch_size,
            unit=self.task.unit,
            flops_per_step=programs.Planner(c, self.mesh).model_flops(),
            steps_per_epoch=self.steps_per_epoch,
            epochs=c.epochs,
            total_steps=self.total_steps,
            peak_flops=self.mesh.size * devices.peak_flops(jax.devices()[0].device_kind, c.dtype),
        )

    def report(self, state: TrainState) -> dict[str, Any]:
        """Evaluate the final or the best state, write results.json and plots, print the table."""
        c, step = self.config, int(state.step)
        if self.trains:
            self.evaluations.catch_up(step, state, c.name)
        best = self.checkpoints.best() if c.data.val else None
        if best is not None and best != step:
            state = TrainState.from_dict(self.checkpoints.restore(best, self.state_shapes.as_dict(), self.facts))
            step = best
            say(f"Step {step} had the best validation score: it is what is evaluated")
        self.checkpoints.close()
        validation = self.evaluations.validation_entry(step, state, c.name)
        before = json.loads(self._before_file.read_text()) if self._before_file.exists() else {}
        report = self.evaluator.report(state, before, validation)
        if self.trains:
            self.evaluations.finish(step, report.summary)
        results = {
            **report.results,
            "step": step,
            "config_hash": c.hash(),
            **{key: self.facts[key] for key in ("base_hash", "train_data_hash")},
            "code_version": self.code_version,
            "dtype": c.dtype,
            "seconds": self.seconds(),
        }
        return publish(self.workdir, results, report, c.eval.name)

    def elapsed(self) -> float:
        """Return the seconds since this start."""
        return time.perf_counter() - self.started

    def seconds(self) -> float:
        """Return the seconds that the run has taken over all its starts."""
        return round(self.seconds_before + self.elapsed(), 1)
