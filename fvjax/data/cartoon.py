"""The drawing of a cartoon face: shape parameters and a shot's attributes to pixels (see :mod:`fvjax.data.synthetic`).

Lengths are in half image widths (56 pixels), x to the right, y down, the origin in the middle of the image. Every part
is a signed distance (negative inside), which becomes coverage with a soft edge and is painted over the parts before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from fvjax.data.images import SIZE
from fvjax.face_classes import ID

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / (SIZE / 2) + (1 / SIZE - 1)


Part = str | tuple[str, str] | None  # a class of fvjax.face_classes, or those on the person's right and left


@dataclass(frozen=True)
class Strokes:
    """What a face may wear or grow beside its shape and shot; the default adds nothing.

    Earrings and a necklace are in the map only: they are too fine for the picture.
    """

    bald: bool = False
    bangs: bool = False
    wavy: bool = False
    straight: bool = False
    goatee: bool = False
    mustache: bool = False
    sideburns: bool = False
    hat: bool = False
    earrings: bool = False
    necklace: bool = False
    hat_colour: tuple[float, float, float] = (0.5, 0.5, 0.5)


def render(shape: Mapping[str, float], shot: Mapping[str, Any]) -> np.ndarray:
    """Draw shape parameters under a shot's attributes: uint8 [112, 112, 3], RGB. A pure function."""
    return render_with_map(shape, shot)[0]


def render_with_map(
    shape: Mapping[str, float], shot: Mapping[str, Any], strokes: Strokes | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a face and its exact segmentation map: uint8 [112, 112, 3], RGB, and uint8 [112, 112], class ids.

    A pixel has the class of the last part that covers more than half of it. The bar that occludes some faces is
    background, shadows and beards are of the part below them, and the nose is the area of bridge and wings.
    """
    portrait = _Portrait(SimpleNamespace(**shape), SimpleNamespace(**shot), strokes or Strokes())
    portrait.draw_backdrop_and_head()
    portrait.draw_nose()
    portrait.draw_mouth()
    portrait.draw_eyes()
    portrait.draw_brows()
    portrait.draw_front_hair()
    portrait.draw_beard()
    portrait.draw_hat()
    portrait.shade()
    portrait.draw_occluders()
    portrait.blur_and_add_noise()
    return np.clip(portrait.image * 255 + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0), portrait.classes


class _Portrait:
    """A picture in the making.

    Attributes:
        image: float32 [3, 112, 112], RGB, 0 to 1.
        classes: uint8 [112, 112], the part that each pixel shows (fvjax.face_classes).
        u, v: coordinates in the plane of the head; shift, scale and roll of the shot are undone.
        x, y: coordinates on the frontal face; yaw and pitch are undone, too.
        z: depth of the head's front, an ellipsoid.
    """

    def __init__(self, shape: SimpleNamespace, shot: SimpleNamespace, strokes: Strokes):
        self.shape = shape
        self.shot = shot
        self.strokes = strokes
        self.image = np.empty((3, SIZE, SIZE), np.float32)
        self.classes = np.zeros((SIZE, SIZE), np.uint8)
        x = (_X - shot.shift_x) / shot.scale
        y = (_Y - shot.shift_y) / shot.scale
        cos, sin = math.cos(shot.roll), math.sin(shot.roll)
        self.u = cos * x + sin * y
        self.v = cos * y - sin * x
        self.z = np.sqrt(np.maximum(1 - (self.u / 0.80) ** 2 - (self.v / 1.05) ** 2, 0.04))
        self.x = self.u * math.cos(shot.yaw) - self.z * (0.62 * math.sin(shot.yaw))
        self.y = self.v * math.cos(shot.pitch) - self.z * (0.62 * math.sin(shot.pitch))
        self.abs_x = np.abs(self.x)  # eyes, brows and nostrils are drawn on both sides at once
        self.head = _coverage(self.outline(0.0, self.v))
        self.back_hair = _coverage(
            np.maximum(self.outline(shape.hair_volume, np.minimum(self.v, 0)), self.v - shape.hair_length)
        )
        if strokes.bald:
            self.back_hair = np.zeros_like(self.back_hair)

    def paint(self, coverage: np.ndarray, colour: Any, part: Part = None) -> None:
        self.image[:] += coverage * (np.asarray(colour, np.float32).reshape(3, 1, 1) - self.image)
        if part is not None:
            self.mark(coverage, part)

    def mark(self, coverage: np.ndarray, part: Part) -> None:
        """Give the pixels that are covered by more than half a class; the person's right is where x is negative."""
        right, left = part if isinstance(part, tuple) else (part, part)
        covered = coverage > 0.5
        self.classes[covered] = np.where(self.x < 0, ID[str(right)], ID[str(left)])[covered]

    def outline(self, extra: float, down: np.ndarray) -> np.ndarray:
        """Return the signed distance to the head's outline grown by `extra`.

        `down` is v, or v clipped where the outline should run straight.
        """
        g = self.shape
        below = np.maximum(down, 0)
        half_width = (g.face_width + extra) * (1 - g.jaw * (below / g.chin) ** 2)
        side = np.abs(self.u - 0.3 * math.sin(self.shot.yaw) * below) / np.maximum(half_width, 0.1)
        up = np.where(down < 0, down / (-0.82 - extra), down / (g.chin + extra))
        return ((side**g.square + up**g.square) ** (1 / g.square) - 1) * 0.62

    def draw_backdrop_and_head(self) -> None:
        """Draw the backdrop, the hair behind the head, neck, clothes, ears and the face's skin, in this order."""
        g, s, u, v = self.shape, self.shot, self.u, self.v
        blend = np.clip(0.5 + 0.5 * (_Y * s.light_x + _X * s.light_y), 0, 1)
        self.image[:] = s.backdrop[0].reshape(3, 1, 1)
        self.paint(blend, s.backdrop[1])
        self.paint(self.back_hair, s.hair * 0.8, "hair")
        self.draw_texture(self.back_hair)
        self.paint(_coverage(np.maximum(np.abs(u) - 0.30, 0.4 - v)), s.skin * 0.75, "neck")
        self.paint(_coverage(1.35 - v - 0.35 * np.sqrt(np.maximum(1.2 - u * u, 0))), s.clothes, "cloth")
        if self.strokes.necklace:
            self.mark(_coverage(np.maximum(np.abs(v - 0.93 - 0.1 * u * u) - 0.03, np.abs(u) - 0.30)), "necklace")
        ear = np.abs(u + 0.12 * math.sin(s.yaw)) - g.face_width
        self.paint(_coverage((_norm(ear * 1.5, v - g.ear_y) - g.ear) * 0.8), s.skin * 0.88, ("right_ear", "left_ear"))
        self.paint(self.head, s.skin, "face")
        if self.strokes.earrings:
            self.mark(_coverage(_norm(ear, v - g.ear_y - 1.3 * g.ear) - 0.07), "earring")

    def draw_nose(self) -> None:
        """Draw the bridge's shadow, which falls away from the light, then wings and nostrils."""
        g, s, x, y = self.shape, self.shot, self.x, self.y
        nose_top, side = g.eye_y, -math.copysign(1, s.light_x)
        ridge = np.maximum(self.abs_x - g.nose_bridge, np.maximum(nose_top - y, y - g.nose_y))
        tip = (_norm(x / g.nose_width, (y - g.nose_y) / 0.075) - 1) * 0.06
        self.mark(_coverage(np.minimum(ridge, tip)), "nose")
        bridge = np.abs(x - side * g.nose_bridge * (1 + np.maximum(y, 0))) - 0.012
        self.paint(0.35 * _coverage(np.maximum(bridge, np.maximum(nose_top - y, y - g.nose_y))), s.skin * 0.45)
        wing = _norm(x / g.nose_width, (y - g.nose_y) / 0.075)
        self.paint(0.75 * _coverage(np.maximum(np.abs(wing - 1) * 0.06 - 0.012, g.nose_y - 0.02 - y)), s.skin * 0.5)
        nostril = _norm(self.abs_x - 0.5 * g.nose_width, 1.5 * (y - (g.nose_y + 0.035)))
        self.paint(_coverage(nostril - (0.12 * g.nose_width + 0.01)), s.skin * 0.25)

    def draw_mouth(self) -> None:
        """Draw the lips as parabolas on a line that the smile bends; opening the mouth moves the lower lip."""
        g, s = self.shape, self.shot
        t = self.x / (g.mouth_width * (1 + 0.12 * s.smile))
        arc = np.maximum(1 - t * t, 0)
        line = self.y - (g.nose_y + g.mouth_gap) + 0.07 * s.smile * (t * t - 0.3)
        gap = 0.13 * s.mouth_open * arc
        ends = (np.abs(t) - 1) * g.mouth_width
        self.paint(_coverage(np.maximum(ends, np.maximum(-line, line - gap))), (0.25, 0.05, 0.06), "inner_mouth")
        teeth = _coverage(np.maximum(ends, np.maximum(-line, line - 0.4 * gap))) * (gap > 0.04)
        self.paint(teeth, (0.92, 0.90, 0.85))
        bow = g.lip_upper * arc * (1 - 0.35 * np.exp(-((t / 0.18) ** 2)))
        self.paint(_coverage(np.maximum(ends, np.maximum(-bow - line, line))), s.lips, "upper_lip")
        lower_lip = np.maximum(gap - line, line - gap - g.lip_lower * arc)
        self.paint(_coverage(np.maximum(ends, lower_lip)), s.lips * 1.1, "lower_lip")
        self.paint(0.8 * _coverage(np.maximum(ends, np.abs(line) - 0.012)), s.lips * 0.35)

    def draw_eyes(self) -> None:
        g, s = self.shape, self.shot
        eye_x = (self.abs_x - g.eye_gap) / g.eye_width
        eye_y = self.y - g.eye_y + g.eye_tilt * g.eye_width * eye_x
        lid = g.eye_height * s.eye_open * (1 - eye_x * eye_x)
        eye = np.maximum(np.abs(eye_y) - lid, (np.abs(eye_x) - 1) * g.eye_width)
        white = _coverage(eye)
        self.paint(white, (0.93, 0.92, 0.90), ("right_eye", "left_eye"))
        pupil = _norm(self.abs_x - g.eye_gap, eye_y)
        self.paint(white * _coverage(pupil - g.iris), s.iris_colour)
        self.paint(white * _coverage(pupil - 0.45 * g.iris), (0.02, 0.02, 0.02))
        upper_lid = np.maximum(np.abs(eye_y + lid) - 0.014, (np.abs(eye_x) - 1.1) * 0.1)
        self.paint(0.9 * _coverage(upper_lid), s.skin * 0.25)

    def draw_brows(self) -> None:
        """Draw the eyebrows, thinner towards the temple."""
        g, s = self.shape, self.shot
        brow_x = (self.abs_x - g.eye_gap) / g.brow_width
        brow_y = self.y - (g.eye_y - g.brow_gap - 0.03 * s.brow_raise)
        brow_y = brow_y + g.brow_tilt * g.brow_width * brow_x + g.brow_arch * (g.brow_width * brow_x) ** 2
        thickness = g.brow_thick * (1 - 0.35 * np.clip(brow_x, -1, 1))
        brow = np.maximum(np.abs(brow_y) - thickness, (np.abs(brow_x) - 1) * g.brow_width)
        self.paint(_coverage(brow), s.hair * 0.45, ("right_brow", "left_brow"))

    def draw_front_hair(self) -> None:
        g, x = self.shape, self.x
        hairline = -g.hairline + g.part * x + g.temple * x * x
        hairline = hairline + g.widow * np.exp(-((x / 0.13) ** 2))
        if self.strokes.bald:
            return
        if self.strokes.bangs:
            hairline = np.maximum(hairline, -0.27)
        grown = self.outline(min(0.06, g.hair_volume), self.v)
        hair = _coverage(np.maximum(grown, np.maximum(self.y - hairline, self.v - 0.3)))
        self.paint(hair, self.shot.hair, "hair")
        self.draw_texture(hair)

    def draw_texture(self, hair: np.ndarray) -> None:
        """Draw waves or straight strands over hair that is in place."""
        bend = 0.6 * np.sin(14 * self.v) if self.strokes.wavy else 0.0
        if self.strokes.wavy or self.strokes.straight:
            frequency = 22 if self.strokes.wavy else 55
            self.paint(0.6 * hair * (np.sin(frequency * self.u + 4 * bend) > 0), self.shot.hair * 0.45)

    def draw_beard(self) -> None:
        g, s, hair = self.shape, self.strokes, self.shot.hair * 0.5
        mouth = g.nose_y + g.mouth_gap
        if s.mustache:
            lip = np.maximum(g.nose_y + 0.06 - self.y, self.y - mouth + 0.01)
            self.paint(0.9 * _coverage(np.maximum(lip, self.abs_x - 1.1 * g.mouth_width)), hair)
        if s.goatee:
            middle = (mouth + g.chin) / 2 + 0.08
            self.paint(0.9 * _coverage((_norm(self.x / 0.17, (self.y - middle) / 0.13) - 1) * 0.13), hair)
        if s.sideburns:
            side = np.maximum(g.face_width - 0.14 - np.abs(self.u), np.maximum(-0.25 - self.v, self.v - 0.4))
            self.paint(0.9 * self.head * _coverage(side), hair)

    def draw_hat(self) -> None:
        if not self.strokes.hat:
            return
        crown = np.maximum(self.outline(0.14, self.v), self.v + 0.5)
        brim = np.maximum(np.abs(self.v + 0.5) - 0.06, np.abs(self.u) - self.shape.face_width - 0.2)
        self.paint(_coverage(np.minimum(crown, brim)), self.strokes.hat_colour, "hat")

    def shade(self) -> None:
        """Darken head and hair where they are turned away from the light."""
        s = self.shot
        normal_light = self.u / 0.80 * s.light_x + self.v / 1.05 * s.light_y
        normal_light += self.z * math.sqrt(max(0.0, 1 - s.light_x**2 - s.light_y**2))
        shade = 1 - s.light * (1 - 1.35 * np.maximum(normal_light, 0))
        self.image *= 1 + np.maximum(self.head, self.back_hair) * (shade - 1)

    def draw_occluders(self) -> None:
        s = self.shot
        if s.glasses:
            self._draw_glasses()
        if s.scarf:
            scarf = np.maximum(0.52 + 0.1 * self.u * self.u - self.v, np.abs(self.u) - 0.85)
            self.paint(_coverage(scarf), s.cloth * (0.85 + 0.15 * math.copysign(1, s.bar_x)), "cloth")
        if s.bar:
            across = (_X - s.bar_x) * math.cos(s.bar_angle) + (_Y - s.bar_y) * math.sin(s.bar_angle)
            self.paint(_coverage(np.abs(across) - 0.10), s.cloth, "background")

    def _draw_glasses(self) -> None:
        g, y, abs_x = self.shape, self.y, self.abs_x
        ring = _norm(abs_x - g.eye_gap, (y - g.eye_y) * 1.2) - g.eye_gap * 0.78
        legs = np.maximum(np.abs(y - g.eye_y + 0.03) - 0.015, g.eye_gap - abs_x)
        frame = np.minimum(np.abs(ring) - 0.02, np.maximum(legs, -ring))
        bridge = np.maximum(np.abs(y - g.eye_y) - 0.015, np.maximum(abs_x - g.eye_gap, -ring))
        frames = np.maximum(_coverage(np.minimum(frame, bridge)) * self.head, 0)
        self.paint(frames, self.shot.cloth * 0.6, "glasses")

    def blur_and_add_noise(self) -> None:
        s, image = self.shot, self.image
        soft = (image + np.roll(image, 1, 1) + np.roll(image, 1, 2) + np.roll(image, (1, 1), (1, 2))) / 4
        image += s.blur * (soft - image)
        image += s.noise * (np.random.default_rng(s.grain).random(image.shape, np.float32) - 0.5)


def _coverage(distance: np.ndarray) -> np.ndarray:
    """Map signed distance (negative inside) to coverage from 0 to 1 with a soft edge of one and a half pixels."""
    return np.clip(0.5 - distance * (SIZE / 3), 0, 1)


def _norm(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y)  # np.hypot guards against overflow and takes five times as long
