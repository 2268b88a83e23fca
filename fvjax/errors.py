"""Report errors of the operating system to people in one line: the file, the problem and the remedy."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOM = "free space there, or choose another disk"
REMEDIES = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: "files may not grow so large here (ulimit -f)",
    errno.EROFS: "choose a directory that can be written to",
    errno.EACCES: "choose a path that this user may use, or change its permissions",
    errno.EPERM: "choose a path that this user may use, or change its permissions",
    errno.ENOTDIR: "a part of that path is a file; choose another",
    errno.EEXIST: "choose another path",
}


class WorkerLost(Exception):
    """A process that decodes images was killed. This is no user error: the run can resume from its last checkpoint."""


class Environment(Exception):
    """Something around the program is missing, such as a home directory. Its text is one line for the user."""


def of_environment(error: RuntimeError | AssertionError) -> str | None:
    """Return one line about a missing device or home directory, or None for an error of another kind."""
    text = " ".join(str(error).split())
    wanted = os.environ.get("JAX_PLATFORMS", "")
    no_device = isinstance(error, AssertionError) and not text and wanted not in ("", "cpu")  # jax: `assert backend`
    if no_device or "nable to initialize backend" in text:
        remedy = "unset JAX_PLATFORMS or set JAX_PLATFORMS=cpu, or install the extra of that device"
        return f"JAX_PLATFORMS={wanted}: jax finds no such device here; {remedy}"
    if "home directory" in text:
        return f"{text} Set HOME to a directory that this user may write to"
    return None


def without_addresses(text: str) -> str:
    """Remove memory addresses from a message (<_io.BytesIO object at 0x7f…>), so that equal errors have equal texts."""
    return re.sub(r" at 0x[0-9A-Fa-f]+\b", "", text)


def line(error: Exception) -> str:
    """Format an error for an entry point to print: an OSError with its remedy, any other error as its own text."""
    text = without_addresses(str(error))
    if not isinstance(error, OSError):
        return text
    if error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    # Matched by text, because errors from C++ and Rust libraries have no error number.
    return next((f"{text}; {remedy}" for code, remedy in REMEDIES.items() if os.strerror(code) in text), text)


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Add `path` to OSErrors that name no file: a failed open names its file, a failed write does not."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(Path(path))) from error
