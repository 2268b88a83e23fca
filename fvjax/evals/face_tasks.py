"""Figures of Face-LLaVA's five tasks from generated answers: read answers, parse them, compare them with the labels.

    rows = read_answers("answers.jsonl")             {"id", "task", "label", "answer"} a line, see Answer
    parsed = [parse(row) for row in rows]            what the answer says, or None
    entry = score("expression", rows, parsed)        figures with intervals, for results.json

Each step stands alone. An answer that says nothing of its task is counted, and wrong in every figure but the mean error
of ages. That is given for the answers that name an age, and for all, where the others count as the labels' median.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvjax.data.face_labels import ACTION_UNITS, ATTRIBUTES, EXPRESSIONS, OLDEST, REALITIES, TASKS
from fvjax.evals.face_answers import PARSERS
from fvjax.evals.intervals import wilson
from fvjax.files import replace_file

MAX_BYTES = 1 << 28  # of a file of answers
MAX_LINE = 1 << 20  # of one answer
RESAMPLES = 1000
UNPARSED = -1  # in place of the number of a class
_NEEDED = ("id", "task", "label", "answer")


@dataclass(frozen=True)
class Answer:
    """One question of a task, and what a model said.

    Attributes:
        id: of the question; no two answers have the same.
        task: of face_labels.TASKS.
        label: expression: a name; action_units: numbers; attributes: names of those present; age: years; deepfake:
            "real" or "fake".
        answer: the generated text.
        question: the text that was asked; with it, "yes" and "no" can be read.
        group: what the answer shares with others, such as the person; intervals resample groups.
        scores: the probability or logit of each class, for a reading without a parser (expression and deepfake).
    """

    id: str
    task: str
    label: Any
    answer: str
    question: str = ""
    group: str = ""
    scores: dict[str, float] | None = None


def read_answers(file: Path) -> list[Answer]:
    """Read a file of answers, one JSON object a line (:class:`Answer`).

    Raises:
        ValueError: no such file, one that is too large, or a line that is no answer. The message names file and line.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file; it has one JSON object a line with {', '.join(_NEEDED)}")
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file}: {file.stat().st_size} bytes, at most {MAX_BYTES}; split it")
    rows, seen = [], set()
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = _answer(line)
                if row.id in seen:
                    raise ValueError(f"id {row.id!r} a second time")
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file}:{number}: {error}") from None
            seen.add(row.id)
            rows.append(row)
    if not rows:
        raise ValueError(f"{file}: no answers")
    return rows


def write_answers(file: Path, rows: Iterable[Answer]) -> None:
    """Write answers as :func:`read_answers` reads them."""
    defaults = {field.name: field.default for field in fields(Answer) if field.name not in _NEEDED}
    kept = ({k: v for k, v in asdict(row).items() if k not in defaults or v != defaults[k]} for row in rows)
    replace_file(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def parse(row: Answer) -> Any:
    """Return what an answer says, in the form of its task's label (sets for lists), or None."""
    if row.task == "deepfake":
        return PARSERS[row.task](row.answer, row.question)
    return PARSERS[row.task](row.answer)


def score(
    task: str, rows: Sequence[Answer], parsed: Sequence[Any], *, names: Collection[Any] = (), seed: int = 0
) -> dict[str, Any]:
    """Compare parsed answers of one task with their labels.

    Args:
        rows, parsed: the same number of each; all rows are of `task`.
        names: the classes, action units or attributes that count, in order; by default all seven expressions, and the
            units and attributes that occur in the labels.
        seed: of the bootstrap.
    Returns:
        "n", "unparsed", the task's figures, each {"value", "ci95"}, its table by class, unit or attribute, "constant"
        (the same figures of the best answer that is always the same) and "intervals" in words. With scores in all rows
        there is "by_scores".
    Raises:
        ValueError: no answers, or answers of another task.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r}: choose of {', '.join(TASKS)}")
    if not rows or len(rows) != len(parsed) or any(row.task != task for row in rows):
        raise ValueError(f"{len(rows)} answers and {len(parsed)} readings of them: expected as many, all of {task!r}")
    bootstrap = Bootstrap([row.group for row in rows], seed)
    unparsed = sum(one is None for one in parsed)
    entry = {
        "n": len(rows),
        "unparsed": {"n": unparsed, "value": unparsed / len(rows), "ci95": wilson(unparsed, len(rows))},
        **_SCORES[task](rows, parsed, tuple(names), bootstrap),
        "intervals": bootstrap.words,
    }
    if task in ("expression", "deepfake") and all(row.scores for row in rows):
        chosen = [max(row.scores or {}, key=lambda name, of=row.scores: (of or {})[name]) for row in rows]
        entry["by_scores"] = _SCORES[task](rows, chosen, tuple(names), bootstrap)
    return entry


def multiclass(true: Sequence[int] | NDArray, predicted: Sequence[int] | NDArray, classes: int) -> dict[str, Any]:
    """Return recall, precision and F1 of each class and their means; predictions may be UNPARSED.

    "uar" is the mean recall of the classes that occur, "war" the accuracy. Recalls of classes that do not occur are
    None; a ratio 0/0 counts as 0 elsewhere. "confusion_rows_true" has one more column if something is UNPARSED.
    """
    cells = _confusion(np.asarray(true), np.asarray(predicted), classes).sum(0).reshape(classes, classes + 1)
    support, right, chosen = cells.sum(1), np.diag(cells[:, :classes]), cells[:, :classes].sum(0)
    recall = _ratio(right, support)
    occurs = support > 0
    f1 = _ratio(2 * right, support + chosen)
    return {
        "uar": float(recall[occurs].mean()),
        "war": float(right.sum() / support.sum()),
        "recall_per_class": [float(one) if there else None for one, there in zip(recall, occurs, strict=True)],
        "precision_per_class": _ratio(right, chosen).tolist(),
        "f1_per_class": f1.tolist(),
        "macro_f1": float(f1.mean()),
        "support": support.astype(int).tolist(),
        "confusion_rows_true": cells[:, : classes + bool(cells[:, classes].any())].astype(int).tolist(),
    }


def unit_f1(true: NDArray, predicted: NDArray) -> dict[str, Any]:
    """Return the F1 of each action unit over all samples, and their plain mean; 0/0 counts as 0. Both [n, units]."""
    counts = _unit_counts(np.asarray(true, bool), np.asarray(predicted, bool)).sum(0)
    f1 = _ratio(2 * counts[0], 2 * counts[0] + counts[1])
    return {"f1_per_unit": f1.tolist(), "mean_f1": float(f1.mean())}


class Bootstrap:
    """Resamples answers, or groups of answers that belong together, and keeps what was drawn for all figures.

    Attributes:
        words: what the intervals are.
    """

    def __init__(self, groups: Sequence[str], seed: int):
        known = all(groups)
        _, self._group = np.unique(groups if known else np.arange(len(groups)), return_inverse=True)
        self._count = int(self._group.max()) + 1
        rng = np.random.default_rng([seed, 0xFACE])
        self._weights = rng.multinomial(self._count, np.full(self._count, 1 / self._count), RESAMPLES)
        over = f"{self._count} groups" if known else f"{self._count} answers"
        self.words = f"95% percentile bootstrap over {over}, {RESAMPLES} resamples"

    def figure(self, samples: NDArray, statistic: Callable[[NDArray], NDArray]) -> dict[str, Any]:
        """Return {"value", "ci95"} of a statistic of summed counts.

        Args:
            samples: [n, …], what each answer adds to the sums.
            statistic: maps sums [R, …] to [R]; nan where it is not defined.
        """
        sums = np.zeros((self._count, *samples.shape[1:]))
        np.add.at(sums, self._group, samples)
        drawn = np.tensordot(self._weights, sums, 1)
        values = statistic(drawn)
        defined = values[np.isfinite(values)]
        ends = np.quantile(defined, (0.025, 0.975)).tolist() if len(defined) else [math.nan, math.nan]
        return {"value": float(statistic(sums.sum(0)[None])[0]), "ci95": ends}


def _answer(line: bytes) -> Answer:
    """Return the answer of a line. Raises ValueError: what is wrong with it."""
    if len(line) > MAX_LINE:
        raise ValueError(f"a line of {len(line)} bytes, at most {MAX_LINE}")
    row = json.loads(line)
    known = {field.name for field in fields(Answer)}
    if not isinstance(row, dict) or (missing := [key for key in _NEEDED if key not in row]):
        keys = "not an object" if not isinstance(row, dict) else f"no {missing[0]!r}"
        raise ValueError(f"{keys}; expected {{{', '.join(_NEEDED)}}}")
    if unknown := sorted(set(row) - known):
        raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    answer = Answer(**row)
    for key in ("id", "task", "answer", "question", "group"):
        if not isinstance(getattr(answer, key), str):
            raise ValueError(f"{key!r} is no text: {getattr(answer, key)!r:.80}")
    _check_label(answer)
    _check_scores(answer)
    return answer


def _check_label(row: Answer) -> None:
    """Raise ValueError unless the label is one of the row's task."""
    if row.task not in TASKS:
        raise ValueError(f"task {row.task!r:.80}: choose of {', '.join(TASKS)}")
    if row.task == "age":
        if isinstance(row.label, bool) or not isinstance(row.label, int | float) or not 0 <= row.label <= OLDEST:
            raise ValueError(f"label {row.label!r:.80}: expected years, 0 to {OLDEST}")
        return
    known: Collection[Any] = {
        "expression": EXPRESSIONS,
        "action_units": ACTION_UNITS,
        "attributes": ATTRIBUTES,
        "deepfake": REALITIES,
    }[row.task]
    several = row.task in ("action_units", "attributes")
    if several != isinstance(row.label, list):
        raise ValueError(f"label {row.label!r:.80}: expected {'a list' if several else 'one name'}")
    for one in row.label if several else [row.label]:
        if isinstance(one, list | dict) or one not in known:
            raise ValueError(f"label {one!r:.80}: expected of {', '.join(map(str, known))}")


def _check_scores(row: Answer) -> None:
    if row.scores is None:
        return
    if row.task not in ("expression", "deepfake") or not isinstance(row.scores, dict) or not row.scores:
        raise ValueError("'scores': expected a number for each class, of an expression or a deepfake")
    known = EXPRESSIONS if row.task == "expression" else REALITIES
    for name, value in row.scores.items():
        if name not in known or isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise ValueError(
                f"'scores': {name!r:.40} is {value!r:.40}; expected a number for each of {', '.join(known)}"
            )


def _classes(
    rows: Sequence[Answer], parsed: Sequence[Any], classes: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Return UAR, WAR and the tables of a task with one class an answer."""
    number = {name: i for i, name in enumerate(classes)}
    if strange := [row.label for row in rows if row.label not in number]:
        raise ValueError(f"label {strange[0]!r} is none of the classes that count, {', '.join(classes)}")
    true = np.array([number[row.label] for row in rows])
    predicted = np.array([number.get(one, UNPARSED) for one in parsed])
    cells = _confusion(true, predicted, len(classes))
    figures = multiclass(true, predicted, len(classes))
    support = np.array(figures["support"])
    return {
        "uar": bootstrap.figure(cells, _uar(len(classes))),
        "war": bootstrap.figure(cells, _war(len(classes))),
        "recall": dict(zip(classes, figures["recall_per_class"], strict=True)),
        "macro_f1": figures["macro_f1"],
        "confusion": {"classes": list(classes), "rows_true": figures["confusion_rows_true"]},
        "constant": {"uar": 1 / int((support > 0).sum()), "war": float(support.max() / support.sum())},
    }


def _score_expression(rows, parsed, names: tuple, bootstrap: Bootstrap) -> dict[str, Any]:
    return _classes(rows, parsed, names or EXPRESSIONS, bootstrap)


def _score_deepfake(rows, parsed, names: tuple, bootstrap: Bootstrap) -> dict[str, Any]:
    entry = _classes(rows, parsed, REALITIES, bootstrap)
    return {"accuracy": entry.pop("war"), **entry}


def _score_units(rows, parsed, names: tuple, bootstrap: Bootstrap) -> dict[str, Any]:
    units = names or tuple(sorted({unit for row in rows for unit in row.label}))
    if not units:
        raise ValueError("no action unit is active in any label; name those that count")
    true, predicted = _table([row.label for row in rows], units), _table(parsed, units)
    counts = _unit_counts(true, predicted)
    share = true.mean(0)
    per_unit = [
        bootstrap.figure(counts[:, :, k], lambda s: _ratio_nan(2 * s[:, 0], 2 * s[:, 0] + s[:, 1]))
        for k in range(len(units))
    ]
    return {
        "mean_f1": bootstrap.figure(counts, lambda s: _ratio(2 * s[:, 0], 2 * s[:, 0] + s[:, 1]).mean(-1)),
        "f1": {f"AU{unit}": _zero(figure) for unit, figure in zip(units, per_unit, strict=True)},
        "positive": {f"AU{unit}": int(n) for unit, n in zip(units, true.sum(0), strict=True)},
        "constant": {"mean_f1": float(_ratio(2 * share, 1 + share).mean())},  # all units are always active
    }


def _score_attributes(rows, parsed, names: tuple, bootstrap: Bootstrap) -> dict[str, Any]:
    attributes = names or tuple(sorted({name for row in rows for name in row.label}))
    if not attributes:
        raise ValueError("no attribute is present in any label; name those that count")
    true, predicted = _table([row.label for row in rows], attributes), _table(parsed, attributes)
    right = true == predicted
    both = np.stack([right.mean(1), np.ones(len(rows))], 1)
    share = true.mean(0)
    return {
        "mean_accuracy": bootstrap.figure(both, lambda s: _ratio(s[:, 0], s[:, 1])),
        "accuracy": dict(zip(attributes, right.mean(0).tolist(), strict=True)),
        "constant": {"mean_accuracy": float(np.maximum(share, 1 - share).mean())},
    }


def _score_age(rows, parsed, names: tuple, bootstrap: Bootstrap) -> dict[str, Any]:
    true = np.array([float(row.label) for row in rows])
    median = float(np.median(true))
    has_age = np.array([one is not None for one in parsed])
    error = np.abs(np.array([median if one is None else float(one) for one in parsed]) - true)

    def mean(of: NDArray) -> dict[str, Any]:
        return bootstrap.figure(np.stack([error * of, of], 1).astype(float), lambda s: _ratio_nan(s[:, 0], s[:, 1]))

    return {
        "mae": mean(has_age) if has_age.any() else None,
        "mae_unparsed_as_median": mean(np.ones(len(rows), bool)),
        "constant": {"mae": float(np.abs(true - median).mean())},
    }


_SCORES: dict[str, Callable[..., dict[str, Any]]] = {
    "expression": _score_expression,
    "action_units": _score_units,
    "attributes": _score_attributes,
    "age": _score_age,
    "deepfake": _score_deepfake,
}


def summary(entries: dict[str, dict[str, Any]]) -> list[str]:
    """Return one line for each task's main figures."""
    lines = []
    for task, entry in entries.items():
        named = ((name, entry.get(name)) for name in ("uar", "war", "accuracy", "mean_f1", "mean_accuracy", "mae"))
        shown = [_shown(name, one, entry) for name, one in named if isinstance(one, dict) and "ci95" in one]
        unparsed = entry["unparsed"]
        lines.append(f"{task}: {', '.join(shown)}; {unparsed['n']} of {entry['n']} unparsed")
    return lines


def _shown(name: str, figure: dict[str, Any], entry: dict[str, Any]) -> str:
    low, high = figure["ci95"]
    constant = entry["constant"].get("war" if name == "accuracy" else name)
    always = "" if constant is None else f"; always the same answer: {constant:.3f}"
    return f"{name} {figure['value']:.3f} ({low:.3f} to {high:.3f}{always})"


def _table(labels: Sequence[Collection[Any] | None], names: Sequence[Any]) -> NDArray[np.bool_]:
    return np.array([[one is not None and name in one for name in names] for one in labels], bool)


def _confusion(true: NDArray, predicted: NDArray, classes: int) -> NDArray[np.float64]:
    """Return one-hot cells [n, classes * (classes + 1)] of (true, predicted); the last column is UNPARSED."""
    cells = np.zeros((len(true), classes * (classes + 1)))
    column = np.where(predicted == UNPARSED, classes, predicted)
    cells[np.arange(len(true)), true * (classes + 1) + column] = 1
    return cells


def _uar(classes: int) -> Callable[[NDArray], NDArray]:
    def statistic(sums: NDArray) -> NDArray:
        cells = sums.reshape(-1, classes, classes + 1)
        support = cells.sum(2)
        right = cells[:, np.arange(classes), np.arange(classes)]
        return _ratio_nan(_ratio(right, support).sum(1), (support > 0).sum(1))

    return statistic


def _war(classes: int) -> Callable[[NDArray], NDArray]:
    def statistic(sums: NDArray) -> NDArray:
        cells = sums.reshape(-1, classes, classes + 1)
        return cells[:, np.arange(classes), np.arange(classes)].sum(1) / cells.sum((1, 2))

    return statistic


def _unit_counts(true: NDArray, predicted: NDArray) -> NDArray[np.float64]:
    """Return [n, 2, units]: whether a unit is rightly active, and whether it is wrongly active or missed."""
    return np.stack([true & predicted, true ^ predicted], 1).astype(float)


def _ratio(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    """Divide, 0 where the divisor is 0."""
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=np.asarray(b) > 0)


def _ratio_nan(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    """Divide, nan where the divisor is 0."""
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=np.asarray(b) > 0)


def _zero(figure: dict[str, Any]) -> dict[str, Any]:
    """Return a figure with 0 for nan: an F1 without a positive in labels and answers is 0, and says nothing else."""
    return {"value": float(np.nan_to_num(figure["value"])), "ci95": np.nan_to_num(figure["ci95"]).tolist()}


def counts_by_task(rows: Iterable[Answer]) -> dict[str, int]:
    """Return how many answers there are of each task."""
    return dict(Counter(row.task for row in rows))
