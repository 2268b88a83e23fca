"""The similarity transform from a face's points to the aligned crop."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fvjax.data import images

# insightface's, in pixels of the 112x112 crop: eyes, tip of the nose, corners of the mouth; left in the picture first
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
FALLBACK = 0.55  # of the shorter side: the part of LFW's photographs that its aligned crops show


def similarity(src: NDArray, dst: NDArray) -> NDArray:
    """Return the scale, rotation and shift, never a reflection, that bring ``src`` nearest to ``dst`` by least squares.

    Umeyama's closed form (IEEE PAMI 13(4), 1991); in the plane it is the regression dst = a src + b in complex numbers.

    Args:
        src, dst: float [n, 2], n > 1.
    Returns:
        float64 [2, 3], to be applied to (x, y, 1).
    Raises:
        ValueError: the points of ``src`` coincide or are not finite.
    """
    z, w = np.asarray(src, float) @ [1, 1j], np.asarray(dst, float) @ [1, 1j]
    centred = z - z.mean()
    spread = np.vdot(centred, centred).real
    if not (np.isfinite(spread) and spread > 1e-6):
        raise ValueError("the points of the face coincide or are not finite")
    a = np.vdot(centred, w) / spread
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def template(points: NDArray) -> NDArray:
    """Return the positions of the points in the crop: float [5, 2], or [3, 2] for CFP's fiducials.

    Three points show one side of the face; which side follows from the positions of eye and nose.
    """
    if len(points) == 5:
        return TEMPLATE
    return TEMPLATE[[1, 2, 4] if points[0, 0] > points[1, 0] else [0, 2, 3]]


def warp(photograph: NDArray, points: NDArray) -> NDArray:
    """Warp uint8 [h, w, 3] by the face's points [5 or 3, 2] to uint8 [112, 112, 3], black beyond the photograph."""
    cv2 = import_opencv()
    return cv2.warpAffine(photograph, similarity(points, template(points)), (images.SIZE, images.SIZE))


def centre(photograph: NDArray) -> NDArray:
    """Resize the central square, FALLBACK of the shorter side, to uint8 [112, 112, 3]: the policy "fallback"."""
    height, width = photograph.shape[:2]
    half = FALLBACK * min(height, width) / 2
    box = width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half
    size = images.SIZE, images.SIZE
    return np.asarray(Image.fromarray(photograph).resize(size, Image.Resampling.BILINEAR, box=box))


def import_opencv() -> Any:
    """Import OpenCV. Raises ValueError with the command that installs it."""
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            f"photographs are aligned with OpenCV ({error}); install it: uv sync --extra align, "
            "or pip install 'fvjax[align]'"
        ) from error
    return cv2
