"""UTKFace: age, gender and race of each picture, which stand in its file's name.

    26_1_3_20170725190224437.jpg.chip.jpg      [age]_[gender]_[race]_[date and time], aligned and cropped

Gender is 0 for male and 1 for female, race 0 White, 1 Black, 2 Asian, 3 Indian, 4 Others. Some names are malformed;
their pictures are left out and listed, and nothing about them is guessed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from fvjax.data.attributes import Attributes
from fvjax.data.readers import label_files
from fvjax.data.readers.fairface import AGES, GENDERS
from fvjax.data.readers.label_files import LabelledPicture, LabelSet
from fvjax.data.readers.picture_tree import LeftOut, PictureTree

RACES = ("White", "Black", "Asian", "Indian", "Others")
ATTRIBUTES = Attributes((*AGES, *GENDERS, *RACES), {"age": AGES, "gender": GENDERS, "race": RACES}, dataset="utkface")
OLDEST = 116
FIRST_YEARS = (0, 3, 10, 20, 30, 40, 50, 60, 70)  # of FairFace's age groups
_ENDS = (".jpg.chip.jpg", ".jpg")
VAL, TEST = 0.1, 0.1  # shares of the pictures; there is no official split


class Name(NamedTuple):
    """What a file's name says: age in years, gender ("male", "female"), race, and date and time (17 digits)."""

    age: int
    gender: str
    race: str
    time: str


def parse_name(file: str) -> Name:
    """Read the labels in a file's name, without its folder.

    Raises:
        ValueError: a malformed name. The message says what is wrong with it; the kind stands before the colon.
    """
    end = next((end for end in _ENDS if file.endswith(end)), None)
    if end is None:
        raise ValueError("malformed name: no picture, or another end than .jpg or .jpg.chip.jpg")
    fields = file.removesuffix(end).split("_")
    if len(fields) != 4:
        reason = "three fields, so gender or race is missing" if len(fields) == 3 else f"{len(fields)} fields, not 4"
        raise ValueError(f"malformed name: {reason}")
    age, gender, race, time = fields
    if not re.fullmatch(r"[0-9]{1,3}", age) or int(age) > OLDEST:
        raise ValueError(f"malformed name: the age {age!r}, expected 0 to {OLDEST}")
    if gender not in ("0", "1"):
        raise ValueError(f"malformed name: the gender {gender!r}, expected 0 or 1")
    if not re.fullmatch(r"[0-9]", race) or int(race) >= len(RACES):
        raise ValueError(f"malformed name: the race {race!r}, expected 0 to {len(RACES) - 1}")
    if not re.fullmatch(r"[0-9]{17}", time):
        raise ValueError(f"malformed name: the time {time!r:.40}, expected 17 digits")
    return Name(int(age), ("male", "female")[int(gender)], RACES[int(race)], time)


def age_group(age: int) -> str:
    """Return FairFace's age group of an age in years."""
    return AGES[sum(first <= age for first in FIRST_YEARS) - 1]


def read(src: Path, share: float) -> LabelSet:
    """Read the labels of all pictures below a folder.

    Args:
        share: of all pictures, chosen by their names.
    Raises:
        ValueError: no such folder, or no picture with labels in it.
    """
    label_files.check_share("--share", share)
    if not src.is_dir():
        raise ValueError(f"{src}: no such folder")
    tree = PictureTree(src, ["."])
    result = LabelSet(ATTRIBUTES, [], list(tree.left_out))
    for file in (file.removeprefix("./") for file in tree.files):
        if not label_files.is_chosen(file, share):
            continue
        try:
            name = parse_name(Path(file).name)
        except ValueError as error:
            result.left_out.append(LeftOut(file, str(error)))
            continue
        classes = age_group(name.age), GENDERS[name.gender == "female"], name.race
        split = label_files.part(name.time, VAL, TEST)
        result.pictures.append(LabelledPicture(file, ATTRIBUTES.row(classes).tobytes(), split))
    return result
