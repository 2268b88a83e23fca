"""Test requests to stop: what is saved and when, and that no step is repeated or left out afterwards."""

import json
import os
import signal

import pytest

from fvjax import experiment
from fvjax.config import typed
from fvjax.training import preemption
from fvjax.training.checkpoint import Checkpoints
from fvjax.training.validation import Evaluations
from tests.test_train import tiny_vit


def config():
    c = tiny_vit()
    c.data.synthetic.update({"identities": 24, "images": 4, "test_identities": 20, "test_images": 3, "test_pairs": 40})
    c.batch_size, c.epochs, c.eval.batch_size, c.eval.bootstrap = 16, 3, 16, 0  # 6 steps an epoch
    c.eval.every_epochs, c.eval.before_training, c.log.tensorboard, c.log.state_hash_every = 1, False, False, 1
    return c


class AskedAtStep(preemption.Request):
    """A request to stop that arrives during a step."""

    def __init__(self, workdir, step: int):
        self._file, self._step = workdir / "metrics.jsonl", step
        super().__init__()

    @property
    def asked(self):
        return self._file.exists() and len(self._file.read_text().splitlines()) >= self._step

    @asked.setter
    def asked(self, value):
        pass


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    experiment.run(typed(config()), workdir / "run", train=True)
    return workdir / "run"


def lines(workdir, name: str) -> list[dict]:
    kept = [json.loads(line) for line in (workdir / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_s")} for line in kept]


@pytest.mark.parametrize("step", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_it_saves_after_the_step_under_way_and_goes_on_to_the_same_end(tmp_path, undisturbed, step):
    request = AskedAtStep(tmp_path / "run", step)
    with pytest.raises(preemption.Preempted):
        experiment.run(typed(config()), tmp_path / "run", train=True, request=request)
    request.before_leaving()
    checkpoints = Checkpoints(tmp_path / "run", config().checkpoint)
    latest = checkpoints.latest()
    assert latest is not None
    assert step <= latest <= step + 2  # metrics.jsonl is one step behind the device
    assert len(lines(tmp_path / "run", "metrics.jsonl")) == latest
    checkpoints.close()
    experiment.run(typed(config()), tmp_path / "run", train=True)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert lines(tmp_path / "run", name) == lines(undisturbed, name)


def test_an_evaluation_that_was_cut_short_is_made_up_for(tmp_path, undisturbed, monkeypatch):
    def stopped(*_):
        raise preemption.Preempted

    with monkeypatch.context() as patch:
        patch.setattr(Evaluations, "append", stopped)
        with pytest.raises(preemption.Preempted):
            experiment.run(typed(config()), tmp_path / "run", train=True)
    assert not (tmp_path / "run" / "evaluations.jsonl").exists()
    experiment.run(typed(config()), tmp_path / "run", train=True)
    assert lines(tmp_path / "run", "evaluations.jsonl") == lines(undisturbed, "evaluations.jsonl")


def test_a_signal_asks_and_a_second_one_ends():
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    try:
        request = preemption.Request()
        request.listen()
        request.unsaved = True
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.asked
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
        with pytest.raises(preemption.Preempted, match="stopped by SIGUSR1"):
            request.saved(stop=False)
        request = preemption.Request()
        request.listen()
        with pytest.raises(preemption.Preempted, match="stopped by SIGTERM"):  # all is saved: stop at once
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
