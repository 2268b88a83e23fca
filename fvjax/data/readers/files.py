"""What readers of folders and lists have in common."""

from __future__ import annotations

from pathlib import Path

from fvjax.data import images
from fvjax.data.alignment.aligner import Crop
from fvjax.data.stores import Writer


def require_directory(path: Path) -> Path:
    """Return ``path``. Raises ValueError if it is no directory."""
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder")
    return path


def read_lines(file: Path) -> list[tuple[int, str]]:
    """Read (line number, line) from a text file, without blank lines and '#' comments.

    Raises:
        ValueError: no such file, not UTF-8, or no lines.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a text file ({error})") from error
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not numbered:
        raise ValueError(f"{file}: empty")
    return numbered


def add_file(
    writer: Writer, src: Path, file: str, identity: str, *, resize: bool, drop: bool, crop: Crop | None
) -> int | None:
    """Store one image file, or its aligned crop, and return the record's number.

    Args:
        file: relative to ``src``.
        resize: see :func:`fvjax.data.images.to_jpeg`.
        drop: reject an image that cannot be used, and return None, instead of raising an error.
        crop: the aligned crop; None stores the file itself.
    Raises:
        ValueError: the image has a wrong size, or cannot be used and ``drop`` is False.
    """
    try:
        if not file.lower().endswith(images.SUFFIXES):
            raise ValueError(f"{file}: suffix is none of {', '.join(images.SUFFIXES)}")
        if not (src / file).is_file():
            raise ValueError(f"{file}: missing")
        if crop is None:
            return writer.add(images.to_jpeg((src / file).read_bytes(), file, resize), identity, file)
        if crop.jpeg is None:
            raise ValueError(crop.problem)
        return writer.add(crop.jpeg, identity, file)
    except images.WrongSize as error:  # the whole source is likely to have that size, so it is never dropped
        raise ValueError(f"{src}: {error}") from error
    except ValueError as error:
        if not drop:
            raise ValueError(f"{src}: {error}; supply it, or leave out its pairs with --policy=drop") from error
        writer.reject(file, str(error))
        return None
