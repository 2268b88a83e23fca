"""Whether labels belong to the pictures: by the names of files, and by how alike the pictures are.

Alike is judged with histograms of oriented gradients (Dalal & Triggs, CVPR 2005), which need no training: they tell
genuine from impostor pairs with an AUC of 0.80 on LFW, 0.86 on CFP's frontal and 0.68 on its frontal to profile pairs.
That is useless for recognition, and enough to tell whether labels are right, inverted or of other pictures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fvjax.data import images
from fvjax.data.stores import Pairs
from fvjax.diagnosis.face_sets import FaceSet
from fvjax.diagnosis.findings import Check, Finding
from fvjax.diagnosis.mean_face import CHUNK, LUMA
from fvjax.evals import folds

DIRECTIONS, CELL = 8, 4  # of the histograms; cells of 4x4 values, of 2x2 pixels each
PAIRS = 800  # that are compared
SURE = 3.0  # standard errors of a share or an AUC
GROUPS = 200  # neighbouring identities
OTHERS = 5  # further pictures of an identity
LEAST = 20  # groups or pairs: fewer say nothing
AGAIN = "prepare the set again from its original files"


def describe(faces: NDArray) -> NDArray:
    """Describe uint8 [n, 112, 112, 3] by histograms of gradients: float32 [n, D], without the mean and of length 1."""
    parts = [_histograms(faces[start : start + CHUNK]) for start in range(0, len(faces), CHUNK)]
    found = np.concatenate(parts)
    found = found - found.mean(0)
    return found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-6)


def _histograms(faces: NDArray) -> NDArray:
    half, cells = images.SIZE // 2, images.SIZE // 2 // CELL
    grey = (faces @ LUMA).reshape(len(faces), half, 2, half, 2).mean((2, 4))
    down, right = np.gradient(grey, axis=(1, 2))
    strength, angle = np.hypot(right, down), np.arctan2(down, right) % np.pi * (DIRECTIONS / np.pi)
    layers = []
    for direction in range(DIRECTIONS):
        away = np.abs(angle - direction)
        near = np.maximum(0, 1 - np.minimum(away, DIRECTIONS - away))
        layers.append((strength * near).reshape(len(faces), cells, CELL, cells, CELL).sum((2, 4)))
    histogram = np.stack(layers, -1)
    histogram = histogram / np.sqrt((histogram**2).sum(-1, keepdims=True) + 100)
    return np.sqrt(histogram[:, 1:-1, 1:-1].reshape(len(faces), -1)).astype(np.float32)  # without the margin


def auc(scores: NDArray, same: NDArray) -> tuple[float, float]:
    """Return the AUC of scores [M] for bool [M], and its standard error (Hanley & McNeil, Radiology 143(1), 1982)."""
    area = float(folds.auc(*folds.roc(scores, same)))
    genuine, impostor = int(same.sum()), int((~same).sum())
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (genuine - 1) * (q1 - area**2) + (impostor - 1) * (q2 - area**2)
    return area, float(np.sqrt(max(variance, 1e-12) / (genuine * impostor)))


def choose_pairs(pairs: Pairs, count: int) -> NDArray:
    """Return the rows of at most ``count`` pairs, half of them genuine, spread evenly over the list."""
    kinds = [np.flatnonzero(kind) for kind in (pairs.same, ~pairs.same)]
    chosen = [rows[np.linspace(0, len(rows) - 1, min(count // 2, len(rows))).astype(int)] for rows in kinds]
    return np.unique(np.concatenate(chosen))


def select(pairs: Pairs, rows: NDArray) -> Pairs:
    """Return some rows of a protocol; folds of which nothing is left are closed up."""
    _, fold = np.unique(pairs.fold[rows], return_inverse=True)
    ends = pairs.a[rows], pairs.b[rows], pairs.same[rows]
    return Pairs(*ends, fold.astype(np.int64), pairs.identity_a[rows], pairs.identity_b[rows])


def draw_pairs(labels: NDArray) -> Pairs | None:
    """Draw a genuine pair, and an impostor pair with the next identity, of at most PAIRS / 2 identities, in ten folds.

    Return None if fewer than ten identities have two pictures.
    """
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    groups = [group for group in groups if len(group) > 1]
    if len(groups) < 10:
        return None
    groups = [groups[i] for i in np.unique(np.linspace(0, len(groups) - 1, min(PAIRS // 2, len(groups))).astype(int))]
    middles = np.array([group[len(group) // 2] for group in groups])
    firsts, nexts = np.array([group[0] for group in groups]), np.roll(middles, -1)
    a, b = np.stack([firsts, firsts], 1).ravel(), np.stack([middles, nexts], 1).ravel()
    fold = np.repeat(np.arange(10), [len(part) for part in np.array_split(middles, 10)]).repeat(2)
    return Pairs(a, b, labels[a] == labels[b], fold, labels[a], labels[b])


def check_names(faces: FaceSet) -> Check:
    """Check that pictures whose files lie in a folder with an identity's name are labelled with that identity."""
    known = set(faces.names)
    if faces.labels is None or faces.sources is None:
        return Check("names", "there are no labels, or no files' names", skipped=True)
    folders = [source.replace("\\", "/").split("/")[0] if "/" in source else "" for source in faces.sources]
    named = [i for i, folder in enumerate(folders) if folder in known]
    if not named:
        return Check("names", "files do not lie in folders that are named like identities", skipped=True)
    wrong = [i for i in named if folders[i] != faces.names[faces.labels[i]]]
    evidence = f"{len(named) - len(wrong)} of {len(named)} pictures have the label of their folder"
    found = []
    if wrong:
        first = wrong[0]
        example = f"{faces.sources[first]} is labelled {faces.names[faces.labels[first]]!r}"
        problem = f"{len(wrong)} pictures are labelled with another identity than their file's folder"
        remedy = f"labels have moved against the pictures, often by one record: {AGAIN}"
        found.append(Finding("labels-not-of-files", problem, f"{evidence}; for example {example}", remedy))
    return Check("names", evidence, tuple(found), {"named": len(named), "wrong": len(wrong)})


def check_order(faces: FaceSet) -> Check:
    """Check that the first and last picture of each identity look like its others, and not like the neighbour's.

    Labels that have moved by one record are wrong at one end of every identity, and right everywhere else.
    """
    groups = _groups(faces.labels)
    if len(groups) < LEAST:
        return Check("order of labels", "fewer than 20 neighbouring identities with 3 pictures", skipped=True)
    first, last = _nearer_to_neighbour(faces, groups)
    shares, count = {"first": float(first.mean()), "last": float(last.mean())}, len(first)
    evidence = f"nearer to the neighbour: {shares['first']:.0%} of first and {shares['last']:.0%} of last pictures"
    found = []
    end = max(shares, key=lambda name: shares[name])
    if shares[end] > 0.5 + SURE * 0.5 / count**0.5:
        other = {"first": "before", "last": "after"}[end]
        problem = f"the {end} picture of most identities looks like the identity {other} it: labels moved by one record"
        limit = f"{evidence} of {count} identities; expected under 50%"
        found.append(
            Finding("labels-shifted", problem, limit, f"{AGAIN}; count labels and pictures from the same start")
        )
    return Check("order of labels", evidence, tuple(found), shares)


def _groups(labels: NDArray | None) -> list[NDArray]:
    """Return the record numbers of identities that stand together with at least 3 pictures, at most GROUPS of them.

    They are neighbours in the set; an empty list if an identity's pictures do not stand together.
    """
    if labels is None or not len(labels):
        return []
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    if len(starts) != len(np.unique(labels)):
        return []
    groups = np.split(np.arange(len(labels)), starts[1:])
    longest, run = [], []
    for group in groups:
        run = [*run, group] if len(group) >= 3 else []
        longest = run if len(run) > len(longest) else longest
        if len(longest) == GROUPS:
            break
    return longest


def _nearer_to_neighbour(faces: FaceSet, groups: list[NDArray]) -> tuple[NDArray, NDArray]:
    """Return two bool arrays: whether each first picture is nearer to the group before, each last one to the next.

    Near is the mean cosine with at most OTHERS pictures; the pictures at the ends of both groups are left out.
    """
    middles = [group[1:-1][np.linspace(0, len(group) - 3, min(OTHERS, len(group) - 2)).astype(int)] for group in groups]
    firsts, lasts = (np.array([group[end] for group in groups]) for end in (0, -1))
    described = describe(faces.faces(np.concatenate([firsts, lasts, *middles])))
    first, last, others = np.split(described, [len(groups), 2 * len(groups)])
    parts = np.split(others, np.cumsum([len(middle) for middle in middles])[:-1])
    means = np.stack([part.mean(0) for part in parts])

    def alike(pictures: NDArray, means: NDArray) -> NDArray:
        return (pictures * means).sum(1)

    return (
        alike(first[1:], means[:-1]) > alike(first[1:], means[1:]),
        alike(last[:-1], means[1:]) > alike(last[:-1], means[:-1]),
    )


def check_pairs(faces: FaceSet, name: str, pairs: Pairs) -> Check:
    """Check that genuine pairs look more alike than impostor pairs."""
    title = f"labels of {name}"
    rows = choose_pairs(pairs, PAIRS)
    same = pairs.same[rows]
    if min(same.sum(), (~same).sum()) < LEAST:
        return Check(title, "fewer than 20 genuine or impostor pairs", skipped=True)
    ids, index = np.unique(np.stack([pairs.a[rows], pairs.b[rows]]), return_inverse=True)
    described, (a, b) = describe(faces.faces(ids)), index.reshape(2, -1)
    area, error = auc((described[a] * described[b]).sum(1), same)
    evidence = f"genuine pairs look more alike than impostor pairs: AUC {area:.2f} ± {error:.2f} without a model"
    found = []
    expected = f"{evidence}; expected {0.5 + SURE * error:.2f} or more"
    if area < 0.5 - SURE * error:
        problem = "genuine and impostor are exchanged: pairs labelled different look more alike"
        found.append(Finding("labels-inverted", problem, expected, "invert the labels: true means one person"))
    elif area < 0.5 + SURE * error:
        problem = "the labels have nothing to do with the pictures: genuine pairs look no more alike"
        remedy = f"pictures and labels are in different orders: {AGAIN}, without shuffling one of them"
        found.append(Finding("labels-unrelated", problem, expected, remedy))
    return Check(title, evidence, tuple(found), {"auc": area, "standard_error": error})
