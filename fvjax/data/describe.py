"""Make conversations about photographs of faces, and judge them.

    python -m fvjax.data.describe labels --src=DIR --labels=CSV --dst=STORE
        questions about FairFace's labels (age group, gender, race), without any model or network
    python -m fvjax.data.describe endpoint --src=DIR --labels=CSV --dst=FILE.jsonl --url=… --model=… --max-requests=N
        descriptions by a language model, eight questions a picture as in FairFaceGPT
    python -m fvjax.data.describe procedural --dst=STORE --identities=100
        a small FaceInstruct: drawn faces and short clips, with exact labels and facial points for five tasks
    python -m fvjax.data.describe audit --src=STORE --out=audit.html
        a page with random samples, on which a person marks what is right and what is hallucinated
    python -m fvjax.data.describe audit-result marks.json --audit=audit.html
        the hallucination rate that the marks of a page give
    python -m fvjax.data.describe control --src=STORE --dst=STORE
        the same texts with a fixed picture, for the control run that learns from text alone

`endpoint` speaks to any OpenAI-compatible server, such as a local one of vLLM, and SENDS IT THE PICTURES. The key, if
the server wants one, is read from the environment variable FVJAX_ENDPOINT_KEY. Answers are appended to FILE.jsonl as
they come, and the same command goes on where a run stopped. `python -m fvjax.data.prepare conversations
--src=FILE.jsonl --images=DIR --dst=STORE` makes a store of them.

Exit code 0; 75 if `endpoint` left questions that the same command would ask; or 2 with a line that says what is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fvjax import errors, files, startup
from fvjax.data import face_instruct
from fvjax.data import images as pictures
from fvjax.data.describing import answers, audit, control, label_questions, prompts, samples
from fvjax.data.describing.endpoint import KEY_VARIABLE, Budget, Endpoint, read_key
from fvjax.data.face_labels import TASKS
from fvjax.data.frames import FRAMES
from fvjax.data.progress import progress_bar
from fvjax.data.readers.conversations import PictureFolder, summary
from fvjax.data.readers.fairface import read_labels
from fvjax.data.stores import manifest

INCOMPLETE = 75  # EX_TEMPFAIL, as of a training that was stopped: the same command goes on


def labels(
    src: Path,
    labels: Path,
    dst: Path,
    repair_ages: bool,
    split: str,
    val: float,
    test: float,
    seed: int,
    single: bool,
    kinds: str,
) -> int:
    """Make a store of questions about FairFace's labels."""
    rows = read_labels(labels, repair_ages=repair_ages)
    options = {"split": split, "val": val, "test": test, "seed": seed, "single": single, "kinds": kinds.split(",")}
    store = label_questions.write(rows, src, dst, source=str(labels), **options)
    print(summary(store))
    for kind, counts in store.manifest["questions"]["answers"].items():
        print(f"  {kind}: {_shares(counts)}")
    for part, share in (("val", val), ("test", test)):
        if share:
            path = dst / part
            print(summary(samples.open_store(path)) if path.is_dir() else f"  no picture is in the part {part!r}")
    return 0


def endpoint(
    src: Path,
    labels: Path,
    dst: Path,
    repair_ages: bool,
    url: str,
    model: str,
    prompts_file: Path,
    max_requests: int,
    max_tokens: int,
    max_failures: int,
    parallel: int,
    timeout: float,
) -> int:
    """Let a language model at an endpoint describe pictures, and append its answers to a file."""
    limits = {"--max-requests": max_requests, "--max-tokens": max_tokens, "--max-failures": max_failures}
    limits |= {"--parallel": parallel, "--timeout": timeout}
    if low := [f"{flag}={value}" for flag, value in limits.items() if not value > 0]:
        raise ValueError(f"{low[0]}: expected a number above 0")
    rows, texts = read_labels(labels, repair_ages=repair_ages), prompts.load(prompts_file)
    folder, key, budget = PictureFolder(src), read_key(), Budget(max_requests)
    client = Endpoint(url, model, key, max_tokens=max_tokens, timeout=timeout, budget=budget)
    with answers.opened(dst, answers.settings(rows, texts, model, max_tokens)) as (output, ids):
        everything = answers.jobs(rows, texts)
        todo = [job for job in everything if job.id not in ids]
        counts = answers.Counts(len(everything), len(everything) - len(todo))
        print(f"{dst}: {counts.before} of {counts.total} answers are there; asking {url}, {_key_line(key)}")
        try:
            with progress_bar() as bar:
                task = bar.add_task("questions", total=len(todo))
                answers.run(
                    todo,
                    folder,
                    client,
                    output,
                    system=texts.system,
                    parallel=parallel,
                    max_failures=max_failures,
                    counts=counts,
                    advance=lambda: bar.advance(task),
                )
        except KeyboardInterrupt:
            counts.stopped = "interrupted"
        finally:
            print(_endpoint_summary(counts, budget.made))
    return INCOMPLETE if counts.missing else 0


def procedural(
    dst: Path,
    first: int,
    identities: int,
    images: int,
    clips: int,
    frames: int,
    seed: int,
    split: str,
    tasks: str,
    low_resolution: int | None,
) -> int:
    """Make a small FaceInstruct of drawn faces and clips, with exact labels and facial points."""
    if first < 0 or identities < 1 or seed < 0:
        raise ValueError(f"--first={first} --identities={identities} --seed={seed}: expected 0, 1 and 0 or more")
    store = face_instruct.write(
        dst,
        range(first, first + identities),
        images_per_identity=images,
        clips_per_identity=clips,
        seed=seed,
        split=split,
        tasks=tasks.split(","),
        low_resolution=low_resolution,
        frames=frames,
    )
    print(summary(store))
    print(f"  {_shares(store.manifest['face_instruct']['records'])}; landmarks: {store.detector}")
    return 0


def make_audit(src: Path, images: Path | None, count: int, seed: int, out: Path) -> int:
    """Write a page on which a person marks random answers."""
    if out.exists():
        raise ValueError(f"{out} exists; choose another --out, or remove it")
    records, numbers = samples.choose(src, images, lambda total: audit.choose(total, count, seed))
    files.replace_file(out, audit.page(records, numbers))
    size = out.stat().st_size / 1e6
    print(f"{out}: {len(records)} samples of {src}, {size:.1f} MB; open it in a browser, mark and save")
    return 0


def audit_result(marks: Path, page: Path) -> int:
    """Print the hallucination rate that the marks of a page give."""
    rate = audit.result(page, marks)
    low, high = rate.interval
    judged = rate.counts["right"] + rate.counts["hallucinated"]
    print(
        f"hallucinated: {rate.counts['hallucinated']} of {judged} judged answers, {rate.rate:.1%} "
        f"(95% Wilson interval {low:.1%} to {high:.1%}; answers count as independent)"
    )
    print(f"left out: {rate.counts['unsure']} unsure, {rate.counts['unmarked']} not marked")
    return 0


def make_control(src: Path, dst: Path) -> int:
    """Copy a store with a fixed picture in place of every real one."""
    print(summary(control.write(src, dst)))
    return 0


def _key_line(key: str) -> str:
    return f"with the key of {KEY_VARIABLE}" if key else f"without a key ({KEY_VARIABLE} is not set)"


def _endpoint_summary(counts: answers.Counts, requests: int) -> str:
    lines = [f"{counts.answered} answers in {requests} requests; {counts.missing} of {counts.total} are still missing"]
    if counts.failed:
        lines.append(f"  {counts.failed.total()} questions without a usable answer: {_reasons(counts.failed)}")
    if counts.unreadable:
        lines.append(f"  {counts.unreadable.total()} questions left out: {_reasons(counts.unreadable)}")
    if counts.missing:
        because = f"stopped, {counts.stopped}: " if counts.stopped else ""
        lines.append(f"  {because}the same command asks for what is missing")
    return "\n".join(lines)


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in counts.items())


def _shares(counts: Mapping[str, int]) -> str:
    total = sum(counts.values()) or 1
    return ", ".join(f"{answer} {number} ({number / total:.0%})" for answer, number in counts.items())


def _parser() -> argparse.ArgumentParser:
    parser = startup.Parser(
        prog="python -m fvjax.data.describe",
        description="Make conversations about photographs of faces, and judge them.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add_labels, add_endpoint, add_procedural, add_audit, add_result, add_control = (
        commands.add_parser(name, help=run.__doc__, description=run.__doc__, allow_abbrev=False)
        for name, run in COMMANDS.items()
    )
    for sub in (add_labels, add_endpoint):
        sub.add_argument("--src", type=Path, required=True, help="the folder that the labels' files are relative to")
        sub.add_argument("--labels", type=Path, required=True, help="FairFace's CSV: file, age, gender, race")
        sub.add_argument("--repair-ages", action="store_true", help="read 03-Sep as 3-9, Oct-19 as 10-19, and so on")
    add_labels.add_argument("--dst", type=Path, required=True, help="the store to make; must not exist")
    add_labels.add_argument("--split", choices=manifest.SPLITS, default="train", help="of the store (train)")
    add_labels.add_argument("--val", type=float, default=0.0, help="about this share of the pictures to DST/val (0)")
    add_labels.add_argument(
        "--test", type=float, default=0.0, help="about this share to DST/test, one question a record (0)"
    )
    add_labels.add_argument("--seed", type=int, default=0, help="of wordings and of the choice of parts (0)")
    add_labels.add_argument("--single", action="store_true", help="one question a record, for evaluation")
    every = ",".join(label_questions.KINDS)
    add_labels.add_argument("--kinds", default=every, help=f"of questions, separated by commas ({every})")
    _add_endpoint_flags(add_endpoint)
    _add_procedural_flags(add_procedural)
    add_audit.add_argument("--src", type=Path, required=True, help="a store of conversations, or their .json or .jsonl")
    add_audit.add_argument("--images", type=Path, help="the folder of the pictures, unless --src is a store")
    add_audit.add_argument("--count", type=int, default=100, help="samples (100)")
    add_audit.add_argument("--seed", type=int, default=0, help="of the choice of samples (0)")
    add_audit.add_argument("--out", type=Path, required=True, help="the page to write; must not exist")
    add_result.add_argument("marks", type=Path, help="the file that the page's button saved")
    add_result.add_argument("--audit", dest="page", type=Path, required=True, help="the page that was marked")
    add_control.add_argument("--src", type=Path, required=True, help="a store of conversations")
    add_control.add_argument("--dst", type=Path, required=True, help="the store to make; must not exist")
    return parser


def _add_endpoint_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dst", type=Path, required=True, help="FILE.jsonl; answers that it has are not asked again")
    parser.add_argument("--url", required=True, help="base of the API, such as http://localhost:8000/v1")
    parser.add_argument("--model", required=True, help="the model's name there")
    parser.add_argument("--prompts", dest="prompts_file", type=Path, default=prompts.FILE, help="TOML (the package's)")
    parser.add_argument("--max-requests", type=int, required=True, help="the most requests of this run, with retries")
    parser.add_argument("--max-tokens", type=int, default=500, help="of an answer; longer ones are not kept (500)")
    parser.add_argument("--max-failures", type=int, default=10, help="questions in a row without an answer (10)")
    parser.add_argument("--parallel", type=int, default=4, help="requests on their way at a time (4)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for a request (120)")


def _add_procedural_flags(parser: argparse.ArgumentParser) -> None:
    every = ",".join(TASKS)
    parser.add_argument("--dst", type=Path, required=True, help="the store to make; must not exist")
    parser.add_argument("--first", type=int, default=0, help="number of the first person; others are other people (0)")
    parser.add_argument("--identities", type=int, required=True, help="how many people")
    parser.add_argument("--images", type=int, default=2, help="pictures of each person (2)")
    parser.add_argument("--clips", type=int, default=1, help="clips of each person (1)")
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"of a clip ({FRAMES})")
    parser.add_argument("--seed", type=int, default=0, help="of people, shots and wordings (0)")
    parser.add_argument("--split", choices=manifest.SPLITS, default="train", help="of the store; test: one wording")
    parser.add_argument("--tasks", default=every, help=f"separated by commas ({every})")
    parser.add_argument("--low-resolution", type=int, help="shrink pictures to so many pixels a side, and enlarge them")


COMMANDS = {
    "labels": labels,
    "endpoint": endpoint,
    "procedural": procedural,
    "audit": make_audit,
    "audit-result": audit_result,
    "control": make_control,
}


def main(argv: Sequence[str] | None = None) -> int:
    options: dict[str, Any] = vars(_parser().parse_args(argv))
    command = COMMANDS[options.pop("command")]
    pictures.silence_pillow()
    try:
        with errors.naming(options.get("dst") or options.get("out") or options["marks"]):
            return command(**options)
    except (ValueError, OSError) as error:
        print(f"error: {errors.line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    startup.run(main)
