"""The judges: files for people and batch services, an endpoint, a model of ours, and rules without any model.

file      writes judge_requests.jsonl and reads judge_ratings.jsonl
endpoint  any OpenAI-compatible server; the key comes from the environment alone
model     a vision-language model that fvjax loads; it chooses among the numbers, so that every reply is a rating
rules     no ratings: what an answer names, and how long it is
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fvjax.data.describing.endpoint import Endpoint, NoAnswer
from fvjax.data.tiling import decode_picture
from fvjax.evals.face_answers import PARSERS
from fvjax.evals.face_tasks import MAX_BYTES, MAX_LINE, Bootstrap
from fvjax.evals.judge import (
    ASPECTS,
    HIGHEST,
    LOWEST,
    Backend,
    Case,
    Rating,
    Request,
    floor,
    parse_reply,
    rating,
)
from fvjax.face_regions import REGIONS
from fvjax.files import replace_file

REQUESTS, RATINGS = "judge_requests.jsonl", "judge_ratings.jsonl"
SYSTEM = "You judge descriptions of faces. You reply with JSON only."
_REGION_WORDS = {
    "face": r"jaw|chin|cheeks?|forehead",
    "eyebrow1": r"(?:eye)?brows?",
    "nose": r"nose",
    "nostril": r"nostrils?",
    "eye1": r"eyes?|eyelids?|gaze",
    "lips": r"lips?|mouth|smile",
    "teeth": r"teeth|tooth",
}  # of both brows and of both eyes the first stands for the pair


class Waiting(Exception):
    """The requests are written; the ratings are not there yet. The text says which are missing and where they go."""


def file_backend(folder: Path) -> Backend:
    """Return a judge that asks by file: for people, batch services and tests.

    It writes folder/judge_requests.jsonl, a line of {"id", "prompt", "media"} for each request, with the media beside
    it, and reads folder/judge_ratings.jsonl, a line of {"id"} with the three aspects or with the "reply" of a model.
    """

    def judge(requests: Sequence[Request]) -> list[Rating | None]:
        _write_requests(folder, requests)
        ratings = _read_ratings(folder / RATINGS)
        if unknown := sorted(set(ratings) - {request.id for request in requests}):
            raise ValueError(f"{folder / RATINGS}: id {unknown[0]!r} is in no request; the answers or the seed changed")
        if missing := sum(request.id not in ratings for request in requests):
            raise Waiting(f"{folder / REQUESTS}: {missing} of {len(requests)} requests have no line in {RATINGS} yet")
        return [ratings[request.id] for request in requests]

    return judge


def endpoint_backend(endpoint: Endpoint) -> Backend:
    """Return a judge behind an OpenAI-compatible server, which gets the pictures. A request without answer is None."""

    def ask(request: Request) -> Rating | None:
        pictures = [(data, media_type(data)) for data in request.pictures]
        try:
            return parse_reply(endpoint.ask_about(SYSTEM, request.prompt, pictures))
        except NoAnswer:
            return None

    return lambda requests: [ask(request) for request in requests]


class Chooser(Protocol):
    """A vision-language model, such as `fvjax.load(DIR, "chat")` returns."""

    def choose(
        self, messages: Sequence[dict[str, str]], images: Sequence[Any], options: Sequence[str]
    ) -> tuple[int, Any]:
        """Return the number of the most probable option."""
        ...


def model_backend(model: Chooser) -> Backend:
    """Return a judge that is a model of ours: for each aspect it chooses among the numbers from 1 to 10."""
    numbers = [str(n) for n in range(LOWEST, HIGHEST + 1)]

    def judge(request: Request) -> Rating:
        images: list[NDArray[np.uint8]] = [np.asarray(decode_picture(d, "picture")) for d in request.pictures]
        places = "<image>\n" * len(images)
        chosen = []
        for aspect in ASPECTS:
            ask = f"{places}{request.prompt}\n\nHere, reply with the number for {aspect} alone."
            index, _ = model.choose([{"role": "user", "content": ask}], images, numbers)
            chosen.append(int(numbers[index]))
        return Rating(*chosen)

    return lambda requests: [judge(request) for request in requests]


def rules(cases: Sequence[Case], labels: Sequence[Any], *, seed: int = 0) -> dict[str, Any]:
    """Return what answers and both controls name, without a judge. These are no ratings and are never mixed with them.

    Args:
        labels: the true label of each case, in its task's form.
    Returns:
        for "answer", "ceiling" and "floor": "names_label" and "names_another" (shares of the answers that the parser
        reads as the label, and as something else), "regions" (of seven parts of the face, how many an answer names) and
        "words", each {"value", "ci95"}.
    """
    bootstrap = Bootstrap([case.group for case in cases], seed)
    others = floor(cases, seed)
    texts = {
        "answer": [case.answer for case in cases],
        "ceiling": [case.reference for case in cases],
        "floor": [cases[i].reference for i in others],
    }
    entry: dict[str, Any] = {"n": len(cases), "intervals": bootstrap.words}
    for kind, of_kind in texts.items():
        read = [PARSERS[case.task](text) for case, text in zip(cases, of_kind, strict=True)]
        same = np.array([_is_label(one, label) for one, label in zip(read, labels, strict=True)])
        another = np.array([one is not None for one in read]) & ~same
        counted = {
            "names_label": same,
            "names_another": another,
            "regions": np.array([regions_named(text) for text in of_kind]),
            "words": np.array([len(text.split()) for text in of_kind]),
        }
        entry[kind] = {name: bootstrap.figure(_with_ones(x), _mean) for name, x in counted.items()}
    return entry


def regions_named(text: str) -> int:
    """Return how many parts of the face a text names, of seven; a pair of brows or eyes counts once."""
    lowered = text.lower()
    assert set(_REGION_WORDS) <= set(REGIONS)
    return sum(bool(re.search(rf"\b(?:{words})\b", lowered)) for words in _REGION_WORDS.values())


def media_type(data: bytes) -> str:
    """Return the media type of an encoded picture."""
    if data.startswith(b"\x89PNG"):
        return "image/png"
    return "image/webp" if data[8:12] == b"WEBP" else "image/jpeg"


def _write_requests(folder: Path, requests: Sequence[Request]) -> None:
    media = folder / "media"
    media.mkdir(parents=True, exist_ok=True)
    lines = []
    for request in requests:
        names = []
        for number, data in enumerate(request.pictures):
            name = f"{request.id}_{number}.{media_type(data).removeprefix('image/')}"
            (media / name).write_bytes(data)
            names.append(f"media/{name}")
        lines.append(json.dumps({"id": request.id, "prompt": request.prompt, "media": names}, ensure_ascii=False))
    replace_file(folder / REQUESTS, "".join(line + "\n" for line in lines))


def _read_ratings(file: Path) -> dict[str, Rating | None]:
    """Return the rating of each id; None where a reply holds none. Raises ValueError for a line of another form."""
    if not file.is_file():
        return {}
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file}: {file.stat().st_size} bytes, at most {MAX_BYTES}")
    ratings: dict[str, Rating | None] = {}
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                id, one = _rating_of_line(line)
                if id in ratings:
                    raise ValueError(f"id {id!r} a second time")
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file}:{number}: {error}") from None
            ratings[id] = one
    return ratings


def _rating_of_line(line: bytes) -> tuple[str, Rating | None]:
    if len(line) > MAX_LINE:
        raise ValueError(f"a line of {len(line)} bytes, at most {MAX_LINE}")
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        raise ValueError("expected an object with an id")
    keys = set(row) - {"id"}
    if keys == {"reply"} and isinstance(row["reply"], str):
        return row["id"], parse_reply(row["reply"])
    if keys != set(ASPECTS):
        raise ValueError(f"expected {', '.join(ASPECTS)}, or reply, beside the id; found {', '.join(sorted(keys))}")
    one = rating(row)
    if one is None:
        raise ValueError(f"expected whole numbers from {LOWEST} to {HIGHEST} for {', '.join(ASPECTS)}")
    return row["id"], one


def _is_label(read: Any, label: Any) -> bool:
    return read is not None and (read == set(label) if isinstance(label, list) else read == label)


def _with_ones(values: NDArray) -> NDArray:
    return np.stack([values.astype(float), np.ones(len(values))], 1)


def _mean(sums: NDArray) -> NDArray:
    return sums[:, 0] / sums[:, 1]
