"""All checks of a set of faces, and of a model on it, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fvjax.data.stores import Pairs
from fvjax.diagnosis import labels, pictures, protocols, scores
from fvjax.diagnosis.face_sets import FaceSet
from fvjax.diagnosis.findings import Check

SAMPLE = 500  # pictures that are looked at
MODEL_PAIRS = 300
UNLIKE_FACES = {"normalised-pixels", "unaligned"}  # findings after which pictures of one person need not look alike
DRAWN = "identities"  # the name of pairs that are drawn because the set has no benchmark


@dataclass(frozen=True)
class Subject:
    """A model that is examined.

    Attributes:
        score: scores pairs of pictures, see :data:`fvjax.diagnosis.scores.Score`.
        threshold: same person from this score on; None if there is none to check. origin: who says so.
    """

    score: scores.Score
    threshold: float | None = None
    origin: str = "given"


def examine(
    faces: FaceSet,
    subject: Subject | None = None,
    *,
    benchmark: str | None = None,
    sample: int = SAMPLE,
    model_pairs: int = MODEL_PAIRS,
) -> Iterator[Check]:
    """Make all checks that the data allows, and yield each when it is done.

    Args:
        benchmark: of the set's benchmarks, the one on which the model is examined; None: the first.
        sample: number of pictures that are looked at. model_pairs: number of pairs that the model scores.
    Raises:
        ValueError: no such benchmark, a picture that cannot be read, or a model without labelled pairs to score.
    """
    if benchmark is not None and benchmark not in faces.protocols:
        there = ", ".join(faces.protocols) or "none"
        raise ValueError(f"--benchmark={benchmark}: {faces.path} has {there}")
    drawn = labels.draw_pairs(faces.labels) if faces.labels is not None and not faces.protocols else None
    pairs = {DRAWN: drawn} if drawn is not None else faces.protocols
    if subject is not None and not pairs:
        raise ValueError(f"{faces.path} has no labelled pairs: a model is examined on a benchmark or on identities")
    spoiled: set[str] = set()
    for check in _examine_pictures(faces, sample):
        spoiled |= UNLIKE_FACES & {finding.name for finding in check.findings}
        yield check
    yield labels.check_names(faces)
    if spoiled:
        yield Check("labels by appearance", f"such pictures cannot be compared ({', '.join(spoiled)})", skipped=True)
    else:
        yield labels.check_order(faces)
        for name, its in pairs.items():
            yield labels.check_pairs(faces, name, its)
    for name, its in faces.protocols.items():
        yield protocols.check_folds(name, its)
    if subject is not None:
        name = benchmark or next(iter(pairs))
        yield from _examine_model(faces, subject, name, pairs[name], model_pairs)


def _examine_pictures(faces: FaceSet, sample: int) -> Iterator[Check]:
    looked_at = faces.faces(faces.sample(sample))
    yield pictures.check_sizes(faces.sizes)
    values = pictures.check_values(looked_at)
    yield values
    if any(finding.name == "normalised-pixels" for finding in values.findings):
        return  # neither colours nor faces can be seen
    yield pictures.check_colours(looked_at)
    if faces.drawings:
        yield Check("alignment", "procedural drawings follow no template", skipped=True)
    else:
        yield pictures.check_places(looked_at)


def _examine_model(faces: FaceSet, subject: Subject, name: str, pairs: Pairs, count: int) -> Iterator[Check]:
    check, plain, rows = scores.check_model(faces, name, pairs, subject.score, count)
    yield check
    if subject.threshold is None or not len(plain):
        return
    some = labels.select(pairs, rows)
    try:
        yield scores.check_threshold(name, plain, some, subject.threshold, subject.origin)
    except ValueError as error:  # folds of one kind cannot be evaluated; check_folds has said so
        yield Check(f"threshold on {name}", str(error), skipped=True)
