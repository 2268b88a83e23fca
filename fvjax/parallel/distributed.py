"""Several processes as one run: how they find each other, agree on facts, and notice that one is gone.

`jax.distributed` connects them. Its key-value store, which process 0 serves, carries the messages of this module: facts
that all must share, a sign of life from every process, and the reason why a process ends. The store has no public name
in jax; Orbax uses it under the same private one.
"""

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

PEER_LOST = 69  # EX_UNAVAILABLE: another process is gone; the same command goes on from the last checkpoint
_CONNECT_S = 300  # for all processes to connect
_AGREE_S = 1800  # one process may read gigabytes before it agrees
_rounds = iter(range(sys.maxsize))
_store: Any = None  # jax's, once connected
_me, _leaving = 0, False
_watch: "Watch"


class Place(NamedTuple):
    """Which of the processes that make up a run this one is."""

    processes: int = 1
    coordinator: str | None = None  # HOST:PORT of process 0. None: the scheduler knows it, and `process` too
    process: int | None = None


ALONE = Place()


def start(place: Place, heartbeat: float) -> None:
    """Connect to the other processes before anything is computed; does nothing for a single process.

    Args:
        heartbeat: seconds after which a process without a sign of life counts as lost, and the others end.
    Raises:
        ValueError: the coordinator is no HOST:PORT, process 0 cannot listen there, or jax does not know this scheduler.
            If not all processes connect within five minutes, this one ends with exit code PEER_LOST.
    """
    global _store, _me, _watch
    if place.processes == 1:
        return
    import jax
    from jax._src.distributed import global_state  # it has no public name; Orbax uses it by this one

    options: dict[str, Any] = {}
    if place.coordinator:
        options |= {"coordinator_address": place.coordinator}
        options |= {"num_processes": place.processes, "process_id": place.process}
        check_port(place)
    problem = f"not all of {place.processes} processes came to {place.coordinator or 'the coordinator'}"
    absent = threading.Timer(_CONNECT_S, _exit, (PEER_LOST, f"{problem} within {_CONNECT_S} s; start all of them"))
    absent.daemon = True
    absent.start()
    # Ours come before jax's own time limits, which name no process and end with a stack trace.
    options |= {"initialization_timeout": _CONNECT_S + 60, "heartbeat_timeout_seconds": int(2 * heartbeat) + 10}
    try:
        jax.distributed.initialize(**options)
    finally:
        absent.cancel()
    _store, _me = global_state.client, global_state.process_id
    _watch = Watch(heartbeat, exchange(f"{socket.gethostname()}, pid {os.getpid()}"))
    _watch.start()


def check_port(place: Place) -> None:
    """Raise ValueError if the coordinator is no HOST:PORT, or if this is process 0 and the port is not free.

    Given a port that is taken, jax 0.10.2 often crashes (SIGSEGV, 16 of 40 tries) instead of raising.
    """
    host, _, port = (place.coordinator or "").rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(f"--coordinator={place.coordinator}: must be HOST:PORT of process 0")
    if place.process == 0:
        with socket.socket() as ours:
            # As jax does, so that a port that was just released counts as free.
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                ours.bind(("", int(port)))
            except OSError as error:
                problem = f"process 0 cannot listen there ({error.strerror}); choose another port"
                raise ValueError(f"--coordinator={place.coordinator}: {problem}") from error


def broken(error: Exception) -> bool:
    """Whether an error says that a connection to another process broke; jax raises such a status as several types."""
    status = re.match(
        "(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): ", str(error)
    )
    return _store is not None and (isinstance(error, RuntimeError) or status is not None)


def exchange(text: str) -> list[str]:
    """Send a text to all processes and return the texts of all, in their order. All must call it, equally often."""
    if _store is None:
        return [text]
    name = f"fvjax/round/{next(_rounds)}"
    _store.key_value_set(f"{name}/{_me:06}", text)
    _store.wait_at_barrier(name, _AGREE_S * 1000)
    return [value for _, value in sorted(_store.key_value_dir_get(name))]


def agree(facts: Mapping[str, Any], problem: str = "") -> None:
    """Continue only if no process has a problem and all have the same facts. All must call it.

    Raises ValueError in every process, naming the processes and the first fact that differs.
    """
    messages = [json.loads(text) for text in exchange(json.dumps({"problem": problem, "facts": dict(facts)}))]
    if len(messages) == 1:
        if problem:
            raise ValueError(problem)
        return
    if problems := [f"process {i}: {one['problem']}" for i, one in enumerate(messages) if one["problem"]]:
        raise ValueError("\n".join(dict.fromkeys(problems)))
    first = messages[0]["facts"]
    for i, one in enumerate(messages):
        for key in sorted(set(first) | set(one["facts"])):
            value, expected = one["facts"].get(key), first.get(key)
            if value != expected:
                raise ValueError(
                    f"process {i} has {key} = {value!r}, process 0 has {expected!r}; all must have the same"
                )


def leave(code: int, text: str) -> NoReturn:
    """End this process and tell the others why; they end with the same code. Waits for nobody."""
    global _leaving
    _leaving = True  # so that the watch does not report others that end for the same reason
    if _store is not None:
        with contextlib.suppress(Exception):  # process 0 may be gone
            _store.key_value_set(f"fvjax/ended/{_me:06}", f"{code} {text}", True)
            if _me == 0:  # it serves the store, and the others must read the message first
                time.sleep(3 * Watch.period)
        _exit(code)
    sys.exit(code)


def lost(error: Exception) -> NoReturn:
    """End this process after a computation with others failed: naming who is gone, or else with `error` itself."""
    if _store is None:
        raise error
    time.sleep(_watch.heartbeat + 4 * Watch.period)  # the watch ends this process as soon as it knows who is lost
    leave(PEER_LOST, " ".join(str(error).split()))


def finished() -> None:
    """Tell the others that this process is done, so that they expect no further sign of life."""
    if _store is not None:
        _store.key_value_set(f"fvjax/ended/{_me:06}", "0 ", True)


class Watch:
    """Ends this process with a message when another one is lost or has ended too early.

    A process counts as alive while a thread of its own says so, however long its steps take.

    Args:
        heartbeat: seconds. processes: host and process id of each process, for messages.
    """

    period = 0.5  # seconds between two signs of life

    def __init__(self, heartbeat: float, processes: list[str]):
        self.heartbeat, self.processes = heartbeat, processes
        self.seen = [("", time.monotonic()) for _ in processes]  # each one's last sign of life, and when it came

    def start(self) -> None:
        # Two threads, because a call of the store may hang when process 0 does.
        for target in (self._send_and_read, self._check):
            threading.Thread(target=target, daemon=True).start()

    def _send_and_read(self) -> None:
        """Send signs of life and read those of the others, for ever."""
        count = 0
        while True:
            count += 1
            try:
                _store.key_value_set(f"fvjax/beat/{_me:06}", str(count), True)
                beats, ended = _store.key_value_dir_get("fvjax/beat"), _store.key_value_dir_get("fvjax/ended")
            except Exception:  # process 0 is gone: `_check` will notice that nothing arrives any more
                time.sleep(self.period)
                continue
            for key, value in [*beats, *ended]:
                i = int(key.rpartition("/")[2])
                if "/ended/" in key:
                    self._ended(i, *value.split(" ", 1))
                elif value != self.seen[i][0]:
                    self.seen[i] = value, time.monotonic()
            self.seen[0] = self.seen[0][0], max(self.seen[0][1], time.monotonic())  # it answered
            time.sleep(self.period)

    def _ended(self, i: int, code: str, text: str) -> None:
        if code != "0" and i != _me and not _leaving:
            _exit(int(code), f"process {i} ({self.processes[i]}) ended: {text}")
        self.seen[i] = "", float("inf")  # that process is done

    def _check(self) -> None:
        """End this process if another one has given no sign of life for too long."""
        before = time.monotonic()
        while True:
            time.sleep(self.period)
            now = time.monotonic()
            if now - before > self.heartbeat / 2:  # this process itself was suspended
                self.seen = [(value, max(when, now)) for value, when in self.seen]
            before = now
            for i, (_, when) in enumerate(self.seen):
                if now - when > self.heartbeat and i != _me:
                    problem = f"no sign of life of process {i} ({self.processes[i]}) for {self.heartbeat:.0f} s"
                    _exit(PEER_LOST, f"{problem}; the same command goes on from the last checkpoint")


def _exit(code: int, text: str = "") -> NoReturn:
    for line in text.splitlines():
        print(f"fvjax: error: {line}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at once: other threads may wait for a process that is gone
