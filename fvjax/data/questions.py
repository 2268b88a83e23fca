"""Questions with a fixed list of short answers, and the conversations that ask them about one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fvjax.data.stores.conversations import PLACEHOLDER, Writer

IMAGE = f"{PLACEHOLDER}\n"  # opens the first question: the place of the picture


@dataclass(frozen=True)
class Question:
    """A question about a picture and its answer.

    Attributes:
        kind: what is asked about, such as "head_tilt". Scores are reported by kind.
        text: the question, without the picture's placeholder.
        options: every answer of this kind, always in the same order.
        answer: the right one of `options`.
    """

    kind: str
    text: str
    options: tuple[str, ...]
    answer: str

    def __post_init__(self):
        if self.answer not in self.options:
            raise ValueError(f"{self.kind}: the answer {self.answer!r} is none of the options {list(self.options)}")

    def meta(self) -> dict[str, Any]:
        """Return what a record that asks only this question says about it: options, answer and, as tag, the kind."""
        return {"options": list(self.options), "answer": self.answer, "tag": self.kind}


def conversation(questions: Sequence[Question]) -> list[dict[str, str]]:
    """Return a conversation about one picture as role and content of each message; the picture comes first."""
    turns: list[dict[str, str]] = []
    for number, question in enumerate(questions):
        text = question.text if number else IMAGE + question.text
        turns.append({"role": "user", "content": text})
        turns.append({"role": "assistant", "content": question.answer})
    return turns


def add_questions(writer: Writer, picture: bytes, questions: Sequence[Question], source: str, *, single: bool) -> None:
    """Store questions about one picture.

    Args:
        picture: the encoded file.
        source: the file that the picture came from.
        single: make a record of each question, for evaluation: its meta has options, answer and tag, and its source
            ends in "#" and the kind. Otherwise one conversation asks them all, and its meta has their kinds.
    Raises:
        ValueError: the picture cannot be read, or a text cannot be stored. The message names the source.
    """
    if single:
        for question in questions:
            writer.add(conversation([question]), [picture], f"{source}#{question.kind}", **question.meta())
    else:
        writer.add(conversation(questions), [picture], source, kinds=[question.kind for question in questions])


def count_answers(questions: Sequence[Question], counts: dict[str, dict[str, int]]) -> None:
    """Add questions to the counts, by kind and by answer."""
    for question in questions:
        by_answer = counts.setdefault(question.kind, dict.fromkeys(question.options, 0))
        by_answer[question.answer] += 1
