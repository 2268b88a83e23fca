"""Figures of questions with given options: how often a model is right, and what is right by chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fvjax.evals.intervals import wilson


@dataclass(frozen=True)
class Answered:
    """One question, and what a model said.

    Attributes:
        kind: what it is about. options: the possible answers. answer: the right one.
        generated: the text that the model wrote. cut: whether it reached the limit of tokens.
        chosen: the option that the model finds most probable.
    """

    kind: str
    options: tuple[str, ...]
    answer: str
    generated: str
    cut: bool
    chosen: str


def entry(answered: Sequence[Answered], data_hash: str) -> dict[str, Any]:
    """Return a benchmark's entry in results.json.

    "generated" counts a text that is the answer but for case, white space and a full stop; "chosen" counts the most
    probable option. "by_kind" has the same for each kind of question. Raises ValueError without questions.
    """
    if not answered:
        raise ValueError("no questions to answer")
    kinds = sorted({one.kind for one in answered})
    by_kind = {kind: _figures([one for one in answered if one.kind == kind]) for kind in kinds}
    return {**_figures(answered), "by_kind": by_kind, "intervals": "95% Wilson", "data_hash": data_hash}


def normalised(text: str) -> str:
    """Return a short answer without case, white space around it and a full stop."""
    return text.strip().rstrip(".").strip().casefold()


def _figures(answered: Sequence[Answered]) -> dict[str, Any]:
    right = Counter(one.answer for one in answered)
    most_frequent = Counter()
    for kind in {one.kind for one in answered}:  # the best constant answer to each kind of question
        most_frequent[kind] = max(Counter(one.answer for one in answered if one.kind == kind).values())
    return {
        "n": len(answered),
        "generated": _share(sum(normalised(one.generated) == normalised(one.answer) for one in answered), answered),
        "chosen": _share(sum(one.chosen == one.answer for one in answered), answered),
        "majority": sum(most_frequent.values()) / len(answered),
        "random": sum(1 / len(one.options) for one in answered) / len(answered),
        "not_an_option": sum(
            normalised(one.generated) not in {normalised(option) for option in one.options} for one in answered
        ),
        "cut": sum(one.cut for one in answered),
        "answers": dict(right.most_common()),
    }


def _share(count: int, answered: Sequence[Answered]) -> dict[str, Any]:
    return {"value": count / len(answered), "ci95": wilson(count, len(answered))}
