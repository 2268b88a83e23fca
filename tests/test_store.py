"""Face stores: they read back, TFDS opens them, a writer leaves all or nothing, and every kind of damage is noticed."""

import csv
import json
import pickle
import subprocess
import sys
import textwrap
from dataclasses import replace
from importlib.machinery import PathFinder

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fvjax.data import images, prepare, stores, synthetic
from fvjax.data.stores import shards
from tests.test_images import smooth_face
from tests.test_prepare import cfp, lfw, people  # noqa: F401 (fixtures)

FACES = [smooth_face(i) for i in range(8)]
RECORDS = [(images.encode(f), f"persön {i // 3}", f"{i // 3}/é {i}.jpg") for i, f in enumerate(FACES)]


def make(path, records=RECORDS, split="train"):
    return stores.write(path, records, split=split, sources=["here"])


def some_pairs(labels) -> stores.Pairs:
    a, b, fold = np.array([0, 0, 3, 5]), np.array([1, 7, 4, 6]), np.array([0, 0, 1, 1])
    return stores.Pairs(a, b, labels[a] == labels[b], fold, labels[a], labels[b])


def test_round_trip(tmp_path):
    s = make(tmp_path / "s")
    assert len(s) == 8
    assert s.labels.dtype == np.int64
    assert s.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert s.identities == ["persön 0", "persön 1", "persön 2"]
    assert s.sources == [source for _, _, source in RECORDS]
    assert [s.jpeg(i) for i in range(8)] == [jpeg for jpeg, _, _ in RECORDS]
    assert np.array_equal(s.image(5), images.decode(RECORDS[5][0], "x"))
    assert s.manifest["counts"] == {"images": 8, "identities": 3, "rejected": 0}
    assert s.manifest["sources"] == ["here"]


def test_single_image_identities_are_counted(tmp_path):
    assert make(tmp_path / "s", RECORDS[:7]).manifest["single_image_identities"] == 1


def test_records_past_the_ends_are_refused(tmp_path):
    s = make(tmp_path / "s")
    for i in (-1, 8):
        with pytest.raises(IndexError, match=f"no record {i}, the store has 8"):
            s.jpeg(i)


def prepared(tmp_path, *arguments):
    assert prepare.main([*arguments, f"--dst={tmp_path / 's'}"]) == 0
    return stores.Store(tmp_path / "s", "train" if arguments[0] == "folder" else "test")


def in_shards(tmp_path, fixture):
    fixture("monkeypatch").setattr(shards, "SHARD_RECORDS", 3)
    return make(tmp_path / "s")


def by_bin(tmp_path, fixture):
    (tmp_path / "x.bin").write_bytes(pickle.dumps(([jpeg for jpeg, _, _ in RECORDS], [True, False] * 2)))
    return prepared(tmp_path, "bin", f"--src={tmp_path / 'x.bin'}", "--name=x", "--folds=2")


def by_tfds(tmp_path, fixture):
    make(tmp_path / "other")
    return prepared(tmp_path, "folder", f"--src=tfds:{tmp_path / 'other'}", "--identity-feature=identity")


WAYS = {
    "written": lambda path, fixture: make(path / "s", split="test"),
    "in shards": in_shards,
    "folder": lambda path, fixture: prepared(path, "folder", f"--src={fixture('people')}"),
    "lfw": lambda path, fixture: prepared(path, *fixture("lfw")),
    "cfp": lambda path, fixture: prepared(path, *fixture("cfp")),
    "bin": by_bin,
    "tfds": by_tfds,
    "drawn": lambda path, fixture: synthetic.write(path / "s", range(4), 2, 0, split="train"),
}


@pytest.mark.parametrize("way", WAYS)
def test_tfds_opens_it_without_tensorflow(tmp_path, monkeypatch, request, way):
    def hidden(name, *args):  # sys.modules["tensorflow"] = None would not do: TFDS takes it for one that is there
        return None if name == "tensorflow" else find(name, *args)

    find = PathFinder.find_spec
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(PathFinder, "find_spec", hidden)
    s = WAYS[way](tmp_path, request.getfixturevalue)
    builder = tfds.builder_from_directory(tmp_path / "s")
    source = builder.as_data_source(s.split)
    assert len(source) == len(s) > 4
    assert builder.info.features["identity"].names == s.identities
    for i in (0, 3, len(s) - 1):
        assert np.abs(source[i]["image"].astype(int) - s.image(i)).max() <= 2  # TFDS has another decoder
        assert source[i]["identity"] == s.labels[i]
        assert source[i]["source"].decode() == s.sources[i]


def test_many_shards_keep_the_order(tmp_path, monkeypatch):
    whole = make(tmp_path / "whole")
    monkeypatch.setattr(shards, "SHARD_RECORDS", 3)
    s = make(tmp_path / "s")
    assert [x["records"] for x in s.manifest["shards"]] == [3, 3, 2]
    assert [s.jpeg(i) for i in range(8)] == [jpeg for jpeg, _, _ in RECORDS]
    assert s.data_hash == whole.data_hash
    assert len(tfds.builder_from_directory(tmp_path / "s").as_data_source("train")) == 8


def test_data_hash_is_of_the_contents_in_order(tmp_path):
    same, *others = (
        RECORDS,
        RECORDS[::-1],
        RECORDS[:-1],
        [(RECORDS[1][0], *RECORDS[0][1:]), *RECORDS[1:]],
        [(RECORDS[0][0], "persön 1", RECORDS[0][2]), *RECORDS[1:]],
        [(*RECORDS[0][:2], "other.jpg"), *RECORDS[1:]],
        [(RECORDS[0][0], "persön 00", "/é 0.jpg"), *RECORDS[1:]],  # same bytes, cut elsewhere
    )
    hashes = [make(tmp_path / f"{i}", records).data_hash for i, records in enumerate([same, same, *others])]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[1:])) == 7


def test_a_pickled_store_reads_the_same(tmp_path):
    """Grain pickles a store to send it to worker processes; nothing pickled is ever read from a file."""
    s = make(tmp_path / "s")
    s.image(0)  # opens the shards, which cannot be pickled themselves
    copy = pickle.loads(pickle.dumps(s))  # noqa: S301 (our own bytes)
    assert copy.jpeg(3) == s.jpeg(3)


def test_an_existing_store_is_never_overwritten(tmp_path):
    s = make(tmp_path / "s")
    before = {file.name: file.read_bytes() for file in s.path.iterdir()}
    with pytest.raises(ValueError, match="exists already"):
        make(tmp_path / "s", RECORDS[:2])
    assert {file.name: file.read_bytes() for file in s.path.iterdir()} == before
    assert [x.name for x in tmp_path.iterdir()] == ["s"]


def test_a_store_that_appears_meanwhile_is_kept(tmp_path):
    def records():
        yield RECORDS[0]
        make(tmp_path / "s", RECORDS[1:2])
        yield RECORDS[1]

    with pytest.raises(ValueError, match="appeared while"):
        stores.write(tmp_path / "s", records(), split="train", sources=[])
    assert len(stores.Store(tmp_path / "s")) == 1
    assert [x.name for x in tmp_path.iterdir()] == ["s"]


def test_an_exception_leaves_nothing(tmp_path):
    def records():
        yield RECORDS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stores.write(tmp_path / "s", records(), split="train", sources=[])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", ["while adding", "before the manifest", "before the rename"])
def test_a_killed_writer_leaves_nothing_that_opens(tmp_path, when):
    script = f"""
        import os, pathlib, signal
        from fvjax.data import stores
        from fvjax.data.stores import writer
        from tests.test_store import RECORDS
        def die(*_): os.kill(os.getpid(), signal.SIGKILL)
        if {when!r} == "before the manifest": writer.write_manifest = die
        if {when!r} == "before the rename":
            rename = pathlib.Path.rename
            pathlib.Path.rename = lambda a, b: die() if pathlib.Path(b).name == "s" else rename(a, b)
        def records():
            yield from RECORDS
            if {when!r} == "while adding": die()
        stores.write({str(tmp_path / "s")!r}, records(), split="train", sources=[])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, timeout=120)
    assert done.returncode == -9, done.stderr.decode()
    assert not (tmp_path / "s").exists()
    with pytest.raises(ValueError, match="no face store here"):
        stores.Store(tmp_path / "s")
    assert all(x.name.startswith(".s.partial-") for x in tmp_path.iterdir())
    assert len(make(tmp_path / "s")) == 8


def test_an_empty_store_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="not one usable image"):
        make(tmp_path / "s", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ((b"nothing", "a", "a/1.jpg"), "a/1.jpg: not a JPEG"),
        ((images.simplejpeg.encode_jpeg(smooth_face(0, 224)), "a", "a/1.jpg"), "224x224, expected 112x112"),
        ((RECORDS[0][0], "", "a/1.jpg"), "plain one-line"),
        ((RECORDS[0][0], " a", "a/1.jpg"), "plain one-line"),
        ((RECORDS[0][0], "a\nb", "a/1.jpg"), "plain one-line"),
        ((RECORDS[0][0], "a", "a/1\n.jpg"), "plain one-line"),
        ((RECORDS[0][0], "a", "a/\udcff.jpg"), "plain one-line"),
        ((RECORDS[0][0], "a\udcff", "a/1.jpg"), "plain one-line"),
    ],
)
def test_a_bad_record_is_refused_and_can_be_skipped(tmp_path, record, message):
    with stores.Writer(tmp_path / "s", split="train", sources=[]) as writer:
        with pytest.raises(ValueError, match=message) as error:
            writer.add(*record)
        writer.reject(record[2], str(error.value))
        assert writer.add(*RECORDS[4]) == 0
    s = stores.Store(tmp_path / "s")
    assert s.identities == ["persön 1"]
    assert len(s.manifest["rejected"]) == 1


def test_the_split_must_be_the_one_asked_for(tmp_path):
    make(tmp_path / "s", split="test")
    with pytest.raises(ValueError, match="its split is 'test', but 'train' was requested"):
        stores.Store(tmp_path / "s")
    with pytest.raises(ValueError, match="'train', 'val' or 'test', not 'dev'"):
        make(tmp_path / "t", split="dev")


def damage(path, name, change):
    file = next(path.glob(name))
    data = change(file.read_bytes())
    if data is None:
        file.unlink()
    else:
        file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("faces-*", lambda data: data[:-1], "faces-train.array_record-00000-of-00001: missing or not"),
        ("faces-*", lambda data: None, "faces-train.array_record-00000-of-00001: missing"),
        ("index.npz", lambda data: data[:-1], "index.npz: missing or changed"),
        ("index.npz", lambda data: None, "index.npz: missing"),
        ("manifest.json", lambda data: None, "no face store here"),
        ("manifest.json", lambda data: data.replace(b'"format": 2', b'"format": 1'), "format 1, this version reads 2"),
        ("manifest.json", lambda data: data[:-9], "manifest.json: not JSON"),
    ],
)
def test_damage_is_noticed_on_opening(tmp_path, name, change, message):
    make(tmp_path / "s")
    damage(tmp_path / "s", name, change)
    with pytest.raises(ValueError, match=message):
        stores.Store(tmp_path / "s")


def test_flipped_bytes_are_noticed_on_reading(tmp_path):
    make(tmp_path / "s")
    jpeg = RECORDS[2][0]
    damage(tmp_path / "s", "faces-*", lambda data: data.replace(jpeg[300:310], bytes(10)))
    with pytest.raises(ValueError, match="record 2: damaged"):
        stores.Store(tmp_path / "s").image(2)


def test_pairs_round_trip(tmp_path):
    s = make(tmp_path / "s", split="test")
    pairs = some_pairs(s.labels)
    stores.write_pairs(s.path, "mine", pairs, policy="drop", failure_to_acquire=2, pairs_dropped=3)
    back = stores.read_pairs(s.path, "mine")
    for field in ("a", "b", "same", "fold", "identity_a", "identity_b"):
        assert getattr(back, field).dtype == getattr(pairs, field).dtype
        assert np.array_equal(getattr(back, field), getattr(pairs, field))
    assert back.fold_sizes == [2, 2]
    with open(s.path / "pairs_mine.csv") as file:
        assert list(csv.reader(file))[:2] == [["a", "b", "same", "fold"], ["0", "1", "1", "0"]]
    entry = stores.Store(s.path, "test").manifest["benchmarks"]["mine"]
    assert (entry["pairs"], entry["genuine"], entry["impostor"], entry["fold_sizes"]) == (4, 2, 2, [2, 2])
    assert (entry["policy"], entry["failure_to_acquire"], entry["pairs_dropped"]) == ("drop", 2, 3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("a", [0, 0, 3, 8], "record numbers run from 0 to 7"),
        ("b", [1, -1, 4, 6], "record numbers run from 0 to 7"),
        ("fold", [1, 1, 2, 2], "folds must be"),
        ("fold", [0, 1, 0, 1], "folds must be"),
        ("fold", [0, 0, 2, 2], "folds must be"),
        ("same", [True, True, True, False], "pair 1 has same=True, but its records 0 and 7 have the labels 0 and 2"),
        ("identity_a", [0, 0, 1, 2], "identity_a and identity_b must be"),
        ("a", [0, 0, 3], "the columns must have one common length"),
    ],
)
def test_pairs_that_do_not_fit_the_store_are_refused(tmp_path, field, value, message):
    s = make(tmp_path / "s", split="test")
    with pytest.raises(ValueError, match=f"benchmark 'mine': {message}"):
        stores.write_pairs(s.path, "mine", replace(some_pairs(s.labels), **{field: np.array(value)}))
    assert not (s.path / "pairs_mine.csv").exists()


def test_bad_pairs_make_no_store(tmp_path):
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    wrong = replace(some_pairs(labels), same=np.array([False] * 4))
    writer = stores.Writer(tmp_path / "s", split="test", sources=[]).__enter__()
    for record in RECORDS:
        writer.add(*record)
    writer.add_pairs("mine", wrong)
    with pytest.raises(ValueError, match="pair 0 has same=False"):
        writer.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_benchmark_names(tmp_path):
    s = make(tmp_path / "s", split="test")
    stores.write_pairs(s.path, "mine", some_pairs(s.labels))
    with pytest.raises(ValueError, match="'mine' exists already"):
        stores.write_pairs(s.path, "mine", some_pairs(s.labels))
    with pytest.raises(ValueError, match="letters, digits and underscores"):
        stores.write_pairs(s.path, "../x", some_pairs(s.labels))
    with pytest.raises(ValueError, match=r"no benchmark 'lfw'; it has \['mine'\]"):
        stores.read_pairs(s.path, "lfw")
    damage(s.path, "pairs_mine.csv", lambda data: data.replace(b"0,7,0,0", b"0,6,0,0"))
    with pytest.raises(ValueError, match=r"pairs_mine\.csv: missing or changed"):
        stores.read_pairs(s.path, "mine")


def test_the_manifest_is_plain_json_that_names_every_rejection(tmp_path):
    with stores.Writer(tmp_path / "s", split="train", sources=["a", "b"]) as writer:
        writer.add(*RECORDS[0])
        writer.reject("a/\udcff.jpg", "broken")
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert manifest["rejected"] == [{"file": "a/\\udcff.jpg", "reason": "broken"}]
    assert manifest["sources"] == ["a", "b"]
