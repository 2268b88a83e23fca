"""Questions about the labels of FairFace: age group, gender and race, in several wordings.

The answers say what annotators saw in the picture. The wordings ask for just that, and each names all options.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from fvjax.data.progress import track
from fvjax.data.questions import Question, add_questions, count_answers
from fvjax.data.readers.conversations import PictureFolder
from fvjax.data.readers.fairface import AGES, GENDERS, RACES, Label
from fvjax.data.stores.conversations import ConversationStore, Unusable, Writer

AGE_OPTIONS = (*AGES[:-1], "70 or more")
GENDER_OPTIONS = ("man", "woman")
RACE_OPTIONS = tuple(race.replace("_", " or ") for race in RACES)


def _list(options: Sequence[str]) -> str:
    return f"{', '.join(options[:-1])} or {options[-1]}"


# kind: (options, wordings with a place for the options, how to read the answer from a label)
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], Callable[[Label], str]]] = {
    "age": (
        AGE_OPTIONS,
        (
            "How old does this person look, in years: {}?",
            "Which age group does the face belong to: {}?",
            "Estimate this person's age in years. Choose from {}.",
            "What age would you give the person in this picture: {}?",
        ),
        lambda label: AGE_OPTIONS[AGES.index(label.age)],
    ),
    "gender": (
        GENDER_OPTIONS,
        (
            "Does this person look like a {}?",
            "Whose face is it: that of a {}?",
            "Which word fits the person in this picture: {}?",
            "Say what this person appears to be: {}.",
        ),
        lambda label: GENDER_OPTIONS[GENDERS.index(label.gender)],
    ),
    "race": (
        RACE_OPTIONS,
        (
            "Which group does this person appear to belong to: {}?",
            "Which of these words describes the person's appearance best: {}?",
            "Choose the group that annotators would name for this face: {}.",
            "To which of these groups would most people assign this face: {}?",
        ),
        lambda label: RACE_OPTIONS[RACES.index(label.race)],
    ),
}


def questions(label: Label, seed: int, kinds: Sequence[str] = tuple(KINDS)) -> list[Question]:
    """Return a question of each kind about a picture in a random order: a function of the labels and the seed alone."""
    digest = hashlib.sha256(label.file.encode(errors="surrogateescape")).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])
    asked = []
    for kind in rng.permutation(list(KINDS)).tolist():
        options, wordings, answer = KINDS[kind]
        text = wordings[int(rng.integers(len(wordings)))].format(_list(options))
        asked.append(Question(kind, text, options, answer(label)))
    return [question for question in asked if question.kind in kinds]


def write(
    labels: Sequence[Label],
    src: Path,
    dst: Path,
    *,
    split: str,
    val: float,
    test: float,
    source: str,
    seed: int,
    single: bool,
    kinds: Sequence[str] = tuple(KINDS),
) -> ConversationStore:
    """Store the questions about labelled pictures as conversations.

    The manifest's entry "questions" counts the answers by kind. Pictures that are missing or cannot be read are left
    out and counted by reason, all in the manifest of `dst`.

    Args:
        src: the folder that the labels' files are relative to.
        dst: the store's directory; must not exist.
        split: of the store.
        val: about this share of the pictures goes to DST/val (split "val"); see :func:`part_of`.
        test: about this share goes to DST/test (split "test"), each question as a record of its own.
        source: what the labels came from, for the manifest.
        seed: of that choice, and of the wordings and their order.
        single: store each question as a record of its own, for evaluation.
        kinds: of questions that are asked; keys of :data:`KINDS`.
    Raises:
        ValueError: `dst` exists, an invalid option, or not one usable picture.
    """
    if not (val >= 0 and test >= 0 and val + test < 1) or seed < 0:
        raise ValueError(
            f"--val={val} --test={test} --seed={seed}: expected shares of at least 0, together below 1, and seed >= 0"
        )
    if (val or test) and split != "train":
        raise ValueError(f"--val={val} --test={test} --split={split}: only the split 'train' is divided into parts")
    if not kinds or len(set(kinds)) < len(kinds) or set(kinds) - set(KINDS):
        raise ValueError(f"--kinds={','.join(kinds)}: expected some of {', '.join(KINDS)}, each once")
    shares = {name: share for name, share in (("val", val), ("test", test)) if share}
    folder = PictureFolder(src)
    with Writer(dst, split=split, sources=[source]) as writer, ExitStack() as stack:
        parts = {
            name: _Part(stack.enter_context(Writer(writer.path_within(name), split=name, sources=[source])))
            for name in shares
        }
        parts[""] = _Part(writer)
        for label in track(labels, "pictures"):
            try:
                picture = folder.read(label.file)
                name = part_of(picture, shares, seed)
                parts[name].add(picture, questions(label, seed, kinds), label.file, single or name == "test")
            except Unusable as error:
                writer.reject(label.file, error.reason)
            except ValueError as error:
                writer.reject(label.file, str(error))
        for name in shares:
            if not parts[name].writer.records:
                parts[name].writer.discard()
    return ConversationStore(dst, split)


def part_of(picture: bytes, shares: Mapping[str, float], seed: int) -> str:
    """Return the part that a picture belongs to: a key of `shares`, or "" for the rest.

    The choice depends on the seed and the picture's bytes alone, so copies of a picture are in the same part.

    Args:
        shares: part -> about its share of all pictures.
    """
    digest = hashlib.sha256(f"{seed} ".encode() + hashlib.sha256(picture).digest()).digest()
    position, border = int.from_bytes(digest[:8], "little") / 2**64, 0.0
    for name, share in shares.items():
        border += share
        if position < border:
            return name
    return ""


class _Part:
    """The store of one part; its manifest counts the answers."""

    def __init__(self, writer: Writer):
        self.writer = writer
        self._answers: dict[str, dict[str, int]] = {}
        writer.info["questions"] = {"answers": self._answers}

    def add(self, picture: bytes, asked: Sequence[Question], file: str, single: bool) -> None:
        add_questions(self.writer, picture, asked, file, single=single)
        count_answers(asked, self._answers)
