"""Models that are not fvjax's: an ONNX file, or a function of one's own, evaluated and used like any model of ours."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvjax import plugins
from fvjax.data.images import SIZE

Embed = Callable[[NDArray], NDArray]  # uint8 [N, 112, 112, 3] RGB -> float [N, D], not normalised
IMAGE_SIZE = (SIZE, SIZE)
CHANNELS = ("rgb", "bgr")
PIXELS = {  # how a network reads pixels: what is subtracted from 0 … 255, and what that is divided by
    "-1..1": (127.5, 127.5),
    "-1..1/128": (127.5, 128.0),  # insightface's older networks
    "0..1": (0.0, 255.0),
    "0..255": (0.0, 1.0),
    "imagenet": (np.array([123.675, 116.28, 103.53], np.float32), np.array([58.395, 57.12, 57.375], np.float32)),
}


@dataclass(frozen=True)
class ForeignModel:
    """A model that is not fvjax's, with what users of :class:`fvjax.api.Model` ask of it.

    Attributes:
        embed: the model itself.
        digest: the hash of its file or of its source.
        batch_size: how many faces it is given at a time.
        run: None, because it comes from no training run of ours.
        yes_no: (), because it embeds faces and does not answer.
    """

    embed: Embed
    digest: str
    batch_size: int = 64
    run: None = field(default=None, init=False)
    yes_no: tuple[int, ...] = field(default=(), init=False)

    @property
    def encoder(self) -> ForeignModel:
        """The part that knows `yes_no`, as in our models."""
        return self

    def p_same(self, a: NDArray, b: NDArray) -> NDArray:
        """Raise ValueError: only our models answer about pairs."""
        raise ValueError("a model that is not fvjax's has embeddings and no answers; compare those by cosine")


def of_function(spec: str) -> tuple[Embed, str]:
    """Return the function that `module:name` names, and the hash of its source.

    It is called as name(faces uint8 [N, 112, 112, 3] RGB) and returns float [N, D]. Raises ValueError: there is none.
    """
    if not plugins.is_spec(spec):
        raise ValueError(f"--embedder={spec}: name a function as module:name")
    function: Embed = plugins.load(spec)
    if not callable(function):
        raise ValueError(f"--embedder={spec}: that is no function")
    return checked(function, spec), plugins.source_hash(spec)


def of_onnx(file: Path, channels: str = "rgb", pixels: str = "-1..1") -> tuple[Embed, str]:
    """Open an ONNX file as an embedder (extra `onnx`); return it with the hash of the file.

    Args:
        file: a network with one input, float32 [N, 3, 112, 112] or [N, 112, 112, 3]. With N = 1 it is given one face at
            a time. Its first output is the embedding.
        channels: the order in which the network reads colours, "rgb" or "bgr".
        pixels: the values it reads, one of PIXELS.
    Raises:
        ValueError: onnxruntime is missing, the file is no such network, or another word for channels or pixels.
    """
    if channels not in CHANNELS or pixels not in PIXELS:
        raise ValueError(f"--channels is one of {', '.join(CHANNELS)}, --pixels one of {', '.join(PIXELS)}")
    digest = hash_of(file)
    session = _session(file)
    inputs = session.get_inputs()
    shape = inputs[0].shape
    chw, hwc = shape[1:] == [3, *IMAGE_SIZE], shape[1:] == [*IMAGE_SIZE, 3]
    free = len(shape) == 4 and shape[1] == 3 and not all(isinstance(size, int) for size in shape[2:])
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not (chw or hwc or free):
        found = "; ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        raise ValueError(f"{file} reads {found}; expected one input, float [N, 3, 112, 112] or [N, 112, 112, 3]")
    at_a_time = shape[0] if isinstance(shape[0], int) else 0  # 0: as many as there are
    shift, scale = PIXELS[pixels]

    def embed(faces: NDArray) -> NDArray:
        x = (faces.astype(np.float32) - shift) / scale
        x = np.asarray(x[..., ::-1] if channels == "bgr" else x, np.float32)
        x = np.ascontiguousarray(x if hwc else x.transpose(0, 3, 1, 2))
        step = at_a_time or len(x)
        parts = [_padded(x[start : start + step], step) for start in range(0, len(x), step)]
        out = [session.run(None, {inputs[0].name: part})[0].reshape(step, -1) for part in parts]
        return np.concatenate(out)[: len(x)]

    return checked(embed, str(file)), digest


def hash_of(file: Path) -> str:
    """Return the sha256 of a file. Raises ValueError: there is no such file."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def checked(function: Embed, name: str) -> Embed:
    """Return an embedder that raises ValueError, which begins with `name`, if it returns no embeddings of the faces."""

    def embed(faces: NDArray) -> NDArray:
        out = np.asarray(function(faces))
        if out.ndim != 2 or len(out) != len(faces) or not np.issubdtype(out.dtype, np.floating):
            raise ValueError(f"{name} returned {out.dtype} {list(out.shape)} for {len(faces)} faces, not float [N, D]")
        if not np.isfinite(out).all():
            row = int(np.argmin(np.isfinite(out).all(1)))
            raise ValueError(f"{name} returned a value that is not finite, first for face {row} of a batch")
        return out.astype(np.float32)

    return embed


def require_onnxruntime() -> Any:
    """Return the module onnxruntime. Raises ValueError if it is not installed."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ValueError("ONNX files need onnxruntime: uv sync --extra onnx, or pip install 'fvjax[onnx]'") from None
    return onnxruntime


def _session(file: Path) -> Any:
    """Open an ONNX file on the CPU. Raises ValueError."""
    onnxruntime = require_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: it warns about every single weight of a network in an older format
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception class for each kind of problem, without a common base
        raise ValueError(f"{file}: not an ONNX network that onnxruntime can run ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _padded(part: NDArray, rows: int) -> NDArray:
    return np.concatenate([part, np.repeat(part[-1:], rows - len(part), 0)]) if len(part) < rows else part
