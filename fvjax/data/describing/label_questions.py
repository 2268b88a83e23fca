"""Questions about the labels of FairFace: age group, gender and race, in several wordings.

The answers say what annotators saw in the picture. The wordings ask for just that, and each names all options.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fvjax.data.progress import track
from fvjax.data.questions import Question, add_questions, count_answers
from fvjax.data.readers.fairface import AGES, GENDERS, RACES, Label
from fvjax.data.readers.files import read_inside
from fvjax.data.stores.conversations import ConversationStore, Unusable, Writer

MAX_PICTURE = 1 << 26  # bytes of a picture's file

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


def questions(label: Label, seed: int) -> list[Question]:
    """Return the three questions about a picture in a random order: a function of the labels and the seed alone."""
    digest = hashlib.sha256(label.file.encode(errors="surrogateescape")).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])
    asked = []
    for kind in rng.permutation(list(KINDS)).tolist():
        options, wordings, answer = KINDS[kind]
        text = wordings[int(rng.integers(len(wordings)))].format(_list(options))
        asked.append(Question(kind, text, options, answer(label)))
    return asked


def write(
    labels: Sequence[Label], src: Path, dst: Path, *, split: str, source: str, seed: int, single: bool
) -> ConversationStore:
    """Store the questions about labelled pictures as conversations.

    The manifest's entry "questions" counts the answers by kind. Pictures that are missing or cannot be read are left out
    and counted by reason.

    Args:
        src: the folder that the labels' files are relative to.
        dst: the store's directory; must not exist.
        source: what the labels came from, for the manifest.
        seed: of the choice of wordings and their order.
        single: store each question as a record of its own, for evaluation.
    Raises:
        ValueError: `dst` exists, an unknown split, or not one usable picture.
    """
    answers: dict[str, dict[str, int]] = {}
    with Writer(dst, split=split, sources=[source]) as writer:
        for label in track(labels, "pictures"):
            asked = questions(label, seed)
            try:
                picture = read_inside(src, label.file, MAX_PICTURE)
                add_questions(writer, picture, asked, label.file, single=single)
            except Unusable as error:
                writer.reject(label.file, error.reason)
            except ValueError as error:
                writer.reject(label.file, str(error))
            else:
                count_answers(asked, answers)
        writer.info["questions"] = {"answers": answers}
    return ConversationStore(dst, split)


def choose(labels: Sequence[Label], part: str, val: float, seed: int) -> list[Label]:
    """Return the pictures of one part: "train" or "val".

    The choice is a function of each file's name and the seed, so two calls share no picture and leave none out.

    Args:
        val: the share of pictures for validation, from 0 to below 1.
    Raises:
        ValueError: a share outside 0..1, or a part without pictures.
    """
    if not 0 <= val < 1:
        raise ValueError(f"a share of {val} for validation; expected a number from 0 to below 1")
    is_val = [_fraction(label.file, seed) < val for label in labels]
    chosen = [label for label, held_out in zip(labels, is_val) if held_out == (part == "val")]
    if not chosen:
        raise ValueError(f"no picture for {part!r}: the share for validation is {val} of {len(labels)} pictures")
    return chosen


def _fraction(file: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on the file's name and the seed alone."""
    digest = hashlib.sha256(f"{seed} {file}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little") / 2**64
