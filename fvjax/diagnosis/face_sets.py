"""Faces from wherever people have them: a face store, an insightface .bin, or a folder of crops."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fvjax.data import images, names, picture_files
from fvjax.data.readers import insightface_bin
from fvjax.data.stores import Pairs, Store, read_pairs
from fvjax.data.stores.manifest import read_manifest


class FaceSet(ABC):
    """Pictures of faces by number, with whatever is known about who they are.

    Attributes:
        path: where they come from; kind: "store", "bin" or "folder".
        labels: int64 [N], whose each picture is, an index into `names`; None if nobody says.
        names: the identities' names. sources: the file of each picture; None if there are no files.
        protocols: the benchmarks' pairs by name.
        data_hash: of a store, "" of others.
        drawings: whether they are the project's procedural drawings.
        sizes: (height, width) of the pictures read so far, counted.
    """

    def __init__(self, path: Path, kind: str, labels: NDArray | None):
        self.path = path
        self.kind = kind
        self.labels = labels
        self.names: list[str] = []
        self.sources: list[str] | None = None
        self.protocols: dict[str, Pairs] = {}
        self.data_hash = ""
        self.drawings = False
        self.sizes: Counter[tuple[int, int]] = Counter()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def picture(self, i: int) -> NDArray:
        """Return picture ``i``, uint8 [H, W, 3] RGB of any size. Raises ValueError, naming it, if it cannot be read."""

    def sample(self, size: int) -> NDArray:
        """Return the numbers of at most ``size`` pictures, spread evenly over the set."""
        return np.unique(np.linspace(0, len(self) - 1, min(size, len(self))).astype(np.int64))

    def faces(self, ids: NDArray) -> NDArray:
        """Return pictures as uint8 [n, 112, 112, 3] RGB; others than crops are resized, their central square if not
        square, as `prepare --resize` would have them."""
        out = np.empty((len(ids), images.SIZE, images.SIZE, 3), np.uint8)
        for row, i in enumerate(ids):
            picture = self.picture(int(i))
            self.sizes[picture.shape[:2]] += 1
            out[row] = picture if picture.shape[:2] == images.FACE_SIZE else _resize(picture)
        return out


class _StoreFaces(FaceSet):
    def __init__(self, path: Path):
        manifest = read_manifest(path)
        self._store = Store(path, manifest["split"])
        super().__init__(path, "store", self._store.labels)
        self.names, self.sources = self._store.identities, self._store.sources
        self.protocols = {name: read_pairs(path, name) for name in manifest["benchmarks"]}
        self.data_hash = self._store.data_hash
        self.drawings = any(str(source).startswith("fvjax.data.synthetic") for source in manifest.get("sources", ()))

    def __len__(self) -> int:
        return len(self._store)

    def picture(self, i: int) -> NDArray:
        return self._store.image(i)


class _BinFaces(FaceSet):
    """Pair i of the file is of pictures 2 i and 2 i + 1. Who they are is what the genuine pairs say."""

    def __init__(self, path: Path):
        blobs, same = insightface_bin.read(path)
        self._blobs = blobs
        numbers: dict[bytes, int] = {}
        index = np.array([numbers.setdefault(blob.data, i) for i, blob in enumerate(blobs)], np.int64)
        ends = index.reshape(-1, 2)
        labels = insightface_bin.derive_identities(len(blobs), ends[same])[index]
        super().__init__(path, "bin", labels)
        fold = np.repeat(np.arange(10), [len(rows) for rows in np.array_split(same, 10)])
        pairs = Pairs(ends[:, 0], ends[:, 1], same, fold, labels[ends[:, 0]], labels[ends[:, 1]])
        self.protocols = {path.stem: pairs}

    def __len__(self) -> int:
        return len(self._blobs)

    def picture(self, i: int) -> NDArray:
        return images.photograph(self._blobs[i].data, f"{self.path} image {i}")


class _FolderFaces(FaceSet):
    def __init__(self, path: Path):
        self._files = _list_pictures(path)
        folders = [file.split(os.sep)[0] if os.sep in file else "" for file in self._files]
        names, labels = np.unique(folders, return_inverse=True)
        super().__init__(path, "folder", labels.astype(np.int64) if len(names) > 1 else None)
        self.names, self.sources = names.tolist(), self._files

    def __len__(self) -> int:
        return len(self._files)

    def picture(self, i: int) -> NDArray:
        return images.photograph((self.path / self._files[i]).read_bytes(), self._files[i])


def open_faces(path: Path) -> FaceSet:
    """Open a store, a .bin file or a folder of pictures.

    Raises:
        ValueError: nothing of these, or damaged. The message names the path.
    """
    if path.is_file():
        if path.suffix != ".bin":
            raise ValueError(f"{path}: expected a store, an insightface .bin or a folder of crops")
        return _BinFaces(path)
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder; give a store, an insightface .bin or a folder of crops")
    return _StoreFaces(path) if (path / "manifest.json").is_file() else _FolderFaces(path)


def _list_pictures(path: Path) -> list[str]:
    """List the pictures of a folder relative to it, sorted; hidden files and the leftovers of tools are left out."""
    found = []
    for root, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not names.leftover(name)]
        pictures = [name for name in files if picture_files.is_picture(name) and not names.leftover(name)]
        found += [os.path.relpath(os.path.join(root, name), path) for name in pictures]
    if not found:
        raise ValueError(f"{path}: no pictures ({', '.join(picture_files.SUFFIXES)}) and no manifest.json of a store")
    return sorted(found)


def _resize(picture: NDArray) -> NDArray:
    height, width = picture.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    box = left, top, left + side, top + side
    size = images.SIZE, images.SIZE
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR, box=box))
