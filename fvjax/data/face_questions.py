"""Questions about procedural faces, whose answers are known because the faces were drawn from them.

:data:`KINDS` has twelve kinds of questions about a face of :mod:`fvjax.data.synthetic`: pose, light, expression, what
covers the face, hair and skin. Every kind has a fixed list of one-word options and several wordings, each of which
names all options. Left and right are those of the picture.

Every answer stands for a band of attribute values, and the bands of a kind do not touch: a value between them is too
close to call, so the question is not asked. Nor is it asked if something hides what it is about. Answers that are too
frequent are asked about less often, so that no answer of a kind is right in more than about :data:`LARGEST_SHARE` of
its questions. What is not asked is counted by reason.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from fvjax.data import images, synthetic
from fvjax.data.questions import Question, add_questions, count_answers
from fvjax.data.stores.conversations import ConversationStore, Writer

Shape = Mapping[str, float]
Shot = Mapping[str, Any]

LARGEST_SHARE = 0.5  # of the questions of one kind: more frequent answers are asked about less often
SAMPLE = 3000  # shots whose attributes tell how frequent each answer is
SAMPLE_FIRST = 2_000_000  # the sample's first identity; data sets count from 0, the pretrained tower from a million


class Unasked(StrEnum):
    """Why a question is not asked about a picture."""

    CLOSE = "too close to a threshold"
    HIDDEN = "hidden by a scarf or a bar"
    FLAT = "the light is too flat"
    UNSEEN = "the hair is too close to the head"
    BOTH = "covered by a scarf and a bar"
    FREQUENT = "the answer is frequent enough"
    SINGLE = "there is one answer only at this difficulty"
    ENOUGH = "enough questions about this picture"


Verdict = str | Unasked


@dataclass(frozen=True)
class Kind:
    """A kind of question.

    Attributes:
        options: its possible answers.
        wordings: ways to ask it, each with all options in it.
        verdict: maps an identity's shape and a shot's attributes to one of the options, or says why not to ask.
    """

    options: tuple[str, ...]
    wordings: tuple[str, ...]
    verdict: Callable[[Shape, Shot], Verdict]


def _band(value: float, *bands: tuple[float, float, str]) -> Verdict:
    """Return the answer of the band (low, high, answer) that `value` lies in, borders included."""
    return next((answer for low, high, answer in bands if low <= value <= high), Unasked.CLOSE)


def _brightness(colour: Any) -> float:
    """Return the luma (ITU-R BT.601) of an RGB colour in [0, 1]."""
    return float(np.dot(colour, (0.299, 0.587, 0.114)))


_ANY = float("inf")


def _head_direction(shape: Shape, shot: Shot) -> Verdict:  # radians: 4.6 and 8 degrees
    return _band(shot["yaw"], (-_ANY, -0.14, "left"), (-0.08, 0.08, "straight"), (0.14, _ANY, "right"))


def _head_tilt(shape: Shape, shot: Shot) -> Verdict:  # radians: 1.7 and 3.4 degrees; positive rolls clockwise
    return _band(shot["roll"], (-_ANY, -0.06, "left"), (-0.03, 0.03, "upright"), (0.06, _ANY, "right"))


def _head_nod(shape: Shape, shot: Shot) -> Verdict:  # radians: 1.7 and 3.4 degrees
    return _band(shot["pitch"], (-_ANY, -0.06, "up"), (-0.03, 0.03, "level"), (0.06, _ANY, "down"))


def _light_side(shape: Shape, shot: Shot) -> Verdict:
    if shot["light"] < 0.2:
        return Unasked.FLAT
    return _band(shot["light_x"], (-1, -0.45, "left"), (-0.2, 0.2, "front"), (0.45, 1, "right"))


def _light_strength(shape: Shape, shot: Shot) -> Verdict:
    return _band(shot["light"], (0, 0.2, "soft"), (0.3, 1, "hard"))


def _expression(shape: Shape, shot: Shot) -> Verdict:
    if shot["scarf"] or shot["bar"]:
        return Unasked.HIDDEN
    return _band(shot["smile"], (-1, -0.4, "frown"), (0.4, 1, "smile"))


def _mouth(shape: Shape, shot: Shot) -> Verdict:
    if shot["scarf"] or shot["bar"]:
        return Unasked.HIDDEN
    return _band(shot["mouth_open"], (0, 0.05, "closed"), (0.4, 1, "open"))


def _glasses(shape: Shape, shot: Shot) -> Verdict:
    return "yes" if shot["glasses"] else "no"


def _cover(shape: Shape, shot: Shot) -> Verdict:
    if shot["scarf"] and shot["bar"]:
        return Unasked.BOTH
    return "scarf" if shot["scarf"] else "bar" if shot["bar"] else "nothing"


def _hair_length(shape: Shape, shot: Shot) -> Verdict:  # ends above the ears, or below the chin's middle
    if shape["hair_volume"] < 0.08:
        return Unasked.UNSEEN
    return _band(shape["hair_length"], (-_ANY, 0.1, "short"), (0.45, _ANY, "long"))


def _hair_colour(shape: Shape, shot: Shot) -> Verdict:
    return _band(_brightness(shot["hair"]), (0, 0.28, "dark"), (0.38, _ANY, "light"))


def _skin(shape: Shape, shot: Shot) -> Verdict:
    return _band(_brightness(shot["skin"]), (0, 0.46, "dark"), (0.60, _ANY, "light"))


KINDS: dict[str, Kind] = {
    "head_direction": Kind(
        ("left", "straight", "right"),
        (
            "Is the head turned left, straight or right?",
            "Which way does the person look: left, straight or right?",
            "Does the face point left, straight or right?",
            "Say left, straight or right: where is the head turned?",
        ),
        _head_direction,
    ),
    "head_tilt": Kind(
        ("left", "upright", "right"),
        (
            "Is the head tilted left, upright or tilted right?",
            "Which way is the head tilted: left, upright or right?",
            "Does the head lean left, stay upright or lean right?",
            "Say left, upright or right: how is the head tilted?",
        ),
        _head_tilt,
    ),
    "head_nod": Kind(
        ("up", "level", "down"),
        (
            "Does the person look up, level or down?",
            "Is the chin up, level or down?",
            "Is the head raised up, level or bent down?",
            "Say up, level or down: how is the head held?",
        ),
        _head_nod,
    ),
    "light_side": Kind(
        ("left", "front", "right"),
        (
            "Does the light come from the left, the front or the right?",
            "Where is the lamp: left, front or right?",
            "Which side is the light on: left, front or right?",
            "Say left, front or right: where does the light come from?",
        ),
        _light_side,
    ),
    "light_strength": Kind(
        ("soft", "hard"),
        (
            "Is the light soft or hard?",
            "Are the shadows on the face soft or hard?",
            "Which light is it: soft or hard?",
            "Say soft or hard: what is the light like?",
        ),
        _light_strength,
    ),
    "expression": Kind(
        ("smile", "frown"),
        (
            "Is it a smile or a frown?",
            "What does the mouth show: a smile or a frown?",
            "Which expression is it: smile or frown?",
            "Say smile or frown: what is the expression?",
        ),
        _expression,
    ),
    "mouth": Kind(
        ("open", "closed"),
        (
            "Is the mouth open or closed?",
            "Are the lips open or closed?",
            "How is the mouth: open or closed?",
            "Say open or closed: what is the mouth like?",
        ),
        _mouth,
    ),
    "glasses": Kind(
        ("yes", "no"),
        (
            "Does the person wear glasses, yes or no?",
            "Are there glasses on the face, yes or no?",
            "Can you see glasses, yes or no?",
            "Say yes or no: are there glasses?",
        ),
        _glasses,
    ),
    "cover": Kind(
        ("scarf", "bar", "nothing"),
        (
            "What covers the face: a scarf, a bar or nothing?",
            "Is the face covered by a scarf, a bar or nothing?",
            "What is in front of the face: scarf, bar or nothing?",
            "Say scarf, bar or nothing: what covers the face?",
        ),
        _cover,
    ),
    "hair_length": Kind(
        ("short", "long"),
        (
            "Is the hair short or long?",
            "Which hair is it: short or long?",
            "Does the person wear the hair short or long?",
            "Say short or long: what is the hair like?",
        ),
        _hair_length,
    ),
    "hair_colour": Kind(
        ("dark", "light"),
        (
            "Is the hair dark or light?",
            "What colour is the hair: dark or light?",
            "Does the person have dark or light hair?",
            "Say dark or light: what colour is the hair?",
        ),
        _hair_colour,
    ),
    "skin": Kind(
        ("dark", "light"),
        (
            "Is the skin dark or light?",
            "What colour is the skin: dark or light?",
            "Is the face painted in a dark or a light colour?",
            "Say dark or light: what colour is the skin?",
        ),
        _skin,
    ),
}


@functools.cache
def asking_rates(difficulty: float) -> dict[str, dict[str, float]]:
    """Return how often to ask a question, by its kind and by its answer in the picture, from 0 to 1.

    The frequencies of the answers are those of :data:`SAMPLE` shots. Only the most frequent answer of a kind is asked
    about less often than always, so that it is right in :data:`LARGEST_SHARE` of the questions. A kind that has a
    single answer at this difficulty is never asked: difficulty 0 has frontal faces only.
    """
    people = range(SAMPLE_FIRST, SAMPLE_FIRST + SAMPLE)
    shots = [(synthetic.identity_shape(i, 0), synthetic.shot_attributes(i, 0, 0, difficulty)) for i in people]
    rates = {}
    for name, kind in KINDS.items():
        counts = Counter(kind.verdict(shape, shot) for shape, shot in shots)
        answers = {answer: counts[answer] for answer in kind.options}
        most = max(answers, key=lambda answer: answers[answer])
        others = sum(answers.values()) - answers[most]
        rates[name] = dict.fromkeys(kind.options, 1.0 if others else 0.0)
        if others:
            wanted = LARGEST_SHARE / (1 - LARGEST_SHARE) * others
            rates[name][most] = min(1.0, wanted / answers[most])
    return rates


def questions(
    identity: int, number: int, seed: int, difficulty: float = 1.0, kinds: Sequence[str] = tuple(KINDS)
) -> tuple[list[Question], dict[str, Unasked]]:
    """Return the questions about shot `number` of an identity in a random order, and why other kinds are not asked.

    A pure function; see :func:`fvjax.data.synthetic.face` for the arguments that it shares with that.

    Args:
        kinds: the kinds to choose from, of :data:`KINDS`.
    Raises:
        ValueError: an unknown kind, or a difficulty outside 0..3.
    """
    if unknown := [name for name in kinds if name not in KINDS]:
        raise ValueError(f"{unknown[0]!r} is no kind of question; choose from {', '.join(KINDS)}")
    shape = synthetic.identity_shape(identity, seed)
    shot = synthetic.shot_attributes(identity, number, seed, difficulty)
    rates = asking_rates(difficulty)
    rng = np.random.default_rng([seed, 3, identity, number])
    chances = dict(zip(KINDS, rng.random(len(KINDS))))  # drawn for all kinds, so that leaving one out changes no other
    wordings = dict(zip(KINDS, rng.random(len(KINDS))))
    order = dict(zip(KINDS, rng.random(len(KINDS))))
    asked: list[Question] = []
    unasked: dict[str, Unasked] = {}
    for name in sorted(kinds, key=order.__getitem__):
        verdict = _verdict(name, shape, shot, rates[name], chances[name])
        if isinstance(verdict, Unasked):
            unasked[name] = verdict
        else:
            kind = KINDS[name]
            text = kind.wordings[int(wordings[name] * len(kind.wordings))]
            asked.append(Question(name, text, kind.options, verdict))
    return asked, unasked


def _verdict(name: str, shape: Shape, shot: Shot, rates: Mapping[str, float], chance: float) -> Verdict:
    """Return the answer, or why the question is not asked; `chance` in [0, 1) decides about frequent answers."""
    if not any(rates.values()):
        return Unasked.SINGLE
    verdict = KINDS[name].verdict(shape, shot)
    if isinstance(verdict, Unasked):
        return verdict
    return verdict if chance < rates[verdict] else Unasked.FREQUENT


def write(
    dst: str | os.PathLike,
    identities: Sequence[int],
    images_per_identity: int,
    seed: int,
    *,
    split: str,
    difficulty: float = 1.0,
    questions_per_image: int = 4,
    single: bool = False,
    kinds: Sequence[str] = tuple(KINDS),
) -> ConversationStore:
    """Draw faces and store questions about them as conversations, with pictures of 112x112 pixels.

    The manifest's entry "questions" counts the answers by kind, and what was not asked by kind and reason.

    Args:
        dst: the store's directory; must not exist.
        identities, images_per_identity, seed, difficulty: as for :func:`fvjax.data.synthetic.write`.
        split: "train", "val" or "test".
        questions_per_image: the most questions about one picture. With `single` so many are asked if there are so many;
            a conversation asks a random number of them, at least one.
        single: store each question as a record of its own, for evaluation (see :func:`add_questions`).
        kinds: what may be asked, of :data:`KINDS`.
    Raises:
        ValueError: `dst` exists, an unknown kind or split, a difficulty outside 0..3, or not one question.
    """
    if questions_per_image < 1:
        raise ValueError(f"questions_per_image is {questions_per_image}; at least one question must be asked")
    source = f"fvjax.data.face_questions seed={seed} difficulty={difficulty}"
    answers: dict[str, dict[str, int]] = {}
    unasked: dict[str, Counter[str]] = {name: Counter() for name in kinds}
    with Writer(dst, split=split, sources=[source]) as writer:
        for identity in identities:
            for k in range(images_per_identity):
                file = f"synthetic/{seed}/{identity:06d}/{k:03d}"
                possible, reasons = questions(identity, k, seed, difficulty, kinds)
                turns = questions_per_image if single else _turns(identity, k, seed, questions_per_image)
                asked = possible[:turns]
                reasons |= dict.fromkeys((question.kind for question in possible[turns:]), Unasked.ENOUGH)
                for name, reason in reasons.items():
                    unasked[name][reason.value] += 1
                if not asked:
                    writer.reject(file, "no question: no attribute is clear enough")
                    continue
                count_answers(asked, answers)
                picture = images.encode(synthetic.face(identity, k, seed, difficulty))
                add_questions(writer, picture, asked, file, single=single)
        writer.info["questions"] = {"answers": answers, "unasked": {name: dict(c) for name, c in unasked.items()}}
    return ConversationStore(dst, split)


def _turns(identity: int, number: int, seed: int, most: int) -> int:
    """Return how many questions to ask about a picture at most, from 1 to `most`."""
    return int(np.random.default_rng([seed, 4, identity, number]).integers(1, most + 1))
