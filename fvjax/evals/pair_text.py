"""Describe the comparison of two pictures in a few lines for people.

The functions take the result of :meth:`fvjax.verify.Verifier.compare`.
"""

from __future__ import annotations

from typing import Any

from fvjax.data.alignment.faces import CHOICES

FEW = 10  # impostor scores: a rate that rests on fewer may well be wrong by a factor of two
SMALL = 2.5  # a face that its crop enlarges more is small: less than about 35 pixels wide
SHOWN = 20  # comparisons of several faces


def text(result: dict[str, Any]) -> str:
    """Describe a result in a few lines for people."""
    lines = [f"caution: {result['caution']}"] if result["caution"] else []
    lines += [*_verdict_lines(result), *_picture_lines(result), *_comparison_lines(result), *result["notes"]]
    return "\n".join(lines)


def caption(result: dict[str, Any]) -> list[str]:
    """Return the lines for a drawing of the pictures: the verdict first, then what must not be missed beside it."""
    heading, *origin = _verdict_lines(result)
    caution = [f"caution: {result['caution']}"] if result["caution"] else []
    return [heading, *caution, *_comparison_lines(result)[:1], *origin]


def verdict(result: dict[str, Any]) -> str | None:
    """Return what a result says of the two pictures; None without a threshold."""
    if result["threshold"] is None:
        return None
    return {True: "same person", False: "different persons", None: "cannot tell"}[result["same"]]


def small_face_lines(result: dict[str, Any]) -> list[str]:
    """Name the chosen faces that are too small for their scores to mean much."""
    named = zip(result["images"], result["pictures"])
    return [line for name, picture in named for line in _small_faces(name, picture)]


def _verdict_lines(result: dict[str, Any]) -> list[str]:
    """Describe the score, the threshold, its FAR and where that was measured."""
    threshold, measured_on = result["threshold"], result["measured_on"]
    if threshold is None:
        return [
            f"score {result['score']:.4f} ({result['measure']})",
            f"no threshold is known for {result['model']}, so no verdict: give --threshold=X, or as --model the "
            "workdir of a run whose results.json has a benchmark (fvjax evaluate makes one of an ONNX file)",
        ]
    if measured_on is None:
        return [_first_line(result), "FAR of this threshold: not known"]
    above, others = measured_on["impostors_above_per_fold"], measured_on["n_impostor_per_fold"]
    far, name = result["far"], measured_on["benchmark"]
    lines = [
        _first_line(result),
        f"measured on {name}: {measured_on['n_impostor']:,} impostor pairs, data {measured_on['data_hash'][:8]}, "
        f"model at step {measured_on['step']}" + (f", evaluated {date}" if (date := measured_on["evaluated"]) else ""),
    ]
    if not above:
        lines.append(f"too few for FAR {far:g}: the threshold lies just above all of some {others:,} impostor scores")
    else:
        few = ": few, so take the FAR as a rough one" if above < FEW else ""
        lines.append(f"the threshold rests on the {above} highest of some {others:,} impostor scores{few}")
    low, high = result["far_ci95"]
    lines.append(f"95% interval of its FAR: {low:.2g} to {high:.2g} (Wilson's, of {above} in {others:,})")
    lines += _lower_lines(result)
    seen = measured_on["identities_seen_in_training"]
    if seen is None:
        unknown = "is not known: another naming, or no model of fvjax"
        lines.append(f"whether training saw identities of {name} {unknown}")
    elif seen:
        lines.append(f"training saw {seen} of its identities: expect more false accepts among strangers")
    return lines


def _first_line(result: dict[str, Any]) -> str:
    """Say the verdict, and how the score lies to the threshold that decides."""
    score, threshold, lower = result["score"], result["threshold"], result.get("lower")
    said = f"{verdict(result)}: score {score:.4f} ({result['measure']})"
    for_far = "" if result["measured_on"] is None else f", for FAR {result['far']:g}"
    if result["same"]:
        return f"{said} >= threshold {threshold:.4f}{for_far}"
    if lower and result["same"] is None:
        ends = f"{lower['threshold']:.4f} (FNMR {lower['fnmr']:g}) and {threshold:.4f} (FAR {result['far']:g})"
        return f"{said} lies between {ends}"
    if lower and lower["has_range"]:
        return f"{said} < threshold {lower['threshold']:.4f}, for FNMR {lower['fnmr']:g}"
    return f"{said} < threshold {threshold:.4f}{for_far}"


def _lower_lines(result: dict[str, Any]) -> list[str]:
    """Describe the range in which the model cannot tell, if one was asked for."""
    lower = result.get("lower")
    if lower is None:
        return []
    below, others = lower["genuine_below_per_fold"], lower["n_genuine_per_fold"]
    low, high = lower["fnmr_ci95"]
    rate = f"{lower['threshold']:.4f} for FNMR {lower['fnmr']:g}"
    upper = f"{result['threshold']:.4f} for FAR {result['far']:g}"
    ends = f"cannot tell from {rate} up to {upper}"
    if not lower["has_range"]:
        ends = f"no scores are in doubt: the threshold {rate} is not below that of {upper}"
    return [
        f"{ends}; {below} of some {others:,} genuine scores lie below {lower['threshold']:.4f}",
        f"95% interval of its FNMR: {low:.2g} to {high:.2g} (Wilson's, of {below} in {others:,})",
    ]


def _picture_lines(result: dict[str, Any]) -> list[str]:
    """Say how the faces of each picture were found; nothing if both pictures are crops."""
    lines: list[str] = []
    if all(picture["is_crop"] for picture in result["pictures"]):
        return lines
    for name, picture in zip(result["images"], result["pictures"]):
        size, count, chosen = "x".join(map(str, picture["size"])), picture["faces"], picture["chosen"]
        if picture["is_crop"]:
            lines.append(f"{name}: {size} pixels, taken as an aligned crop")
            continue
        line = f"{name}: {count} face{'s' if count > 1 else ''} in {size} pixels"
        if result["face"] == "all" and count > 1:
            line += ", all compared"
        else:
            taken = {"centre": "; took the one nearest the centre", "largest": "; took the largest", "all": ""}
            others = f" (--face={'|'.join(c for c in CHOICES if c != result['face'])} for others)"
            left, top, right, bottom = chosen[0]["box"]
            line += taken[result["face"]] if count > 1 else ""
            line += f", {right - left:.0f}x{bottom - top:.0f} pixels, detected with {chosen[0]['score']:.2f}"
            line += others if count > 1 else ""
        lines += [line, *_small_faces(name, picture)]
    return lines


def _small_faces(name: str, picture: dict[str, Any]) -> list[str]:
    return [
        f"{name}: face {face['number'] + 1} is small, enlarged {face['enlargement']:.1f} times: expect little of its "
        "score"
        for face in picture["chosen"]
        if not picture["is_crop"] and face["enlargement"] > SMALL
    ]


def _comparison_lines(result: dict[str, Any]) -> list[str]:
    """List the scores of several faces, the highest first."""
    comparisons = sorted(result["comparisons"], key=lambda each: -each["score"])
    if len(comparisons) == 1:
        return []
    lines = [
        f"that is the highest of {len(comparisons)} scores, and so many comparisons accept a stranger more often than "
        "one; faces are numbered from the centre"
    ]
    lines += [f"  face {each['a'] + 1} and face {each['b'] + 1}: {each['score']:.4f}" for each in comparisons[:SHOWN]]
    if len(comparisons) > SHOWN:
        lines.append(f"  and {len(comparisons) - SHOWN} lower ones (--json has all)")
    return lines
