"""Baseline embeddings without any model: they show how much a benchmark gives away by pixels and colours alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 8  # per colour channel


def pixel(faces: NDArray) -> NDArray:
    """Embed uint8 [N, H, W, 3] as raw pixels minus the image's mean, float32 [N, 3HW] (150 kB for a 112x112 face)."""
    flat = faces.reshape(len(faces), -1).astype(np.float32)
    return flat - flat.mean(1, keepdims=True)


def histogram(faces: NDArray) -> NDArray:
    """Embed uint8 [N, H, W, 3] as a joint RGB histogram, 8 bins per channel, sum 1: float32 [N, 512]."""
    n, cells = len(faces), BINS**3
    levels = faces.reshape(n, -1, 3).astype(np.int64) * BINS // 256
    cell = levels @ np.array([BINS**2, BINS, 1]) + cells * np.arange(n)[:, None]
    return (np.bincount(cell.ravel(), minlength=n * cells).reshape(n, cells) / cell.shape[1]).astype(np.float32)
