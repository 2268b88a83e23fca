"""Procedural cartoon faces: the data set that comes with the project. It needs numpy only and no download.

An identity is a set of shape parameters (:data:`SHAPE`): outline, hairline, eyes, brows, nose, mouth, ears. Everything
else belongs to the single shot: every colour, pose, light, expression, occlusion, blur and noise. No colour histogram
can tell two identities apart, so a network can only succeed by looking at geometry.

Lengths are in half image widths (56 pixels), x to the right, y down, the origin in the middle of the image.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from fvjax.data.cartoon import render
from fvjax.data.cartoon_points import points
from fvjax.data.images import encode
from fvjax.data.stores import Feature, Pairs, Store, Writer
from fvjax.face_regions import POINTS

LANDMARKS = "landmarks"
DETECTOR = "fvjax.data.synthetic (exact)"  # where the points come from

# name: (low, high), drawn uniformly. Colours must not be among them: a histogram would then tell people apart.
SHAPE: dict[str, tuple[float, float]] = {
    "face_width": (0.50, 0.70),
    "chin": (0.70, 0.95),
    "jaw": (0.05, 0.50),  # how much narrower the outline gets towards the chin
    "square": (2.0, 3.2),  # exponent of the outline, 2 is an ellipse
    "ear": (0.07, 0.19),
    "ear_y": (-0.08, 0.14),
    "hairline": (0.36, 0.66),  # above the origin
    "widow": (-0.12, 0.14),  # peak in the middle of the hairline
    "part": (-0.45, 0.45),  # slope of the hairline
    "temple": (-0.6, 1.1),  # curvature of the hairline
    "hair_volume": (0.03, 0.24),
    "hair_length": (-0.35, 1.0),
    "eye_gap": (0.21, 0.34),  # centre line to pupil
    "eye_y": (-0.13, 0.05),
    "eye_width": (0.09, 0.155),
    "eye_height": (0.045, 0.11),
    "eye_tilt": (-0.4, 0.4),
    "iris": (0.040, 0.070),
    "brow_gap": (0.11, 0.22),
    "brow_width": (0.10, 0.20),
    "brow_thick": (0.015, 0.055),
    "brow_tilt": (-0.45, 0.45),
    "brow_arch": (0.0, 3.5),
    "nose_y": (0.19, 0.37),
    "nose_width": (0.06, 0.16),
    "nose_bridge": (0.02, 0.07),
    "mouth_gap": (0.13, 0.26),  # nose to mouth
    "mouth_width": (0.13, 0.29),
    "lip_upper": (0.015, 0.065),
    "lip_lower": (0.02, 0.085),
}


def identity_shape(identity: int, seed: int) -> dict[str, float]:
    """Return the shape parameters of one identity, a function of (seed, identity) alone; both are integers >= 0."""
    rng = np.random.default_rng([seed, 0, identity, 0])
    return {name: low + (high - low) * rng.random() for name, (low, high) in SHAPE.items()}


def shot_attributes(identity: int, number: int, seed: int, difficulty: float = 1.0) -> dict[str, Any]:
    """Return what the single photograph adds to an identity: the attributes of shot `number`.

    Floats: `yaw`, `pitch`, `roll` (radians; positive yaw looks to the right of the image, positive pitch down),
    `light_x`, `light_y` (x and y of the unit vector towards the lamp), `light` (0 flat to 1 hard), `smile`,
    `brow_raise` (-1 to 1), `mouth_open`, `eye_open` (0 to 1), `blur`, `noise`, `scale`, `shift_x`, `shift_y`.
    Flags: `glasses`, `scarf`, `bar`. The rest are RGB colours in [0, 1], the bar's position and the noise's seed.

    Args:
        difficulty: the range of poses and the strength of light, occlusion, blur and noise. 0 is frontal, evenly lit
            and unoccluded. At 1, yaw reaches 14 degrees and one face in four is occluded. 2 is the quickstart's data
            (28 degrees, nearly every second face occluded). 3 is the hardest.
    Raises:
        ValueError: difficulty outside 0..3.
    """
    if not 0 <= difficulty <= 3:
        raise ValueError(f"difficulty is {difficulty}, expected 0 (frontal, evenly lit) to 3; 1 is usual")
    rng = np.random.default_rng([seed, 1, identity, number])

    def signed(limit: float) -> float:
        return float(rng.uniform(-limit, limit))

    azimuth, elevation = signed(1.3), float(rng.uniform(-0.3, 1.0))
    tint = rng.uniform(0.9, 1.08, 3)  # the lamp's colour, so that skin colour never identifies a person
    skin = np.array([0.36, 0.22, 0.15]) + rng.random() * np.array([0.60, 0.58, 0.54]) + rng.uniform(-0.03, 0.03, 3)
    hair = rng.random() ** 1.5 * np.array([0.85, 0.70, 0.45]) + rng.uniform(0.03, 0.14, 3)
    if rng.random() < 0.15:
        hair = rng.uniform(0.1, 0.9, 3)  # dyed
    return {
        "yaw": signed(0.24) * difficulty,
        "pitch": signed(0.10) * difficulty,
        "roll": signed(0.09) * difficulty,
        "scale": 1 + signed(0.04),
        "shift_x": signed(0.04),
        "shift_y": signed(0.04),
        "light_x": math.sin(azimuth) * math.cos(elevation),
        "light_y": -math.sin(elevation),
        "light": min(1.0, float(rng.uniform(0.05, 0.4)) * difficulty),
        "smile": signed(1),
        "mouth_open": max(0.0, signed(1)),
        "eye_open": float(rng.uniform(0.6, 1)),
        "brow_raise": signed(1),
        "glasses": rng.random() < 0.15 * difficulty,
        "scarf": rng.random() < 0.05 * difficulty,
        "bar": rng.random() < 0.07 * difficulty,
        "bar_x": signed(0.7),
        "bar_y": signed(0.7),
        "bar_angle": signed(1.6),
        "blur": min(1.0, float(rng.uniform(0, 0.5)) * difficulty),
        "noise": float(rng.uniform(0.02, 0.09)) * difficulty,
        "grain": int(rng.integers(2**31)),  # seed of the noise, so that drawing is a pure function of the attributes
        "skin": skin * tint,
        "hair": hair * tint,
        "lips": skin * tint * rng.uniform([0.75, 0.35, 0.4], [1.0, 0.7, 0.75]),
        "iris_colour": rng.uniform(0.05, 0.5, 3),
        "backdrop": rng.uniform(0.05, 0.95, (2, 3)),
        "clothes": rng.uniform(0.05, 0.95, 3),
        "cloth": rng.uniform(0.05, 0.95, 3),  # of the occluders
    }


def face(identity: int, shot: int, seed: int, difficulty: float = 1.0) -> np.ndarray:
    """Draw photograph number `shot` of an identity: uint8 [112, 112, 3], RGB. A pure function; arguments are >= 0.

    See :func:`shot_attributes` for `difficulty`.
    """
    return render(identity_shape(identity, seed), shot_attributes(identity, shot, seed, difficulty))


def landmarks(identity: int, shot: int, seed: int, difficulty: float = 1.0) -> np.ndarray:
    """Return the 68 points of :func:`face` of the same arguments: float32 [68, 2], (x, y) from 0 to 1.

    They are exact, also where something covers them, and they are no part of what a shot draws at random.
    """
    return points(identity_shape(identity, seed), shot_attributes(identity, shot, seed, difficulty))


def faces(
    identities: Sequence[int], images_per_identity: int, seed: int, difficulty: float = 1.0
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Draw all shots of some identities into memory, identity by identity; N = identities x images_per_identity.

    Returns:
        faces uint8 [N, 112, 112, 3], identities int64 [N], and the attributes of :func:`shot_attributes`, each [N, …].
    """
    people = [(identity_shape(i, seed), i) for i in identities]
    shots = [[shot_attributes(i, k, seed, difficulty) for k in range(images_per_identity)] for _, i in people]
    pictures = np.stack([render(shape, shot) for (shape, _), row in zip(people, shots) for shot in row])
    flat = [shot for row in shots for shot in row]
    attributes = {name: np.array([shot[name] for shot in flat]) for name in flat[0]}
    return pictures, np.repeat(np.array(identities, np.int64), images_per_identity), attributes


def verification_pairs(labels: np.ndarray, pairs: int, seed: int) -> Pairs:
    """Draw a protocol like LFW's: ten folds, each with equal numbers of genuine and impostor pairs.

    No identity is in two folds, and no pair occurs twice.

    Args:
        labels: int64 [N], the identity of each image.
        pairs: the number of pairs, a multiple of 20.
        seed: of the random choice.
    Raises:
        ValueError: pairs is no multiple of 20, or there are too few identities or images for so many.
    """
    if pairs <= 0 or pairs % 20:
        raise ValueError(f"{pairs} pairs do not make ten folds half genuine, half impostor; take a multiple of 20")
    rng = np.random.default_rng([seed, 2])
    columns_a, columns_b = [], []
    for fold, people in enumerate(np.array_split(rng.permutation(np.unique(labels)), 10)):
        images_of_fold = np.flatnonzero(np.isin(labels, people))
        first, second = (images_of_fold[side] for side in np.triu_indices(len(images_of_fold), 1))
        same = labels[first] == labels[second]
        for kind in (same, ~same):
            choices = np.flatnonzero(kind)
            if len(choices) < pairs // 20:
                raise ValueError(
                    f"fold {fold} has {len(people)} identities and {len(images_of_fold)} images: not enough for "
                    f"{pairs // 20} {'genuine' if kind is same else 'impostor'} pairs; add identities or images"
                )
            chosen = rng.choice(choices, pairs // 20, replace=False)
            columns_a.append(first[chosen])
            columns_b.append(second[chosen])
    a, b = np.concatenate(columns_a), np.concatenate(columns_b)
    return Pairs(a, b, labels[a] == labels[b], np.repeat(np.arange(10), pairs // 10), labels[a], labels[b])


def write(
    dst: str | os.PathLike,
    identities: Sequence[int],
    images_per_identity: int,
    seed: int,
    *,
    split: str,
    difficulty: float = 1.0,
    pairs: int | None = None,
    features: Sequence[str] = (),
    workers: int = 1,
) -> Store:
    """Draw faces into a new store (see :mod:`fvjax.data.stores`), one person at a time.

    Args:
        dst: the store's directory; must not exist.
        identities: numbers of the identities, such as ``range(200)``. Other numbers are other people, so ranges that do
            not overlap are disjoint sets for training and testing.
        split: "train", "val" or "test".
        pairs: adds the benchmark "synthetic" with so many :func:`verification_pairs`; None adds none.
        features: attributes of :func:`shot_attributes` that each record stores as float32, such as ("yaw", "pitch"),
            and "landmarks" for the points of :func:`landmarks`, float32 [68, 2].
        workers: processes that draw; the store does not depend on it. More than one import the caller's main module.
    Raises:
        ValueError: an attribute that does not exist or is not a float, or as :func:`verification_pairs`.
    """
    source = f"fvjax.data.synthetic seed={seed} difficulty={difficulty}"
    declared = _declare(features, seed, difficulty)
    with Writer(dst, split=split, sources=[source], features=declared) as writer:
        draw = partial(_draw_person, images=images_per_identity, seed=seed, difficulty=difficulty, features=features)
        for identity, shots in zip(identities, in_processes(draw, identities, workers)):
            for k, (jpeg, values) in enumerate(shots):
                name, file = f"synthetic{identity:06d}", f"synthetic/{seed}/{identity:06d}/{k:03d}"
                writer.add(jpeg, name, file, **values)
        if LANDMARKS in features:
            writer.info["landmarks"] = {"detector": DETECTOR, "points": POINTS}
        if pairs is not None:
            labels = np.array(writer.labels, np.int64)
            writer.add_pairs("synthetic", verification_pairs(labels, pairs, seed))
    return Store(dst, split)


def _draw_person(
    identity: int, *, images: int, seed: int, difficulty: float, features: Sequence[str]
) -> list[tuple[bytes, dict[str, Any]]]:
    """Draw all shots of one person: the JPEG and the wanted attributes of each."""
    shape = identity_shape(identity, seed)
    shots = [shot_attributes(identity, k, seed, difficulty) for k in range(images)]
    return [
        (
            encode(render(shape, shot)),
            {name: points(shape, shot) if name == LANDMARKS else np.float32(shot[name]) for name in features},
        )
        for shot in shots
    ]


def in_processes(draw: Callable[[int], Any], identities: Sequence[int], workers: int) -> Iterator[Any]:
    """Yield draw(identity) for all identities, in order."""
    if workers == 1:
        yield from map(draw, identities)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy jax's threads half-way
    with ProcessPoolExecutor(workers, context) as pool:
        yield from pool.map(draw, identities, chunksize=8)


def _declare(names: Sequence[str], seed: int, difficulty: float) -> dict[str, Feature]:
    available = [k for k, value in shot_attributes(0, 0, seed, difficulty).items() if isinstance(value, float)]
    available.append(LANDMARKS)
    if unknown := [name for name in names if name not in available]:
        raise ValueError(f"attribute {unknown[0]!r} is no float of a shot; choose from {', '.join(available)}")
    return {name: Feature("float32", (POINTS, 2) if name == LANDMARKS else ()) for name in names}
