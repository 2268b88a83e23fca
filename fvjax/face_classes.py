"""The classes of a face segmentation map and their colours: CelebAMask-HQ's, in the order of FacePerceiver/facer.

Left and right are the person's. Source of order and colours: facer's issue 36.
"""

from __future__ import annotations

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "background": (0, 0, 0),
    "neck": (255, 153, 51),
    "face": (204, 0, 0),
    "cloth": (0, 204, 0),
    "right_ear": (102, 51, 0),
    "left_ear": (255, 0, 0),
    "right_brow": (0, 255, 255),
    "left_brow": (255, 204, 204),
    "right_eye": (51, 51, 255),
    "left_eye": (204, 0, 204),
    "nose": (76, 153, 0),
    "inner_mouth": (102, 204, 0),
    "lower_lip": (0, 0, 153),
    "upper_lip": (255, 255, 0),
    "hair": (0, 0, 204),
    "glasses": (204, 204, 0),
    "hat": (255, 51, 153),
    "earring": (0, 204, 204),
    "necklace": (0, 51, 0),
}
CLASSES = tuple(COLOURS)
PALETTE = np.array(list(COLOURS.values()), np.uint8)  # [19, 3]
SWAP = tuple((f"right_{part}", f"left_{part}") for part in ("ear", "brow", "eye"))  # what a mirror exchanges
ID = {name: number for number, name in enumerate(CLASSES)}
