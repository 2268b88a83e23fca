"""FaceXBench's figures: entries of results.json from a model's answers. Plain numpy.

Accuracies are micro averages, correct / all. An answer without a letter is wrong. The same figures are computed for all
questions and for those without FairFace's pictures, which FaceLLM's training data overlap with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvjax.data.readers.facexbench import Question
from fvjax.evals.choices import option_letters
from fvjax.evals.facexbench_answers import Prediction
from fvjax.evals.intervals import wilson

GROUPINGS = ("category", "sub_category", "num_images", "file")
INTERVALS = "95% Wilson score intervals; questions count as independent"


@dataclass(frozen=True)
class Category:
    """A category's title as published, a short one for the head of a column, and the titles of its sub-categories."""

    title: str
    short: str
    sub_categories: Mapping[str, str]


# In the order of the published tables.
CATEGORIES = {
    "bias_fairness": Category("Bias & Fairness", "Bias", {"age": "age", "gender": "gender", "race": "race"}),
    "face_recognition": Category(
        "Recognition",
        "Recogn.",
        {
            "hr_fr": "high-res. recognition",
            "lr_fr": "low-res. recognition",
            "celebrity_identification": "celebrity identification",
        },
    ),
    "fas_deepfakes": Category("Authentication", "Auth.", {"fas": "anti-spoofing", "deepfakes": "deepfake"}),
    "attributes_expression": Category("Analysis", "Analysis", {"attributes": "attributes", "expression": "expression"}),
    "face_localization": Category(
        "Localization",
        "Local.",
        {"headpose": "head pose", "crowd_counting": "crowd counting", "segmentation": "face parsing"},
    ),
    "tools_use": Category("Tools", "Tools", {"tools_retrieval": "tools"}),
}


def entry(questions: Sequence[Question], predictions: Sequence[Prediction], **about: Any) -> dict[str, Any]:
    """Make FaceXBench's entry of results.json.

    Every figure is given ``overall`` and by ``category``, ``sub_category``, ``num_images`` and ``file``, each time with
    its number of questions ``n_questions``:

    - ``generation``: ``accuracy`` of the letters extracted from generated text, ``ci95``, ``correct``, and of the
      questions ``unparsed`` (no letter found) and ``cut`` (at the token limit). None if nothing was generated.
    - ``letters``: ``accuracy`` of the most probable letter, ``ci95``, ``correct``. None if not asked for.
    - ``agreement`` of the two: ``share`` of questions with the same letter, ``ci95``, ``agree``, and how many
      questions both, only one of them, or neither got right. None unless both ways were used.
    - ``majority``: ``accuracy`` of always naming the group's most frequent right ``letter`` (the first of equally
      frequent ones). ``overall_by_file`` and ``overall_by_sub_category`` name that of each file or sub-category.
    - ``random``: ``accuracy`` expected from guessing, the mean of 1 / number of options.

    ``without_fairface`` has the same figures without the ``fairface_*`` files; None if there are none, or no others.

    Args:
        questions: in any order.
        predictions: the answers to them, in their order.
        about: further entries, such as data_hash.
    Raises:
        ValueError: no questions, another number of predictions, predictions of different kinds, or a sub-category in
            two categories.
    """
    _check(questions, predictions)
    others = [i for i, question in enumerate(questions) if not question.overlaps_fairface]
    without_fairface = None
    if 0 < len(others) < len(questions):
        without_fairface = _figures([questions[i] for i in others], [predictions[i] for i in others])
    return {
        **_figures(questions, predictions),
        "without_fairface": without_fairface,
        "intervals": INTERVALS,
        **about,
    }


def category_names(figures: Mapping[str, Any]) -> list[str]:
    """Return the names of an entry's categories in the order of the published tables; unknown ones come last."""
    names = figures["random"]["category"]
    return [name for name in CATEGORIES if name in names] + [name for name in names if name not in CATEGORIES]


def _figures(questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Compute all figures of some questions."""
    answers = np.array([question.answer for question in questions])
    chances = np.array([1 / len(question.options) for question in questions])
    groups = _groups(questions)
    generated = np.array([prediction.extracted or "" for prediction in predictions])
    cut = np.array([prediction.cut for prediction in predictions])
    chosen = np.array([prediction.letter or "" for prediction in predictions])
    has_text, has_letters = predictions[0].output is not None, predictions[0].letter is not None

    def of_generation(rows: NDArray) -> dict[str, Any]:
        counts = {"unparsed": int((generated[rows] == "").sum()), "cut": int(cut[rows].sum())}
        return _accuracy(generated[rows] == answers[rows]) | counts

    def of_agreement(rows: NDArray) -> dict[str, Any]:
        return _agreement(generated[rows], chosen[rows], answers[rows])

    return {
        "n_questions": len(questions),
        "sub_categories": _sub_categories(questions),
        "generation": _by_group(groups, of_generation) if has_text else None,
        "letters": _by_group(groups, lambda rows: _accuracy(chosen[rows] == answers[rows])) if has_letters else None,
        "agreement": _by_group(groups, of_agreement) if has_text and has_letters else None,
        "majority": {
            **_by_group(groups, lambda rows: _majority(answers[rows])),
            "overall_by_file": _majority_of_each(groups["file"], answers),
            "overall_by_sub_category": _majority_of_each(groups["sub_category"], answers),
        },
        "random": _by_group(groups, lambda rows: {"accuracy": float(chances[rows].mean()), "n_questions": len(rows)}),
    }


def _groups(questions: Sequence[Question]) -> dict[str, dict[str, NDArray]]:
    """Return the rows of each group by grouping and name; names are sorted."""
    groups = {}
    for grouping in GROUPINGS:
        names = np.array([getattr(question, grouping) for question in questions])
        groups[grouping] = {str(name): np.flatnonzero(names == name) for name in np.unique(names)}
    return groups


def _by_group(groups: dict[str, dict[str, NDArray]], figure: Callable[[NDArray], dict[str, Any]]) -> dict[str, Any]:
    """Compute a figure of all rows, and of the rows of each group."""
    everything = np.sort(np.concatenate(list(groups["category"].values())))
    by_group = {grouping: {name: figure(rows) for name, rows in its.items()} for grouping, its in groups.items()}
    return {"overall": figure(everything), **by_group}


def _accuracy(correct: NDArray) -> dict[str, Any]:
    """Describe the share of true values in bool [n]."""
    count = int(correct.sum())
    return {
        "accuracy": count / len(correct),
        "ci95": wilson(count, len(correct)),
        "correct": count,
        "n_questions": len(correct),
    }


def _agreement(generated: NDArray, chosen: NDArray, answers: NDArray) -> dict[str, Any]:
    """Compare the letters of the two ways to answer, "" for none."""
    agree, n = int((generated == chosen).sum()), len(answers)
    by_generation, by_letters = generated == answers, chosen == answers
    return {
        "share": agree / n,
        "ci95": wilson(agree, n),
        "agree": agree,
        "both_correct": int((by_generation & by_letters).sum()),
        "only_generation_correct": int((by_generation & ~by_letters).sum()),
        "only_letters_correct": int((~by_generation & by_letters).sum()),
        "neither_correct": int((~by_generation & ~by_letters).sum()),
        "n_questions": n,
    }


def _majority(answers: NDArray) -> dict[str, Any]:
    """Judge the answer that is always the most frequent right letter."""
    letters, counts = np.unique(answers, return_counts=True)  # sorted, so that argmax takes the first of equals
    most = int(np.argmax(counts))
    return {
        "letter": str(letters[most]),
        "accuracy": int(counts[most]) / len(answers),
        "correct": int(counts[most]),
        "n_questions": len(answers),
    }


def _majority_of_each(groups: Mapping[str, NDArray], answers: NDArray) -> dict[str, Any]:
    """Judge the answers that are always the most frequent right letter of a question's group."""
    correct = sum(_majority(answers[rows])["correct"] for rows in groups.values())
    return {"accuracy": correct / len(answers), "correct": correct, "n_questions": len(answers)}


def _sub_categories(questions: Sequence[Question]) -> dict[str, list[str]]:
    """Return the sub-categories of each category, those of the published tables first and in their order."""
    found: dict[str, set[str]] = {}
    for question in questions:
        found.setdefault(question.category, set()).add(question.sub_category)
    out = {}
    for category, names in sorted(found.items()):
        published = list(CATEGORIES[category].sub_categories) if category in CATEGORIES else []
        out[category] = [name for name in published if name in names] + sorted(names - set(published))
    return out


def _check(questions: Sequence[Question], predictions: Sequence[Prediction]) -> None:
    """Raise ValueError for questions and predictions that have no figures."""
    if not questions or len(predictions) != len(questions):
        raise ValueError(f"{len(predictions)} answers to {len(questions)} questions; expected one answer to each")
    kinds = {(prediction.output is not None, prediction.letter is not None) for prediction in predictions}
    if len(kinds) > 1 or kinds == {(False, False)}:
        raise ValueError("some questions have no answers; evaluate all of them in the same way")
    categories: dict[str, str] = {}
    for question in questions:
        location = f"{question.file} question {question.number}"
        if question.answer not in option_letters(len(question.options)) or len(question.answer) != 1:
            raise ValueError(f"{location}: the answer {question.answer!r} is the letter of none of its options")
        if categories.setdefault(question.sub_category, question.category) != question.category:
            raise ValueError(
                f"{location}: sub-category {question.sub_category!r} is in {question.category!r} here and in "
                f"{categories[question.sub_category]!r} elsewhere; correct the file"
            )
