"""Test trackers of a run's metrics: wandb and mlflow (stand-ins that record their calls) and a user's own."""

import builtins
import json
import sys
from types import ModuleType, SimpleNamespace

import jax
import numpy as np
import pytest

from fvjax.config import LogConfig
from fvjax.training import metrics
from fvjax.training.metrics import Writer, open_tracker
from fvjax.training.preemption import Preempted

OPENED: list["Own"] = []  # trackers of this file that were opened, in order


class Own:
    """A user's own tracker. `error`: what its `close` raises."""

    error: BaseException | None = None

    def __init__(self, name, workdir, step):
        self.opened, self.written, self.closed = (name, workdir, step), [], False
        OPENED.append(self)

    def write(self, step, values):
        self.written.append((step, values))

    def close(self):
        self.closed = True
        if self.error:
            raise type(self.error)(*self.error.args)


class NoDisk(Own):
    error = OSError(28, "No space left on device")


class NoNetwork(Own):
    error = RuntimeError("no network")


@pytest.fixture(autouse=True)
def _none_opened_yet():
    OPENED.clear()


@pytest.fixture
def wandb(monkeypatch):
    """Put a stand-in module in wandb's place, and return the list of its calls."""
    calls: list[tuple] = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append(("log", values, step)), finish=lambda: calls.append(("finish",))
    )
    module = ModuleType("wandb")
    vars(module)["init"] = lambda **options: calls.append(("init", options)) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


@pytest.fixture
def mlflow(monkeypatch):
    calls: list[tuple] = []
    module = ModuleType("mlflow")
    for name in ("set_tracking_uri", "set_experiment", "start_run", "log_metrics", "end_run"):
        vars(module)[name] = lambda *args, name=name, **options: calls.append((name, *args, options))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return calls


def writer(workdir, *trackers, step=0) -> Writer:
    out = Writer("run's name", workdir, LogConfig(tensorboard=False, trackers=trackers))
    out.open(step)
    return out


def own(*classes) -> tuple[str, ...]:
    return tuple(f"{__name__}:{each.__name__}" for each in classes)


# ---- each tracker


def test_wandb_is_told_the_name_the_folder_and_the_metrics(wandb, tmp_path):
    tracker = open_tracker("wandb", "vit", tmp_path, 0)
    tracker.write(3, {"loss": 0.5, "lr": 0.1})
    tracker.close()
    (_, options), *rest = wandb
    assert options.pop("id") == (tmp_path / "tracker_id").read_text()
    assert options == {"project": "fvjax", "name": "vit", "resume": "allow", "dir": tmp_path}
    assert rest == [("log", {"loss": 0.5, "lr": 0.1}, 3), ("finish",)]


def test_mlflow_is_told_the_name_and_the_metrics_and_writes_into_the_workdir(mlflow, tmp_path, monkeypatch):
    tracker = open_tracker("mlflow", "vit", tmp_path, 0)
    tracker.write(3, {"loss": 0.5})
    tracker.close()
    tags = {"fvjax.run": (tmp_path / "tracker_id").read_text()}
    assert mlflow == [
        ("set_tracking_uri", f"file://{tmp_path}/mlruns", {}),
        ("set_experiment", "fvjax", {}),
        ("start_run", {"run_name": "vit", "tags": tags}),
        ("log_metrics", {"loss": 0.5}, {"step": 3}),
        ("end_run", {}),
    ]
    mlflow.clear()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere")
    open_tracker("mlflow", "vit", tmp_path, 0)
    assert [name for name, *_ in mlflow] == ["set_experiment", "start_run"], "a server that is named is used"


def test_a_trackers_run_is_that_of_the_work_directory_also_after_a_resume(wandb, mlflow, tmp_path):
    def run_ids(folder):
        folder.mkdir(exist_ok=True)
        wandb.clear(), mlflow.clear()
        for name in ("wandb", "mlflow"):
            open_tracker(name, "vit", folder, 0)
        tags = next(options["tags"] for name, *_, options in mlflow if name == "start_run")
        return wandb[0][1]["id"], tags["fvjax.run"]

    first, again, other = (run_ids(tmp_path / name) for name in ("a", "a", "b"))
    assert first == again
    assert first[0] == first[1]
    assert len(first[0]) == 16
    assert first != other


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"^config\.log\.trackers: {name} needs a package; pip install {name}$"):
        open_tracker(name, "vit", tmp_path, 0)
    assert not (tmp_path / "tracker_id").exists()


def test_a_package_that_a_tracker_itself_lacks_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args):
        if name == "wandb":
            raise ModuleNotFoundError("No module named 'protobuf'", name="protobuf")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="wandb needs a package; pip install protobuf"):
        open_tracker("wandb", "vit", tmp_path, 0)


@pytest.mark.parametrize("name", ["tensorboard", "", "WandB", "a.b"])
def test_an_unknown_tracker_is_refused(name, tmp_path):
    message = rf"^config\.log\.trackers: '{name}' is unknown; choose wandb or mlflow, or module:name$"
    with pytest.raises(ValueError, match=message):
        open_tracker(name, "vit", tmp_path, 0)


def test_a_tracker_of_the_users_own_is_made_with_name_folder_and_first_step(tmp_path):
    tracker = open_tracker(*own(Own), "vit", tmp_path, 7)
    assert [tracker] == OPENED
    assert tracker.opened == ("vit", tmp_path, 7)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"^nowhere:Tracker: there is no module 'nowhere'"):
        open_tracker("nowhere:Tracker", "vit", tmp_path, 0)


# ---- the writer


def test_trackers_get_the_numbers_of_a_line(tmp_path):
    out = writer(tmp_path, *own(Own, Own), step=3)
    out.write(3, {"loss": 0.5, "state_hash": "0123", "lr": 0.0})
    out.write(4, {"loss": float("inf")})
    out.close()
    assert [tracker.opened for tracker in OPENED] == [("run's name", tmp_path, 3)] * 2
    for tracker in OPENED:
        assert tracker.written == [(3, {"loss": 0.5, "lr": 0.0}), (4, {"loss": float("inf")})]
        assert tracker.closed
    first, _ = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first == {"step": 3, "loss": 0.5, "state_hash": "0123", "lr": 0.0}


def test_a_resume_cuts_off_the_lines_of_steps_that_are_done_again(tmp_path):
    for start in (0, 2):
        out = writer(tmp_path, *own(Own), step=start)
        for step in range(start, 4):
            out.write(step, {"loss": float(10 * start + step)})
        out.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(0, 0.0), (1, 1.0), (2, 22.0), (3, 23.0)]
    assert [tracker.opened[2] for tracker in OPENED] == [0, 2]


@pytest.mark.parametrize("failing", [NoDisk, NoNetwork])
def test_all_trackers_are_closed_even_if_one_fails(tmp_path, failing):
    out = writer(tmp_path, *own(Own, failing, Own, NoNetwork))
    with pytest.raises(type(failing.error), match=str(failing.error.args[-1])):
        out.close()
    assert [tracker.closed for tracker in OPENED] == [True] * 4, "the first error is the one that is raised"
    assert out.file.closed


@pytest.mark.parametrize("error", [FloatingPointError("step 3"), Preempted("stopped by SIGTERM"), OSError("disk")])
def test_what_ended_the_run_is_reported_and_not_what_failed_while_closing(tmp_path, error):
    out = writer(tmp_path, *own(NoDisk, NoNetwork, Own))

    def run():
        try:
            raise error
        finally:
            out.close()

    with pytest.raises(type(error)) as raised:
        run()
    assert raised.value is error
    assert [tracker.closed for tracker in OPENED] == [True, True, True]


def test_trackers_are_closed_even_if_the_file_cannot_be(tmp_path):
    out = writer(tmp_path, *own(Own))
    out.file.close()

    def full():
        raise OSError(28, "No space left on device")

    out.file = SimpleNamespace(name=str(tmp_path / "metrics.jsonl"), close=full)  # type: ignore[assignment]
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
        out.close()
    assert OPENED[0].closed


def test_other_processes_open_no_tracker_and_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    out = writer(tmp_path, *own(Own))
    out.start(0, 4)
    out.write(0, {"loss": 0.5})
    out.show(1, "text")
    out.say("text")
    out.close()
    assert OPENED == []
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_and_trackers_go_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "Board", lambda path, step: Own("tensorboard", path, step))
    out = Writer("run's name", tmp_path, LogConfig(trackers=own(Own)))
    out.open(5)
    out.write(5, {"loss": 0.5})
    out.close()
    assert [tracker.opened for tracker in OPENED] == [("tensorboard", tmp_path / "tb", 5), ("run's name", tmp_path, 5)]
    assert all(tracker.written == [(5, {"loss": 0.5})] and tracker.closed for tracker in OPENED)


def test_wandb_and_mlflow_get_config_evaluations_and_pictures(wandb, mlflow, tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 3}')
    run = sys.modules["wandb"].init()
    run.config = SimpleNamespace(update=lambda values, **options: wandb.append(("config", values, options)))
    vars(sys.modules["wandb"])["Image"] = lambda pixels: ("image", pixels.shape)
    for name in ("log_dict", "log_image"):
        call = lambda *args, name=name, **options: mlflow.append((name, *args, options))  # noqa: E731
        vars(sys.modules["mlflow"])[name] = call
    config = LogConfig(tensorboard=False, trackers=("wandb", "mlflow"), send_pictures=True)
    out = Writer("run's name", tmp_path, config)
    pixels = np.zeros((4, 5, 3), np.uint8)
    with out.opened(0):
        out.evaluated(3, {"lfw": {"accuracy@far=1e-3": 0.5}})
        out.picture(2, "first_batch", pixels)
    assert ("config", {"seed": 3}, {"allow_val_change": True}) in wandb
    assert ("log", {"eval/lfw/accuracy@far=1e-3": 0.5}, 2) in wandb
    assert ("log", {"first_batch": ("image", (4, 5, 3))}, 2) in wandb
    assert ("log_dict", {"seed": 3}, "config.json", {}) in mlflow
    assert ("log_metrics", {"eval/lfw/accuracy_far_1e-3": 0.5}, {"step": 2}) in mlflow, "MLflow allows no @ and no ="
    assert ("log_image", pixels, "first_batch_step_2.png", {}) in mlflow
