"""Photographs to aligned crops, in several processes."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fvjax.data import images, names, picture_files
from fvjax.data.alignment import geometry, landmarks
from fvjax.data.alignment.detectors import Detector, Face, detector, find, nearest, usable


class Crop(NamedTuple):
    """The result for one photograph."""

    jpeg: bytes | None  # the 112x112 crop, None if there is none
    faces: int | None  # the number of faces detected, or 1 if points are known; None if the file could not be read
    problem: str  # why there is no crop, or only the photograph's centre; empty if all is well


class Aligner:
    """Make aligned crops of photographs, and count the results.

    Args:
        name: a detector's name, or None with ``landmarks``.
        landmarks: the file of known points, and the points by file name.
        policy: "fallback" takes the centre of a photograph without a face; "drop" and "fail" make no crop of it.
        workers: the number of processes; the crops do not depend on it.
    Attributes:
        no_face: the files in which no face was detected so far, or of which no points are known.
    Raises:
        ValueError, OSError: as :func:`detector`.
    """

    def __init__(
        self, name: str | None, landmarks: tuple[Path, dict[str, NDArray]] | None, *, policy: str, workers: int
    ):
        if workers < 1:
            raise ValueError(f"--workers={workers}: at least one is needed")
        geometry.import_opencv()
        self.name = name
        self.policy = policy
        self.workers = workers
        self.points: dict[str, NDArray] = {}
        self.rows_without_picture: int | None = None
        if landmarks is not None:
            file, self.points = landmarks
            self._list_name = file.name
            self.description = f"{file.name}, SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
        elif name is not None:
            self.description = detector(name)[1]  # so that errors are raised here rather than in every worker
        self.no_face: list[str] = []
        self.counts = Counter(aligned=0, several_faces=0, no_face=0, no_points=0, unreadable=0)

    def run(self, src: Path, files: Sequence[str]) -> Generator[Crop, None, None]:
        """Yield one crop for each of ``files`` (relative to ``src``), in order. Closing it ends the processes.

        Raises:
            ValueError: the list of known points names none of the files.
        """
        points = self._match(src, files)
        missing = "" if self.name else f"no points: no row of {self._list_name} names it"
        tasks = ((src, file, points.get(file), missing, self.policy == "fallback") for file in files)
        if self.workers == 1:
            _start_worker(self.name)
            yield from (self._count(task[1], _crop(*task)) for task in tasks)
            return
        context = multiprocessing.get_context("spawn")  # a fork would copy threads of TFDS and rich half-way
        with ProcessPoolExecutor(self.workers, context, initializer=_start_worker, initargs=(self.name,)) as pool:
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
                    reason = "a worker was killed at about this file, perhaps for lack of memory"
                    raise ValueError(f"{file}: {reason}; try fewer --workers") from error
                yield self._count(file, crop)

    def _match(self, src: Path, files: Sequence[str]) -> dict[str, NDArray]:
        if self.name or not files:
            return {}
        points = landmarks.match_landmarks(self.points, files)
        if not points:
            example = f"{next(iter(self.points))!r}, expected names such as {names.path(files[0])!r}"
            raise ValueError(f"{self._list_name}: names none of the {len(files)} pictures of {src}; it has {example}")
        self.rows_without_picture = len(self.points) - len(points)
        return points

    def _count(self, file: str, crop: Crop) -> Crop:
        without = "no_face" if self.name else "no_points"
        self.counts["unreadable" if crop.faces is None else "aligned" if crop.faces else without] += 1
        self.counts["several_faces"] += (crop.faces or 0) > 1
        if crop.faces == 0:
            self.no_face.append(file)
        return crop

    def report(self) -> dict[str, Any]:
        """Return the manifest's entry; images = aligned + no_face + no_points + unreadable."""
        is_fallback = self.policy == "fallback"
        return {
            "by": self.description,
            "template": "ArcFace's five points, 112x112",
            "face": "the one nearest to the centre",
            "policy": self.policy,
            "fallback": f"the middle square of {geometry.FALLBACK} of the shorter side" if is_fallback else None,
            "images": sum(self.counts[key] for key in ("aligned", "no_face", "no_points", "unreadable")),
            **self.counts,
            "several_faces": self.counts["several_faces"] if self.name else None,  # unknown with a list of points
            "rows_without_picture": self.rows_without_picture,  # of the list of points, if there is one
            "no_face_files" if self.name else "no_points_files": [names.plain(file) for file in self.no_face],
        }


@contextlib.contextmanager
def crops(
    aligner: Aligner | None, src: Path, files: Sequence[str], info: dict[str, Any]
) -> Generator[Iterator[Crop | None], None, None]:
    """Iterate over the crops of ``files``, or over None for each without an aligner.

    On exit the aligner's report is added to ``info``.
    """
    if aligner is None:
        yield itertools.repeat(None)
        return
    with contextlib.closing(aligner.run(src, files)) as iterator:
        yield iterator
    info["alignment"] = aligner.report()


_detect: Detector  # each process has its own, as the networks have state


def _start_worker(name: str | None) -> None:
    """Set up a worker with its detector; it exits when its parent has ended, which a killed parent cannot announce."""
    global _detect
    geometry.import_opencv().setNumThreads(1)  # parallelism comes from the processes
    images.silence_pillow()
    _detect = detector(name)[0] if name else lambda photograph: []
    if parent := multiprocessing.parent_process():
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _crop(src: Path, file: str, points: NDArray | None, missing: str, fallback: bool) -> Crop:
    """Make the crop of one photograph.

    Args:
        points: those of the face, if they are known.
        missing: why they are not, instead of looking for a face; "" looks for one.
        fallback: take the photograph's centre if there is no face.
    """
    try:
        photograph = images.photograph(picture_files.read(src, file), file)
    except ValueError as error:
        return Crop(None, None, str(error))
    if points is not None:
        faces = [Face(points, np.concatenate([points.min(axis=0), points.max(axis=0)]), 1.0)]
    elif missing:
        faces = []
    else:
        faces = usable(find(_detect, photograph))
    if faces:
        return Crop(images.encode(geometry.warp(photograph, nearest(faces, photograph).points)), len(faces), "")
    crop = images.encode(geometry.centre(photograph)) if fallback else None
    return Crop(crop, 0, f"{file}: {missing or 'no face found'}")


def face_jpeg(src: Path, file: str, *, resize: bool, crop: Crop | None) -> bytes:
    """Return the JPEG to store of one image file, or of its aligned crop.

    Args:
        file: relative to ``src``.
        resize: see :func:`fvjax.data.images.to_jpeg`.
        crop: the aligned crop; None takes the file itself.
    Raises:
        WrongSize: the image has another size.
        ValueError: it cannot be used.
    """
    if crop is None:
        jpeg = images.to_jpeg(picture_files.read(src, file), file, resize)
        images.check(jpeg, file)
        return jpeg
    if crop.jpeg is None:
        raise ValueError(crop.problem)
    return crop.jpeg
