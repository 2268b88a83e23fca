"""Walk a stranger's first hour: README's commands in a fresh clone with an empty home, and what is typed next.

    python tests/first_hour.py [--keep=DIR] [--json=FILE]

Each step is a command, the exit code that it must have, and what must be in its output. Half of the steps run on a
terminal of 80 columns, where no table and no bar may be wider than that; the others write to pipes, where nothing may
be drawn over. Each step is printed with its exit code and seconds. The exit code is 1 if one is not as it must be.

It installs packages, so it needs a network or a package index, and it takes about six minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import platform
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 80
CONTROL = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[()][A-Z0-9]|[=>78])")
DRAWN = re.compile("[─━╸╺╇█]|ETA|it/s")
DRAWINGS = """
from PIL import Image
from fvjax.data import synthetic
for name, who, shot in (("A", 1, 0), ("B", 1, 1), ("C", 2, 0)):
    Image.fromarray(synthetic.face(who, shot, 0)).save(f"{name}.png")
for who in range(4):
    for shot in range(3):
        import pathlib; folder = pathlib.Path(f"crops/person_{who}"); folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(synthetic.face(who, shot, 0)).save(folder / f"{shot}.png")
"""


@dataclass(frozen=True)
class Step:
    """A command of a shell, its exit code and a pattern of its output; `lines` bounds those on standard error."""

    name: str
    command: str
    code: int = 0
    shows: str = ""
    lines: int | None = None
    tty: bool = False


@dataclass(frozen=True)
class Outcome:
    name: str
    command: str
    tty: bool
    code: int
    seconds: float
    widest_drawing: int
    problems: tuple[str, ...]


def readme_blocks() -> list[list[str]]:
    """Return the lines of README's shell blocks."""
    found = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [block.strip().splitlines() for block in found]


def steps() -> list[Step]:
    """Return the walk: README's first block as it stands, then what a stranger tries next."""
    python = ".venv/bin/python"
    install, first = readme_blocks()[0]
    runs, config = "runs/quickstart", "--config=configs/quickstart.py"
    return [
        Step("install", install),
        Step("the first command", first, shows="the same|vit_lora"),
        Step("the same again", first, shows="vit_lora", tty=True),
        Step("help", f"{python} -m fvjax --help", shows="verify", tty=True),
        Step("help of a command", f"{python} -m fvjax verify --help", shows="--unsure", tty=True),
        Step("no config", f"{python} -m fvjax.main", 2, "--config=NAME is missing", 1),
        Step(
            "a misspelt config", f"{python} -m fvjax.main --config=configs/quikstart.py", 2, "mean quickstart", 1, True
        ),
        Step("an unknown key", f"{python} -m fvjax.main {config} --config.optimiser.lr=1", 2, "optimizer", 1),
        Step("an unknown row", f"{python} -m fvjax.main {config}:lora", 2, "vit_lora", 1, True),
        Step("weights that are not there", f"{python} -m fvjax.main --config=configs/vit_lora.py", 2, "hf download", 4),
        Step("drawings as pictures", f"{python} -c '{DRAWINGS}'"),
        Step("two pictures", f"{python} -m fvjax.verify A.png B.png --model={runs}/vit_lora", 0, "threshold", tty=True),
        Step("a picture is missing", f"{python} -m fvjax.verify A.png b.png --model={runs}/vit_lora", 2, "b.png", 1),
        Step("an answer as a picture", f"{python} -m fvjax.verify A.png C.png --model={runs}/vit_lora --save=ac.png"),
        Step("own crops", f"{python} -m fvjax.data.prepare folder --src=crops --dst=data/own", shows="12", tty=True),
        Step("own crops again", f"{python} -m fvjax.data.prepare folder --src=crops --dst=data/own", 2, "data/own", 1),
        Step("the store examined", f"{python} -m fvjax.doctor --data=data/own", 0, "no findings", tty=True),
        Step("a person among crops", f"{python} -m fvjax.search --gallery=crops --probe=A.png --model={runs}/vit_lora"),
        Step("two rows compared", f"{python} -m fvjax.compare {runs}/vit_lora {runs}/resnet", shows="95%", tty=True),
        Step("a report", f"{python} -m fvjax.report {runs}/vit_lora --out=report.html", shows="report.html"),
        Step("evaluated again", f"{python} -m fvjax.main --mode=eval --workdir={runs}/vit_lora", tty=True),
        Step(
            "the plan of the paper's row", f"{python} -m fvjax.plan --config=configs/vit_lora.py --devices=8", tty=True
        ),
        Step("the plan of reproducing", f"{python} -m fvjax.reproduce --scale=small --plan", tty=True),
    ]


def on_terminal(command: str, folder: Path, environment: dict[str, str]) -> tuple[int, str, str]:
    """Run a command on a terminal of 80 columns; return its exit code and what was written there."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    streams = {"stdin": side, "stdout": side, "stderr": side}
    with subprocess.Popen(["bash", "-c", command], cwd=folder, env=environment, **streams) as process:
        os.close(side)
        parts: list[bytes] = []
        while True:
            ready, _, _ = select.select([main], [], [], 0.2)
            if ready:
                with contextlib.suppress(OSError):  # EIO: the last writer has ended
                    if part := os.read(main, 65536):
                        parts.append(part)
                        continue
                break
            if process.poll() is not None:
                break
    os.close(main)
    text = b"".join(parts).decode(errors="replace")
    return process.returncode, text, text


def on_pipes(command: str, folder: Path, environment: dict[str, str]) -> tuple[int, str, str]:
    """Run a command without a terminal; return its exit code, all that it wrote, and its standard error."""
    options = {"cwd": folder, "env": environment, "stdin": subprocess.DEVNULL, "capture_output": True}
    done = subprocess.run(["bash", "-c", command], text=True, **options)
    return done.returncode, done.stdout + done.stderr, done.stderr


def problems(step: Step, code: int, text: str, errors: str) -> tuple[int, list[str]]:
    """Return the widest line of a table or a bar, in columns, and what is not as it must be."""
    plain = CONTROL.sub("", text)
    parts = [part.rstrip() for line in plain.splitlines() for part in line.split("\r")]
    widest = max((len(part) for part in parts if DRAWN.search(part)), default=0)
    found = []
    if code != step.code:
        found.append(f"exit code {code} instead of {step.code}")
    if not re.search(step.shows, plain):
        found.append(f"nothing in its output fits {step.shows!r}")
    if step.tty and widest > COLUMNS:
        found.append(f"a table or bar of {widest} columns on a terminal of {COLUMNS}")
    if not step.tty and CONTROL.search(text):
        found.append("control sequences without a terminal")
    if "Traceback" in plain:
        found.append("a traceback")
    if step.lines is not None and (count := len(CONTROL.sub("", errors).strip().splitlines())) > step.lines:
        found.append(f"an error of {count} lines")
    return widest, found


def walk(folder: Path) -> list[Outcome]:
    """Take all steps in a fresh clone below `folder`, with an empty home, and print a line for each."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder / "fvjax")], check=True)
    (folder / "home").mkdir()
    kept = {
        name: os.environ[name]
        for name in ("PATH", "PIP_INDEX_URL", "UV_INDEX_URL", "SSL_CERT_FILE")
        if name in os.environ
    }
    environment = {**kept, "HOME": str(folder / "home"), "LANG": "C.UTF-8", "TERM": "xterm-256color"}
    outcomes = []
    for step in steps():
        started = time.monotonic()
        code, text, errors = (on_terminal if step.tty else on_pipes)(step.command, folder / "fvjax", environment)
        seconds = time.monotonic() - started
        widest, found = problems(step, code, text, errors)
        outcomes.append(Outcome(step.name, step.command, step.tty, code, round(seconds, 1), widest, tuple(found)))
        print(f"{step.name:30} {code:4} {seconds:7.1f} s  {'; '.join(found) or 'as it must be'}", flush=True)
        if found:
            print(f"--- {step.command}\n{CONTROL.sub('', text)[-3000:]}\n---", flush=True)
        if step.name == "install" and code:
            break
    return outcomes


def processor() -> str:
    """Return the processor's name as Linux has it, or the machine's kind."""
    with contextlib.suppress(OSError):
        if found := re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()):
            return f"{found[1]}, {os.cpu_count()} cores"
    return platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(description="Walk README's commands and a stranger's mistakes in a fresh clone.")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="walk in this new folder, and keep it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes to this file")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        outcomes = walk(folder)
    finally:
        if not given.keep:
            shutil.rmtree(folder, ignore_errors=True)
    if given.json:
        facts = {"processor": processor(), "python": platform.python_version(), "steps": [asdict(o) for o in outcomes]}
        given.json.write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{sum(o.seconds for o in outcomes):.0f} s on {processor()}")
    return int(any(outcome.problems for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
