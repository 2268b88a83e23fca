"""Read the tensors of a file that ``torch.save`` wrote, without Python's unpickler: nothing in the file can run code.

Such a file (torch 1.6 or newer) is a zip archive of data.pkl, a pickle that describes the tensors, and a member with
the raw numbers of each storage. A pickle is a program that may import and call anything, so Python's unpickler, however
restricted, is not used. The few instructions that a state dict consists of are run here; none of them imports or calls.
What torch's own functions would build is built after checking every size against the members of the archive. Any other
instruction or name is refused, and named. Sources of the format: CPython's pickletools.py, torch/serialization.py.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

# An IResNet-200 has 2,000 tensors of some 40 instructions each, so these bounds are generous.
MAX_PICKLE = 32 << 20  # bytes of data.pkl
MAX_INSTRUCTIONS = 2_000_000
MAX_MEMBERS = 50_000
STORAGES = {
    **{"Float": np.float32, "Double": np.float64, "Half": np.float16, "BFloat16": ml_dtypes.bfloat16},
    **{"Long": np.int64, "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8, "Bool": np.bool_},
}
KNOWN = {
    "collections.OrderedDict": "dict",
    "torch._utils._rebuild_tensor_v2": "tensor",
    "torch._utils._rebuild_parameter": "parameter",
    **{f"torch.{name}Storage": name for name in STORAGES},
}
NESTED = ("state_dict_backbone", "state_dict", "model_state_dict", "model")  # where training programs keep the weights
ELSEWHERE = (
    "elsewhere, with torch: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
)


class _Name(NamedTuple):
    name: str  # a value of KNOWN


class _Storage(NamedTuple):
    member: str  # of the archive
    dtype: np.dtype
    size: int  # in elements


@dataclass(frozen=True)
class TorchTensor:
    """One tensor of the file; indexing reads its storage."""

    path: Path
    storage: _Storage
    offset: int  # of its first element
    shape: tuple[int, ...]
    axes: tuple[int, ...]  # its axes from the outermost in memory to the innermost

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype

    def __getitem__(self, index) -> np.ndarray:
        with zipfile.ZipFile(self.path) as archive:
            try:
                data = archive.read(self.storage.member)
            except (zipfile.BadZipFile, EOFError) as error:
                raise ValueError(f"{self.path}: {self.storage.member} is damaged ({error}); copy it again") from None
        flat = np.frombuffer(data, self.dtype, math.prod(self.shape), self.offset * self.dtype.itemsize)
        return flat.reshape([self.shape[axis] for axis in self.axes]).transpose(np.argsort(self.axes))[index]


def is_torch_file(path: Path) -> bool:
    """Return whether a file is a zip archive, as torch.save has written since version 1.6."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def open_torch(path: Path) -> dict[str, TorchTensor]:
    """Open a file of ``torch.save`` -> its tensors by key. No numbers are read.

    The file holds a state dict, or a checkpoint with one under a key of `NESTED`.

    Raises:
        ValueError: another archive, or damage; an instruction or a name that is refused; sizes that do not fit; no
            state dict. The message names the file and what is wrong.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members, root = _members(archive, path.stat().st_size)
            pickle = archive.read(f"{root}data.pkl")
        return _state_dict(_Machine(path, pickle, root, members).run())
    except (ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: {error}; expected a state dict that torch.save wrote. Or {ELSEWHERE}") from None


def _members(archive: zipfile.ZipFile, file_size: int) -> tuple[dict[str, int], str]:
    """Check the archive's directory -> (size by member, the folder that holds data.pkl)."""
    entries = archive.infolist()
    if len(entries) > MAX_MEMBERS:
        raise ValueError(f"an archive of {len(entries)} members, more than {MAX_MEMBERS}")
    sizes: dict[str, int] = {}
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.file_size > file_size:
            raise ValueError(f"member {entry.filename!r:.100} is compressed, encrypted or larger than the file")
        if entry.filename in sizes:
            raise ValueError(f"member {entry.filename!r:.100} comes twice")
        sizes[entry.filename] = entry.file_size
    roots = [name.removesuffix("data.pkl") for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"an archive with {len(roots)} members FOLDER/data.pkl, not one")
    if sizes[f"{roots[0]}data.pkl"] > MAX_PICKLE:
        raise ValueError(f"its data.pkl has more than {MAX_PICKLE} bytes")
    if sizes.get(f"{roots[0]}byteorder", 0) == 3:  # "big"
        raise ValueError("its numbers are stored big-endian, which is not supported")
    return sizes, roots[0]


def _state_dict(value: Any) -> dict[str, TorchTensor]:
    """Return the state dict that a file holds, or that one of the known keys of its checkpoint holds."""
    found = next((value[key] for key in NESTED if key in value), value) if isinstance(value, dict) else value
    if not isinstance(found, dict) or not found:
        raise ValueError(f"it holds a {type(found).__name__}, not a dictionary of tensors")
    for key, tensor in found.items():
        if not isinstance(tensor, TorchTensor) or not isinstance(key, str):
            raise ValueError(f"{key!r:.100} is a {type(tensor).__name__}, not a tensor")
    members = {tensor.storage.member: tensor.storage for tensor in found.values()}
    stored = sum(storage.size * storage.dtype.itemsize for storage in members.values())
    if sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in found.values()) > stored:
        raise ValueError("its tensors share their numbers, which no known network does")
    return found


class _Machine:
    """The pickle machine: a stack with marks, and a memo."""

    def __init__(self, path: Path, pickle: bytes, root: str, members: dict[str, int]):
        self.path = path
        self.pickle = pickle
        self.root = root
        self.members = members
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.at = 0  # byte offset of the current instruction

    def run(self) -> Any:
        """Return the value that the pickle describes. Raises ValueError for an instruction or name that is refused."""
        try:
            for name, arg in self._instructions():
                if name == "STOP":
                    break
                self._execute(name, arg)
            (value,) = self._pop(1)
        except ValueError as error:
            raise ValueError(f"data.pkl, byte {self.at}: {error}") from error
        if self.stack or self.marks:
            raise ValueError(f"data.pkl, byte {self.at}: the pickle ends here, and more is left")
        return value

    def _instructions(self) -> Iterator[tuple[str, Any]]:
        for count, (opcode, arg, position) in enumerate(pickletools.genops(io.BytesIO(self.pickle))):
            self.at = position or 0
            if count > MAX_INSTRUCTIONS:
                raise ValueError(f"more than {MAX_INSTRUCTIONS} instructions")
            yield opcode.name, arg

    def _execute(self, name: str, arg: Any) -> None:
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(self.stack))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                (value,) = self._pop(1)
                self.memo[len(self.memo) if name == "MEMOIZE" else arg] = value
                self.stack.append(value)
            case "BINGET" | "LONG_BINGET":
                if arg not in self.memo:
                    raise ValueError(f"nothing was stored under {arg}")
                self.stack.append(self.memo[arg])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                self.stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[name])
            case "TUPLE":
                self.stack.append(tuple(self._pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self._pop(int(name[-1]))))
            case "APPEND" | "APPENDS":
                self._append(self._pop_to_mark() if name == "APPENDS" else self._pop(1))
            case "SETITEM" | "SETITEMS":
                self._set_items(self._pop_to_mark() if name == "SETITEMS" else self._pop(2))
            case "GLOBAL":
                self.stack.append(_known(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                self.stack.append(_known(*self._pop(2)))
            case "BINPERSID":
                self.stack.append(self._storage(*self._pop(1)))
            case "REDUCE":
                self.stack.append(self._build(*self._pop(2)))
            case "BUILD":
                _check_state(self._pop(1)[0], self.stack[-1] if self.stack else None)
            case _:
                self.stack.append(_literal(name, arg))

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

    def _set_items(self, values: list[Any]) -> None:
        (target,) = self._pop(1)
        keys = values[::2]
        if not isinstance(target, dict) or len(values) % 2 or not all(isinstance(key, str | int) for key in keys):
            raise ValueError("it sets items of something that is no dictionary, or by keys that are no names")
        if any(isinstance(key, str) and key in target for key in keys) or len(set(keys)) < len(keys):
            raise ValueError("a key comes twice")
        target.update(zip(keys, values[1::2]))
        self.stack.append(target)

    def _storage(self, reference: Any) -> _Storage:
        """Return the storage that a persistent id names, whose member must have its size."""
        match reference:
            case ("storage", _Name(name), str(key), str(), int(size)) if name in STORAGES and size >= 0:
                dtype = np.dtype(STORAGES[name])
                member = f"{self.root}data/{key}"
                if self.members.get(member) != size * dtype.itemsize:
                    raise ValueError(f"{member!r:.100} is missing, or has not the {size} numbers that are promised")
                return _Storage(member, dtype, size)
        raise ValueError("a reference to something that is no storage is refused")

    def _build(self, function: Any, arguments: Any) -> Any:
        """Return what a call of a known name would make, without calling it."""
        match function, arguments:
            case _Name("dict"), ():
                return {}
            case _Name("parameter"), (TorchTensor() as tensor, bool(), dict()):
                return tensor
            case _Name("tensor"), (
                _Storage() as storage,
                int(offset),
                tuple() as shape,
                tuple() as stride,
                bool(),
                dict(),
            ):
                return TorchTensor(self.path, storage, offset, shape, _dense_axes(storage, offset, shape, stride))
            case _Name(name), _:
                raise ValueError(f"arguments of {name} that no plain tensor has are refused")
        raise ValueError("a call of something that is no name is refused")


def _dense_axes(storage: _Storage, offset: int, shape: tuple[Any, ...], stride: tuple[Any, ...]) -> tuple[int, ...]:
    """Return a tensor's axes, outermost first. Raises ValueError unless it is a dense part of its storage."""
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or len(shape) > 8 or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("a tensor whose shape and strides are no numbers, or not as many")
    if offset + math.prod(shape) > storage.size:
        raise ValueError(f"a tensor of shape {list(shape)} at {offset} in a storage of {storage.size} numbers")
    axes = tuple(sorted(range(len(shape)), key=lambda axis: (-stride[axis], axis)))
    step = 1
    for axis in reversed(axes):
        if shape[axis] > 1 and stride[axis] != step:
            raise ValueError(f"a tensor of shape {list(shape)} with strides {list(stride)}, which is not dense")
        step *= shape[axis]
    return axes


def _known(module: Any, name: Any) -> _Name:
    dotted = f"{module}.{name}"
    known = KNOWN.get(dotted)
    if known is None:
        raise ValueError(f"{dotted!r:.100} is refused, as a pickle could run code with it; nothing was executed")
    return _Name(known)


def _check_state(state: Any, target: Any) -> None:
    """Raise ValueError for a state other than the versions of modules, which torch adds to a state dict."""
    if not isinstance(target, dict) or not isinstance(state, dict) or set(state) != {"_metadata"}:
        raise ValueError("setting the state of something that is no state dict is refused")


def _literal(name: str, arg: Any) -> Any:
    """Return the value that an instruction without operands on the stack pushes."""
    match name:
        case "NONE" | "NEWTRUE" | "NEWFALSE":
            return {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name]
        case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
            return arg
        case "SHORT_BINUNICODE" | "BINUNICODE":
            return arg
    operand = f" ({arg!r:.100})" if isinstance(arg, str | int) else ""
    raise ValueError(f"the instruction {name}{operand} is refused")
