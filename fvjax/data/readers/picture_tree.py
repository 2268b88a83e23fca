"""The pictures in folders as people have them: with hidden files, tools' leftovers, links and unreadable places.

Every file below the folder is either listed as a picture or left out for a reason, and no file is listed twice.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fvjax.data import names, picture_files
from fvjax.data.readers.files import require_directory

LOOSE = "in no identity's folder"  # the kind of reason for pictures that lie beside the folders


class LeftOut(NamedTuple):
    """A file that is not taken, relative to the root. What stands before the reason's colon is the kind of reason."""

    file: str
    reason: str


@dataclass
class People:
    """The identities of a folder that has one folder for each of them.

    Attributes:
        folders: by the identity's name, its folders; several if their names differ in Unicode form or blanks only.
        left_out: what lies beside these folders.
    """

    folders: dict[str, list[str]]
    left_out: list[LeftOut]

    @property
    def differing_in_case(self) -> list[list[str]]:
        """Groups of identities whose names differ in upper and lower case only."""
        groups: dict[str, list[str]] = defaultdict(list)
        for name in self.folders:
            groups[name.casefold()].append(name)
        return [sorted(group) for group in groups.values() if len(group) > 1]


def list_people(src: Path) -> People:
    """List the folders of identities in ``src``, sorted by name, and what lies beside them.

    Raises:
        ValueError: no such folder.
    """
    folders: dict[str, list[str]] = {}
    left_out: list[LeftOut] = []
    for entry in sorted(os.listdir(require_directory(src))):
        if reason := names.leftover(entry):
            left_out += _below(src, entry, reason)
        elif not (src / entry).is_dir():
            kind = LOOSE if picture_files.is_picture(entry) else "not a picture"
            left_out.append(LeftOut(entry, f"{kind}: it lies directly in {src.name or src}"))
        elif name := names.identity(entry):
            folders.setdefault(name, []).append(entry)
        else:
            left_out += _below(src, entry, "no name: the folder's name is blank")
    return People({name: folders[name] for name in sorted(folders)}, left_out)


class PictureTree:
    """The files below some folders: the pictures among them, and the others with a reason.

    Links are followed, also out of the root, but not into the folder of another identity. Of several ways to a file the
    one without links is taken, else the first.

    Args:
        root: the folder that has one folder for each identity.
        folders: those to list, relative to the root.
    Attributes:
        files: pictures by their suffix, relative to the root: folder by folder, sorted within each.
        left_out: the other files.
    """

    def __init__(self, root: Path, folders: Sequence[str]):
        self._root = root
        self._real_root = os.path.realpath(root)
        self._taken: dict[str, str] = {}  # by real path, the files and folders that are listed
        self._links: list[str] = []
        self.files: list[str] = []
        self.left_out: list[LeftOut] = []
        for folder in folders:
            if os.path.islink(root / folder):
                self._links.append(folder)
            else:
                self._walk(folder)
        for link in self._links:  # grows, as what links lead to may have links
            self._follow(link)
        order = {folder: i for i, folder in enumerate(folders)}
        self.files.sort(key=lambda file: _position(file, order))
        self.left_out.sort(key=lambda entry: _position(entry.file, order))

    def _walk(self, folder: str) -> None:
        pending = [folder]
        while pending:
            folder = pending.pop()
            real = os.path.realpath(self._root / folder)
            if real in self._taken:
                self._leave_out(folder, f"link: leads to {names.plain(self._taken[real])!r}, which is taken")
                continue
            self._taken[real] = folder
            for entry in self._scan(folder):
                file = os.path.join(folder, entry.name)
                if reason := names.leftover(entry.name):
                    self.left_out += _below(self._root, file, reason)
                elif entry.is_symlink():
                    self._links.append(file)
                elif entry.is_dir():
                    pending.append(file)
                else:
                    self._add(file, os.path.join(real, entry.name), entry.is_file())

    def _follow(self, link: str) -> None:
        """Add what a link leads to, unless that is listed already or belongs elsewhere."""
        target = os.path.realpath(self._root / link)
        within = os.path.relpath(target, self._real_root).split(os.sep)[0]
        if target in self._taken:
            self._leave_out(link, f"link: leads to {names.plain(self._taken[target])!r}, which is taken")
        elif not os.path.exists(target):
            self._leave_out(link, "link to nothing: there is no such file")
        elif os.path.join(self._real_root, "").startswith(os.path.join(target, "")):
            self._leave_out(link, "link: leads to a folder that it lies in")
        elif within not in ("..", link.split(os.sep)[0]) and not names.leftover(within):
            self._leave_out(link, f"link: leads to the folder {names.plain(within)!r}, which is another identity's")
        elif os.path.isdir(target):
            self._walk(link)
        else:
            self._add(link, target, os.path.isfile(target))

    def _add(self, file: str, real: str, is_file: bool) -> None:
        if not is_file:
            self._leave_out(file, "not a file: a pipe, socket or device")
        elif not picture_files.is_picture(file):
            self._leave_out(file, picture_files.NO_PICTURE)
        else:
            self._taken[real] = file
            self.files.append(file)

    def _scan(self, folder: str) -> list[os.DirEntry]:
        try:
            with os.scandir(self._root / folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self._leave_out(folder, f"unreadable folder: {error.strerror}")
            return []

    def _leave_out(self, file: str, reason: str) -> None:
        self.left_out.append(LeftOut(file, reason))


def _position(file: str, order: Mapping[str, int]) -> tuple[int, str, str]:
    return order[file.split(os.sep)[0]], *os.path.split(file)


def _below(root: Path, path: str, reason: str) -> list[LeftOut]:
    """Leave out a file, or every file below a folder; links in it are not followed."""
    if os.path.islink(root / path) or not os.path.isdir(root / path):
        return [LeftOut(path, reason)]
    left_out: list[LeftOut] = []

    def note_error(error: OSError) -> None:
        left_out.append(LeftOut(os.path.relpath(error.filename, root), f"unreadable folder: {error.strerror}"))

    for folder, folders, files in sorted(os.walk(root / path, onerror=note_error)):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        left_out += [
            LeftOut(os.path.relpath(os.path.join(folder, name), root), reason) for name in sorted(files + links)
        ]
    return left_out
