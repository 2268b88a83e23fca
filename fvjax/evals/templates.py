"""Template protocols of IJB-B and IJB-C: pictures pooled to templates, which are compared 1:1 and searched 1:N.

Source: insightface's recognition/_evaluation_/ijb (ijb_11.py): a medium is the mean of its pictures' embeddings, a
template the sum of its media, brought to length 1. Embeddings are not normalised before that, so that a picture counts
by its norm ("N1" there), and with detector scores it counts by these too ("D1").
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from fvjax.evals import identification, intervals
from fvjax.evals.identification import Outcomes

FARS = {f"1e-{n}": 10.0**-n for n in range(1, 7)}
FPIRS = (0.01, 0.1)
CHUNK = 1 << 22  # numbers that are computed at a time


def pool(
    embeddings: NDArray, template: ArrayLike, medium: ArrayLike, weights: ArrayLike | None = None
) -> tuple[NDArray, NDArray]:
    """Pool the embeddings of pictures to those of templates.

    Args:
        embeddings: float [N, D], not normalised.
        template, medium: int [N], of each picture. A medium is of one template: the same number in another template is
            another medium.
        weights: float [N], such as the scores of a detector; None: every picture counts as it is.
    Returns:
        int [T], the templates in ascending order, and float32 [T, D], of length 1.
    Raises:
        ValueError: an embedding is not finite, or the pictures of a template add up to nothing.
    """
    template, medium = np.asarray(template), np.asarray(medium)
    _, of_medium, media_sizes = np.unique(np.stack([template, medium]), axis=1, return_inverse=True, return_counts=True)
    known, of_template = np.unique(template, return_inverse=True)
    shares = 1 / media_sizes[of_medium.ravel()]
    if weights is not None:
        shares = shares * np.asarray(weights)
    shape = len(known), len(template)
    sums = csr_matrix((shares.astype(np.float32), (of_template, np.arange(len(template)))), shape) @ embeddings
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    broken = ~(np.isfinite(lengths) & (lengths > 0)).ravel()
    if broken.any():
        raise ValueError(
            f"the embedding of template {known[broken][0]} is zero or not finite (templates affected: {broken.sum()})"
        )
    return known, (sums / lengths).astype(np.float32)


def pair_scores(pooled: NDArray, a: NDArray, b: NDArray) -> NDArray:
    """Compute the cosine of pairs of rows of ``pooled`` [T, D], which have length 1: float32 [M]."""
    out = np.empty(len(a), np.float32)
    for rows in np.array_split(np.arange(len(a)), 1 + len(a) * pooled.shape[1] // CHUNK):
        out[rows] = np.einsum("md,md->m", pooled[a[rows]], pooled[b[rows]])
    return out


def verification(scores: NDArray, same: ArrayLike) -> dict[str, Any]:
    """Compute TAR at FAR 1e-1 to 1e-6 over all pairs of templates, JSON-ready.

    "tar@far=X" is {"value", "ci95", "threshold", "impostors_above", "impostors", "needed"}: the share of genuine pairs
    accepted at the lowest threshold whose false accept rate is at most X. All but the last two are None if there are
    fewer impostor pairs than "needed". The interval is Wilson's, which takes pairs for independent.

    Raises ValueError for other shapes, a score that is not finite, or pairs of one kind only.
    """
    same = np.asarray(same).astype(bool)
    if scores.shape != same.shape or same.all() or not same.any():
        raise ValueError(f"{len(scores)} scores for {same.sum()} genuine and {(~same).sum()} impostor pairs")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite: the embeddings are broken, so nothing was evaluated")
    genuine, impostor = scores[same], scores[~same]
    result: dict[str, Any] = {"n_pairs": len(same), "n_genuine": len(genuine), "n_impostor": len(impostor)}
    for name, far in FARS.items():
        figure: dict[str, Any] = {"value": None, "ci95": None, "threshold": None, "impostors_above": None}
        if (limit := identification.threshold(impostor, far)) is not None:
            accepted = int((genuine >= limit).sum())
            figure = {
                "value": accepted / len(genuine),
                "ci95": intervals.wilson(accepted, len(genuine)),
                "threshold": limit,
                "impostors_above": int((impostor >= limit).sum()),
            }
        result[f"tar@far={name}"] = {
            **figure,
            "impostors": len(impostor),
            "needed": identification.needed(far),
        }
    return result


def search(probes: NDArray, gallery: NDArray, probe_subjects: NDArray, gallery_subjects: NDArray) -> Outcomes:
    """Search for probe templates [P, D] in a gallery of templates [G, D], all of length 1."""
    parts = 1 + len(probes) * len(gallery) // CHUNK
    rows = np.array_split(np.arange(len(probes)), min(parts, len(probes)))
    return Outcomes.concatenate(
        identification.outcomes(probes[i] @ gallery.T, probe_subjects[i], gallery_subjects) for i in rows
    )


def mean_of_galleries(first: dict[str, Any], second: dict[str, Any]) -> dict[str, float | None]:
    """Return the mean of two galleries' figures by name; None where one of them has none."""
    means: dict[str, float | None] = {}
    for name in first:
        if isinstance(first[name], dict):
            values = [figures[name]["value"] for figures in (first, second)]
            means[name] = None if None in values else float(np.mean(values))
    return means
