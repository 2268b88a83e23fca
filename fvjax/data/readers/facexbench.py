"""FaceXBench as published, a folder of multiple-choice questions about faces, checked question by question.

The folder has ``benchmark/*.json`` and ``benchmark/images/…`` (Kartik-3004/facexbench, arXiv 2501.10360). Each JSON
file describes one kind of question and has the questions by number: paths of pictures relative to ``benchmark/``, text,
options and the letter of the right one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvjax.data.readers.files import FileNames, require_directory

SETTINGS = ("zero_shot", "in_context")  # in_context puts the file's prepend_text before the question
LAYOUTS = ("plain", "numbered")  # of the pictures' placeholders
PLACEHOLDER = "<image>"
LETTERS = "ABCD"  # the published prompt names no more options than these
MAX_BYTES = 64 * 2**20  # of a JSON file; the published ones have at most a few hundred kilobytes


@dataclass(frozen=True)
class Question:
    """One multiple-choice question.

    Attributes:
        file: name of its JSON file, such as "celeba_single_mcq.json".
        number: its key in that file, such as "17".
        num_images: "single", "multiple" or "zero", as its file says. The questions with "zero" have a black picture.
        pictures: its picture files in order; empty if it was read from a store.
        prompt: the user's message, with one ``<image>`` for each picture.
        options: the texts of the options in the prompt, A first.
        answer: the letter of the right option.
        overlaps_fairface: whether its pictures are FairFace's, which FaceLLM was trained on.
        record: its number in the store that it was read from; None if it was read from a folder.
    """

    file: str
    number: str
    category: str
    sub_category: str
    num_images: str
    pictures: tuple[Path, ...]
    prompt: str
    options: tuple[str, ...]
    answer: str
    overlaps_fairface: bool
    record: int | None = None


@dataclass(frozen=True)
class Rejection:
    """A question that was left out. What stands before the reason's first colon is the kind of mistake, for counting.

    Attributes:
        location: its file and number, such as "celeba_single_mcq.json question 17".
        reason: what is wrong with it.
    """

    location: str
    reason: str


@dataclass(frozen=True)
class Benchmark:
    """The questions of a folder in the order of its files, and what was left out."""

    questions: tuple[Question, ...]
    rejected: tuple[Rejection, ...]
    options_left_out: int  # beyond a question's fourth option

    @property
    def rejected_by_reason(self) -> dict[str, int]:
        """Count the rejected questions by the kind of mistake."""
        return dict(Counter(rejection.reason.partition(":")[0] for rejection in self.rejected))


def read(src: Path, *, setting: str = "zero_shot", layout: str = "plain") -> Benchmark:
    """Read and check all questions of a FaceXBench folder.

    Args:
        src: the folder that has ``benchmark/``.
        setting: "zero_shot", or "in_context" to put each file's ``prepend_text`` before its questions.
        layout: see :func:`user_message`.
    Raises:
        ValueError: no such folder, a JSON file that does not have the published form, or not one usable question.
    """
    if setting not in SETTINGS:
        raise ValueError(f"setting {setting!r}; expected one of {', '.join(SETTINGS)}")
    root = require_directory(src) / "benchmark"
    if not root.is_dir():
        raise ValueError(f"{src}: no folder benchmark/ in it; give the folder that FaceXBench's repository makes")
    paths = sorted(path for path in root.glob("*.json") if not path.name.startswith("."))
    if not paths:
        raise ValueError(f"{root}: no .json files; expected files such as celeba_single_mcq.json")
    questions: list[Question] = []
    rejected: list[Rejection] = []
    options_left_out = 0
    files = [_File.read(path) for path in paths]
    pictures = FileNames(root)
    _check_sub_categories(files)
    for file in files:
        for number, entry in file.questions.items():
            try:
                questions.append(_question(file, number, entry, pictures, setting, layout))
                options_left_out += max(0, len(entry["options"]) - len(LETTERS))
            except _Unusable as error:
                rejected.append(Rejection(f"{file.name} question {number}", str(error)))
    if not questions:
        first = f"; first: {rejected[0].location}: {rejected[0].reason}" if rejected else ""
        raise ValueError(f"{root}: not one usable question, {len(rejected)} rejected{first}")
    return Benchmark(tuple(questions), tuple(rejected), options_left_out)


def user_message(text: str, pictures: int, layout: str = "plain") -> str:
    """Put one ``<image>`` for each picture before a question's text.

    Args:
        text: the published prompt.
        pictures: their number.
        layout: "plain" has ``<image>`` and a line break for each picture, as in FaceLLM's evaluation; "numbered" writes
            ``Image-1: <image>`` if there are several, as in InternVL3's model card.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    if layout == "numbered" and pictures > 1:
        return "".join(f"Image-{i}: {PLACEHOLDER}\n" for i in range(1, pictures + 1)) + text
    return f"{PLACEHOLDER}\n" * pictures + text


def overlaps_fairface(file: str) -> bool:
    """Tell whether a JSON file's pictures are FairFace's, by its name."""
    return file.startswith("fairface_")


class _Unusable(Exception):
    """A question that cannot be used. The text is a rejection's reason."""


@dataclass(frozen=True)
class _File:
    """A JSON file: what its questions share, and the questions by number, not yet checked."""

    name: str
    category: str
    sub_category: str
    num_images: str
    context: str
    prepend_text: str
    postpend_text: str
    questions: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> _File:
        content = _read_json(path)

        def text(key: str, required: bool) -> str:
            value = content.get(key)
            if value is None and not required:
                return ""
            if not isinstance(value, str) or not _is_text(value) or (required and not value.strip()):
                raise ValueError(f"{path}: {key!r} is missing or no text; expected FaceXBench's published form")
            return value

        questions = content.get("questions")
        if not isinstance(questions, dict) or not questions:
            raise ValueError(f"{path}: 'questions' is missing or empty; expected an object with questions by number")
        if broken := next((number for number in questions if not number.isdecimal()), None):
            raise ValueError(f"{path}: question {broken[:40]!r}; expected numbers as keys of 'questions'")
        category = text("category", required=True)
        return cls(
            name=path.name,
            category=category,
            sub_category=text("sub-category", required=True),
            num_images=text("num_images", required=True),
            context=text("context", required=category == "tools_use"),
            prepend_text=text("prepend_text", required=False),
            postpend_text=text("postpend_text", required=False),
            questions=questions,
        )


def _check_sub_categories(files: Iterable[_File]) -> None:
    """Raise ValueError if two files have one sub-category in different categories: its accuracy would mix them."""
    first: dict[str, _File] = {}
    for file in files:
        other = first.setdefault(file.sub_category, file)
        if other.category != file.category:
            raise ValueError(
                f"{file.name}: sub-category {file.sub_category!r} is in category {file.category!r}, but in "
                f"{other.category!r} in {other.name}; correct one of them"
            )


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of bounded size. Raises ValueError for anything else, and for a key that occurs twice."""

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(key for key, _ in pairs)
        if twice := next((key for key, count in counts.items() if count > 1), None):
            raise ValueError(f"the key {twice[:40]!r} occurs twice")
        return dict(pairs)

    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path}: {size} bytes, refused; FaceXBench's files have less than {MAX_BYTES}")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); fetch the file again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object; expected FaceXBench's published form")
    return content


def _question(file: _File, number: str, entry: Any, file_names: FileNames, setting: str, layout: str) -> Question:
    """Check one question and build its prompt. Raises _Unusable."""
    if not isinstance(entry, dict):
        raise _Unusable("not an object")
    text = entry.get("question_text")
    if not isinstance(text, str) or not text.strip():
        raise _Unusable("no question_text")
    options = tuple(_options(entry))
    answer = entry.get("correct_answer_option")
    if answer is None:
        raise _Unusable("no correct_answer_option")
    letters = LETTERS[: len(options)]
    if not isinstance(answer, str) or len(answer) != 1 or answer not in letters:
        raise _Unusable(f"correct_answer_option is no option's letter: {answer!r:.40}, expected one of {letters}")
    pictures = tuple(_pictures(entry, file, file_names))
    prompt = _published_prompt(file, text, options, setting)
    if not _is_text(prompt):
        raise _Unusable("text that is not UTF-8")
    if PLACEHOLDER in prompt:
        raise _Unusable(f"placeholder in a text: {PLACEHOLDER}")
    return Question(
        file=file.name,
        number=number,
        category=file.category,
        sub_category=file.sub_category,
        num_images=file.num_images,
        pictures=pictures,
        prompt=user_message(prompt, len(pictures), layout),
        options=options,
        answer=answer,
        overlaps_fairface=overlaps_fairface(file.name),
    )


def _published_prompt(file: _File, question: str, options: tuple[str, ...], setting: str) -> str:
    """Join the parts of the prompt as FaceXBench's evaluate.py does; the request for a letter precedes the options."""
    parts = [
        file.context if file.category == "tools_use" else "",
        file.prepend_text if setting == "in_context" else "",
    ]
    parts = [part for part in parts if part] + [question]
    parts += [file.postpend_text] if file.postpend_text else []
    parts += [f"({letter}) {option}" for letter, option in zip(LETTERS, options)]
    return "".join(f"{part}\n" for part in parts)


def _options(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts of the first four options; numbers are written as ``str`` does."""
    options = entry.get("options")
    if not isinstance(options, list) or len(options) < 2:
        raise _Unusable("fewer than two options")
    for option in options[: len(LETTERS)]:
        if not isinstance(option, str | int | float):
            raise _Unusable(f"an option is neither text nor a number: {option!r:.40}")
        yield str(option)


def _pictures(entry: Mapping[str, Any], file: _File, file_names: FileNames) -> Iterator[Path]:
    """Yield the picture files, each of which is a file inside the root of ``file_names``."""
    root = file_names.root
    names = entry.get("image_paths")
    if not isinstance(names, list) or (not names and file.num_images != "zero"):
        raise _Unusable("no image_paths")
    for name in names:
        if not isinstance(name, str):
            raise _Unusable(f"an image path is no text: {name!r:.40}")
        try:
            found = file_names.find(name) or name
            path = (root / found).resolve()
            inside = path.is_relative_to(root.resolve()) and not Path(name).is_absolute()
            exists = path.is_file()
        except (OSError, ValueError, RuntimeError):  # too long, with a null byte, a link to itself, or ambiguous
            inside, found, exists = True, name, False
        if not inside:
            raise _Unusable(f"picture outside the folder: {name!r:.200}")
        if not exists:
            raise _Unusable(f"missing picture: {name!r:.200}")
        yield root / found


def _is_text(text: str) -> bool:
    """Tell whether a text can be written as UTF-8; JSON can hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
