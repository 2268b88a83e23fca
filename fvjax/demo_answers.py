"""What the page of `python -m fvjax.demo` answers, as data: two pictures, a gallery searched, a question.

Nothing here knows how the page looks, and nothing is written to disk. User errors are ValueErrors that name the picture
as the user knows it, never the temporary file that it was uploaded to.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fvjax import api, chat
from fvjax.chat_model import ChatModel
from fvjax.data import images, names
from fvjax.data.alignment.faces import Picture, read_picture
from fvjax.evals import intervals, pair_picture
from fvjax.evals.answer_html import Thumbnail
from fvjax.search import Gallery
from fvjax.verify import Verifier

MAX_TOP = 20  # faces of a gallery
MAX_QUESTION = 2000  # characters
MAX_TOKENS = 256  # of an answer
SIDE = 160  # pixels of a thumbnail
FIRST, SECOND, ONLY = "first picture", "second picture", "picture"


class Found(NamedTuple):
    """The answer of a search.

    Attributes:
        result: JSON-ready {"candidates", "threshold", "far", "benchmark", "fpir", "faces", "people", "caution"}; a
            candidate is {"file", "identity", "score", "above_threshold"}; "fpir" is {"value", "ci95",
            "false_positives", "searches"}, or None.
        probe: the crop that was searched for.
        pictures: of the candidates, None where none is shown.
    """

    result: dict[str, Any]
    probe: Thumbnail
    pictures: list[Thumbnail | None]


class Answers:
    """Answers the questions of the page.

    Args:
        verifier: compares two faces, and has the threshold of a search.
        gallery: None: there is no search.
        chat: None: no questions.
    Raises:
        ValueError: the gallery's threshold cannot be measured.
    """

    def __init__(self, verifier: Verifier, gallery: Gallery | None = None, chat: ChatModel | None = None):
        self.verifier, self.gallery, self.chat = verifier, gallery, chat
        self._fpir = None if gallery is None else _false_positive_rate(gallery, verifier.threshold)

    def warm_up(self) -> None:
        """Compile what a comparison runs, so that the first answer is not kept waiting."""
        grey = np.full((images.SIZE, images.SIZE, 3), 128, np.uint8)
        self.verifier.compare(grey, grey)

    def compare(self, first: Path | None, second: Path | None, face: str = "centre") -> tuple[dict[str, Any], bytes]:
        """Compare two uploaded pictures: what :meth:`fvjax.verify.Verifier.compare` returns, and a PNG of both."""
        pictures = read_upload(first, FIRST), read_upload(second, SECOND)
        result = self.verifier.compare(*pictures, face=face)
        best = max(result["comparisons"], key=lambda each: each["score"])
        return result, pair_picture.draw(pictures, (best["a"], best["b"]), [""])

    def find(self, file: Path | None, top: int = 5, face: str = "centre") -> Found:
        """Search the gallery for the face of an uploaded picture; `face` is "centre" or "largest"."""
        if self.gallery is None:
            raise ValueError("no gallery was given: start with --gallery=FOLDER or a face store")
        if type(top) is not int or not 1 <= top <= MAX_TOP:
            raise ValueError(f"the number of faces to name is between 1 and {MAX_TOP}")
        if face == "all":
            raise ValueError("one face is searched for: choose the one at the centre or the largest")
        picture = read_upload(file, ONLY)
        crop = picture.faces.crops[picture.chosen(face)[0]]
        threshold = self.verifier.threshold
        candidates = self.gallery.candidates(crop, top)
        for each in candidates:
            each["above_threshold"] = None if threshold is None else each["score"] >= threshold
        measured_on = self.verifier.measured_on
        caution = None
        if self.verifier.drawings and not picture.is_crop:
            caution = f"{self.verifier.name} was trained on drawings of faces: its scores of photographs mean nothing"
        result = {
            "candidates": candidates,
            "threshold": threshold,
            "far": self.verifier.far,
            "benchmark": None if measured_on is None else measured_on["benchmark"],
            "fpir": self._fpir,
            "faces": len(self.gallery),
            "people": self.gallery.people,
            "caution": caution,
        }
        pictures = [_thumbnail(self.gallery.picture(each["file"])) for each in candidates]
        return Found(result, Thumbnail(_png(crop), "image/png"), pictures)

    def ask(self, file: Path | None, text: str) -> Iterator[str]:
        """Ask about an uploaded picture: yield the answer as far as it is known, longer each time."""
        if self.chat is None:
            raise ValueError("no model for questions was given: start with --chat=DIR")
        if not text.strip() or len(text) > MAX_QUESTION:
            raise ValueError(f"write a question of at most {MAX_QUESTION:,} characters")
        path = _uploaded(file, ONLY)
        with _naming(path, ONLY):
            picture = chat.read_picture(path)
        answer = ""
        for part in self.chat.stream([chat.question(text.strip(), 1)], [picture], max_tokens=MAX_TOKENS):
            answer += part
            yield answer


def read_upload(file: Path | None, title: str) -> Picture:
    """Read an uploaded picture and find its faces; it is named by `title` and the name of its file.

    Raises ValueError: none is chosen, it has been deleted, or whatever :func:`read_picture` raises.
    """
    path = _uploaded(file, title)
    with _naming(path, title):
        return dataclasses.replace(read_picture(path), name=_name(path, title))


def open_chat(path: Path) -> ChatModel:
    """Open the model that answers questions. Raises ValueError: no model, or one that does not hold conversations."""
    if not (path / "config.json").is_file():
        raise ValueError(f"--chat={path}: no config.json; give a checkpoint or the work directory of a run")
    model = api.load(path, scenario="chat")
    model.format.tile_counts([(1, 1)])  # raises for an unknown template, and without a tokenizer
    return model


@contextmanager
def _naming(path: Path, title: str) -> Iterator[None]:
    """Replace the path of an uploaded file in the text of a ValueError by what the user calls it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), _name(path, title))) from None


def _name(path: Path, title: str) -> str:
    return f"{title} ({names.plain(path.name)})"


def _uploaded(file: Path | None, title: str) -> Path:
    if file is None:
        raise ValueError(f"{title}: choose one first")
    if not file.is_file():
        raise ValueError(f"{_name(file, title)}: uploaded pictures are deleted after a while; choose it once more")
    return file


def _false_positive_rate(gallery: Gallery, threshold: float | None) -> dict[str, Any] | None:
    """Return how often a face of the gallery finds another person of it; None if nobody knows."""
    counts = None if threshold is None else gallery.false_positives(threshold)
    if counts is None:
        return None
    found, searches = counts
    interval = intervals.wilson(found, searches)
    return {"value": found / searches, "ci95": interval, "false_positives": found, "searches": searches}


def _thumbnail(pixels: NDArray | None) -> Thumbnail | None:
    """Reduce a picture uint8 [h, w, 3] to SIDE pixels a side at most."""
    if pixels is None:
        return None
    image, out = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(out, "JPEG", quality=90)
    return Thumbnail(out.getvalue(), "image/jpeg")


def _png(pixels: NDArray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(out, "PNG")
    return out.getvalue()
