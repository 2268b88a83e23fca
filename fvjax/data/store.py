"""Face stores: TFDS dataset directories in ArrayRecord format, plus a manifest that says what is in them.

    DIR/features.json, dataset_info.json, identity.labels.txt    read by any TFDS user (builder_from_directory)
    DIR/faces-SPLIT.array_record-00000-of-00001                  image (JPEG bytes), identity (int64), source (text)
    DIR/index.npz                                                labels and sources, so that nothing need be decoded
    DIR/pairs_NAME.csv                                           a benchmark: columns a,b,same,fold
    DIR/manifest.json                                            counts, hashes, sources, rejections, benchmarks

A store is written beside its destination and renamed at the end, so a killed writer leaves nothing that looks like one.

The data_hash is sha256 over the records' digests in order; a record's digest is sha256 over image, identity's name and
source, each after its length (8 bytes, little-endian). So it does not depend on how the records lie in shards.
"""

from __future__ import annotations

import bisect
import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import secrets
import shutil
import struct
import zipfile
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from fvjax import errors
from fvjax.data import images

FORMAT = 2
SPLITS = ("train", "val", "test")
EXAMPLE: Any = getattr(tf_example_pb2, "Example")  # noqa: B009 (made at run time, so type checkers do not see it)
SHARD_RECORDS = 100_000  # about 1 GB of 112x112 JPEGs


@dataclass(frozen=True)
class Pairs:
    """A verification protocol over a store's records, in protocol order (fold by fold). All arrays have M entries."""

    a: np.ndarray  # int64, record number
    b: np.ndarray  # int64, record number
    same: np.ndarray  # bool
    fold: np.ndarray  # int64, 0, 0, …, 1, 1, …
    identity_a: np.ndarray  # int64, the store's label of a
    identity_b: np.ndarray  # int64

    @property
    def fold_sizes(self) -> list[int]:
        return np.bincount(self.fold).tolist()


class Store:
    """A face store opened for reading. Picklable, and safe to read from several threads.

    Args:
        path: the store's directory.
        split: the split it must hold ("train", "val" or "test").
    Attributes:
        labels: int64 [N], index into ``identities``. identities: names. sources: the file each record came from.
        manifest: the parsed manifest.json. data_hash: of the records' contents, in order (see the module).
    Raises:
        ValueError: no store there, another format or split, or files that do not agree with the manifest.
    """

    def __init__(self, path: str | os.PathLike, split: str = "train"):
        self.path, self.split = Path(path), split
        self.manifest = _read_manifest(self.path)
        if self.manifest["split"] != split:
            raise ValueError(f"{self.path}: holds the split {self.manifest['split']!r}, {split!r} was asked for")
        for shard in self.manifest["shards"]:
            file = self.path / shard["file"]
            if not file.is_file() or file.stat().st_size != shard["bytes"]:
                raise ValueError(f"{file}: missing or not {shard['bytes']} bytes as written; prepare the store again")
        index = (self.path / "index.npz").read_bytes() if (self.path / "index.npz").is_file() else b""
        if hashlib.sha256(index).hexdigest() != self.manifest["index_hash"]:
            raise ValueError(f"{self.path}/index.npz: missing or changed since writing; prepare the store again")
        records = [shard["records"] for shard in self.manifest["shards"]]
        # the shards hold what the index holds and more, so a larger one is a trap
        most = sum(shard["bytes"] for shard in self.manifest["shards"])
        self.labels, self._sources = _read_index(index, most, self.path / "index.npz")
        n, people = len(self.labels), len(self.manifest["identities"])
        if n != sum(records) or not n or self.labels.min() < 0 or self.labels.max() >= people:
            raise ValueError(f"{self.path}: index.npz and manifest.json disagree; prepare the store again")
        self._firsts = list(itertools.accumulate(records[:-1], initial=0))  # number of each shard's first record
        self.identities: list[str] = self.manifest["identities"]
        self.data_hash: str = self.manifest["data_hash"]

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self):
        return Store, (self.path, self.split)

    @cached_property
    def sources(self) -> list[str]:
        return self._sources.tobytes().decode().split("\n")

    @cached_property
    def _readers(self) -> list[Any]:
        options = "readahead_buffer_size:0,max_parallelism:0"  # ArrayRecord's own advice for random access
        return [ArrayRecordReader(str(self.path / s["file"]), options) for s in self.manifest["shards"]]

    def record(self, i: int) -> dict[str, Any]:
        """Record ``i`` as stored: {"image": JPEG bytes, "identity": int, "source": bytes}."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self.path}: no record {i}, there are {len(self)}")
        shard = bisect.bisect_right(self._firsts, i) - 1
        at = int(i) - self._firsts[shard]
        try:  # a range of one: a list of numbers, which TFDS asks for, goes through a pool of threads
            (data,) = self._readers[shard].read(at, at + 1)
            features = EXAMPLE.FromString(data).features.feature  # TFDS's own way takes five times as long
            (image,), (source,) = features["image"].bytes_list.value, features["source"].bytes_list.value
            (identity,) = features["identity"].int64_list.value
        except (RuntimeError, IndexError, ValueError, DecodeError) as error:  # the first is ArrayRecord's checksums
            raise ValueError(f"{self.path} record {i}: damaged ({error}); prepare the store again") from error
        return {"image": image, "identity": identity, "source": source}

    def jpeg(self, i: int) -> bytes:
        return self.record(i)["image"]

    def face(self, i: int) -> np.ndarray:
        """Record ``i`` decoded: uint8 [112, 112, 3] RGB. Raises ValueError naming store, record and source file."""
        return self.faces([i])[0]

    def faces(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Records decoded into one array: uint8 [N, 112, 112, 3] RGB. Errors as :meth:`face`."""
        out = np.empty((len(numbers), images.SIZE, images.SIZE, 3), np.uint8)
        for i, face in zip(numbers, out):
            record = self.record(i)
            images.decode(record["image"], f"{self.path} record {i} ({record['source'].decode()})", face)
        return out


class Shard:
    """One ArrayRecord file of a store while it is written.

    Args:
        file: where. dst: the store it is for, which errors name.
    Attributes:
        records, bytes: how many there are so far, and their size.
    Raises:
        OSError: the disk is full, or another reason of the system's.
    """

    def __init__(self, file: Path, dst: Path):
        self.dst, self.records, self.bytes = dst, 0, 0
        # one record a group, because reading is random; JPEG does not compress further
        try:
            self._writer = ArrayRecordWriter(str(file), "group_size:1,uncompressed")
        except RuntimeError as error:
            raise self._failed(error) from error

    def add(self, jpeg: bytes, label: int, identity: str, source: str) -> bytes:
        """Append one record and return its digest. Nothing is checked here."""
        example = EXAMPLE()  # TFDS's own serializer takes ten times as long
        feature = example.features.feature
        feature["image"].bytes_list.value.append(jpeg)
        feature["identity"].int64_list.value.append(label)
        feature["source"].bytes_list.value.append(source.encode())
        data = example.SerializeToString(deterministic=True)
        try:
            self._writer.write(data)
        except RuntimeError as error:  # what ArrayRecord makes of a full disk
            raise self._failed(error) from error
        self.records += 1
        self.bytes += len(data)
        parts = jpeg, identity.encode(), source.encode()
        return hashlib.sha256(b"".join(struct.pack("<Q", len(part)) + part for part in parts)).digest()

    def close(self) -> None:
        try:
            self._writer.close()
        except RuntimeError as error:
            raise self._failed(error) from error

    def abandon(self) -> None:
        """Close a file that nobody wants."""
        with contextlib.suppress(OSError):  # what is removed need not be complete
            self.close()

    def _failed(self, error: RuntimeError) -> OSError:
        return OSError(f"{self.dst}: {str(error).split(';')[0]}")


class Writer:
    """Writes one store; use it as a context manager. Leaving it normally completes the store, an exception removes it.

    Args:
        dst: the store's directory; must not exist.
        split: "train", "val" or "test". sources: what the records were made from, for the manifest.
    Raises:
        ValueError: ``dst`` exists, or nothing was added.
    """

    def __init__(self, dst: str | os.PathLike, *, split: str, sources: Sequence[str]):
        self.dst, self.split = Path(dst), split
        if split not in SPLITS:
            raise ValueError(f"{dst}: a store's split is 'train', 'val' or 'test', not {split!r}")
        must_not_exist(self.dst)
        self.rejected: list[dict[str, str]] = []
        self._tmp = self.dst.with_name(f".{self.dst.name}.partial-{secrets.token_hex(4)}")
        self.info: dict[str, Any] = {"sources": list(sources)}  # more may be noted for the manifest
        self.labels = array("q")  # of the records added so far
        self._identities: dict[str, int] = {}
        self._sources = bytearray()  # millions of strings would take ten times the room
        self._pairs: list[tuple[str, Pairs, dict]] = []
        self._shards: list[Shard] = []
        self._hash = hashlib.sha256()

    def __enter__(self) -> Writer:
        self._tmp.mkdir(parents=True)
        return self

    def __exit__(self, kind, value, traceback) -> None:
        try:
            if kind is None:
                with errors.naming(self.dst):
                    self._close_shard()
                    self._finish()
            elif self._shards:
                self._shards[-1].abandon()
        finally:
            shutil.rmtree(self._tmp, ignore_errors=True)

    def add(self, jpeg: bytes, identity: str, source: str) -> int:
        """Append one record and return its number. Raises ValueError if it is no decodable 112x112 JPEG."""
        images.check(jpeg, source)
        # TFDS keeps names one a line and strips them; sources are kept one a line too.
        lines = [*identity.splitlines(), *source.split("\n")]
        if [_printable(line) for line in lines] != [identity, source] or identity != identity.strip():
            raise ValueError(f"{source!r}: identity and file name must be plain one-line UTF-8 text; rename the file")
        label = self._identities.setdefault(identity, len(self._identities))
        if not self._shards or self._shards[-1].records == SHARD_RECORDS:
            self._close_shard()
            self._shards.append(Shard(self._tmp / f"{len(self._shards)}", self.dst))
        self._hash.update(self._shards[-1].add(jpeg, label, identity, source))
        self.labels.append(label)
        self._sources += source.encode() + b"\n"
        return len(self.labels) - 1

    def reject(self, file: str, reason: str) -> None:
        """Note a file that was left out; the manifest lists it."""
        self.rejected.append({"file": _printable(file), "reason": _printable(reason)})

    def add_pairs(self, name: str, pairs: Pairs, **info) -> None:
        """A benchmark over the records added; arguments as for :func:`write_pairs`. Checked when the store closes."""
        self._pairs.append((name, pairs, info))

    def _close_shard(self) -> None:
        if self._shards:
            self._shards[-1].close()

    def _finish(self) -> None:
        if not self.labels:
            first = f"; first rejected: {self.rejected[0]}" if self.rejected else ""
            raise ValueError(f"{self.dst}: not one usable image{first}")
        for i, name in enumerate(shard_names(self.split, len(self._shards))):
            (self._tmp / f"{i}").rename(self._tmp / name)
        describe(
            self._tmp,
            self.split,
            shards=[(shard.records, shard.bytes) for shard in self._shards],
            labels=np.asarray(self.labels),
            sources=self._sources,
            identities=list(self._identities),
            data_hash=self._hash.hexdigest(),
            rejected=self.rejected,
            info=self.info,
        )
        for name, pairs, info in self._pairs:
            write_pairs(self._tmp, name, pairs, **info)
        move(self._tmp, self.dst)


def must_not_exist(dst: Path) -> None:
    if dst.exists():
        raise ValueError(f"{dst}: exists already; stores are never overwritten, remove it or choose another --dst")


def move(tmp: Path, dst: Path) -> None:
    """Bring a complete store to its place."""
    try:
        tmp.rename(dst)
    except OSError as error:
        raise ValueError(f"{dst}: appeared while this store was written; nothing was replaced") from error


def shard_names(split: str, n: int) -> list[str]:
    """File names of a store's ``n`` shards, as TFDS wants them."""
    return [f"faces-{split}.array_record-{i:05d}-of-{n:05d}" for i in range(n)]


def describe(
    path: Path,
    split: str,
    *,
    shards: Sequence[tuple[int, int]],
    labels: np.ndarray,
    sources: bytes | bytearray,
    identities: Sequence[str],
    data_hash: str,
    rejected: Sequence[dict[str, Any]],
    info: dict[str, Any],
) -> None:
    """Make a store of a directory that holds the shards (:func:`shard_names`): TFDS's files, index.npz, manifest.json.

    Args:
        shards: (records, bytes of content) of each. labels: int64 [N], N > 0, index into ``identities``.
        sources: one a line, with a newline after each. data_hash: see the module.
        rejected: {"file", "reason"} of what was left out. info: more for the manifest, such as {"sources": [...]}.
    """
    tfds.folder_dataset.write_metadata(
        data_dir=path,
        features=_features(list(identities)),
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[records for records, _ in shards],
                num_bytes=sum(size for _, size in shards),
            )
        ],
        version="1.0.0",
        check_data=False,  # that check needs tensorflow; the tests open stores without it
        description="Aligned 112x112 RGB face crops with identity and source file. Written by fvjax.data.store.",
    )
    np.savez_compressed(path / "index.npz", labels=labels, sources=np.frombuffer(sources, np.uint8)[:-1])
    counts = np.bincount(labels)
    manifest = {
        "format": FORMAT,
        "split": split,
        "counts": {"images": len(labels), "identities": int((counts > 0).sum()), "rejected": len(rejected)},
        "single_image_identities": int((counts == 1).sum()),
        "data_hash": data_hash,
        "index_hash": hashlib.sha256((path / "index.npz").read_bytes()).hexdigest(),
        **info,
        "shards": [
            {"file": name, "records": records, "bytes": (path / name).stat().st_size}
            for name, (records, _) in zip(shard_names(split, len(shards)), shards)
        ],
        "benchmarks": {},
        "rejected": list(rejected),
        "identities": list(identities),
    }
    _write_manifest(path, manifest)


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


def write_pairs(
    path: str | os.PathLike,
    name: str,
    pairs: Pairs,
    *,
    policy: str = "fail",
    failure_to_acquire: int = 0,
    pairs_dropped: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Add a benchmark to a store: pairs_NAME.csv and its counts in the manifest.

    Args:
        path: the store. name: letters, digits and underscores.
        policy: what was done about images that pairs name but that could not be had ("fail", "drop" or "fallback").
        failure_to_acquire: how many such images there were; pairs_dropped: how many pairs went with them.
        facts: what else its entry should say; "identities" says how they are known ("named" if this does not).
    Raises:
        ValueError: the name is taken or odd, or the pairs do not agree with the store's records and labels.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    where = f"{path}: benchmark {name!r}"
    if not name.isidentifier():
        raise ValueError(f"{where}: the name must be letters, digits and underscores")
    if name in manifest["benchmarks"]:
        raise ValueError(f"{where} exists already")
    with np.load(path / "index.npz", allow_pickle=False) as arrays:
        _check_pairs(pairs, arrays["labels"], where)
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["a", "b", "same", "fold"])
    out.writerows(zip(pairs.a.tolist(), pairs.b.tolist(), pairs.same.astype(int).tolist(), pairs.fold.tolist()))
    data = text.getvalue().encode()
    (path / f"pairs_{name}.csv").write_bytes(data)
    manifest["benchmarks"][name] = {
        "pairs": len(pairs.a),
        "genuine": int(pairs.same.sum()),
        "impostor": int((~pairs.same).sum()),
        "fold_sizes": pairs.fold_sizes,
        "policy": policy,
        "failure_to_acquire": failure_to_acquire,
        "pairs_dropped": pairs_dropped,
        "hash": hashlib.sha256(data).hexdigest(),
        "identities": "named",
        **(facts or {}),
    }
    _write_manifest(path, manifest)


def read_pairs(path: str | os.PathLike, name: str) -> Pairs:
    """Read the benchmark ``name`` of a store. Raises ValueError naming what is missing, changed or wrong."""
    path = Path(path)
    manifest = _read_manifest(path)
    if name not in manifest["benchmarks"]:
        raise ValueError(f"{path}: no benchmark {name!r}; it has {sorted(manifest['benchmarks']) or 'none'}")
    file = path / f"pairs_{name}.csv"
    data = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(data).hexdigest() != manifest["benchmarks"][name]["hash"]:
        raise ValueError(f"{file}: missing or changed since writing; prepare the store again")
    labels = Store(path, manifest["split"]).labels
    try:
        if not data.partition(b"\n")[2].strip():
            raise ValueError("there are none")  # of which numpy would only warn
        a, b, same, fold = np.loadtxt(io.BytesIO(data), np.int64, delimiter=",", skiprows=1, ndmin=2).T
        pairs = Pairs(a, b, same.astype(bool), fold, labels[a], labels[b])
    except (ValueError, OverflowError, IndexError) as error:
        raise ValueError(f"{file}: not rows of a,b,same,fold ({error}); prepare the store again") from error
    _check_pairs(pairs, labels, str(file))
    return pairs


def _read_index(index: bytes, most: int, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """labels (int64 [N]) and sources (uint8, one a line) out of index.npz, each of at most ``most`` bytes."""
    out = []
    try:
        with zipfile.ZipFile(io.BytesIO(index)) as parts:
            for name, dtype in (("labels.npy", np.int64), ("sources.npy", np.uint8)):
                with parts.open(name) as part:
                    data = io.BytesIO(part.read(most + 1))
                np.lib.format.read_magic(data)
                shape, _, written = np.lib.format.read_array_header_1_0(data)
                values = np.frombuffer(data.getbuffer()[data.tell() :], dtype)  # np.load would believe the shape
                if written != dtype or shape != values.shape:
                    raise ValueError(f"{name} is {written} {shape}, with {values.nbytes} bytes")
                out.append(values)
    except Exception as error:  # zip, zlib and numpy's parser raise many types
        raise ValueError(f"{file}: cannot be read ({error}); prepare the store again") from error
    return out[0], out[1]


def _check_pairs(pairs: Pairs, labels: np.ndarray, where: str) -> None:
    a, b, fold = pairs.a, pairs.b, pairs.fold
    if len({len(x) for x in (a, b, pairs.same, fold, pairs.identity_a, pairs.identity_b)}) != 1 or not len(a):
        raise ValueError(f"{where}: the columns must have one common length above zero")
    if min(a.min(), b.min()) < 0 or max(a.max(), b.max()) >= len(labels):
        raise ValueError(f"{where}: record numbers run from 0 to {len(labels) - 1}")
    if fold[0] != 0 or not np.isin(np.diff(fold), (0, 1)).all():
        raise ValueError(f"{where}: folds must be 0, 0, …, 1, 1, … in order")
    if (labels[a] != pairs.identity_a).any() or (labels[b] != pairs.identity_b).any():
        raise ValueError(f"{where}: identity_a and identity_b must be the store's labels of a and b")
    if len(wrong := np.flatnonzero(pairs.same != (labels[a] == labels[b]))):
        i = wrong[0]
        raise ValueError(f"{where}: pair {i} says same={pairs.same[i]}, its records {a[i]} and {b[i]} say otherwise")


def _features(identities: list[str]) -> tfds.features.FeaturesDict:
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(images.SIZE, images.SIZE, 3), encoding_format="jpeg"),
            "identity": tfds.features.ClassLabel(names=identities),
            "source": tfds.features.Text(),
        }
    )


def _printable(text: str) -> str:
    """File names need not be UTF-8; JSON and terminals must."""
    return text.encode(errors="backslashreplace").decode()


def _is_shard(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
        return False
    sizes = ("records", 0), ("bytes", 1)  # nothing may be left of a shard's records
    plain = all(isinstance(n := entry.get(key), int) and n >= least for key, least in sizes)
    return plain and Path(entry["file"]).name == entry["file"]


_KEYS = {"split": str, "shards": list, "benchmarks": dict, "identities": list, "index_hash": str, "data_hash": str}
_ENTRIES = {
    "shards": _is_shard,
    "benchmarks": lambda entry: isinstance(entry, dict) and isinstance(entry.get("hash"), str),
    "identities": lambda entry: isinstance(entry, str),
}


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.is_file():
        raise ValueError(f"{path}: no face store here (no manifest.json); python -m fvjax.data.prepare makes one")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error}); prepare the store again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        told = repr(manifest.get("format") if isinstance(manifest, dict) else manifest)[:100]
        raise ValueError(f"{file}: format {told}, this version reads {FORMAT}; prepare it again")
    wrong = [key for key, kind in _KEYS.items() if not isinstance(manifest.get(key), kind)] or [
        key for key, fits in _ENTRIES.items() for entry in _entries(manifest[key]) if not fits(entry)
    ]
    if wrong:
        raise ValueError(f"{file}: {wrong[0]!r} is missing or not as stores have it; prepare the store again")
    return manifest


def _entries(part: Any) -> Iterable[Any]:
    return part.values() if isinstance(part, dict) else part


def _write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    tmp = path / "manifest.json.tmp"
    tmp.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    tmp.replace(path / "manifest.json")
