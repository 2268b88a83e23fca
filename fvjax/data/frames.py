"""Frames of video files, evenly spaced, through PyAV (extra `video`).

Only containers of VIDEO_FORMATS are opened, each by the demuxer that its suffix names: FFmpeg's own guess may take a
file for a playlist that names other files or addresses. The number of frames and of pixels is bounded, and no more than
the wanted frames are in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvjax.data import images

FRAMES = 8  # of a clip, in the published models
VIDEO_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".avi": "avi", ".mkv": "matroska", ".webm": "matroska"}
MAX_FRAMES = 50_000  # of a file: half an hour at 25 a second
MAX_PIXELS = images.MAX_PIXELS  # of a frame
QUARTER = 90  # degrees


class NoVideoReader(ValueError):
    """PyAV is not installed."""


def indices(frames: int, count: int = FRAMES) -> list[int]:
    """Return which frames of a video of ``frames`` frames are taken: evenly spaced, the first and the last included.

    A video of fewer frames repeats some, one of a single frame repeats it. Raises ValueError: no frames.
    """
    if frames < 1 or count < 1:
        raise ValueError(f"empty video: {frames} frames, of which {count} are wanted")
    return np.linspace(0, frames - 1, count).astype(int).tolist()


def extract(file: Path, count: int = FRAMES) -> tuple[list[NDArray[np.uint8]], int]:
    """Decode evenly spaced frames of a video file.

    Returns:
        ``count`` frames uint8 [H, W, 3], RGB, upright and all of one size, and the number of frames of the file.
    Raises:
        NoVideoReader: the extra `video` is not installed.
        ValueError: no such file, no video, broken anywhere, without a frame, or too large. What stands before the colon
            is the kind of mistake.
    """
    total = sum(1 for _ in _decode(file))  # what containers say of their length is often wrong
    try:
        wanted = indices(total, count)
    except ValueError:
        raise ValueError(f"empty video: {file.name} has no frames") from None
    chosen = {number: _pixels(frame) for number, frame in enumerate(_decode(file)) if number in set(wanted)}
    if set(wanted) - set(chosen) or len({frame.shape for frame in chosen.values()}) > 1:
        raise ValueError(f"broken video: {file.name} has frames of several sizes or changes while it is read")
    return [chosen[number] for number in wanted], total


def require_reader() -> None:
    """Raise NoVideoReader unless videos can be read here."""
    _av()


def to_jpegs(frames: list[NDArray[np.uint8]]) -> list[bytes]:
    """Encode the frames of a clip."""
    return [images.encode(frame, size=(frame.shape[0], frame.shape[1])) for frame in frames]


def _decode(file: Path) -> Iterator[Any]:
    """Yield the frames of a video, one at a time. Raises as :func:`extract` does."""
    av = _av()
    if file.suffix.lower() not in VIDEO_FORMATS:
        raise ValueError(f"unreadable video: {file.name} is none of {', '.join(VIDEO_FORMATS)}")
    with contextlib.ExitStack() as stack:
        try:
            # A file object: FFmpeg would take some names for addresses.
            stream = stack.enter_context(file.open("rb"))
            container = stack.enter_context(av.open(stream, format=VIDEO_FORMATS[file.suffix.lower()]))
            if not container.streams.video:
                raise ValueError(f"unreadable video: {file.name} has no video stream")
            video = container.streams.video[0]
            if video.width * video.height > MAX_PIXELS:
                raise ValueError(f"too large video: {file.name} has {video.width}x{video.height} pixels")
            for number, frame in enumerate(container.decode(video)):
                if number >= MAX_FRAMES:
                    raise ValueError(f"too long video: {file.name} has more than {MAX_FRAMES} frames; cut it")
                if frame.width * frame.height > MAX_PIXELS:
                    raise ValueError(f"too large video: {file.name} has {frame.width}x{frame.height} pixels")
                yield frame
        except FileNotFoundError:
            raise ValueError(f"missing video: {file.name}") from None
        except (av.error.FFmpegError, OSError) as error:
            raise ValueError(f"broken video: {file.name} ({str(error)[:200]})") from None


def _pixels(frame: Any) -> NDArray[np.uint8]:
    """Return a frame in RGB, upright as its display matrix says."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / QUARTER)))


def _av() -> Any:
    try:
        import av
        import av.error
    except ImportError:
        raise NoVideoReader("videos need PyAV: python -m pip install 'fvjax[video]'") from None
    return av
