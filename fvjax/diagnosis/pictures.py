"""What the pictures of a set look like: values, colours, and where the faces are.

What is expected was measured on sound crops of LFW and CFP (reference.json, see `benchmarks/doctor_reference.py`).
"""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvjax.data import images
from fvjax.data.alignment.geometry import TEMPLATE
from fvjax.diagnosis import mean_face
from fvjax.diagnosis.findings import Check, Finding

REFERENCE = Path(__file__).with_name("reference.json")
FACE = slice(40, 92), slice(30, 82)  # rows and columns of a crop that are nearly always skin
PERMUTATIONS = list(itertools.permutations(range(3)))
GREY = 2.0  # levels between the channels, below which a picture is grey
FEW = 30  # pictures: fewer have no mean face
PHOTOGRAPHS = "align them: python -m fvjax.data.prepare folder|lfw|cfp --align (or --landmarks=FILE)"
# Limits, between what sound crops and what spoiled ones of LFW and CFP measure (docs/doctor.md)
LEAST_MATCH = 0.7  # of the mean face with the reference
LARGEST_SHIFT = 3.5  # pixels
LARGEST_SCALE = 1.08  # larger or smaller than the template's face
LARGEST_ASPECT = 1.1
LARGEST_SCATTER = 3.5  # pixels, median over pictures
LEAST_SHARPNESS = 0.7  # of the mean face, as a multiple of the reference's


@functools.cache
def reference() -> dict[str, Any]:
    """Return the stored figures: "parts" of the face, and what was "measured" on each set of sound crops."""
    return json.loads(REFERENCE.read_text(encoding="utf-8"))


def figures(faces: NDArray, parts: NDArray | None = None) -> dict[str, Any]:
    """Compute what all checks of this module look at, for uint8 [n, 112, 112, 3]; JSON-ready."""
    parts = np.array(reference()["parts"]) if parts is None else parts
    return {**value_figures(faces), **colour_figures(faces), **place_figures(faces, parts)}


def value_figures(faces: NDArray) -> dict[str, Any]:
    """Return brightness, contrast, the share of pixels at the ends of the range and the share of blank pictures."""
    ends = (faces < 3) | (faces > 252)
    spread = faces.reshape(len(faces), -1).std(1)
    return {
        "pictures": len(faces),
        "mean": round(float(faces.mean()), 1),
        "std": round(float(np.median(spread)), 1),
        "at_ends": round(float(np.median(ends.mean((1, 2, 3)))), 3),
        "blank": round(float((spread < 4).mean()), 3),
    }


def check_values(faces: NDArray) -> Check:
    """Check that pictures have the contrast of photographs, and are not normalised values stored as bytes."""
    values = value_figures(faces)
    evidence = f"mean {values['mean']:.0f}, contrast {values['std']:.0f}, at 0 or 255 {values['at_ends']:.0%}"
    found = []
    remedy = "store pixels from 0 to 255, as decoded; the model normalises them itself"
    if values["mean"] < 4 or values["at_ends"] > 0.6:
        problem = "the pictures hold no usual pixel values: it looks as if normalised ones were stored as bytes"
        found.append(
            Finding("normalised-pixels", problem, f"{evidence}; expected 80 to 150, above 30, under 30%", remedy)
        )
    elif values["blank"] > 0.02:
        problem = f"{values['blank']:.1%} of the pictures are blank"
        found.append(Finding("blank-pictures", problem, f"contrast below 4 levels; {evidence}", "leave them out"))
    return Check("values", evidence, tuple(found), values)


def colour_figures(faces: NDArray) -> dict[str, Any]:
    """Return the mean colour of the faces' middle, the share of grey pictures, and how often channels fall in which
    order, among pictures with colours."""
    means = faces[:, FACE[0], FACE[1]].reshape(len(faces), -1, 3).astype(np.float64)
    apart = np.abs(means[..., 0] - means[..., 2]).mean(1) + np.abs(means[..., 0] - means[..., 1]).mean(1)
    grey = apart < GREY
    means = means.mean(1)
    order = np.argsort(-means[~grey], axis=1, kind="stable")
    shares = {
        "".join("RGB"[i] for i in chosen): float((order == chosen).all(1).mean()) if len(order) else 0.0
        for chosen in PERMUTATIONS
    }
    return {
        "colour": means.mean(0).round(1).tolist(),
        "grey": round(float(grey.mean()), 3),
        "channel_orders": {name: round(share, 3) for name, share in shares.items()},
    }


def check_colours(faces: NDArray) -> Check:
    """Check the order of the channels: skin has more red than green and more green than blue."""
    values = colour_figures(faces)
    shares = values["channel_orders"]
    most = max(shares, key=lambda name: shares[name])
    red, green, blue = values["colour"]
    measured = f"mean colour of faces ({red:.0f}, {green:.0f}, {blue:.0f}), grey {values['grey']:.0%}"
    evidence = f"R > G > B in {shares['RGB']:.0%} of the pictures with colours; {measured}"
    expected = f"{evidence}; expected {_expected_share('RGB')}"
    swap = "swap the channels where the data was written (OpenCV reads and writes B, G, R), or prepare it again"
    found = []
    if values["grey"] > 0.5:
        problem = f"{values['grey']:.0%} of the pictures are grey, and models were trained on colours"
        remedy = "find the step that drops colours (convert('L'), IMREAD_GRAYSCALE) and leave it out"
        found.append(Finding("grey-pictures", problem, expected, remedy))
    elif most != "RGB" and shares[most] > 0.5:
        stored = ", ".join(_stored_order(most))
        problem = f"the channels are stored as {stored}, and R, G, B is expected"
        evidence_here = f"{expected}; {most[0]} > {most[1]} > {most[2]} in {shares[most]:.0%}"
        found.append(Finding("channel-order", problem, evidence_here, swap))
    elif shares["RGB"] < 0.7:
        problem = "a part of the pictures has its channels in another order"
        found.append(Finding("channel-order-mixed", problem, expected, swap))
    return Check("colours", evidence, tuple(found), values)


def _stored_order(most: str) -> str:
    """Return which colours the channels hold, if channel most[0] is the largest and so on."""
    holds = {channel: colour for channel, colour in zip(most, "RGB")}
    return "".join(holds[channel] for channel in "RGB")


def _expected_share(order: str) -> str:
    shares = [measured["channel_orders"][order] for measured in reference()["measured"].values()]
    return f"{min(shares):.0%} or more"


def place_figures(faces: NDArray, parts: NDArray) -> dict[str, Any]:
    """Return where the mean face is, and how far the single faces are from there."""
    maps = mean_face.contrast(faces)
    place = mean_face.find(maps.mean(0), parts)
    maps = mean_face.turned(maps, place.turn)
    away = []
    for start in range(0, len(maps), mean_face.CHUNK):
        values = mean_face.correlate(maps[start : start + mean_face.CHUNK], parts, place.scale)
        shifts = np.array([mean_face.shift_of(one) for one in values])
        away.append(np.hypot(*(shifts - place.shift).T))
    return {
        "turn": place.turn,
        "match": round(place.match, 3),
        "scale": [round(x, 3) for x in place.scale],
        "shift": [round(x, 1) for x in place.shift],
        "points": place.points().round(1).tolist(),
        "scatter": round(float(np.median(np.concatenate(away))), 2),
        "sharpness": round(mean_face.sharpness(maps.mean(0), parts, place), 3),
    }


def check_places(faces: NDArray) -> Check:
    """Check that the faces are upright, aligned with each other, and where insightface's template has them."""
    if len(faces) < FEW:
        return Check("alignment", f"{len(faces)} pictures are too few for a mean face", skipped=True)
    values = place_figures(faces, np.array(reference()["parts"]))
    (left, right, *_), match = values["points"], values["match"]
    eyes = f"eyes at ({left[0]:.0f}, {left[1]:.0f}) and ({right[0]:.0f}, {right[1]:.0f})"
    wanted = "({:.0f}, {:.0f}) and ({:.0f}, {:.0f})".format(*TEMPLATE[:2].ravel())
    spread = f"faces {values['scatter']:.1f} px from there (median), sharpness {values['sharpness']:.2f}"
    evidence = f"mean face: match {match:.2f}, {eyes}; {spread}"
    return Check("alignment", evidence, tuple(_place_findings(values, evidence, wanted)), values)


def _place_findings(values: dict[str, Any], evidence: str, wanted: str) -> list[Finding]:
    size, aspect = float(np.prod(values["scale"]) ** 0.5), values["scale"][0] / values["scale"][1]
    scattered = values["scatter"] > LARGEST_SCATTER or values["sharpness"] < LEAST_SHARPNESS
    if values["match"] < LEAST_MATCH:
        problem = "the pictures have no face in common: they are not aligned with each other, or no faces"
        limit = f"{evidence}; expected a match of {LEAST_MATCH} or more"
        return [Finding("unaligned", problem, limit, PHOTOGRAPHS)]
    found = []
    if values["turn"] != "upright":
        problem = f"the faces are {values['turn']}"
        remedy = "turn the pictures (a reader that ignores EXIF, or rows stored from the bottom up)"
        found.append(Finding("orientation", problem, evidence, remedy))
    if scattered:
        limit = f"{evidence}; expected under {LARGEST_SCATTER} px and a sharpness above {LEAST_SHARPNESS}"
        problem = "the faces are not aligned with each other (boxes of a detector without points, or most in profile)"
        found.append(Finding("unaligned", problem, limit, PHOTOGRAPHS))
    tilted = max(aspect, 1 / aspect) > LARGEST_ASPECT
    if np.hypot(*values["shift"]) > LARGEST_SHIFT or max(size, 1 / size) > LARGEST_SCALE or tilted:
        problem = f"the crops follow another template: faces are {size:.2f} of its size, {_direction(values['shift'])}"
        problem += f", {aspect:.2f} times as wide for their height" if tilted else ""
        remedy = (
            "crop with insightface's points for 112x112 (fvjax.data.alignment.geometry.TEMPLATE), or " + PHOTOGRAPHS
        )
        found.append(Finding("template", problem, f"{evidence}; expected {wanted}", remedy))
    return found


def _direction(shift: list[float]) -> str:
    across, down = shift
    side, height = "right" if across > 0 else "left", "down" if down > 0 else "up"
    return f"{abs(across):.0f} px {side} and {abs(down):.0f} px {height}"


def check_sizes(sizes: dict[tuple[int, int], int]) -> Check:
    """Check that the pictures are crops of 112x112 pixels."""
    total, right = sum(sizes.values()), sizes.get(images.FACE_SIZE, 0)
    (height, width), count = max(sizes.items(), key=lambda entry: entry[1])
    evidence = f"{right} of {total} pictures are {images.SIZE}x{images.SIZE}"
    found = []
    if right < total:
        most = f"; most are {width}x{height} ({count})" if (height, width) != images.FACE_SIZE else ""
        problem = "pictures are no crops of the model's size, and were resized for the other checks"
        found.append(Finding("size", problem, evidence + most, PHOTOGRAPHS))
    return Check("sizes", evidence, tuple(found), {f"{w}x{h}": n for (h, w), n in sizes.items()})
