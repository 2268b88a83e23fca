"""Reading a pickle of plain values without Python's unpickler: nothing in the file can run code.

A pickle is a program that may import and call anything, so Python's unpickler, however restricted, is not used. `load`
runs the few instructions that lists, tuples, bytes, bools and numpy arrays of plain dtypes consist of, none of which
imports or calls. It builds by itself what numpy's own functions would build, after checking every size against the
bytes in the file. It refuses any other instruction or name, and says which. Sources of the format: CPython's
pickletools.py, numpy's ndarray.__reduce__.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

# An honest verification file has some 25 instructions for an image of kilobytes, so these bounds are generous. A file
# that consists of nothing but instructions is refused within about a second and 150 MB.
MAX_INSTRUCTIONS = 600_000
BYTES_AN_INSTRUCTION = 16
MAX_ITEM = 16 << 20  # bytes of one image
MAX_LINE = 1000

_CORE = ("numpy.core", "numpy._core")  # before and since numpy 2
KNOWN = {
    **{f"{core}.multiarray._reconstruct": "array" for core in _CORE},
    **{f"{core}.multiarray.scalar": "scalar" for core in _CORE},
    **{f"{core}.numeric._frombuffer": "frombuffer" for core in _CORE},  # protocol 5
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "_codecs.encode": "encode",  # how Python 3 writes bytes in protocols without an instruction for them
}
DTYPES = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"b1", "f2", "f4", "f8"}


@dataclass(frozen=True)
class Blob:
    """Bytes of the file, and the byte offset of the instruction that contains them."""

    data: bytes
    at: int


@dataclass
class Array:
    """A numpy array as the file describes it; `numbers` makes it one."""

    blob: Blob | None = None
    dtype: np.dtype | None = None
    shape: tuple[int, ...] = ()
    order: Any = "C"

    def numbers(self) -> np.ndarray:
        if self.blob is None:
            raise ValueError("an array without contents")
        return np.frombuffer(self.blob.data, self.dtype).reshape(self.shape, order=self.order)

    def fill(self, data: Any, dtype: Dtype, shape: Any, order: str) -> Array:
        """Set contents and type, in place. Raises ValueError if the shape does not fit the bytes."""
        data = _blob(data)
        plain = isinstance(shape, tuple) and len(shape) <= 4 and all(type(n) is int and n >= 0 for n in shape)
        if not plain or order not in ("C", "F") or math.prod(shape) * dtype.value.itemsize != len(data.data):
            raise ValueError(f"an array whose shape does not fit its {len(data.data)} bytes is refused")
        self.blob, self.dtype, self.shape, self.order = data, dtype.value, shape, order
        return self


@dataclass
class Dtype:
    value: np.dtype


@dataclass(frozen=True)
class _Name:
    name: str  # a value of KNOWN


def load(file: BinaryIO, size: int) -> Any:
    """Run the pickle in ``file``, which has ``size`` bytes up to its end.

    Returns:
        lists, tuples, bools, ints, None, short str, :class:`Blob` for bytes and :class:`Array` for arrays.
    Raises:
        ValueError: an instruction or a name that is refused, a malformed pickle, or more after its end. The message
            names the byte.
    """
    return _Machine(file, size).run()


class _BoundedReader:
    """A file for pickletools, which reads as many bytes as the file says: at most one image's worth at a time."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.tell = file.tell

    def read(self, n: int) -> bytes:
        if n > MAX_ITEM:
            raise ValueError(f"an item of {n} bytes, and no image has more than {MAX_ITEM}")
        return self._file.read(n)

    def readline(self) -> bytes:
        return self._file.readline(MAX_LINE)


class _Machine:
    """The pickle machine: a stack with marks, and a memo."""

    def __init__(self, file: BinaryIO, size: int):
        self.reader: Any = _BoundedReader(file)
        self.size = size
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.at = 0  # byte offset of the current instruction

    def run(self) -> Any:
        try:
            for name, arg in self._instructions():
                if name == "STOP":
                    break
                self._execute(name, arg)
            (value,) = self._pop(1)
        except ValueError as error:
            raise ValueError(f"byte {self.at}: {error}") from error
        if self.stack or self.marks or self.reader.tell() != self.size:
            raise ValueError(f"byte {self.at}: the pickle ends here, and more is left")
        return value

    def _instructions(self) -> Iterator[tuple[str, Any]]:
        limit = min(MAX_INSTRUCTIONS, 10_000 + self.size // BYTES_AN_INSTRUCTION)
        for count, (opcode, arg, position) in enumerate(pickletools.genops(self.reader)):
            self.at = position or 0
            if count > limit:
                raise ValueError(f"more than {limit} instructions in a file of {self.size} bytes")
            yield opcode.name, arg

    def _execute(self, name: str, arg: Any) -> None:
        match name:  # compared one after the other, so the most frequent come first
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(self.stack))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self._pop(int(name[-1]))))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memorize(arg)
            case "MEMOIZE":
                self._memorize(len(self.memo))
            case "GET" | "BINGET" | "LONG_BINGET":
                if arg not in self.memo:
                    raise ValueError(f"nothing was stored under {arg}")
                self.stack.append(self.memo[arg])
            case "LIST":
                self.stack.append(self._pop_to_mark())
            case "TUPLE":
                self.stack.append(tuple(self._pop_to_mark()))
            case "APPEND" | "APPENDS":
                values = self._pop_to_mark() if name == "APPENDS" else self._pop(1)
                self._append(values)
            case "GLOBAL":
                self.stack.append(_name(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                self.stack.append(_name(*self._pop(2)))
            case "REDUCE":
                function, arguments = self._pop(2)
                self.stack.append(_call(function, arguments, self.at))
            case "BUILD":
                value, state = self._pop(2)
                _set_state(value, state)
                self.stack.append(value)
            case _:
                self.stack.append(self._literal(name, arg))

    def _literal(self, name: str, arg: Any) -> Any:
        """Return the value that an instruction without operands on the stack pushes."""
        match name:
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                return {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name]
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                return arg
            case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                return Blob(bytes(arg), self.at)
            case "SHORT_BINSTRING" | "BINSTRING":  # Python 2's str, which pickletools decodes as Latin-1
                return Blob(arg.encode("latin-1"), self.at)
            case "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8" | "UNICODE":
                # A long one can only be bytes for _codecs.encode; as such it takes a byte a character.
                return arg if len(arg) <= MAX_LINE else Blob(arg.encode("latin-1"), self.at)
            case "EMPTY_LIST":
                return []
            case "EMPTY_TUPLE":
                return ()
        operand = f" ({arg!r:.100})" if isinstance(arg, (str, int)) else ""
        raise ValueError(f"the instruction {name}{operand} is refused")

    def _pop(self, n: int) -> list[Any]:
        """Pop n values, never past a mark."""
        if n > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise ValueError("a value is missing")
        values = self.stack[len(self.stack) - n :]
        del self.stack[len(self.stack) - n :]
        return values

    def _pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("a mark is missing")
        values = self.stack[self.marks[-1] :]
        del self.stack[self.marks.pop() :]
        return values

    def _append(self, values: list[Any]) -> None:
        (target,) = self._pop(1)
        if not isinstance(target, list):
            raise ValueError("it appends to something that is no list")
        target.extend(values)
        self.stack.append(target)

    def _memorize(self, key: int) -> None:
        (value,) = self._pop(1)
        self.memo[key] = value
        self.stack.append(value)


def _text(value: Any) -> str:
    if isinstance(value, Blob) and len(value.data) <= MAX_LINE:
        return value.data.decode("latin-1")
    if isinstance(value, str):
        return value
    raise ValueError("a name was expected")


def _name(module: Any, name: Any) -> _Name:
    dotted = f"{_text(module)}.{_text(name)}"
    known = KNOWN.get(dotted)
    if known is None:
        raise ValueError(f"{dotted!r:.100} is refused, as a pickle could run code with it; nothing was executed")
    return _Name(known)


def _call(function: Any, arguments: Any, at: int) -> Any:
    """Return what a call of a known name would make, without calling it."""
    match function, arguments:
        case _Name("encode"), (text, encoding) if _text(encoding) in ("latin1", "latin-1"):
            return Blob(text.encode("latin-1"), at) if isinstance(text, str) else _blob(text)
        case _Name("dtype"), (code, *_):
            if _text(code) not in DTYPES:
                raise ValueError(f"the dtype {_text(code)!r:.100} is refused; plain are {', '.join(sorted(DTYPES))}")
            return Dtype(np.dtype(_text(code)))
        case _Name("array"), (_Name("ndarray"), (0,), _):
            return Array()
        case _Name("frombuffer"), (data, Dtype() as dtype, shape, order):
            return Array().fill(data, dtype, shape, _text(order))
        case _Name("scalar"), (Dtype() as dtype, data):
            return Array().fill(data, dtype, (1,), "C").numbers()[0].item()
        case _Name(name), _:
            raise ValueError(f"arguments of {name} that no plain array has are refused")
    raise ValueError("a call of something that is no name is refused")


def _set_state(value: Any, state: Any) -> None:
    """Complete an array or dtype, in place because other values may refer to it already."""
    match value, state:
        case Array(), (1, shape, Dtype() as dtype, order, Blob() as data) if order in (0, 1):
            value.fill(data, dtype, shape, "F" if order else "C")
        case Dtype(), (3, order, None, None, None, -1, -1, 0) if _text(order) in ("|", "<", ">", "="):
            byte_order: Any = _text(order)
            value.value = value.value.newbyteorder(byte_order)
        case Array() | Dtype(), _:
            raise ValueError("an array or dtype that is not plain (objects, fields) is refused")
        case _:
            raise ValueError("setting the state of something that is no plain array is refused")


def _blob(value: Any) -> Blob:
    if not isinstance(value, Blob):
        raise ValueError("bytes were expected")
    return value
