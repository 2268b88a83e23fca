"""Measure mutation scores: how many of many small changes to a module do the tests detect?

    python tests/mutation_scores.py [MODULE …] [--sample=N] [--seed=S] [--changed=BASE] [--write]

Cosmic Ray (https://cosmic-ray.readthedocs.io) changes one operator, number or condition at a time in a copy of the
project. tests/mutation_scores.toml lists the modules, the kinds of change and the tests that judge them. MODULE is a
file of that list or a part of its path ("evals"); without one, all modules are judged. Verdicts are stored in
.mutation/, so that an interrupted run continues where it stopped; `cr-report` and `cr-html` read the sessions there.

A mutant that no test detects is a survivor. The list names survivors whose change has no visible effect, each with the
reason. Every other survivor calls for a test. The exit code is 0; 1 if there are such survivors; 2 if the tests fail
without a mutation, or if the list no longer matches the code.

A mutant is judged in a fork of this process, which has already imported the heavy packages but has started no thread
and computed nothing. This saves two to five seconds per mutant, which is most of the time with tests as small as these.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST, PAGE, KEPT = ROOT / "tests/mutation_scores.toml", ROOT / "tests/MUTATION_SCORES.md", ROOT / ".mutation"
os.environ |= {
    "JAX_PLATFORMS": "cpu",  # read when jax is imported, so before the fork
    "JAX_COMPILATION_CACHE_DIR": str(KEPT / "xla"),  # most mutants do not change most programs
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",  # a cached module could hide a mutation of equal length
}
# ruff: noqa: E402
import pytest
from cosmic_ray.mutating import use_mutation
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkResult
from mutations import copy_project  # tests/mutations.py
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@dataclass(frozen=True)
class Mutant:
    line: int
    old: str  # the line without its indentation
    new: str  # the mutated line; "" if the change spans several lines

    def __str__(self) -> str:
        return f"`{self.old}` → `{self.new}`".replace("|", "\\|")


@dataclass
class Score:
    """Counts of a module's mutants: `possible` mutants, of which `judged` were run and `killed` were detected."""

    possible: int
    judged: int
    killed: int
    equivalent: dict[Mutant, str]  # with the reason
    survivors: list[Mutant]

    @property
    def percent(self) -> float:
        """The percentage of killed mutants among the judged ones that have an effect; 100 if there are none."""
        counted = self.judged - len(self.equivalent)
        return 100 * self.killed / counted if counted else 100.0


def preload(modules: list[str]) -> None:
    """Import the packages that most tests need, before the forks. Raises RuntimeError if one starts a thread."""
    for module in modules:
        importlib.import_module(module)
        tasks = Path("/proc/self/task")
        if tasks.is_dir() and len(list(tasks.iterdir())) > 1:
            raise RuntimeError(
                f"{module} starts a thread, so it cannot be imported before a fork: {LIST.name}, preload"
            )


def run_tests(tests: list[str], copy: Path, timeout: float) -> tuple[int, str]:
    """Run pytest in a fork of this process and return its exit code (124 after `timeout` seconds) and its output."""
    with tempfile.TemporaryFile() as output:
        sys.stdout.flush()
        if not (child := os.fork()):
            _child(tests, copy, output.fileno())
        deadline = time.monotonic() + timeout
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return 124, f"more than {timeout:.0f} s"
            time.sleep(0.02)
        output.seek(0)
        return os.waitstatus_to_exitcode(ended[1]), output.read().decode(errors="replace")


def _child(tests: list[str], copy: Path, output: int) -> None:
    """Run pytest on the copy and exit. This process and its programs import the copy's modules only."""
    code = 70
    try:
        os.setsid()  # a session of its own, so that a timeout also kills the programs that it started
        for stream in (1, 2):
            os.dup2(output, stream)
        os.chdir(copy)
        os.environ["PYTHONPATH"] = str(copy)
        sys.path[:] = [str(copy), *(p for p in sys.path if Path(p).resolve() not in (ROOT, ROOT / "tests"))]
        code = pytest.main(["-o", "addopts=", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests])
        if not Path(importlib.import_module("fvjax").__file__ or "").is_relative_to(copy):
            code = 71  # the tests did not run on the mutant
        sys.stdout.flush()
    finally:
        os._exit(int(code))


def meaningless(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the (start, end) positions, as (line, column), of code whose mutation has no effect.

    These are annotations, decorators, texts of errors, the -1 of a reshape (numpy treats all negative numbers alike)
    and bare stars, which are no operators.
    """
    parts: list[ast.AST | None] = []
    stars = [
        ((number, match.start(1)), (number, match.end(1)))
        for number, line in enumerate(source.splitlines(), 1)
        for match in re.finditer(r"(?:^|[(,{\[=] ?)\s*(\*+)(?=[\w,\[(])", line)
    ]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            parts.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            parts += [node.returns, *node.decorator_list]
        elif isinstance(node, ast.Raise):
            parts.append(node.exc)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "reshape":
            parts += [arg for arg in node.args if isinstance(arg, ast.UnaryOp)]
    return stars + [
        ((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in parts if isinstance(n, ast.expr)
    ]  # type: ignore[misc]


def start_session(path: Path, module: str, config: dict, base: str | None, sample: int, seed: int) -> None:
    """List a module's mutants in a new session. Mutants that are filtered out or not sampled are marked as skipped."""
    operators = re.compile(f"core/({'|'.join(config['operators'])})$")
    settings = {
        "cosmic-ray": {
            "module-path": module,
            "timeout": 60.0,
            "excluded-modules": [],
            "test-command": f"python -m pytest -o addopts= -x -q {' '.join(config['modules'][module])}",
            "distributor": {"name": "local"},
            "filters": {"git-filter": {"branch": base or ""}},
        }
    }
    toml, new = path.with_suffix(".toml"), path.with_suffix(".new")
    toml.write_text(_toml(settings))
    new.unlink(missing_ok=True)
    commands = [["cosmic-ray", "init", str(toml), str(new)]]
    if base:
        commands.append(["cr-filter-git", "--config", str(toml), str(new)])
    for command, *arguments in commands:
        program = Path(sys.executable).with_name(command)
        subprocess.run([str(program), *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    database = WorkDB(new, WorkDB.Mode.open)
    ignored = meaningless((ROOT / module).read_text())
    pending = sorted(database.pending_work_items, key=lambda item: _key(item.mutations[0]))
    other, dropped, rest = [], [], []
    for item in pending:
        mutation = item.mutations[0]
        if not operators.match(mutation.operator_name):
            other.append(item)
        elif any(start <= mutation.start_pos < end for start, end in ignored):
            dropped.append(item)
        else:
            rest.append(item)
    chosen = random.Random(f"{seed} {module}").sample(rest, min(sample or len(rest), len(rest)))
    kept = {item.job_id for item in chosen}
    left = [item for item in rest if item.job_id not in kept]
    reasons = (other, "another operator"), (dropped, "a mutation without effect"), (left, "not sampled")
    for items, why in reasons:  # cr-filter-operators also does the first, but with one commit each, which takes minutes
        if items:
            skipped = WorkResult(output=why, worker_outcome=WorkerOutcome.SKIPPED)
            database.set_multiple_results([item.job_id for item in items], skipped)
    database.close()
    new.rename(path)


def _key(mutation: MutationSpec) -> tuple:
    return mutation.start_pos, mutation.operator_name, mutation.occurrence  # not by job id, which is random


def _toml(settings: dict, table: str = "") -> str:
    plain = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items() if not isinstance(value, dict)]
    deeper = [_toml(v, f"{table}{key}.") for key, v in settings.items() if isinstance(v, dict)]
    head = f"[{table[:-1]}]\n" if table else ""
    return head + "".join(plain) + "".join(deeper)


def session_of(module: str, config: dict, base: str | None, sample: int, seed: int) -> Path:
    """Return the session's file. It changes with the module, its tests and the settings."""
    tests = [test for test in config["modules"][module] if test.startswith("tests/")]
    files = [module, "tests/conftest.py", *sorted({re.split("::", test)[0] for test in tests})]
    parts = [(ROOT / file).read_bytes() for file in files]
    parts.append(json.dumps([config["operators"], config["modules"][module], base, sample, seed]).encode())
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]
    return KEPT / f"{module.removesuffix('.py').replace('/', '.')}-{digest}.sqlite"


def judge(path: Path, module: str, tests: list[str], copy: Path) -> Iterator[Mutant | None]:
    """Judge the pending mutants of a session. Yield each survivor, and None for each killed mutant.

    Raises RuntimeError if the tests fail without a mutation.
    """
    database = WorkDB(path, WorkDB.Mode.open)
    pending = sorted(database.pending_work_items, key=lambda item: _key(item.mutations[0]))
    if pending:
        started = time.monotonic()
        code, output = run_tests(tests, copy, 1800)
        if code:
            raise RuntimeError(f"the tests of {module} fail without a mutation (pytest: {code})\n{output[-3000:]}")
        timeout = 20 + 4 * (time.monotonic() - started)
    for item in pending:
        mutation = item.mutations[0]
        operator = get_operator(mutation.operator_name)(**mutation.operator_args)
        with use_mutation(copy / module, operator, mutation.occurrence) as (old, new):
            code, output = run_tests(tests, copy, timeout)
        mutant = difference(old, new or old)
        result = WorkResult(
            output=output[-4000:],
            diff=json.dumps([mutant.line, mutant.old, mutant.new]),
            test_outcome=TestOutcome.KILLED if code else TestOutcome.SURVIVED,
            worker_outcome=WorkerOutcome.NORMAL,
        )
        if code in (5, 71):
            raise RuntimeError(
                f"{module}: {mutant}: no test ran, or not on the copy (pytest: {code})\n{output[-2000:]}"
            )
        database.set_result(item.job_id, result)
        yield None if code else mutant
    database.close()


def difference(old: str, new: str) -> Mutant:
    """Return the first line that differs."""
    for number, (a, b) in enumerate(zip(old.splitlines(), new.splitlines()), 1):
        if a != b:
            return Mutant(number, a.strip(), b.strip())
    return Mutant(0, "", "")


def score(path: Path, module: str, config: dict) -> Score:
    """Return the score of a finished session. Raises ValueError if the list quotes a line that the module lacks."""
    lines = {line.strip() for line in (ROOT / module).read_text().splitlines()}
    reasons: dict[tuple[str, str], str] = {}
    for one in config.get("equivalent", []):
        if one["module"] == module:
            if one["line"] not in lines:
                raise ValueError(f"{LIST.name} is out of date: {module} has no line {one['line']!r}")
            reasons |= {(one["line"], mutated): one["why"] for mutated in one.get("mutated", ["any"])}
    database = WorkDB(path, WorkDB.Mode.open)
    results = [result for _, result in database.completed_work_items]
    possible = sum(r.worker_outcome == WorkerOutcome.NORMAL or r.output == "not sampled" for r in results)
    out = Score(possible, 0, 0, {}, [])
    for result in results:
        if result.worker_outcome != WorkerOutcome.NORMAL:
            continue
        out.judged += 1
        mutant = Mutant(*json.loads(result.diff))
        if result.test_outcome == TestOutcome.KILLED:
            out.killed += 1
        elif why := reasons.get((mutant.old, mutant.new)) or reasons.get((mutant.old, "any")):
            out.equivalent[mutant] = why
        else:
            out.survivors.append(mutant)
    database.close()
    out.survivors.sort(key=lambda mutant: mutant.line)
    return out


def page(scores: dict[str, Score], command: str) -> str:
    """Return the text of tests/MUTATION_SCORES.md."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = "+" if git("status", "--porcelain", "--", ".", f":!{PAGE.relative_to(ROOT)}") else ""
    rows = [
        f"| `{module}` | {s.possible} | {s.judged} | {s.killed} | {len(s.equivalent)} | {len(s.survivors)} "
        f"| {s.percent:.0f}% |"
        for module, s in scores.items()
    ]
    left = [f"- `{module}`, line {m.line}: {m}" for module, s in scores.items() for m in s.survivors]
    same = [f"- `{module}`: {m}. {why}" for module, s in scores.items() for m, why in s.equivalent.items()]
    out = HEAD.format(command=command, commit=f"{git('show', '-s', '--format=%cs %h', 'HEAD')}{changed}")
    out += "\n".join(rows) + "\n\n## Survivors that no test detects yet\n" + ("\n".join(left) or "None.")
    return out + "\n\n## Survivors that change nothing\n" + ("\n".join(same) or "None.") + "\n"


HEAD = """# Mutation scores

Written by `{command}` at {commit} (+: with uncommitted changes). `mutants` is the number of mutants of the module, and
`judged` is how many of them were sampled and run. `score` is the share of killed mutants among the judged ones, without
those that change nothing.

| module | mutants | judged | killed | change nothing | survived | score |
|---|---|---|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/mutation_scores.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="a file of the list or a part of its path")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="at most N mutants of each module")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument(
        "--changed", nargs="?", const="main", metavar="BASE", help="only lines that differ from BASE (default: main)"
    )
    parser.add_argument("--write", action="store_true", help="write tests/MUTATION_SCORES.md")
    options = parser.parse_args()
    console = Console()
    config = tomllib.loads(LIST.read_text())
    wanted = [m for m in config["modules"] if not options.modules or any(part in m for part in options.modules)]
    if not wanted:
        parser.error(f"no module matches; the modules are {', '.join(config['modules'])}")
    (KEPT / "xla").mkdir(parents=True, exist_ok=True)
    sessions = {m: session_of(m, config, options.changed, options.sample, options.seed) for m in wanted}
    scores: dict[str, Score] = {}
    # No thread may run when a process is forked, so only the loop below refreshes the progress bar.
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    bar = Progress(
        TextColumn("{task.description}"), *columns, console=console, auto_refresh=False, speed_estimate_period=600
    )
    with tempfile.TemporaryDirectory(prefix="fvjax-mutation-") as folder, bar:
        copy = Path(folder).resolve() / "fvjax"
        copy_project(copy)
        data = ROOT.parent / "shared" / "data"
        if data.is_dir():
            os.environ.setdefault("FVJAX_DATA", str(data))
        try:
            preload(config["preload"])
            for module, path in sessions.items():
                if not path.exists():
                    start_session(path, module, config, options.changed, options.sample, options.seed)
            counts = {}
            for module, path in sessions.items():
                database = WorkDB(path, WorkDB.Mode.open)
                counts[module] = len(database.pending_work_items)
                database.close()
            task = bar.add_task("", total=sum(counts.values()))
            for module, path in sessions.items():
                bar.update(task, description=module)
                bar.refresh()
                for survivor in judge(path, module, config["modules"][module], copy):
                    bar.update(task, advance=1)
                    bar.refresh()
                    if survivor:
                        bar.console.print(f"  {module}:{survivor.line}: {survivor}", markup=False, soft_wrap=True)
                s = scores[module] = score(path, module, config)
                line = (
                    f"{module}: {s.percent:.0f}%, {s.killed} of {s.judged} killed, {len(s.equivalent)} change nothing"
                )
                bar.console.print(line, markup=False, highlight=False)
        except (RuntimeError, ValueError) as error:
            bar.console.print(f"error: {error}", markup=False)
            return 2
    if options.write:
        arguments = [a for a in sys.argv[1:] if a != "--write"]
        PAGE.write_text(page(scores, " ".join(["python tests/mutation_scores.py", *arguments])))
    left = sum(len(s.survivors) for s in scores.values())
    if left:
        console.print(f"{left} survivors; add a test for each, or the reason to {LIST.name} if no test can detect it")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
