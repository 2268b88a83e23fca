"""The network that `fvjax verify` uses where no model is given: OpenCV's SFace, from the Hugging Face Hub.

The file is published under Apache-2.0 by OpenCV, which does not say what it was trained on. It reads RGB values from 0
to 255 of a face aligned to ArcFace's five points: OpenCV's FaceRecognizerSF::feature swaps the channels of its BGR
picture (`blobFromImage(..., swapRB=true)`), and the network itself subtracts 127.5 and divides by 128.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from fvjax import errors

NAME = "OpenCV's SFace"
REPOSITORY = "opencv/face_recognition_sface"
REVISION = "3d7082438a6e4551e840c9b2bb60b71e8da4b524"
FILE = "face_recognition_sface_2021dec.onnx"
SHA256 = "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79"  # also of OpenCV's model zoo
CHANNELS, PIXELS = "rgb", "0..255"
THRESHOLD = 0.363  # cosine
ORIGIN = (
    f"threshold {THRESHOLD} is OpenCV's, which states it with an accuracy of 99.60% on LFW and without a FAR "
    "(docs.opencv.org: DNN-based face detection and recognition); for one of your own: python -m fvjax.evaluate"
)
REMEDY = "give a model: --model=RUN, or --model=FILE.onnx"


def fetch() -> Path:
    """Return the network's file from the Hub's cache, downloading it once and saying so on standard error.

    Raises ValueError: it is not in the cache and cannot be downloaded, or it is not the file that is expected.
    """
    import huggingface_hub as hub
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        file = hub.hf_hub_download(REPOSITORY, FILE, revision=REVISION, local_files_only=True)
    except LocalEntryNotFoundError:
        size = "39 MB, Apache-2.0"
        print(f"fvjax: no --model: downloading {NAME} ({REPOSITORY}, {size}) to {HF_HUB_CACHE}", file=sys.stderr)
        try:
            with errors.naming(HF_HUB_CACHE):
                file = hub.hf_hub_download(REPOSITORY, FILE, revision=REVISION)
        except Exception as error:  # several libraries raise several types
            if isinstance(error, OSError) and error.errno is not None:
                raise  # an error of the disk
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise ValueError(f"{NAME} cannot be downloaded from {REPOSITORY}; {REMEDY} ({reason})") from error
    return checked(Path(file))


def checked(file: Path) -> Path:
    """Return ``file``. Raises ValueError if its contents are not those that were published."""
    with file.open("rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{file}: its SHA-256 is {found[:16]}…, expected {SHA256[:16]}…, so it is not {NAME} as it was published; "
            f"remove it and try again, or {REMEDY}"
        )
    return file
