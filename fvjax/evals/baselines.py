"""Embeddings that know nothing about faces: what a benchmark gives away by its pixels and colours alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 8  # per colour channel


def pixel(faces: NDArray) -> NDArray:
    """uint8 [N, 112, 112, 3] -> float32 [N, 37632]: raw pixels less the face's own mean (150 kB a face)."""
    flat = faces.reshape(len(faces), -1).astype(np.float32)
    return flat - flat.mean(1, keepdims=True)


def histogram(faces: NDArray) -> NDArray:
    """uint8 [N, 112, 112, 3] -> float32 [N, 512]: joint RGB histogram, 8 bins a channel, sums to 1."""
    n, cells = len(faces), BINS**3
    levels = faces.reshape(n, -1, 3).astype(np.int64) * BINS // 256
    cell = levels @ np.array([BINS**2, BINS, 1]) + cells * np.arange(n)[:, None]
    return (np.bincount(cell.ravel(), minlength=n * cells).reshape(n, cells) / cell.shape[1]).astype(np.float32)
