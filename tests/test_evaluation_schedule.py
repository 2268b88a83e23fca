"""Test when a run is evaluated and saved and what it records, with stand-ins for the evaluator and checkpoints."""

import json

import jax
import pytest

from fvjax.config import LogConfig
from fvjax.tasks.task import Evaluator, Report, Validation
from fvjax.training import validation
from fvjax.training.loop import Saves
from fvjax.training.metrics import Writer
from fvjax.training.validation import Evaluations, EvaluationSchedule


class Judge(Evaluator):
    """An evaluator for states that are numbers: the accuracy is the state itself."""

    def __init__(self, calls):
        self.calls = calls

    def entries(self, state, title):
        raise AssertionError("only before training")

    def during(self, state, title):
        self.calls.append(("during", state, title))
        return {"lfw": {"accuracy": state - 0.1}}

    def validate(self, state, title):
        self.calls.append(("validate", state, title))
        return Validation(state, {"accuracy": state, "pairs": 20})

    def summary(self, entries):
        return {name: {"accuracy": entry["accuracy"]} for name, entry in entries.items()}

    def report(self, state, before, validation) -> Report:
        raise AssertionError("not while a run trains")


class Kept:
    """A stand-in for checkpoints that only records their accuracies."""

    def __init__(self, calls):
        self.calls, self.accuracies = calls, {}

    def validated(self, step, accuracy):
        self.calls.append(("validated", step, accuracy))
        self.accuracies[step] = accuracy


class Run:
    """A run of 8 steps with 4 steps per epoch, which is evaluated after every `every_steps`."""

    def __init__(self, workdir, validates=True, every_steps=4):
        self.calls, self.workdir = [], workdir
        self.kept = Kept(self.calls)
        schedule = EvaluationSchedule(every_steps, 8, validates)
        writer = Writer("run", workdir, LogConfig(), active=False)
        self.evaluations = Evaluations(Judge(self.calls), schedule, self.kept, workdir, 4, lambda: 12.34, writer)  # type: ignore

    def lines(self):
        return [json.loads(line) for line in (self.workdir / "evaluations.jsonl").read_text().splitlines()]


# ---- the schedule


@pytest.mark.parametrize(
    ("every_steps", "total_steps", "validates", "due"),
    [
        (3, 9, True, [3, 6, 9]),
        (3, 9, False, [3, 6]),  # the final report evaluates the last step
        (3, 8, True, [3, 6, 8]),  # the last step is validated even if the schedule would leave it out
        (3, 8, False, [3, 6]),
        (1, 3, True, [1, 2, 3]),
        (9, 8, True, [8]),
        (9, 8, False, []),
        (0, 8, True, []),  # the report evaluates at the end, and nothing before
        (0, 8, False, []),
    ],
)
def test_steps_that_are_evaluated(every_steps, total_steps, validates, due):
    schedule = EvaluationSchedule(every_steps, total_steps, validates)
    assert [step for step in range(1, total_steps + 1) if schedule.due(step)] == due


def test_an_evaluation_is_missing_if_its_step_is_saved_but_has_no_line(tmp_path):
    (tmp_path / "evaluations.jsonl").write_text('{"step": 4}\n{"step": 8, "ep')  # the second was cut short by a kill
    run = Run(tmp_path)
    run.kept.accuracies = {4: 0.5}
    evaluations = run.evaluations
    assert [step for step in range(9) if evaluations.missing(step)] == [8], "4 is done, and 0 is before training"
    run.kept.accuracies = {}
    assert evaluations.missing(4), "a kill came before its accuracy was noted with the checkpoints"
    assert [step for step in range(9) if Run(tmp_path, validates=False).evaluations.missing(step)] == []
    assert not Run(tmp_path, every_steps=0).evaluations.missing(8)


# ---- evaluating


def test_a_step_is_validated_and_run_through_the_benchmarks(tmp_path, capsys):
    run = Run(tmp_path)
    run.evaluations.evaluate(4, 0.75)  # type: ignore[arg-type]
    assert run.calls == [("validate", 0.75, "step 4"), ("during", 0.75, "step 4"), ("validated", 4, 0.75)]
    figures = {"validation": {"accuracy": 0.75}, "lfw": {"accuracy": 0.65}}
    assert run.lines() == [{"step": 4, "epoch": 1.0, "seconds": 12.3, **figures}]
    assert capsys.readouterr().out == "evaluation at step 4: validation accuracy 0.75, lfw accuracy 0.65\n"


def test_the_last_step_is_only_validated(tmp_path):
    """The final report runs its benchmarks anyway."""
    run = Run(tmp_path)
    run.evaluations.evaluate(8, 0.5)  # type: ignore[arg-type]
    assert run.calls == [("validate", 0.5, "step 8"), ("validated", 8, 0.5)]
    assert run.lines() == [{"step": 8, "epoch": 2.0, "seconds": 12.3, "validation": {"accuracy": 0.5}}]


def test_without_validation_data_no_checkpoint_is_judged(tmp_path):
    run = Run(tmp_path, validates=False)
    run.evaluations.evaluate(4, 0.5)  # type: ignore[arg-type]
    assert run.calls == [("during", 0.5, "step 4")]
    assert run.lines() == [{"step": 4, "epoch": 1.0, "seconds": 12.3, "lfw": {"accuracy": 0.4}}]


def test_the_line_is_written_before_the_checkpoint_is_judged(tmp_path, monkeypatch):
    """Judging deletes the checkpoints that are no longer among the best."""
    run, lines = Run(tmp_path), []
    monkeypatch.setattr(run.kept, "validated", lambda step, accuracy: lines.extend(run.lines()))
    run.evaluations.evaluate(4, 0.5)  # type: ignore[arg-type]
    assert [line["step"] for line in lines] == [4]


@pytest.mark.parametrize("judged", [True, False])
def test_the_last_step_is_judged_after_a_kill_between_its_checkpoint_and_that(tmp_path, judged):
    run = Run(tmp_path)
    run.kept.accuracies = {8: 0.5} if judged else {4: 0.5}
    run.evaluations.catch_up(8, 0.75, "name")  # type: ignore[arg-type]
    assert run.calls == ([] if judged else [("validate", 0.75, "name"), ("validated", 8, 0.75)])
    entry = run.evaluations.validation_entry(8, 0.75, "again")  # type: ignore[arg-type]
    assert entry == {"accuracy": 0.75, "pairs": 20}
    assert len(run.calls) == (1 if judged else 2), "measured once in a start: it goes into results.json too"


def test_nothing_is_caught_up_before_training_or_without_validation_data(tmp_path):
    run = Run(tmp_path)
    run.evaluations.catch_up(0, 0.5, "name")  # type: ignore[arg-type]
    other = Run(tmp_path, validates=False)
    other.evaluations.catch_up(8, 0.5, "name")  # type: ignore[arg-type]
    assert run.calls == other.calls == []


def test_the_entry_of_results_is_the_states_own_and_measured_once(tmp_path):
    run = Run(tmp_path)
    run.evaluations.evaluate(4, 0.75)  # type: ignore[arg-type]
    run.calls.clear()
    assert run.evaluations.validation_entry(4, 0.0, "name") == {"accuracy": 0.75, "pairs": 20}  # type: ignore[arg-type]
    assert run.calls == [], "the entry of this start"
    for _ in range(2):
        found = run.evaluations.validation_entry(8, 0.25, "name")  # type: ignore[arg-type]
        assert found == {"accuracy": 0.25, "pairs": 20}
    assert run.calls == [("validate", 0.25, "name")]
    assert Run(tmp_path, validates=False).evaluations.validation_entry(8, 0.5, "name") is None  # type: ignore[arg-type]


# ---- evaluations.jsonl


def test_a_repeated_step_replaces_its_line_and_the_later_ones(tmp_path):
    """A run that resumes from an earlier checkpoint does the steps after it again."""
    run = Run(tmp_path)
    for step in (2, 4, 6):
        run.evaluations.append(step, {"lfw": {"accuracy": step / 10}})
    run.evaluations.append(4, {"lfw": {"accuracy": 0.9}})
    assert [(line["step"], line["lfw"]["accuracy"]) for line in run.lines()] == [(2, 0.2), (4, 0.9)]
    assert [line["epoch"] for line in run.lines()] == [0.5, 1.0]


def test_only_process_0_writes_and_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run = Run(tmp_path)
    run.evaluations.evaluate(4, 0.5)  # type: ignore[arg-type]
    assert not (tmp_path / "evaluations.jsonl").exists()
    assert capsys.readouterr().out == ""
    assert run.calls[-1] == ("validated", 4, 0.5), "all processes choose the same best checkpoint"


def test_a_full_disk_is_reported_with_the_file(tmp_path, monkeypatch):
    run = Run(tmp_path)

    def full(path, step):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(validation.files, "keep_before", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*evaluations\.jsonl'"):
        run.evaluations.append(4, {})


# ---- saving


@pytest.mark.parametrize(
    ("every_steps", "total_steps", "due"), [(3, 9, [3, 6, 9]), (3, 8, [3, 6, 8]), (1, 2, [1, 2]), (100, 8, [8])]
)
def test_steps_that_are_saved(every_steps, total_steps, due):
    saves = Saves(None, every_steps, total_steps, {}, lambda: 0.0)  # type: ignore[arg-type]
    assert [step for step in range(1, total_steps + 1) if saves.due(step)] == due


def test_a_checkpoint_has_the_state_the_runs_facts_and_its_time():
    class Saved:
        def save(self, *args):
            self.args = args

    class State:
        def as_dict(self):
            return {"step": 7}

    saved, facts = Saved(), {"base_hash": "a", "plan": [0, 4]}
    Saves(saved, 3, 9, facts, lambda: 5.5).save(7, State())  # type: ignore[arg-type]
    assert saved.args == (7, {"step": 7}, {"base_hash": "a", "plan": [0, 4], "seconds": 5.5})
    assert facts == {"base_hash": "a", "plan": [0, 4]}, "they are compared when the run resumes, the time is not"
