"""Losses compared on a laptop's CPU: InfoNCE, ArcFace, CosFace and AdaFace, with one backbone and the same faces.

    python -m fvjax.main --config=configs/quickstart_margins.py

Each is one row of the table; network, faces, epochs and seed are those of the row resnet of configs/quickstart.py. An
epoch of InfoNCE shows every identity's images in pairs, one of the others every image once, which is the same number of
images. The scale of 32 and the margins are smaller than the published ones, because there are 200 identities.
"""

from configs import quickstart

MARGIN = {
    "task": "margin",
    "trainable": (("head/.*", "head"), ("params/features/scale", "frozen"), (".*", "backbone")),
    "optimizer": {"unclipped": ("head",)},
}
ROWS = {
    "infonce": {},
    "arcface": {**MARGIN, "margin": {"scale": 32.0, "m2": 0.3}},
    "cosface": {**MARGIN, "margin": {"scale": 32.0, "m2": 0.0, "m3": 0.2}},
    "adaface": {**MARGIN, "margin": {"scale": 32.0, "kind": "adaface", "m": 0.3}},
}


def get_config(row: str = ""):
    """Return the config of all rows, or of one `row` (--config=configs/quickstart_margins.py:arcface)."""
    if row and row not in ROWS:
        raise ValueError(f"configs/quickstart_margins.py has no row {row!r}; there are {', '.join(ROWS)}")
    c = quickstart.get_config("resnet")
    c.name = "quickstart_margins"
    if row:
        c.name = f"quickstart_margins_{row}"
        c.update(ROWS[row])
    else:
        c.rows.update(ROWS)
    return c
