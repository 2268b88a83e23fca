"""Test a user's own task (tests/plugins): it uses the same training loop and planning as the built-in tasks."""

import contextlib
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from fvjax import cli, experiment, plan, plugins
from fvjax.config import typed
from fvjax.parallel import sharding
from fvjax.planning import programs
from fvjax.training import preemption
from tests.plugins import head_pose_config
from tests.test_preemption import AskedAtStep


def config(folder: Path, devices: int = 1):
    c = head_pose_config.get_config()
    c.data.synthetic.dir, c.mesh.data = str(folder), devices
    return c


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("head_pose")


def run(folder: Path, name: str, devices: int = 1, **options) -> tuple[dict, list[dict]]:
    """Return results.json and the lines of metrics.jsonl of a run on this number of devices."""
    chosen = jax.devices()[:devices]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: chosen)
        results = experiment.run(typed(config(folder, devices)), folder / name, train=True, **options)
    return results, [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(folder):
    return run(folder, "one")


def test_it_learns_and_reports(folder, trained):
    results, lines = trained
    entry, before = results["benchmarks"]["head pose"], json.loads((folder / "one/before_training.json").read_text())
    assert entry["n"] == 48
    assert entry["yaw"] < 0.5 * before["head pose"]["yaw"]
    assert np.mean([line["loss"] for line in lines[-6:]]) < 0.2 * lines[0]["loss"]
    assert [line["lr"] for line in lines[:4]] == pytest.approx([0, 1e-2, 2e-2, 3e-2]), "ceil(0.05 * 60) = 3 steps"
    (evaluation,) = [json.loads(line) for line in (folder / "one/evaluations.jsonl").read_text().splitlines()]
    assert evaluation["head pose"] == {name: entry[name] for name in ("yaw", "pitch")}


def test_four_devices_equal_one(folder, trained):
    """Sums in another order change the first losses by less than 1e-5; training then amplifies the difference."""
    results, lines = run(folder, "four", 4)
    losses, expected = ([line["loss"] for line in each] for each in (lines, trained[1]))
    np.testing.assert_allclose(losses[:6], expected[:6], rtol=1e-5)
    assert results["benchmarks"]["head pose"]["n"] == 48


def test_it_goes_on_after_a_stop_bit_for_bit(folder, trained):
    request = AskedAtStep(folder / "stopped", 10)
    with pytest.raises(preemption.Preempted):
        run(folder, "stopped", request=request)
    request.before_leaving()
    results, lines = run(folder, "stopped")
    assert results["benchmarks"] == trained[0]["benchmarks"]
    assert [line["loss"] for line in lines] == [line["loss"] for line in trained[1]]


def test_it_is_planned_and_counted(folder, monkeypatch):
    monkeypatch.setattr(cli, "CONFIG", None)
    monkeypatch.setattr(plan, "KIND", type("Flag", (), {"value": "h100"}))
    for name, value in {"PER_NODE": 4, "NETWORK": 50.0, "DECODE": 6000.0, "STEPS": 0, "IMAGES": 0}.items():
        monkeypatch.setattr(plan, name, type("Flag", (), {"value": value}))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        c = config(folder)
        c.mesh.data = -1
        (two,) = plan.run(c, [2])
    assert two["images"] == 16
    assert two["bytes"]["similarities"] == 0, "its loss compares nothing"
    assert two["trained"] == 128 * 2 + 2
    assert two["parameters"] == 877_952 + two["trained"]
    assert "hours of 60 steps, at least" in printed.getvalue()
    counted = programs.Planner(typed(config(folder)), sharding.one_device()).model_flops()
    tokens, width, mlp = 65, 128, 512
    layer = tokens * (4 * width * width + 2 * width * mlp) + 2 * tokens * tokens * width
    products = 16 * (4 * layer + 64 * 14 * 14 * 3 * width)  # of the tower, forward; the head's are negligible
    assert counted == pytest.approx(2 * products, rel=0.01)


def test_its_source_is_part_of_the_runs_hashes(folder, trained, tmp_path, monkeypatch):
    c = typed(config(folder))
    before = c.hash()
    assert c.plugin_sources() == {"task": plugins.source_hash("tests.plugins.head_pose:HeadPose")}
    monkeypatch.setattr(plugins, "source_hash", lambda spec: "changed")
    assert c.hash() != before
    with pytest.raises(ValueError, match=r"plugin_sources is .* this run has \{'task': 'changed'\}; choose another"):
        run(folder, "one")


def test_a_name_that_is_no_task_is_refused(folder):
    for spec, message in (
        (
            "tests.plugins.head_pose:table",
            "attributes, face_instruction, or module:Class of a fvjax Task",
        ),
        ("tests.plugins.head_pose:Missing", "the module tests.plugins.head_pose has no 'Missing'"),
        ("no_such_module:Task", "there is no module 'no_such_module'"),
    ):
        c = config(folder)
        c.task = spec
        c.mesh.data = -1
        with pytest.raises(ValueError, match=message):
            experiment.run(typed(c), folder / "none", train=True)
    assert not (folder / "none").exists()
