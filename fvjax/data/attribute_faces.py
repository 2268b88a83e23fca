"""Procedural faces with exact segmentation maps and attributes, for which the truth about every label is known.

The faces are those of :mod:`fvjax.data.synthetic` with further strokes (:class:`fvjax.data.cartoon.Strokes`), which are
drawn from a random stream of their own, so that all other synthetic data stay as they are. Four things are built in:

1. Correlations: grey hair goes with glasses, a goatee with a mustache.
2. Rules that no label breaks (fvjax/data/rule_sets/procedural.toml): who is bald has no bangs, hair colours exclude
   each other, and so on.
3. Attributes that no picture shows (`HIDDEN`): a sailor wears a hat nine times in ten, others rarely. They are labelled
   in few training pictures, so that only their correlation with what is visible tells much about them.
4. Attributes that only the map shows (`IN_MAP`): earrings and a necklace.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvjax.data import attributes, maps, synthetic
from fvjax.data.attributes import Attributes
from fvjax.data.cartoon import Strokes, render_with_map
from fvjax.data.images import FACE_SIZE, encode
from fvjax.data.stores import Store, Writer

HAIR_COLOURS = {  # mean colour, and how often it is drawn
    "Black_Hair": ((0.07, 0.06, 0.07), 0.3),
    "Brown_Hair": ((0.38, 0.22, 0.10), 0.3),
    "Blond_Hair": ((0.88, 0.74, 0.38), 0.2),
    "Gray_Hair": ((0.62, 0.62, 0.64), 0.2),
}
HIDDEN = {"Sailor": "Wearing_Hat", "Musician": "Wavy_Hair", "Teacher": "Eyeglasses"}  # by what each goes with
IN_MAP = ("Wearing_Earrings", "Wearing_Necklace")
NAMES = (
    "Bald", "Bangs", *HAIR_COLOURS, "Wavy_Hair", "Straight_Hair", "Goatee", "Mustache", "Sideburns", "No_Beard",
    "Eyeglasses", "Wearing_Hat", "Smiling", "Mouth_Slightly_Open", "Narrow_Eyes", "Bushy_Eyebrows", "Big_Nose",
    "Big_Lips", "Pale_Skin", "Facing_Left", "Facing_Right", *IN_MAP, *HIDDEN,
)  # fmt: skip
SWAP = (("Facing_Left", "Facing_Right"),)  # what a mirror exchanges
ATTRIBUTES = Attributes(NAMES, dataset="procedural", has_identities=True)
STREAM = 3  # of the random numbers; 0 to 2 are those of fvjax.data.synthetic
P_HIDDEN = (0.05, 0.9)  # that a hidden attribute is positive, without and with what it goes with


def draw(
    identity: int, number: int, seed: int, difficulty: float = 1.0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int8]]:
    """Draw photograph `number` of an identity, a pure function of its arguments.

    Returns:
        the picture uint8 [112, 112, 3], its map uint8 [112, 112], and its labels int8 [K], columns :data:`NAMES`.
    """
    shape = synthetic.identity_shape(identity, seed)
    shot = synthetic.shot_attributes(identity, number, seed, difficulty) | {"scarf": False, "bar": False}
    rng = np.random.default_rng([seed, STREAM, identity, number])
    colours = list(HAIR_COLOURS)
    colour = colours[rng.choice(len(colours), p=[share for _, share in HAIR_COLOURS.values()])]
    shot["hair"] = np.clip(np.array(HAIR_COLOURS[colour][0]) + rng.uniform(-0.04, 0.04, 3), 0, 1)
    shot["glasses"] = bool(rng.random() < (0.7 if colour == "Gray_Hair" else 0.15))
    strokes = _strokes(rng)
    picture, classes = render_with_map(shape, shot, strokes)
    positive = _positive(shape, shot, strokes, colour)
    chances = rng.random(len(HIDDEN))
    positive |= {name for (name, shown), x in zip(HIDDEN.items(), chances) if x < P_HIDDEN[shown in positive]}
    return picture, classes, ATTRIBUTES.row(positive)


def _strokes(rng: np.random.Generator) -> Strokes:
    """Draw what a face wears and grows; who wears a hat is not bald, and who is bald has neither bangs nor texture."""
    hat = rng.random() < 0.25
    bald = not hat and rng.random() < 0.2
    texture = rng.choice(["wavy", "straight", "none"], p=[0.35, 0.35, 0.3])
    bangs, mustache, sideburns = rng.random() < 0.3, rng.random() < 0.3, rng.random() < 0.2
    goatee = rng.random() < (0.7 if mustache else 0.08)
    earrings, necklace = rng.random() < 0.4, rng.random() < 0.4
    red, green, blue = rng.uniform(0.1, 0.9, 3).tolist()
    return Strokes(
        bald=bald,
        bangs=bool(bangs and not bald),
        wavy=bool(texture == "wavy" and not bald),
        straight=bool(texture == "straight" and not bald),
        goatee=bool(goatee),
        mustache=bool(mustache),
        sideburns=bool(sideburns and not bald),
        hat=bool(hat),
        earrings=bool(earrings),
        necklace=bool(necklace),
        hat_colour=(red, green, blue),
    )


def _positive(shape: Mapping[str, float], shot: Mapping[str, Any], strokes: Strokes, colour: str) -> set[str]:
    """Return the visible attributes of a face, by the thresholds stated here."""
    bearded = strokes.goatee or strokes.mustache or strokes.sideburns
    tests = {
        "Bald": strokes.bald,
        "Bangs": strokes.bangs,
        **{name: not strokes.bald and name == colour for name in HAIR_COLOURS},
        "Wavy_Hair": strokes.wavy,
        "Straight_Hair": strokes.straight,
        "Goatee": strokes.goatee,
        "Mustache": strokes.mustache,
        "Sideburns": strokes.sideburns,
        "No_Beard": not bearded,
        "Eyeglasses": shot["glasses"],
        "Wearing_Hat": strokes.hat,
        "Smiling": shot["smile"] > 0.3,
        "Mouth_Slightly_Open": shot["mouth_open"] > 0.2,
        "Narrow_Eyes": shape["eye_height"] * shot["eye_open"] < 0.05,
        "Bushy_Eyebrows": shape["brow_thick"] > 0.04,
        "Big_Nose": shape["nose_width"] > 0.12,
        "Big_Lips": shape["lip_upper"] + shape["lip_lower"] > 0.105,
        "Pale_Skin": float(np.mean(shot["skin"])) > 0.65,
        "Facing_Left": shot["yaw"] < -0.1,  # radians; positive yaw looks to the right of the picture
        "Facing_Right": shot["yaw"] > 0.1,
        "Wearing_Earrings": strokes.earrings,
        "Wearing_Necklace": strokes.necklace,
    }
    return {name for name, is_so in tests.items() if is_so}


def write(
    dst: str | os.PathLike,
    identities: Sequence[int],
    images: int,
    seed: int,
    *,
    split: str,
    difficulty: float = 1.0,
    labelled: float = 1.0,
    workers: int = 1,
) -> Store:
    """Draw faces with maps and labels into a new store.

    Args:
        labelled: the share of the pictures in which the attributes of :data:`HIDDEN` are labelled; the pictures are
            chosen by a random stream of (seed, identity).
        dst, identities, images, seed, split, difficulty, workers: as for :func:`fvjax.data.synthetic.write`.
    """
    classes = maps.Maps()
    features = {attributes.FEATURE: ATTRIBUTES.feature, maps.FEATURE: classes.feature(FACE_SIZE)}
    source = f"fvjax.data.attribute_faces seed={seed} difficulty={difficulty} labelled={labelled}"
    with Writer(dst, split=split, sources=[source], features=features) as writer:
        writer.info |= {"attributes": ATTRIBUTES.to_json(), "attribute_swap": SWAP, "maps": classes.to_json()}
        one = partial(_draw_person, images=images, seed=seed, difficulty=difficulty, labelled=labelled)
        for identity, shots in zip(identities, synthetic.in_processes(one, identities, workers)):
            for k, (jpeg, classes_of, labels) in enumerate(shots):
                name, file = f"synthetic{identity:06d}", f"attributes/{seed}/{identity:06d}/{k:03d}"
                writer.add(jpeg, name, file, **{attributes.FEATURE: labels, maps.FEATURE: classes_of})
    return Store(dst, split)


def _draw_person(
    identity: int, *, images: int, seed: int, difficulty: float, labelled: float
) -> list[tuple[bytes, NDArray[np.uint8], NDArray[np.int8]]]:
    """Draw all shots of one person: the JPEG, the map and the labels of each."""
    known = np.random.default_rng([seed, STREAM, identity]).random(images) < labelled
    hidden = [NAMES.index(name) for name in HIDDEN]
    shots = []
    for k in range(images):
        picture, classes, labels = draw(identity, k, seed, difficulty)
        if not known[k]:
            labels[hidden] = attributes.UNLABELLED
        shots.append((encode(picture), classes, labels))
    return shots
