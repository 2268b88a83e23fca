"""FairFace's label files: age group, gender and race of each picture, as annotators saw them.

    file,age,gender,race,service_test
    val/1.jpg,3-9,Male,East Asian,False

Semicolons or tabs may stand for the commas, as spreadsheets write them, and blanks around a value count for nothing.

Copies that went through a spreadsheet have dates where ages were: `03-Sep` or `9-Mar` for 3-9, `Oct-19` or `19-Oct` for
10-19. They are refused unless the caller asks to read such dates as ages.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fvjax.data import names
from fvjax.data.readers.files import read_text

AGES = ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70")
GENDERS = ("Male", "Female")
RACES = ("White", "Black", "Latino_Hispanic", "East Asian", "Southeast Asian", "Indian", "Middle Eastern")
COLUMNS = ("file", "age", "gender", "race")  # those that are read
MANGLED_AGES = {"03-Sep": "3-9", "3-Sep": "3-9", "9-Mar": "3-9", "09-Mar": "3-9", "Oct-19": "10-19", "19-Oct": "10-19"}
MAX_BYTES = 1 << 28  # of a label file; the published ones have 4 MB


@dataclass(frozen=True)
class Label:
    """The labels of one picture; `file` is relative to the folder of the pictures."""

    file: str
    age: str
    gender: str
    race: str


def read_labels(file: Path, *, repair_ages: bool = False) -> list[Label]:
    """Read a label file, in its order.

    Args:
        file: a CSV file with at least the columns file, age, gender and race.
        repair_ages: read the dates of :data:`MANGLED_AGES` as the ages that they were.
    Raises:
        ValueError: no such file, not CSV in UTF-8, a column that is missing, a value that FairFace does not have, or a
            picture that is listed twice. The message names the line.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file}: {file.stat().st_size} bytes, at most {MAX_BYTES}; is it a label file?")
    labels: dict[str, Label] = {}  # by the file's name in the form in which names are compared
    for line, row in _rows(file):
        label = _parse(row, f"{file} line {line}", repair_ages)
        if (name := names.path(label.file)) in labels:
            raise ValueError(f"{file} line {line}: {label.file!r} is listed twice; remove one of the lines")
        labels[name] = label
    if not labels:
        raise ValueError(f"{file}: no picture is listed")
    return list(labels.values())


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    text = read_text(file)
    head = text.partition("\n")[0]
    separator = max(",;\t", key=head.count)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True, delimiter=separator)
        columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        if missing := [name for name in COLUMNS if name not in columns]:
            raise ValueError(f"{file}: no column {missing[0]!r} in the first line; expected {', '.join(COLUMNS)}")
        for row in reader:
            if "" in row or None in row.values():
                raise ValueError(f"{file} line {reader.line_num}: not as many values as the first line has")
            yield reader.line_num, {name: value.strip() for name, value in row.items()}
    except csv.Error as error:
        raise ValueError(f"{file}: not a CSV file in UTF-8 ({error})") from error


def _parse(row: dict[str, str], location: str, repair_ages: bool) -> Label:
    age = row["age"]
    if age in MANGLED_AGES:
        if not repair_ages:
            raise ValueError(
                f"{location}: the age {age!r} was {MANGLED_AGES[age]} before a spreadsheet made a date of it; "
                "--repair-ages reads such dates as ages"
            )
        age = MANGLED_AGES[age]
    for key, value, known in (("age", age, AGES), ("gender", row["gender"], GENDERS), ("race", row["race"], RACES)):
        if value not in known:
            raise ValueError(f"{location}: the {key} {value!r:.100} is none of {', '.join(known)}")
    if not row["file"]:
        raise ValueError(f"{location}: no file name")
    return Label(row["file"], age, row["gender"], row["race"])
