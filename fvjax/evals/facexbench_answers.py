"""Ask a model the questions of FaceXBench, and keep its answers, so that an evaluation resumes file by file.

A folder has one JSON-lines file for each file of the benchmark. Its first line has the fingerprint of what was asked
(model, prompts, settings); each further line has a question's number, a hash of its prompt, and its answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvjax import errors
from fvjax.data.readers.facexbench import Question
from fvjax.evals.choices import extract, option_letters
from fvjax.files import replace_file

Generate = Callable[[list[Question]], Sequence[tuple[str, bool]]]  # text, and whether the token limit cut it short
Letters = Callable[[list[Question]], Sequence[NDArray]]  # probabilities [number of options] of each question's letters


@dataclass(frozen=True)
class Prediction:
    """A model's answers to one question, by generation, by the letters' probabilities, or both.

    Attributes:
        output: the generated text; None if none was asked for.
        cut: whether the token limit cut the text short.
        extracted: the letter that the published rules find in the text; None if they find none.
        probabilities: of the options' letters as the first token of the answer; None if they were not asked for.
        letter: the most probable letter (the first of equal ones).
    """

    output: str | None = None
    cut: bool = False
    extracted: str | None = None
    probabilities: tuple[float, ...] | None = None
    letter: str | None = None


def evaluate(
    questions: Sequence[Question],
    generate: Generate | None,
    letters: Letters | None,
    folder: Path,
    fingerprint: str,
    track: Callable[[Sequence[str]], Iterable[str]] = iter,
    *,
    write: bool = True,
) -> list[Prediction]:
    """Ask the questions that ``folder`` has no answers to, one file after the other, and return all answers in order.

    The answers to a file's questions are written together, so a kill loses those of one file at most.

    Args:
        generate, letters: the two ways to ask; None leaves one out. Both get all questions of a file that lack it.
        folder: where answers are kept; made if need be.
        fingerprint: one line that differs whenever answers could: hashes of the weights and of the store, and the
            settings of generation.
        track: wraps the loop over the files' names, to show its progress.
        write: False in processes that ask together with another one, which writes. They must see the same folder.
    Raises:
        ValueError: the folder has answers with another fingerprint or to another prompt, or is damaged; or
            ``generate`` or ``letters`` returned something unusable.
    """
    if generate is None and letters is None:
        raise ValueError("neither generate nor letters was given; there is no way to ask the questions")
    ways: dict[str, Callable[[list[Question]], list[dict[str, Any]]]] = {}
    if generate is not None:
        ways["output"] = partial(_generated, generate)
    if letters is not None:
        ways["probabilities"] = partial(_chosen, letters)
    by_file = _by_file(questions)
    answers = {file: _read_answers(folder, file, asked, fingerprint) for file, asked in by_file.items()}
    for file in track(list(by_file)):
        for key, ask in ways.items():
            asked = [question for question in by_file[file] if key not in answers[file].get(question.number, {})]
            if not asked:
                continue
            for question, answer in zip(asked, ask(asked)):
                answers[file].setdefault(question.number, _unanswered(question)).update(answer)
            if write:
                _write_answers(folder, file, answers[file], fingerprint)
    return [_prediction(answers[question.file][question.number], set(ways)) for question in questions]


def pending(
    questions: Sequence[Question], folder: Path, fingerprint: str, *, generation: bool = True, letters: bool = True
) -> list[Question]:
    """Return the questions that :func:`evaluate` would still ask, in order. Raises ValueError as it does."""
    wanted = [key for key, asked in (("output", generation), ("probabilities", letters)) if asked]
    by_file = _by_file(questions)
    answers = {file: _read_answers(folder, file, asked, fingerprint) for file, asked in by_file.items()}
    return [q for q in questions if any(key not in answers[q.file].get(q.number, {}) for key in wanted)]


def answers_file(folder: Path, file: str) -> Path:
    """Return the file in ``folder`` that keeps the answers to the questions of ``file``."""
    if Path(file).name != file or not file:
        raise ValueError(f"{file!r}: no plain file name; prepare the store again")
    return folder / f"{file.removesuffix('.json')}.jsonl"


def prompt_hash(question: Question) -> str:
    """Hash a question's prompt, options and answer."""
    text = json.dumps([question.prompt, question.options, question.answer])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _by_file(questions: Sequence[Question]) -> dict[str, list[Question]]:
    by_file: dict[str, list[Question]] = {}
    for question in questions:
        by_file.setdefault(question.file, []).append(question)
    for file, asked in by_file.items():
        if len({question.number for question in asked}) < len(asked):
            raise ValueError(f"{file}: several questions have the same number; prepare the store again")
    if len({answers_file(Path(), file) for file in by_file}) < len(by_file):
        raise ValueError("two files of the benchmark differ by the suffix .json alone; rename one of them")
    return by_file


def _unanswered(question: Question) -> dict[str, Any]:
    """Return the record of a question that has not been asked yet."""
    return {"question": question.number, "prompt_hash": prompt_hash(question)}


def _generated(generate: Generate, asked: list[Question]) -> list[dict[str, Any]]:
    texts = generate(asked)
    if len(texts) != len(asked):
        raise ValueError(f"{asked[0].file}: {len(texts)} texts for {len(asked)} questions; expected one for each")
    return [
        {"output": output, "cut": bool(cut), "extracted": extract(output, question.options)}
        for question, (output, cut) in zip(asked, texts)
    ]


def _chosen(letters: Letters, asked: list[Question]) -> list[dict[str, Any]]:
    rows = [np.asarray(row, np.float64) for row in letters(asked)]
    if len(rows) != len(asked):
        raise ValueError(f"{asked[0].file}: probabilities of {len(rows)} questions; expected {len(asked)}")
    for question, row in zip(asked, rows):
        if row.shape != (len(question.options),) or not np.isfinite(row).all() or row.min() < 0:
            raise ValueError(
                f"{question.file} question {question.number}: probabilities {row.tolist()}; expected "
                f"{len(question.options)} numbers, none below 0"
            )
    return [{"probabilities": row.tolist(), "letter": _most_probable(row)} for row in rows]


def _most_probable(probabilities: Sequence[float] | NDArray) -> str:
    return option_letters(len(probabilities))[int(np.argmax(probabilities))]


def _prediction(answer: dict[str, Any], ways: set[str]) -> Prediction:
    """Return the answers to one question, without kept ones that were not asked for this time."""
    generated = {key: answer[key] for key in ("output", "cut", "extracted")} if "output" in ways else {}
    if "probabilities" not in ways:
        return Prediction(**generated)
    return Prediction(**generated, probabilities=tuple(answer["probabilities"]), letter=answer["letter"])


def _write_answers(folder: Path, file: str, answers: dict[str, dict[str, Any]], fingerprint: str) -> None:
    header = {"file": file, "fingerprint": fingerprint}
    lines = [json.dumps(line) for line in (header, *answers.values())]
    with errors.naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    replace_file(answers_file(folder, file), "".join(f"{line}\n" for line in lines))


def _read_answers(folder: Path, file: str, asked: Sequence[Question], fingerprint: str) -> dict[str, dict[str, Any]]:
    """Read the kept answers to a file's questions by number; {} if there are none.

    The letters are derived anew, so that only texts and probabilities count. Raises ValueError for another fingerprint,
    another prompt, or a damaged file.
    """
    path = answers_file(folder, file)
    if not path.exists():
        return {}
    remedy = f"delete {path} to ask its questions again"
    try:
        header, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        kept_fingerprint = header["fingerprint"]
        answers = {line["question"]: line for line in lines}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a file of answers ({error}); {remedy}") from error
    if kept_fingerprint != fingerprint:
        raise ValueError(
            f"{path}: these answers are another model's or another setting's ({str(kept_fingerprint)[:80]}, now "
            f"{fingerprint[:80]}); choose another folder, or delete {folder} to ask all questions again"
        )
    for question in asked:
        answer = answers.get(question.number)
        if answer is None:
            continue
        if answer.get("prompt_hash") != prompt_hash(question):
            raise ValueError(f"{path}: question {question.number} was asked with another prompt; {remedy}")
        try:
            _derive_letters(answer, question)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: the answer to question {question.number} is damaged; {remedy}") from error
    return answers


def _derive_letters(answer: dict[str, Any], question: Question) -> None:
    """Set the letters of a kept answer from its text and its probabilities. Raises an error if these are malformed."""
    if "output" in answer:
        answer["extracted"] = extract(answer["output"], question.options)
        answer["cut"] = bool(answer["cut"])
    if "probabilities" in answer:
        row = np.asarray(answer["probabilities"], np.float64)
        if row.shape != (len(question.options),) or not np.isfinite(row).all():
            raise ValueError("probabilities")
        answer["letter"] = _most_probable(row)
