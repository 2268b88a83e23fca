"""Test launch/slurm.sh on a real Slurm with two nodes on this machine (cluster.sh): a whole run, a requeue, an error.

python -m pytest -n0 -m slow tests/slurm
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fvjax.data import images, stores
from tests.test_images import smooth_face
from tests.test_main import TINY, lines

pytestmark = pytest.mark.slow
CLUSTER = Path(__file__).with_name("cluster.sh")
STEPS = 60
RUN = [
    TINY[0].removeprefix("--config="),
    *TINY[1:],
    "--config.epochs=10",
    "--config.eval.every_epochs=0",
    "--config.checkpoint.every_steps=1000",  # so that only a signal causes a save before the end
]
TWO_NODES = ("--nodes=2", "--gpus-per-node=1", "--cpus-per-gpu=2")


class Slurm:
    """A client of the test cluster: submits jobs, reads their state and their logs."""

    def __init__(self, folder: Path):
        self.folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM") and k != "XLA_FLAGS"}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.env = kept | {"SLURM_CONF": str(folder / "slurm.conf"), "JAX_NUM_CPU_DEVICES": "1", "PATH": path}

    def submit(self, sizes: tuple[str, ...], *args: str, **env: str) -> str:
        """Submit a job through launch/slurm.sh and return its number."""
        command = ["launch/slurm.sh", *sizes, f"--output={self.folder}/job-%j.log", *args]
        done = subprocess.run(command, env=self.env | env, capture_output=True, text=True, check=True)
        return done.stdout.split()[-1]

    def job(self, number: str) -> dict[str, str]:
        shown = subprocess.check_output(["scontrol", "show", "job", "-o", number], env=self.env, text=True)
        return dict(item.split("=", 1) for item in shown.split() if "=" in item)

    def finished(self, number: str) -> dict[str, str]:
        deadline = time.monotonic() + 600
        while (job := self.job(number))["JobState"] not in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"):
            assert time.monotonic() < deadline, self.log(number)
            time.sleep(0.5)
        return job

    def log(self, number: str) -> str:
        return (self.folder / f"job-{number}.log").read_text()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    if os.geteuid():
        pytest.skip("not root: tests/slurm/cluster.sh installs and starts Slurm's daemons")
    folder = tmp_path_factory.mktemp("slurm")
    done = subprocess.run([CLUSTER, "start", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"Slurm does not start here: {done.stderr.strip()}")
    yield Slurm(folder)
    subprocess.run([CLUSTER, "stop", folder], check=True)


@pytest.fixture(scope="module")
def undisturbed(slurm, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    number = slurm.submit(TWO_NODES, *RUN, f"--workdir={workdir}")
    job = slurm.finished(number)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "0"), slurm.log(number)
    assert job["NumNodes"] == "2"
    assert slurm.log(number).count("Face verification (%)") == 1, "one process prints"
    return workdir


def test_two_processes_train_to_the_table(undisturbed):
    assert [line["step"] for line in lines(undisturbed / "metrics.jsonl")] == list(range(STEPS))
    assert json.loads((undisturbed / "results.json").read_text())["benchmarks"]["synthetic"]["n_pairs"] == 40


def saved(workdir: Path) -> tuple[int, dict[str, np.ndarray]]:
    """Return the step of the newest checkpoint and every array by name, without the devices of the run."""
    step = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    path, reader = (workdir / "checkpoints" / str(step) / "state").absolute(), ocp.PyTreeCheckpointer()
    tree = reader.metadata(path).item_metadata.tree
    state = reader.restore(path, restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree))
    return step, {jax.tree_util.keystr(name): leaf for name, leaf in jax.tree_util.tree_leaves_with_path(state)}


def wait_for_steps(slurm: Slurm, number: str, workdir: Path, steps: int) -> None:
    deadline = time.monotonic() + 300
    while len(lines(workdir / "metrics.jsonl")) < steps:
        assert time.monotonic() < deadline, slurm.log(number)
        time.sleep(0.02)


def test_signalled_it_saves_is_queued_again_and_goes_on(slurm, undisturbed, tmp_path):
    workdir = tmp_path / "signalled"
    number = slurm.submit(TWO_NODES, *RUN, f"--workdir={workdir}")
    wait_for_steps(slurm, number, workdir, 12)
    subprocess.run(["scancel", "--signal=USR1", number], env=slurm.env, check=True)
    job, log = slurm.finished(number), slurm.log(number)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "1"), log
    before, _, after = log.partition(f"launch/slurm.sh: saved; job {number} is queued again")
    assert "Face verification (%)" in after
    assert "Face verification (%)" not in before
    assert 12 <= int(after.split("Restored step ")[1].split()[0]) < STEPS
    metrics, expected_metrics = lines(workdir / "metrics.jsonl"), lines(undisturbed / "metrics.jsonl")
    assert [(m["step"], m["loss"]) for m in metrics] == [(m["step"], m["loss"]) for m in expected_metrics]
    (step, state), (expected_step, expected) = saved(workdir), saved(undisturbed)
    assert step == expected_step == STEPS
    assert set(state) == set(expected)
    assert any("trainable" in name for name in state)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(state[name], leaf, err_msg=name)


def test_cancelled_it_stays_so(slurm, tmp_path):
    number = slurm.submit(TWO_NODES, *RUN, f"--workdir={tmp_path / 'run'}")
    wait_for_steps(slurm, number, tmp_path / "run", 3)
    subprocess.run(["scancel", number], env=slurm.env, check=True)
    job = slurm.finished(number)
    time.sleep(5)
    assert (job["JobState"], slurm.job(number)["JobState"], job["Restarts"]) == ("CANCELLED", "CANCELLED", "0")


def test_a_mistake_is_the_jobs_exit_code(slurm, tmp_path):
    number = slurm.submit(TWO_NODES, *RUN, f"--workdir={tmp_path / 'run'}", "--config.batch_size=7")
    job = slurm.finished(number)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "0")
    assert "fvjax: error: " in slurm.log(number)
    assert "config.batch_size=7 must be even" in slurm.log(number)


def test_each_node_reads_its_own_copies(slurm, tmp_path):
    people = [(images.encode(smooth_face(i)), f"{i // 2}", f"{i}.jpg") for i in range(40)]
    data = stores.write(tmp_path / "faces", people, split="test", sources=["here"])
    a, fold = np.arange(0, 40, 2).repeat(2), np.arange(10).repeat(4)
    b = np.where(np.arange(40) % 2, (a + 2) % 40, a + 1)
    pairs = stores.Pairs(a, b, data.labels[a] == data.labels[b], fold, data.labels[a], data.labels[b])
    for name in ("lfw", "ff", "fp"):
        stores.write_pairs(tmp_path / "faces", name, pairs)
    keys = [f"--config.eval.benchmarks.{name}.store" for name in ("lfw", "cfp_ff", "cfp_fp")]
    here = [f"{key}={tmp_path / 'faces'}" for key in keys]
    disk = tmp_path / "disk"  # shared by both nodes, which are the same machine
    disk.mkdir()
    settings = ("--config.epochs=0", "--config.data.train=", "--config.eval.bootstrap=20")
    args = ("configs/small_real.py", *settings, *here, f"--workdir={tmp_path / 'run'}")
    number = slurm.submit(TWO_NODES, *args, SLURM_TMPDIR=str(disk))
    job = slurm.finished(number)
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), slurm.log(number)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["eval"]["benchmarks"]["cfp_fp"]["store"] == f"{disk}{tmp_path}/faces"
    assert (disk / tmp_path.relative_to("/") / "faces/manifest.json").exists()
