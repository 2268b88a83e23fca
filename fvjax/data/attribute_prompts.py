"""The prompt of each attribute, which a text tower reads.

FaceInsight (arXiv 2504.15624) does not give its prompts. Here they are "a photo of " and a wording: "a person with …"
for most attributes, and one of its own where that does not fit. A TOML file (config.attributes.prompts) adds others:

    Freckles = "a person with freckles"
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from fvjax.data.tokenizers.files import read_text

START = "a photo of "
_PERSON_WITH = (
    *(
        "Arched_Eyebrows",
        "Bags_Under_Eyes",
        "Bangs",
        "Big_Lips",
        "Black_Hair",
        "Blond_Hair",
        "Brown_Eyes",
        "Brown_Hair",
    ),
    *("Bushy_Eyebrows", "Eyeglasses", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Narrow_Eyes", "Pale_Skin"),
    *("Rosy_Cheeks", "Shiny_Skin", "Sideburns", "Straight_Hair", "Wavy_Hair"),
)
_PERSON_WITH_A = (
    *("Big_Nose", "Double_Chin", "Goatee", "Mustache", "Pointy_Nose", "Receding_Hairline", "Round_Face", "Square_Face"),
    "Fully_Visible_Forehead",
)
_PEOPLE = ("White", "Black", "East Asian", "Southeast Asian", "Middle Eastern")  # "a … person"
_WORDING = {
    "5_o_Clock_Shadow": "a person with a five o'clock shadow",
    "Attractive": "an attractive person",
    "Bald": "a bald person",
    "Blurry": "a person, out of focus",
    "Chubby": "a chubby person",
    "Facing_Left": "a person who faces left",
    "Facing_Right": "a person who faces right",
    "Male": "a man",
    "Female": "a woman",
    "Mouth_Closed": "a person whose mouth is closed",
    "Mouth_Slightly_Open": "a person whose mouth is slightly open",
    "No_Beard": "a person without a beard",
    "No_Eyewear": "a person without glasses",
    "Obstructed_Forehead": "a person whose forehead is covered",
    "Oval_Face": "a person with an oval face",
    "Smiling": "a smiling person",
    "Wearing_Earrings": "a person wearing earrings",
    "Wearing_Hat": "a person wearing a hat",
    "Wearing_Lipstick": "a person wearing lipstick",
    "Wearing_Necklace": "a person wearing a necklace",
    "Wearing_Necktie": "a person wearing a necktie",
    "Young": "a young person",
    "Middle_Aged": "a middle-aged person",
    "Senior": "an old person",
    "Sailor": "a sailor",
    "Musician": "a musician",
    "Teacher": "a teacher",
    "0-2": "a baby up to 2 years old",
    "3-9": "a child between 3 and 9 years old",
    **{f"{n}-{n + 9}": f"a person between {n} and {n + 9} years old" for n in range(10, 70, 10)},
    "more than 70": "a person more than 70 years old",
    "Asian": "an Asian person",
    "Indian": "an Indian person",
    "Latino_Hispanic": "a Latino or Hispanic person",
    "Others": "a person of another race",
    "Anger": "an angry person",
    "Disgust": "a disgusted person",
    "Fear": "a frightened person",
    "Happiness": "a happy person",
    "Sadness": "a sad person",
    "Surprise": "a surprised person",
    "Neutral": "a person with a neutral expression",
}


def _spoken(name: str) -> str:
    return name.replace("_", " ").lower()


WORDING: Mapping[str, str] = {
    **{name: f"a person with {_spoken(name)}" for name in _PERSON_WITH},
    **{name: f"a person with a {_spoken(name)}" for name in _PERSON_WITH_A},
    **{name: f"a {name} person" for name in _PEOPLE},
    **_WORDING,
}


def prompts(names: Sequence[str], file: str | os.PathLike = "") -> list[str]:
    """Return the prompts of attributes, by :data:`WORDING` and by a TOML file with wordings of one's own.

    Raises ValueError: an attribute has no wording, two have the same, or the file is not of wordings.
    """
    wording = {**WORDING, **(_own(Path(file)) if file else {})}
    if missing := [name for name in names if name not in wording]:
        raise ValueError(
            f"attribute {missing[0]!r} has no prompt ({len(missing)} of {len(names)} have none): write a line such as "
            f'{missing[0]} = "a person with …" into the file of config.attributes.prompts'
        )
    found: dict[str, str] = {}
    for name in names:
        if (other := found.setdefault(wording[name], name)) != name:
            raise ValueError(f"attributes {other!r} and {name!r} have the same prompt {wording[name]!r}")
    return [START + text for text in found]


def _own(file: Path) -> dict[str, str]:
    """Read wordings from a TOML file."""
    try:
        table = tomllib.loads(read_text(file))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f'{file}: not TOML ({error}); each line is a name = "wording"') from None
    if wrong := [name for name, text in table.items() if not isinstance(text, str) or not text.strip()]:
        raise ValueError(f"{file}: {wrong[0]} = {table[wrong[0]]!r} is no wording; expected a text")
    return table
