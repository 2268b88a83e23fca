"""Test the figures of questions with given options against ones worked out by hand."""

import json
import math

import pytest

from fvjax.evals import questions
from fvjax.evals.questions import Answered

NOD, TILT = ("Yes", "No"), ("left", "right", "upright")
ANSWERED = (
    #        kind, options, right answer, generated text, cut, most probable option
    Answered("nod", NOD, "Yes", "Yes.", False, "Yes"),
    Answered("nod", NOD, "No", " no\n", False, "No"),
    Answered("nod", NOD, "Yes", "No", False, "No"),
    Answered("tilt", TILT, "left", "to the side, which", True, "left"),
    Answered("tilt", TILT, "right", "RIGHT", False, "right"),
)


def interval(successes: int, trials: int) -> list[float]:
    """Return Wilson's interval by its formula."""
    share, z = successes / trials, 1.959963985
    middle = share + z**2 / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return [(middle - half) / (1 + z**2 / trials), (middle + half) / (1 + z**2 / trials)]


def share(successes: int, trials: int) -> dict:
    return {"value": pytest.approx(successes / trials), "ci95": pytest.approx(interval(successes, trials), abs=1e-7)}


def test_figures_by_hand():
    """Constant answers: Yes is right 2 of 3 times, and left or right 1 of 2 times. By chance: 1/2 and 1/3."""
    found = questions.entry(ANSWERED, "hash")
    assert found["generated"]["ci95"] == pytest.approx([0.2307, 0.8824], abs=5e-5)
    assert found == {
        "n": 5,
        "generated": share(3, 5),
        "chosen": share(4, 5),
        "majority": pytest.approx((2 + 1) / 5),
        "random": pytest.approx((3 / 2 + 2 / 3) / 5),
        "not_an_option": 1,
        "cut": 1,
        "answers": {"Yes": 2, "No": 1, "left": 1, "right": 1},
        "by_kind": {
            "nod": {
                "n": 3,
                "generated": share(2, 3),
                "chosen": share(2, 3),
                "majority": pytest.approx(2 / 3),
                "random": pytest.approx(1 / 2),
                "not_an_option": 0,
                "cut": 0,
                "answers": {"Yes": 2, "No": 1},
            },
            "tilt": {
                "n": 2,
                "generated": share(1, 2),
                "chosen": share(2, 2),
                "majority": pytest.approx(1 / 2),
                "random": pytest.approx(1 / 3),
                "not_an_option": 1,
                "cut": 1,
                "answers": {"left": 1, "right": 1},
            },
        },
        "intervals": "95% Wilson",
        "data_hash": "hash",
    }
    assert json.loads(json.dumps(found)).keys() == found.keys(), "it goes into results.json"


def test_the_constant_answer_is_one_for_each_kind():
    """Yes is the best constant answer to nods; to smiles Yes and No are equally good: 3 of 4 are right."""
    answers = {"nod": ("Yes", "Yes"), "smile": ("No", "Yes")}
    answered = [Answered(kind, NOD, answer, "", False, "Yes") for kind, both in answers.items() for answer in both]
    found = questions.entry(answered, "hash")
    assert found["majority"] == 3 / 4
    assert found["answers"] == {"Yes": 3, "No": 1}
    assert list(found["by_kind"]) == ["nod", "smile"]
    assert found["not_an_option"] == 4, "no text is no option"
    assert Answered.__hash__ is not None  # Python gives a hash to frozen dataclasses only


@pytest.mark.parametrize("right", [True, False])
def test_all_or_nothing_has_an_interval_of_some_width(right):
    found = questions.entry([Answered("nod", NOD, "Yes", "yes" if right else "no", False, "Yes")] * 20, "hash")
    assert found["generated"] == share(20 if right else 0, 20)
    low, high = found["generated"]["ci95"]
    assert (low, high) == pytest.approx((0.8389, 1) if right else (0, 0.1611), abs=5e-5)


def test_nothing_to_answer_is_an_error():
    with pytest.raises(ValueError, match="no questions to answer"):
        questions.entry([], "hash")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        (" yes. ", "yes"),
        ("yes...", "yes"),
        ("yes .", "yes"),
        ("yes!", "yes!"),
        (".5", ".5"),
        ("A. b.", "a. b"),
        ("STRASSE", questions.normalised("straße")),
        (" . ", ""),
        ("", ""),
    ],
)
def test_what_counts_as_the_same_answer(text, expected):
    assert questions.normalised(text) == expected
