"""The nine regions of a face with 68 landmarks, in the order of the landmark tokens (iBUG's numbering of points)."""

from __future__ import annotations

POINTS = 68

REGIONS: dict[str, tuple[int, ...]] = {
    "face": tuple(range(17)),  # the line of the jaw
    "eyebrow1": tuple(range(17, 22)),
    "eyebrow2": tuple(range(22, 27)),
    "nose": tuple(range(27, 31)),
    "nostril": tuple(range(31, 36)),
    "eye1": tuple(range(36, 42)),
    "eye2": tuple(range(42, 48)),
    "lips": tuple(range(48, 60)),
    "teeth": tuple(range(60, 68)),  # the inner line of the lips
}
