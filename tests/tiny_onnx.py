"""Write tiny ONNX networks byte by byte (onnx.proto), so that tests need no `onnx` package."""

from __future__ import annotations

from pathlib import Path

FLOAT, UINT8 = 1, 2  # TensorProto.DataType


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _field(number: int, value: int | str | bytes) -> bytes:
    """Encode one field of a protocol buffer."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _array(name: str, shape: list[int | str], kind: int) -> bytes:
    """Encode a ValueInfoProto."""
    dims = b"".join(_field(1, _field(1 if isinstance(size, int) else 2, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dims)))


def mean_colour(path: Path, shape: list[int | str], kind: int = FLOAT) -> Path:
    """Write a network whose embedding of an image is the mean of each of its channels (the second axis)."""

    def node(kind: str, read: str, written: str) -> bytes:
        return _field(1, _field(1, read) + _field(2, written) + _field(4, kind))

    graph = node("GlobalAveragePool", "x", "pooled") + node("Flatten", "pooled", "embedding")
    graph += _field(2, "mean colour") + _field(11, _array("x", shape, kind))
    graph += _field(12, _array("embedding", [shape[0], shape[1]], FLOAT))
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(2, 13)))
    return path
