"""Reading a store: the files that every kind of store has, and face stores."""

from __future__ import annotations

import bisect
import hashlib
import io
import itertools
import os
import zipfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.message import DecodeError

from fvjax.data import images
from fvjax.data.stores import manifest as manifests
from fvjax.data.stores.features import Feature
from fvjax.data.stores.shards import EXAMPLE


class RecordStore:
    """The records of a store of any kind: manifest, index and ArrayRecord files. Picklable and thread-safe.

    Args:
        path: the store's directory.
        split: the split that the store must have ("train", "val" or "test").
        kind: the kind of store that it must be.
    Raises:
        ValueError: no store there, another kind, format or split, or files that do not agree with the manifest.
    """

    def __init__(self, path: str | os.PathLike, split: str, kind: manifests.Kind):
        self.path = Path(path)
        self.split = split
        self.manifest = manifests.read_manifest(self.path, kind)
        if self.manifest["split"] != split:
            raise ValueError(f"{self.path}: its split is {self.manifest['split']!r}, but {split!r} was requested")
        self.data_hash: str = self.manifest["data_hash"]
        self._check_shards()
        counts = [shard["records"] for shard in self.manifest["shards"]]
        self._records = sum(counts)
        self._first_records = list(itertools.accumulate(counts[:-1], initial=0))  # record number, per shard

    def __len__(self) -> int:
        return self._records

    def __reduce__(self):
        return type(self), (self.path, self.split)

    def _check_number(self, i: int) -> None:
        if not 0 <= i < len(self):
            raise IndexError(f"{self.path}: no record {i}, the store has {len(self)}")

    def _read_example(self, i: int) -> Any:
        """Return the TFDS features of record ``i`` by name.

        Raises:
            RuntimeError, IndexError, DecodeError: the record is damaged.
        """
        shard = bisect.bisect_right(self._first_records, i) - 1
        row = int(i) - self._first_records[shard]
        # A range of one: ArrayRecord serves a list of numbers, which TFDS asks for, from a pool of threads.
        (data,) = self._readers[shard].read(row, row + 1)
        return EXAMPLE.FromString(data).features.feature  # TFDS's own parser takes five times as long

    @cached_property
    def _readers(self) -> list[Any]:
        options = "readahead_buffer_size:0,max_parallelism:0"  # ArrayRecord's own advice for random access
        return [ArrayRecordReader(str(self.path / s["file"]), options) for s in self.manifest["shards"]]

    def _check_shards(self) -> None:
        for shard in self.manifest["shards"]:
            file = self.path / shard["file"]
            if not file.is_file() or file.stat().st_size != shard["bytes"]:
                raise ValueError(f"{file}: missing or not {shard['bytes']} bytes as written; prepare the store again")

    def _read_index(self, columns: Mapping[str, Any]) -> list[np.ndarray]:
        """Return these one-dimensional arrays (name, dtype) of index.npz. Raises ValueError if the file is damaged."""
        file = self.path / "index.npz"
        index = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(index).hexdigest() != self.manifest["index_hash"]:
            raise ValueError(f"{file}: missing or changed since writing; prepare the store again")
        return parse_arrays(index, columns, self._shard_bytes, file)

    @property
    def _shard_bytes(self) -> int:
        return sum(shard["bytes"] for shard in self.manifest["shards"])


class Store(RecordStore):
    """A face store opened for reading. Picklable, and safe to read from several threads.

    Args:
        path: the store's directory.
        split: the split that the store must have ("train", "val" or "test").
    Attributes:
        labels: int64 [N], index into ``identities``.
        identities: the identities' names.
        sources: the file that each record was made from.
        image_size: (height, width) of every image.
        features: the type of each further feature, by name.
        manifest: the parsed manifest.json.
        data_hash: hash of the records' contents in order (see :mod:`fvjax.data.stores`).
    Raises:
        ValueError: no store there, another format or split, or files that do not agree with the manifest.
    """

    def __init__(self, path: str | os.PathLike, split: str = "train"):
        super().__init__(path, split, manifests.FACES)
        self.image_size = manifests.image_size(self.manifest)
        self.features: dict[str, Feature] = manifests.features(self.manifest)
        self.identities: list[str] = self.manifest["identities"]
        self.labels, self._source_lines = self._read_index({"labels": np.int64, "sources": np.uint8})
        self._check_counts()

    @cached_property
    def sources(self) -> list[str]:
        return self._source_lines.tobytes().decode().split("\n")

    def record(self, i: int) -> dict[str, Any]:
        """Return record ``i`` as stored: {"image": JPEG bytes, "identity": int, "source": bytes}."""
        return self._read_record(i)[0]

    def jpeg(self, i: int) -> bytes:
        """Return the JPEG bytes of record ``i``."""
        return self.record(i)["image"]

    def image(self, i: int) -> np.ndarray:
        """Return the decoded image of record ``i``: uint8 [H, W, 3] RGB.

        Raises:
            ValueError: the record is damaged. The message names store, record and source file.
        """
        return self.images([i])[0]

    def images(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the decoded images of N records: uint8 [N, H, W, 3] RGB. Errors as for :meth:`image`."""
        batch = np.empty((0, *self.image_size, 3), np.uint8)
        for row, i in enumerate(ids):
            record = self.record(i)
            location = self._location(i, record)
            if row:
                images.decode(record["image"], location, batch[row], self.image_size)
            else:  # Allocate the batch once a record has the size that the manifest, which may be forged, says.
                first = images.decode(record["image"], location, size=self.image_size)
                batch = np.empty((len(ids), *self.image_size, 3), np.uint8)
                batch[0] = first
        return batch

    def read(self, ids: Sequence[int] | np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return further features of N records.

        Args:
            ids: record numbers.
            names: keys of ``features``.
        Returns:
            for each name the values stacked along a new first axis, [N, *shape]; text as an object array of str [N].
        Raises:
            ValueError: a feature that the store does not have, or a damaged record. The message names store, record,
                source and feature.
        """
        if unknown := [name for name in names if name not in self.features]:
            available = ", ".join(sorted(self.features)) or "none"
            raise ValueError(f"{self.path}: no feature {unknown[0]!r}; it has {available}")
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for i in ids:
            record, entries = self._read_record(i)
            for name, column in columns.items():
                try:
                    (data,) = entries[name].bytes_list.value
                    column.append(self.features[name].decode(data))
                except ValueError as error:
                    location = f"{self._location(i, record)}: feature {name!r}"
                    raise ValueError(f"{location}: damaged ({error}); prepare the store again") from error
        return {name: self.features[name].stack(column) for name, column in columns.items()}

    def _read_record(self, i: int) -> tuple[dict[str, Any], Any]:
        """Return record ``i`` as :meth:`record` does, and its parsed TFDS features by name."""
        self._check_number(i)
        try:
            entries = self._read_example(i)
            (image,) = entries["image"].bytes_list.value
            (source,) = entries["source"].bytes_list.value
            (identity,) = entries["identity"].int64_list.value
        except (RuntimeError, IndexError, ValueError, DecodeError) as error:  # the first is ArrayRecord's checksums
            raise ValueError(f"{self.path} record {i}: damaged ({error}); prepare the store again") from error
        return {"image": image, "identity": identity, "source": source}, entries

    def _location(self, i: int, record: dict[str, Any]) -> str:
        return f"{self.path} record {i} ({record['source'].decode()})"

    def _check_counts(self) -> None:
        n = len(self.labels)
        if n != len(self) or not n or self.labels.min() < 0 or self.labels.max() >= len(self.identities):
            raise ValueError(f"{self.path}: index.npz and manifest.json disagree; prepare the store again")
        # Arrays are stored uncompressed, so a shape that needs more bytes than the shards have is wrong.
        if n * sum(feature.nbytes for feature in self.features.values()) > self._shard_bytes:
            raise ValueError(
                f"{self.path}: the features in manifest.json do not fit its files; prepare the store again"
            )


def parse_arrays(index: bytes, columns: Mapping[str, Any], max_bytes: int, file: Path) -> list[np.ndarray]:
    """Return one-dimensional arrays from the bytes of an .npz file such as index.npz.

    Args:
        columns: name and dtype of each.
        max_bytes: the most that each array may have; a larger one is a decompression bomb. For index.npz these are the
            bytes of the shards, which contain all that the index does and more.
    """
    arrays = []
    try:
        with zipfile.ZipFile(io.BytesIO(index)) as archive:
            for name, dtype in columns.items():
                with archive.open(f"{name}.npy") as part:
                    data = io.BytesIO(part.read(max_bytes + 1))
                np.lib.format.read_magic(data)
                shape, _, written = np.lib.format.read_array_header_1_0(data)
                values = np.frombuffer(data.getbuffer()[data.tell() :], dtype)  # np.load would believe the shape
                if written != dtype or shape != values.shape:
                    raise ValueError(f"{name}.npy is {written} {shape}, with {values.nbytes} bytes")
                arrays.append(values)
    except Exception as error:  # zip, zlib and numpy's parser raise many types
        raise ValueError(f"{file}: cannot be read ({error}); prepare the store again") from error
    return arrays
