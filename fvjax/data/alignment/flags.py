"""The command line's flags about photographs, and the download of LFW's."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fvjax.data.alignment.aligner import Aligner
from fvjax.data.alignment.detectors import DETECTORS
from fvjax.data.alignment.landmarks import read_landmarks


def add_flags(parser: argparse.ArgumentParser, policy: str) -> None:
    """Add the flags about photographs; ``policy`` is the default of --policy."""
    parser.add_argument("--align", nargs="?", const="mtcnn", choices=DETECTORS, help="align photographs (by mtcnn)")
    parser.add_argument("--landmarks", type=Path, help="align photographs by the points in this file")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that align (one per core)")
    policies, what = ("fail", "drop", "fallback"), "for images without a face, missing or broken (%(default)s)"
    parser.add_argument("--policy", choices=policies, default=policy, help=what)


def take_flags(options: dict[str, Any], read_lines: Callable[[Path], list[tuple[int, str]]]) -> None:
    """Replace the flags of :func:`add_flags` in ``options`` by "aligner", and --download by "src" and "pairs".

    Args:
        read_lines: reads a text file as (line number, line), without comments.
    Raises:
        ValueError: flags that exclude each other.
    """
    name, landmarks, workers = (options.pop(key) for key in ("align", "landmarks", "workers"))
    if bool(name) + bool(landmarks) + options["resize"] > 1:
        raise ValueError("--align, --landmarks and --resize exclude each other: choose one")
    if options["policy"] == "fallback" and not (name or landmarks):
        raise ValueError("--policy=fallback takes the centre of photographs without a face: add --align or --landmarks")
    known = (landmarks, read_landmarks(landmarks, read_lines(landmarks))) if landmarks else None
    options["aligner"] = Aligner(name, known, policy=options["policy"], workers=workers) if name or known else None
    if options.pop("download", False):
        if options["src"] or options["pairs"] or not options["aligner"]:
            raise ValueError("--download brings photographs and pairs: add --align, and no --src or --pairs")
        options["src"], options["pairs"] = download_lfw()


def download_lfw() -> tuple[Path, Path]:
    """Download LFW's funneled photographs (250x250, about 200 MB) and pairs.txt with scikit-learn, which checks them.

    Returns:
        the folder and the file, where scikit-learn stores its data ($SCIKIT_LEARN_DATA, or ~/scikit_learn_data).
    Raises:
        ValueError: scikit-learn is not installed, or cannot fetch them.
    """
    try:
        from sklearn import datasets

        with warnings.catch_warnings(action="ignore"):  # about a second attempt
            # The result is cut and scaled down, but the photographs stay on the disk; "test" is its smallest part.
            datasets.fetch_lfw_pairs(subset="test", n_retries=1)
    except ImportError as error:
        raise ValueError(f"--download: {error}; install it: uv sync --extra align") from error
    except OSError as error:
        raise ValueError(f"--download: scikit-learn cannot fetch LFW ({error}); give --src and --pairs") from error
    home = Path(datasets.get_data_home()) / "lfw_home"
    return home / "lfw_funneled", home / "pairs.txt"
