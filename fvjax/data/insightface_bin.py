"""insightface's verification files (lfw.bin, cfp_fp.bin, …) -> a store with one benchmark. Nothing is unpickled.

Such a file is a pickle of (images, same): 2 M encoded images, of which 2 i and 2 i + 1 are pair i, and M bools. A
pickle is a program that may import and call anything, so Python's unpickler, however restricted, is not used: `load`
runs the few instructions that lists, tuples, bytes, bools and numpy arrays of plain dtypes are made of, and has none
that imports or calls. What numpy's own functions would build it builds itself, after checking every size against the
bytes that are there. Any other instruction or name is refused by name. Sources of the format: insightface's
recognition/arcface_torch/eval/verification.py, CPython's pickletools.py, numpy's ndarray.__reduce__.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fvjax.data import images
from fvjax.data.store import Pairs, Store, Writer

PAIRS = {"lfw": 6000, "cfp_ff": 7000, "cfp_fp": 7000, "agedb_30": 6000, "calfw": 6000, "cplfw": 6000}
FOLDS = 10
# An honest file has some 25 instructions for an image of kilobytes, so these bounds are generous, and a file made of
# nothing but instructions is refused within about a second and 150 MB.
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
    "_codecs.encode": "encode",  # how Python 3 writes bytes in protocols that have none
}
DTYPES = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"b1", "f2", "f4", "f8"}


@dataclass(frozen=True)
class Blob:
    """Bytes of the file and the byte offset of the instruction that holds them."""

    data: bytes
    at: int


class Contents(NamedTuple):
    images: list[Blob]  # 2 M encoded images
    same: np.ndarray  # bool [M]


@dataclass(frozen=True)
class _Name:
    name: str  # a value of KNOWN


@dataclass
class _Dtype:
    value: np.dtype


@dataclass
class _Array:
    blob: Blob | None = None
    dtype: np.dtype | None = None
    shape: tuple[int, ...] = ()
    order: Any = "C"


class _Reader:
    """A file for pickletools, which takes a length from the file and asks for so much: at most an image's worth."""

    def __init__(self, file: BinaryIO):
        self._file, self.tell = file, file.tell

    def read(self, n: int) -> bytes:
        if n > MAX_ITEM:
            raise ValueError(f"an item of {n} bytes, and no image has more than {MAX_ITEM}")
        return self._file.read(n)

    def readline(self) -> bytes:
        return self._file.readline(MAX_LINE)


def read(file: Path) -> Contents:
    """The images and labels of a .bin file.

    Raises:
        ValueError: not such a pickle, cut short, an instruction or a name that such files do not have, or contents
            that are not (2 M encoded images, M bools). The message names the file and the byte.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    with open(file, "rb") as opened:
        try:
            return _contents(load(opened, file.stat().st_size))
        except ValueError as error:
            raise ValueError(f"{file}: {error}; expected a verification file such as insightface's lfw.bin") from error


def _contents(value: Any) -> Contents:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not isinstance(value[0], (list, tuple)):
        raise ValueError("does not hold (list of images, list of bools)")
    found, same = [_image(x, f"image {i}") for i, x in enumerate(value[0])], value[1]
    if isinstance(same, _Array) and len(same.shape) == 1:
        same = _numbers(same).tolist()
    if not isinstance(same, (list, tuple)) or not all(type(x) in (bool, int) and x in (0, 1) for x in same):
        raise ValueError("its second part is no list of bools")
    if not same or len(found) != 2 * len(same):
        raise ValueError(f"{len(found)} images for {len(same)} pairs, and each has two")
    return Contents(found, np.asarray(same, bool))


def _image(value: Any, where: str) -> Blob:
    vector = isinstance(value, _Array) and sum(n != 1 for n in value.shape) == 1
    if vector and value.blob and value.dtype == np.uint8:
        return value.blob  # an encoded file as an array [n] or [n, 1], which is what insightface's own files hold
    if isinstance(value, Blob):
        return value
    if isinstance(value, _Array):
        told = f"a {value.dtype} array {list(value.shape)}"
        raise ValueError(f"{where} is {told} and no encoded file (JPEG, PNG); pixels may be RGB or BGR")
    raise ValueError(f"{where} is a {type(value).__name__.strip('_').lower()} and no encoded file (JPEG, PNG)")


def load(file: BinaryIO, size: int) -> Any:
    """Run the pickle in ``file`` (``size`` bytes, to its end) without Python's unpickler: see the module.

    Returns lists, tuples, bools, ints, None, short str, :class:`Blob` for bytes and _Array for arrays.
    Raises ValueError naming the byte and what was refused.
    """
    reader: Any = _Reader(file)
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    limit, at = min(MAX_INSTRUCTIONS, 10_000 + size // BYTES_AN_INSTRUCTION), 0

    def top(n: int) -> list[Any]:  # pops n values, never past a mark
        if n > len(stack) - (marks[-1] if marks else 0):
            raise ValueError("a value is missing")
        out = stack[len(stack) - n :]
        del stack[len(stack) - n :]
        return out

    def marked() -> list[Any]:
        if not marks:
            raise ValueError("a mark is missing")
        out = stack[marks[-1] :]
        del stack[marks.pop() :]
        return out

    def keep(key: int) -> None:
        (memo[key],) = value = top(1)
        stack.extend(value)

    try:
        for count, (opcode, given, position) in enumerate(pickletools.genops(reader)):
            arg: Any = given
            at = position or 0
            if count > limit:
                raise ValueError(f"more than {limit} instructions in a file of {size} bytes")
            match opcode.name:  # compared one after the other, so the order is that of time, too
                case "PROTO" | "FRAME":
                    pass
                case "MARK":
                    marks.append(len(stack))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(top(int(opcode.name[-1]))))
                case "PUT" | "BINPUT" | "LONG_BINPUT":
                    keep(arg)
                case "MEMOIZE":
                    keep(len(memo))
                case "GET" | "BINGET" | "LONG_BINGET":
                    if arg not in memo:
                        raise ValueError(f"nothing was stored under {arg}")
                    stack.append(memo[arg])
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
                case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                    stack.append(arg)
                case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                    stack.append(Blob(bytes(arg), at))
                case "SHORT_BINSTRING" | "BINSTRING":  # Python 2's str, which pickletools decodes as Latin-1
                    stack.append(Blob(arg.encode("latin-1"), at))
                case "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8" | "UNICODE":
                    # a long one can only be bytes for _codecs.encode; as such it takes a byte a character
                    stack.append(arg if len(arg) <= MAX_LINE else Blob(arg.encode("latin-1"), at))
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_TUPLE":
                    stack.append(())
                case "LIST":
                    stack.append(marked())
                case "TUPLE":
                    stack.append(tuple(marked()))
                case "APPEND" | "APPENDS":
                    values = marked() if opcode.name == "APPENDS" else top(1)
                    (to,) = top(1)
                    if not isinstance(to, list):
                        raise ValueError("appends to what is no list")
                    to.extend(values)
                    stack.append(to)
                case "GLOBAL":
                    stack.append(_name(*arg.split(" ", 1)))
                case "STACK_GLOBAL":
                    module, name = top(2)
                    stack.append(_name(module, name))
                case "REDUCE":
                    function, arguments = top(2)
                    stack.append(_made(function, arguments, at))
                case "BUILD":
                    value, state = top(2)
                    _build(value, state)
                    stack.append(value)
                case "STOP":
                    break
                case other:
                    told = f" ({arg!r:.100})" if isinstance(arg, (str, int)) else ""
                    raise ValueError(f"the instruction {other}{told} is refused")
        (value,) = top(1)
    except ValueError as error:
        raise ValueError(f"byte {at}: {error}") from error
    if stack or marks or reader.tell() != size:
        raise ValueError(f"byte {at}: the pickle ends here, and more is left")
    return value


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


def _made(function: Any, arguments: Any, at: int) -> Any:
    """What a call of a known name makes, without a call."""
    match function, arguments:
        case _Name("encode"), (text, encoding) if _text(encoding) in ("latin1", "latin-1"):
            return Blob(text.encode("latin-1"), at) if isinstance(text, str) else _blob(text)
        case _Name("dtype"), (code, *_):
            if _text(code) not in DTYPES:
                raise ValueError(f"the dtype {_text(code)!r:.100} is refused; plain are {', '.join(sorted(DTYPES))}")
            return _Dtype(np.dtype(_text(code)))
        case _Name("array"), (_Name("ndarray"), (0,), _):
            return _Array()
        case _Name("frombuffer"), (data, _Dtype() as dtype, shape, order):
            return _filled(_Array(), data, dtype, shape, _text(order))
        case _Name("scalar"), (_Dtype() as dtype, data):
            return _numbers(_filled(_Array(), data, dtype, (1,), "C"))[0].item()
        case _Name(name), _:
            raise ValueError(f"arguments of {name} that no plain array has are refused")
    raise ValueError("a call of something that is no name is refused")


def _build(value: Any, state: Any) -> None:
    """Fill an array or dtype, in place because others may refer to it already."""
    match value, state:
        case _Array(), (1, shape, _Dtype() as dtype, order, Blob() as data) if order in (0, 1):
            _filled(value, data, dtype, shape, "F" if order else "C")
        case _Dtype(), (3, order, None, None, None, -1, -1, 0) if _text(order) in ("|", "<", ">", "="):
            byte_order: Any = _text(order)
            value.value = value.value.newbyteorder(byte_order)
        case _Array() | _Dtype(), _:
            raise ValueError("an array or dtype that is not plain (objects, fields) is refused")
        case _:
            raise ValueError("setting the state of something that is no plain array is refused")


def _filled(array: _Array, data: Any, dtype: _Dtype, shape: Any, order: str) -> _Array:
    data = _blob(data)
    plain = isinstance(shape, tuple) and len(shape) <= 4 and all(type(n) is int and n >= 0 for n in shape)
    if not plain or order not in ("C", "F") or math.prod(shape) * dtype.value.itemsize != len(data.data):
        raise ValueError(f"an array whose shape does not fit its {len(data.data)} bytes is refused")
    array.blob, array.dtype, array.shape, array.order = data, dtype.value, shape, order
    return array


def _blob(value: Any) -> Blob:
    if not isinstance(value, Blob):
        raise ValueError("bytes were expected")
    return value


def _numbers(array: _Array) -> np.ndarray:
    if array.blob is None:
        raise ValueError("an array without contents")
    return np.frombuffer(array.blob.data, array.dtype).reshape(array.shape, order=array.order)


def protocol(file: Path, n_pairs: int, name: str | None, folds: int | None) -> tuple[str, np.ndarray]:
    """Name of the benchmark and int64 [n_pairs] fold of each pair: consecutive, as equal as they can be.

    That is what insightface's KFold(n_splits=10, shuffle=False) makes. The usual benchmarks are known by file name and
    number of pairs; any other needs both ``name`` and ``folds``. Raises ValueError naming the flag.
    """
    told = name or file.stem
    if told in PAIRS:
        if n_pairs != PAIRS[told]:
            given = f"{file}: holds {n_pairs} pairs, and {told} has {PAIRS[told]}"
            raise ValueError(f"{given}; if it is another benchmark, give it another --name, and --folds")
        if folds not in (None, FOLDS):
            raise ValueError(f"--folds={folds}: {told} is judged in {FOLDS} folds")
        folds = FOLDS
    elif name is None or folds is None:
        known = ", ".join(f"{known} ({n} pairs)" for known, n in PAIRS.items())
        raise ValueError(f"{file}: {n_pairs} pairs, none of {known}; say what it is with --name and --folds")
    if not 2 <= folds <= n_pairs:
        raise ValueError(f"--folds={folds}: choose 2 … {n_pairs}, the number of pairs")
    return told, np.repeat(np.arange(folds), [len(x) for x in np.array_split(np.arange(n_pairs), folds)])


def people(n_images: int, genuine: np.ndarray) -> np.ndarray:
    """int64 [n_images]: the lowest number among the images that genuine pairs [M, 2] connect with it (union-find).

    That is all a .bin says about who is who: two numbers may be one person whom no genuine pair connects.
    """
    above = list(range(n_images))

    def find(i: int) -> int:
        while above[i] != i:
            above[i] = i = above[above[i]]
        return i

    for a, b in genuine.tolist():
        low, high = sorted((find(a), find(b)))
        above[high] = low
    return np.asarray([find(i) for i in range(n_images)], np.int64)


def convert(src: Path, dst: Path, *, name: str | None, folds: int | None, policy: str, resize: bool) -> Store:
    """FILE.bin (insightface's pickled verification pairs) -> a store with one benchmark.

    Images of equal bytes become one record. Identities are derived from genuine pairs (:func:`people`), which the
    manifest says. An impostor pair of one derived identity contradicts the rest.

    Args:
        name, folds: see :func:`protocol`.
        policy: what is done about images that cannot be read, and about contradictions: "fail", or "drop" their pairs.
    Raises:
        ValueError: see :func:`read` and :func:`protocol`; with "fail" the first such image or pair; a size other than
            112x112 without ``resize``; a fold without pairs.
    """
    found, same = read(src)
    name, fold = protocol(src, len(same), name, folds)
    numbers: dict[bytes, int] = {}
    firsts: list[int] = []  # the first of each distinct image, by its number in the file
    for i, blob in enumerate(found):
        if numbers.setdefault(blob.data, len(firsts)) == len(firsts):
            firsts.append(i)
    distinct = np.asarray([numbers[blob.data] for blob in found], np.int64)
    ends = distinct.reshape(-1, 2)
    who = people(len(firsts), ends[same])
    contradictions = np.flatnonzero(~same & (who[ends[:, 0]] == who[ends[:, 1]]))
    if len(contradictions) and policy == "fail":
        told = f"pair {contradictions[0]} is labelled different, but is one person by the genuine pairs"
        more = f"and {len(contradictions) - 1} more; leave them out with --policy=drop"
        raise ValueError(f"{src}: {told} ({more})")
    with Writer(dst, split="test", sources=[str(src)]) as writer:
        record = np.full(len(firsts), -1, np.int64)
        reasons: dict[int, str] = {}
        for k, i in enumerate(firsts):
            where = f"{src.name} image {i} (pair {i // 2}, byte {found[i].at})"
            try:
                jpeg = images.to_jpeg(found[i].data, where, resize)
                record[k] = writer.add(jpeg, f"derived {who[k]:06d}", f"{src.name}#{i}")
            except images.WrongSize as error:
                raise ValueError(f"{src}: {error}") from error
            except ValueError as error:
                if policy == "fail":
                    raise ValueError(f"{src}: {error}; leave out its pairs with --policy=drop") from error
                reasons[k] = str(error)
        for i, k in enumerate(distinct.tolist()):
            if k in reasons:
                writer.reject(f"{src.name}#{i}", reasons[k])
        kept = np.all(record[ends] >= 0, axis=1)
        kept[contradictions] = False
        sizes = np.bincount(fold[kept], minlength=fold[-1] + 1)
        if not sizes.all():
            raise ValueError(f"{src}: no pair of fold {int(sizes.argmin()) + 1} is left")
        (a, b), labels = record[ends[kept]].T, np.asarray(writer.labels)
        facts = {
            "identities": "derived from genuine pairs",
            "images_read": len(found),
            "images_repeated": len(found) - len(firsts) - (len(writer.rejected) - len(reasons)),
            "contradictory_pairs": contradictions.tolist(),
            "genuine_by_fold": np.bincount(fold[kept & same], minlength=len(sizes)).tolist(),
        }
        writer.add_pairs(
            name,
            Pairs(a, b, same[kept], fold[kept], labels[a], labels[b]),
            policy=policy,
            failure_to_acquire=len(reasons),
            pairs_dropped=int((~kept).sum()),
            facts=facts,
        )
    return Store(dst, "test")


def add_command(commands: Any) -> None:
    """The command ``bin`` with its flags, for argparse."""
    sub = commands.add_parser("bin", help=(convert.__doc__ or "").split("\n")[0], allow_abbrev=False)
    sub.add_argument("--src", type=Path, required=True, help="FILE.bin")
    sub.add_argument("--dst", type=Path, required=True, help="the store to make; must not exist")
    sub.add_argument("--resize", action="store_true", help="bring square images of other sizes to 112x112")
    sub.add_argument("--name", help="of the benchmark; without it the file's name, if it is a known one's")
    sub.add_argument("--folds", type=int, help="number of folds, of a benchmark that is not known")
    sub.add_argument("--policy", choices=("fail", "drop"), default="fail", help="for images that cannot be read")
    sub.set_defaults(run=convert)


def summary(store: Store) -> list[str]:
    """What is particular to such a benchmark, for people: none for stores of another origin."""
    lines = []
    for name, b in store.manifest["benchmarks"].items():
        if b["identities"] == "named":
            continue
        read, repeated, rejected = b["images_read"], b["images_repeated"], store.manifest["counts"]["rejected"]
        balanced = [2 * g for g in b["genuine_by_fold"]] == b["fold_sizes"]
        folds = "balanced" if balanced else f"not balanced, genuine pairs by fold: {b['genuine_by_fold']}"
        lines += [
            f"  {name}: {read} images read = {len(store)} written + {repeated} repeats of them + {rejected} rejected; "
            f"folds {folds}; {len(b['contradictory_pairs'])} contradictory pairs",
            f"  {name}: identities are {b['identities']}, as the file names nobody: intervals are on the narrow side",
        ]
    return lines
