"""The 68 facial points of a cartoon face, exact: from the curves that :mod:`fvjax.data.cartoon` draws.

The points follow iBUG 300-W (:data:`fvjax.face_regions.REGIONS`): the jaw from ear to ear along the outline of the
head, the brows along their middle line, the nose's bridge and the lower border of its wings, the lids, and the outer
and inner borders of the lips. Lengths are those of the drawing: half image widths, the origin in the image's middle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ITERATIONS = 30  # of turning the head; each gains a digit or more
_JAW, _BROW, _BRIDGE, _WING = 17, 5, 4, 5
_LIDS = 1 / 3  # where the points of the lids stand, in half widths of the eye


def points(shape: Mapping[str, float], shot: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the points of the face that :func:`fvjax.data.cartoon.render` draws of the same arguments.

    Returns:
        float32 [68, 2], (x, y) from 0 to 1 across the picture, with those of the parts that something covers. What has
        turned out of sight, beyond a yaw of some 30 degrees, lies near the border of the head.
    """
    g, s = SimpleNamespace(**shape), SimpleNamespace(**shot)
    frontal = [_brows(g, s), _nose(g), _eyes(g, s), _mouth(g, s)]
    plane = np.concatenate([_jaw(g, s), _turn(np.concatenate(frontal), s)])
    cos, sin = math.cos(s.roll), math.sin(s.roll)
    rolled = plane @ np.array([[cos, sin], [-sin, cos]])
    return ((rolled * s.scale + (s.shift_x, s.shift_y) + 1) / 2).astype(np.float32)


def _turn(face: NDArray, s: SimpleNamespace) -> NDArray:
    """Map points of the frontal face to the plane of the turned head: the inverse of what the drawing does."""
    plane = face.copy()
    for _ in range(_ITERATIONS):
        u, v = plane.T
        depth = 0.62 * np.sqrt(np.maximum(1 - (u / 0.80) ** 2 - (v / 1.05) ** 2, 0.04))
        plane = (face + depth[:, None] * (math.sin(s.yaw), math.sin(s.pitch))) / (math.cos(s.yaw), math.cos(s.pitch))
    return plane


def _jaw(g: SimpleNamespace, s: SimpleNamespace) -> NDArray:
    angles = np.linspace(np.pi, 0, _JAW)
    side = np.sign(np.cos(angles)) * np.abs(np.cos(angles)) ** (2 / g.square)
    down = g.chin * np.abs(np.sin(angles)) ** (2 / g.square)
    half_width = g.face_width * (1 - g.jaw * (down / g.chin) ** 2)
    return np.stack([side * half_width + 0.3 * math.sin(s.yaw) * down, down], 1)


def _brows(g: SimpleNamespace, s: SimpleNamespace) -> NDArray:
    out = np.linspace(-1, 1, _BROW)  # from the nose to the temple
    along = g.brow_width * out
    x = g.eye_gap + along
    y = g.eye_y - g.brow_gap - 0.03 * s.brow_raise - g.brow_tilt * along - g.brow_arch * along**2
    return np.concatenate([np.stack([-x, y], 1)[::-1], np.stack([x, y], 1)])


def _nose(g: SimpleNamespace) -> NDArray:
    bridge = np.stack([np.zeros(_BRIDGE), np.linspace(g.eye_y, g.nose_y, _BRIDGE)], 1)
    angles = np.linspace(np.pi, 0, _WING)
    wing = np.stack([g.nose_width * np.cos(angles), g.nose_y + 0.075 * np.sin(angles)], 1)
    return np.concatenate([bridge, wing])


def _eyes(g: SimpleNamespace, s: SimpleNamespace) -> NDArray:
    """Return both eyes: the corner on the picture's left, the upper lid, the other corner, the lower lid."""
    out = np.array([1, _LIDS, -_LIDS, -1, -_LIDS, _LIDS])  # half widths towards the temple, of the left eye
    lid = g.eye_height * s.eye_open * (1 - out * out) * (0, -1, -1, 0, 1, 1)
    eye = np.stack([g.eye_gap + g.eye_width * out, g.eye_y - g.eye_tilt * g.eye_width * out + lid], 1)
    right = eye[[3, 2, 1, 0, 5, 4]]
    return np.concatenate([eye * (-1, 1), right])


def _mouth(g: SimpleNamespace, s: SimpleNamespace) -> NDArray:
    """Return the lips' outer border, clockwise from the corner on the picture's left, and then their inner border."""
    half_width = g.mouth_width * (1 + 0.12 * s.smile)
    outer, inner = np.arange(-2, 3) / 3, np.arange(-1, 2) / 2

    def border(t: NDArray, below_line: NDArray | float) -> NDArray:
        line = g.nose_y + g.mouth_gap - 0.07 * s.smile * (t * t - 0.3)
        return np.stack([half_width * t, line + below_line], 1)

    def gap(t: NDArray) -> NDArray:
        return 0.13 * s.mouth_open * (1 - t * t)

    upper = -g.lip_upper * (1 - outer**2) * (1 - 0.35 * np.exp(-((outer / 0.18) ** 2)))
    lower = gap(outer) + g.lip_lower * (1 - outer**2)
    left, right = border(np.array([-1.0]), 0.0), border(np.array([1.0]), 0.0)
    lips = left, border(outer, upper), right, border(outer, lower)[::-1]
    teeth = left, border(inner, 0.0), right, border(inner, gap(inner))[::-1]
    return np.concatenate([*lips, *teeth])
