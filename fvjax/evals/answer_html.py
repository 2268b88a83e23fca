"""Write answers about faces as HTML for the page of `python -m fvjax.demo`. Every text from outside is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from fvjax.evals.pair_text import caption, small_face_lines

NO_VERDICT = "no verdict"
EXPLANATION = (
    "The false accept rate (FAR) is the share of pairs of different people that reach the threshold. It holds for "
    "pictures like those of the benchmark."
)


class Thumbnail(NamedTuple):
    """An encoded picture."""

    data: bytes
    media_type: str  # image/png or image/jpeg


def pair_html(result: dict[str, Any], drawing: bytes) -> str:
    """Describe a comparison: the verdict, what it rests on, and both pictures.

    Args:
        result: of :meth:`fvjax.verify.Verifier.compare`.
        drawing: a PNG of both pictures, of :func:`fvjax.evals.pair_picture.draw`.
    """
    first, *rest = caption(result | {"caution": None})
    verdict, score = (NO_VERDICT, first) if result["same"] is None else first.split(": ", 1)
    kind = "unknown" if result["caution"] else {None: "unknown", True: "same", False: "different"}[result["same"]]
    lines = [score, *rest, *small_face_lines(result), *result["notes"]]
    explanation = "" if result["far"] is None else f"<p class='quiet'>{escape(EXPLANATION)}</p>"
    shown = _image(Thumbnail(drawing, "image/png"), f"both pictures with their faces; {first}")
    heading = f"<h2 class='{kind}'>{escape(verdict.capitalize())}</h2>"
    return f"{_caution(result['caution'])}{heading}{_list(lines)}{explanation}{shown}"


def search_html(result: dict[str, Any], probe: Thumbnail, pictures: Sequence[Thumbnail | None]) -> str:
    """Describe a search.

    Args:
        result: of :meth:`fvjax.demo_answers.Answers.find`.
        probe: the face that was searched for.
        pictures: of the candidates, in their order; None where none is shown.
    """
    candidates, threshold = result["candidates"], result["threshold"]
    best = candidates[0]
    if threshold is None:
        kind, heading = "unknown", f"Most similar: {_who(best)}"
    elif best["score"] >= threshold:
        kind, heading = "same", f"Most similar: {_who(best)}, who reaches the threshold"
    else:
        kind, heading = "different", "Nobody of the gallery reaches the threshold"
    kind = "unknown" if result["caution"] else kind
    rows = [_row(number, each, picture) for number, (each, picture) in enumerate(zip(candidates, pictures), 1)]
    head = "<tr><th></th><th></th><th>who</th><th>picture</th><th>score</th><th></th></tr>"
    face = f"<figure>{_image(probe, 'the face that was searched for')}<figcaption>searched for</figcaption></figure>"
    return (
        f"{_caution(result['caution'])}<h2 class='{kind}'>{escape(heading)}</h2>"
        f"<div class='search'>{face}<table>{head}{''.join(rows)}</table></div>{_list(_search_lines(result))}"
    )


def answer_html(text: str) -> str:
    """Show what a model says."""
    return f"<p class='said'>{escape(text)}</p>"


def error_html(text: str) -> str:
    """Show what is wrong in one line."""
    return f"<p class='problem' role='alert'>{escape(' '.join(text.split()))}</p>"


def _search_lines(result: dict[str, Any]) -> list[str]:
    """Say what the threshold means among so many faces."""
    lines = [f"compared with {result['faces']:,} faces of the gallery" + _people(result["people"])]
    if result["threshold"] is None:
        return [*lines, "no threshold is known for this model, so the most similar face need not be the right one"]
    origin = "given by --threshold"
    if result["far"] is not None:
        origin = f"for FAR {result['far']:g} of a single comparison, measured on {result['benchmark']}"
    lines.append(f"threshold {result['threshold']:.4f}: {origin}")
    figure = result["fpir"]
    if figure is None:
        why = "nobody says who is who" if result["people"] is None else "one person alone has no strangers"
        return [*lines, f"how often a stranger reaches it in this gallery (FPIR) is not known: {why}"]
    low, high = figure["ci95"]
    return [
        *lines,
        f"false positive identification rate (FPIR) in this gallery: {figure['value']:.1%}, 95% interval {low:.1%} to "
        f"{high:.1%}: {figure['false_positives']:,} of {figure['searches']:,} faces of the gallery, searched for among "
        "the other people, reach it",
    ]


def _caution(text: str | None) -> str:
    return f"<p class='caution' role='alert'>caution: {escape(text)}</p>" if text else ""


def _people(count: int | None) -> str:
    return "" if count is None else f" of {count:,} people"


def _who(candidate: dict[str, Any]) -> str:
    return candidate["identity"] or candidate["file"]


def _row(number: int, candidate: dict[str, Any], picture: Thumbnail | None) -> str:
    reached = {None: "", True: "reaches the threshold", False: "below the threshold"}[candidate["above_threshold"]]
    shown = "" if picture is None else _image(picture, candidate["file"])
    cells = (
        shown,
        *map(escape, (candidate["identity"] or "", candidate["file"], f"{candidate['score']:.4f}", reached)),
    )
    return f"<tr><td>{number}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _image(picture: Thumbnail, description: str) -> str:
    data = base64.b64encode(picture.data).decode()
    return f"<img alt='{escape(description)}' src='data:{picture.media_type};base64,{data}'>"
