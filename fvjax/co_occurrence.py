"""How often attributes occur together in labels, of which some may be missing: FaceInsight's equation 5.

The model's graph and the commands about labels share this module, so it knows neither jax nor any file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

MIN_LIFT = 2.0  # an edge of the graph by lift: i makes j at least twice as likely …
MIN_SUPPORT = 50  # … and so many images have both


def read_labels(labels: ArrayLike, labelled: ArrayLike | None = None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which cells are positive and which are labelled, bool [N, K].

    Args:
        labels: [N, K]: 1 is positive. Without `labelled`, either 1 and 0 or bool, all of it labelled, or -1, 0 and 1
            with 0 unlabelled: so they are read if any is -1.
        labelled: bool [N, K]; what is not labelled counts nowhere.
    Raises:
        ValueError: no labels, others than -1, 0 and 1, or `labelled` of another shape.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or not labels.size:
        raise ValueError(f"labels of shape {list(labels.shape)}, expected [images, attributes], none of them 0")
    if not np.isin(labels, (-1, 0, 1)).all():
        raise ValueError("labels other than -1, 0 and 1")
    if labelled is None:
        known = labels != 0 if (labels == -1).any() else np.ones(labels.shape, bool)
    else:
        known = np.asarray(labelled, bool)
        if known.shape != labels.shape:
            raise ValueError(f"labelled {list(known.shape)} and labels {list(labels.shape)} differ in shape")
    return (labels == 1) & known, known


def conditional(labels: ArrayLike, labelled: ArrayLike | None = None) -> NDArray[np.float64]:
    """Return P[i, j], of the images with i positive and j labelled the share with j positive (equation 5).

    Without any such image it is 0.

    Arguments and errors are those of :func:`read_labels`.
    """
    positive, known = read_labels(labels, labelled)
    return _shares(_together(positive, positive), _together(positive, known))


def lift_edges(
    labels: ArrayLike,
    labelled: ArrayLike | None = None,
    min_lift: float = MIN_LIFT,
    min_support: int = MIN_SUPPORT,
) -> NDArray[np.int64]:
    """Return the edges where i makes j at least `min_lift` times as likely as it is overall, int64 [K, K].

    An edge needs at least `min_support` images with both. The diagonal is 1.
    """
    positive, known = read_labels(labels, labelled)
    together = _together(positive, positive)
    likely = _shares(together, _together(positive, known)) >= min_lift * prevalence(labels, labelled)
    edges = (likely & (together >= min_support)).astype(np.int64)
    np.fill_diagonal(edges, 1)
    return edges


def prevalence(labels: ArrayLike, labelled: ArrayLike | None = None) -> NDArray[np.float64]:
    """Return the positives' share of each attribute's labelled images, float64 [K]; 0 without any."""
    positive, known = read_labels(labels, labelled)
    return _shares(positive.sum(0).astype(np.float64), known.sum(0).astype(np.float64))


def statistics(edges: ArrayLike) -> dict[str, Any]:
    """Count the edges of C [K, K] without its diagonal.

    Returns:
        edges_mean, edges_min and edges_max per row, empty_rows (their numbers), and in_degree int64 [K].
    """
    others = np.array(edges, np.int64)
    np.fill_diagonal(others, 0)
    per_row = others.sum(1)
    return {
        "edges_mean": float(per_row.mean()),
        "edges_min": int(per_row.min()),
        "edges_max": int(per_row.max()),
        "empty_rows": np.flatnonzero(per_row == 0).tolist(),
        "in_degree": others.sum(0),
    }


def _together(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Count the images with attribute i of `first` and j of `second`, float64 [K, K]."""
    # Eight images a byte: exact, a tenth of the memory of a matrix product, and no slower on a busy machine.
    rows, columns = np.packbits(first.T, axis=1), np.packbits(second.T, axis=1)
    return np.stack([np.bitwise_count(row & columns).sum(1, dtype=np.int64) for row in rows]).astype(np.float64)


def _shares(count: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(count, total, out=np.zeros_like(count), where=total > 0)
