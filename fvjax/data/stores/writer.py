"""Writing a store: what every kind of store has in common, and face stores."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import tensorflow_datasets as tfds

from fvjax import errors
from fvjax.data import images
from fvjax.data.stores import manifest, shards
from fvjax.data.stores.features import Feature, check_names, encode_values
from fvjax.data.stores.manifest import write_manifest
from fvjax.data.stores.protocol import Pairs, write_pairs
from fvjax.data.stores.shards import ShardWriter, shard_names
from fvjax.data.stores.store import Store


class StoreWriter(ABC):
    """Write one store; use it as a context manager. A normal exit completes the store, an exception removes it.

    Args:
        dst: the store's directory; must not exist.
        split: "train", "val" or "test".
        sources: what the records were made from, for the manifest.
    Attributes:
        info: further entries for the manifest; callers may add to it.
        rejected: the entries of :meth:`reject`.
    Raises:
        ValueError: ``dst`` exists, the split is unknown, or no record was added.
    """

    content = "faces"  # part of the shards' file names
    record_name = "image"

    def __init__(self, dst: str | os.PathLike, *, split: str, sources: Sequence[str]):
        self.dst = Path(dst)
        self.split = split
        if split not in manifest.SPLITS:
            raise ValueError(f"{dst}: a store's split is 'train', 'val' or 'test', not {split!r}")
        check_does_not_exist(self.dst)
        self.rejected: list[dict[str, str]] = []
        self.info: dict[str, Any] = {"sources": list(sources)}
        self._tmp = self.dst.with_name(f".{self.dst.name}.partial-{secrets.token_hex(4)}")
        self._sources = bytearray()  # one a line; millions of strings would take ten times the memory
        self._shards: list[ShardWriter] = []
        self._hash = hashlib.sha256()
        self._discarded = False

    def __enter__(self) -> Self:
        self._tmp.mkdir(parents=True)
        return self

    def __exit__(self, kind, value, traceback) -> None:
        try:
            if kind is None and not self._discarded:
                with errors.naming(self.dst):
                    self._close_shard()
                    self._finish()
            elif self._shards:
                self._shards[-1].abandon()
        finally:
            shutil.rmtree(self._tmp, ignore_errors=True)

    def reject(self, file: str, reason: str) -> None:
        """Note a file that was left out; the manifest lists it, and counts the kinds of reasons (:func:`kinds`).

        Args:
            file: the file or record.
            reason: why, with or without the file and a colon before it.
        """
        text = errors.without_addresses(reason.removeprefix(f"{file}: "))
        self.rejected.append({"file": printable(file), "reason": printable(text)})

    def discard(self) -> None:
        """Leave nothing on exit, as after an exception."""
        self._discarded = True

    def path_within(self, name: str) -> Path:
        """Return the path at which another store must be written to become the part ``name`` of this one."""
        return self._tmp / name

    @property
    def records(self) -> int:
        """The number of records so far."""
        return sum(shard.records for shard in self._shards)

    @abstractmethod
    def _complete(self, shard_sizes: Sequence[tuple[int, int]]) -> None:
        """Write all files of the store besides its shards, of which these are the (records, bytes)."""

    def _is_full(self, shard: ShardWriter) -> bool:
        return shard.records == shards.SHARD_RECORDS

    def _open_shard(self) -> ShardWriter:
        """Return the shard for the next record."""
        if not self._shards or self._is_full(self._shards[-1]):
            self._close_shard()
            self._shards.append(ShardWriter(self._tmp / f"{len(self._shards)}", self.dst))
        return self._shards[-1]

    def _close_shard(self) -> None:
        if self._shards:
            self._shards[-1].close()

    def _finish(self) -> None:
        if not self._shards:
            first = "; first rejected: {file}: {reason}".format(**self.rejected[0]) if self.rejected else ""
            raise ValueError(f"{self.dst}: not one usable {self.record_name}{first}")
        for i, name in enumerate(shard_names(self.split, len(self._shards), self.content)):
            (self._tmp / f"{i}").rename(self._tmp / name)
        self._complete([(shard.records, shard.bytes) for shard in self._shards])
        publish(self._tmp, self.dst)


class Writer(StoreWriter):
    """Write one face store; use it as a context manager, as every :class:`StoreWriter`.

    Args:
        dst, split, sources: as for :class:`StoreWriter`.
        image_size: (height, width) of every image.
        features: the type of each further feature, by name. Every record must have all of them.
    Attributes:
        labels: the labels of the records added so far.
    Raises:
        ValueError: ``dst`` exists, an argument is invalid, or no record was added.
    """

    def __init__(
        self,
        dst: str | os.PathLike,
        *,
        split: str,
        sources: Sequence[str],
        image_size: tuple[int, int] = images.FACE_SIZE,
        features: Mapping[str, Feature] | None = None,
    ):
        super().__init__(dst, split=split, sources=sources)
        self.image_size = image_size
        self.features = dict(features or {})
        if not manifest.is_image_size(image_size):
            raise ValueError(f"{dst}: image_size is {image_size!r}; expected (height, width)")
        check_names(self.features)
        self.labels = array("q")
        self._identities: dict[str, int] = {}
        self._pairs: list[tuple[str, Pairs, dict]] = []

    def add(self, jpeg: bytes, identity: str, source: str, /, **values: Any) -> int:
        """Append one record and return its number.

        Args:
            jpeg: a JPEG file of the store's image size.
            identity: the identity's name, one line of text.
            source: the file that the image came from, one line of text.
            values: the further features that were declared, each a numpy array or a str.
        Raises:
            ValueError: the JPEG cannot be decoded or has another size, a text is not one plain line, or a feature is
                missing, undeclared or not as declared. The message names the source.
        """
        images.check(jpeg, source, self.image_size)
        # TFDS keeps one name a line and strips it; the index keeps one source a line.
        lines = [*identity.splitlines(), *source.split("\n")]
        if [printable(line) for line in lines] != [identity, source] or identity != identity.strip():
            raise ValueError(f"{source!r}: identity and file name must be plain one-line UTF-8 text; rename the file")
        encoded = encode_values(self.features, values, source)
        label = self._identities.setdefault(identity, len(self._identities))
        self._open_shard()
        self._hash.update(self._shards[-1].add(jpeg, label, identity, source, encoded))
        self.labels.append(label)
        self._sources += source.encode() + b"\n"
        return len(self.labels) - 1

    @property
    def identities(self) -> list[str]:
        """The names of the identities so far; a record's label is an index into it."""
        return list(self._identities)

    def add_pairs(self, name: str, pairs: Pairs, **info) -> None:
        """Add a benchmark over the records, with the arguments of :func:`write_pairs`. Checked on exit."""
        self._pairs.append((name, pairs, info))

    def _complete(self, shard_sizes: Sequence[tuple[int, int]]) -> None:
        write_metadata(
            self._tmp,
            self.split,
            shards=shard_sizes,
            labels=np.asarray(self.labels),
            sources=self._sources,
            identities=list(self._identities),
            data_hash=self._hash.hexdigest(),
            rejected=self.rejected,
            info=self.info,
            image_size=self.image_size,
            features=self.features,
        )
        for name, pairs, info in self._pairs:
            write_pairs(self._tmp, name, pairs, **info)


def write(
    dst: str | os.PathLike, records: Iterable[tuple[bytes, str, str]], *, split: str, sources: Sequence[str]
) -> Store:
    """Write (JPEG bytes of a 112x112 face, identity name, source file) records as a store and open it.

    Labels number the identities by first appearance. See :class:`Writer` for the errors.
    """
    with Writer(dst, split=split, sources=sources) as writer:
        for jpeg, identity, source in records:
            writer.add(jpeg, identity, source)
    return Store(dst, split)


def check_does_not_exist(dst: Path) -> None:
    if dst.exists():
        raise ValueError(f"{dst}: exists already; stores are never overwritten, remove it or choose another --dst")


def publish(tmp: Path, dst: Path) -> None:
    """Rename a complete store to its destination. Raises ValueError if that exists by now."""
    try:
        tmp.rename(dst)
    except OSError as error:
        raise ValueError(f"{dst}: appeared while this store was written; nothing was replaced") from error


def write_metadata(
    path: Path,
    split: str,
    *,
    shards: Sequence[tuple[int, int]],
    labels: np.ndarray,
    sources: bytes | bytearray,
    identities: Sequence[str],
    data_hash: str,
    rejected: Sequence[dict[str, Any]],
    rejected_by_reason: Mapping[str, int] | None = None,
    info: dict[str, Any],
    image_size: tuple[int, int] = images.FACE_SIZE,
    features: Mapping[str, Feature] | None = None,
) -> None:
    """Complete a directory of shards (:func:`shard_names`) to a store: TFDS's files, index.npz and manifest.json.

    Args:
        shards: (records, bytes of content) of each shard.
        labels: int64 [N], N > 0, index into ``identities``.
        sources: one a line, with a newline after each.
        data_hash: see :mod:`fvjax.data.stores`.
        rejected: {"file", "reason"} of each file or record left out.
        rejected_by_reason: their number by kind; None counts them by :func:`kinds`.
        info: further entries for the manifest, such as {"sources": [...]}.
        image_size, features: as for :class:`Writer`.
    """
    features = dict(features or {})
    _write_face_files(path, split, shards, list(identities), image_size, features)
    np.savez_compressed(path / "index.npz", labels=labels, sources=np.frombuffer(sources, np.uint8)[:-1])
    counts = np.bincount(labels)
    entries = {
        "format": manifest.FORMAT,
        "split": split,
        "counts": {"images": len(labels), "identities": int((counts > 0).sum()), "rejected": len(rejected)},
        "single_image_identities": int((counts == 1).sum()),
        "data_hash": data_hash,
        "index_hash": hashlib.sha256((path / "index.npz").read_bytes()).hexdigest(),
        **manifest.layout_entries(image_size, features),
        **info,
        "shards": shard_entries(path, shard_names(split, len(shards)), shards),
        "benchmarks": {},
        # Absent if nothing was rejected: the manifests of such stores, whose hashes are published, never change.
        **({"rejected_by_reason": rejected_by_reason or kinds(rejected)} if rejected else {}),
        "rejected": list(rejected),
        "identities": list(identities),
    }
    write_manifest(path, entries)


# Part of every store's dataset_info.json, so the text is never changed: the same records give the same files.
DESCRIPTION = "Aligned 112x112 RGB face crops with identity and source file. Written by fvjax.data.store."


def _write_face_files(
    path: Path,
    split: str,
    shards: Sequence[tuple[int, int]],
    identities: list[str],
    image_size: tuple[int, int],
    features: Mapping[str, Feature],
) -> None:
    height, width = image_size
    description = DESCRIPTION
    if image_size != images.FACE_SIZE:
        description = f"{width}x{height} RGB images with identity and source file. Written by fvjax.data.stores."
    connectors = {
        "image": tfds.features.Image(shape=(height, width, 3), encoding_format="jpeg"),
        "identity": tfds.features.ClassLabel(names=identities),
        "source": tfds.features.Text(),
        **{name: features[name].to_tfds() for name in sorted(features)},
    }
    write_tfds_files(path, split, shards, connectors, description)


def write_tfds_files(
    path: Path,
    split: str,
    shards: Sequence[tuple[int, int]],
    features: Mapping[str, tfds.features.FeatureConnector],
    description: str,
) -> None:
    """Write features.json, dataset_info.json and the files of their features. `shards`: (records, bytes) of each."""
    tfds.folder_dataset.write_metadata(
        data_dir=path,
        features=tfds.features.FeaturesDict(dict(features)),
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[records for records, _ in shards],
                num_bytes=sum(size for _, size in shards),
            )
        ],
        version="1.0.0",
        check_data=False,  # that check needs tensorflow; the tests open stores without it
        description=description,
    )


def shard_entries(path: Path, names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Return the manifest's entries for the shards of the store ``path``."""
    return [
        {"file": name, "records": records, "bytes": (path / name).stat().st_size}
        for name, (records, _) in zip(names, sizes)
    ]


def kinds(rejected: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Count rejections by the kind of their reasons, which stands before the first colon or parenthesis."""
    return dict(Counter(re.split(r":| \(", entry["reason"], maxsplit=1)[0] for entry in rejected).most_common())


def printable(text: str) -> str:
    """Escape what is not UTF-8: file names need not be, but JSON and terminals must."""
    return text.encode(errors="backslashreplace").decode()
