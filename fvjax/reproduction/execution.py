"""Start the runs of a reproduction, each in a process of its own, so that one that fails costs the others nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from fvjax.reproduction.runs import Run
from fvjax.training import preemption


class Stopped(Exception):
    """Somebody asked for a stop; the same command goes on."""


def run_all(runs: Sequence[Run], say: Callable[[str], None]) -> dict[Run, str]:
    """Run everything in order; return why the failed ones failed. Raises Stopped.

    say: prints a line.
    """
    failed = {}
    for number, run in enumerate(runs, 1):
        say(f"[{number}/{len(runs)}] {run.row.title}, seed {run.seed}: {' '.join(run.command)}")
        code, last, asked = execute(run.command)
        if asked or code == preemption.EXIT_CODE:
            saved = " and has saved" if code == preemption.EXIT_CODE else ""
            raise Stopped(f"{run.row.name}, seed {run.seed} was stopped{saved}")
        if code:
            failed[run] = f"exit code {code}{f': {last}' if last else ''}"
            say(f"{run.row.name}, seed {run.seed} failed ({failed[run]}); the others go on")
    return failed


def execute(command: Sequence[str]) -> tuple[int, str, bool]:
    """Run a command, whose output goes where ours goes.

    A signal that asks this process to stop is passed on. A training run then saves and exits with code 75; before it
    has begun to train, it just ends.

    Returns:
        its exit code, its last line on standard error, and whether a stop was asked for.
    """
    last = ""
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=0) as process,
        _passing_on(process) as asked,
    ):
        for line in process.stderr or ():
            print(line, end="", file=sys.stderr, flush=True)
            last = line.strip().removeprefix("fvjax: error: ") or last
    return process.returncode, last, bool(asked)


@contextmanager
def _passing_on(process: subprocess.Popen) -> Iterator[list[int]]:
    """Give every request to stop to a process, which has a group of its own: Ctrl-C reaches only us.

    A terminal that is closed counts as SIGTERM, unless this process ignores that (nohup). Yields the signals that came.
    """
    sent: dict[int, int] = {number: number for number in preemption.SIGNALS}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        sent[signal.SIGHUP] = signal.SIGTERM
    received: list[int] = []

    def pass_on(number: int, _: object) -> None:
        received.append(number)
        process.send_signal(sent[number])

    before = {number: signal.signal(number, pass_on) for number in sent}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
