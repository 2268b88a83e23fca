"""Procedural cartoon faces: the data set that comes with the project. numpy only, no download.

An identity is a set of shape parameters (:data:`SHAPE`): outline, hairline, eyes, brows, nose, mouth, ears. Everything
else belongs to the single shot: every colour, pose, light, expression, occlusion, blur and noise. Nothing that a colour
histogram sees tells two identities apart, so a network can only win by looking at geometry.

Lengths are in half image widths (56 pixels), x to the right, y down, the origin in the middle of the image.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from fvjax.data import images, store

SIZE = 112

# name: (low, high), drawn uniformly. No colour may come in here: a histogram would then tell people apart.
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

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / (SIZE / 2) + (1 / SIZE - 1)


def identity_shape(identity: int, seed: int) -> dict[str, float]:
    """The shape parameters of one identity, a function of (seed, identity) alone; both are integers >= 0."""
    rng = np.random.default_rng([seed, 0, identity, 0])
    return {name: low + (high - low) * rng.random() for name, (low, high) in SHAPE.items()}


def shot_attributes(identity: int, number: int, seed: int, difficulty: float = 1.0) -> dict[str, Any]:
    """What one photograph adds to an identity: the attributes of shot `number`.

    Floats: `yaw`, `pitch`, `roll` (radians; positive yaw looks to the right of the image, positive pitch down),
    `light_x`, `light_y` (x and y of the unit vector towards the lamp), `light` (0 flat to 1 hard), `smile`,
    `brow_raise` (-1 to 1), `mouth_open`, `eye_open` (0 to 1), `blur`, `noise`, `scale`, `shift_x`, `shift_y`.
    Flags: `glasses`, `scarf`, `bar`. The rest are RGB colours in [0, 1], the bar's place and the noise's seed.

    Args:
        difficulty: how far pose goes and how hard light, occlusion, blur and noise are. 0 is frontal, evenly lit and
            unoccluded; at 1 yaw goes to 14 degrees and one face in four is occluded; 2 is the quickstart's data (28
            degrees, nearly every second); 3 is the hardest.
    Raises:
        ValueError: difficulty outside 0..3.
    """
    if not 0 <= difficulty <= 3:
        raise ValueError(f"difficulty is {difficulty}, expected 0 (frontal, evenly lit) to 3; 1 is usual")
    rng = np.random.default_rng([seed, 1, identity, number])

    def signed(limit: float) -> float:
        return float(rng.uniform(-limit, limit))

    azimuth, elevation = signed(1.3), float(rng.uniform(-0.3, 1.0))
    tint = rng.uniform(0.9, 1.08, 3)  # the lamp's colour, so that skin is never a constant of a person
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


def _inside(distance: np.ndarray) -> np.ndarray:
    """Signed distance (negative inside) -> coverage 0..1 with a soft edge of one and a half pixels."""
    return np.clip(0.5 - distance * (SIZE / 3), 0, 1)


def _length(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y)  # np.hypot guards against overflow and takes five times as long


def render(shape: Mapping[str, float], shot: Mapping[str, Any]) -> np.ndarray:
    """Draw shape parameters under a shot's attributes -> uint8 [112, 112, 3], RGB. A pure function."""
    g, s = SimpleNamespace(**shape), SimpleNamespace(**shot)
    image = np.empty((3, SIZE, SIZE), np.float32)

    def paint(cover: np.ndarray, colour: Any) -> None:
        image[:] += cover * (np.asarray(colour, np.float32).reshape(3, 1, 1) - image)

    # Image plane -> head plane (u, v): shift, scale, roll undone.
    x, y = (_X - s.shift_x) / s.scale, (_Y - s.shift_y) / s.scale
    cos, sin = math.cos(s.roll), math.sin(s.roll)
    u, v = cos * x + sin * y, cos * y - sin * x
    # The front of the head is an ellipsoid: yaw and pitch undone there give the frontal face's coordinates (x, y).
    z = np.sqrt(np.maximum(1 - (u / 0.80) ** 2 - (v / 1.05) ** 2, 0.04))
    x = u * math.cos(s.yaw) - z * (0.62 * math.sin(s.yaw))
    y = v * math.cos(s.pitch) - z * (0.62 * math.sin(s.pitch))
    ax = np.abs(x)

    def outline(extra: float, down: np.ndarray) -> np.ndarray:
        """Signed distance to the head's outline grown by `extra`; `down` is v, held where the outline runs straight."""
        below = np.maximum(down, 0)
        half = (g.face_width + extra) * (1 - g.jaw * (below / g.chin) ** 2)
        side = np.abs(u - 0.3 * math.sin(s.yaw) * below) / np.maximum(half, 0.1)
        up = np.where(down < 0, down / (-0.82 - extra), down / (g.chin + extra))
        return ((side**g.square + up**g.square) ** (1 / g.square) - 1) * 0.62

    # Backdrop, hair behind the head, clothes, neck, ears, face.
    blend = np.clip(0.5 + 0.5 * (_Y * s.light_x + _X * s.light_y), 0, 1)
    image[:] = s.backdrop[0].reshape(3, 1, 1)
    paint(blend, s.backdrop[1])
    head = _inside(outline(0.0, v))
    behind = _inside(np.maximum(outline(g.hair_volume, np.minimum(v, 0)), v - g.hair_length))
    paint(behind, s.hair * 0.8)
    paint(_inside(np.maximum(np.abs(u) - 0.30, 0.4 - v)), s.skin * 0.75)
    paint(_inside(1.35 - v - 0.35 * np.sqrt(np.maximum(1.2 - u * u, 0))), s.clothes)
    ear = np.abs(u + 0.12 * math.sin(s.yaw)) - g.face_width
    ears = _inside((_length(ear * 1.5, v - g.ear_y) - g.ear) * 0.8)
    paint(ears, s.skin * 0.88)
    paint(head, s.skin)

    # Nose: the bridge's shadow falls away from the light, then wings and nostrils.
    nose_top, side = g.eye_y, -math.copysign(1, s.light_x)
    bridge = np.abs(x - side * g.nose_bridge * (1 + np.maximum(y, 0))) - 0.012
    paint(0.35 * _inside(np.maximum(bridge, np.maximum(nose_top - y, y - g.nose_y))), s.skin * 0.45)
    wing = _length(x / g.nose_width, (y - g.nose_y) / 0.075)
    paint(0.75 * _inside(np.maximum(np.abs(wing - 1) * 0.06 - 0.012, g.nose_y - 0.02 - y)), s.skin * 0.5)
    nostril = _length(ax - 0.5 * g.nose_width, 1.5 * (y - (g.nose_y + 0.035)))
    paint(_inside(nostril - (0.12 * g.nose_width + 0.01)), s.skin * 0.25)

    # Mouth: lips as parabolas on a line that the smile bends; opening moves the lower lip.
    t = x / (g.mouth_width * (1 + 0.12 * s.smile))
    arc = np.maximum(1 - t * t, 0)
    line = y - (g.nose_y + g.mouth_gap) + 0.07 * s.smile * (t * t - 0.3)
    gap = 0.13 * s.mouth_open * arc
    ends = (np.abs(t) - 1) * g.mouth_width
    paint(_inside(np.maximum(ends, np.maximum(-line, line - gap))), (0.25, 0.05, 0.06))
    paint(_inside(np.maximum(ends, np.maximum(-line, line - 0.4 * gap))) * (gap > 0.04), (0.92, 0.90, 0.85))
    bow = g.lip_upper * arc * (1 - 0.35 * np.exp(-((t / 0.18) ** 2)))
    paint(_inside(np.maximum(ends, np.maximum(-bow - line, line))), s.lips)
    paint(_inside(np.maximum(ends, np.maximum(gap - line, line - gap - g.lip_lower * arc))), s.lips * 1.1)
    paint(0.8 * _inside(np.maximum(ends, np.abs(line) - 0.012)), s.lips * 0.35)

    # Eyes, both at once through |x|.
    ex = (ax - g.eye_gap) / g.eye_width
    ey = y - g.eye_y + g.eye_tilt * g.eye_width * ex
    lid = g.eye_height * s.eye_open * (1 - ex * ex)
    eye = np.maximum(np.abs(ey) - lid, (np.abs(ex) - 1) * g.eye_width)
    white = _inside(eye)
    paint(white, (0.93, 0.92, 0.90))
    pupil = _length(ax - g.eye_gap, ey)
    paint(white * _inside(pupil - g.iris), s.iris_colour)
    paint(white * _inside(pupil - 0.45 * g.iris), (0.02, 0.02, 0.02))
    paint(0.9 * _inside(np.maximum(np.abs(ey + lid) - 0.014, (np.abs(ex) - 1.1) * 0.1)), s.skin * 0.25)

    # Brows, thinner towards the temple.
    bx = (ax - g.eye_gap) / g.brow_width
    by = y - (g.eye_y - g.brow_gap - 0.03 * s.brow_raise)
    by = by + g.brow_tilt * g.brow_width * bx + g.brow_arch * (g.brow_width * bx) ** 2
    thick = g.brow_thick * (1 - 0.35 * np.clip(bx, -1, 1))
    paint(_inside(np.maximum(np.abs(by) - thick, (np.abs(bx) - 1) * g.brow_width)), s.hair * 0.45)

    # Hair in front; the head's shading goes over all of it.
    hairline = -g.hairline + g.part * x + g.temple * x * x
    hairline = hairline + g.widow * np.exp(-((x / 0.13) ** 2))
    paint(_inside(np.maximum(outline(min(0.06, g.hair_volume), v), np.maximum(y - hairline, v - 0.3))), s.hair)
    normal_light = u / 0.80 * s.light_x + v / 1.05 * s.light_y
    normal_light += z * math.sqrt(max(0.0, 1 - s.light_x**2 - s.light_y**2))
    shade = 1 - s.light * (1 - 1.35 * np.maximum(normal_light, 0))
    image *= 1 + np.maximum(head, behind) * (shade - 1)

    # Occlusion.
    if s.glasses:
        ring = _length(ax - g.eye_gap, (y - g.eye_y) * 1.2) - g.eye_gap * 0.78
        legs = np.maximum(np.abs(y - g.eye_y + 0.03) - 0.015, g.eye_gap - ax)
        frame = np.minimum(np.abs(ring) - 0.02, np.maximum(legs, -ring))
        bridge = np.maximum(np.abs(y - g.eye_y) - 0.015, np.maximum(ax - g.eye_gap, -ring))
        paint(np.maximum(_inside(np.minimum(frame, bridge)) * head, 0), s.cloth * 0.6)
    if s.scarf:
        paint(
            _inside(np.maximum(0.52 + 0.1 * u * u - v, np.abs(u) - 0.85)),
            s.cloth * (0.85 + 0.15 * math.copysign(1, s.bar_x)),
        )
    if s.bar:
        across = (_X - s.bar_x) * math.cos(s.bar_angle) + (_Y - s.bar_y) * math.sin(s.bar_angle)
        paint(_inside(np.abs(across) - 0.10), s.cloth)

    soft = (image + np.roll(image, 1, 1) + np.roll(image, 1, 2) + np.roll(image, (1, 1), (1, 2))) / 4
    image += s.blur * (soft - image)
    image += s.noise * (np.random.default_rng(s.grain).random(image.shape, np.float32) - 0.5)
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def face(identity: int, shot: int, seed: int, difficulty: float = 1.0) -> np.ndarray:
    """Photograph number `shot` of an identity -> uint8 [112, 112, 3], RGB. The same for the same arguments, all >= 0.

    See :func:`shot_attributes` for `difficulty`.
    """
    return render(identity_shape(identity, seed), shot_attributes(identity, shot, seed, difficulty))


def faces(
    identities: Sequence[int], images_per_identity: int, seed: int, difficulty: float = 1.0
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """All shots of some identities in memory, identity by identity; N = identities x images_per_identity.

    Returns:
        faces uint8 [N, 112, 112, 3], identities int64 [N], and the attributes of :func:`shot_attributes`, each [N, …].
    """
    people = [(identity_shape(i, seed), i) for i in identities]
    shots = [[shot_attributes(i, k, seed, difficulty) for k in range(images_per_identity)] for _, i in people]
    pictures = np.stack([render(shape, shot) for (shape, _), row in zip(people, shots) for shot in row])
    flat = [shot for row in shots for shot in row]
    attributes = {name: np.array([shot[name] for shot in flat]) for name in flat[0]}
    return pictures, np.repeat(np.array(identities, np.int64), images_per_identity), attributes


def verification_pairs(labels: np.ndarray, pairs: int, seed: int) -> store.Pairs:
    """A protocol like LFW's over labelled images: ten folds, in each as many genuine as impostor pairs, at random.

    No identity is in two folds and no pair comes twice.

    Args:
        labels: int64 [N], one per image. pairs: how many, a multiple of 20. seed: of the choice.
    Raises:
        ValueError: pairs is no multiple of 20, or there are too few identities or images for so many.
    """
    if pairs <= 0 or pairs % 20:
        raise ValueError(f"{pairs} pairs do not make ten folds half genuine, half impostor; take a multiple of 20")
    rng = np.random.default_rng([seed, 2])
    a, b = [], []
    for fold, people in enumerate(np.array_split(rng.permutation(np.unique(labels)), 10)):
        images_here = np.flatnonzero(np.isin(labels, people))
        first, second = (images_here[side] for side in np.triu_indices(len(images_here), 1))
        same = labels[first] == labels[second]
        for kind in (same, ~same):
            choices = np.flatnonzero(kind)
            if len(choices) < pairs // 20:
                raise ValueError(
                    f"fold {fold} has {len(people)} identities and {len(images_here)} images: not enough for "
                    f"{pairs // 20} {'genuine' if kind is same else 'impostor'} pairs; add identities or images"
                )
            chosen = rng.choice(choices, pairs // 20, replace=False)
            a.append(first[chosen])
            b.append(second[chosen])
    a, b = np.concatenate(a), np.concatenate(b)
    return store.Pairs(a, b, labels[a] == labels[b], np.repeat(np.arange(10), pairs // 10), labels[a], labels[b])


def write(
    dst: str | os.PathLike,
    identities: Sequence[int],
    images_per_identity: int,
    seed: int,
    *,
    split: str,
    difficulty: float = 1.0,
    pairs: int | None = None,
) -> store.Store:
    """Draw faces into a new store (see :mod:`fvjax.data.store`), one at a time.

    Args:
        dst: the store's directory; must not exist.
        identities: numbers of the identities, such as ``range(200)``; other numbers are other people, so ranges that do
            not overlap are disjoint sets for training and testing.
        split: "train" or "test".
        pairs: adds the benchmark "synthetic" with so many :func:`verification_pairs`; None adds none.
    """
    source = f"fvjax.data.synthetic seed={seed} difficulty={difficulty}"
    with store.Writer(dst, split=split, sources=[source]) as writer:
        for identity in identities:
            shape = identity_shape(identity, seed)
            for k in range(images_per_identity):
                picture = render(shape, shot_attributes(identity, k, seed, difficulty))
                writer.add(
                    images.encode(picture), f"synthetic{identity:06d}", f"synthetic/{seed}/{identity:06d}/{k:03d}"
                )
        if pairs is not None:
            labels = np.array(writer.labels, np.int64)
            writer.add_pairs("synthetic", verification_pairs(labels, pairs, seed))
    return store.Store(dst, split)
