"""Read labels from the free text of an answer, for each of Face-LLaVA's tasks. Words are whole words, and denied ones
(:mod:`fvjax.evals.negation`) do not count.

A parser returns None if the answer says nothing of its task: such answers are counted, and scored as wrong.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from functools import cache
from typing import Any

from fvjax.data.face_labels import ACTION_UNITS, ATTRIBUTES, EXPRESSIONS, OLDEST
from fvjax.evals import face_lexicon as lexicon
from fvjax.evals.negation import MAX_CHARACTERS, Clause, clauses, mentions

_NUMBER = r"\d{1,3}(?:\.\d+)?"
_TO = r"\s*(?:-|–|—|to|and|or|through)\s*"
_RANGE = rf"(?P<low>{_NUMBER})(?:{_TO}(?P<high>{_NUMBER}))?"
_AGES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?<![\d.]){_RANGE}[\s-]*(?:years?|yrs?|y/?o)\b",
        rf"\b(?:ages?|aged)\b(?:(?!\d|\b(?:years?)\b)[^.;]){{0,40}}?(?<![\d.]){_RANGE}(?!\d*['’]?s\b)",
        rf"(?<![\d.]){_RANGE}\s+old\b",
        rf"^\W*{_RANGE}\W*$",
    )
)
_DECADE = r"(?:(?P<part{0}>early|mid|late)[\s-]+)?(?:to[\s-]+(?:early|mid|late)[\s-]+)?(?P<decade{0}>[1-9]0)['’]?s\b"
_DECADES = re.compile(rf"{_DECADE.format(1)}(?:{_TO}(?:his |her |their |the )?{_DECADE.format(2)})?")
_DECADE_MIDDLES = {"early": 2.0, "mid": 5.0, "late": 8.0, None: 5.0}
_UNITS = re.compile(
    r"\b(?:aus?|action units?)\b[\s:_-]*0*\d{1,2}(?:(?:\s*(?:,|\+|-|–|/|&|and|or)\s*)+(?:aus?[\s:_-]*)?0*\d{1,2}\b)*|"
    r"\baus?0*\d{1,2}(?:(?:\s*(?:,|\+|-|–|/|&|and|or)\s*)+(?:aus?[\s:_-]*)?0*\d{1,2}\b)*"
)
_YES_NO = re.compile(r"^\W*(yes|no)\b")


def expression(text: str, classes: Collection[str] = EXPRESSIONS) -> str | None:
    """Return the expression that an answer names, of ``classes``.

    If the first sentence affirms exactly one, that is it. Otherwise the one that is affirmed most often in the whole
    answer, the first of several. "No particular emotion" is neutral. Raises ValueError: a class without a lexicon.
    """
    if unknown := [name for name in classes if name not in lexicon.EXPRESSIONS]:
        raise ValueError(f"expression {unknown[0]!r}: no words for it; there are {', '.join(lexicon.EXPRESSIONS)}")
    parts = clauses(re.sub(lexicon.NO_EXPRESSION, " neutral ", text[:MAX_CHARACTERS].lower()))
    found = []
    for name in classes:
        pattern = _words(lexicon.EXPRESSIONS[name])
        found += [(one.sentence, _place(parts, one), name) for one in mentions(parts, pattern) if not one.denied]
    return _first_or_most_frequent(found)


def action_units(text: str, units: Collection[int] = tuple(ACTION_UNITS)) -> frozenset[int] | None:
    """Return the action units that an answer affirms, of ``units``: by number (AU12, AU 1, 2 and 4) or by name.

    None if it neither mentions a unit nor says that none is active.
    """
    lowered = _join_lists_of_units(text[:MAX_CHARACTERS].lower())
    nothing = re.search(lexicon.NO_ACTION_UNIT, lowered)
    parts = clauses(re.sub(lexicon.NO_ACTION_UNIT, " ", lowered))
    affirmed: set[int] = set()
    is_mentioned = nothing is not None
    for one in mentions(parts, _UNITS):
        is_mentioned = True
        if not one.denied:
            affirmed.update(int(number) for number in re.findall(r"\d+", one.match[0]))
    for unit, words in lexicon.ACTION_UNITS.items():
        for one in mentions(parts, _words(words)):
            is_mentioned = True
            if not one.denied:
                affirmed.add(unit)
    return frozenset(affirmed & set(units)) if is_mentioned else None


def attributes(text: str, names: Collection[str] = ATTRIBUTES) -> frozenset[str] | None:
    """Return CelebA's attributes that an answer affirms, of ``names``; what it does not mention is absent.

    None if it neither affirms nor denies any of them. Raises ValueError: an attribute that CelebA does not have.
    """
    if unknown := [name for name in names if name not in lexicon.ATTRIBUTES]:
        raise ValueError(f"attribute {unknown[0]!r}: no words for it; CelebA's are known, such as Eyeglasses")
    parts = clauses(text)
    affirmed: set[str] = set()
    is_mentioned = re.search(lexicon.NO_ATTRIBUTE, text[:MAX_CHARACTERS].lower()) is not None
    for name in names:
        for one in mentions(parts, _words(lexicon.ATTRIBUTES[name])):
            is_mentioned = True
            if not one.denied:
                affirmed.add(name)
    if "No_Beard" in names:
        for one in mentions(parts, re.compile(lexicon.BEARD)):
            is_mentioned = True
            if one.denied:
                affirmed.add("No_Beard")
    return frozenset(affirmed) if is_mentioned else None


def age(text: str) -> float | None:
    """Return the age in years that an answer names: the number beside "years", "age" or "old".

    A range gives its middle ("30 to 40": 35), a decade its middle ("thirties": 35, "early thirties": 32, "late 20s to
    early 30s": 30), an answer that is a number is that number. None without one, or outside 0 to 116.
    """
    lowered = _digits(text[:MAX_CHARACTERS].lower())
    for part in clauses(_keep_ranges(lowered)):
        readable = part.text if part.denied_from is None else part.text[: part.denied_from]
        if (years := _age_of(readable)) is not None:
            return years if 0 <= years <= OLDEST else None
    return None


def deepfake(text: str, question: str = "") -> str | None:
    """Return "real" or "fake". A denied word says the opposite: "no sign of manipulation", "not authentic".

    Args:
        question: an answer of "yes" or "no" and nothing else is read as an answer to it.
    """
    parts = clauses(text)
    found = []
    opposite = {"fake": "real", "real": "fake"}
    for name, words in (("fake", lexicon.FAKE), ("real", lexicon.REAL)):
        for one in mentions(parts, re.compile(words)):
            found.append((one.sentence, _place(parts, one), opposite[name] if one.denied else name))
    if found:
        return _first_or_most_frequent(found)
    reply = _YES_NO.match(text.lower())
    asked = deepfake(re.sub(r"\b(?:no|not)\b", "", question.lower())) if question and reply else None
    # A question with both words, "real or fake?", has no yes or no.
    both = all(re.search(words, question.lower()) for words in (lexicon.FAKE, lexicon.REAL))
    if reply is None or asked is None or both:
        return None
    return asked if reply[1] == "yes" else opposite[asked]


PARSERS: dict[str, Callable[..., Any]] = {
    "expression": expression,
    "action_units": action_units,
    "attributes": attributes,
    "age": age,
    "deepfake": deepfake,
}


@cache
def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{pattern})\b")


def _place(parts: list[Clause], one: Any) -> tuple[int, int]:
    """Return the number of a mention's clause and its place there, for the order of mentions."""
    number = next(i for i, part in enumerate(parts) if part.text is one.match.string)
    return number, one.match.start()


def _first_or_most_frequent(found: Iterable[tuple[int, tuple[int, int], str]]) -> str | None:
    """Return the only name of the first sentence, or the most frequent name of all, the first of several."""
    ordered = sorted(found)
    if not ordered:
        return None
    first = {name for sentence, _, name in ordered if sentence == 0}
    if len(first) == 1:
        return first.pop()
    return Counter(name for _, _, name in ordered).most_common(1)[0][0]


def _join_lists_of_units(text: str) -> str:
    """Write "AU1, 2 and 4" and "AU1 (inner brow raiser), AU2" so that a comma does not end a clause within a list."""
    return re.sub(r"(\d)\s*,\s*(?=(?:and |or )?(?:aus?|action units?)?[\s:_-]*0*\d)", r"\1 + ", text)


def _keep_ranges(text: str) -> str:
    """Write dashes between numbers as "to", so that they end no clause."""
    return re.sub(r"(\d)\s*[-–—]\s*(?=\d)", r"\1 to ", text)


def _digits(text: str) -> str:
    """Write numbers from zero to ninety-nine and decades in digits: "thirty-five" becomes 35, "thirties" 30s."""
    for name, value in lexicon.DECADES.items():
        text = re.sub(rf"\b{name}\b", f"{value}s", text)
    ones = "|".join(name for name, value in lexicon.NUMBERS.items() if 0 < value < 10)
    for name, value in lexicon.TENS.items():
        text = re.sub(rf"\b{name}[\s-]({ones})\b", lambda m, ten=value: str(ten + lexicon.NUMBERS[m[1]]), text)
        text = re.sub(rf"\b{name}\b", str(value), text)
    for name, value in lexicon.NUMBERS.items():
        text = re.sub(rf"\b{name}\b(?=[\s-]*(?:years?|to|and|or)\b|\W*$)", str(value), text)
    return text


def _age_of(text: str) -> float | None:
    """Return the age that a clause names. Decades come first: "in his 30s" has a number beside no keyword."""
    if found := _DECADES.search(text):
        ends = [_decade(found["decade1"], found["part1"])]
        if found["decade2"]:
            ends.append(_decade(found["decade2"], found["part2"]))
        return sum(ends) / len(ends)
    for pattern in _AGES:
        if found := pattern.search(text):
            low = float(found["low"])
            return (low + float(found["high"])) / 2 if found["high"] else low
    return None


def _decade(decade: str, part: str | None) -> float:
    return int(decade) + _DECADE_MIDDLES[part]
