"""The 68 facial points of iBUG 300-W, and the nine regions of the face that Face-LLaVA divides them into.

Points are (x, y). The first of two symmetric regions is the one on the picture's left. Source: Face-LLaVA
(arXiv:2504.07198) and its released code.
"""

from __future__ import annotations

POINTS = 68
# In the order of the landmark tokens: indices of a region's points.
REGIONS: dict[str, tuple[int, ...]] = {
    "face": tuple(range(17)),  # the jaw line, from the picture's left to its right
    "eyebrow1": tuple(range(17, 22)),
    "eyebrow2": tuple(range(22, 27)),
    "nose": tuple(range(27, 31)),  # the bridge, downwards
    "nostril": tuple(range(31, 36)),
    "eye1": tuple(range(36, 42)),
    "eye2": tuple(range(42, 48)),
    "lips": tuple(range(48, 60)),  # their outer border
    "teeth": tuple(range(60, 68)),  # their inner border
}
