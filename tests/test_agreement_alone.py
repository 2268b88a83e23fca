"""Test when a single process saves and stops, with a simulated clock. tests/test_agreement.py has several processes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from fvjax.parallel import sharding
from fvjax.training import agreement
from fvjax.training.agreement import Action, Agreement
from fvjax.training.preemption import Preempted, Request

STEP = jnp.int32(0)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(agreement, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def alone(every_minutes=0.0) -> Agreement:
    return Agreement(Request(), every_minutes, sharding.one_device())


def stop(request: Request, name="SIGTERM") -> None:
    """Do what the signal handler does while there are unsaved steps."""
    request.asked, request.name = True, name


def after_a_step(agreement: Agreement) -> Action:
    return agreement.decide(agreement.propose(STEP))


def test_actions_rise_in_priority():
    assert [action.name for action in sorted(Action)] == ["GO_ON", "SAVE", "STOP"]
    assert not Action.GO_ON, "the loop goes on where the action is false"
    assert Action.SAVE


def test_nothing_is_asked_of_the_device(clock, monkeypatch):
    """A single process decides alone, so it need not wait for the device to finish the previous step."""
    monkeypatch.setattr(agreement, "highest", lambda *_: pytest.fail("no other process is there"))
    proposed = alone().propose(STEP)
    assert isinstance(proposed, int)
    assert proposed == Action.GO_ON


def test_from_a_proposal_on_the_state_is_unsaved_until_it_is_saved(clock):
    agreed = alone()
    assert not agreed.request.unsaved, "nothing has changed yet: a signal stops at once"
    action = after_a_step(agreed)
    assert agreed.request.unsaved
    agreed.saved(action)
    assert not agreed.request.unsaved
    agreed.propose(STEP)
    assert agreed.request.unsaved


def test_a_stop_before_a_step_is_proposed_and_ends_the_run_after_it(clock):
    agreed = alone()
    stop(agreed.request)
    proposed = agreed.propose(STEP)
    assert proposed == Action.STOP
    assert agreed.decide(proposed) is Action.STOP
    with pytest.raises(Preempted, match=r"^stopped by SIGTERM$"):
        agreed.saved(Action.STOP)
    assert not agreed.request.unsaved


def test_a_stop_during_a_step_ends_the_run_after_that_step(clock):
    agreed = alone()
    proposed = agreed.propose(STEP)
    stop(agreed.request, "SIGUSR1")
    assert proposed == Action.GO_ON
    assert agreed.decide(proposed) is Action.STOP
    with pytest.raises(Preempted, match=r"^stopped by SIGUSR1$"):
        agreed.saved(Action.STOP)


@pytest.mark.parametrize("action", [Action.GO_ON, Action.SAVE])  # a save caused by the schedule of steps, or the clock
def test_a_stop_while_a_checkpoint_is_saved_ends_the_run_then(clock, action):
    agreed = alone(every_minutes=1)
    clock.now += 61 if action else 0
    assert after_a_step(agreed) is action
    stop(agreed.request)
    with pytest.raises(Preempted, match="stopped by SIGTERM"):
        agreed.saved(action)


@pytest.mark.parametrize(("minutes", "late"), [(2.0, 120.0), (0.5, 30.0), (1.0, 60.0)])
def test_a_checkpoint_is_asked_for_after_so_many_minutes(clock, minutes, late):
    agreed = alone(minutes)
    clock.now += late
    assert after_a_step(agreed) is Action.GO_ON
    clock.now += 0.01
    assert after_a_step(agreed) is Action.SAVE
    assert after_a_step(agreed) is Action.SAVE, "until one is saved"
    agreed.saved(Action.SAVE)
    assert after_a_step(agreed) is Action.GO_ON
    clock.now += late + 0.01
    assert after_a_step(agreed) is Action.SAVE, "and counted from then on"


def test_a_checkpoint_for_another_reason_starts_the_minutes_again(clock):
    agreed = alone(2.0)
    clock.now += 119
    agreed.saved(after_a_step(agreed))  # the schedule of steps caused this save
    clock.now += 119
    assert after_a_step(agreed) is Action.GO_ON
    clock.now += 2
    assert after_a_step(agreed) is Action.SAVE


def test_no_minutes_mean_never_by_the_clock(clock):
    agreed = alone(0.0)
    clock.now += 1e9
    assert after_a_step(agreed) is Action.GO_ON


def test_to_stop_comes_before_to_save(clock):
    agreed = alone(1.0)
    clock.now += 61
    stop(agreed.request)
    assert after_a_step(agreed) is Action.STOP


def test_only_process_0_looks_at_the_clock(clock, monkeypatch):
    """Clocks differ, so only process 0 asks for saves by time. Every process may receive a signal to stop."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    agreed = alone(1.0)
    clock.now += 1000
    assert after_a_step(agreed) is Action.GO_ON
    stop(agreed.request)
    assert after_a_step(agreed) is Action.STOP
