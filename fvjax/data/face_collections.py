"""The faces of a store, of a folder or of one picture, one after the other: aligned crops, and who they are of.

In a folder, the pictures of a person lie in a folder of their own; what lies beside these folders is left out. If no
picture lies in such a folder, the pictures are taken as they are, and nobody says who they are of. The face of a
photograph is found and aligned as `python -m fvjax.verify` does it: the one nearest to the centre.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from numpy.typing import NDArray

from fvjax.data import images, names
from fvjax.data.alignment.faces import read_picture, read_pixels
from fvjax.data.progress import track
from fvjax.data.readers.picture_tree import LOOSE, LeftOut, PictureTree, list_people
from fvjax.data.stores import Store
from fvjax.data.stores.manifest import read_manifest
from fvjax.data.stores.writer import kinds

CENTRE = "centre"  # which face of several


class Face(NamedTuple):
    """One face."""

    name: str  # of the picture's file
    identity: str | None  # the person's name; None: nobody says
    crop: NDArray  # uint8 [112, 112, 3] RGB


class FaceCollection(ABC):
    """Faces that are read one after the other.

    Attributes:
        path: where they come from.
        has_identities: whether it says who the faces are of.
        left_out: what is not among the faces, and why; pictures that cannot be used are added as they are met.
    """

    def __init__(self, path: Path, has_identities: bool, left_out: list[LeftOut]):
        self.path, self.has_identities, self.left_out = path, has_identities, left_out

    @abstractmethod
    def faces(self) -> Iterator[Face]:
        """Yield the faces in order. Raises ValueError if there are none, or a store is damaged."""

    def picture(self, name: str) -> NDArray | None:
        """Read the picture of a face, uint8 [h, w, 3] RGB; None if it is in a store, or cannot be read any more."""
        return None

    def reasons(self) -> dict[str, int]:
        """Count what was left out by the kind of reason."""
        return kinds([entry._asdict() for entry in self.left_out])


class _StoreFaces(FaceCollection):
    def __init__(self, path: Path):
        manifest = read_manifest(path)
        self._store = Store(path, manifest["split"])
        if self._store.image_size != images.FACE_SIZE:
            height, width = self._store.image_size
            raise ValueError(f"{path}: its images are {width}x{height}, expected {images.SIZE}x{images.SIZE} crops")
        # A .bin names nobody: its identities are groups of pictures, numbered anew in each file.
        origins = Counter(entry.get("identities", "named") for entry in manifest["benchmarks"].values())
        super().__init__(path, set(origins) <= {"named"}, [])

    def faces(self) -> Iterator[Face]:
        store = self._store
        for i in track(range(len(store)), str(self.path)):
            identity = names.normal(store.identities[store.labels[i]]) if self.has_identities else None
            yield Face(store.sources[i], identity, store.image(i))


class _FolderFaces(FaceCollection):
    def __init__(self, path: Path):
        people = list_people(path)
        tree = PictureTree(path, [folder for folders in people.folders.values() for folder in folders])
        self._files, named = tree.files, bool(tree.files)
        left_out = [*people.left_out, *tree.left_out]
        if not named:
            self._files = [entry.file for entry in people.left_out if entry.reason.startswith(LOOSE)]
            left_out = [entry for entry in left_out if not entry.reason.startswith(LOOSE)]
        super().__init__(path, named, left_out)
        self._by_name = {_name(file): file for file in self._files}
        if not self._files:
            raise _no_picture(self)

    def faces(self) -> Iterator[Face]:
        count = 0
        for file in track(self._files, str(self.path)):
            name = _name(file)
            try:
                picture = read_picture(self.path / file)
            except ValueError as error:
                self.left_out.append(LeftOut(name, str(error).removeprefix(f"{self.path / file}: ")))
                continue
            if not len(picture.faces.crops):
                self.left_out.append(LeftOut(name, f"no face found: in {picture.size} pixels"))
                continue
            count += 1
            identity = names.identity(file.split(os.sep)[0]) if self.has_identities else None
            yield Face(name, identity, picture.faces.crops[picture.chosen(CENTRE)[0]])
        if not count:
            raise _no_picture(self)

    def picture(self, name: str) -> NDArray | None:
        file = self._by_name.get(name)
        try:
            return None if file is None else read_pixels(self.path / file)
        except (ValueError, OSError):
            return None


class _OneFace(FaceCollection):
    def __init__(self, path: Path):
        super().__init__(path, False, [])

    def faces(self) -> Iterator[Face]:
        picture = read_picture(self.path)
        yield Face(names.plain(self.path.name), None, picture.faces.crops[picture.chosen(CENTRE)[0]])


def open_collection(path: Path) -> FaceCollection:
    """Open a store, a folder of pictures or one picture.

    Raises:
        ValueError: nothing of these, no picture in it, or a store that is damaged. The message names the path.
    """
    if path.is_file():
        return _OneFace(path)
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder; give a store, a folder of pictures or one picture")
    return _StoreFaces(path) if (path / "manifest.json").is_file() else _FolderFaces(path)


def _name(file: str) -> str:
    return names.plain(os.path.normpath(file))


def _no_picture(collection: FaceCollection) -> ValueError:
    problem = f"{collection.path}: not one usable picture"
    if collection.left_out:
        first = collection.left_out[0]
        problem += f"; the first of {len(collection.left_out)} left out: {first.file}: {first.reason}"
    return ValueError(problem)
