"""CelebA's label files: 40 attributes of each picture, its split and its person.

    list_attr_celeba.txt       202599                           the number of pictures, which copies of a part keep
                               5_o_Clock_Shadow Arched_Eyebrows …
                               000001.jpg -1  1 …
    list_eval_partition.txt    000001.jpg 0                     0 train, 1 val, 2 test
    identity_CelebA.txt        000001.jpg 2880

Kaggle's variants, CSV files with the same values and a header, are read too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fvjax.data.attributes import Attributes
from fvjax.data.face_labels import ATTRIBUTES
from fvjax.data.readers import label_files
from fvjax.data.readers.label_files import LabelledPicture, LabelSet
from fvjax.data.readers.picture_tree import LeftOut

NAMES = ATTRIBUTES  # in the order of the official file
SPLITS = {"0": "train", "1": "val", "2": "test"}
VALUES = {"1": 1, "-1": -1}


@dataclass(frozen=True)
class Labels:
    """A file of attributes.

    Attributes:
        names: of the columns, in the file's order.
        rows: file name -> int8 [40] as bytes, each 1 or -1.
        declared: the number of rows that the first line claims; None in a CSV file.
    """

    names: tuple[str, ...]
    rows: dict[str, bytes]
    declared: int | None


def read_attributes(file: Path) -> Labels:
    """Read list_attr_celeba.txt or .csv.

    Raises:
        ValueError: no such file, another encoding, other attributes than CelebA's, a row with another number of values
            or with others than 1 and -1, or a picture that is listed twice. The message names the line.
    """
    names: tuple[str, ...] | None = None
    declared: int | None = None
    rows: dict[str, bytes] = {}
    for number, values in _rows(file):
        location = f"{file} line {number}"
        if names is None:
            if len(values) == 1 and values[0].isdecimal() and declared is None:
                declared = int(values[0])
                continue
            names = tuple(values[1:] if len(values) == len(NAMES) + 1 else values)
            if set(values[1:]) <= VALUES.keys():
                raise ValueError(f"{location}: no header; put the line with the 40 names before the pictures")
            label_files.check_header(names, NAMES, location)
            continue
        picture, *cells = values
        if len(cells) != len(names):
            raise ValueError(f"{location}: {len(cells)} values for {len(names)} attributes")
        if wrong := [cell for cell in cells if cell not in VALUES]:
            raise ValueError(f"{location}: the value {wrong[0]!r:.100}; CelebA has 1 and -1 (0 is no label of it)")
        if picture in rows:
            raise ValueError(f"{location}: {picture!r:.100} is listed twice; remove one of the lines")
        rows[picture] = np.array([VALUES[cell] for cell in cells], np.int8).tobytes()
    if names is None or not rows:
        raise ValueError(f"{file}: no picture is listed")
    return Labels(names, rows, declared)


def read_partition(file: Path) -> dict[str, str]:
    """Read list_eval_partition.txt or .csv: file name -> "train", "val" or "test". Raises ValueError as above."""
    splits = {}
    for location, picture, value in _pairs(file):
        if value not in SPLITS:
            raise ValueError(f"{location}: the split {value!r:.100}; expected 0 (train), 1 (val) or 2 (test)")
        splits[picture] = SPLITS[value]
    return splits


def read_identities(file: Path) -> dict[str, int]:
    """Read identity_CelebA.txt: file name -> number of the person. Raises ValueError as above."""
    identities = {}
    for location, picture, value in _pairs(file):
        if not value.isdecimal() or len(value) > 9:
            raise ValueError(f"{location}: the person {value!r:.100}; expected a number")
        identities[picture] = int(value)
    return identities


def read(labels: Path, partition: Path, identities: Path | None, share: float) -> LabelSet:
    """Read CelebA's label files.

    Args:
        labels, partition, identities: list_attr_celeba, list_eval_partition and identity_CelebA, or None.
        share: of all pictures, chosen by their names.
    Raises:
        ValueError: as the readers of the files. Pictures without a split or a person are left out.
    """
    label_files.check_share("--share", share)
    table, splits = read_attributes(labels), read_partition(partition)
    people = read_identities(identities) if identities else None
    columns = Attributes(table.names, dataset="celeba", has_identities=people is not None)
    result = LabelSet(columns, [])
    if table.declared not in (None, len(table.rows)):
        result.notes.append(f"{labels}: line 1 claims {table.declared} pictures, {len(table.rows)} are listed")
    for picture, row in table.rows.items():
        if not label_files.is_chosen(picture, share):
            continue
        if picture not in splits:
            result.left_out.append(LeftOut(picture, f"without a split: {partition.name} does not list it"))
        elif people is not None and picture not in people:
            result.left_out.append(LeftOut(picture, f"without a person: {identities.name if identities else ''}"))
        else:
            person = str(people[picture]) if people is not None else None
            result.pictures.append(LabelledPicture(picture, row, splits[picture], person))
    return result


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, values), separated by commas if the first line has one, else by blanks."""
    separator: str | None = None
    for number, (line_number, line) in enumerate(label_files.lines(file)):
        if number == 0 and "," in line:
            separator = ","
        yield line_number, [value.strip() for value in line.split(separator)]


def _pairs(file: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (location, picture, value) of a file with two columns; a CSV file has a header."""
    seen: set[str] = set()
    for number, values in _rows(file):
        location = f"{file} line {number}"
        if len(values) != 2:
            raise ValueError(f"{location}: {len(values)} values, expected a file name and a number")
        if not seen and values[0] == "image_id":
            continue
        if values[0] in seen:
            raise ValueError(f"{location}: {values[0]!r:.100} is listed twice; remove one of the lines")
        seen.add(values[0])
        yield location, values[0], values[1]
    if not seen:
        raise ValueError(f"{file}: no picture is listed")
