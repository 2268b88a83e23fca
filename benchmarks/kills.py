"""Kill runs with SIGKILL at random moments, and check that the same command then ends with the same bits.

    python benchmarks/kills.py --kills=30 --dir=DIR

The runs are small, use one or two processes on the CPU, and have one data worker per process. Each run is killed
once, up to a second after a step drawn from all its steps, so the kill can also hit the evaluation after the last
step. The victim is the process itself, the coordinator, the other process or a data worker. The rest of the run is
then ended, as a launcher does, and the same command is started again.

The result is compared with that of an undisturbed run: the hash of the trained variables, their optimizer and
statistics after the last step, and the hash of every step's batch. "Redone" counts the steps that were written to
metrics.jsonl and computed again. The exit code is 1 if a run differs or redoes more than a save interval.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from launch.local import free_port

EVERY = 10  # steps between checkpoints
SETTINGS = {
    "data.synthetic.identities": 24,
    "data.synthetic.images": 6,
    "data.synthetic.test_identities": 120,
    "data.synthetic.test_pairs": 1000,
    "data.workers": 1,
    "data.threads": 1,
    "data.prefetch": 1,  # with more, a data worker has read everything and ended before it can be killed
    "batch_size": 16,
    "epochs": 6,
    "eval.batch_size": 16,
    "eval.bootstrap": 0,
    "eval.baselines": False,
    "eval.before_training": False,
    "eval.every_epochs": 2,
    "checkpoint.every_steps": EVERY,
    "log.state_hash_every": 1,
    "heartbeat_seconds": 10,
}


def start(workdir: Path, count: int, faces: Path) -> list[subprocess.Popen]:
    """Start the `count` processes of a run."""
    port = free_port()
    command = [sys.executable, "-m", "fvjax.main", "--config=configs/quickstart.py:vit_lora", f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in (SETTINGS | {"data.synthetic.dir": faces}).items()]
    out = workdir.with_name(f"{workdir.name}.log").open("a")
    several = [f"--coordinator=localhost:{port}", f"--processes={count}"] if count > 1 else []
    return [
        subprocess.Popen(
            command + several + ([f"--process={i}"] if several else []),
            stdout=out,
            stderr=out,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
            start_new_session=True,  # so that its data workers can be killed with it
        )
        for i in range(count)
    ]


def end(processes: list[subprocess.Popen], seconds: float) -> list[int]:
    """Wait for the processes, kill those still running after `seconds`, and return the exit codes."""
    stop = time.monotonic() + seconds
    while any(p.poll() is None for p in processes) and time.monotonic() < stop:
        time.sleep(0.05)
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return [process.wait() for process in processes]


def children(pid: int) -> list[int]:
    """Return the process ids of Grain's data workers: the children of any thread that run Python."""
    found = [child for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
    return [int(c) for c in found if b"resource_tracker" not in Path(f"/proc/{c}/cmdline").read_bytes()]


def lines(workdir: Path) -> list[dict]:
    """Return the complete lines of metrics.jsonl."""
    file, found = workdir / "metrics.jsonl", []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:  # a line that is being written
            break
    return found


def doing(workdir: Path) -> str:
    """Return what a run was doing when it was killed: a save, an evaluation or a step."""
    if any("tmp" in p.name for p in (workdir / "checkpoints").glob("*")):
        return "save"
    evaluated = (
        [json.loads(x)["step"] for x in (workdir / "evaluations.jsonl").read_text().splitlines()]
        if (workdir / "evaluations.jsonl").exists()
        else []
    )
    last = len(lines(workdir))
    return "evaluation" if last and last % 18 == 0 and last not in evaluated else "step"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, rows, wrong = random.Random(args.seed), [], 0
    whole: dict[int, list[dict]] = {}
    for count in (1, 2):
        workdir = args.dir / f"whole{count}"
        assert end(start(workdir, count, args.dir), 600) == [0] * count, f"see {workdir}.log"
        whole[count] = lines(workdir)
    for number in range(args.kills):
        count, workdir = 1 + number % 2, args.dir / f"kill{number}"
        what = draw.choice(["process", "data worker"] if count == 1 else ["coordinator", "other", "data worker"])
        wanted, delay = whole[count], draw.random()
        after = draw.randint(1, len(wanted))
        processes = start(workdir, count, args.dir)
        while len(lines(workdir)) < after and all(p.poll() is None for p in processes):
            time.sleep(0.01)
        time.sleep(delay)
        victim = processes[-1] if what == "other" else processes[0]
        alive = victim.poll() is None
        if what == "data worker" and alive:
            chosen = draw.choice(processes)
            workers = children(chosen.pid)
            alive = bool(workers)
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
        elif alive:
            os.killpg(victim.pid, signal.SIGKILL)
        moment, before = doing(workdir), len(lines(workdir))
        codes = end(processes, 40)
        done = sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())
        before = max(before, len(lines(workdir)))
        redone = before - (done[-1] if done else 0)
        if any(codes):
            again = end(start(workdir, count, args.dir), 300)
        else:
            again, redone = [0] * count, 0
        same = [(x["state_hash"], x["batch_hash"]) for x in lines(workdir)] == [
            (x["state_hash"], x["batch_hash"]) for x in wanted
        ]
        right = same and again == [0] * count and redone <= EVERY
        wrong += not right
        rows.append((count, what, moment if alive else "nothing left to kill", before, codes, redone, right))
        print(f"| {' | '.join(map(str, (number, *rows[-1])))} |", flush=True)
        if right:
            shutil.rmtree(workdir)
    print(collections.Counter((row[0], row[1], row[2]) for row in rows))
    print(f"{args.kills - wrong} of {args.kills} ended with the bits of an undisturbed run")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
