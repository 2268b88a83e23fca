"""Several processes of fvjax.main on this machine, as one run:

    python launch/local.py --processes=2 [--devices=4 | --gpus=8] [--restarts=N] [--port=0] -- --config=configs/x.py …

What stands behind -- goes to each process. The first one's output is shown as it is, the others' on standard error with
their number. SIGTERM, SIGUSR1 and SIGINT are passed on to all. If one fails, the others have --grace seconds to end by
themselves (they notice within config.heartbeat_seconds), then they are killed; the exit code is that of the one that
failed first, or 128 plus the signal that ended it. With --restarts all are started again if that was a signal, 75
(asked to end, and saved) or 69 (another process lost), unless this program was asked to end itself.
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

AGAIN = (75, 69)  # fvjax.main's exit codes: asked to end, and saved; another process lost


def say(text: str) -> None:
    print(f"launch/local.py: {text}", file=sys.stderr, flush=True)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environments(processes: int, devices: int, gpus: int) -> list[dict[str, str]]:
    """What each process gets beside this one's environment. Raises ValueError."""
    if not gpus:
        return [{"JAX_NUM_CPU_DEVICES": str(devices)} if devices else {} for _ in range(processes)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = list(map(str, range(gpus))) if visible is None else visible.split(",")
    if devices or gpus % processes or gpus > len(ids):
        told = f"a multiple of --processes={processes}, without --devices"
        raise ValueError(f"--gpus={gpus}: must be {told}, and no more than are visible (CUDA_VISIBLE_DEVICES)")
    each = gpus // processes
    return [{"CUDA_VISIBLE_DEVICES": ",".join(ids[i * each : (i + 1) * each])} for i in range(processes)]


def show(number: int, process: subprocess.Popen) -> None:
    """Print the process's lines with its number until it closes its output."""
    assert process.stdout
    for line in process.stdout:
        sys.stderr.buffer.write(b"[%d] %s\n" % (number, line.rstrip(b"\n")))
        sys.stderr.buffer.flush()


def together(commands: list[list[str]], extra: list[dict[str, str]], grace: float, asked: list[int]) -> int:
    """Run the commands at once; 0, or the exit code of the first that failed (negative: the signal that ended it).

    Args:
        extra: what each has in its environment beside this one's. grace: seconds, see the module.
        asked: signals to pass on; the handlers of this process append to it.
    """
    processes: list[subprocess.Popen] = []
    for command, env in zip(commands, extra, strict=True):
        out, err = (subprocess.PIPE, subprocess.STDOUT) if processes else (None, None)
        # a group of its own: so a terminal's Ctrl-C comes once, and data workers can be ended with their process
        processes.append(subprocess.Popen(command, env=os.environ | env, process_group=0, stdout=out, stderr=err))
    shows = [threading.Thread(target=show, args=one, daemon=True) for one in list(enumerate(processes))[1:]]
    for thread in shows:
        thread.start()
    passed, first, deadline = 0, 0, float("inf")
    while True:
        running = [str(i) for i, p in enumerate(processes) if p.poll() is None]
        if not first and (failed := [(i, p.returncode) for i, p in enumerate(processes) if p.returncode]):
            i, first = min(failed, key=lambda one: one[1] > 0)  # a signal is a cause, an exit code may follow from it
            say(f"process {i} ended with {f'exit code {first}' if first > 0 else signal.Signals(-first).name}")
            deadline = time.monotonic() + grace
        if not running or time.monotonic() > deadline:
            break
        for number in asked[passed:]:
            for process in processes:
                process.send_signal(number)  # does nothing if it has ended
            passed += 1
        time.sleep(0.02)
    if running:
        say(f"killed, as still running {grace:g} s later: process {', '.join(running)}")
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the late, and data workers whose process is gone
        process.wait()
    for thread in shows:
        thread.join(5)
    return first


def run(argv: list[str], program: list[str]) -> int:
    """Parse the flags, run `program` with the flags that fvjax.main has for several processes; its exit code."""
    parser = argparse.ArgumentParser(
        prog="launch/local.py", description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--devices", type=int, default=0, help="CPU devices of each process (default: main's choice)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs to deal out among the processes (default: none)")
    parser.add_argument("--restarts", type=int, default=0, help="how often to start again (default: never)")
    parser.add_argument("--port", type=int, default=0, help="of the coordinator (default: a free one)")
    parser.add_argument("--grace", type=float, default=90, help="seconds, see above (default: 90)")
    parser.add_argument("flags", nargs="*", help="-- and the flags of fvjax.main")
    args = parser.parse_args(argv)
    if args.processes < 1:
        parser.error(f"--processes={args.processes}: must be at least 1")
    try:
        extra = environments(args.processes, args.devices, args.gpus)
    except ValueError as error:
        parser.error(str(error))
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda n, _: asked.append(n))
    code = 0
    for left in reversed(range(args.restarts + 1)):
        where = f"--coordinator=127.0.0.1:{args.port or free_port()}", f"--processes={args.processes}"
        commands = [[*program, *where, f"--process={i}", *args.flags] for i in range(args.processes)]
        code = together(commands, extra, args.grace, asked)
        if not left or asked or (code >= 0 and code not in AGAIN):
            break
        say(f"all are started again, {left - 1} restarts are left")
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], [sys.executable, "-m", "fvjax.main"]))
