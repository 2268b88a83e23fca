"""Evaluate answers about faces: expression, action units, attributes, age, deepfakes, and the reasoning in them.

    python -m fvjax.face_tasks parse --answers=answers.jsonl --out=parsed.jsonl
        what each answer says, {"id", "task", "parsed"} a line; null where it says nothing of its task
    python -m fvjax.face_tasks score --answers=answers.jsonl [--parsed=parsed.jsonl] [--out=scores.json]
        each task's figures with 95% intervals, the share of unparsed answers, and those of a constant answer
    python -m fvjax.face_tasks judge --answers=answers.jsonl --store=STORE --backend=file|endpoint|model|rules
        ratings of the reasoning from 1 to 10, beside those of the ground truth and of others' ground truth

answers.jsonl has one JSON object a line: "id", "task", "label", "answer", and perhaps "question" (lets "yes" and "no"
be read), "group" (whose answers belong together, such as a person's) and "scores" of the classes. `judge` finds the
pictures and the ground truth in the store of conversations by the id, the record's source. A judge that does not rate
ground truth above that of other samples is refused.

`judge --backend=endpoint` SENDS THE PICTURES to the server of --url; a key is read from FVJAX_ENDPOINT_KEY alone.

Exit code 0; 75 if `judge --backend=file` waits for ratings; or 2 with a line that says what is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fvjax import errors, startup
from fvjax.data.describing.endpoint import Budget, Endpoint, Stopped, read_key
from fvjax.data.describing.samples import open_store
from fvjax.evals import face_tasks, judge, judge_backends
from fvjax.evals.face_tasks import Answer
from fvjax.files import replace_file

INCOMPLETE = 75  # EX_TEMPFAIL: the same command goes on
BACKENDS = ("file", "endpoint", "model", "rules")


def parse(answers: Path, out: Path) -> int:
    """Read from each answer what it says."""
    rows = face_tasks.read_answers(answers)
    parsed = [face_tasks.parse(row) for row in rows]
    lines = (
        json.dumps({"id": row.id, "task": row.task, "parsed": _plain(one)}) + "\n"
        for row, one in zip(rows, parsed, strict=True)
    )
    replace_file(out, "".join(lines))
    print(f"{out}: {len(rows)} answers, {sum(one is None for one in parsed)} unparsed")
    return 0


def score(answers: Path, parsed: Path | None, out: Path | None, seed: int) -> int:
    """Compare what answers say with their labels."""
    rows = face_tasks.read_answers(answers)
    read = {row.id: face_tasks.parse(row) for row in rows} if parsed is None else _read_parsed(parsed, rows)
    entries = {}
    for task in face_tasks.counts_by_task(rows):
        of_task = [row for row in rows if row.task == task]
        entries[task] = face_tasks.score(task, of_task, [read[row.id] for row in of_task], seed=seed)
    _write(out, entries)
    print("\n".join(face_tasks.summary(entries)))
    return 0


def rate(
    answers: Path,
    store: Path,
    backend: str,
    folder: Path | None,
    url: str,
    model: str,
    max_requests: int,
    repeats: int,
    seed: int,
    out: Path | None,
) -> int:
    """Have the reasoning of answers judged, beside ground truth and others' ground truth."""
    rows = face_tasks.read_answers(answers)
    cases = _cases(rows, store)
    if backend == "rules":
        entry = judge_backends.rules(cases, [row.label for row in rows], seed=seed)
        _write(out, entry)
        for kind in judge.KINDS:
            figures = ", ".join(f"{name} {one['value']:.3f}" for name, one in entry[kind].items())
            print(f"{kind}: {figures}")
        return 0
    try:
        entry = judge.rate(cases, _judge(backend, folder, url, model, max_requests), repeats=repeats, seed=seed)
    except judge_backends.Waiting as waiting:
        print(waiting)
        return INCOMPLETE
    _write(out, entry)
    print("\n".join(judge.summary(entry)))
    return 0


def _judge(backend: str, folder: Path | None, url: str, model: str, max_requests: int) -> judge.Judge:
    """Return the judge that the flags name. Raises ValueError: a flag that it needs is missing."""
    needed = {"file": (("--folder", folder),), "endpoint": (("--url", url), ("--model", model))}
    for flag, value in needed.get(backend, (("--model", model),)):
        if not value:
            raise ValueError(f"--backend={backend}: {flag} is missing")
    if backend == "file":
        assert folder is not None
        return judge.Judge("file", judge_backends.file_backend(folder))
    if backend == "endpoint":
        key, budget = read_key(), Budget(max_requests)
        endpoint = Endpoint(url, model, key, max_tokens=200, timeout=120.0, budget=budget)
        return judge.Judge(model, judge_backends.endpoint_backend(endpoint))
    from fvjax.api import load  # here, because only this judge needs jax

    weights = hashlib.sha256()
    for file in sorted(Path(model).glob("*.safetensors")):
        with file.open("rb") as data:
            weights.update(hashlib.file_digest(data, "sha256").digest())
    loaded: Any = load(model, "chat")
    if not hasattr(loaded, "choose"):
        raise ValueError(f"--model={model}: cannot choose among given answers, as a judge must; take another model")
    return judge.Judge(Path(model).name, judge_backends.model_backend(loaded), weights.hexdigest())


def _cases(rows: Sequence[Answer], path: Path) -> list[judge.Case]:
    """Return what is to be judged. Raises ValueError: an answer whose id is no source of the store."""
    store = open_store(path)
    numbers = {source: number for number, source in enumerate(store.sources)}
    cases = []
    for row in rows:
        if row.id not in numbers:
            raise ValueError(f"{path}: no record has the source {row.id!r}; ids of answers are sources of the store")
        record = store.conversation(numbers[row.id])
        cases.append(
            judge.Case(
                row.id,
                row.task,
                judge.label_text(row.task, row.label),
                row.answer,
                record.messages[-1]["content"],
                record.pictures,
                row.group,
            )
        )
    return cases


def _read_parsed(file: Path, rows: Sequence[Answer]) -> dict[str, Any]:
    """Return what each answer says by its id, from a file of `parse`. Raises ValueError: it fits other answers."""
    parsed: dict[str, Any] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}:{number}: not JSON ({error})") from None
        if not isinstance(row, dict) or set(row) != {"id", "task", "parsed"} or not isinstance(row["id"], str):
            raise ValueError(f"{file}:{number}: expected id, task and parsed")
        parsed[row["id"]] = set(row["parsed"]) if isinstance(row["parsed"], list) else row["parsed"]
    if missing := [row.id for row in rows if row.id not in parsed]:
        raise ValueError(f"{file}: nothing about {len(missing)} answers, such as {missing[0]!r}; parse them again")
    if len(parsed) > len(rows):
        raise ValueError(f"{file}: {len(parsed)} lines, but {len(rows)} answers; parse them again")
    return parsed


def _plain(parsed: Any) -> Any:
    return sorted(parsed) if isinstance(parsed, frozenset) else parsed


def _write(out: Path | None, entry: dict[str, Any]) -> None:
    if out is not None:
        replace_file(out, json.dumps(entry, indent=1, ensure_ascii=False) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = startup.Parser(
        prog="python -m fvjax.face_tasks", description="Evaluate answers about faces.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    subs = {
        name: commands.add_parser(name, help=run.__doc__, description=run.__doc__, allow_abbrev=False)
        for name, run in COMMANDS.items()
    }
    for sub in subs.values():
        sub.add_argument("--answers", type=Path, required=True, help="JSONL: id, task, label, answer")
    subs["parse"].add_argument("--out", type=Path, required=True, help="JSONL to write: id, task, parsed")
    subs["score"].add_argument("--parsed", type=Path, help="of `parse`; without it, answers are parsed")
    for name in ("score", "judge"):
        subs[name].add_argument("--out", type=Path, help="JSON to write")
        subs[name].add_argument("--seed", type=int, default=0, help="of the bootstrap and the controls (0)")
    add = subs["judge"].add_argument
    add("--store", type=Path, required=True, help="store of conversations with the pictures and the ground truth")
    add("--backend", choices=BACKENDS, default="file", help="who judges (file)")
    add("--folder", type=Path, help="of requests and ratings, for file")
    add("--url", default="", help="base of the API, such as http://localhost:8000/v1, for endpoint")
    add("--model", default="", help="its name there, or the checkpoint's directory for model")
    add("--max-requests", type=int, default=10_000, help="the most requests to an endpoint, with retries (10000)")
    add("--repeats", type=int, default=1, help="ratings of each request (1)")
    return parser


COMMANDS = {"parse": parse, "score": score, "judge": rate}


def main(argv: Sequence[str] | None = None) -> int:
    options: dict[str, Any] = vars(_parser().parse_args(argv))
    command = COMMANDS[options.pop("command")]
    try:
        with errors.naming(options["answers"]):
            return command(**options)
    except (ValueError, OSError, Stopped) as error:
        print(f"error: {errors.line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    startup.run(main)
