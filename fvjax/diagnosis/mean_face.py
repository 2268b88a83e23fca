"""Where the faces of a set are: their mean face, matched with a drawing of a few dark and bright parts.

In aligned crops the eyes of all people are at the same place, so that a mean over many pictures is a sharp face. The
mean is taken of local contrast and not of brightness, so that light, skin and background do not count. What it is
matched with are figures (reference.json): the place, size and depth of two eyes, nose, corners of the mouth, cheeks and
so on in a crop of insightface's template, fitted to the mean face of LFW and CFP by `benchmarks/doctor_reference.py`.

Places are in pixels of a 112x112 crop; maps of contrast have one value for 2x2 pixels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fvjax.data import images
from fvjax.data.alignment.geometry import TEMPLATE

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
STEP = 2  # pixels for one value of a map
GRID = np.arange(images.SIZE // STEP) * STEP + (STEP - 1) / 2  # the places of a map's values
CENTRE = TEMPLATE.mean(0)
WINDOW = 30.0  # pixels from the centre that are compared, for a face of the template's size
RADIUS = 30  # pixels that a face is looked for from its place in the template
CHUNK = 64  # pictures at a time, because of memory
SCALES = np.exp(np.linspace(np.log(0.45), np.log(1.7), 13))
ASPECTS = (0.85, 1.0, 1.18)
TURNS = ("upright", "upside down", "turned clockwise", "turned anticlockwise")


@dataclass(frozen=True)
class Place:
    """Where a face is: every point p of the template is at ``CENTRE + shift + scale * (p - CENTRE)``.

    Attributes:
        turn: one of TURNS, undone before the rest.
        scale: (horizontal, vertical).
        shift: (right, down) in pixels.
        match: correlation with the reference face there.
    """

    turn: str
    scale: tuple[float, float]
    shift: tuple[float, float]
    match: float

    def points(self) -> NDArray:
        """Return the five points of the template at this place, float [5, 2]."""
        return CENTRE + np.asarray(self.shift) + (TEMPLATE - CENTRE) * self.scale


def contrast(faces: NDArray) -> NDArray:
    """Compute the local contrast of uint8 [n, 112, 112, 3]: float32 [n, 56, 56], about 1 in size, dark is negative."""
    maps = [_contrast(faces[start : start + CHUNK]) for start in range(0, len(faces), CHUNK)]
    return np.concatenate(maps)


def _contrast(faces: NDArray) -> NDArray:
    half = images.SIZE // STEP
    grey = (faces @ LUMA).reshape(len(faces), half, STEP, half, STEP).mean((2, 4))
    details = _blur(grey, 1) - _blur(grey, 6)
    return (details / np.sqrt(_blur(details**2, 8) + 25)).astype(np.float32)  # 25: noise of 5 levels is no contrast


def _blur(maps: NDArray, radius: int) -> NDArray:
    """Blur [n, h, w] twice with a box of 2 * radius + 1; beyond the edge everything is as at the edge."""
    for axis in (1, 2, 1, 2):
        widths = [(radius + 1, radius) if i == axis else (0, 0) for i in range(3)]
        sums = np.moveaxis(np.cumsum(np.pad(maps, widths, mode="edge"), axis, dtype=np.float64), axis, 0)
        maps = np.moveaxis(sums[2 * radius + 1 :] - sums[: -2 * radius - 1], 0, axis) / (2 * radius + 1)
    return maps


def draw(parts: NDArray, scale: tuple[float, float], shift: tuple[float, float] = (0, 0)) -> tuple[NDArray, NDArray]:
    """Draw the reference face at a place.

    Args:
        parts: float [P, 5], of each x, y, half width, half height, and depth (negative is dark).
        scale, shift: see :class:`Place`.
    Returns:
        the drawing and the weights of its values, both float [56, 56].
    """
    x, y = ((GRID - shift[i] - CENTRE[i]) / scale[i] + CENTRE[i] for i in range(2))
    columns = np.exp(-0.5 * ((x - parts[:, :1]) / parts[:, 2:3]) ** 2)
    rows = np.exp(-0.5 * ((y - parts[:, 1:2]) / parts[:, 3:4]) ** 2)
    edge_x, edge_y = (np.exp(-0.5 * ((place - CENTRE[i]) / WINDOW) ** 4) for i, place in enumerate((x, y)))
    return np.einsum("p,ph,pw->hw", parts[:, 4], rows, columns), edge_y[:, None] * edge_x


def correlate(maps: NDArray, parts: NDArray, scale: tuple[float, float]) -> NDArray:
    """Correlate maps [..., 56, 56] with the reference face at every shift up to RADIUS, in steps of a map's value.

    Returns:
        float [..., 31, 31], rows by the shift down and columns by the shift to the right; -1 where less than 0.6 of the
        face would be in the picture.
    """
    drawing, weights = draw(parts, scale)
    weights = weights / weights.sum()
    drawing = drawing - (weights * drawing).sum()
    size, reach = 2 * len(GRID), RADIUS // STEP

    def transform(values: NDArray) -> NDArray:
        return np.fft.rfft2(values, (size, size))

    def slide(spectrum: NDArray, kernel: NDArray) -> NDArray:
        values = np.fft.irfft2(spectrum * np.conj(transform(kernel)), (size, size))
        return np.roll(values, (reach, reach), (-2, -1))[..., : 2 * reach + 1, : 2 * reach + 1]

    pixels, squares, inside = transform(maps), transform(maps**2), transform(np.ones(drawing.shape))
    share = slide(inside, weights).clip(1e-6)
    mean = slide(pixels, weights) / share
    drawn = slide(inside, weights * drawing) / share
    drawn_squares = slide(inside, weights * drawing**2) / share
    variance = (slide(squares, weights) / share - mean**2).clip(1e-4)
    covariance = slide(pixels, weights * drawing) / share - mean * drawn
    return np.where(share > 0.6, covariance / np.sqrt(variance * (drawn_squares - drawn**2).clip(1e-9)), -1)


def match(one: NDArray, parts: NDArray, scale: tuple[float, float], shift: tuple[float, float]) -> float:
    """Correlate one map [56, 56] with the reference face at one place."""
    drawing, weights = draw(parts, scale, shift)
    weights = weights / weights.sum()
    a, b = (values - (weights * values).sum() for values in (one, drawing))
    return float((weights * a * b).sum() / np.sqrt(max((weights * a * a).sum() * (weights * b * b).sum(), 1e-12)))


def sharpness(mean: NDArray, parts: NDArray, place: Place) -> float:
    """Return the contrast of an upright mean map [56, 56] as a multiple of the reference face's at its place."""
    drawing, weights = draw(parts, place.scale, place.shift)
    weights = weights / weights.sum()
    drawing = drawing - (weights * drawing).sum()
    return float((weights * mean * drawing).sum() / (weights * drawing**2).sum())


def turned(maps: NDArray, turn: str) -> NDArray:
    """Undo a turn of maps or pictures [n, h, w, ...]."""
    undo = {
        "upright": lambda x: x,
        "upside down": lambda x: x[:, ::-1],
        "turned clockwise": lambda x: np.rot90(x, 1, (1, 2)),
        "turned anticlockwise": lambda x: np.rot90(x, -1, (1, 2)),
    }
    return undo[turn](maps)


def find(mean: NDArray, parts: NDArray) -> Place:
    """Find the place at which a mean map [56, 56] looks most like the reference face."""
    best = Place("upright", (1.0, 1.0), (0.0, 0.0), -1.0)
    for turn in TURNS:
        candidate = turned(mean[None], turn)[0]
        for size, aspect in itertools.product(SCALES, ASPECTS):
            scale = size * aspect**0.5, size / aspect**0.5
            values = correlate(candidate, parts, scale)
            if values.max() > best.match:
                best = Place(turn, scale, shift_of(values), float(values.max()))
    return _refine(turned(mean[None], best.turn)[0], parts, best)


def shift_of(values: NDArray) -> tuple[float, float]:
    """Return the shift (right, down) in pixels at which correlations [31, 31] are highest."""
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    reach = RADIUS // STEP
    return float((column - reach) * STEP), float((row - reach) * STEP)


def _refine(one: NDArray, parts: NDArray, start: Place) -> Place:
    """Climb from a place to the best one nearby: scales to 1%, shifts to a quarter of a pixel."""
    values = np.array([*np.log(start.scale), *start.shift])
    steps = np.array([0.08, 0.08, 2.0, 2.0])

    def rated(values: NDArray) -> float:
        return match(one, parts, (float(np.exp(values[0])), float(np.exp(values[1]))), (values[2], values[3]))

    best = rated(values)
    while steps[0] > 0.005:
        moves = [values + sign * step for step in np.diag(steps) for sign in (1, -1)]
        ratings = [rated(move) for move in moves]
        if max(ratings) > best + 1e-6:
            best, values = max(ratings), moves[int(np.argmax(ratings))]
        else:
            steps = steps / 2
    scale = float(np.exp(values[0])), float(np.exp(values[1]))
    return Place(start.turn, scale, (float(values[2]), float(values[3])), best)
