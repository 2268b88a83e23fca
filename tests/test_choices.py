"""Test the reading of option letters against the golden data and a direct implementation of the six patterns."""

import json
import random
import re
from pathlib import Path

import pytest

from fvjax.evals.choices import extract, option_letters

GOLDEN = json.loads(Path("tests/golden/facexbench_parsing.json").read_text())
SIX_PATTERNS = (
    r"\b\(?([A-Za-z])\)?\b",  # a standalone letter, perhaps in parentheses
    r"\bOption\s+([A-Za-z])\b",
    r"\b([A-Za-z])\.",
    r"\b([A-Za-z]):",
    r"\b([A-Za-z])\s+-",
    r"\b\(([A-Za-z])\)",
)


def by_six_patterns(output, options):
    """Follow the published description step by step: at the start, anywhere, by the option's text."""
    letters = [chr(ord("A") + i) for i in range(len(options))]
    text = output.strip()
    at_start = [m.group(1) for pattern in SIX_PATTERNS if (m := re.match(pattern, text))]
    anywhere = [m.group(1) for pattern in SIX_PATTERNS for m in re.finditer(pattern, text)]
    for letter in at_start + anywhere:
        if letter in letters:
            return letter
    return next((letters[i] for i, option in enumerate(options) if str(option).strip() in text), None)


def test_every_golden_output():
    assert len(GOLDEN) == 154
    wrong = [case for case in GOLDEN if extract(case["output"], case["options"]) != case["extracted"]]
    assert wrong == []


def test_the_six_patterns_of_this_test_agree_with_the_golden_data():
    assert all(by_six_patterns(case["output"], case["options"]) == case["extracted"] for case in GOLDEN)


PIECES = [
    *"ABCDEFabxI",
    *"()[].,:;-–*_ \n\t0145",
    "  ",
    "Option",
    "option ",
    "answer is ",
    "答",
    "（",
    "é",
    "Á",
    "\x1f",
]
OPTIONS = (["red", "a", "x", ""], ["0", "1", "4"], [15, 1.5, 0, 4], [" A", "B x"], [*"ABCDEFG"], [])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_random_texts_equal_the_six_patterns(options):
    rng = random.Random(str(options))
    for _ in range(8000):
        output = "".join(rng.choices(PIECES, k=rng.randint(0, 9)))
        assert extract(output, options) == by_six_patterns(output, options), repr(output)


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("A person with a hat", "A"),  # a free-standing article counts
        ("(B)", "B"),
        ("I think D", "D"),
        ("D", "D"),
        ("E", None),
        ("AB", None),
        ("answer_B", None),
        ("答案是B", None),
        ("b", None),
        ("it is 35", "C"),
        ("15 or 35", "A"),
        ("", None),
    ],
)
def test_four_options_that_are_numbers(output, letter):
    assert extract(output, [15, 25, 35, 45]) == letter


def test_only_letters_of_options_count():
    assert extract("D or B", ["x", "y", "z"]) == "B"
    assert extract("D or B", ["x", "y", "z", "w"]) == "D"
    assert extract("E", ["v", "w", "x", "y", "z"]) == "E"
    assert extract("A", []) is None


def test_letters_of_options():
    assert option_letters(3) == "ABC"
    assert len(option_letters(26)) == 26
    with pytest.raises(ValueError, match="27 options, but only 26 letters"):
        extract("A", ["x"] * 27)
