"""A small FaceInstruct: procedural faces and short clips with exact labels and points for Face-LLaVA's five tasks.

Each record has one picture or one clip, one instruction and one answer. Its `meta` has the "task", the "label", the
"media" ("image" or "video") and the "identity". The labels follow from the parameters of the drawing:

    expression      one of EXPRESSIONS, shown by mouth and brows. In a clip it grows from a neutral face.
    action_units    numbers of the units that the expression and the mouth move
    attributes      those of ATTRIBUTES that are present
    age             whole years; the hair turns from dark to white with it
    deepfake        "fake": an ellipse of another person's face is pasted in, and in a clip it trembles

With `low_resolution`, pictures are shrunk to so many pixels a side and enlarged again, so that expressions can hardly
be seen; the points stay exact. Random choices have a stream of their own: other synthetic data sets keep their bytes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvjax.data import images, resizing, synthetic
from fvjax.data.cartoon import render
from fvjax.data.cartoon_points import points
from fvjax.data.face_labels import ACTION_UNITS, TASKS
from fvjax.data.face_points import Points
from fvjax.data.frames import FRAMES
from fvjax.data.progress import track
from fvjax.data.stores.conversations import CLIP, PLACEHOLDER, ConversationStore, Writer

EXPRESSIONS = ("happy", "sad", "neutral", "angry", "surprise")
ATTRIBUTES = (
    "Big_Nose",
    "Bushy_Eyebrows",
    "Eyeglasses",
    "Gray_Hair",
    "Mouth_Slightly_Open",
    "Narrow_Eyes",
    "Smiling",
)
YOUNGEST, OLDEST, GRAY_FROM = 18, 80, 60  # years
PARTED, DROPPED = 0.2, 0.6  # how far the mouth is open from which the lips are parted and the jaw has dropped
SIZES = range(4, images.SIZE + 1)  # of low_resolution
_STREAM = 7  # of random numbers, see synthetic and face_questions for the others

INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "expression": (
        "What emotion does the {media} show?",
        "Name the facial expression in this {media} and say what shows it.",
        "How does the person in the {media} feel?",
    ),
    "action_units": (
        "Which facial action units are active in the {media}?",
        "List the active action units of the face in this {media}.",
        "What do the muscles of the face do in the {media}? Name the action units.",
    ),
    "attributes": (
        "Describe the attributes of the face in the {media}.",
        "Which facial attributes does the person in the {media} have?",
        "What does the face in this {media} look like?",
    ),
    "age": (
        "How old is the person in the {media}?",
        "Estimate the age of the person in this {media}.",
        "What age does the face in the {media} have?",
    ),
    "deepfake": (
        "Is the face in the {media} real or fake?",
        "Has the face in this {media} been manipulated?",
        "Is there any sign of a forgery in the {media}?",
    ),
}
_REASONS = {
    "happy": "the corners of the lips are pulled up",
    "sad": "the corners of the lips point down and the inner brows are raised",
    "neutral": "the mouth is straight and the brows are at rest",
    "angry": "the inner brows are pulled down",
    "surprise": "the brows are raised and the mouth is wide open",
}
_PHRASES = {
    "Big_Nose": "a big nose",
    "Bushy_Eyebrows": "bushy eyebrows",
    "Eyeglasses": "eyeglasses",
    "Gray_Hair": "gray hair",
    "Mouth_Slightly_Open": "a slightly open mouth",
    "Narrow_Eyes": "narrow eyes",
    "Smiling": "a smile",
}


@dataclass(frozen=True)
class Face:
    """One procedural person with one expression.

    Attributes:
        shape, shot: what is drawn when the expression is at its peak.
        rest: the parts of the shape and the shot that the expression moves, as they are in a neutral face.
        expression, age, action_units, attributes: labels; the last two name what is present.
    """

    shape: dict[str, float]
    shot: dict[str, Any]
    rest: dict[str, float]
    expression: str
    age: int

    @property
    def action_units(self) -> list[int]:
        """The numbers of the active units at the peak of the expression."""
        mouth = self.shot["mouth_open"]
        units = {"happy": [12], "sad": [1, 15], "neutral": [], "angry": [4], "surprise": [1, 2]}[self.expression]
        return sorted([*units, *([25] if mouth > PARTED else []), *([26] if mouth > DROPPED else [])])

    @property
    def attributes(self) -> list[str]:
        present = {
            "Big_Nose": self.shape["nose_width"] > 0.12,
            "Bushy_Eyebrows": self.shape["brow_thick"] > 0.035,
            "Eyeglasses": self.shot["glasses"],
            "Gray_Hair": self.age >= GRAY_FROM,
            "Mouth_Slightly_Open": self.shot["mouth_open"] > PARTED,
            "Narrow_Eyes": self.shape["eye_height"] < 0.06,
            "Smiling": self.expression == "happy",
        }
        return [name for name in ATTRIBUTES if present[name]]

    def label(self, task: str) -> Any:
        """Return the label of a task other than deepfake."""
        return getattr(self, task)

    def at(self, strength: float, turn: float = 0.0) -> tuple[dict[str, float], dict[str, Any]]:
        """Return shape and shot with the expression at `strength` (0 to 1) and the head turned further by `turn`."""
        shape, shot = dict(self.shape), dict(self.shot)
        for part in (shape, shot):
            part.update({k: rest + strength * (part[k] - rest) for k, rest in self.rest.items() if k in part})
        shot["yaw"] += turn
        return shape, shot


def face(identity: int, number: int, seed: int) -> Face:
    """Return face `number` of an identity, a function of the arguments alone; all are >= 0."""
    person = np.random.default_rng([seed, _STREAM, identity])
    shape = synthetic.identity_shape(identity, seed)
    shape["nose_width"] = float(person.choice((0.08, 0.15)) + person.uniform(-0.01, 0.01))
    shape["brow_thick"] = float(person.choice((0.02, 0.05)) + person.uniform(-0.005, 0.005))
    shape["eye_height"] = float(person.choice((0.05, 0.095)) + person.uniform(-0.005, 0.005))
    shape["brow_tilt"] *= 0.2
    age = int(person.integers(YOUNGEST, OLDEST + 1))
    rng = np.random.default_rng([seed, _STREAM, identity, number])
    shot = synthetic.shot_attributes(identity, number, seed, 0.5) | {"scarf": False, "bar": False}
    white = (age - YOUNGEST) / (OLDEST - YOUNGEST)
    shot["hair"] = (1 - white) * np.array([0.16, 0.10, 0.07]) + white * np.array([0.88, 0.88, 0.86])
    shot["glasses"] = bool(rng.random() < 0.4)
    shot |= {"mouth_open": 0.0, "smile": float(rng.uniform(-0.15, 0.15)), "brow_raise": 0.0, "eye_open": 0.9}
    rest: dict[str, float] = {name: shot[name] for name in ("mouth_open", "smile", "brow_raise", "eye_open")}
    rest |= {name: shape[name] for name in ("brow_tilt", "brow_gap")}
    expression = EXPRESSIONS[int(rng.integers(len(EXPRESSIONS)))]
    _express(expression, shape, shot, rng)
    return Face(shape, shot, rest, expression, age)


def _express(expression: str, shape: dict[str, float], shot: dict[str, Any], rng: np.random.Generator) -> None:
    """Change a neutral face's brows and mouth into an expression."""
    strength, parted = float(rng.uniform(0.7, 1)), bool(rng.random() < 0.5)
    if expression in ("happy", "sad") and parted:
        shot["mouth_open"] = float(rng.uniform(0.3, 0.5))
    match expression:
        case "happy":
            shot["smile"] = strength
        case "sad":
            shot["smile"] = -strength
            shape["brow_tilt"] -= 0.45 * strength
        case "angry":
            shape["brow_tilt"] += 0.5 * strength
            shape["brow_gap"] -= 0.04 * strength
        case "surprise":
            shot |= {"mouth_open": strength, "brow_raise": 2.0 * strength, "eye_open": 1.0}


def forge(pixels: NDArray[np.uint8], other: NDArray[np.uint8], x: float = 0.0, y: float = 0.0) -> NDArray[np.uint8]:
    """Paste the middle of another face into a picture, moved by (x, y) half widths: uint8 [112, 112, 3]."""
    rows, columns = np.mgrid[0 : images.SIZE, 0 : images.SIZE] / (images.SIZE / 2) - 1
    inside = ((columns - x) / 0.42) ** 2 + ((rows - 0.15 - y) / 0.45) ** 2 < 1
    return np.where(inside[..., None], other, pixels)


def write(
    dst: str | os.PathLike,
    identities: Sequence[int],
    *,
    images_per_identity: int,
    clips_per_identity: int,
    seed: int,
    split: str = "train",
    tasks: Sequence[str] = TASKS,
    low_resolution: int | None = None,
    frames: int = FRAMES,
) -> ConversationStore:
    """Draw pictures and clips of people, and write a question of each task about each of them to a new store.

    Args:
        dst: the store's directory; must not exist.
        identities: numbers of the people; other numbers are other people.
        split: of the store. In "test" every question of a task has the same wording.
        tasks: of face_labels.TASKS.
        low_resolution: pixels a side that the pictures are shrunk to before they are enlarged again; None: sharp.
        frames: of a clip.
    Raises:
        ValueError: an unknown task or split, nothing to draw, or ``dst`` exists.
    """
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ValueError(f"task {unknown[0]!r}: choose of {', '.join(TASKS)}")
    if low_resolution is not None and low_resolution not in SIZES:
        raise ValueError(f"low_resolution={low_resolution}: expected {SIZES.start} to {SIZES.stop - 1} pixels")
    if min(images_per_identity, clips_per_identity) < 0 or not images_per_identity + clips_per_identity:
        raise ValueError(f"{images_per_identity} pictures and {clips_per_identity} clips of each person: ask for one")
    counts: Counter[str] = Counter()
    source = f"fvjax.data.face_instruct seed={seed} low_resolution={low_resolution}"
    in_clips = frames if clips_per_identity else 0
    with Writer(dst, split=split, sources=[source], frames=in_clips, detector=synthetic.DETECTOR) as writer:
        for identity in track(identities, "people"):
            for number in range(images_per_identity + clips_per_identity):
                count = None if number < images_per_identity else frames
                medium = _Medium(identity, number, seed, count, low_resolution)
                for task in tasks:
                    medium.ask(task, writer, varied=split != "test")
                    counts[task] += 1
        writer.info["face_instruct"] = {"seed": seed, "low_resolution": low_resolution, "records": dict(counts)}
    return ConversationStore(dst, split)


class _Medium:
    """A picture of one person, or a clip of so many frames, and the questions about it."""

    def __init__(self, identity: int, number: int, seed: int, frames: int | None, low_resolution: int | None):
        self.identity, self.number, self.seed, self.is_clip = identity, number, seed, frames is not None
        self._low_resolution = low_resolution
        self.face = face(identity, number, seed)
        self._rng = np.random.default_rng([seed, _STREAM, identity, number, 1])
        self._other = synthetic.face(identity + 1_000_000, number, seed, 0.0)  # somebody who is in no data set
        self._is_fake = bool(self._rng.random() < 0.5)
        self._drawn = [self.face.at(*state) for state in self._motion(frames)]
        self._landmarks: Points = np.stack([points(shape, shot) for shape, shot in self._drawn])
        self._sharp = [render(shape, shot) for shape, shot in self._drawn]

    def _motion(self, frames: int | None) -> list[tuple[float, float]]:
        """Return the strength of the expression and the turn of the head in each frame."""
        if frames is None:
            return [(1.0, 0.0)]
        drift = float(self._rng.uniform(-0.1, 0.1))
        return [(t, drift * t) for t in np.linspace(0, 1, frames).tolist()]

    def ask(self, task: str, writer: Writer, varied: bool) -> None:
        """Add the question of a task to a store."""
        label = ("fake" if self._is_fake else "real") if task == "deepfake" else self.face.label(task)
        wording = int(self._rng.integers(len(INSTRUCTIONS[task]))) if varied else 0
        question = INSTRUCTIONS[task][wording].format(media="video" if self.is_clip else "picture")
        pixels = self._forged() if label == "fake" else self._sharp
        messages = [
            {"role": "user", "content": f"{CLIP if self.is_clip else PLACEHOLDER}\n{question}"},
            {"role": "assistant", "content": answer(task, label)},
        ]
        source = f"face_instruct/{self.seed}/{self.identity:06d}/{self.number:03d}/{task}"
        meta = {"task": task, "label": label, "identity": self.identity, "media": "video" if self.is_clip else "image"}
        writer.add(messages, [self._encode(one) for one in pixels], source, [self._landmarks], **meta)

    def _forged(self) -> list[NDArray[np.uint8]]:
        shifts = self._rng.uniform(-0.06, 0.06, (len(self._sharp), 2))
        return [forge(one, self._other, *shift) for one, shift in zip(self._sharp, shifts.tolist(), strict=True)]

    def _encode(self, pixels: NDArray[np.uint8]) -> bytes:
        if self._low_resolution is not None:
            small = resizing.resize(pixels, (self._low_resolution, self._low_resolution))
            pixels = resizing.resize(small, images.FACE_SIZE)
        return images.encode(pixels)


def answer(task: str, label: Any) -> str:
    """Return the answer to a question of a task, with a reason where one can be given."""
    match task:
        case "expression":
            return f"The person looks {'surprised' if label == 'surprise' else label}: {_REASONS[label]}."
        case "action_units":
            units = ", ".join(f"AU{unit} ({ACTION_UNITS[unit]})" for unit in label)
            return f"Active action units: {units}." if label else "No action unit is active: the face is at rest."
        case "attributes":
            present = ", ".join(_PHRASES[name] for name in label)
            return f"The face has {present}." if label else "The face has no attribute that stands out."
        case "age":
            return (
                f"The person looks {label} years old, judging by the {'white' if label >= GRAY_FROM else 'dark'} hair."
            )
        case "deepfake":
            seam = "a seam runs around the middle of the face and its colours do not fit"
            return f"The face is fake: {seam}." if label == "fake" else "The face is real: nothing is pasted in."
    raise ValueError(f"task {task!r}: choose of {', '.join(TASKS)}")
