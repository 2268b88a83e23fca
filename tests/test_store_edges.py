"""Test face stores at their edges: defaults, single pairs, limits that are reached exactly, errors of the disk."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

from fvjax.data import images, stores
from fvjax.data.stores import features, manifest, protocol, shards, store
from tests.test_images import smooth_face

FACES = [smooth_face(i) for i in range(4)]
JPEGS = [images.encode(face) for face in FACES]


def make(path: Path, people: str = "aabb", **options) -> stores.Store:
    """Write one face for each letter, which names its identity."""
    with stores.Writer(path, split="test", sources=[], **options) as writer:
        values = {name: np.zeros(feature.shape, feature.dtype) for name, feature in writer.features.items()}
        for number, identity in enumerate(people):
            writer.add(JPEGS[number % 4], identity, f"{number}.jpg", **values)
    return stores.Store(path, "test")


def pairs_of(labels: np.ndarray, a, b, fold) -> stores.Pairs:
    a, b = np.array(a), np.array(b)
    return stores.Pairs(a, b, labels[a] == labels[b], np.array(fold), labels[a], labels[b])


def change_manifest(made: stores.Store, **entries) -> None:
    file = made.path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def change_index(made: stores.Store, labels: list[int]) -> None:
    """Replace the labels in index.npz, with the manifest's hash of the file."""
    file = made.path / "index.npz"
    np.savez(file, labels=np.array(labels, np.int64), sources=np.frombuffer(b"x", np.uint8))
    change_manifest(made, index_hash=hashlib.sha256(file.read_bytes()).hexdigest())


@pytest.mark.parametrize("kind", [manifest.Kind, features.Feature, protocol.Pairs])
def test_shared_descriptions_cannot_be_changed(kind):
    assert dataclasses.is_dataclass(kind)
    assert kind.__hash__ is not None  # Python gives a hash to frozen dataclasses only


# ---- protocols


def test_a_benchmark_of_which_nothing_is_said_lacks_nothing(tmp_path):
    made = make(tmp_path / "s")
    stores.write_pairs(made.path, "mine", pairs_of(made.labels, [0, 1], [1, 2], [0, 0]))
    entry = stores.Store(made.path, "test").manifest["benchmarks"]["mine"]
    assert (entry["policy"], entry["failure_to_acquire"], entry["pairs_dropped"]) == ("fail", 0, 0)
    assert entry["identities"] == "named"
    stores.write_pairs(made.path, "other", pairs_of(made.labels, [0], [2], [0]), facts={"identities": "unknown"})
    entry = stores.Store(made.path, "test").manifest["benchmarks"]["other"]
    assert (entry["pairs"], entry["genuine"], entry["impostor"], entry["fold_sizes"]) == (1, 0, 1, [1])
    assert entry["identities"] == "unknown"


@pytest.mark.parametrize("fold", [[0], [0, 1], [0, 1, 1], [0, 0, 1], [0, 1, 2]])
def test_folds_of_a_single_pair(fold, tmp_path):
    made = make(tmp_path / "s")
    pairs = pairs_of(made.labels, [0, 1, 2][: len(fold)], [1, 2, 3][: len(fold)], fold)
    stores.write_pairs(made.path, "mine", pairs)
    read = stores.read_pairs(made.path, "mine")
    assert (read.a.tolist(), read.b.tolist()) == (pairs.a.tolist(), pairs.b.tolist())
    assert read.fold.tolist() == fold
    assert read.fold_sizes == np.bincount(fold).tolist()


def test_a_fold_of_one_kind_is_named_by_its_number_from_one():
    labels = np.array([0, 0, 1, 1])
    both, genuine, impostor = [(0, 1), (0, 2)], [(0, 1), (2, 3)], [(0, 2), (1, 3)]
    for number, lacking, rows in (
        (1, "genuine", impostor + both),
        (2, "genuine", both + impostor),
        (1, "impostor", genuine + both),
        (2, "impostor", both + genuine),
    ):
        pairs = pairs_of(labels, *zip(*rows), [0, 0, 1, 1])
        with pytest.raises(ValueError, match=rf"^x: fold {number} of 2 has no {lacking} pairs \(2 pairs\)"):
            protocol.check_folds(pairs, "x")
    protocol.check_folds(pairs_of(labels, *zip(*both, *both), [0, 0, 1, 1]), "x")


# ---- the manifest


def test_a_store_of_another_kind_is_named(tmp_path):
    made = make(tmp_path / "s")
    with pytest.raises(ValueError, match="this is a face store, expected a store of conversations"):
        manifest.read_manifest(made.path, manifest.CONVERSATIONS)
    change_manifest(made, format="conversations 1")
    with pytest.raises(ValueError, match="this is a store of conversations, expected a face store"):
        stores.Store(made.path, "test")


@pytest.mark.parametrize(
    ("key", "value"),
    [("shards", [{}]), ("benchmarks", {"x": 3}), ("benchmarks", {"x": {}}), ("identities", ["a", 3])],
)
def test_malformed_entries_within_an_entry(key, value, tmp_path):
    made = make(tmp_path / "s")
    change_manifest(made, **{key: value})
    with pytest.raises(ValueError, match=f"'{key}' is missing or malformed"):
        stores.Store(made.path, "test")


def test_as_many_pixels_as_an_image_may_have():
    most = images.MAX_PIXELS
    for size in ((1, 1), (1, most), (most, 1), (2, most // 2), [112, 112]):
        assert manifest.is_image_size(size), size
    for size in ((1, most + 1), (most + 1, 1), (2, most), (0, 5), (5, 0), (5,), (5, 5, 5), (1.0, 5), (True, 5), 5):
        assert not manifest.is_image_size(size), size


# ---- reading


def test_pictures_come_in_the_order_that_was_asked_for(tmp_path):
    made = make(tmp_path / "s")
    for ids in ([2], [2, 0], [3, 1, 1, 0]):
        got = made.images(ids)
        assert got.shape == (len(ids), 112, 112, 3)
        for picture, number in zip(got, ids):
            np.testing.assert_array_equal(picture, images.decode(JPEGS[number], "x"))


@pytest.mark.parametrize("labels", [[0, 0, 1], [0, 0, 1, 1, 1], [0, 0, 1, 2], [-1, 0, 1, 1], []])
def test_labels_that_disagree_with_the_manifest(labels, tmp_path):
    made = make(tmp_path / "s")
    change_index(made, labels)
    with pytest.raises(ValueError, match=r"index\.npz and manifest\.json disagree"):
        stores.Store(made.path, "test")
    change_manifest(made, shards=[shard | {"records": 0} for shard in made.manifest["shards"]])
    with pytest.raises(ValueError, match=r"index\.npz and manifest\.json disagree"):
        stores.Store(made.path, "test")
    change_manifest(made, shards=made.manifest["shards"])
    change_index(made, [1, 1, 0, 0])
    assert stores.Store(made.path, "test").labels.tolist() == [1, 1, 0, 0]


def test_features_may_fill_the_shards_and_no_more(tmp_path, monkeypatch):
    made = make(tmp_path / "s", features={"x": stores.Feature("float32", (500,))})
    monkeypatch.setattr(store.Store, "_shard_bytes", 4 * 4 * 500)
    assert len(stores.Store(made.path, "test")) == 4
    monkeypatch.setattr(store.Store, "_shard_bytes", 4 * 4 * 500 - 1)
    with pytest.raises(ValueError, match=r"the features in manifest\.json do not fit its files"):
        stores.Store(made.path, "test")


def test_an_array_of_an_index_has_at_most_so_many_bytes():
    index, column = io.BytesIO(), io.BytesIO()
    np.savez(index, x=np.arange(100))
    np.save(column, np.arange(100))
    (values,) = store.parse_arrays(index.getvalue(), {"x": np.int64}, column.tell(), Path("index.npz"))
    assert values.tolist() == list(range(100))
    for data, most in ((index.getvalue(), column.tell() - 8), (b"no archive", 9999), (index.getvalue()[:-9], 9999)):
        with pytest.raises(ValueError, match=r"^index\.npz: cannot be read \(.*\); prepare the store again"):
            store.parse_arrays(data, {"x": np.int64}, most, Path("index.npz"))


# ---- writing


def test_a_discarded_store_leaves_nothing(tmp_path):
    with stores.Writer(tmp_path / "s", split="test", sources=[]) as writer:
        writer.add(JPEGS[0], "a", "0.jpg")
        writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_several_rejections_is_named(tmp_path):
    writer = stores.Writer(tmp_path / "s", split="test", sources=[]).__enter__()
    writer.reject("a.jpg", "a.jpg: broken")
    writer.reject("b.jpg", "small")
    with pytest.raises(ValueError, match=r"not one usable image; first rejected: a\.jpg: broken$"):
        writer.__exit__(None, None, None)


def test_counts_of_identities_with_one_image_and_more(tmp_path):
    made = make(tmp_path / "s", "aabc").manifest
    assert made["counts"] == {"images": 4, "identities": 3, "rejected": 0}
    assert made["single_image_identities"] == 2


@pytest.mark.parametrize("step", ["open", "write", "close"])
def test_errors_of_the_disk_name_the_store(step, tmp_path, monkeypatch):
    class FullDisk:
        def __init__(self, file: str, options: str):
            self._fail("open")

        def write(self, data: bytes) -> None:
            self._fail("write")

        def close(self) -> None:
            self._fail("close")

        def _fail(self, when: str) -> None:
            if when == step:
                raise RuntimeError("no space left; writing /a/temporary/file; errno 28")

    monkeypatch.setattr(shards, "ArrayRecordWriter", FullDisk)
    with pytest.raises(OSError, match=f"^{tmp_path / 's'}: no space left$"):
        write_one_record(tmp_path)


def write_one_record(folder: Path) -> None:
    shard = shards.ShardWriter(folder / "0", folder / "s")
    shard.add(JPEGS[0], 0, "a", "0.jpg")
    shard.close()


def test_as_many_bytes_as_a_feature_may_have():
    most = features.MAX_FEATURE_BYTES
    assert stores.Feature("uint8", (most,)).nbytes == most
    with pytest.raises(ValueError, match=f"has more than {most} bytes"):
        stores.Feature("uint8", (most + 1,))
