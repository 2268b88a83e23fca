"""Errors of the operating system as one line for people: the file, what is wrong with it, what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOM = "make room there, or choose another disk"
REMEDIES = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: "files may not grow so large here (ulimit -f)",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "choose a place that this user may use, or change its permissions",
    errno.EPERM: "choose a place that this user may use, or change its permissions",
    errno.ENOTDIR: "a part of that path is a file; choose another",
    errno.EEXIST: "choose another path",
}


class WorkerLost(Exception):
    """A process that decodes images is gone; nobody's mistake, and the run can go on from its last checkpoint."""


def line(error: Exception) -> str:
    """What an entry point prints: an OSError with its remedy, any other error's own text."""
    text = str(error)
    if not isinstance(error, OSError):
        return text
    if error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    # by the words, because what libraries in C++ and Rust report has no number
    return next((f"{text}; {remedy}" for code, remedy in REMEDIES.items() if os.strerror(code) in text), text)


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Name `path` in OSErrors that name no file: a failed open knows its file, a failed write does not."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(Path(path))) from error
