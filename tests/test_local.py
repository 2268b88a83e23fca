"""Test launch/local.py: how it starts processes, shows their output, forwards signals and handles failures.

All tests but the last run small programs in place of fvjax.main.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import local
from tests.test_main import TINY, lines

# Each program gets --coordinator=HOST:PORT --processes=N --process=I and the test's flags, in `flags`.
PROGRAM = """
import os, signal, sys, time
flags = dict(flag[2:].split("=", 1) for flag in sys.argv[1:])
me = int(flags["process"])
"""


def start(tmp_path: Path, body: str, *args: str, **env: str) -> subprocess.Popen:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + body)
    code = (
        f"import sys; from launch import local; sys.exit(local.run(sys.argv[1:], [sys.executable, {str(program)!r}]))"
    )
    command = [sys.executable, "-c", code, "--processes=2", *args]
    return subprocess.Popen(command, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def call(tmp_path: Path, body: str, *args: str, **env: str) -> tuple[int, str, str]:
    process = start(tmp_path, body, *args, **env)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def wait_for(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_each_process_has_its_place_and_the_flags(tmp_path):
    body = 'print(me, flags["processes"], flags["coordinator"], flags["config.x"], os.environ["JAX_NUM_CPU_DEVICES"])'
    code, out, err = call(tmp_path, body, "--devices=3", "--port=4567", "--", "--config.x=a b")
    assert (code, out, err) == (0, "0 2 127.0.0.1:4567 a b 3\n", "[1] 1 2 127.0.0.1:4567 a b 3\n")


def test_a_free_port_is_the_same_for_all(tmp_path):
    code, out, err = call(tmp_path, 'print(flags["coordinator"])')
    assert code == 0
    assert err == f"[1] {out}"
    assert 1024 < int(out.rpartition(":")[2]) < 65536


def test_gpus_are_dealt_out(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local.environments(2, 0, 4) == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,3")
    assert local.environments(2, 0, 2) == [{"CUDA_VISIBLE_DEVICES": "7"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    for processes, devices, gpus in ((2, 0, 3), (2, 0, 4), (2, 1, 2)):
        with pytest.raises(ValueError, match=f"--gpus={gpus}: must be a multiple of --processes=2, without --devices"):
            local.environments(processes, devices, gpus)
    code, _, err = call(tmp_path, "", "--gpus=3")
    assert code == 2
    assert "error: --gpus=3" in err


def test_others_lines_are_whole_and_numbered(tmp_path):
    body = """
for i in range(200):
    print(f"line {i} of {me}", flush=True)
    print(f"error {i}", file=sys.stderr, flush=True) if me else None
sys.stdout.write("no newline")
"""
    code, out, err = call(tmp_path, body)
    assert code == 0
    assert out == "".join(f"line {i} of 0\n" for i in range(200)) + "no newline"
    assert err == "".join(f"[1] line {i} of 1\n[1] error {i}\n" for i in range(200)) + "[1] no newline\n"


def test_the_first_failure_is_the_exit_code_and_the_rest_is_killed(tmp_path):
    body = f"""
if me:
    time.sleep(0.3)
    sys.exit(3)
import subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
time.sleep(60)
"""
    began = time.monotonic()
    code, _, err = call(tmp_path, body, "--grace=1", "--restarts=3")
    assert code == 3
    assert "process 1 ended with exit code 3" in err
    assert "killed process 0, which was still running 1 s later" in err
    assert "restarting" not in err, "an error is not mended by a restart"
    assert 1 < time.monotonic() - began < 30
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: gone(child))  # its child process is killed too


def test_the_rest_may_end_by_itself(tmp_path):
    code, out, err = call(tmp_path, 'sys.exit(3) if me else (time.sleep(1), print("said why"), sys.exit(4))')
    assert code == 3
    assert out == "said why\n"
    assert "killed" not in err


def test_one_that_ends_well_is_no_failure(tmp_path):
    code, out, _ = call(tmp_path, 'time.sleep(0 if me else 1); print("done")', "--grace=0")
    assert (code, out) == (0, "done\n")


@pytest.mark.parametrize("how", ["sys.exit(75)", "sys.exit(69)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_saved_or_killed_is_started_again(tmp_path, how):
    body = f"""
mark = {str(tmp_path)!r} + f"/been{{me}}"
if os.path.exists(mark):
    print("went on")
else:
    open(mark, "w").close()
    {how}
"""
    code, out, err = call(tmp_path, body, "--restarts=1", "--grace=1")
    assert (code, out) == (0, "went on\n")
    assert err.count("restarting all processes; 0 restarts left") == 1


@pytest.mark.parametrize(("how", "expected"), [("sys.exit(75)", 75), ("os.kill(os.getpid(), signal.SIGKILL)", 137)])
def test_no_more_restarts_than_allowed(tmp_path, how, expected):
    code, out, err = call(tmp_path, f'print("once", flush=True); {how}', "--restarts=2")
    assert code == expected
    assert out == 3 * "once\n"
    assert err.count("restarting") == 2


@pytest.mark.parametrize("code", [1, 2])
def test_errors_are_not_started_again(tmp_path, code):
    got, out, err = call(tmp_path, f'print("once"); sys.exit({code})', "--restarts=2")
    assert (got, out) == (code, "once\n")
    assert "restarting" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_reach_all_processes(tmp_path, number):
    body = f"""
def saved(n, _):
    print("saved at", n, flush=True)
    sys.exit(75)
for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(n, saved)
open({str(tmp_path)!r} + f"/ready{{me}}", "w").close()
time.sleep(60)
"""
    process = start(tmp_path, body, "--restarts=3")
    wait_for(lambda: all((tmp_path / f"ready{i}").exists() for i in range(2)))
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 75
    assert out == f"saved at {int(number)}\n"
    assert f"[1] {out}" in err
    assert "restarting" not in err, "who was asked to end does not go on"


def test_a_signal_counts_before_the_exit_codes_that_follow_from_it(tmp_path):
    body = f"""
folder = {str(tmp_path)!r}
open(f"{{folder}}/ready{{me}}", "w").close()
while not os.path.exists(f"{{folder}}/end"):
    time.sleep(0.01)
open(f"{{folder}}/ended{{me}}", "w").close()
os.kill(os.getpid(), signal.SIGKILL) if me else sys.exit(3)
"""
    process = start(tmp_path, body)
    wait_for(lambda: all((tmp_path / f"ready{i}").exists() for i in range(2)))
    process.send_signal(signal.SIGSTOP)  # so that it notices both exits at once
    (tmp_path / "end").touch()
    wait_for(lambda: all((tmp_path / f"ended{i}").exists() for i in range(2)))
    time.sleep(0.5)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 137
    assert "process 1 ended with SIGKILL" in err


def test_a_stopped_process_does_not_hold_up_the_rest(tmp_path):
    body = "os.kill(os.getpid(), signal.SIGSTOP) if me else (time.sleep(0.5), sys.exit(9))"
    code, _, err = call(tmp_path, body, "--grace=1")
    assert code == 9
    assert "killed process 1, which was still running 1 s later" in err


@pytest.mark.slow  # tests/test_processes.py has two processes in every run
def test_two_processes_train_to_the_table(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    quick = "--config.epochs=2", "--config.eval.every_epochs=0", "--config.eval.before_training=False"
    small = [*TINY, *quick, f"--workdir={tmp_path / 'run'}"]
    command = [sys.executable, "launch/local.py", "--processes=2", "--devices=2", "--", *small]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mesh {'data': 4, 'fsdp': 1, 'tensor': 1}" in done.stdout
    assert done.stdout.count("Face verification (%)") == 1
    assert "Face verification" not in done.stderr
    assert [line["step"] for line in lines(tmp_path / "run/metrics.jsonl")] == list(range(12))
