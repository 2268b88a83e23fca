"""Test the readers with thousands of damaged and hostile files.

For any bytes, a reader may only raise ValueError or OSError, which the commands print as one line, within one second of
processor time and 256 MB.

    FVJAX_FUZZ=20000 python -m pytest tests/test_fuzz.py      that number of cases, with new seeds each time

Without FVJAX_FUZZ there are 500 cases, the same in every run. The kernel enforces the memory limit (RLIMIT_AS): while a
test runs, the process may map 256 MB more than before. A MemoryError is a failure, even if a reader turns it into a
ValueError. A crash of the process fails the run.
"""

import hashlib
import io
import json
import os
import pickle
import pickletools
import shutil
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from fvjax.data import images, stores
from fvjax.data.readers import benchmark_lists, benchmarks, insightface_bin
from tests.test_images import file_bytes, smooth_face
from tests.test_insightface_bin import KINDS, hostile
from tests.test_prepare import LFW, run
from weights_convert.read import _open_tensors

pytestmark = pytest.mark.usefixtures("little_memory")
GIVEN = os.environ.get("FVJAX_FUZZ")
TESTS = 12
fuzz = settings(
    max_examples=-(-int(GIVEN or 500) // TESTS),
    derandomize=not GIVEN,
    database=None,
    deadline=None,  # `within_bounds` measures processor time; wall time depends on other programs
    suppress_health_check=list(HealthCheck),
)


def within_bounds(call) -> None:
    """Allow only ValueError and OSError that are not caused by lack of memory, within one second."""
    before = time.process_time()
    try:
        call()
    except (ValueError, OSError) as error:
        cause: BaseException | None = error
        while cause is not None:
            assert not isinstance(cause, MemoryError), "more than 256 MB were asked for"
            cause = cause.__cause__ or cause.__context__
    assert time.process_time() - before < 1


@st.composite
def damaged(draw, originals: list[bytes]) -> bytes:
    """Return one of the originals with some bytes changed, added, removed or repeated, near the start or anywhere."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.one_of(st.integers(0, min(200, len(data))), st.integers(0, len(data))))
        n = draw(st.integers(1, 12))
        new = draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\0" * 8, b"\xff" * 8, b"\x7f\xff"])))
        match draw(st.sampled_from(["set", "set", "insert", "delete", "cut", "again"])):
            case "set":
                data[at : at + len(new)] = new
            case "insert":
                data[at:at] = new
            case "delete":
                del data[at : at + n]
            case "cut":
                del data[at:]
            case "again":
                data[at:at] = data[max(at - 40, 0) : at]
    return bytes(data)


NUMBERS = st.one_of(st.integers(-2, 9), st.sampled_from([1 << 31, 1 << 63, 1 << 64, -(1 << 70), 10**30]), st.floats())
ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=4), st.sampled_from(["..", "/", "../x", "\0"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=4,
)


@st.composite
def another(draw, original):
    """Return a JSON value with some parts replaced, removed or repeated."""
    value = json.loads(json.dumps(original))
    for _ in range(draw(st.integers(1, 3))):
        parent, key, part = None, None, value
        while isinstance(part, (dict, list)) and part and (parent is None or draw(st.booleans())):
            key = draw(st.sampled_from(sorted(part))) if isinstance(part, dict) else draw(st.integers(0, len(part) - 1))
            parent, part = part, part[key]
        if parent is None:
            break
        match draw(st.sampled_from(["replace", "replace", "remove", "again"])):
            case "replace":
                parent[key] = draw(ANY)
            case "remove":
                del parent[key]
            case "again" if isinstance(parent, list):
                parent.append(part)
            case "again":
                parent[draw(st.text(max_size=4))] = part
    return value


# ---- .bin


def read_bin(folder: Path, data: bytes) -> None:
    file = folder / "x.bin"
    file.write_bytes(data)
    within_bounds(lambda: insightface_bin.read(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@fuzz
@given(data=damaged([*KINDS.values(), *(data for data, _ in hostile("/nowhere/canary").values())]))
def test_bin_bytes(folder, data):
    read_bin(folder, data)


def _instructions() -> list[bytes]:
    """Return every instruction that the examples use, with its argument, and each of pickle's instructions alone."""
    found = {opcode.code.encode("latin-1") for opcode in pickletools.opcodes}
    for data in [*KINDS.values(), *(data for data, _ in hostile("/nowhere/canary").values())]:
        places = [at for _, _, at in pickletools.genops(data)]
        found |= {data[a:b] for a, b in zip(places, [*places[1:], len(data)])}
    return sorted(found, key=lambda x: (len(x), x))


@fuzz
@given(program=st.lists(st.sampled_from(_instructions()), max_size=60))
def test_bin_programs(folder, program):
    read_bin(folder, b"".join(program) + b".")


@fuzz
@given(data=st.lists(damaged([images.encode(smooth_face(0)), b"x"]), min_size=2, max_size=6), n=st.integers(0, 9))
def test_bin_accounts_for_every_image(data, n, tmp_path_factory):
    """written + repeated + rejected = read, whichever images are dropped."""
    folder = tmp_path_factory.mktemp("bin")
    good = [images.encode(smooth_face(i)) for i in range(1, 5)]
    entries = [*good, *data, *good[n % 4 :]]
    entries = entries[: len(entries) // 2 * 2]
    same = [(n >> i) % 2 == 0 for i in range(len(entries) // 2)]
    (folder / "x.bin").write_bytes(pickle.dumps((entries, same)))

    def convert():
        options = {"name": "x", "folds": 2, "policy": "drop", "resize": True}
        made = insightface_bin.convert(folder / "x.bin", folder / "s", **options)
        b, counts = made.manifest["benchmarks"]["x"], made.manifest["counts"]
        assert len(entries) == b["images_read"] == counts["images"] + b["images_repeated"] + counts["rejected"]
        assert b["pairs"] + b["pairs_dropped"] == len(same)

    try:
        within_bounds(convert)
    finally:
        shutil.rmtree(folder)


# ---- images

GREY = Image.fromarray(smooth_face(1)).convert("L")
EXIF = Image.Exif()
EXIF[0x0112] = 6
JPEGS = [
    images.encode(smooth_face(0)),
    *(file_bytes(GREY, "JPEG", progressive=p, exif=e) for p, e in ((True, EXIF), (False, b""))),
    file_bytes(Image.fromarray(smooth_face(2)).convert("CMYK"), "JPEG"),
]
PICTURES = [*JPEGS, *(file_bytes(Image.fromarray(smooth_face(3)), kind) for kind in ("PNG", "BMP", "WEBP"))]
PICTURES += [file_bytes(Image.fromarray(smooth_face(3)).convert("P"), "PNG", exif=EXIF)]


@fuzz
@given(data=damaged(JPEGS))
def test_decode(data):
    within_bounds(lambda: images.decode(data, "x"))


@fuzz
@given(data=damaged(PICTURES), resize=st.booleans())
def test_to_jpeg(data, resize):
    """An accepted image can be decoded."""

    def both():
        jpeg = images.to_jpeg(data, "x", resize)
        assert images.decode(jpeg, "x").shape == (112, 112, 3)

    within_bounds(both)


# ---- stores

FEATURES = {
    "points": stores.Feature("float32", (2, 3)),
    "flag": stores.Feature("bool"),
    "caption": stores.Feature("text"),
}


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """Return a store with a benchmark, read once so that late imports are done, and its files."""
    path = tmp_path_factory.mktemp("fuzz") / "s"
    with stores.Writer(path, split="test", sources=["here"], image_size=(40, 48), features=FEATURES) as writer:
        for i in range(6):
            jpeg = images.encode(np.ascontiguousarray(smooth_face(i)[:40, :48]), size=(40, 48))
            values = {"points": np.full((2, 3), i, np.float32), "flag": np.bool_(i % 2), "caption": f"person\n{i}"}
            writer.add(jpeg, f"{i // 2}", f"{i // 2}/{i}.jpg", **values)
    labels = stores.Store(path, "test").labels
    a, b, fold = np.array([0, 0, 2, 2]), np.array([1, 2, 3, 4]), np.array([0, 0, 1, 1])
    stores.write_pairs(path, "some", stores.Pairs(a, b, labels[a] == labels[b], fold, labels[a], labels[b]))
    read_all(path)
    return path, {file.name: file.read_bytes() for file in path.iterdir()}


def read_all(path: Path) -> None:
    """Read everything from a store, including every record."""
    s = stores.Store(path, "test")
    assert len(s.sources) >= 0
    problems = []
    for i in range(min(len(s), 9)):
        try:
            s.image(i)
            s.read([i], sorted(s.features))
        except ValueError as error:
            problems.append(error)
    stores.read_pairs(path, "some")
    if problems:
        raise problems[0]


def read_damaged(faces, changes: dict[str, bytes]) -> None:
    path, files = faces
    try:
        for name, data in changes.items():
            (path / name).write_bytes(data)
        within_bounds(lambda: read_all(path))
    finally:
        for name in changes:
            (path / name).write_bytes(files[name])


def manifest_with(faces, **changes) -> dict[str, bytes]:
    """Return the manifest that a forger would write, with matching sizes and hashes."""
    manifest = json.loads(faces[1]["manifest.json"])
    for key, value in changes.items():
        (manifest["benchmarks"]["some"] if key == "hash" else manifest)[key] = value
    return {"manifest.json": json.dumps(manifest).encode()}


@fuzz
@given(data=st.data())
def test_array_record(faces, data):
    (name,) = [name for name in faces[1] if name.startswith("faces-")]
    shard = data.draw(damaged([faces[1][name]]))
    entry = {"file": name, "records": data.draw(st.sampled_from([6, 6, 6, 5, 7, 1 << 40])), "bytes": len(shard)}
    read_damaged(faces, {name: shard, **manifest_with(faces, shards=[entry])})


@fuzz
@given(data=st.data())
def test_manifest(faces, data):
    if data.draw(st.booleans()):
        read_damaged(faces, {"manifest.json": data.draw(damaged([faces[1]["manifest.json"]]))})
    else:
        value = data.draw(another(json.loads(faces[1]["manifest.json"])))
        read_damaged(faces, {"manifest.json": json.dumps(value).encode()})


def npz(**parts: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in parts.items():
            file.writestr(f"{name}.npy", data)
    return out.getvalue()


def npy(array: np.ndarray, **header) -> bytes:
    out = io.BytesIO()
    whole = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **header}
    np.lib.format.write_array_header_1_0(out, whole)
    return out.getvalue() + array.tobytes()


LABELS, SOURCES = np.array([0, 0, 1, 1, 2, 2]), np.frombuffer(b"a\nb\nc\nd\ne\nf", np.uint8)


@fuzz
@given(data=st.data())
def test_index(faces, data):
    parts = {"labels": npy(LABELS), "sources": npy(SOURCES)}
    which = data.draw(st.sampled_from(["whole", "labels", "sources"]))
    if which == "whole":
        index = data.draw(damaged([faces[1]["index.npz"], npz(**parts)]))
    else:
        index = npz(**parts | {which: data.draw(damaged([parts[which]]))})
    read_damaged(faces, with_index(faces, index))


def with_index(faces, index: bytes) -> dict[str, bytes]:
    return {"index.npz": index, **manifest_with(faces, index_hash=hashlib.sha256(index).hexdigest())}


TRAPS = {
    "a shape that numpy would believe": (npy(LABELS, shape=(1 << 50,)), npy(SOURCES)),
    "256 MB in 260 KB": (npy(LABELS), npy(np.zeros(1 << 28, np.uint8))),
    "labels below 0": (npy(LABELS - 1), npy(SOURCES)),
    "labels above the identities": (npy(LABELS + 1), npy(SOURCES)),
    "labels of floats": (npy(LABELS.astype(float)), npy(SOURCES)),
    "a label short": (npy(LABELS[1:]), npy(SOURCES)),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_forged_index_is_refused(faces, trap):
    """The hash of the forged index is right, so a reader must check the contents."""
    labels, sources = TRAPS[trap]
    path, files = faces
    changes = with_index(faces, npz(labels=labels, sources=sources))
    read_damaged(faces, changes)
    try:
        for name, data in changes.items():
            (path / name).write_bytes(data)
        with pytest.raises(ValueError, match="prepare the store again"):
            stores.Store(path, "test")
    finally:
        for name in changes:
            (path / name).write_bytes(files[name])


@pytest.mark.parametrize("open_", ["[", '{"a":'])
def test_a_deep_manifest(faces, open_):
    read_damaged(faces, {"manifest.json": open_.encode() * 200_000})


CELL = st.one_of(st.integers(-1, 7).map(str), st.sampled_from(["", "1e9", "99999999999999999999", "x"]))
ROW = st.lists(CELL, max_size=5)


@fuzz
@given(data=st.data())
def test_pairs_csv(faces, data):
    original = faces[1]["pairs_some.csv"]
    rows = st.lists(ROW.map(",".join), max_size=5).map(lambda rows: "\n".join(["a,b,same,fold", *rows]).encode())
    pairs = data.draw(st.one_of(damaged([original]), rows))
    digest = hashlib.sha256(pairs).hexdigest()
    some = {**json.loads(faces[1]["manifest.json"])["benchmarks"]["some"], "hash": digest}
    read_damaged(faces, {"pairs_some.csv": pairs, **manifest_with(faces, benchmarks={"some": some})})


# ---- protocols

WORDS = st.sampled_from(
    ["Ann_A", "Bob_B", "1", "2", "-1", "0", "10", "99999999999999999999", "²", "#", "\0", "\n", "/"]
)


@fuzz
@given(text=st.one_of(damaged([LFW.encode()]), st.lists(WORDS, max_size=30).map(lambda w: "\t".join(w).encode())))
@example(text=b"0\t0\n")
@example(text=b"-1\t-1\nAnn_A\t1\t2\nAnn_A\t1\tBob_B\t1\n")
@example(text=b"1" * 5000)
def test_lfw_pairs(folder, text):
    """The test runs the whole command, because the command must handle everything that the parser accepts."""
    (folder / "pairs.txt").write_bytes(text)
    (folder / "lfw").mkdir(exist_ok=True)

    def both():
        assert benchmark_lists.read_lfw(folder / "pairs.txt")
        benchmarks.lfw(folder / "lfw", folder / "dst", pairs=folder / "pairs.txt", policy="drop", resize=False)

    within_bounds(both)


@fuzz
@given(data=st.data())
def test_cfp_protocol(folder, data):
    files = {f"Pair_list_{x}.txt": f"1 ../001/{v}/01.jpg\n2 ../002/{v}/01.jpg\n" for x, v in (("F", "a"), ("P", "b"))}
    files |= {"Split/FP/01/same.txt": "1,1\n2,2\n", "Split/FP/01/diff.txt": "1,2\n"}
    name = data.draw(st.sampled_from(sorted(files)))
    for file, text in files.items():
        (folder / "cfp" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cfp" / file).write_bytes(data.draw(damaged([text.encode()])) if file == name else text.encode())
    within_bounds(lambda: benchmark_lists.read_cfp(folder / "cfp", "FP"))


# ---- safetensors

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.zeros((2, 2), np.float16),
    "c": np.ones(3, np.int64),
    "d": np.array(True),
}


def read_tensors(path: Path) -> None:
    for tensor in _open_tensors(path).values():
        assert tensor[...].dtype == tensor.dtype
        assert tensor[...].shape == tensor.shape


@fuzz
@given(data=st.data())
def test_safetensors(folder, data):
    path = folder / "weights"
    path.mkdir(exist_ok=True)
    whole = save(TENSORS, {"format": "pt"})
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    kinds = ["U8", "I8", "I16", "U16", "U64", "BF16", "F8_E4M3", "F8_E5M2", "BOOL", "F4", "C64"]
    files = {"model.safetensors": whole}
    match data.draw(st.sampled_from(["bytes", "header", "dtype", "index"])):
        case "bytes":
            files["model.safetensors"] = data.draw(damaged([whole]))
        case "header":
            text = json.dumps(data.draw(another(header))).encode()
            files["model.safetensors"] = struct.pack("<Q", len(text)) + text + whole[8 + size :]
        case "dtype":
            header["a.weight"] |= {"dtype": data.draw(st.sampled_from(kinds)), "shape": [data.draw(st.integers(0, 48))]}
            text = json.dumps(header).encode()
            files["model.safetensors"] = struct.pack("<Q", len(text)) + text + whole[8 + size :]
        case "index":
            index = data.draw(another({"weight_map": dict.fromkeys(TENSORS, "model.safetensors")}))
            files["model.safetensors.index.json"] = json.dumps(index).encode()
    for name, content in files.items():
        (path / name).write_bytes(content)
    try:
        within_bounds(lambda: read_tensors(path))
    finally:
        shutil.rmtree(path)


# ---- the limits of time and memory themselves


def slow():
    start = time.process_time()
    while time.process_time() < start + 1.1:
        pass


def hidden():
    try:
        return bytearray(1 << 29)
    except MemoryError as error:
        raise ValueError("cannot be read") from error


@pytest.mark.parametrize(
    "call",
    [
        lambda: {}["key"],
        lambda: np.zeros(300 << 20, np.uint8).sum(),
        slow,
        hidden,
    ],
    ids=["KeyError", "memory", "time", "memory, told as a ValueError"],
)
def test_the_bounds_hold(call):
    with pytest.raises((KeyError, MemoryError, AssertionError)):
        within_bounds(call)


def test_a_whole_run_prints_one_line(folder, capsys):
    (folder / "y.bin").write_bytes(b"\x80\x04" + b"(" * 100)
    code, out, err = run(capsys, "bin", f"--src={folder / 'y.bin'}", f"--dst={folder / 'y'}", "--name=x", "--folds=2")
    assert (code, out, err.count("\n")) == (2, "", 1)
