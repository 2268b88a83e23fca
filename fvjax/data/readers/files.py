"""What readers of folders and lists have in common."""

from __future__ import annotations

import codecs
import hashlib
import os
from pathlib import Path

from fvjax.data import names, picture_files

_ENCODINGS = {  # by byte order mark, as Notepad and PowerShell write them
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
MAX_LIST_BYTES = 1 << 30  # of a list; that of ten million files has as many


def require_directory(path: Path) -> Path:
    """Return ``path``. Raises ValueError if it is no directory."""
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder")
    return path


def encoding_of(data: bytes) -> str:
    """Return the encoding of a text file by its first bytes: UTF-8 unless a byte order mark says another."""
    return next((name for mark, name in _ENCODINGS.items() if data.startswith(mark)), "utf-8")


def read_text(file: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte order mark. Every end of a line becomes a newline.

    Raises:
        ValueError: no such file, larger than MAX_LIST_BYTES, or in another encoding.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    if (size := file.stat().st_size) > MAX_LIST_BYTES:
        raise ValueError(f"{file}: {size} bytes, at most {MAX_LIST_BYTES}; is it a list?")
    data = file.read_bytes()
    encoding = encoding_of(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(file: Path) -> list[tuple[int, str]]:
    """Read (line number, line) from a text file (:func:`read_text`), without blank lines and '#' comments.

    Raises:
        ValueError: no such file, no text, or no lines.
    """
    # Not splitlines, which divides names at characters such as U+0085 and U+2028.
    lines = read_text(file).split("\n")
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not numbered:
        raise ValueError(f"{file}: empty")
    return numbered


class Copies:
    """Recognises pictures that are the same, byte for byte, as an earlier one."""

    def __init__(self):
        self._first: dict[bytes, str] = {}

    def first(self, jpeg: bytes, file: str) -> str:
        """Return the first file with this picture, which is ``file`` itself if the picture is new."""
        return self._first.setdefault(hashlib.sha256(jpeg).digest()[:16], file)


class FileNames:
    """Find the files of a folder that a list names.

    Names are compared in one form (:mod:`fvjax.data.names`), and a picture is found whatever its suffix: lists of LFW
    name none, and tools write PNG or .JPG where a list says .jpg.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path):
        self.root = root
        self._folders: dict[str, list[str]] = {}  # relative path: the names in it

    def find(self, name: str) -> str | None:
        """Return the path of the file that a list calls ``name``, relative to the root.

        Returns:
            None if there is no such file, or if ``name`` is no path below the root.
        Raises:
            ValueError: several files could be meant.
        """
        *folders, wanted = names.path(name).split("/")
        if ".." in (*folders, wanted) or os.path.isabs(name):
            return None
        if (self.root / name).is_file():
            return name
        parents = [""]
        for folder in folders:
            parents = [
                os.path.join(parent, entry)
                for parent in parents
                for entry in self._entries(parent)
                if names.normal(entry) == folder and (self.root / parent / entry).is_dir()
            ]
        return self._choose(name, wanted, parents)

    def _choose(self, name: str, wanted: str, parents: list[str]) -> str | None:
        entries = [(parent, entry) for parent in parents for entry in self._entries(parent)]
        stem = picture_files.without_suffix(wanted)
        matching = (
            lambda entry: names.normal(entry) == wanted,
            lambda entry: picture_files.is_picture(entry) and picture_files.without_suffix(names.normal(entry)) == stem,
        )
        for matches in matching if stem != wanted else matching[:1]:
            paths = [os.path.join(parent, entry) for parent, entry in entries if matches(entry)]
            paths = sorted(path for path in paths if (self.root / path).is_file())
            if len(paths) > 1:
                raise ValueError(f"{name}: {paths[0]!r} or {paths[1]!r} could be meant; rename or remove one of them")
            if paths:
                return paths[0]
        return None

    def _entries(self, folder: str) -> list[str]:
        if folder not in self._folders:
            directory = self.root / folder
            self._folders[folder] = sorted(os.listdir(directory)) if directory.is_dir() else []
        return self._folders[folder]
