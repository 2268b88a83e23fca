"""Test several processes as one run on this machine: the same results, and what happens when a process dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from fvjax.parallel import distributed
from launch.local import free_port
from tests.conftest import QUICK_TO_COMPILE

SMALL = {
    "data.synthetic.identities": 24,
    "data.synthetic.images": 6,
    "data.synthetic.test_identities": 20,
    "data.synthetic.test_images": 3,
    "data.synthetic.test_pairs": 40,
    "batch_size": 16,
    "eval.batch_size": 16,
    "eval.bootstrap": 0,
    "eval.baselines": False,
    "log.state_hash_every": 1,
    "log.tensorboard": False,
    "heartbeat_seconds": 20,
    "eval.before_training": False,
}


class Run:
    """`python -m fvjax.main` as `count` processes with `devices` CPU devices each; their output in files.

    `settings`: settings of the config, for all processes. `each`: additional settings for each process.
    """

    def __init__(self, workdir: Path, count: int, devices: int, each=(), **settings):
        port = free_port()
        env = os.environ | {"XLA_FLAGS": QUICK_TO_COMPILE, "JAX_NUM_CPU_DEVICES": str(devices)}
        self.workdir, self.processes, self.files = workdir, [], []
        for i in range(count):
            here = [f"--coordinator=localhost:{port}", f"--processes={count}", f"--process={i}"] if count > 1 else []
            command = [
                sys.executable,
                "-m",
                "fvjax.main",
                "--config=configs/quickstart.py:vit_lora",
                f"--workdir={workdir}",
            ]
            wanted = SMALL | settings | (each[i] if each else {})
            flags = [f"--config.{key}={value}" for key, value in wanted.items()]
            self.files.append(workdir.with_name(f"{workdir.name}.{i}.log"))
            with self.files[-1].open("a") as out:
                self.processes.append(
                    subprocess.Popen([*command, *flags, *here], stdout=out, stderr=subprocess.STDOUT, env=env)
                )

    def codes(self, timeout: float = 300) -> list[int]:
        """Return the exit codes of all processes. Those that do not end are killed."""
        try:
            return [process.wait(timeout) for process in self.processes]
        finally:
            self.kill()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def until_step(self, step: int, timeout: float = 120) -> None:
        file, end = self.workdir / "metrics.jsonl", time.monotonic() + timeout
        while not file.exists() or len(file.read_text().splitlines()) < step:
            assert time.monotonic() < end, self.told()
            assert all(process.poll() is None for process in self.processes), self.told()
            time.sleep(0.02)

    def told(self) -> list[str]:
        return [file.read_text() for file in self.files]


def metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def accuracy(workdir: Path) -> float:
    entry = json.loads((workdir / "results.json").read_text())["benchmarks"]["synthetic"]
    return entry["accuracy@best_threshold"]["mean"]


def test_processes_that_disagree_all_stop_and_say_in_what(tmp_path):
    run = Run(tmp_path / "run", 2, 1, each=[{}, {"seed": 1}])
    assert run.codes() == [2, 2], run.told()
    for told in run.told():
        assert "fvjax: error: process 1 has config.seed = 1, process 0 has 0; all must have the same" in told
    assert not run.workdir.exists()


@pytest.mark.slow
def test_what_one_process_lacks_all_hear_of(tmp_path):
    run = Run(tmp_path / "run", 2, 1, each=[{}, {"init_from": tmp_path / "nowhere"}])
    assert run.codes() == [2, 2], run.told()
    for told in run.told():
        assert f"fvjax: error: process 1: config.init_from: {tmp_path}/nowhere is not there" in told


@pytest.fixture(scope="module")
def slow_peer(tmp_path_factory):
    """Return a whole run of two processes, one of which stopped for less than the heartbeat."""
    run = Run(tmp_path_factory.mktemp("processes") / "run", 2, 1, epochs=3)
    run.until_step(10)
    run.processes[1].send_signal(signal.SIGSTOP)
    time.sleep(3)
    run.processes[1].send_signal(signal.SIGCONT)
    assert run.codes() == [0, 0], run.told()
    return run


def test_a_run_of_two_processes_is_one_run(slow_peer):
    lines = metrics(slow_peer.workdir)
    assert [line["step"] for line in lines] == list(range(27)), "one process writes"
    told = slow_peer.told()
    assert told[0].count("Trained to step 27") == 1
    assert "10-fold" in told[0]
    assert "10-fold" not in told[1]
    assert set(json.loads((slow_peer.workdir / "results.json").read_text())["benchmarks"]) == {"synthetic"}


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_asked_to_stop_it_saves_and_goes_on_to_the_same_bits(tmp_path, slow_peer, number):
    run = Run(tmp_path / "run", 2, 1, epochs=3)
    run.until_step(10)
    run.processes[1].send_signal(number)
    assert run.codes() == [75, 75], run.told()
    asked, saved = 10, max(int(p.name) for p in (run.workdir / "checkpoints").iterdir())
    assert saved == len(metrics(run.workdir)), "nothing was done that is not saved"
    assert saved < 27, f"asked after step {asked}"
    assert "all is saved" in run.told()[0]
    again = Run(run.workdir, 2, 1, epochs=3)
    assert again.codes() == [0, 0], again.told()
    assert f"Restored step {saved}" in again.told()[0]
    hashes = [[(x["step"], x["state_hash"], x["batch_hash"]) for x in metrics(r.workdir)] for r in (run, slow_peer)]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("frozen", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_frozen_process_ends_the_others_within_the_heartbeat(tmp_path, frozen):
    run = Run(tmp_path / "run", 2, 1, epochs=1000, heartbeat_seconds=5)
    run.until_step(5)
    run.processes[frozen].send_signal(signal.SIGSTOP)
    start = time.monotonic()
    try:
        assert run.processes[1 - frozen].wait(60) == 69, run.told()
        assert time.monotonic() - start < 8
    finally:
        run.kill()
    where = f"process {frozen} ({socket.gethostname()}, pid {run.processes[frozen].pid})"
    assert f"fvjax: error: no sign of life of {where} for 5 s" in run.told()[1 - frozen]


def test_a_killed_process_is_named_and_is_not_a_mistake_of_the_user(tmp_path):
    run = Run(tmp_path / "run", 2, 1, epochs=1000, heartbeat_seconds=5)
    run.until_step(5)
    run.processes[1].kill()
    try:
        assert run.processes[0].wait(60) == 69, run.told()
    finally:
        run.kill()
    assert "fvjax: error: no sign of life of process 1 (" in run.told()[0]


ALONE = """
import sys
from fvjax.parallel import distributed
distributed._CONNECT_S = 3
distributed.start(distributed.Place(2, sys.argv[1], int(sys.argv[2])), 60)
"""


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_waits_for_others_in_vain_says_so(number):
    at = f"localhost:{free_port()}"
    done = subprocess.run([sys.executable, "-c", ALONE, at, str(number)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 69
    assert done.stderr == f"fvjax: error: not all of 2 processes came to {at} within 3 s; start all of them\n"


@pytest.fixture
def jax_is_not_asked(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("jax was asked"))


def test_a_port_that_is_taken_is_named(jax_is_not_asked):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = f"--coordinator=localhost:{port}: process 0 cannot listen there .*; choose another port"
        with pytest.raises(ValueError, match=told):
            distributed.start(distributed.Place(2, f"localhost:{port}", 0), 60)
        distributed.check_port(distributed.Place(2, f"localhost:{port}", 1))  # the others expect it to be in use
    distributed.check_port(distributed.Place(2, f"localhost:{port}", 0))


@pytest.mark.parametrize("at", ["localhost", "29500", "localhost:", "localhost:http", "localhost:0", "localhost:65536"])
def test_a_coordinator_without_a_port_is_refused(at, jax_is_not_asked):
    with pytest.raises(ValueError, match=f"--coordinator={at}: must be HOST:PORT of process 0"):
        distributed.start(distributed.Place(2, at, 1), 60)


@pytest.mark.slow
def test_every_topology_gives_the_same_figures(tmp_path):
    found = {}
    for count, devices in ((1, 1), (1, 8), (2, 4), (4, 2)):
        run = Run(
            tmp_path / f"{count}x{devices}",
            count,
            devices,
            epochs=6,
            **{
                "data.synthetic.test_identities": 120,
                "data.synthetic.test_images": 6,
                "data.synthetic.test_pairs": 1000,
            },
        )
        assert run.codes() == [0] * count, run.told()
        found[count, devices] = metrics(run.workdir), accuracy(run.workdir)
    (first, score), *others = found.values()
    assert len(first) >= 50
    for (count, devices), (lines, other) in zip(list(found)[1:], others):
        assert [x["batch_hash"] for x in lines] == [x["batch_hash"] for x in first], "the same faces, in the same rows"
        apart = max(abs(x["loss"] - y["loss"]) / max(1, abs(y["loss"])) for x, y in zip(lines, first))
        print(
            f"{count} x {devices}: {len(lines)} steps, losses at most {apart:.1e} apart; {other:.4f}, 1 x 1 {score:.4f}"
        )
        assert apart <= 1e-5
        assert abs(other - score) <= 0.002


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_devices_and_other_processes(tmp_path):
    """8 devices, then 4, then 2 in two processes give the batches and losses of a run with 8 devices throughout."""
    whole = Run(tmp_path / "whole", 1, 8, epochs=6)
    assert whole.codes() == [0], whole.told()
    steps = []
    for count, devices, until in ((1, 8, 12), (1, 4, 30), (2, 1, 0)):
        run = Run(tmp_path / "run", count, devices, epochs=6)
        if not until:
            assert run.codes() == [0] * count, run.told()
            break
        run.until_step(until)
        run.processes[0].send_signal(signal.SIGTERM)
        assert run.codes() == [75] * count, run.told()
        steps.append(len(metrics(run.workdir)))
    first, lines = metrics(whole.workdir), metrics(tmp_path / "run")
    assert 12 <= steps[0] < 30 <= steps[1] < 54 == len(lines)
    assert [x["batch_hash"] for x in lines] == [x["batch_hash"] for x in first]
    apart = max(abs(x["loss"] - y["loss"]) / max(1, abs(y["loss"])) for x, y in zip(lines, first))
    print(f"resumed with other devices after steps {steps}: losses at most {apart:.1e} apart")
    assert apart <= 1e-5
