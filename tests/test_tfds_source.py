"""TFDS datasets as a source: by directory and by name, ambiguous features, and datasets that are refused."""

import json
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from fvjax.data import images, stores
from tests.test_images import smooth_face
from tests.test_prepare import fails, people, run  # noqa: F401 (a fixture)
from tests.test_store import damage

JPEGS = [images.encode(smooth_face(i)) for i in range(4)]


def dataset(path, features: dict, rows: list[dict], split="train", file_format="array_record"):
    """Write a TFDS dataset directory with one shard, without any of our code."""
    path.mkdir(parents=True)
    features = tfds.features.FeaturesDict(features)
    serializer = ExampleSerializer(features.get_serialized_info())
    name = f"made-{split}.{file_format}-00000-of-00001"
    writer = ArrayRecordWriter(str(path / name), "group_size:1")
    for row in rows:
        writer.write(serializer.serialize_example(features.encode_example(row)))
    writer.close()
    tfds.folder_dataset.write_metadata(
        data_dir=path,
        features=features,
        split_infos=[tfds.core.SplitInfo(name=split, shard_lengths=[len(rows)], num_bytes=1)],
        version="1.0.0",
        check_data=False,
    )
    return f"--src=tfds:{path}"


IMAGE = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
KINDS = {
    "text": (tfds.features.Text(), ["bob", "amy", "bob", "zoë"], ["amy", "bob", "zoë"]),
    "number": (tfds.features.Scalar(np.int32), [7, 11, 7, 8], ["11", "7", "8"]),
    "class": (tfds.features.ClassLabel(names=["x", "y", "z"]), [2, 0, 2, 1], ["x", "y", "z"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_kinds_of_identity(tmp_path, capsys, kind):
    feature, values, names = KINDS[kind]
    # encode_example would decode nothing of bytes that are a file already
    rows = [{"picture": tmp_path / f"{i}.jpg", "who": value} for i, value in enumerate(values)]
    for i, jpeg in enumerate(JPEGS):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg)
    src = dataset(tmp_path / "d", {"picture": IMAGE, "who": feature}, rows)
    code, out, err = run(capsys, "folder", src, f"--dst={tmp_path / 's'}")
    assert (code, err) == (0, "")
    assert "4 images of 3 identities" in out
    s = stores.Store(tmp_path / "s")
    assert s.identities == names
    order = sorted(range(4), key=lambda i: (str(names.index(str(values[i])) if kind != "class" else values[i]), i))
    assert s.sources == [f"train#{i}" for i in order]
    assert [s.jpeg(i) for i in range(4)] == [JPEGS[i] for i in order]


def test_a_store_of_ours_is_a_source(people, tmp_path, capsys):  # noqa: F811
    """The store has the same faces, names and order as one from the folder, also with --limit and --exclude."""
    assert run(capsys, "folder", f"--src={people}", f"--dst={tmp_path / 's'}")[0] == 0
    again = "folder", f"--src=tfds:{tmp_path / 's'}", "--identity-feature=identity"
    assert run(capsys, *again, f"--dst={tmp_path / 't'}")[0] == 0
    first, second = stores.Store(tmp_path / "s"), stores.Store(tmp_path / "t")
    assert second.identities == first.identities
    assert np.array_equal(second.labels, first.labels)
    assert [second.jpeg(i) for i in range(5)] == [first.jpeg(i) for i in range(5)]
    (tmp_path / "leave.tsv").write_text("amy\n")
    assert run(capsys, *again, f"--dst={tmp_path / 'u'}", f"--exclude={tmp_path / 'leave.tsv'}", "--limit=1")[0] == 0
    assert stores.Store(tmp_path / "u").identities == ["bob"]


def test_by_name_below_the_data_directory(tmp_path, capsys, monkeypatch):
    """The directories are laid out as TFDS does it, for a dataset that TFDS knows and one that it does not know.

    Nothing is downloaded.
    """
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    (tmp_path / "0.jpg").write_bytes(JPEGS[0])
    rows = [{"image": tmp_path / "0.jpg", "label": "Ann"}]
    for name in ("lfw", "mine"):
        dataset(tmp_path / "tfds" / name / "0.1.1", {"image": IMAGE, "label": tfds.features.Text()}, rows)
        for told in (name, f"{name}:0.1.1"):
            dst = tmp_path / f"{told}-out"
            assert run(capsys, "folder", f"--src=tfds:{told}", f"--dst={dst}")[0] == 0
            assert stores.Store(dst).identities == ["Ann"]
    (tmp_path / "out").mkdir()
    for told in ("celeb_a", "lfw:9.9.9", "huggingface:x/y"):
        fails(capsys, tmp_path / "out/s", f"tfds:{told}: neither a directory", "folder", f"--src=tfds:{told}")
    dataset(tmp_path / "tfds/lfw/0.1.2", {"image": IMAGE, "label": tfds.features.Text()}, rows)
    several = "there are several versions; choose one of tfds:lfw:0.1.1, tfds:lfw:0.1.2"
    fails(capsys, tmp_path / "out/s", several, "folder", "--src=tfds:lfw")
    assert "tensorflow" not in sys.modules


def test_what_is_meant_must_be_said(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    dst = tmp_path / "out" / "s"
    for i, jpeg in enumerate(JPEGS):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg)
    features = {"a": IMAGE, "b": IMAGE, "who": tfds.features.Text(), "age": tfds.features.Scalar(np.int64)}
    rows = [{"a": tmp_path / f"{i}.jpg", "b": tmp_path / "0.jpg", "who": f"{i}", "age": 9} for i in range(4)]
    src = dataset(tmp_path / "d", features, rows, split="test")
    fails(capsys, dst, "--image-feature is needed; its images: a, b", "folder", src)
    common = "folder", src, "--image-feature=a", "--identity-feature=who"
    fails(capsys, dst, "--identity-feature is needed; its identities: age, who", *common[:3])
    fails(capsys, dst, "--split=train does not exist; its splits: test", *common, "--split=train")
    fails(capsys, dst, "--image-feature=who does not exist; its images: a, b", *common, "--image-feature=who")
    fails(capsys, dst, "are of tfds:NAME, and --src is", "folder", f"--src={tmp_path}", "--split=train")
    assert run(capsys, *common, f"--dst={dst}")[0] == 0
    assert [stores.Store(dst).jpeg(i) for i in range(4)] == JPEGS


def test_what_cannot_be_read(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    dst = tmp_path / "out" / "s"
    (tmp_path / "0.jpg").write_bytes(JPEGS[0])
    (tmp_path / "1.jpg").write_bytes(JPEGS[1][:300])
    rows = [{"image": tmp_path / f"{i}.jpg", "who": "Ann"} for i in range(2)]
    features = {"image": IMAGE, "who": tfds.features.Text()}
    old = dataset(tmp_path / "old", features, rows, file_format="tfrecord")
    fails(capsys, dst, "tfrecord is not read, array_record is; prepare it with", "folder", old)
    src = dataset(tmp_path / "d", features, rows)
    code, out, _ = run(capsys, "folder", src, f"--dst={dst}")
    assert code == 0
    assert "1 files rejected" in out
    assert "train#1: cannot be read as an image" in out
    unlabelled = {"image": IMAGE, "who": tfds.features.ClassLabel(names=["x"])}
    for number, of_whom in enumerate(([-1], [0, -1, 0])):  # -1 also where others have a label
        told = [{"image": tmp_path / "0.jpg", "who": who} for who in of_whom]
        src = dataset(tmp_path / f"u{number}", unlabelled, told)
        fails(capsys, dst.with_name("t"), f"record {number} has no 'who'", "folder", src)
    damage(tmp_path / "d", "made-*", lambda data: None)
    fails(capsys, dst.with_name("t"), "made-train", "folder", f"--src=tfds:{tmp_path / 'd'}")


def test_a_dataset_cannot_make_tfds_import_a_module(tmp_path, capsys, monkeypatch):
    """TFDS would import any module of which features.json names a class."""
    (tmp_path / "0.jpg").write_bytes(JPEGS[0])
    rows = [{"image": tmp_path / "0.jpg", "who": "A"}]
    src = dataset(tmp_path / "d", {"image": IMAGE, "who": tfds.features.Text()}, rows)
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "d" / "features.json"
    told = file.read_text()
    real = "tensorflow_datasets.core.features.text_feature.Text"
    assert real in told
    file.write_text(told.replace(real, "trap.Text"))
    (tmp_path / "out").mkdir()
    fails(capsys, tmp_path / "out/s", "names 'trap.Text', and TFDS would import that; refused", "folder", src)
    file.write_text(json.dumps([json.loads(told)]))
    fails(capsys, tmp_path / "out/s", "is no TFDS dataset that can be read", "folder", src)
    assert not (tmp_path / "canary").exists()
    file.write_text(told)
    assert run(capsys, "folder", src, f"--dst={tmp_path / 'out/s'}")[0] == 0
