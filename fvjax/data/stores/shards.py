"""The ArrayRecord files of a store: how a record is serialized, and a writer of one file."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from fvjax.data.stores.features import EncodedValue

EXAMPLE: Any = getattr(tf_example_pb2, "Example")  # noqa: B009 (made at run time, so type checkers do not see it)
SHARD_RECORDS = 100_000  # about 1 GB of 112x112 JPEGs


def shard_names(split: str, n: int, content: str = "faces") -> list[str]:
    """Return the file names of a store's ``n`` shards in the form that TFDS expects."""
    return [f"{content}-{split}.array_record-{i:05d}-of-{n:05d}" for i in range(n)]


def record_digest(jpeg: bytes, identity: str, source: str, values: Sequence[EncodedValue] = ()) -> bytes:
    """Return the sha256 digest of a record's contents (see :mod:`fvjax.data.stores`)."""
    parts = [jpeg, identity.encode(), source.encode()]
    for value in values:
        parts += [value.name.encode(), value.type.encode(), value.data]
    return digest(parts)


def digest(parts: Sequence[bytes]) -> bytes:
    """Return the sha256 digest of a sequence of byte strings, each preceded by its length."""
    return hashlib.sha256(b"".join(struct.pack("<Q", len(part)) + part for part in parts)).digest()


class ShardWriter:
    """Write one ArrayRecord file of a store.

    Args:
        file: the file to write.
        dst: the store that it belongs to, which errors name.
    Attributes:
        records, bytes: the number of records so far, and their size.
    Raises:
        OSError: the disk is full or cannot be written to.
    """

    def __init__(self, file: Path, dst: Path):
        self.dst = dst
        self.records = 0
        self.bytes = 0
        # One record a group because reading is random; uncompressed because JPEG does not compress further.
        try:
            self._writer = ArrayRecordWriter(str(file), "group_size:1,uncompressed")
        except RuntimeError as error:
            raise self._os_error(error) from error

    def add(self, jpeg: bytes, label: int, identity: str, source: str, values: Sequence[EncodedValue] = ()) -> bytes:
        """Append one record and return its digest. The caller has checked all arguments."""
        example = EXAMPLE()  # TFDS's own serializer takes ten times as long
        feature = example.features.feature
        feature["image"].bytes_list.value.append(jpeg)
        feature["identity"].int64_list.value.append(label)
        feature["source"].bytes_list.value.append(source.encode())
        for value in values:
            feature[value.name].bytes_list.value.append(value.data)
        self.append(example)
        return record_digest(jpeg, identity, source, values)

    def append(self, example: Any) -> None:
        """Append one record, an EXAMPLE."""
        data = example.SerializeToString(deterministic=True)
        try:
            self._writer.write(data)
        except RuntimeError as error:  # ArrayRecord raises it when the disk is full
            raise self._os_error(error) from error
        self.records += 1
        self.bytes += len(data)

    def close(self) -> None:
        try:
            self._writer.close()
        except RuntimeError as error:
            raise self._os_error(error) from error

    def abandon(self) -> None:
        """Close a file that is about to be removed; it need not be complete."""
        with contextlib.suppress(OSError):
            self.close()

    def _os_error(self, error: RuntimeError) -> OSError:
        return OSError(f"{self.dst}: {str(error).split(';')[0]}")
