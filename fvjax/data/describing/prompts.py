"""What the endpoint is asked about a picture, and which question is stored instead (prompts.toml)."""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from fvjax.data.readers.fairface import AGES, RACES, Label

FILE = Path(__file__).with_name("prompts.toml")
MAX_BYTES = 1 << 20  # of a file of prompts
PLACEHOLDERS = ("gender", "ethnicity", "age")
CHILDREN = ("0-2", "3-9")  # ages of a boy or a girl
# The words that only the writer of the answers is told.
GENDER_WORDS = ("man", "woman", "boy", "girl", "male", "female")
ETHNICITY_WORDS = tuple(sorted({word.lower() for race in RACES for word in re.split("[ _]", race)}))
_TOLD = re.compile(
    rf"\b(?:{'|'.join([*GENDER_WORDS, *ETHNICITY_WORDS, 'years? old'])})\b"
    rf"|(?<!\d)(?:{'|'.join(map(re.escape, AGES))})(?!\d)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Prompt:
    """One question: its name, the text that is stored, and the request with {gender}, {ethnicity} and {age}."""

    name: str
    stored: str
    request: str

    def filled(self, label: Label) -> str:
        """Return the request about a picture with these labels."""
        text = self.request
        for name, value in describe_label(label).items():
            text = text.replace(f"{{{name}}}", value)
        return text.strip()


@dataclass(frozen=True)
class Prompts:
    """A file of prompts: the system message, the questions, and the file's sha256."""

    system: str
    questions: tuple[Prompt, ...]
    digest: str


def describe_label(label: Label) -> dict[str, str]:
    """Return the words for a picture's labels by placeholder, such as "woman", "East Asian", "20-29"."""
    words = ("boy", "girl") if label.age in CHILDREN else ("man", "woman")
    gender = words[label.gender == "Female"]
    return {"gender": gender, "ethnicity": label.race.replace("_", " or "), "age": label.age}


def load(file: Path = FILE) -> Prompts:
    """Read a file of prompts in the form of prompts.toml.

    Raises:
        ValueError: no such file, not TOML, a key that is missing or unknown, an unknown placeholder, two questions with
            one name, or a stored question that gives away a gender, an ethnicity or an age.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file}: {file.stat().st_size} bytes, at most {MAX_BYTES}; is it a file of prompts?")
    data = file.read_bytes()
    try:
        entries = tomllib.loads(data.decode())
    except ValueError as error:  # TOML and UTF-8
        raise ValueError(f"{file}: not TOML ({error})") from error
    system, questions = entries.get("system"), entries.get("questions")
    if set(entries) != {"system", "questions"} or not isinstance(system, str) or not isinstance(questions, list):
        raise ValueError(f"{file}: expected exactly the text system and tables [[questions]], as in prompts.toml")
    prompts = tuple(_question(entry, f"{file}: question {number}") for number, entry in enumerate(questions, 1))
    names = [prompt.name for prompt in prompts]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"{file}: the questions must have names, each another one")
    return Prompts(system.strip(), prompts, hashlib.sha256(data).hexdigest())


def _question(entry: object, location: str) -> Prompt:
    fields = ("name", "stored", "request")
    if not isinstance(entry, dict) or set(entry) != set(fields):
        raise ValueError(f"{location}: expected exactly {', '.join(fields)}")
    for field in fields:
        if not isinstance(entry[field], str) or not entry[field].strip():
            raise ValueError(f"{location}: {field} must be a text")
    prompt = Prompt(entry["name"].strip(), entry["stored"].strip(), entry["request"])
    if told := _TOLD.search(prompt.stored):
        raise ValueError(
            f"{location}: the stored question says {told[0]!r}, which only the writer is told; leave it out of `stored`"
        )
    if placeholders := re.findall(r"[{}]", prompt.stored):
        raise ValueError(f"{location}: the stored question has {placeholders[0]!r}; labels belong in `request` only")
    if unknown := [name for name in re.findall(r"{(.*?)}", prompt.request) if name not in PLACEHOLDERS]:
        raise ValueError(f"{location}: unknown placeholder {unknown[0]!r:.100}; there are {', '.join(PLACEHOLDERS)}")
    return prompt
