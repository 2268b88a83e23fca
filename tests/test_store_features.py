"""Test stores with other image sizes and further features: round trips, hashes, and errors that name the problem."""

import hashlib
import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fvjax.data import images, stores, synthetic
from fvjax.data.stores import Feature, shards
from fvjax.data.stores.features import DTYPES

SIZE = (32, 48)
FEATURES = {
    "landmarks": Feature("float32", (68, 2)),
    "yaw": Feature("float32"),
    "labels": Feature("uint8", (40,)),
    "map": Feature("uint8", SIZE),
    "frames": Feature("uint8", (8, *SIZE, 3)),
    "caption": Feature("text"),
    **{f"one_{dtype}": Feature(dtype, (2, 3)) for dtype in DTYPES},
}


def pattern(i: int, height: int = 112, width: int = 112) -> np.ndarray:
    """Return a picture made by integer arithmetic, so that it is the same on every machine."""
    y, x, channel = np.indices((height, width, 3))
    return ((y * (i + 1) + x * (channel + 2)) // 2 % 256).astype(np.uint8)


def record(i: int, size: tuple[int, int] = (112, 112)) -> tuple[bytes, str, str]:
    return images.encode(pattern(i, *size), size=size), f"person {i // 2}", f"{i // 2}/{i}.jpg"


def value(feature: Feature, i: int) -> Any:
    if feature.is_text:
        return f"Persön {i}\n\nhas several lines.\n" if i else ""
    rng = np.random.default_rng(i)
    return np.asarray(rng.integers(0, 2 if feature.dtype == "bool" else 100, feature.shape)).astype(feature.dtype)


def values(i: int, features=None) -> dict[str, Any]:
    return {name: value(feature, i) for name, feature in (features or FEATURES).items()}


def make(path: Path, features=None, size=SIZE, n=5, change=lambda i, given: given) -> stores.Store:
    features = FEATURES if features is None else features
    with stores.Writer(path, split="train", sources=["here"], image_size=size, features=features) as writer:
        for i in range(n):
            writer.add(*record(i, size), **change(i, {name: value(features[name], i) for name in features}))
    return stores.Store(path)


# ---- stores from before there were features


PINNED = {
    "dataset_info.json": "61fa387694aff6c13309e12d7bebb8943f2d53f8a9d33a71f033410f96169564",
    "faces-test.array_record-00000-of-00001": "2e1de19f602a515373fb661856b04371c308ef4bdf7d0299f731f80f66bfa293",
    "features.json": "33a57b6f5b60a156db7b0ce20136acf6e5eedd86cd818c6724615d1babf86f28",
    "identity.labels.txt": "4decc8816a852fa459127a83faf52812d279b08242633f53a23a4e2e534cb88f",
    "manifest.json": "141a59c033c943c8cf91bcec2fc3343bc945d29973e39b5f3c7632162320679b",
    "pairs_some.csv": "8b155cb8ffbbdcef4094ae8c95984fab48bf08b543642ef57cb92c10b22e993f",
}


def test_a_store_of_faces_is_the_same_bytes_as_ever(tmp_path):
    """The hashes come from the code before stores had features and image sizes; published data has such hashes."""
    s = stores.write(tmp_path / "s", [record(i) for i in range(6)], split="test", sources=["here"])
    a, b, fold = np.array([0, 0, 2, 2]), np.array([1, 2, 3, 4]), np.array([0, 0, 1, 1])
    pairs = stores.Pairs(a, b, s.labels[a] == s.labels[b], fold, s.labels[a], s.labels[b])
    stores.write_pairs(s.path, "some", pairs)
    assert s.data_hash == "ba39dcb5024e686b2288c5a7e2862a1d61ab484716e8fc88d9c05bae6151b7e8"
    files = {file.name: file.read_bytes() for file in s.path.iterdir()}
    del files["index.npz"]  # compressed, so its bytes depend on zlib
    files["manifest.json"] = files["manifest.json"].replace(s.manifest["index_hash"].encode(), b"")
    assert {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} == PINNED
    assert (s.image_size, s.features) == ((112, 112), {})


# ---- round trips


@pytest.mark.parametrize("shard_records", [2, 100])
def test_round_trip(tmp_path, monkeypatch, shard_records):
    monkeypatch.setattr(shards, "SHARD_RECORDS", shard_records)
    s = make(tmp_path / "s")
    assert s.image_size == SIZE
    assert s.features == FEATURES
    ids = [3, 0, 4, 3]
    assert s.images(ids).shape == (4, *SIZE, 3)
    assert np.abs(s.image(3).astype(int) - images.decode(record(3, SIZE)[0], "x", size=SIZE)).max() == 0
    columns = s.read(np.array(ids), list(FEATURES))
    assert list(columns) == list(FEATURES)
    for name, feature in FEATURES.items():
        want = [value(feature, i) for i in ids]
        assert columns[name].shape == (4, *feature.shape)
        assert columns[name].dtype == (object if feature.is_text else np.dtype(feature.dtype))
        assert all(np.array_equal(got, one) for got, one in zip(columns[name], want)), name


def test_nothing_read_is_empty_arrays(tmp_path):
    s = make(tmp_path / "s")
    assert s.images([]).shape == (0, *SIZE, 3)
    columns = s.read([], ["landmarks", "caption"])
    assert (columns["landmarks"].shape, columns["landmarks"].dtype) == ((0, 68, 2), np.float32)
    assert columns["caption"].shape == (0,)
    assert s.read([0], []) == {}


def test_tfds_reads_the_same(tmp_path):
    s = make(tmp_path / "s")
    builder = tfds.builder_from_directory(tmp_path / "s")
    source = builder.as_data_source("train")
    assert builder.info.features["image"].shape == (*SIZE, 3)
    assert len(source) == 5
    for i in range(5):
        assert np.abs(source[i]["image"].astype(int) - s.image(i)).max() <= 2  # TFDS has another decoder
        for name, feature in FEATURES.items():
            if feature.is_text:
                assert source[i][name].decode() == value(feature, i)
            else:
                assert builder.info.features[name].np_dtype == np.dtype(feature.dtype)
                np.testing.assert_array_equal(source[i][name], value(feature, i), strict=True)


def test_a_pickled_store_reads_the_same(tmp_path):
    s = make(tmp_path / "s")
    s.read([0], ["yaw"])  # opens the shards, which cannot be pickled themselves
    copy = pickle.loads(pickle.dumps(s))  # noqa: S301 (our own bytes)
    assert (copy.features, copy.image_size) == (FEATURES, SIZE)
    assert np.array_equal(copy.read([1], ["landmarks"])["landmarks"], s.read([1], ["landmarks"])["landmarks"])


def test_the_manifest_declares_only_what_is_unusual(tmp_path):
    plain = make(tmp_path / "plain", {}, (112, 112))
    assert not {"image_size", "features"} & plain.manifest.keys()
    some = {"yaw": Feature("float32"), "caption": Feature("text"), "map": Feature("uint8", (2, 3))}
    other = make(tmp_path / "other", some)
    assert other.manifest["image_size"] == [32, 48]
    assert other.manifest["features"] == {
        "caption": {"dtype": "text"},
        "map": {"dtype": "uint8", "shape": [2, 3]},
        "yaw": {"dtype": "float32", "shape": []},
    }


def test_features_of_drawn_faces(tmp_path):
    without = synthetic.write(tmp_path / "without", range(3), 2, 0, split="train")
    s = synthetic.write(tmp_path / "with", range(3), 2, 0, split="train", features=("yaw", "pitch"))
    assert s.features == {"yaw": Feature("float32"), "pitch": Feature("float32")}
    assert [s.jpeg(i) for i in range(6)] == [without.jpeg(i) for i in range(6)]
    assert without.features == {}
    assert s.data_hash != without.data_hash
    shots = [synthetic.shot_attributes(identity, k, 0) for identity in range(3) for k in range(2)]
    columns = s.read(range(6), ["pitch", "yaw"])
    for name in ("yaw", "pitch"):
        assert columns[name].tolist() == [np.float32(shot[name]) for shot in shots]
    for name in ("glasses", "skin", "grain", "age"):
        with pytest.raises(ValueError, match=f"attribute '{name}' is no float of a shot; choose from yaw, pitch"):
            synthetic.write(tmp_path / "x", range(3), 2, 0, split="train", features=(name,))


# ---- hashes


def test_the_data_hash_depends_on_every_ingredient_of_a_feature(tmp_path):
    def data_hash(number, **features):
        with stores.Writer(tmp_path / f"{number}", split="train", sources=[], features=features) as writer:
            for i in range(3):
                writer.add(*record(i), **{name: given[i] for name, given in VALUES[number].items()})
        return stores.Store(tmp_path / f"{number}").data_hash

    def array(dtype, *shape, shift=0):
        return [np.full(shape, i + shift, dtype) for i in range(3)]

    vector = Feature("int32", (6,))
    cases = [
        ({}, {}),
        ({"a": array("int32", 6)}, {"a": vector}),
        ({"a": array("int32", 6, shift=1)}, {"a": vector}),
        ({"b": array("int32", 6)}, {"b": vector}),
        ({"a": array("uint32", 6)}, {"a": Feature("uint32", (6,))}),
        ({"a": array("int32", 2, 3)}, {"a": Feature("int32", (2, 3))}),
        ({"a": array("int32", 6), "b": array("int32", 6)}, {"a": vector, "b": vector}),
        ({"a": ["x", "y", "z"]}, {"a": Feature("text")}),
        ({"a": ["x", "y", "zz"]}, {"a": Feature("text")}),
    ]
    VALUES = [given for given, _ in cases]
    hashes = [data_hash(i, **features) for i, (_, features) in enumerate(cases)]
    assert len(set(hashes)) == len(cases)
    plain = stores.write(tmp_path / "plain", [record(i) for i in range(3)], split="train", sources=[])
    assert hashes[0] == plain.data_hash


def test_the_data_hash_does_not_depend_on_the_order_of_declaration(tmp_path):
    some = {"a": Feature("float32", (2,)), "b": Feature("text")}
    assert make(tmp_path / "s", some).data_hash == make(tmp_path / "t", dict(reversed(some.items()))).data_hash


def test_images_of_another_size_have_another_hash(tmp_path):
    assert make(tmp_path / "s", {}).data_hash != make(tmp_path / "t", {}, SIZE[::-1]).data_hash


# ---- what a writer refuses


LANDMARKS = np.zeros((68, 2), np.float32)
BAD_VALUES = {
    "missing": ("landmarks", None, r"feature 'landmarks' is missing, expected float32 \[68, 2\]"),
    "extra": ("age", np.float32(3), "feature 'age' is not declared; declared are .*'landmarks'"),
    "shape": ("landmarks", LANDMARKS[:5], r"feature 'landmarks': float32 \[5, 2\], expected float32 \[68, 2\]"),
    "transposed": ("landmarks", LANDMARKS.T, r"feature 'landmarks': float32 \[2, 68\], expected float32 \[68, 2\]"),
    "dtype": (
        "landmarks",
        LANDMARKS.astype(float),
        r"feature 'landmarks': float64 \[68, 2\], expected float32 \[68, 2\]",
    ),
    "byte order": ("yaw", np.array(1, ">f4"), r"feature 'yaw': .*expected float32 \[\]"),
    "a list": ("labels", [0] * 40, r"feature 'labels': a list, expected a numpy array uint8 \[40\]"),
    "a float": ("yaw", 0.5, r"feature 'yaw': a float, expected a numpy array float32 \[\]"),
    "nan": ("yaw", np.float32("nan"), r"feature 'yaw': it has numbers that are not finite"),
    "infinity": ("landmarks", LANDMARKS - np.float32("inf"), "feature 'landmarks': it has numbers that are not finite"),
    "bytes": ("caption", b"x", r"feature 'caption': a bytes, expected text \(str\)"),
    "surrogates": ("caption", "\udcff", "feature 'caption': text that UTF-8 cannot express"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_bad_value_is_refused_and_leaves_the_store_usable(tmp_path, case):
    name, bad, message = BAD_VALUES[case]
    given = values(0) | {name: bad}
    if bad is None:
        del given[name]
    with stores.Writer(tmp_path / "s", split="train", sources=[], image_size=SIZE, features=FEATURES) as writer:
        with pytest.raises(ValueError, match=f"^0/0.jpg: {message}"):
            writer.add(*record(0, SIZE), **given)
        assert writer.add(*record(1, SIZE), **values(1)) == 0
    s = stores.Store(tmp_path / "s")
    assert s.identities == ["person 0"]
    assert np.array_equal(s.read([0], ["landmarks"])["landmarks"][0], values(1)["landmarks"])


def test_arrays_need_not_be_contiguous(tmp_path):
    transposed = np.arange(136, dtype=np.float32).reshape(2, 68).T
    some = {"landmarks": FEATURES["landmarks"]}
    s = make(tmp_path / "s", some, change=lambda i, given: {"landmarks": transposed + np.float32(i)})
    assert np.array_equal(s.read([2], ["landmarks"])["landmarks"][0], transposed + 2)


@pytest.mark.parametrize("name", ["image", "identity", "source", "", "two words", "a/b", "1st", 3])
def test_names_of_features(tmp_path, name):
    with pytest.raises(ValueError, match=r"a name is letters, digits and underscores, and none of image, identity"):
        stores.Writer(tmp_path / "s", split="train", sources=[], features={name: Feature("text")})


def test_any_other_name_will_do(tmp_path):
    """Even the names of the parameters of Writer.add are allowed."""
    some = {name: Feature("text") for name in ("self", "jpeg", "values")}
    assert make(tmp_path / "s", some).read([2], ["jpeg"])["jpeg"][0] == value(Feature("text"), 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("float128",), "a feature's dtype is 'float128'; choose 'text', 'map' or one of bool, int8"),
        (("object",), "a feature's dtype is 'object'"),
        (("f4",), "a feature's dtype is 'f4'"),
        (("float32", [68, 2]), r"a feature's shape is \[68, 2\]; expected a tuple of integers above 0"),
        (("float32", (68, 0)), "expected a tuple of integers above 0"),
        (("float32", (-1,)), "expected a tuple of integers above 0"),
        (("float32", (True,)), "expected a tuple of integers above 0"),
        (("float32", (2.0,)), "expected a tuple of integers above 0"),
        (("text", (2,)), "a text feature has no shape"),
        (("float64", (1 << 25, 2)), r"a feature float64 \[33554432, 2\] has more than 268435456 bytes"),
    ],
)
def test_types_of_features(arguments, message):
    with pytest.raises(ValueError, match=message):
        Feature(*arguments)


@pytest.mark.parametrize("size", [(0, 48), (32,), 112, (32, 48, 3), (1 << 20, 1 << 20), (32.0, 48), (True, 48), None])
def test_sizes_of_images(tmp_path, size):
    with pytest.raises(ValueError, match=r"image_size is .*; expected \(height, width\)"):
        stores.Writer(tmp_path / "s", split="train", sources=[], image_size=size)


@pytest.mark.parametrize("size", [(112, 112), (48, 32), (32, 47), (33, 48)])
def test_an_image_of_another_size_is_refused(tmp_path, size):
    with stores.Writer(tmp_path / "s", split="train", sources=[], image_size=SIZE) as writer:
        with pytest.raises(images.WrongSize, match=f"^0/0.jpg: {size[1]}x{size[0]}, expected 48x32"):
            writer.add(*record(0, size))
        writer.add(*record(1, SIZE))
    with pytest.raises(ValueError, match=r"expected an image uint8 \[32,48,3\]"):
        images.encode(pattern(0, *size), size=SIZE)


def test_an_exception_leaves_nothing(tmp_path):
    def interrupt(i, given):
        if i == 3:
            raise KeyboardInterrupt
        return given

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "s", change=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_killed_half_way_leaves_nothing_that_opens(tmp_path):
    script = f"""
        import os, pathlib, signal
        from tests import test_store_features
        def die(i, given):
            if i == 3: os.kill(os.getpid(), signal.SIGKILL)
            return given
        test_store_features.make(pathlib.Path({str(tmp_path / "s")!r}), change=die)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, timeout=120)
    assert done.returncode == -9, done.stderr.decode()
    with pytest.raises(ValueError, match="no face store here"):
        stores.Store(tmp_path / "s")
    assert all(x.name.startswith(".s.partial-") for x in tmp_path.iterdir())
    assert len(make(tmp_path / "s")) == 5


# ---- what a reader refuses


def forged(path: Path, **entries) -> Path:
    """Change entries of a store's manifest."""
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | entries))
    return path


def test_what_the_store_does_not_have(tmp_path):
    s = make(tmp_path / "s", {"yaw": Feature("float32")})
    with pytest.raises(ValueError, match=r"/s: no feature 'age'; it has yaw"):
        s.read([0], ["yaw", "age"])
    with pytest.raises(ValueError, match=r"/t: no feature 'image'; it has none"):
        make(tmp_path / "t", {}).read([0], ["image"])
    for i in (-1, 5):
        with pytest.raises(IndexError, match=f"no record {i}, the store has 5"):
            s.read([i], ["yaw"])


# Each case: the type that a forged manifest gives to four bytes, and the error message.
WRONG_TYPES = {
    "shape": ({"dtype": "float32", "shape": [2]}, r"4 bytes, but float32 \[2\] has 8"),
    "size": ({"dtype": "float64", "shape": []}, r"4 bytes, but float64 \[\] has 8"),
    "flags": ({"dtype": "bool", "shape": [4]}, "bytes other than 0 and 1"),
    "text": ({"dtype": "text"}, "can't decode byte"),
    "numbers": ({"dtype": "float16", "shape": [2]}, "not finite"),
}
BITS = dict.fromkeys(WRONG_TYPES, np.uint32(0x3F800080).view(np.float32))
BITS["numbers"] = np.uint32(0x7C007C00).view(np.float32)  # two infinities as float16


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_values_that_do_not_fit_the_manifest_are_located(tmp_path, case):
    entry, message = WRONG_TYPES[case]
    some = {"v": Feature("float32")}
    make(tmp_path / "s", some, change=lambda i, given: {"v": BITS[case]})
    s = stores.Store(forged(tmp_path / "s", features={"v": entry}))
    with pytest.raises(ValueError, match=rf"/s record 1 \(0/1\.jpg\): feature 'v': damaged \(.*{message}.*\); prepare"):
        s.read([1], ["v"])


def test_a_feature_that_the_records_lack(tmp_path):
    make(tmp_path / "s", {"yaw": Feature("float32")})
    s = stores.Store(forged(tmp_path / "s", features={"age": {"dtype": "float32", "shape": []}}))
    with pytest.raises(ValueError, match=r"record 0 \(0/0\.jpg\): feature 'age': damaged"):
        s.read([0], ["age"])


def test_flipped_bytes_are_noticed_on_reading(tmp_path):
    s = make(tmp_path / "s", {"labels": FEATURES["labels"]})
    (file,) = s.path.glob("faces-*")
    data = file.read_bytes()
    stored = values(2)["labels"].tobytes()
    assert data.count(stored) == 1
    file.write_bytes(data.replace(stored, stored[::-1]))
    with pytest.raises(ValueError, match="record 2: damaged"):
        stores.Store(s.path).read([0, 2], ["labels"])


FORGERIES: dict[str, tuple[dict[str, Any], str]] = {
    "a list": ({"features": [1]}, "'features' is missing or malformed"),
    "no dtype": ({"features": {"a": {"shape": [2]}}}, "'features' is missing or malformed"),
    "an unknown dtype": ({"features": {"a": {"dtype": "O", "shape": []}}}, "'features' is missing or malformed"),
    "no shape": ({"features": {"a": {"dtype": "bool", "shape": "2"}}}, "'features' is missing or malformed"),
    "a negative shape": ({"features": {"a": {"dtype": "bool", "shape": [-2]}}}, "'features' is missing or malformed"),
    "a name": ({"features": {"image": {"dtype": "text"}}}, "'features' is missing or malformed"),
    "a huge shape": ({"features": {"a": {"dtype": "bool", "shape": [1 << 60]}}}, "'features' is missing or malformed"),
    "beyond the file": ({"features": {"a": {"dtype": "bool", "shape": [1 << 20]}}}, "do not fit its files"),
    "no size": ({"image_size": None}, "'image_size' is missing or malformed"),
    "one length": ({"image_size": [112]}, "'image_size' is missing or malformed"),
    "a huge size": ({"image_size": [1 << 20, 1 << 20]}, "'image_size' is missing or malformed"),
    "fractions": ({"image_size": [32.0, 48.0]}, "'image_size' is missing or malformed"),
}


@pytest.mark.parametrize("case", FORGERIES)
def test_a_forged_manifest_is_refused(tmp_path, case):
    entries, message = FORGERIES[case]
    make(tmp_path / "s", {"yaw": Feature("float32")})
    with pytest.raises(ValueError, match=message):
        stores.Store(forged(tmp_path / "s", **entries))


def test_another_size_in_the_manifest_costs_no_memory(tmp_path, monkeypatch):
    make(tmp_path / "s", {})
    s = stores.Store(forged(tmp_path / "s", image_size=[4096, 4096]))
    empty = np.empty
    monkeypatch.setattr(
        np, "empty", lambda shape, *a: pytest.fail("allocated") if np.prod(shape) > 1e6 else empty(shape, *a)
    )
    with pytest.raises(ValueError, match=r"/s record 1 \(0/1\.jpg\): 48x32, expected 4096x4096"):
        s.images([1] * 100)
