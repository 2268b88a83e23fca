"""Further features of a record besides image, identity and source: arrays of fixed shape and dtype, text or maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from fvjax.data import map_png

TEXT = "text"
MAP = "map"
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
DTYPES = ("bool", *_INTEGERS, "float16", "float32", "float64")
RESERVED_NAMES = ("image", "identity", "source")
MAX_FEATURE_BYTES = 1 << 28  # of one record; a manifest that declares more is malformed


class EncodedValue(NamedTuple):
    """One feature of one record, ready to be stored."""

    name: str
    type: str  # str() of its Feature, part of the record's digest
    data: bytes


@dataclass(frozen=True)
class Feature:
    """The type of one further value that every record of a store has.

    ``Feature("float32", (68, 2))`` is an array, ``Feature("float32")`` a single number, and ``Feature("text")`` a
    string, which may have several lines. ``Feature("map", (112, 112))`` is a map of class ids, an array of uint8 that
    is stored as a grey PNG.

    Args:
        dtype: one of DTYPES, "text" or "map".
        shape: the array's shape; () for a single number and for text.
    Raises:
        ValueError: an unknown dtype, a shape that is no tuple of integers above 0, or more than 256 MB.
    """

    dtype: str
    shape: tuple[int, ...] = ()

    def __post_init__(self):
        if self.dtype not in (TEXT, MAP, *DTYPES):
            choices = f"{TEXT!r}, {MAP!r} or one of {', '.join(DTYPES)}"
            raise ValueError(f"a feature's dtype is {self.dtype!r}; choose {choices}")
        if not isinstance(self.shape, tuple) or not all(type(n) is int and n > 0 for n in self.shape):
            raise ValueError(f"a feature's shape is {self.shape!r}; expected a tuple of integers above 0")
        if self.is_text and self.shape:
            raise ValueError(f"a text feature has no shape, this one has {self.shape!r}")
        if self.is_map and len(self.shape) != 2:
            raise ValueError(f"a map's shape is (height, width), this one has {self.shape!r}")
        if math.prod(self.shape) * self.array_dtype.itemsize > MAX_FEATURE_BYTES:
            raise ValueError(f"a feature {self} has more than {MAX_FEATURE_BYTES} bytes")

    def __str__(self) -> str:
        return TEXT if self.is_text else f"{self.dtype} {list(self.shape)}"

    @property
    def is_text(self) -> bool:
        return self.dtype == TEXT

    @property
    def is_map(self) -> bool:
        return self.dtype == MAP

    @property
    def array_dtype(self) -> np.dtype:
        """The dtype of its values; text counts as bytes."""
        return np.dtype(np.uint8) if self.is_text or self.is_map else np.dtype(self.dtype)

    @property
    def nbytes(self) -> int:
        """The number of bytes that one record needs for it (at least, in the case of text and of maps)."""
        return 0 if self.is_text or self.is_map else math.prod(self.shape) * self.array_dtype.itemsize

    def encode(self, value: Any) -> bytes:
        """Return the bytes to store: UTF-8, or the array in C order, little-endian.

        Raises:
            ValueError: another type, shape or dtype than declared, or a number that is not finite.
        """
        if self.is_text:
            if not isinstance(value, str):
                raise ValueError(f"a {type(value).__name__}, expected text (str)")
            return _utf8(value)
        if not isinstance(value, np.ndarray | np.generic):
            raise ValueError(f"a {type(value).__name__}, expected a numpy array {self}")
        array = np.asarray(value)
        if array.dtype != self.array_dtype or array.shape != self.shape:
            raise ValueError(f"{array.dtype} {list(array.shape)}, expected {self}")
        if self.is_map:
            return map_png.encode(array.astype(np.uint8, copy=False))
        self._check_values(array)
        return np.ascontiguousarray(array, self._stored_dtype).tobytes()

    def decode(self, data: bytes) -> Any:
        """Return the value that ``data`` stores: str, or an array. Raises ValueError if the bytes do not fit."""
        if self.is_text:
            return data.decode()
        if self.is_map:
            return map_png.decode(data, self.shape)
        if len(data) != self.nbytes:
            raise ValueError(f"{len(data)} bytes, but {self} has {self.nbytes}")
        if self.dtype == "bool" and data.strip(b"\0\1"):
            raise ValueError("bytes other than 0 and 1, expected bool")
        array = np.frombuffer(data, self._stored_dtype).reshape(self.shape)
        self._check_values(array)
        return array.astype(self.dtype, copy=False)

    def stack(self, values: Sequence[Any]) -> np.ndarray:
        """Stack the values of N records along a new first axis; text becomes an object array of str [N]."""
        if self.is_text:
            return np.array(values, object)
        return np.stack(values) if values else np.empty((0, *self.shape), self.array_dtype)

    def to_tfds(self) -> tfds.features.FeatureConnector:
        """Return the TFDS feature under which the value is stored."""
        if self.is_text:
            return tfds.features.Text()
        if self.is_map:
            return tfds.features.Image(shape=(*self.shape, 1), encoding_format="png")
        # As raw bytes: TFDS would store any other array as a list of int64 or float32, larger and for float64 inexact.
        encoding = tfds.features.Encoding.BYTES
        return tfds.features.Tensor(shape=self.shape, dtype=np.dtype(self.dtype).type, encoding=encoding)

    def to_json(self) -> dict[str, Any]:
        return {"dtype": TEXT} if self.is_text else {"dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, entry: Any) -> Feature:
        """Rebuild a feature from its entry in the manifest. Raises ValueError if the entry is malformed."""
        if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
            raise ValueError("no dtype")
        shape = entry.get("shape", [])
        return cls(entry["dtype"], tuple(shape) if isinstance(shape, list) else shape)

    @property
    def _stored_dtype(self) -> np.dtype:
        return np.dtype(self.dtype).newbyteorder("<")

    def _check_values(self, array: np.ndarray) -> None:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError("it has numbers that are not finite (NaN or infinity)")


def check_names(features: Mapping[str, Feature]) -> None:
    """Raise ValueError if a feature's name is no identifier or belongs to a feature that every store has."""
    for name in features:
        if not isinstance(name, str) or not name.isidentifier() or name in RESERVED_NAMES:
            reserved = ", ".join(RESERVED_NAMES)
            raise ValueError(f"feature {name!r}: a name is letters, digits and underscores, and none of {reserved}")


def encode_values(features: Mapping[str, Feature], values: Mapping[str, Any], source: str) -> list[EncodedValue]:
    """Check the further values of one record and encode them, in alphabetical order.

    Raises:
        ValueError: a value is missing, undeclared or not as declared. The message names source and feature.
    """
    for name in (*features, *values):
        if name not in values:
            raise ValueError(f"{source}: feature {name!r} is missing, expected {features[name]}")
        if name not in features:
            raise ValueError(f"{source}: feature {name!r} is not declared; declared are {sorted(features) or 'none'}")
    encoded = []
    for name in sorted(features):
        try:
            encoded.append(EncodedValue(name, str(features[name]), features[name].encode(values[name])))
        except ValueError as error:
            raise ValueError(f"{source}: feature {name!r}: {error}") from error
    return encoded


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text that UTF-8 cannot express ({error.reason})") from error
