"""Run several processes of fvjax.main on this machine as one training run:

    python launch/local.py --processes=2 [--devices=4 | --gpus=8] [--restarts=N] [--port=0] -- --config=configs/x.py …

Flags after -- go to each process. The output of process 0 is shown unchanged. The output of the others goes to standard
error, and each line begins with the number of the process. SIGTERM, SIGUSR1 and SIGINT are forwarded to all processes.

If one process fails, the others have --grace seconds to end by themselves (they notice within
config.heartbeat_seconds); then they are killed. The exit code is that of the first failure, or 128 plus the number of
the signal that ended it. --restarts=N restarts all processes up to N times if the first failure was a signal, exit
code 75 (asked to stop, state saved) or 69 (another process was lost), unless this program was asked to stop itself.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

RESTARTABLE = (75, 69)  # fvjax.main's exit codes: asked to stop and saved its state; another process was lost


def report(text: str) -> None:
    """Print one line of this program itself on standard error."""
    print(f"launch/local.py: {text}", file=sys.stderr, flush=True)


def free_port() -> int:
    """Return a port of this machine that nothing uses now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environments(processes: int, devices: int, gpus: int) -> list[dict[str, str]]:
    """Return the additional environment variables of each process: its devices.

    Raises ValueError if the GPUs cannot be divided among the processes.
    """
    if not gpus:
        return [{"JAX_NUM_CPU_DEVICES": str(devices)} if devices else {} for _ in range(processes)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = list(map(str, range(gpus))) if visible is None else visible.split(",")
    if devices or gpus % processes or gpus > len(ids):
        expected = f"a multiple of --processes={processes}, without --devices"
        raise ValueError(f"--gpus={gpus}: must be {expected}, and no more than are visible (CUDA_VISIBLE_DEVICES)")
    each = gpus // processes
    return [{"CUDA_VISIBLE_DEVICES": ",".join(ids[i * each : (i + 1) * each])} for i in range(processes)]


def forward_output(number: int, process: subprocess.Popen) -> None:
    """Print the lines of a process with its number until it closes its output."""
    assert process.stdout
    for line in process.stdout:
        sys.stderr.buffer.write(b"[%d] %s\n" % (number, line.rstrip(b"\n")))
        sys.stderr.buffer.flush()


def run_together(
    commands: list[list[str]], environment: list[dict[str, str]], grace: float, received: list[int]
) -> int:
    """Run the commands in parallel and return the exit code of the first that failed, or 0.

    A negative code is the number of the signal that ended the process.

    Args:
        environment: the additional environment variables of each process.
        grace: the seconds that the other processes have to end after a failure.
        received: signals to forward. The signal handlers of this process append to it.
    """
    processes: list[subprocess.Popen] = []
    for command, env in zip(commands, environment, strict=True):
        out, err = (subprocess.PIPE, subprocess.STDOUT) if processes else (None, None)
        # A process group of its own: Ctrl-C arrives only once, and data workers can be killed with their process.
        processes.append(subprocess.Popen(command, env=os.environ | env, process_group=0, stdout=out, stderr=err))
    others = list(enumerate(processes))[1:]
    threads = [threading.Thread(target=forward_output, args=other, daemon=True) for other in others]
    for thread in threads:
        thread.start()
    forwarded = 0
    first = 0
    deadline = float("inf")
    while True:
        running = [str(i) for i, p in enumerate(processes) if p.poll() is None]
        if not first and (failed := [(i, p.returncode) for i, p in enumerate(processes) if p.returncode]):
            i, first = min(failed, key=lambda one: one[1] > 0)  # a signal is a cause; an exit code may follow from it
            report(f"process {i} ended with {f'exit code {first}' if first > 0 else signal.Signals(-first).name}")
            deadline = time.monotonic() + grace
        if not running or time.monotonic() > deadline:
            break
        for number in received[forwarded:]:
            for process in processes:
                process.send_signal(number)  # does nothing if the process has ended
            forwarded += 1
        time.sleep(0.02)
    if running:
        report(f"killed process {', '.join(running)}, which was still running {grace:g} s later")
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # those still running, and data workers whose process has ended
        process.wait()
    for thread in threads:
        thread.join(5)
    return first


def run(argv: list[str], program: list[str]) -> int:
    """Parse the flags, run `program` in several processes and return the exit code.

    Each process receives the flags --coordinator, --processes and --process of fvjax.main.
    """
    parser = argparse.ArgumentParser(
        prog="launch/local.py", description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--devices", type=int, default=0, help="CPU devices of each process (default: main's choice)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs to divide among the processes (default: none)")
    parser.add_argument("--restarts", type=int, default=0, help="how often to restart all processes (default: never)")
    parser.add_argument("--port", type=int, default=0, help="port of the coordinator (default: a free one)")
    parser.add_argument("--grace", type=float, default=90, help="seconds to end after a failure (default: 90)")
    parser.add_argument("flags", nargs="*", help="-- followed by the flags of fvjax.main")
    args = parser.parse_args(argv)
    if args.processes < 1:
        parser.error(f"--processes={args.processes}: must be at least 1")
    try:
        environment = environments(args.processes, args.devices, args.gpus)
    except ValueError as error:
        parser.error(str(error))
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda n, _: received.append(n))
    code = 0
    for left in reversed(range(args.restarts + 1)):
        topology = f"--coordinator=127.0.0.1:{args.port or free_port()}", f"--processes={args.processes}"
        commands = [[*program, *topology, f"--process={i}", *args.flags] for i in range(args.processes)]
        code = run_together(commands, environment, args.grace, received)
        if not left or received or (code >= 0 and code not in RESTARTABLE):
            break
        report(f"restarting all processes; {left - 1} restarts left")
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], [sys.executable, "-m", "fvjax.main"]))
