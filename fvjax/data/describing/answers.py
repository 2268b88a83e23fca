"""Answers of an endpoint about labelled pictures, written as they come: LLaVA's conversations, one JSON object a line.

    {"id": "val/1.jpg#detail", "image": "val/1.jpg", "conversations": [{"from": "human", …}, {"from": "gpt", …}]}

A run that was stopped or killed goes on with the same command: answers that are in the file are not asked for again,
and a line that a kill cut short is. FILE.settings.json beside the file says what it was made with; with other labels,
prompts, model or length of answers a run refuses to add to it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fvjax import errors, files
from fvjax.data import picture_bytes, tiling
from fvjax.data.describing.endpoint import Endpoint, NoAnswer, Stopped
from fvjax.data.describing.prompts import Prompt, Prompts
from fvjax.data.questions import IMAGE
from fvjax.data.readers.conversations import PictureFolder
from fvjax.data.readers.fairface import Label
from fvjax.data.stores.conversations import check_messages

MAX_PICTURE = 20 << 20  # bytes of a file that is sent; endpoints refuse larger ones


class TooManyFailures(ValueError):
    """So many questions in a row got no answer that something is wrong with the endpoint."""


@dataclass(frozen=True)
class Job:
    """One question about one picture."""

    label: Label
    prompt: Prompt

    @property
    def id(self) -> str:
        return f"{self.label.file}#{self.prompt.name}"

    def line(self, answer: str) -> str:
        """Return the line of the output. Raises NoAnswer if a store of conversations would refuse the answer."""
        question = IMAGE + self.prompt.stored
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        try:
            check_messages(messages, 1)
        except ValueError as error:
            raise NoAnswer(str(error).partition(":")[0]) from error
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        entry = {"id": self.id, "image": self.label.file, "conversations": turns}
        return json.dumps(entry, ensure_ascii=False) + "\n"


@dataclass
class Counts:
    """What a run did, in questions: those answered before and now, and by reason those without answer or picture.

    Attributes:
        stopped: why the run ended before it asked everything; "" if it did not.
    """

    total: int
    before: int
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)
    stopped: str = ""

    @property
    def missing(self) -> int:
        """The questions that the same command would ask again."""
        return self.total - self.before - self.answered - self.unreadable.total()


def jobs(labels: Sequence[Label], prompts: Prompts) -> list[Job]:
    """Return every question about every picture, picture by picture."""
    return [Job(label, prompt) for label in labels for prompt in prompts.questions]


def settings(labels: Sequence[Label], prompts: Prompts, model: str, max_tokens: int) -> dict[str, Any]:
    """Return what decides the answers, for FILE.settings.json."""
    listed = json.dumps([[label.file, label.age, label.gender, label.race] for label in labels])
    digest = hashlib.sha256(listed.encode(errors="surrogateescape")).hexdigest()
    return {"model": model, "max_tokens": max_tokens, "prompts": prompts.digest, "labels": digest}


@contextmanager
def opened(file: Path, made_with: dict[str, Any]) -> Iterator[tuple[io.FileIO, set[str]]]:
    """Open the output for appending and yield it with the ids that it has; a line cut short is removed.

    Raises:
        ValueError: another process writes to it, it was made with other settings, or a line is damaged.
    """
    settings_file = file.with_name(f"{file.name}.settings.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab", buffering=0) as output:
        try:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{file}: another process is writing to it; wait, or choose another --dst") from error
        _check_settings(file, settings_file, made_with)
        ids = _read_ids(file)
        yield output, ids


def run(
    todo: Sequence[Job],
    folder: PictureFolder,
    endpoint: Endpoint,
    output: io.FileIO,
    *,
    system: str,
    parallel: int,
    max_failures: int,
    counts: Counts,
    advance: Callable[[], None],
) -> None:
    """Ask all questions, several at a time, append each answer as it comes, and keep count.

    Answers that are on their way when the run stops are still written: they are paid for.

    Args:
        todo: the questions to ask.
        folder: the folder of the pictures.
        output: see :func:`opened`.
        system: the system message.
        parallel: how many requests may be on their way at a time.
        max_failures: how many questions in a row may stay without an answer.
        advance: called after each question.
    Raises:
        TooManyFailures: so many in a row.
        Refused: the endpoint will answer nothing.
    """
    waiting = iter(todo)
    pending: set[Future[str]] = set()
    failures_in_a_row = 0
    with ThreadPoolExecutor(parallel) as pool:
        try:
            while True:
                while len(pending) < parallel and (job := next(waiting, None)):
                    pending.add(pool.submit(_ask, job, folder, endpoint, system))
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    pending.remove(future)
                    failure = _collect(future, output, counts)
                    failures_in_a_row = failures_in_a_row + 1 if failure else 0
                    advance()
                    if failures_in_a_row >= max_failures:
                        raise TooManyFailures(
                            f"{failures_in_a_row} questions in a row without an answer, the last one: {failure}; "
                            "check the endpoint and run the same command again"
                        )
        except Stopped as stop:
            counts.stopped = str(stop)
        finally:
            endpoint.end()
            for future in wait(pending).done:
                if not isinstance(future.exception(), (Stopped, ValueError)):
                    _collect(future, output, counts)


class _Unreadable(Exception):
    """A picture that cannot be sent. The text is the reason, to be counted."""


def _ask(job: Job, folder: PictureFolder, endpoint: Endpoint, system: str) -> str:
    """Return the output's line for a question."""
    try:
        picture = folder.read(job.label.file)
        tiling.decode_picture(picture, "unreadable picture")
    except ValueError as error:
        raise _Unreadable(str(error).partition(":")[0]) from error
    if len(picture) > MAX_PICTURE:
        raise _Unreadable(f"a picture of more than {MAX_PICTURE} bytes")
    # Not Pillow's name of the format: it calls some JPEGs of phones MPO.
    media_type = picture_bytes.media_type(picture)
    return job.line(endpoint.ask(system, job.prompt.filled(job.label), picture, media_type))


def _collect(future: Future[str], output: io.FileIO, counts: Counts) -> str:
    """Write the answer of a finished request, or count why there is none.

    Returns:
        Why the endpoint gave no answer; "" if it did, or was not asked because of the picture.
    """
    try:
        line = future.result()
    except NoAnswer as error:
        counts.failed[str(error)] += 1
        return str(error)
    except _Unreadable as error:
        counts.unreadable[str(error)] += 1
        return ""
    _append(output, line.encode())
    counts.answered += 1
    return ""


def _append(output: io.FileIO, line: bytes) -> None:
    """Append a whole line or, if the disk is full, nothing."""
    size = os.fstat(output.fileno()).st_size
    with errors.naming(str(output.name)):
        try:
            if output.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(output.fileno())
        except OSError:
            os.ftruncate(output.fileno(), size)
            raise


def _check_settings(file: Path, settings_file: Path, made_with: dict[str, Any]) -> None:
    """Write the settings of a new output, or compare those of an old one."""
    if not settings_file.exists():
        if file.stat().st_size:
            raise ValueError(f"{file}: without {settings_file.name} it is not known what made it; choose another --dst")
        files.replace_file(settings_file, json.dumps(made_with, indent=1) + "\n")
        return
    try:
        before = json.loads(settings_file.read_text(encoding="utf-8"))
        different = [key for key in made_with if before[key] != made_with[key]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{settings_file}: damaged ({error}); choose another --dst") from error
    if different:
        raise ValueError(f"{file}: it was made with other {different[0]}; choose another --dst, or use the same again")


def _read_ids(file: Path) -> set[str]:
    """Return the ids of the output's lines after removing a last line that was cut short."""
    ids: set[str] = set()
    whole = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                break
            try:
                name = json.loads(line)["id"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(f"{file} line {number}: damaged ({error}); remove the line to ask again") from error
            if not isinstance(name, str) or name in ids:
                raise ValueError(f"{file} line {number}: the id {name!r:.100} is there twice; remove one of the lines")
            ids.add(name)
            whole += len(line)
    if whole < file.stat().st_size:
        os.truncate(file, whole)
    return ids
