"""Where a text denies what it mentions: words of negation, and how far each of them reaches.

Negations are whole words ("nose" and "notable" contain none). Each reaches to the end of its clause, and over lists
with "or" and "nor": "no sign of anger, sadness or fear". "X is not present" and "X is absent" deny what stands before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_CHARACTERS = 20_000  # of a text that are read
_SENTENCE_END = re.compile(r"(?<=[.!?;\n])\s+|\n+")
_ITEM = r"(?:(?!(?:is|are|was|were|has|he|she|it|they|but|looks|seems|shows|appears|there)\b)[\w-]+\s+){0,2}[\w-]+"
# A comma of a list that ends with "or": it does not end a clause.
_LIST_COMMA = re.compile(rf",(?=\s*(?:{_ITEM}\s*,\s*){{0,12}}(?:{_ITEM}\s*,?\s+)?(?:or|nor)\b)")
_CLAUSE_END = re.compile(
    r"[,:()—–]|\s-\s|\b(?:but|however|instead(?! of)|although|though|while|whereas|yet|because|and(?= (?:is|are|looks?|"
    r"seems?|shows?|appears?|has|have|the|there|it|he|she|they)\b))\b"
)
_CUE = re.compile(
    r"\b(?:no|not|never|without|neither|nor|none|cannot|lacks?|lacking|absence of|rather than|instead of|free (?:of|"
    r"from)|"
    r"rules? out|\w+n['’]t)\b"
)
_NO_CUE = re.compile(r"\b(?:not only|no doubt|not just|not merely|no less than)\b")
_BACKWARDS = re.compile(
    r"\b(?:is|are|was|were)(?: not|n['’]t) (?:\w+ ){0,2}?(?:present|visible|shown|seen|apparent|evident|active|"
    r"activated|"
    r"detected|observed|engaged|noticeable)\b|\b(?:is|are|was|were)(?: not|n['’]t)\W*$|\bcannot be (?:seen|observed|"
    r"detected)\b|\b(?:is|are) (?:absent|inactive)\b"
)


@dataclass(frozen=True)
class Mention:
    """A place of a text that a pattern matches.

    Attributes:
        match: within its clause. sentence: its number, from 0. denied: whether a negation reaches it.
    """

    match: re.Match[str]
    sentence: int
    denied: bool


@dataclass(frozen=True)
class Clause:
    """A part of a sentence over which negations reach.

    Attributes:
        text: in lower case. sentence: its number, from 0. denied_from: where a negation begins to reach; None: nowhere.
    """

    text: str
    sentence: int
    denied_from: int | None


def clauses(text: str) -> list[Clause]:
    """Split a text into clauses, in lower case and with the reach of negations."""
    parts = []
    sentences = [one for one in _SENTENCE_END.split(text[:MAX_CHARACTERS].lower()) if one and one.strip()]
    for number, sentence in enumerate(sentences):
        for clause in _CLAUSE_END.split(_LIST_COMMA.sub(" or", sentence)):
            if clause and clause.strip():
                parts.append(Clause(clause, number, _denied_from(clause)))
    return parts


def mentions(parts: list[Clause], pattern: re.Pattern[str]) -> Iterator[Mention]:
    """Yield the places that a pattern matches."""
    for part in parts:
        for match in pattern.finditer(part.text):
            denied = part.denied_from is not None and match.start() >= part.denied_from
            yield Mention(match, part.sentence, denied)


def _denied_from(clause: str) -> int | None:
    if _BACKWARDS.search(clause):
        return 0
    allowed = [match.span() for match in _NO_CUE.finditer(clause)]
    for cue in _CUE.finditer(clause):
        if not any(start <= cue.start() < end for start, end in allowed):
            return cue.start()
    return None
