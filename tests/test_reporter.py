"""Test what a run reports about each step, with a simulated clock and simulated results."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fvjax.config import LogConfig
from fvjax.training import loop, reporter
from fvjax.training.loop import Saves
from fvjax.training.reporter import TrainReporter, Workload, memory_in_use, rates

WORK = Workload(images_per_step=32, flops_per_step=4e9, steps_per_epoch=3, epochs=2, total_steps=6)


class Clock:
    """A clock that moves only when it is set."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


class Result:
    """A scalar on a device. `arrives`: the time at which it is computed; reading the value earlier waits until then."""

    def __init__(self, value, clock, arrives=0.0):
        self.value, self.clock, self.arrives = value, clock, arrives

    def is_ready(self):
        return self.clock.now >= self.arrives

    def __float__(self):
        self.clock.now = max(self.clock.now, self.arrives)
        return float(self.value)


class FakeWriter:
    def __init__(self):
        self.written, self.shown, self.said = [], [], []

    def write(self, step, values):
        self.written.append((step, values))

    def show(self, step, text):
        self.shown.append((step, text))

    def say(self, text):
        self.said.append(text)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(reporter, "time", clock)
    monkeypatch.setattr(reporter, "memory_in_use", lambda: 0)
    monkeypatch.setattr(reporter, "console", SimpleNamespace(is_terminal=False))
    return clock


@pytest.fixture
def run(clock):
    """Return a function run(**changes) that makes a reporter whose newest checkpoint is step 2."""

    def make(every_steps=1, line_minutes=0.0, **changes):
        work = Workload(**{**vars(WORK), **changes})
        log = LogConfig(every_steps=every_steps, line_minutes=line_minutes)
        return TrainReporter(FakeWriter(), work, log, lambda: 2, lambda: clock.now - 40)  # type: ignore[arg-type]

    return make


def values(clock, loss=0.5, norm=2.0, arrives=0.0, **more):
    loss, norm, rate = (Result(x, clock, arrives) for x in (loss, norm, 0.1))
    return {"loss": loss, "lr": rate, "grad_norm": norm, "request": 0, **more}


def rates_of(reported):
    return [line["images_per_s"] for _, line in reported.writer.written]


def train(clock, reported, losses, save) -> None:
    """Run the training loop on given losses; a step takes a second, and every second one is given to `save`."""
    checkpoints = SimpleNamespace(save=lambda step, state, facts: save(step), wait=lambda: None)
    saves = Saves(checkpoints, every_steps=2, total_steps=6, facts={}, seconds=lambda: 1.0)  # type: ignore[arg-type]
    parts: dict[str, Any] = {
        "agreement": SimpleNamespace(propose=lambda step: 0, decide=lambda request: 0, saved=lambda action: None),
        "evaluations": SimpleNamespace(missing=lambda step: False, due=lambda step: False),
        "trace": SimpleNamespace(before=lambda number, step, *args: step, after=lambda number, state: None),
    }
    state: Any = SimpleNamespace(step=0, as_dict=dict)

    def train_step(state, frozen, loss, request):
        clock.now += 1
        return state, values(clock, loss)

    loop.train(state, None, losses, train_step, reporter=reported, saves=saves, hash_every=0, **parts)


# ---- when a step is reported


def test_a_step_is_reported_when_the_next_one_has_been_started(run, clock):
    reported = run()
    for step, loss in enumerate((3.0, 2.0, 1.0)):
        clock.now += 1
        reported.add(step, values(clock, loss))
        assert [number for number, _ in reported.writer.written] == list(range(step))
    reported.flush()
    assert [(number, line["loss"]) for number, line in reported.writer.written] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert [done for done, _ in reported.writer.shown] == [1, 2, 3], "the bar counts the steps that are done"
    reported.flush()
    assert len(reported.writer.written) == 3, "nothing is reported twice"


def test_a_line_has_numbers_and_hashes_and_nothing_else(run, clock):
    reported = run()
    clock.now += 2
    dead = {"fc/a": np.zeros((), bool), "fc/b": np.zeros((), bool)}
    reported.add(4, values(clock, 0.25, 3.0, state_hash="0123456789abcdef", dead=dead))
    reported.flush()
    ((step, line),) = reported.writer.written
    assert step == 4
    assert line == {"loss": 0.25, "lr": 0.1, "grad_norm": 3.0, "images_per_s": 16.0, "state_hash": "0123456789abcdef"}
    assert all(isinstance(value, float) for key, value in line.items() if key != "state_hash")


def test_values_are_written_every_few_steps_and_always_shown(run, clock):
    reported = run(every_steps=3)
    for step in range(1, 8):
        clock.now += 1
        reported.add(step, values(clock))
    reported.flush()
    assert [step for step, _ in reported.writer.written] == [3, 6]
    assert [done for done, _ in reported.writer.shown] == [2, 3, 4, 5, 6, 7, 8]
    assert rates_of(reported) == [32.0, 32.0], "of their own step, not of the three"


# ---- what stops a run


@pytest.mark.parametrize(("loss", "norm"), [(np.nan, 1.0), (np.inf, 1.0), (-np.inf, 1.0), (1.0, np.nan), (1.0, np.inf)])
def test_a_result_that_is_not_finite_ends_the_run_and_is_not_written(run, clock, loss, norm):
    reported = run()
    clock.now += 1
    reported.add(7, values(clock))
    reported.add(8, values(clock, loss, norm))
    text = f"step 8: the loss is {float(loss)}, its gradient's norm {float(norm)} .learning rate 0.1.; the last"
    with pytest.raises(FloatingPointError, match=f"{text} checkpoint is step 2$"):
        reported.flush()
    assert [step for step, _ in reported.writer.written] == [7]


def test_a_state_is_saved_only_after_its_loss_was_found_finite(run, clock):
    """Otherwise the broken state would be the newest checkpoint, and the run would resume from it."""
    saved = []
    losses = [3.0, 2.0, 1.0, np.nan, 1.0, 1.0]  # the fourth belongs to the second checkpoint
    with pytest.raises(FloatingPointError, match="step 3: the loss is nan"):
        train(clock, run(), losses, save=saved.append)
    assert saved == [2]


def dead(a, b):
    return {"blocks": {"fc": {"a": np.array(a), "b": np.array(b)}}}


def test_adapters_without_a_gradient_end_the_run_after_two_steps(run, clock):
    """At step 1 no A has a gradient, because B is 0, so only gradients of B are checked; at step 2, those of A."""
    for first, second, found in (
        (
            dead([True, True], [False, True]),
            dead([False, False], [False, False]),
            "b layers [1] (first step)",
        ),
        (
            dead([True, True], [False, False]),
            dead([True, False], [False, False]),
            "a layers [0] (after the first update)",
        ),
    ):
        reported = run()
        clock.now += 1
        reported.add(0, values(clock, dead=first))
        reported.flush()  # no error yet, because the check needs two steps
        reported.add(1, values(clock, dead=second))
        with pytest.raises(ValueError, match="dead adapters") as error:
            reported.flush()
        assert found in str(error.value)


def report_steps(reported, clock, steps) -> None:
    """Report steps from 0 on, each a pair of its rate and its adapters without a gradient."""
    for number, (rate, adapters) in enumerate(steps):
        clock.now += 1
        reported.add(number, values(clock, dead=adapters, lr=Result(rate, clock)))
        reported.flush()


NO_A, NO_B, ALIVE = dead([True], [False]), dead([False], [True]), dead([False], [False])


@pytest.mark.parametrize("warm", [0, 1, 3])
def test_gradients_of_a_are_checked_once_after_the_first_update(run, clock, warm):
    """A warm-up begins with the rate 0, perhaps for some steps; until B has moved no A has a gradient."""
    start = [(0.1 * (step >= warm), NO_A) for step in range(warm + 1)]
    reported = run()
    report_steps(reported, clock, [*start, (0.1, ALIVE), (0.1, NO_A)])
    assert len(reported.writer.written) == warm + 3
    with pytest.raises(ValueError, match=r"dead adapters, .*: blocks/fc/a layers \[0\] \(after the first update\)"):
        report_steps(run(), clock, [*start, (0.1, NO_A)])


@pytest.mark.parametrize("warm", [0, 1, 3])
def test_gradients_of_b_are_those_of_the_first_step(run, clock, warm):
    later = [(0.1 * (step >= warm), ALIVE) for step in range(1, warm + 2)]
    with pytest.raises(ValueError, match=r"dead adapters, .*: blocks/fc/b layers \[0\] \(first step\)"):
        report_steps(run(), clock, [(0.1 * (warm == 0), NO_B), *later])
    reported = run()
    report_steps(reported, clock, [(0.1 * (warm == 0), NO_A), *later, (0.1, NO_B)])
    assert len(reported.writer.written) == warm + 3


def test_adapters_that_learn_and_those_of_a_resumed_run_pass(run, clock):
    alive, none = dead([False], [False]), dead([True], [True])
    for steps in ([(0, dead([True], [False])), (1, alive), (2, none)], [(1, none), (2, none)], [(2, none), (3, none)]):
        reported = run()
        for step, one in steps:
            clock.now += 1
            reported.add(step, values(clock, dead=one))
        reported.flush()
        assert len(reported.writer.written) == len(steps)


# ---- images per second


def test_the_rate_where_a_step_returns_when_it_is_done(run, clock):
    """On a CPU, steps take 1, 2 and 4 s here; the time between the last step and its report does not count."""
    reported = run()
    for step, seconds in enumerate((1, 2, 4)):
        clock.now += seconds
        reported.add(step, values(clock, arrives=clock.now))
    clock.now += 50
    reported.flush()
    assert rates_of(reported) == [32.0, 16.0, 8.0]


def test_the_rate_where_results_come_later(run, clock):
    """On a GPU, all steps are started at once here, and their results arrive after 2, 6 and 14 s."""
    reported = run()
    for step, arrives in enumerate((102, 106, 114)):
        reported.add(step, values(clock, arrives=arrives))
    reported.flush()
    assert rates_of(reported) == [32 / 2, 32 / 4, 32 / 8]


def test_the_time_of_a_step_that_is_waited_for_does_not_end_where_it_was_started(run, clock):
    """The first step after a checkpoint starts after 1 s, ends after 5 s, and is reported at once for the next save."""
    reported = run()
    reported.restart_clock()
    clock.now = 101
    reported.add(0, values(clock, arrives=105))
    reported.flush()
    assert rates_of(reported) == [32 / 5]


def test_a_result_that_came_before_the_last_report_counts_from_it(run, clock):
    """A step was started before the previous one was reported, so its start does not tell how long it took."""
    reported = run()
    reported.add(0, values(clock, arrives=104))
    reported.add(1, values(clock, arrives=108))  # waits for step 0 until 104
    clock.now = 112
    reported.flush()
    assert rates_of(reported) == [32 / 4, 32 / 8]


def test_time_for_saving_and_evaluating_is_not_the_next_steps(run, clock):
    reported = run()
    clock.now += 1
    reported.add(0, values(clock))
    reported.flush()
    clock.now += 60
    reported.restart_clock()
    clock.now += 4
    reported.add(1, values(clock))
    reported.flush()
    assert rates_of(reported) == [32.0, 8.0]


def test_the_loop_leaves_the_time_of_saves_out_of_the_rates(run, clock):
    def save(step):
        clock.now += 60

    reported = run()
    train(clock, reported, [1.0] * 6, save)
    assert rates_of(reported) == [32.0] * 6


# ---- lines for people


def test_a_line_at_the_end_of_each_epoch_says_how_long_it_took_and_takes(run, clock):
    reported = run()
    for step in range(6):
        clock.now += 2
        reported.add(step, values(clock, loss=step / 8))
    clock.now += 3
    reported.flush()
    assert reported.writer.said == [
        # reported at 108, when step 3 returned: 3 steps of 2 s, so 3 more; the command started at 40
        "step 3/6 epoch 1/2 loss 0.2500 16 images/s 2 GFLOP/s, 68 s since start, about 6 s left",
        "step 6/6 epoch 2/2 loss 0.6250 16 images/s 2 GFLOP/s, 75 s since start, about 0 s left",
    ]
    assert reported.writer.shown[3] == (4, "epoch 2/2 loss 0.3750 16 images/s 2 GFLOP/s")


def test_the_time_left_is_by_the_mean_of_this_starts_steps_and_what_came_between(run, clock):
    """Steps 4 and 5 of 12 take 1 s each, and an evaluation after step 4 takes 8 s: 10 s for two steps."""
    reported = run(total_steps=12)
    clock.now += 1
    reported.add(4, values(clock))
    reported.flush()
    clock.now += 8
    reported.restart_clock()
    clock.now += 1
    reported.add(5, values(clock))
    reported.flush()
    (line,) = reported.writer.said
    assert line.startswith("step 6/12 epoch 2/2 loss 0.5000 32 images/s")
    assert line.endswith(", about 30 s left")


def test_a_run_by_steps_has_no_number_of_epochs(run, clock):
    reported = run(epochs=0, total_steps=7)
    clock.now += 1
    reported.add(6, values(clock))
    reported.flush()
    assert reported.writer.shown == [(7, "epoch 3 loss 0.5000 32 images/s 4 GFLOP/s")]
    assert reported.writer.said == [], "step 7 does not end an epoch of 3"


def test_a_terminal_shows_a_bar_instead_of_lines(run, clock, monkeypatch):
    monkeypatch.setattr(reporter, "console", SimpleNamespace(is_terminal=True))
    reported = run()
    clock.now += 1
    reported.add(2, values(clock))
    reported.flush()
    assert len(reported.writer.shown) == 1
    assert reported.writer.said == []


def test_a_trace_is_printed_once_it_is_there(run):
    reported = run()
    reported.show_trace(None)
    reported.show_trace("table")
    assert reported.writer.said == ["table"]


def test_rates_name_the_share_of_the_peak_and_memory_where_they_are_known(monkeypatch):
    memory = {"bytes": 0}
    monkeypatch.setattr(reporter, "memory_in_use", lambda: memory["bytes"])
    assert rates(WORK, 0.5) == "64 images/s 8 GFLOP/s"
    fast = Workload(**{**vars(WORK), "flops_per_step": 4e12, "peak_flops": 16e12})
    assert rates(fast, 0.5) == "64 images/s 8000 GFLOP/s MFU 50.0%"
    assert rates(fast, 4.0) == "8 images/s 1000 GFLOP/s MFU 6.2%"
    memory["bytes"] = 3 * 2**29
    assert rates(fast, 0.5) == "64 images/s 8000 GFLOP/s MFU 50.0% 1.5 GiB"


def test_memory_in_use_is_the_fullest_devices(monkeypatch):
    def devices(*stats):
        monkeypatch.setattr(
            reporter.jax, "local_devices", lambda: [SimpleNamespace(memory_stats=lambda s=s: s) for s in stats]
        )

    devices({"peak_bytes_in_use": 7, "bytes_in_use": 90}, {"peak_bytes_in_use": 11}, {"bytes_in_use": 99})
    assert memory_in_use() == 11
    devices(None, {})
    assert memory_in_use() == 0, "a CPU does not say"


# ---- lines now and then


def report_every(reported, clock, seconds: float, steps: int) -> list[str]:
    for step in range(steps):
        clock.now += seconds
        reported.add(step, values(clock))
        reported.flush()
    return [line.split(" epoch")[0] for line in reported.writer.said]


def test_without_a_terminal_there_is_a_line_every_so_many_minutes(run, clock):
    """Steps of 25 s in an epoch of 9: lines after 75 s, and one at the end of the epoch."""
    long = {"total_steps": 18, "steps_per_epoch": 9}
    assert report_every(run(line_minutes=1.0, **long), clock, 25, 12) == [f"step {n}/18" for n in (3, 6, 9, 12)]
    assert report_every(run(line_minutes=2.0, **long), clock, 25, 12) == ["step 5/18", "step 9/18"]
    assert report_every(run(line_minutes=0.0, **long), clock, 25, 12) == ["step 9/18"]
    assert report_every(run(line_minutes=1.0, **long), clock, 1, 8) == []


def test_a_line_in_between_says_loss_rate_and_the_time_left(run, clock):
    reported = run(line_minutes=1.0, total_steps=100_000, steps_per_epoch=50_000)
    clock.now += 64
    reported.add(0, values(clock))
    reported.flush()
    (line,) = reported.writer.said
    assert line == (
        "step 1/100000 epoch 1/2 loss 0.5000 0 images/s 0 GFLOP/s, 124 s since start, about 74 days 2 h left"
    )


def test_a_terminal_gets_no_lines_in_between(run, clock, monkeypatch):
    monkeypatch.setattr(reporter, "console", SimpleNamespace(is_terminal=True))
    assert report_every(run(line_minutes=1.0, total_steps=18), clock, 100, 3) == []
