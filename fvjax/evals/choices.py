"""Read the letter of the chosen option from a model's free text, by the rules that FaceXBench published."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase as LETTERS

_STANDS_ALONE = re.compile(r"\b[A-Z]\b")


def extract(output: str, options: Sequence[object]) -> str | None:
    """Return the letter of the option that ``output`` chooses, or None if it names none.

    The first capital letter between two word boundaries that is the letter of an option wins ("**C**", "(B)", "The
    answer is D."; also the article in "A person …"). Letters of any script, digits and the underscore are word
    characters. Without such a letter, the first option whose text is the output, or a part of it, wins. Nothing is
    guessed, and the comparison is case-sensitive.

    FaceXBench's aggregate_results.py tries six patterns at the start of the text, then the same six anywhere in it. The
    letter of every match stands between two word boundaries, and the first pattern, searched anywhere, matches each
    such letter in order. So the first valid letter of the text decides there too; at the start of the text, the
    patterns can only find that same letter.

    Args:
        output: the model's text, as generated.
        options: the options' texts in order, the first one being A; others than strings are compared as ``str`` writes
            them.
    Raises:
        ValueError: more options than there are letters.
    """
    letters = option_letters(len(options))
    text = output.strip()
    for match in _STANDS_ALONE.finditer(text):
        if match[0] in letters:
            return match[0]
    return next((letter for letter, option in zip(letters, options) if str(option).strip() in text), None)


def option_letters(count: int) -> str:
    """Return the letters of ``count`` options: "ABCD" for four. Raises ValueError if there are more than 26."""
    if count > len(LETTERS):
        raise ValueError(f"{count} options, but only {len(LETTERS)} letters to name them; leave some out")
    return LETTERS[:count]
