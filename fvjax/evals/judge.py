"""Ratings of the reasoning in answers: the protocol and the aggregation, without any network.

A judge rates how well an answer fits the picture or clip, the true label, and how complete it is, each from 1 to 10. In
the same run, and without knowing which is which, it rates two controls: the ground-truth description (the ceiling) and
the ground-truth description of another sample (the floor). A judge that does not rate the ceiling above the floor is
refused: its ratings of answers say nothing.

Face-LLaVA's prompts are not public; PROMPT is ours. A backend is a function from requests to ratings, see
:mod:`fvjax.evals.judge_backends`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fvjax.evals.face_tasks import Bootstrap

ASPECTS = ("consistency_video", "consistency_label", "completeness")
LOWEST, HIGHEST = 1, 10
KINDS = ("answer", "ceiling", "floor")
MAX_REPEATS = 20
MAX_REPLY = 20_000  # characters of a reply that are read
PROMPT = (
    "You see {media} of a face. Somebody was asked about its {task}.\n"
    "The true label is: {label}\n"
    "The answer was: {answer}\n\n"
    "Rate the answer from 1 (worst) to 10 (best) in three aspects:\n"
    "consistency_video: does what the answer says agree with what can be seen?\n"
    "consistency_label: does the answer agree with the true label?\n"
    "completeness: does the answer give all reasons that can be seen for the label?\n"
    'Reply with JSON only: {{"consistency_video": n, "consistency_label": n, "completeness": n}}'
)
_TASK_NAMES = {"action_units": "facial action units", "deepfake": "authenticity"}


class Rating(NamedTuple):
    """Three whole numbers from 1 to 10."""

    consistency_video: int
    consistency_label: int
    completeness: int


@dataclass(frozen=True)
class Case:
    """One answer to judge.

    Attributes:
        id, task, group: as in face_tasks.Answer.
        label: the true label in words.
        answer: the model's. reference: the ground-truth description.
        pictures: encoded files: one picture, or the frames of a clip.
    """

    id: str
    task: str
    label: str
    answer: str
    reference: str
    pictures: tuple[bytes, ...]
    group: str = ""


@dataclass(frozen=True)
class Request:
    """What a judge sees: nothing tells an answer from a control.

    Attributes:
        id: of the request, a hash of its prompt, pictures and number of repetition.
        prompt: the text.
        pictures: encoded files.
    """

    id: str
    prompt: str
    pictures: tuple[bytes, ...]


Backend = Callable[[Sequence[Request]], Sequence[Rating | None]]


class Indistinct(ValueError):
    """The judge does not rate ground truth above the ground truth of other samples."""


@dataclass(frozen=True)
class Judge:
    """A judge and what identifies it in results.

    Attributes:
        name: such as the model's. weights: a hash of them, or "" if nobody can know it.
        rate: the backend.
    """

    name: str
    rate: Backend
    weights: str = ""


def rate(cases: Sequence[Case], judge: Judge, *, repeats: int = 1, seed: int = 0) -> dict[str, Any]:
    """Have answers and both controls rated, and aggregate the ratings.

    Returns:
        "judge" (name, weights, prompt_sha256, scale, repeats), "n", "unparsed" (of all requests), and for "answer",
        "ceiling" and "floor" each aspect and the overall mean as {"value", "ci95"}; "by_task" has the answers' overall
        means; "repeat_std" is the mean standard deviation of repeated ratings of one request (None for one repeat).
    Raises:
        Indistinct: the interval of the mean difference between ceiling and floor does not lie above 0.
        ValueError: too few cases, repeats outside 1 to 20, or a backend that returns something else than ratings.
    """
    if not 1 <= repeats <= MAX_REPEATS:
        raise ValueError(f"repeats={repeats}: expected 1 to {MAX_REPEATS}")
    table = requests(cases, repeats=repeats, seed=seed)
    order = np.random.default_rng([seed, 2]).permutation(len(table))
    asked = [table[i][1] for i in order]
    unique = list({request.id: request for request in asked}.values())
    replies = judge.rate(unique)
    if len(replies) != len(unique):
        raise ValueError(f"{judge.name}: {len(replies)} ratings of {len(unique)} requests")
    by_id = {request.id: _checked(one, judge.name) for request, one in zip(unique, replies, strict=True)}
    ratings = np.full((len(KINDS), len(cases), repeats, len(ASPECTS)), np.nan)
    for (kind, case, repeat), request in table:
        if (one := by_id[request.id]) is not None:
            ratings[KINDS.index(kind), case, repeat] = one
    bootstrap = Bootstrap([case.group for case in cases], seed)
    entry = {
        "judge": {
            "name": judge.name,
            "weights": judge.weights,
            "prompt_sha256": hashlib.sha256(PROMPT.encode()).hexdigest(),
            "scale": [LOWEST, HIGHEST],
            "repeats": repeats,
        },
        "n": len(cases),
        "unparsed": int(np.isnan(ratings[..., 0]).sum()),
        **{kind: _means(ratings[number], bootstrap) for number, kind in enumerate(KINDS)},
        "by_task": _by_task(cases, ratings[0]),
        "repeat_std": None if repeats == 1 else _repeat_std(ratings),
        "intervals": bootstrap.words,
    }
    entry["ceiling_minus_floor"] = _difference(ratings, bootstrap, judge.name)
    return entry


def requests(cases: Sequence[Case], *, repeats: int, seed: int) -> list[tuple[tuple[str, int, int], Request]]:
    """Return ((kind, number of the case, repetition), request) of all answers and controls.

    Raises ValueError: fewer than two cases, or two with one id.
    """
    if len(cases) < 2 or len({case.id for case in cases}) < len(cases):
        raise ValueError(f"{len(cases)} cases: at least two with different ids are needed, as one is the other's floor")
    others = floor(cases, seed)
    table = []
    for number, case in enumerate(cases):
        texts = {"answer": case.answer, "ceiling": case.reference, "floor": cases[others[number]].reference}
        for kind in KINDS:
            prompt = prompt_of(case, texts[kind])
            table += [((kind, number, k), _request(prompt, case.pictures, k)) for k in range(repeats)]
    return table


def floor(cases: Sequence[Case], seed: int) -> list[int]:
    """Return for each case another one whose ground truth is its floor: of its task, with another label if possible."""
    rng = np.random.default_rng([seed, 1])
    chosen = []
    for number, case in enumerate(cases):
        others = [i for i in range(len(cases)) if i != number]
        of_task = [i for i in others if cases[i].task == case.task] or others
        wrong = [i for i in of_task if cases[i].label != case.label] or of_task
        chosen.append(int(rng.choice(wrong)))
    return chosen


def prompt_of(case: Case, answer: str) -> str:
    """Return the text that a judge reads about a case, with one answer to it."""
    media = "a picture" if len(case.pictures) == 1 else f"a clip of {len(case.pictures)} frames"
    return PROMPT.format(
        media=media, task=_TASK_NAMES.get(case.task, case.task), label=case.label, answer=answer.strip() or "(nothing)"
    )


def parse_reply(text: str) -> Rating | None:
    """Return the rating in a reply: the first JSON object with all aspects, or else the first number after each name.

    None if a number is missing, is no whole number or lies outside 1 to 10: nothing is rounded or clamped.
    """
    text = text[:MAX_REPLY]
    for match in re.finditer(r"\{[^{}]*\}", text):
        try:
            values = json.loads(match[0])
        except (ValueError, RecursionError):
            continue
        if set(ASPECTS) <= set(values):
            return rating(values)
    found = {aspect: re.search(rf"{aspect}[^\w-]{{0,10}}(?:-\s+)?(-?\d+(?:[.,]\d+)?)", text) for aspect in ASPECTS}
    numbers = {aspect: match[1] for aspect, match in found.items() if match}
    if len(numbers) < len(ASPECTS) or not all(number.isdecimal() for number in numbers.values()):
        return None
    return rating({aspect: int(number) for aspect, number in numbers.items()})


def rating(values: dict[str, Any]) -> Rating | None:
    """Return a rating of whole numbers from 1 to 10, or None."""
    numbers = [values.get(aspect) for aspect in ASPECTS]
    if any(type(one) is not int or not LOWEST <= one <= HIGHEST for one in numbers):
        return None
    return Rating(*numbers)  # type: ignore[arg-type]


def label_text(task: str, label: Any) -> str:
    """Return a label in words: action units as AU1, attributes without underscores, an age in years."""
    match task:
        case "action_units":
            return ", ".join(f"AU{unit}" for unit in label) or "no action unit is active"
        case "attributes":
            return ", ".join(str(name).replace("_", " ") for name in label) or "none of the attributes"
        case "age":
            return f"{label} years"
    return str(label)


def summary(entry: dict[str, Any]) -> list[str]:
    """Return the overall means of answers and controls, a line each."""
    judge = entry["judge"]
    lines = [
        f"judge {judge['name']}: {entry['n']} cases, {judge['repeats']} ratings each; {entry['unparsed']} unparsed"
    ]
    for kind in KINDS:
        overall = entry[kind]["overall"]
        low, high = overall["ci95"]
        aspects = ", ".join(f"{aspect} {entry[kind][aspect]['value']:.2f}" for aspect in ASPECTS)
        lines.append(f"  {kind}: overall {overall['value']:.2f} ({low:.2f} to {high:.2f}); {aspects}")
    return lines


def _request(prompt: str, pictures: tuple[bytes, ...], repeat: int) -> Request:
    digest = hashlib.sha256(f"{repeat}\n{prompt}".encode())
    for picture in pictures:
        digest.update(hashlib.sha256(picture).digest())
    return Request(digest.hexdigest()[:24], prompt, pictures)


def _checked(one: Any, name: str) -> Rating | None:
    if one is None:
        return None
    if not isinstance(one, tuple) or len(one) != len(ASPECTS) or rating(dict(zip(ASPECTS, one, strict=True))) is None:
        raise ValueError(f"{name}: {one!r:.80} is no rating of three whole numbers from {LOWEST} to {HIGHEST}")
    return Rating(*one)


def _mean_of_repeats(ratings: NDArray) -> NDArray:
    """Return the mean over the repeats that were parsed, [n, aspects]; nan where none was."""
    parsed = ~np.isnan(ratings)
    count = parsed.sum(1)
    total = np.where(parsed, ratings, 0).sum(1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _figure(values: NDArray, bootstrap: Bootstrap) -> dict[str, Any]:
    """Return {"value", "ci95"} of the mean of [n], leaving out nan."""
    known = ~np.isnan(values)
    samples = np.stack([np.where(known, values, 0), known], 1).astype(float)

    def mean(sums: NDArray) -> NDArray:
        return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)

    return bootstrap.figure(samples, mean)


def _means(ratings: NDArray, bootstrap: Bootstrap) -> dict[str, Any]:
    values = _mean_of_repeats(ratings)
    figures = {aspect: _figure(values[:, k], bootstrap) for k, aspect in enumerate(ASPECTS)}
    return figures | {"overall": _figure(values.mean(1), bootstrap)}


def _by_task(cases: Sequence[Case], ratings: NDArray) -> dict[str, float | None]:
    overall = _mean_of_repeats(ratings).mean(1)
    means: dict[str, float | None] = {}
    for task in dict.fromkeys(case.task for case in cases):
        values = overall[[case.task == task for case in cases]]
        values = values[~np.isnan(values)]
        means[task] = float(values.mean()) if len(values) else None
    return means


def _repeat_std(ratings: NDArray) -> float | None:
    """Return the mean standard deviation of the overall rating of one request, over requests rated more than once."""
    overall = ratings.mean(3).reshape(-1, ratings.shape[2])
    several = [row[~np.isnan(row)] for row in overall if (~np.isnan(row)).sum() > 1]
    return float(np.mean([row.std(ddof=1) for row in several])) if several else None


def _difference(ratings: NDArray, bootstrap: Bootstrap, name: str) -> dict[str, Any]:
    """Return the mean difference between ceiling and floor, or refuse the judge."""
    ceiling, floor_ = (_mean_of_repeats(ratings[KINDS.index(kind)]).mean(1) for kind in ("ceiling", "floor"))
    difference = _figure(ceiling - floor_, bootstrap)
    if not difference["ci95"][0] > 0:
        low, high = difference["ci95"]
        raise Indistinct(
            f"{name}: rates ground truth no higher than the ground truth of other samples (difference "
            f"{difference['value']:.2f}, {low:.2f} to {high:.2f}); its ratings say nothing; take another judge"
        )
    return difference
