"""Files of pictures: which these are by their names, and reading them."""

from __future__ import annotations

import stat
from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp")
NO_PICTURE = f"not a picture: its suffix is none of {', '.join(SUFFIXES)}"


def is_picture(file: str) -> bool:
    """Tell whether a file's suffix is that of a picture, whatever its case."""
    return file.rstrip().lower().endswith(SUFFIXES)


def without_suffix(file: str) -> str:
    """Return a file's name or path without the suffix of a picture."""
    return file[: file.rindex(".")] if is_picture(file) else file


def read(src: Path, file: str) -> bytes:
    """Read a picture's file.

    Args:
        file: relative to ``src``.
    Raises:
        ValueError: it is no picture by its suffix, missing, or cannot be read. The message begins with ``file``.
    """
    if not is_picture(file):
        raise ValueError(f"{file}: {NO_PICTURE}")
    try:
        if not stat.S_ISREG((src / file).stat().st_mode):
            raise ValueError(f"{file}: not a file: it is a folder, pipe or device")
        return (src / file).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{file}: missing") from error
    except OSError as error:
        raise ValueError(f"{file}: unreadable file: {error.strerror}") from error
