"""Read attributes from a free description, for models that were not trained to answer attribute by attribute.

FaceInsight's text says only that generated outputs are "parsed and mapped to the binary attribute space". Here a table
of phrases (attribute_phrases.toml) decides, by whole words and without any model:

- the longest of an attribute's phrases that match at a place counts;
- a negation reaches over a few words of its clause, and over lists with "or": "no beard, mustache or glasses";
- an attribute that is not mentioned is negative; one that is affirmed and denied is positive and a conflict;
- of the classes of one question, the one that is affirmed most often is positive, the first of several.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).with_name("attribute_phrases.toml")
MAX_CHARACTERS = 20_000  # of a description that are read; generated texts have a few thousand at most
REACH = 4  # words over which a negation reaches
MAX_GAP = 6  # words that ".." may stand for
_TOKEN = re.compile(r"[0-9]+|[a-z]+(?:'[a-z]+)*|[.,;:!?()]")
_NEGATIONS = {
    "no",
    "not",
    "without",
    "never",
    "neither",
    "nor",
    "none",
    "lacks",
    "lack",
    "lacking",
    "absence",
    "cannot",
}
_NOT_NEGATED = {("not", "only"), ("no", "doubt")}
_CLAUSE_ENDS = {*".;:!?()", "but", "and", "with", "though", "although", "however", "while", "yet", "instead"}
_RANGE = re.compile(r"<([0-9]+)-([0-9]+)>")


class _Phrase(NamedTuple):
    words: tuple[str, ...]
    positive: bool


class _Match(NamedTuple):
    """A phrase at its place: numbers of its tokens, where it starts, and whether it affirms the attribute."""

    tokens: tuple[int, ...]
    start: int
    affirms: bool


@dataclass(frozen=True)
class Parsed:
    """What a description says about K attributes.

    Attributes:
        positive, mentioned: bool [K].
        conflicts: the attributes that it affirms and denies; they are positive.
    """

    positive: NDArray[np.bool_]
    mentioned: NDArray[np.bool_]
    conflicts: tuple[str, ...]


@dataclass(frozen=True)
class _Table:
    phrases: Mapping[str, tuple[_Phrase, ...]]
    ignored: tuple[_Phrase, ...]
    copulas: frozenset[str]
    between: frozenset[str]


@dataclass
class Parser:
    """Read descriptions for some attributes.

    Args:
        names: the K attributes.
        groups: the classes of each question, by the question's name.
    Raises:
        ValueError: an attribute without phrases.
    """

    names: Sequence[str]
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self):
        self._table = _load()
        if missing := [name for name in self.names if name not in self._table.phrases]:
            raise ValueError(f"attribute {missing[0]!r:.100} has no phrases in {FILE.name}; add some there")

    def __call__(self, text: str) -> Parsed:
        """Return what a description says. Of a text of more than MAX_CHARACTERS only the beginning is read."""
        tokens = _tokens(text[:MAX_CHARACTERS])
        reversed_at = _negated(tokens)
        matches = {name: self._matches(tokens, self._table.phrases[name], reversed_at) for name in self.names}
        affirmed = {name: [match.start for match in found if match.affirms] for name, found in matches.items()}
        denied = {name for name, found in matches.items() if not all(match.affirms for match in found)}
        conflicts = tuple(name for name in self.names if affirmed[name] and name in denied)
        chosen = {name for name in self.names if affirmed[name]}
        for classes in self.groups.values():
            chosen -= set(classes) - {_resolve(classes, affirmed)}
        positive = np.array([name in chosen for name in self.names], bool)
        return Parsed(positive, np.array([bool(matches[name]) for name in self.names], bool), conflicts)

    def _matches(self, tokens: Sequence[str], phrases: Sequence[_Phrase], reversed_at: Sequence[bool]) -> list[_Match]:
        """Return an attribute's phrases in a text, of those that share a word the longest."""
        starts: dict[str, list[int]] = {}
        for i, token in enumerate(tokens):
            starts.setdefault(token, []).append(i)
        taken: set[int] = set()
        found = []
        for phrase in sorted((*phrases, *self._table.ignored), key=lambda phrase: -_length(phrase.words)):
            first = phrase.words[0]
            for start in range(len(tokens)) if _RANGE.fullmatch(first) else starts.get(first, ()):
                places = self._match(tokens, start, phrase.words)
                if places and taken.isdisjoint(places):
                    taken.update(places)
                    inside = any(tokens[i] in ("not", "never") for i in range(places[0], places[-1]) if i not in places)
                    if phrase not in self._table.ignored:
                        found.append(_Match(places, start, phrase.positive != (reversed_at[start] or inside)))
        return found

    def _match(self, tokens: Sequence[str], start: int, words: Sequence[str]) -> tuple[int, ...] | None:
        """Return the numbers of the tokens that a phrase's words are, if it stands at `start`."""
        places: list[int] = []
        at, gap = start, False
        for word in words:
            if word == "..":
                gap = True
                continue
            limit = min(at + (MAX_GAP if gap else 0), len(tokens) - 1)
            while at < limit and not self._is(tokens[at], word) and self._may_stand_between(tokens[at]):
                at += 1
            if at >= len(tokens) or not self._is(tokens[at], word):
                return None
            places.append(at)
            at, gap = at + 1, False
        return tuple(places)

    def _is(self, token: str, word: str) -> bool:
        if word == "is":
            return token in self._table.copulas
        if limits := _RANGE.fullmatch(word):
            return token.isdecimal() and len(token) <= 3 and int(limits[1]) <= int(token) <= int(limits[2])
        return token == word

    def _may_stand_between(self, token: str) -> bool:
        return token in self._table.between or token == ","


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text.lower().replace("\u2019", "'").replace("-", " ").replace("\u2013", " "))


def _negated(tokens: Sequence[str]) -> list[bool]:
    """Tell for each token whether a negation before it reaches it."""
    out, left = [], 0
    for i, token in enumerate(tokens):
        out.append(left > 0)
        following = tokens[i + 1] if i + 1 < len(tokens) else ""
        if token in _NEGATIONS or token.endswith("n't"):
            left = 0 if (token, following) in _NOT_NEGATED else REACH
        elif token in _CLAUSE_ENDS:
            left = 0
        elif token == ",":
            left = REACH if left and _goes_on_with_or(tokens, i + 1) else 0
        elif token == "or":
            left = REACH if left else 0
        else:
            left = max(left - 1, 0)
    return out


def _goes_on_with_or(tokens: Sequence[str], start: int) -> bool:
    """Tell whether "or" or "nor" comes before the end of the clause."""
    for token in tokens[start:]:
        if token in ("or", "nor"):
            return True
        if token in _CLAUSE_ENDS:
            return False
    return False


def _resolve(classes: Sequence[str], affirmed: Mapping[str, Sequence[int]]) -> str | None:
    """Return the class that is affirmed most often, of several the first; None without any."""
    counts = Counter({name: len(affirmed[name]) for name in classes if affirmed.get(name)})
    return min(counts, key=lambda name: (-counts[name], min(affirmed[name])), default=None)


def _length(words: Sequence[str]) -> int:
    return sum(word != ".." for word in words)


@cache
def _load() -> _Table:
    entries: dict[str, Any] = tomllib.loads(FILE.read_text(encoding="utf-8"))
    phrases = {
        name: tuple(
            _Phrase(_words(phrase), sign == "positive")
            for sign in ("positive", "negative")
            for phrase in entry.get(sign, ())
        )
        for name, entry in entries["attributes"].items()
    }
    ignored = tuple(_Phrase(_words(phrase), positive=False) for phrase in entries["ignored"])
    return _Table(phrases, ignored, frozenset(entries["copulas"]), frozenset(entries["between"]))


def _words(phrase: str) -> tuple[str, ...]:
    return tuple(phrase.split())
