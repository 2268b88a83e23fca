"""Test insightface's .bin: real and synthetic files are read, hostile ones are refused without running code."""

import contextlib
import copyreg
import gc
import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from PIL import Image

from fvjax.data import images, stores
from fvjax.data.readers import benchmark_lists, insightface_bin, plain_pickle
from tests.test_images import file_bytes, smooth_face
from tests.test_prepare import fails, run

JPEGS = [images.encode(smooth_face(i)) for i in range(6)]
# pairs (0, 1) (2, 3) (1, 4) (5, 0): images 1 and 0 occur twice
ORDER, SAME = [0, 1, 2, 3, 1, 4, 5, 0], [True, False, True, False]
NEW = ["--name=mine", "--folds=2"]
ONE_FOLD = ["--name=mine", "--folds=1"]


def content(make=lambda jpeg: jpeg):
    return [make(JPEGS[i]) for i in ORDER], list(SAME)


def write(path, what, protocol=4):
    path.write_bytes(what if isinstance(what, bytes) else pickle.dumps(what, protocol))
    return f"--src={path}"


# ---- the contents of .bin files


def python2(entries, same) -> bytes:
    """Return a pickle as Python 2 wrote protocol 2: byte strings in BINSTRING, numpy's old names, arrays [n, 1]."""
    put, out = iter(range(256, 9999)), b"\x80\x02]q\x00("

    def text(data: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(data)) + data + b"r" + struct.pack("<I", next(put))

    for jpeg in entries:
        dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xff"
        dtype += b"J\xff\xff\xff\xffK\x00tb"
        out += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
        out += b"(K\x01M" + struct.pack("<H", len(jpeg)) + b"K\x01\x86" + dtype + b"\x89" + text(jpeg) + b"tb"
    return out + b"e](" + b"".join(b"\x88" if x else b"\x89" for x in same) + b"e\x86."


ARRAYS = content(lambda x: np.frombuffer(x, np.uint8))
KINDS = {
    **{f"bytes, protocol {n}": pickle.dumps(content(), n) for n in range(2, 6)},
    **{f"arrays, protocol {n}": pickle.dumps(ARRAYS, n) for n in range(2, 6)},
    "arrays [n, 1]": pickle.dumps(content(lambda x: np.frombuffer(x, np.uint8)[:, None].copy()), 3),
    "writable arrays, protocol 5": pickle.dumps(content(lambda x: np.frombuffer(x, np.uint8).copy()), 5),
    "numpy's old names": pickle.dumps(ARRAYS, 2).replace(b"numpy._core", b"numpy.core"),
    "labels of numpy": pickle.dumps((content()[0], [np.bool_(x) for x in SAME]), 4),
    "labels as an array": pickle.dumps((content()[0], np.array(SAME)), 4),
    "labels 1 and 0 in another byte order": pickle.dumps((content()[0], np.array(SAME, ">i8")), 4),
    "tuples": pickle.dumps(tuple(map(tuple, content())), 4),
    "not optimised by memo": pickletools.optimize(pickle.dumps(content(), 4)),
    "python 2": python2(*content()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_write_it_reads_the_same(tmp_path, kind):
    (tmp_path / "x.bin").write_bytes(KINDS[kind])
    found = insightface_bin.read(tmp_path / "x.bin")
    assert [blob.data for blob in found.images] == [JPEGS[i] for i in ORDER]
    assert found.same.tolist() == SAME
    assert found.same.dtype == bool
    if "protocol 2" not in kind and "old" not in kind:  # with these protocols, Python 3 writes bytes as text
        for blob in found.images:
            assert blob.data in KINDS[kind][blob.at : blob.at + 9 + len(blob.data)]


def test_python_itself_agrees_about_the_python_2_file():
    """Python reads the hand-made file as a pickle. (Nothing else here unpickles.)"""
    entries, same = pickle.loads(KINDS["python 2"], encoding="latin1")  # noqa: S301 (made above)
    assert same == SAME
    assert [x.tobytes() for x in entries] == [JPEGS[i] for i in ORDER]
    assert entries[0].shape == (len(JPEGS[0]), 1)


def test_the_store(tmp_path, capsys):
    src = write(tmp_path / "x.bin", content())
    code, out, err = run(capsys, "bin", src, f"--dst={tmp_path / 's'}", *NEW)
    assert (code, err) == (0, "")
    assert "8 images read = 6 written + 2 repeats of them + 0 rejected; folds balanced; 0 contradictory pairs" in out
    assert "identities are derived from genuine pairs" in out
    s = stores.Store(tmp_path / "s", "test")
    assert [s.jpeg(i) for i in range(6)] == [JPEGS[i] for i in (0, 1, 2, 3, 4, 5)]
    assert s.sources == ["x.bin#0", "x.bin#1", "x.bin#2", "x.bin#3", "x.bin#5", "x.bin#6"]
    # 0-1 and 1-4 are genuine, so 0, 1 and 4 are one person; 2, 3 and 5 may be further people or not
    assert [s.identities[i] for i in s.labels] == [f"derived {i:06d}" for i in (0, 0, 2, 3, 0, 5)]
    pairs = stores.read_pairs(tmp_path / "s", "mine")
    assert (pairs.a.tolist(), pairs.b.tolist()) == ([0, 2, 1, 5], [1, 3, 4, 0])
    assert (pairs.same.tolist(), pairs.fold.tolist()) == (SAME, [0, 0, 1, 1])
    entry = s.manifest["benchmarks"]["mine"]
    assert entry["identities"] == "derived from genuine pairs"
    assert (entry["images_read"], entry["images_repeated"], entry["genuine_by_fold"]) == (8, 2, [1, 1])


def test_unbalanced_folds_are_told(tmp_path, capsys):
    src = write(
        tmp_path / "x.bin", ([JPEGS[i] for i in (0, 1, 2, 3, 4, 5, 1, 0, 0, 5)], [True, True, False, True, False])
    )
    code, out, _ = run(capsys, "bin", src, f"--dst={tmp_path / 's'}", *NEW)
    assert code == 0
    assert "folds not balanced, genuine pairs by fold: [2, 1]" in out


def test_folds_are_consecutive_and_as_equal_as_they_can_be(tmp_path):
    name, fold = insightface_bin.protocol(tmp_path / "x.bin", 25, "mine", 10)
    sizes = np.bincount(fold).tolist()
    assert (name, sizes) == ("mine", [3] * 5 + [2] * 5)  # scikit-learn's KFold
    assert (np.diff(fold) >= 0).all()


@pytest.mark.parametrize("known", insightface_bin.PAIRS)
def test_the_usual_benchmarks_are_recognised_by_name_and_number(tmp_path, known):
    n = insightface_bin.PAIRS[known]
    name, fold = insightface_bin.protocol(tmp_path / f"{known}.bin", n, None, None)
    assert (name, np.bincount(fold).tolist()) == (known, [n // 10] * 10)
    with pytest.raises(ValueError, match=f"has {n - 1} pairs, but {known} has {n}"):
        insightface_bin.protocol(tmp_path / f"{known}.bin", n - 1, None, None)
    with pytest.raises(ValueError, match="is evaluated in 10 folds"):
        insightface_bin.protocol(tmp_path / f"{known}.bin", n, None, 5)


# ---- mistakes and damage

GREY = file_bytes(Image.fromarray(smooth_face(9)).convert("L"), "PNG")


def test_folds_of_one_kind_are_refused_by_name(tmp_path, capsys):
    src = write(tmp_path / "x.bin", ([JPEGS[i] for i in (0, 1, 2, 3, 4, 5, 0, 5)], [True, True, False, False]))
    (tmp_path / "out").mkdir()
    message = "--folds=2: benchmark mine: fold 1 of 2 has no impostor pairs (2 pairs), so it cannot be evaluated"
    fails(capsys, tmp_path / "out/s", message, "bin", src, *NEW)
    assert run(capsys, "bin", src, f"--dst={tmp_path / 'out/s'}", *ONE_FOLD)[0] == 0
    assert stores.read_pairs(tmp_path / "out/s", "mine").fold_sizes == [4]


def test_rejections_are_counted_and_located(tmp_path, capsys):
    """An unreadable image occurs twice: both its pairs are dropped, and read = written + repeated + rejected."""
    entries, same = [JPEGS[0], GREY, JPEGS[2], b"no image", b"no image", JPEGS[5], JPEGS[4], JPEGS[5]], [1, 0, 1, 0]
    src = write(tmp_path / "x.bin", (entries, [bool(x) for x in same]))
    (tmp_path / "out").mkdir()
    dst = tmp_path / "out" / "s"
    fails(capsys, dst, "x.bin image 3 (pair 1, byte ", "bin", src, *NEW)
    code, out, _ = run(capsys, "bin", src, f"--dst={dst}", *ONE_FOLD, "--policy=drop")
    assert code == 0
    assert "8 images read = 5 written + 1 repeats of them + 2 rejected" in out
    assert "2 pairs (1 genuine, 1 impostor) in 1 folds; 1 images not acquired, 2 pairs dropped (policy drop)" in out
    manifest = stores.Store(dst, "test").manifest
    assert [r["file"] for r in manifest["rejected"]] == ["x.bin#3", "x.bin#4"]
    at = int(manifest["rejected"][0]["reason"].split("byte ")[1].split(")")[0])
    assert (tmp_path / "x.bin").read_bytes()[at + 2 :].startswith(b"no image")
    assert manifest["counts"] == {"images": 5, "identities": 4, "rejected": 2}


def test_a_contradiction_is_an_error_or_dropped_and_counted(tmp_path, capsys):
    # pair 0 says that 0 and 1 are one person, pair 2 that they are two; pair 3 has the same picture twice
    entries = [JPEGS[i] for i in (0, 1, 2, 3, 1, 0, 4, 4, 4, 5)]
    src = write(tmp_path / "x.bin", (entries, [True, False, False, False, False]))
    (tmp_path / "out").mkdir()
    message = "pair 2 is labelled different, but is one person by the genuine pairs (and 1 more;"
    fails(capsys, tmp_path / "out/s", message, "bin", src, *NEW)
    code, out, _ = run(capsys, "bin", src, f"--dst={tmp_path / 'out/s'}", *ONE_FOLD, "--policy=drop")
    assert code == 0
    assert "2 contradictory pairs" in out
    entry = stores.Store(tmp_path / "out/s", "test").manifest["benchmarks"]["mine"]
    assert (entry["contradictory_pairs"], entry["pairs_dropped"], entry["pairs"]) == ([2, 3], 2, 3)


def test_mistakes(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    dst = tmp_path / "out" / "s"
    src = write(tmp_path / "x.bin", content())
    fails(capsys, dst, "nowhere.bin: no such file", "bin", f"--src={tmp_path / 'nowhere.bin'}")
    fails(capsys, dst, "4 pairs, none of lfw (6000 pairs), cfp_ff", "bin", src)
    fails(capsys, dst, "with --name and --folds", "bin", src, "--name=mine")
    fails(capsys, dst, "--folds=5: choose 1 … 4", "bin", src, "--name=mine", "--folds=5")
    fails(capsys, dst, "has 4 pairs, but lfw has 6000", "bin", src, "--name=lfw")
    fails(capsys, dst, "letters, digits and underscores", "bin", src, "--name=a b", "--folds=2")
    large = images.simplejpeg.encode_jpeg(smooth_face(0, 224))
    src = write(tmp_path / "y.bin", ([large, *content()[0][1:]], SAME))
    fails(capsys, dst, "y.bin image 0 (pair 0, byte", "bin", src, *NEW, "--policy=drop")
    assert run(capsys, "bin", src, f"--dst={dst}", *NEW, "--resize")[0] == 0


JPEG = JPEGS[0]
WRONG = {
    "nothing": (b"", "pickle exhausted before seeing STOP"),
    "no pickle": (b"\xff\xd8 and so on", "byte 0: at position 0, opcode b'\\xff' unknown"),
    "cut short": (KINDS["bytes, protocol 4"][:-40], "x.bin: byte "),
    "more after it": (KINDS["bytes, protocol 4"] + b"x", "the pickle ends here, and more is left"),
    "one part": (pickle.dumps([JPEG]), "does not hold (list of images, list of bools)"),
    "a label short": (pickle.dumps((content()[0], SAME[1:])), "8 images for 3 pairs"),
    "no pairs": (pickle.dumps(([], [])), "0 images for 0 pairs"),
    "labels of text": (pickle.dumps((content()[0], ["same"] * 4)), "its second part is no list of bools"),
    "labels of 2": (pickle.dumps((content()[0], [2] * 4)), "its second part is no list of bools"),
    "labels that are an empty array": (pickle.dumps(([], np.array([], bool))), "x.bin: "),
    "pixels": (pickle.dumps(([smooth_face(0)] * 2, [True])), "image 0 is a uint8 array [112, 112, 3]"),
    "halves": (pickle.dumps(([np.frombuffer(JPEG, np.int8)] * 2, [True])), "image 0 is a int8 array"),
    "no image": (pickle.dumps(([JPEG, None], [True])), "image 1 is a nonetype"),
    "an array's bytes are missing": (
        pickle.dumps(([np.frombuffer(JPEG, np.uint8)] * 2, [True]), 3).replace(
            b"M" + struct.pack("<H", len(JPEG)), b"M\xff\xff"
        ),
        f"an array whose shape does not fit its {len(JPEG)} bytes",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_verification_file(tmp_path, capsys, case):
    data, message = WRONG[case]
    (tmp_path / "out").mkdir()
    fails(capsys, tmp_path / "out" / "s", message, "bin", write(tmp_path / "x.bin", data), *NEW)
    with pytest.raises(ValueError, match=r"x\.bin: "):
        insightface_bin.read(tmp_path / "x.bin")


# ---- hostile files


class Calls:
    """An object whose pickle is a call."""

    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def by_name(module: str, name: str, *arguments, protocol=2) -> bytes:
    """Return a hand-written pickle of (list of the call's result, [True])."""
    args = b"".join(pickle.dumps(x, 2)[2:-1] for x in arguments)
    if protocol == 2:
        function = b"c" + module.encode() + b"\n" + name.encode() + b"\n"
    else:
        function = b"".join(b"\x8c" + bytes([len(x)]) + x.encode() for x in (module, name)) + b"\x93"
    return b"\x80\x04](" + function + b"(" + args + b"tRe](\x88e\x86."


def hostile(canary) -> dict[str, tuple[bytes, str]]:
    """Return pickles that create the file ``canary`` (most of them, if unpickled), and what the refusal must name."""
    touch, source = f"touch {canary}", f"open({str(canary)!r}, 'w')"
    copyreg.add_extension("builtins", "exec", 0x7E57)
    try:
        extension = pickle.dumps(([Calls(exec, source)], [True]), 2)
    finally:
        copyreg.remove_extension("builtins", "exec", 0x7E57)
    objects = np.array([Calls(os.system, touch)] * 2, object)
    good = np.frombuffer(JPEG, np.uint8)
    reconstruct = np.array([0]).__reduce__()[0]
    cases = {
        "os.system": (pickle.dumps(([Calls(os.system, touch)], [True]), 3), f"'{os.name}.system' is refused"),
        "os.system under its other name": (by_name("os", "system", touch), "'os.system' is refused"),
        "os.system, STACK_GLOBAL": (by_name("os", "system", touch, protocol=4), "'os.system' is refused"),
        "builtins.eval": (by_name("builtins", "eval", source), "'builtins.eval' is refused"),
        "Python 2's eval": (by_name("__builtin__", "eval", source), "'__builtin__.eval' is refused"),
        "builtins.eval, STACK_GLOBAL": (by_name("builtins", "eval", source, protocol=4), "'builtins.eval' is refused"),
        "getattr": (by_name("builtins", "getattr", "x", "y"), "'builtins.getattr' is refused"),
        "a dotted name": (by_name("numpy", "core.multiarray._reconstruct.__globals__", protocol=4), "is refused"),
        "a submodule by a dotted name": (by_name("numpy", "ctypeslib.os.system", touch, protocol=4), "os.system' is"),
        "numpy.load": (by_name("numpy", "load", str(canary)), "'numpy.load' is refused"),
        "numpy.testing": (
            by_name("numpy.testing._private.utils", "runstring", source, {}),
            "'numpy.testing._private.utils.runstring' is refused",
        ),
        "numpy.f2py": (by_name("numpy.f2py.diagnose", "run"), "'numpy.f2py.diagnose.run' is refused"),
        "subprocess": (by_name("subprocess", "Popen", ["touch", str(canary)]), "'subprocess.Popen' is refused"),
        "copyreg": (by_name("copyreg", "_reconstructor", 1, 2, 3), "'copyreg._reconstructor' is refused"),
        "codecs.open": (by_name("_codecs", "lookup", "x"), "'_codecs.lookup' is refused"),
        "bytearray of any size": (by_name("builtins", "bytearray", 1 << 40), "'builtins.bytearray' is refused"),
        "an extension code": (extension, "the instruction EXT2 (32343) is refused"),
        "INST": (f"(S'{touch}'\nios\nsystem\n.".encode(), "is refused"),
        "OBJ": (b"(cos\nsystem\n" + pickle.dumps(touch, 2)[2:-1] + b"o.", "'os.system' is refused"),
        "NEWOBJ": (b"\x80\x02cbuiltins\nbytearray\n)\x81.", "'builtins.bytearray' is refused"),
        "NEWOBJ of a known name": (b"\x80\x02cnumpy\nndarray\n)\x81.", "the instruction NEWOBJ is refused"),
        "a persistent id": (b"Pyours\n.", "the instruction PERSID ('yours') is refused"),
        "a persistent id, binary": (b"\x80\x02Nq\x00Q.", "the instruction BINPERSID is refused"),
        "an object array": (pickle.dumps((objects, [True]), 4), "the dtype 'O8' is refused"),
        "an array of None": (pickle.dumps(([np.array([None] * 2, object)], [True]), 4), "the dtype 'O8' is refused"),
        "an object scalar": (
            pickle.dumps(([Calls(np._core.multiarray.scalar, np.dtype("O"), b"\0" * 8)], [True]), 4),
            "the dtype 'O8' is refused",
        ),
        "fields": (pickle.dumps(([np.zeros(2, "u1,u1")], [True]), 4), "the dtype 'V2' is refused"),
        "a nested reduce": (
            pickle.dumps(([Calls(reconstruct, Calls(os.system, touch), (0,), b"b")], [True]), 4),
            f"'{os.name}.system' is refused",
        ),
        "a call of a call's result": (
            b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85R)R.",
            "a call of something that is no name is refused",
        ),
        "a subclass of ndarray": (
            pickle.dumps(([Calls(reconstruct, np.memmap, (0,), b"b")], [True]), 4),
            "'numpy.memmap' is refused",
        ),
        "a shape in advance": (
            pickle.dumps(([Calls(reconstruct, np.ndarray, (1 << 50,), b"b")], [True]), 4),
            "arguments of array that no plain array has are refused",
        ),
        "state of a list": (b"\x80\x02]}b.", "the instruction EMPTY_DICT is refused"),
        "state of a list, a tuple": (b"\x80\x02])b.", "setting the state of something that is no plain array"),
        "dict": (pickle.dumps({"images": [], "same": []}), "the instruction EMPTY_DICT is refused"),
        "set": (pickle.dumps(({1, 2}, [True]), 4), "the instruction EMPTY_SET is refused"),
        "float": (pickle.dumps(([JPEG, 1.5], [True])), "the instruction BINFLOAT is refused"),
        "out-of-band buffers": (
            pickle.dumps(([good], [True]), 5, buffer_callback=lambda _: None),
            "the instruction NEXT_BUFFER is refused",
        ),
    }
    return cases


HOSTILE = hostile("/nowhere").keys()


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_execute_nothing(tmp_path, capsys, case):
    data, message = hostile(tmp_path / "canary")[case]
    (tmp_path / "out").mkdir()
    fails(capsys, tmp_path / "out" / "s", message, "bin", write(tmp_path / "x.bin", data), *NEW)
    fails(capsys, tmp_path / "out" / "s", message, "bin", write(tmp_path / "lfw.bin", data), "--policy=drop")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("case", ["os.system", "builtins.eval, STACK_GLOBAL", "an object array", "a nested reduce"])
def test_the_canary_sings_where_python_unpickles(tmp_path, case):
    """This shows that the test above can fail: the files do what they claim."""
    data, _ = hostile(tmp_path / "canary")[case]
    with contextlib.suppress(TypeError):  # the nested one's outer call fails, too late
        pickle.loads(data)  # noqa: S301 (made above)
    assert (tmp_path / "canary").exists()


def test_the_command_line_refuses_one_line_and_exit_code_2(tmp_path):
    data, _ = hostile(tmp_path / "canary")["os.system"]
    src = write(tmp_path / "x.bin", data)
    command = [sys.executable, "-m", "fvjax.data.prepare", "bin", src, f"--dst={tmp_path / 's'}", *NEW]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path}/x.bin: byte ")
    assert "'posix.system' is refused, as a pickle could run code with it; nothing was executed" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.bin"]


def test_no_name_is_ever_looked_up(monkeypatch):
    """The reader cannot import anything; it only compares words.

    A trap under the name of a known module stays untouched.
    """
    trap = types.ModuleType("numpy.core.multiarray")
    trap.__getattr__ = lambda name: pytest.fail(f"{name} was looked up")  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "numpy.core.multiarray", trap)
    monkeypatch.setattr("builtins.__import__", lambda name, *_: pytest.fail(f"{name} was imported"))
    value = plain_pickle.load(io.BytesIO(KINDS["python 2"]), len(KINDS["python 2"]))
    assert len(value[0]) == 8


BOMBS = {
    "a length of 4 GB": b"\x80\x03](B\xff\xff\xff\xff" + JPEG,
    "a length of 8 EB": b"\x80\x04](\x8e\xff\xff\xff\xff\xff\xff\xff\x7f" + JPEG,
    "a bytearray of 8 EB": b"\x80\x05](\x96\xff\xff\xff\xff\xff\xff\xff\x7f" + JPEG,
    "a frame of 8 EB": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f](.",
    "a memo of 4 billion": b"\x80\x02]r\xff\xff\xff\xff.",
    "a long of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f" + JPEG,
    "a line without an end": b"c" + b"a" * (8 << 20),
    "digits": b"I" + b"9" * (8 << 20) + b"\n.",
    "marks": b"(" * (8 << 20),
    "nothing but None": b"N" * (8 << 20),
    "deep lists": b"]" * (4 << 20) + b"a" * ((4 << 20) - 1) + b".",
    "deep tuples": b")" + b"\x85" * (8 << 20) + b".",
    "a laughing memo": b"\x80\x04]\x94(" + b"h\x00" * (4 << 20) + b"e.",
    "lists of lists of lists": b"\x80\x02]q\x00(" + b"h\x00h\x00\x86q\x00" * (1 << 20) + b"t.",
    "wide characters": b"X" + struct.pack("<I", 8 << 20) + b"\xf0\x9f\x98\x80" * (2 << 20) + b".",
}


def test_freed_memory_is_no_room(request):
    """`little_memory` also limits freed blocks that glibc has kept."""
    large = np.ones(31 << 20, np.uint8)
    del large  # from now on, smaller blocks come from the heap
    blocks = [np.ones(20 << 20, np.uint8) for _ in range(40)]
    above = [bytes(5000) for _ in range(2000)]
    del blocks
    request.getfixturevalue("little_memory")
    with pytest.raises(MemoryError):
        np.zeros(700 << 20, np.uint8)  # would fit into what was freed, and exceeds the limit by far
    assert above


@pytest.mark.parametrize("case", BOMBS)
@pytest.mark.usefixtures("little_memory")
def test_bombs_cost_neither_time_nor_memory(tmp_path, case):
    (tmp_path / "x.bin").write_bytes(BOMBS[case])
    gc.collect()
    gc.freeze()  # otherwise the garbage collector searches the objects of other tests again and again
    before = time.process_time()
    with pytest.raises(ValueError, match=r"x\.bin: "):
        insightface_bin.read(tmp_path / "x.bin")
    spent = time.process_time() - before
    gc.unfreeze()
    assert spent < 2  # less than 1 on an idle machine


# ---- the real files


def test_the_real_sample(real_data, tmp_path, capsys):
    sample = real_data / "faces/format-samples/small_lfw.bin"
    if not sample.is_file():
        pytest.skip(f"{sample} is not here")
    (tmp_path / "out").mkdir()
    dst = tmp_path / "out" / "s"
    fails(capsys, dst, "10 pairs, none of lfw (6000 pairs)", "bin", f"--src={sample}")
    message = "benchmark small: fold 1 of 2 has no impostor pairs"  # it is the first rows of LFW
    fails(capsys, dst, message, "bin", f"--src={sample}", "--name=small", "--folds=2")
    images, same = insightface_bin.read(sample)
    assert (len(images), same.tolist()) == (20, [True] * 10)
    assert len({blob.data for blob in images}) == 17


def test_lfw_by_bin_and_by_folder_are_the_same_pairs(real_data, tmp_path, capsys):
    """A lfw.bin of the real crops, in insightface's layout, has the pictures and labels of `prepare lfw`."""
    faces = real_data / "faces"
    lfw, protocol = faces / "lfw112_pairs", faces / "protocol/lfw_pairs.txt"
    lines = benchmark_lists.read_lfw(protocol)
    entries = [np.frombuffer((lfw / file).read_bytes(), np.uint8)[:, None] for p in lines for file in (p.a, p.b)]
    src = write(tmp_path / "lfw.bin", (entries, [p.identity_a == p.identity_b for p in lines]), 3)
    code, out, _ = run(capsys, "bin", src, f"--dst={tmp_path / 'bin'}")
    assert code == 0
    assert "benchmark lfw: 6000 pairs (3000 genuine, 3000 impostor) in 10 folds" in out
    assert run(capsys, "lfw", f"--src={lfw}", f"--pairs={protocol}", f"--dst={tmp_path / 'lfw'}")[0] == 0
    ours, theirs = (
        (stores.Store(tmp_path / x, "test"), stores.read_pairs(tmp_path / x, "lfw")) for x in ("bin", "lfw")
    )
    assert len(ours[0]) == len(theirs[0])
    assert np.array_equal(ours[1].same, theirs[1].same)
    assert np.array_equal(ours[1].fold, theirs[1].fold)
    for i in range(0, 6000, 7):
        for side in ("a", "b"):
            assert ours[0].jpeg(getattr(ours[1], side)[i]) == theirs[0].jpeg(getattr(theirs[1], side)[i])
