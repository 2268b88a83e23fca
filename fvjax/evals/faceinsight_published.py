"""FaceInsight's published tables (arXiv 2504.15624, version 2), and what they can and cannot mean.

Precision, recall and F1 that are averaged over the same units obey F1 <= (P + R) / 2 in the mean, because they obey it
in each unit. Rows that break this are not of one averaging.
"""

from __future__ import annotations

from typing import NamedTuple

ROUNDING = 0.01  # per cent: F1, P and R have two digits after the point
POSITIVE_RATE = 0.225  # of CelebA's labels, on 20,000 training pictures


class Row(NamedTuple):
    """One row of a table, in per cent."""

    task: str
    model: str
    accuracy: float
    recall: float
    f1: float
    precision: float


_LLAVA_OV, _LLAVA, _NVILA, _OURS = "LLaVA-OneVision-7b-SI", "LLaVA-v1.5-7b", "NVILA-8b", "FaceInsight"
ROWS = (
    Row("MAAD-Face", _LLAVA_OV, 87.56, 45.32, 45.40, 46.76),
    Row("MAAD-Face", _LLAVA, 83.33, 38.13, 36.19, 39.96),
    Row("MAAD-Face", _NVILA, 87.77, 47.42, 46.34, 45.83),
    Row("MAAD-Face", _OURS, 93.55, 77.20, 77.64, 77.16),
    Row("CelebA", _LLAVA_OV, 87.38, 50.12, 49.23, 49.77),
    Row("CelebA", _LLAVA, 81.59, 33.23, 30.83, 39.90),
    Row("CelebA", _NVILA, 87.32, 50.81, 49.67, 49.29),
    Row("CelebA", _OURS, 92.58, 74.28, 76.68, 80.64),
    Row("FairFace age", _LLAVA_OV, 61.87, 54.98, 56.46, 58.81),
    Row("FairFace age", _LLAVA, 52.49, 45.12, 47.61, 49.73),
    Row("FairFace age", _NVILA, 61.60, 53.38, 55.71, 59.61),
    Row("FairFace age", _OURS, 72.12, 66.20, 67.67, 70.05),
    Row("FairFace gender", _LLAVA_OV, 95.18, 95.14, 95.17, 95.21),
    Row("FairFace gender", _LLAVA, 93.33, 92.13, 92.56, 93.04),
    Row("FairFace gender", _NVILA, 94.69, 94.71, 94.68, 94.67),
    Row("FairFace gender", _OURS, 95.79, 95.80, 95.78, 95.76),
    Row("FairFace race", _LLAVA_OV, 76.97, 74.43, 76.58, 83.47),
    Row("FairFace race", _LLAVA, 51.33, 55.21, 49.21, 58.78),
    Row("FairFace race", _NVILA, 79.99, 79.77, 79.77, 79.88),
    Row("FairFace race", _OURS, 80.66, 79.95, 80.54, 81.42),
    Row("UTKFace age", _LLAVA_OV, 65.73, 60.57, 61.12, 62.36),
    Row("UTKFace age", _LLAVA, 54.51, 49.43, 50.17, 51.87),
    Row("UTKFace age", _NVILA, 64.06, 59.78, 60.02, 61.53),
    Row("UTKFace age", _OURS, 78.16, 71.85, 74.15, 77.26),
    Row("UTKFace gender", _LLAVA_OV, 97.16, 97.16, 97.16, 97.17),
    Row("UTKFace gender", _LLAVA, 97.01, 96.98, 96.88, 96.79),
    Row("UTKFace gender", _NVILA, 97.43, 97.43, 97.43, 97.43),
    Row("UTKFace gender", _OURS, 98.43, 97.36, 98.07, 98.16),
    Row("UTKFace race", _LLAVA_OV, 85.56, 83.44, 81.54, 81.66),
    Row("UTKFace race", _LLAVA, 67.44, 43.77, 42.36, 44.32),
    Row("UTKFace race", _NVILA, 88.06, 78.77, 79.52, 83.55),
    Row("UTKFace race", _OURS, 88.66, 81.21, 82.19, 84.20),
    Row("ExpW", _LLAVA_OV, 71.68, 47.59, 49.23, 56.33),
    Row("ExpW", _LLAVA, 70.72, 46.71, 48.14, 55.42),
    Row("ExpW", _NVILA, 74.31, 48.36, 49.52, 56.68),
    Row("ExpW", _OURS, 78.47, 50.09, 50.92, 59.36),
    Row("RAF-DB", _LLAVA_OV, 78.43, 60.94, 60.34, 66.94),
    Row("RAF-DB", _LLAVA, 77.45, 62.60, 61.01, 65.68),
    Row("RAF-DB", _NVILA, 76.40, 57.18, 57.22, 63.66),
    Row("RAF-DB", _OURS, 79.47, 69.11, 68.19, 72.68),
)


def excess(row: Row) -> float:
    """Return by how much F1 is above (P + R) / 2, in per cent; above ROUNDING no single averaging gives the row."""
    return row.f1 - (row.precision + row.recall) / 2


def contradictions() -> list[Row]:
    """Return the published rows whose F1, precision and recall cannot come from one averaging."""
    return [row for row in ROWS if excess(row) > ROUNDING]


def micro_f1(accuracy: float, positive_rate: float, missed: float) -> float:
    """Return F1 over all cells, from 0 to 1, which accuracy, positive rate and the kinds of errors determine.

    Args:
        accuracy: the share of right cells.
        positive_rate: the share of positive cells in the labels.
        missed: the errors' share that are positives which were not predicted; the others were predicted wrongly.
    Raises:
        ValueError: more positives missed than there are.
    """
    errors = 1 - accuracy
    right = positive_rate - errors * missed
    if right < 0:
        raise ValueError(f"{errors * missed:.3f} of the cells missed, but only {positive_rate:.3f} are positive")
    return 2 * right / (2 * right + errors)
