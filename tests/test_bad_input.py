"""Test user errors through the commands themselves.

Each error gives exit code 2 and one line that names the file and the remedy, and leaves existing files unchanged.

    case                                            test here (in brackets: tests of details and more kinds)
     1 empty folder                                 test_empty_folders
     2 identities with one image                    test_identities_with_one_image_are_counted_not_refused
     3 more pairs than identities                   test_more_pairs_than_identities (test_main, test_pairs)
     4 corrupt, CMYK, 16-bit, rotated, other sizes  test_odd_images, test_other_sizes (test_images, test_prepare)
     5 a 100-megapixel header                       test_a_huge_header_is_refused_before_decoding (test_images)
     6 truncated or damaged ArrayRecord             test_damaged_stores (test_store)
     7 pairs that name missing images               test_pairs_without_their_images (test_prepare, test_store)
     8 unknown config key                           test_unknown_keys (test_main)
     9 checkpoint of another model or data          test_a_checkpoint_of_another_model (test_checkpoint, test_scenario1)
    10 missing shard, unexpected key, wrong shape   test_weights_that_do_not_fit (test_convert)
    11 pickles                                      test_pickles_are_refused_by_name (test_convert)
    12 workdir of another config                    test_workdirs_of_something_else (test_main)
    13 full disk                                    test_a_full_disk_*
    14 read-only or impossible destination          test_nowhere_to_write, test_a_finished_run_made_read_only
    15 a whole MLLM's weights, its pixel shuffle    test_a_whole_mllm_that_does_not_fit (test_convert)
    16 adapters of another base                     test_adapters_of_another_base (test_convert)
    17 a prompt longer than the positions           test_a_prompt_longer_than_the_positions
"""

import contextlib
import io
import os
import pickle
import re
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import fvjax
from fvjax import api, cli, main
from fvjax.config import base, benchmark, typed
from fvjax.data import images, prepare, stores
from fvjax.data.readers.recordio import conversion, records
from fvjax.data.stores import shards
from fvjax.tasks import benchmarks
from fvjax.training import checkpoint, metrics, preemption
from tests.test_convert import FC1, TINY, change_llm, drop, lose_shard, only_pickle, spoil, write_config
from tests.test_images import file_bytes, smooth_face
from tests.test_prepare import LFW, put
from weights_convert import __main__ as weights
from weights_convert import read_adapters, write, write_adapters


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its contents."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Commands:
    """The three commands, run in this process, because each new process takes seconds to import jax."""

    def __init__(self, monkeypatch, capsys, devices: int = 1):
        self.monkeypatch, self.capsys, self.devices = monkeypatch, capsys, devices

    def prepare(self, *args) -> int:
        return prepare.main([str(a) for a in args])

    def convert(self, *args) -> int:
        self.monkeypatch.setattr(sys, "argv", ["weights_convert", *map(str, args)])
        return weights.main()

    def main(self, config, workdir, mode="train") -> int:
        chosen = jax.devices()[: self.devices]
        self.monkeypatch.setattr(jax, "devices", lambda: chosen)  # one compiles in half the time
        self.monkeypatch.setattr(preemption, "SIGNALS", ())  # these flags are pytest's
        flags = {"WORKDIR": str(workdir), "MODE": mode, "SHOW": 0, "PROFILE": 0, "BENCHMARK": []}
        for flag, value in {"CONFIG": config, "TRACEBACK": False}.items():
            self.monkeypatch.setattr(cli, flag, SimpleNamespace(value=value))
        for flag, value in (flags | dict.fromkeys(("COORDINATOR", "PROCESSES", "PROCESS"))).items():
            self.monkeypatch.setattr(main, flag, SimpleNamespace(value=value))
        try:
            main.main(["fvjax.main"])
        except SystemExit as exit_:
            return int(exit_.code or 0)
        return 0

    def refuses(self, command, *args, **options) -> str:
        """Return the command's error: it must exit with code 2 and print one line on standard error."""
        self.capsys.readouterr()
        code = getattr(self, command)(*args, **options)
        out, err = self.capsys.readouterr()
        assert code == 2, out + err
        start = {"prepare": "error: ", "convert": "weights_convert: ", "main": "fvjax: error: "}[command]
        assert err.startswith(start), err
        assert err.endswith("\n"), err
        assert err.count("\n") == 1, err
        return err

    def accepts(self, command, *args, **options) -> str:
        self.capsys.readouterr()
        code = getattr(self, command)(*args, **options)
        out, err = self.capsys.readouterr()
        assert (code, err) == (0, ""), out + err
        return out


@pytest.fixture
def run(monkeypatch, capsys):
    return Commands(monkeypatch, capsys)


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """Return a training store: 8 people with 4 images each, and one with a single image."""
    records = [(images.encode(smooth_face(i)), f"{i // 4}", f"{i // 4}/{i}.jpg") for i in range(33)]
    path = tmp_path_factory.mktemp("faces") / "train"
    stores.write(path, records, split="train", sources=["here"])
    return path


@pytest.fixture(scope="module")
def benchmark_faces(tmp_path_factory) -> Path:
    """Return a store with the benchmark "some": two folds of two pairs."""
    path = tmp_path_factory.mktemp("faces") / "test"
    records = [(images.encode(smooth_face(i)), f"{i // 2}", f"{i // 2}/{i}.jpg") for i in range(8)]
    labels = stores.write(path, records, split="test", sources=["here"]).labels
    a, b, fold = np.array([0, 0, 4, 4]), np.array([1, 2, 5, 6]), np.array([0, 0, 1, 1])
    stores.write_pairs(path, "some", stores.Pairs(a, b, labels[a] == labels[b], fold, labels[a], labels[b]))
    return path


def small(train: Path | str = "", **changes):
    """Return an experiment of a few seconds: one transformer layer, two steps and one checkpoint per epoch."""
    c = base()
    c.name = "small"
    c.model.kind, c.model.pooling = "vision_transformer", "mean"
    sizes = {"image_size": 28, "patch_size": 14, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
    c.model.vision_transformer.update(sizes)
    c.data.train = str(train)
    c.epochs, c.batch_size, c.eval.batch_size, c.checkpoint.every_steps = 2, 16, 8, 2
    c.eval.before_training = False
    c.update_from_flattened_dict(changes)
    return c


@pytest.fixture(scope="module")
def finished(faces, tmp_path_factory) -> tuple[Path, str]:
    """Return a finished workdir with checkpoints of steps 2 and 4, and the printed text."""
    workdir = tmp_path_factory.mktemp("run") / "finished"
    with pytest.MonkeyPatch.context() as monkeypatch:
        said = []
        monkeypatch.setattr(metrics.console, "print", lambda *what: said.extend(map(str, what)))
        assert Commands(monkeypatch, None).main(small(faces), workdir) == 0
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"2", "4"}
    return workdir, "\n".join(said)


# ---- images, stores and pairs


def test_empty_folders(run, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "out"
    assert f"{empty}: not one usable image; expected files such as {empty}/IDENTITY/1.jpg" in run.refuses(
        "prepare", "folder", f"--src={empty}", f"--dst={out}"
    )
    assert f"{empty}/config.json is missing" in run.refuses("convert", f"--src={empty}", f"--dst={out}")
    said = run.refuses("main", small(empty), out)
    assert f"{empty}: no face store here (no manifest.json); python -m fvjax.data.prepare makes one" in said
    assert "config.json is missing" in run.refuses("main", small("", epochs=0, init_from=str(empty)), out)
    assert [p.name for p in tmp_path.rglob("*")] == ["empty"]


def test_identities_with_one_image_are_counted_not_refused(run, finished, tmp_path):
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg"):
        put(tmp_path / "src" / name)
    said = run.accepts("prepare", "folder", f"--src={tmp_path / 'src'}", f"--dst={tmp_path / 'dst'}")
    assert "1 identities have a single image" in said
    assert "33 images, 9 identities (1 with one image, never drawn)" in finished[1]


def test_more_pairs_than_identities(run, faces, tmp_path):
    said = run.refuses("main", small(faces, batch_size=32), tmp_path / "x")
    assert "pairs_per_batch=16, half of config.batch_size, but there are 8 identities with two" in said
    assert said.endswith("choose 1 … 8\n")
    assert not (tmp_path / "x").exists()


def turned(face: np.ndarray, kind: str) -> bytes:
    """Return the face lying on its side, with the EXIF entry that asks viewers to rotate it."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    return file_bytes(Image.fromarray(np.rot90(face)), kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))


def test_odd_images(run, tmp_path):
    shown, src = [smooth_face(3 + i) for i in range(4)], tmp_path / "src" / "who"
    face = shown[0]
    src.mkdir(parents=True)
    picture = Image.fromarray(face)
    files = {
        "a_plain.jpg": images.encode(face),
        "b_cmyk.jpg": file_bytes(Image.fromarray(shown[1]).convert("CMYK"), "JPEG", quality=95),
        "c_turned.jpg": turned(shown[2], "JPEG"),
        "d_turned.png": turned(shown[3], "PNG"),
        "e_broken.jpg": images.encode(face)[:700],
        "f_broken.png": file_bytes(picture, "PNG")[:200],
        "g_16_bit.png": file_bytes(Image.new("I;16", (112, 112)), "PNG"),
        "h_text.jpg": b"not an image",
        "i_empty.jpg": b"",
    }
    for name, data in files.items():
        (src / name).write_bytes(data)
    said = run.accepts("prepare", "folder", f"--src={tmp_path / 'src'}", f"--dst={tmp_path / 'dst'}")
    assert "4 images of 1 identities" in said
    assert "5 files rejected, listed in manifest.json; first: who/e_broken.jpg: cannot be read as an image" in said
    made = stores.Store(tmp_path / "dst")
    assert made.sources == [f"who/{name}" for name in list(files)[:4]]
    for i in range(4):
        assert np.abs(made.image(i).astype(int) - shown[i]).mean() < 8, (
            f"{made.sources[i]} is not upright or another colour"
        )
    assert made.jpeg(0) == files["a_plain.jpg"]
    for i in range(4):  # stored upright and as RGB, without an EXIF orientation
        with Image.open(io.BytesIO(made.jpeg(i))) as stored:
            assert (stored.mode, stored.getexif().get(0x0112, 1)) == ("RGB", 1)
    rejected = {r["file"]: r["reason"] for r in made.manifest["rejected"]}
    assert list(rejected) == [f"who/{name}" for name in list(files)[4:]]
    assert "mode I;16 has no plain 8-bit RGB form; convert it first" in rejected["who/g_16_bit.png"]
    assert all("cannot be read as an image" in reason for reason in rejected.values())


def test_other_sizes(run, tmp_path):
    put(tmp_path / "src" / "a" / "1.jpg")
    put(tmp_path / "src" / "a" / "2.jpg", size=224)
    said = run.refuses("prepare", "folder", f"--src={tmp_path / 'src'}", f"--dst={tmp_path / 'dst'}")
    assert "a/2.jpg: 224x224, expected 112x112; align it, or prepare with --resize" in said
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


@pytest.mark.parametrize("options", [[], ["--resize"]])
def test_a_huge_header_is_refused_before_decoding(run, tmp_path, monkeypatch, recwarn, options):
    jpeg = images.encode(smooth_face(0))
    at = jpeg.index(b"\xff\xc0") + 5  # height and width in the frame header
    put(tmp_path / "src" / "a" / "1.jpg")
    (tmp_path / "src" / "a" / "2.jpg").write_bytes(jpeg[:at] + struct.pack(">HH", 10_000, 10_000) + jpeg[at + 4 :])
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    said = run.refuses("prepare", "folder", f"--src={tmp_path / 'src'}", f"--dst={tmp_path / 'dst'}", *options)
    assert "a/2.jpg: 10000x10000 pixels in the header, refused; expected 112x112" in said
    assert [p.name for p in tmp_path.iterdir()] == ["src"]
    bombs = [w for w in recwarn if issubclass(w.category, Image.DecompressionBombWarning)]
    assert not bombs, "a warning is another line on standard error"


def packed(folder: Path) -> Path:
    """Return a RecordIO file with eight faces of two people."""
    folder.mkdir(parents=True, exist_ok=True)
    payloads = [struct.pack("<IfQQ", 0, i % 2, i, 0) + images.encode(smooth_face(i)) for i in range(8)]
    parts = [struct.pack("<II", records.MAGIC, len(p)) + p + bytes(-len(p) % 4) for p in payloads]
    (folder / "train.rec").write_bytes(b"".join(parts))
    return folder / "train.rec"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    """Change bytes in the middle of a picture without changing its size."""
    jpeg = images.encode(smooth_face(2))
    data = file.read_bytes()
    assert jpeg in data
    file.write_bytes(data.replace(jpeg, bytes(len(jpeg))))


@pytest.mark.parametrize(
    ("part", "harm", "message"),
    [
        ("train", cut, "faces-train.array_record-00000-of-00001: missing or not"),
        ("test", cut, "faces-test.array_record-00000-of-00001: missing or not"),
        ("test", flip, "test record 2: damaged"),
    ],
)
def test_damaged_stores(run, faces, benchmark_faces, tmp_path, part, harm, message):
    for name, path in (("train", faces), ("test", benchmark_faces)):
        shutil.copytree(path, tmp_path / name)
    (file,) = (tmp_path / part).glob("faces-*")
    harm(file)
    config = small(tmp_path / "train", epochs=0 if harm is flip else 2)
    config.eval.benchmarks.some = benchmark(str(tmp_path / "test"), "some")
    kept = snapshot(tmp_path)
    said = run.refuses("main", config, tmp_path / "x")
    assert message in said
    assert "prepare the store again" in said
    after = snapshot(tmp_path)
    assert {name: after[name] for name in kept} == kept
    assert not after.get("x/metrics.jsonl"), "found before anything was trained"


def test_pairs_without_their_images(run, benchmark_faces, tmp_path):
    for i, name in enumerate(["Ann_A/Ann_A_0001", "Bob_B/Bob_B_0001", "Cid_C/Cid_C_0001", "Cid_C/Cid_C_0002"]):
        put(tmp_path / "lfw" / f"{name}.jpg", i)
    (tmp_path / "pairs.txt").write_text(LFW)
    kept = snapshot(tmp_path)
    source = f"--src={tmp_path / 'lfw'}", f"--pairs={tmp_path / 'pairs.txt'}"
    said = run.refuses("prepare", "lfw", *source, f"--dst={tmp_path / 'dst'}")
    assert f"{tmp_path}/lfw/Ann_A/Ann_A_0002.jpg: missing, and 0 more of the 5 images that the pairs name" in said
    assert "--policy=drop" in said
    config = small()
    config.epochs = 0
    config.eval.benchmarks.other = benchmark(str(benchmark_faces), "other")
    assert "no benchmark 'other'; it has ['some']" in run.refuses("main", config, tmp_path / "x")
    config.eval.benchmarks.other.store = str(tmp_path / "nowhere")
    said = run.refuses("main", config, tmp_path / "y")
    assert f"config.eval.benchmarks.other: {tmp_path}/nowhere is not there" in said
    assert {name: data for name, data in snapshot(tmp_path).items() if name[0] not in "xy"} == kept


# ---- configs and workdirs


def test_unknown_keys(tmp_path):
    """The config file is read before jax is imported, so this runs the command itself."""
    config = tmp_path / "mine.py"
    config.write_text(
        "from fvjax.config import base\n\n\ndef get_config():\n    c = base()\n    c.optimizer.lrr = 1\n    return c\n"
    )
    command = [sys.executable, "-m", "fvjax.main", f"--config={config}", f"--workdir={tmp_path / 'x'}"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"GLIBC_TUNABLES": ""}, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("fvjax: error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "lrr" in done.stderr
    assert "config.optimizer.lrr: there is no such key; the nearest are optimizer.lr" in done.stderr
    assert [p.name for p in tmp_path.iterdir() if p.suffix] == ["mine.py"]
    assert not (tmp_path / "x").exists()


def test_workdirs_of_something_else(run, finished, faces, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "x")
    kept = snapshot(tmp_path)
    for mode in ("train", "eval"):
        said = run.refuses("main", small(faces, **{"optimizer.lr": 0.2}), workdir, mode)
        assert f"{workdir} is of another config (optimizer.lr: 0.1 there, 0.2 now); choose another --workdir" in said
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("x")
    said = run.refuses("main", small(faces), tmp_path / "notes")
    assert "notes is not empty and has no config.json; choose another --workdir" in said
    assert snapshot(tmp_path) == kept | {"notes/mine.txt": b"x"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.vision_transformer.width": 8}, "checkpoints/4 does not fit the model"),
        ({"seed": 1}, "checkpoints/4: plan is [0, 8], this run has [1, 8]; choose another --workdir"),
    ],
)
def test_a_checkpoint_of_another_model(run, finished, faces, tmp_path, changes, message):
    """Run one config with the checkpoints of another config's run."""
    workdir = shutil.copytree(finished[0], tmp_path / "x")
    config = small(faces, **changes)
    (workdir / "config.json").write_text(typed(config).to_json())
    kept = snapshot(tmp_path)
    assert message in run.refuses("main", config, workdir)
    assert snapshot(tmp_path) == kept


# ---- pretrained weights


@pytest.fixture
def tiny(tmp_path) -> Path:
    """Return a copy of the tiny InternVL2 that a test may damage."""
    return shutil.copytree(TINY, tmp_path / "tiny", ignore=shutil.ignore_patterns("golden.npz"))


def vit(tiny: Path):
    """Return the config of an evaluation of those weights."""
    c = base()
    c.model.kind, c.model.pooling, c.init_from, c.eval.batch_size = "vision_transformer", "mean", str(tiny), 8
    c.model.vision_transformer.update({"width": 32, "depth": 3, "heads": 4, "mlp_dim": 64})
    c.trainable = ((".*", "frozen"),)
    return c


BAD_WEIGHTS = {
    "missing shard": (lose_shard, "model-00002-of-00002.safetensors is missing; download or copy the whole directory"),
    "unexpected key": (
        lambda d: spoil(d, lambda t: t.update({"vision_model.encoder.extra": np.ones(3)})),
        "1 unexpected (vision_model.encoder.extra",
    ),
    "missing key": (lambda d: spoil(d, lambda t: t.pop(FC1)), f"1 missing ({FC1})"),
    "wrong shape": (
        lambda d: spoil(d, lambda t: t.update({FC1: np.ones((64, 31), np.float32)})),
        f"{FC1} is (64, 31), expected (64, 32)",
    ),
    "cut short": (lambda d: cut(d / "model.safetensors"), "model.safetensors is not a complete safetensors file"),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json"),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_weights_that_do_not_fit(run, tiny, tmp_path, case):
    change, message = BAD_WEIGHTS[case]
    change(tiny)
    kept = snapshot(tmp_path)
    for said in (
        run.refuses("convert", f"--src={tiny}", f"--dst={tmp_path / 'dst'}"),
        run.refuses("main", vit(tiny), tmp_path / "x"),
    ):
        assert str(tiny) in said
        assert message in said
    assert snapshot(tmp_path) == kept


@pytest.mark.parametrize("name", ["pytorch_model.bin", "backbone.pt", "weights.pkl"])
def test_pickles_are_refused_by_name(run, tiny, tmp_path, name):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was opened",))

    only_pickle(tiny)
    (tiny / "pytorch_model.bin").unlink()
    (tiny / name).write_bytes(pickle.dumps(Trap()))
    kept = snapshot(tmp_path)
    for said in (
        run.refuses("convert", f"--src={tiny}", f"--dst={tmp_path / 'dst'}"),
        run.refuses("convert", f"--src={tiny / name}", f"--dst={tmp_path / 'dst'}"),
        run.refuses("main", vit(tiny), tmp_path / "x"),
    ):
        assert f"{name} can run code when opened, so pickles are not read: convert to safetensors first" in said
    (tiny / name).rename(tiny / "model.safetensors")
    said = run.refuses("convert", f"--src={tiny}", f"--dst={tmp_path / 'dst'}")
    assert "model.safetensors is not a complete safetensors file" in said
    assert "convert them to safetensors first" in said
    assert snapshot(tmp_path).keys() == {k.replace(name, "model.safetensors") for k in kept}


WHOLES = {
    "missing shard": (lose_shard, "model-00002-of-00002.safetensors is missing; download or copy the whole directory"),
    "unexpected key": (
        lambda d: spoil(d, lambda t: t.update({"language_model.model.extra": np.ones(3)})),
        "1 unexpected (language_model.model.extra",
    ),
    "ps_version": (lambda d: write_config(d, ps_version="v3"), "ps_version='v3' is not supported; known are 'v1' and"),
    "no ps_version": (lambda d: drop(d, "ps_version"), "config.json: there is no 'ps_version'"),
    "pickle": (only_pickle, "pytorch_model.bin can run code when opened, so pickles are not read"),
}


@pytest.mark.parametrize("case", WHOLES)
def test_a_whole_mllm_that_does_not_fit(run, tiny, tmp_path, case):
    change, message = WHOLES[case]
    change(tiny)
    kept = snapshot(tmp_path)
    said = run.refuses("convert", f"--src={tiny}", f"--dst={tmp_path / 'dst'}", "--kind=vlm")
    assert str(tiny) in said
    assert message in said
    with pytest.raises(ValueError, match=re.escape(message)):
        fvjax.load(tiny, "pair", prompt_ids=[1], yes_no_ids=[2, 3])
    assert snapshot(tmp_path) == kept


def test_adapters_of_another_base(tiny, tmp_path):
    flat, _ = read_adapters(TINY / "adapters.safetensors", tiny, "vlm")
    write_adapters(tmp_path / "out", flat, 8, tiny, "vlm")
    file = tmp_path / "out/adapter_model.safetensors"
    fvjax.load(tiny, "mllm", adapters=file)
    spoil(tiny, lambda t: t.update({"mlp1.1.bias": t["mlp1.1.bias"] + 1}))
    with pytest.raises(ValueError, match=f"{file} was made for another base: the projector of {tiny} has the hash"):
        fvjax.load(tiny, "mllm", adapters=file)


@pytest.mark.parametrize(
    ("scenario", "pool", "most"),
    [("mllm", "all_mean", 290 - 257), ("mllm", "last_token", 33), ("pair", None, 600 - 513)],
)
def test_a_prompt_longer_than_the_positions(tiny, scenario, pool, most):
    """If BOS, 256 tokens per image and the prompt exceed the decoder's positions by one, loading fails."""
    positions = 600 if scenario == "pair" else 290
    change_llm(tiny, max_position_embeddings=positions, rope_scaling=None)
    options: dict[str, Any] = {"yes_no_ids": (2, 3)} if scenario == "pair" else {"pool": pool}
    fvjax.load(tiny, scenario, prompt_ids=[1] * most, **options)
    with pytest.raises(
        ValueError, match=f"make {positions + 1} with BOS, more than the decoder's {positions} positions"
    ):
        fvjax.load(tiny, scenario, prompt_ids=[1] * (most + 1), **options)
    if pool:  # the results do not depend on the text
        fvjax.load(tiny, scenario, pool="visual_mean", prompt_ids=[1] * (most + 1))


# ---- places that cannot be written to


@pytest.fixture
def disk(tmp_path):
    """Return a folder and a function that fills its disk.

    The disk is a small file system if this user may mount one. Otherwise it is a limit on the size of files in this
    process, whose error is different: EFBIG.
    """
    path = tmp_path / "disk"
    path.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "fvjax-test", str(path)]
    mounted = not os.environ.get("FVJAX_NO_MOUNT") and subprocess.run(mount, capture_output=True).returncode == 0

    def fill():
        if not mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
            return
        with open(path / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free():
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        (path / "filler").unlink(missing_ok=True)

    try:
        yield SimpleNamespace(path=path, fill=fill, free=free)
    finally:
        free()
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=True)


def tells_of_a_full_disk(said: str) -> bool:
    full = "No space left on device", "; free space there, or choose another disk"
    limit = "File too large", "; files may not grow so large here (ulimit -f)"
    return any(error in said and said.endswith(f"{remedy}\n") for error, remedy in (full, limit))


def full_from(monkeypatch, disk, owner, name) -> None:
    """Fill the disk just before a function is called."""
    real = getattr(owner, name)

    def then(*args, **options):
        disk.fill()
        return real(*args, **options)

    monkeypatch.setattr(owner, name, then)


@pytest.mark.parametrize("moment", ["add", "_close_shard", "_finish"])
def test_a_full_disk_while_a_store_is_written(run, disk, monkeypatch, moment):
    for i in range(3):
        put(disk.path / "src" / "a" / f"{i}.png", i)
    kept = snapshot(disk.path)
    full_from(monkeypatch, disk, stores.Writer, moment)
    said = run.refuses("prepare", "folder", f"--src={disk.path / 'src'}", f"--dst={disk.path / 'dst'}")
    assert f"{disk.path}/dst" in said
    assert tells_of_a_full_disk(said), said
    disk.free()
    assert [p.name for p in disk.path.iterdir()] == ["src"]
    assert snapshot(disk.path) == kept


@pytest.mark.parametrize(
    ("owner", "moment"),
    [(conversion, "_check_plan"), (shards.ShardWriter, "add"), (shards.ShardWriter, "close"), (conversion, "_finish")],
)
def test_a_full_disk_while_a_recordio_is_converted(run, disk, monkeypatch, owner, moment):
    """Only finished shards remain; the message says so, and the same command continues from there."""
    rec = packed(disk.path / "src")
    command = "recordio", f"--src={rec}", f"--dst={disk.path / 'dst'}", "--workers=1"
    with monkeypatch.context() as patch:
        full_from(patch, disk, owner, moment)
        said = run.refuses("prepare", *command)
    assert f"{disk.path}/dst" in said
    assert tells_of_a_full_disk(said), said
    disk.free()
    kept = moment == "_finish"
    assert (f"finished shards stay in {disk.path}/.dst.partial, the same command goes on" in said) == kept
    assert {p.name for p in disk.path.iterdir()} == ({"src", ".dst.partial"} if kept else {"src"})
    assert "8 records read = 8 written + 0 rejected" in run.accepts("prepare", *command)
    assert {p.name for p in disk.path.iterdir()} == {"src", "dst"}


def test_a_full_disk_while_weights_are_written(run, disk, monkeypatch, tiny):
    full_from(monkeypatch, disk, write, "save_file")
    said = run.refuses("convert", f"--src={tiny}", f"--dst={disk.path / 'dst'}")
    assert f"{disk.path}/dst" in said
    assert tells_of_a_full_disk(said), said
    disk.free()
    assert list(disk.path.iterdir()) == []


def test_a_full_disk_while_a_checkpoint_is_written(run, disk, monkeypatch, finished, faces):
    """Step 4 cannot be saved; step 2 remains complete and usable."""
    workdir = shutil.copytree(finished[0], disk.path / "x")
    shutil.rmtree(workdir / "checkpoints" / "4")
    kept = snapshot(workdir / "checkpoints")
    with monkeypatch.context() as patch:
        full_from(patch, disk, checkpoint.Checkpoints, "save")
        said = run.refuses("main", small(faces), workdir)
    assert f"{workdir}/checkpoints: step 4 was not saved, the last complete one is 2 (" in said
    assert tells_of_a_full_disk(said), said
    disk.free()
    assert {k: v for k, v in snapshot(workdir / "checkpoints").items() if k in kept} == kept
    assert f"Restored step 2 of {workdir}" in run.accepts("main", small(faces), workdir, "eval")


@pytest.mark.parametrize(("moment", "file"), [("write", "metrics.jsonl"), ("close", "tb")])
def test_a_full_disk_while_metrics_are_written(run, disk, monkeypatch, faces, moment, file):
    """TensorBoard's file is on the full disk too. It must not block the run, nor hide the error line."""
    workdir = disk.path / "x"
    full_from(monkeypatch, disk, metrics.Writer, moment)
    # Without these two large events everything is still in memory when the file is closed.
    monkeypatch.setattr(metrics.Board, "settings", lambda *_: None)
    said = run.refuses("main", small(faces, **{"log.pictures": 0}), workdir)
    assert f"{workdir}/{file}: " in said
    assert tells_of_a_full_disk(said), said
    disk.free()
    steps = (workdir / "metrics.jsonl").read_text().count("\n")
    assert steps == (0 if moment == "write" else 4)
    assert (workdir / "checkpoints" / "4").exists() == (moment == "close")
    assert (workdir / "results.json").exists() == (moment == "close"), "trackers are closed after the last evaluation"


def test_a_full_disk_while_results_are_written(run, disk, monkeypatch, finished, faces):
    workdir = shutil.copytree(finished[0], disk.path / "x", ignore=shutil.ignore_patterns("results.json"))
    kept = snapshot(workdir)
    full_from(monkeypatch, disk, benchmarks, "report")  # the function called just before the results are written
    said = run.refuses("main", small(faces), workdir, "eval")
    assert f"{workdir}/results.json: " in said
    assert tells_of_a_full_disk(said), said
    disk.free()
    assert snapshot(workdir) == kept


@pytest.fixture
def read_only(tmp_path):
    """Return a function that makes a folder read-only: by permissions, or for root by mounting it over itself."""
    mounted = []

    def make(folder: Path) -> Path:
        if os.geteuid():
            folder.chmod(0o500)
            return folder
        for options in (["--bind"], ["-o", "remount,ro,bind"]):
            if subprocess.run(["mount", *options, str(folder), str(folder)], capture_output=True).returncode:
                pytest.skip("root may write everywhere, and may not mount here")
            mounted[:] = [folder]
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("where", ["read-only", "under a file", "in /proc"])
def test_nowhere_to_write(run, read_only, faces, tiny, tmp_path, where):
    put(tmp_path / "src" / "a" / "1.jpg")
    rec = packed(tmp_path / "rec")
    folder = tmp_path / "folder"
    if where == "read-only":
        folder.mkdir()
        read_only(folder)
    elif where == "under a file":
        folder.write_text("mine")
    else:
        folder = Path("/proc/fvjax")
    kept = snapshot(tmp_path)
    for said in (
        run.refuses("prepare", "folder", f"--src={tmp_path / 'src'}", f"--dst={folder / 'x'}"),
        run.refuses("prepare", "recordio", f"--src={rec}", f"--dst={folder / 'x'}"),
        run.refuses("convert", f"--src={tiny}", f"--dst={folder / 'x'}"),
        run.refuses("main", small(faces), folder / "x"),
    ):
        assert str(folder) in said
        assert "Errno" not in said
        if where != "in /proc":
            assert "; " in said, "no remedy"
    assert snapshot(tmp_path) == kept


def test_a_finished_run_made_read_only(run, read_only, finished, faces, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "x")
    kept = snapshot(workdir)
    read_only(workdir)
    for mode in ("train", "eval"):
        said = run.refuses("main", small(faces), workdir, mode)
        assert str(workdir) in said
        assert "cannot be written to; choose another --workdir" in said
    assert api.load_workdir(workdir).run.step == 4, "what is read only can still be used"
    assert snapshot(workdir) == kept
