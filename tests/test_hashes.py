"""Test that everything that determines a result is part of a hash or a name.

Each test changes one ingredient, and the hash must change. One test changes things that do not matter, and the hash
must stay. An ingredient missing from a hash would go unnoticed: a cache would be mistaken for another, or a run would
resume with other weights.
"""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fvjax
from fvjax import tasks
from fvjax.config import MAY_CHANGE, base, benchmark, typed
from fvjax.data import images, stores, synthetic
from fvjax.data.stores import manifest, shards
from fvjax.tasks.faces import synthetic_store
from fvjax.training import checkpoint
from fvjax.training.model import pretrained_hash
from tests.test_images import smooth_face
from tests.test_prepare import fails
from tests.test_recordio import insightface, interrupted, write_rec
from weights_convert import open_checkpoint
from weights_convert.read import hashes

TINY = Path("tests/golden/internvl_tiny")
JPEGS = [images.encode(smooth_face(i)) for i in range(6)]
RECORDS = [(jpeg, f"person {i // 2}", f"{i // 2}/{i}.jpg") for i, jpeg in enumerate(JPEGS)]


def make(path: Path, records=RECORDS, split="train", sources=("here",)) -> stores.Store:
    return stores.write(path, records, split=split, sources=sources)


# ---- stores


def replaced(which: int, part: int, value) -> list[tuple]:
    record = list(RECORDS[which])
    record[part] = value
    return [*RECORDS[:which], tuple(record), *RECORDS[which + 1 :]]


def flipped(jpeg: bytes) -> bytes:
    """Return the same picture with a comment, so that only the bytes of the file differ."""
    comment = b"\xff\xfe\x00\x05abc"
    return jpeg[:2] + comment + jpeg[2:]


OTHER_RECORDS = {
    **{f"image {i}": replaced(i, 0, images.encode(smooth_face(50))) for i in (0, 2, 5)},
    "bytes of an image": replaced(3, 0, flipped(JPEGS[3])),
    **{f"identity of {i}": replaced(i, 1, "person 9") for i in (0, 2, 5)},
    "whose an image is": replaced(1, 1, "person 1"),
    **{f"source of {i}": replaced(i, 2, "other.jpg") for i in (0, 2, 5)},
    "one at the end less": RECORDS[:-1],
    "one at the start less": RECORDS[1:],
    "one twice": [*RECORDS, RECORDS[-1]],
    "order of neighbours": [*RECORDS[:2], RECORDS[3], RECORDS[2], *RECORDS[4:]],
    "order within an identity": [RECORDS[1], RECORDS[0], *RECORDS[2:]],
    "order of all": RECORDS[::-1],
    "two images exchanged": [(RECORDS[5][0], *RECORDS[0][1:]), *RECORDS[1:5], (RECORDS[0][0], *RECORDS[5][1:])],
    "a letter from the source to the name": [(JPEGS[0], "person 00", "/0.jpg"), *RECORDS[1:]],
}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> stores.Store:
    return make(tmp_path_factory.mktemp("hashes") / "original")


@pytest.mark.parametrize("change", OTHER_RECORDS)
def test_other_records_have_another_data_hash(original, tmp_path, change):
    assert make(tmp_path / "s", OTHER_RECORDS[change]).data_hash != original.data_hash


def test_the_data_hash_is_what_the_format_says(original):
    """Compute it by another program: whoever reads the description must recognise today's stores."""
    whole = hashlib.sha256()
    for jpeg, identity, source in RECORDS:
        parts = jpeg, identity.encode(), source.encode()
        whole.update(hashlib.sha256(b"".join(struct.pack("<Q", len(part)) + part for part in parts)).digest())
    assert original.data_hash == whole.hexdigest()
    assert json.loads((original.path / "manifest.json").read_text())["data_hash"] == whole.hexdigest()


def test_where_and_how_a_store_lies_is_not_in_its_hash(original, tmp_path, monkeypatch):
    others = [
        make(tmp_path / "elsewhere" / "another name", sources=("there", "and there")),
        make(tmp_path / "test", split="test"),
    ]
    monkeypatch.setattr(shards, "SHARD_RECORDS", 4)
    others.append(make(tmp_path / "in shards"))
    others.append(stores.Store(shutil.copytree(original.path, tmp_path / "copy")))
    for file in others[-1].path.iterdir():
        os.utime(file, (1, 1))
    others.append(stores.Store(others[-1].path))
    pairs = np.array([0, 0]), np.array([1, 2])
    table = stores.Pairs(*pairs, np.array([True, False]), np.array([0, 1]), np.array([0, 0]), np.array([0, 1]))
    stores.write_pairs(tmp_path / "copy", "mine", table)
    others.append(stores.Store(tmp_path / "copy"))
    assert {other.data_hash for other in others} == {original.data_hash}


def test_a_store_whose_index_is_of_other_labels_or_sources_does_not_open(original, tmp_path):
    for name, change in (("labels", lambda x: x[::-1]), ("sources", lambda x: np.roll(x, 1))):
        path = shutil.copytree(original.path, tmp_path / name)
        with np.load(path / "index.npz") as arrays:
            parts = dict(arrays)
        parts[name] = change(parts[name])
        np.savez_compressed(path / "index.npz", **parts)
        with pytest.raises(ValueError, match=r"index\.npz: missing or changed since writing"):
            stores.Store(path)


PAIR_LINES = {
    "an image": ("\n0,1,1,0\n", "\n1,0,1,0\n"),
    "same": ("\n0,2,0,1\n", "\n0,2,1,1\n"),
    "order": ("\n0,1,1,0\n2,4,0,0\n", "\n2,4,0,0\n0,1,1,0\n"),
    "one less": ("\n2,4,0,0\n", "\n"),
    "one twice": ("\n2,4,0,0\n", "\n2,4,0,0\n2,4,0,0\n"),
    "a fold's end": ("\n2,4,0,0\n", "\n2,4,0,1\n"),
}


def with_pairs(path: Path) -> stores.Store:
    made = make(path, split="test")
    a, b, fold = np.array([0, 2, 2, 0]), np.array([1, 4, 3, 2]), np.array([0, 0, 1, 1])
    table = stores.Pairs(a, b, made.labels[a] == made.labels[b], fold, made.labels[a], made.labels[b])
    stores.write_pairs(path, "mine", table)
    return stores.Store(path, "test")


@pytest.mark.parametrize("change", PAIR_LINES)
def test_other_pairs_than_the_manifest_knows_are_refused(tmp_path, change):
    file = with_pairs(tmp_path / "s").path / "pairs_mine.csv"
    old, new = PAIR_LINES[change]
    assert file.read_text().count(old) == 1
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=r"pairs_mine\.csv: missing or changed since writing"):
        stores.read_pairs(tmp_path / "s", "mine")


def test_processes_compare_records_and_pairs_of_every_benchmark_and_of_the_validation_data(tmp_path):
    """Several processes must agree on a task's hashes before they compute anything together."""

    def check(config) -> dict[str, str]:
        task = tasks.get(config.task)(typed(config), tmp_path)
        return {**task.data_hashes(), "val_data_hash": task.validation_hash()}

    config = base()
    config.eval.benchmarks.some = benchmark(str(with_pairs(tmp_path / "a").path), "mine")
    config.data.val = str(synthetic.write(tmp_path / "val", range(12), 4, 0, split="val").path)
    config.data.val_pairs = 20
    before = check(config)
    assert set(before) == {"data of some", "pairs of some", "val_data_hash"}

    other = with_pairs(tmp_path / "b")
    (other.path / "pairs_mine.csv").unlink()
    manifest = json.loads((other.path / "manifest.json").read_text())
    manifest["benchmarks"] = {}
    (other.path / "manifest.json").write_text(json.dumps(manifest))
    a, b, fold = np.array([0, 2]), np.array([1, 5]), np.array([0, 0])
    labels = other.labels
    stores.write_pairs(other.path, "mine", stores.Pairs(a, b, labels[a] == labels[b], fold, labels[a], labels[b]))
    config.eval.benchmarks.some.store = str(other.path)
    after = check(config)
    assert [key for key in before if before[key] != after[key]] == ["pairs of some"]

    config.data.val = str(synthetic.write(tmp_path / "val2", range(12), 4, 1, split="val").path)
    last = check(config)
    assert [key for key in after if after[key] != last[key]] == ["val_data_hash"]


# ---- synthetic sets, which are found by their name


SYNTHETIC = {
    "identities": 30,
    "images": 3,
    "test_identities": 25,
    "test_images": 4,
    "test_pairs": 60,
    "difficulty": 2.0,
    "seed": 1,
}
OF_THE_TRAINING_SET = {"identities", "images", "difficulty", "seed"}


def drawing():
    config = base()
    config.data.synthetic.update({"identities": 8, "images": 2, "test_identities": 20, "test_images": 2})
    config.data.synthetic.test_pairs = 20
    return config


@pytest.mark.parametrize("key", SYNTHETIC)
def test_the_name_of_a_synthetic_set_holds_what_it_was_drawn_with(tmp_path, key):
    config = drawing()
    before = {split: synthetic_store(config.data.synthetic, tmp_path, split) for split in ("train", "test")}
    config.data.synthetic[key] = SYNTHETIC[key]
    after = {split: synthetic_store(config.data.synthetic, tmp_path, split) for split in ("train", "test")}
    changed = {split for split in before if before[split] != after[split]}
    # the people of the test set are numbered after the training people, whatever the number of their images
    assert changed >= ({"train"} if key in OF_THE_TRAINING_SET else {"test"})
    assert changed >= ({"test"} if key != "images" else set())


def test_every_key_about_synthetic_sets_is_in_a_name():
    assert set(drawing().data.synthetic) == {*SYNTHETIC, "dir"}


def test_names_of_synthetic_sets_cannot_be_mistaken_for_each_other(tmp_path):
    names = set()
    for identities, images_each in ((1, 12), (11, 2), (2, 11), (12, 1)):
        config = drawing()
        config.data.synthetic.update({"identities": identities, "images": images_each})
        names |= {synthetic_store(config.data.synthetic, tmp_path, split) for split in ("train", "test")}
    assert len(names) == 8


def open_store(config, workdir: Path) -> stores.Store:
    store = tasks.get(config.task)(typed(config), workdir).open_store()
    assert store
    return store


@pytest.mark.parametrize("key", ["difficulty", "seed", "identities"])
def test_a_run_with_other_faces_in_a_shared_folder_draws_them(tmp_path, monkeypatch, key):
    """With the faces of another config, a run could be tested on people on whom it trained."""
    drawn = []
    real = synthetic.write
    monkeypatch.setattr(synthetic, "write", lambda path, *a, **b: drawn.append(path) or real(path, *a, **b))
    config = drawing()
    config.data.synthetic.dir = str(tmp_path)
    first = open_store(config, tmp_path / "one")
    assert len(drawn) == 2
    again = open_store(config, tmp_path / "two")
    assert len(drawn) == 2, "the same sets are drawn once"
    assert first.data_hash == again.data_hash
    config.data.synthetic[key] = {"difficulty": 0.5, "seed": 7, "identities": 10}[key]
    other = open_store(config, tmp_path / "three")
    assert len(drawn) == 4
    assert other.data_hash != first.data_hash
    test = stores.Store(synthetic_store(config.data.synthetic, tmp_path, "test"), "test")
    assert not set(other.identities) & set(test.identities)
    assert (len(other), len(test)) == (2 * config.data.synthetic.identities, 40)
    c = config.data.synthetic
    assert np.abs(other.image(3).astype(int) - synthetic.face(1, 1, c.seed, c.difficulty)).mean() < 6
    assert np.abs(test.image(2).astype(int) - synthetic.face(c.identities + 1, 0, c.seed, c.difficulty)).mean() < 6


# ---- a conversion that was killed continues from finished shards only with the same source and options


def harm_labels(tmp_path: Path) -> None:
    """Write another label with the same number of bytes and the same modification time."""
    rec = tmp_path / "src/train.rec"
    stat, data = rec.stat(), bytearray(rec.read_bytes())
    at = data.index(struct.pack("<f", 1.0), 8)
    data[at : at + 4] = struct.pack("<f", 5.0)
    rec.write_bytes(data)
    os.utime(rec, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def rename(tmp_path: Path) -> None:
    """Rename the records' source, which is the .rec's name and a number."""
    for end in ("rec", "idx"):
        (tmp_path / f"src/train.{end}").rename(tmp_path / f"src/other.{end}")


@pytest.mark.parametrize("what", ["labels", "name", "longer", "shard_records", "format"])
def test_finished_shards_of_another_source_or_version_are_not_taken(tmp_path, capsys, monkeypatch, what):
    monkeypatch.setattr(shards, "SHARD_RECORDS", 3)
    people = [JPEGS[:3], JPEGS[3:6], JPEGS[:2]]
    records = [(key, payload) for key, payload in insightface(people) if key < 9 and key > 0]
    write_rec(tmp_path / "src", records)
    work = interrupted(tmp_path, capsys, monkeypatch, 1)
    src = tmp_path / "src"
    if what == "labels":
        harm_labels(tmp_path)
    elif what == "name":
        rename(tmp_path)
        src = tmp_path / "src/other.rec"
    elif what == "longer":
        stat = (src / "train.rec").stat()
        with open(src / "train.rec", "ab") as file:
            file.write(bytes(4))
        os.utime(src / "train.rec", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        (src / "train.idx").unlink()
    elif what == "shard_records":
        monkeypatch.setattr(shards, "SHARD_RECORDS", 4)
    else:
        monkeypatch.setattr(manifest, "FORMAT", 3)
    message = f"{work}: left by a conversion of another source, other options or another version; remove it"
    fails(capsys, tmp_path / "s", message, "recordio", f"--src={src}", "--workers=1")


# ---- pretrained weights


@pytest.fixture
def weights(tmp_path) -> Path:
    """Return the tiny InternVL2 as two shards with an index, and the other files of such directories."""
    path = tmp_path / "base"
    path.mkdir()
    tensors = load_file(TINY / "model.safetensors")
    names = sorted(tensors)
    half = len(names) // 2
    shards = {"model-00001-of-00002.safetensors": names[:half], "model-00002-of-00002.safetensors": names[half:]}
    for file, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, path / file)
    where = {key: file for file, keys in shards.items() for key in keys}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    shutil.copy(TINY / "config.json", path)
    (path / "README.md").write_text("about it")
    return path


def one_bit(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def exchange(path: Path) -> None:
    one, two = sorted(path.glob("*.safetensors"))
    one.rename(path / "x")
    two.rename(one)
    (path / "x").rename(two)


OTHER_BASES: dict[str, Callable[[Path], object]] = {
    "the first shard's last bit": lambda path: one_bit(path / "model-00001-of-00002.safetensors", -1),
    "the last shard's last bit": lambda path: one_bit(path / "model-00002-of-00002.safetensors", -1),
    "a shard's header": lambda path: one_bit(path / "model-00002-of-00002.safetensors", 30),
    "config.json": lambda path: (path / "config.json").write_text(
        (path / "config.json").read_text().replace('"downsample_ratio": 0.5', '"downsample_ratio": 0.25')
    ),
    "a shard less": lambda path: (path / "model-00002-of-00002.safetensors").unlink(),
    "a shard more": lambda path: (path / "model-00003.safetensors").write_bytes(b"x"),
    "no config.json": lambda path: (path / "config.json").unlink(),
    "names of the shards exchanged": exchange,
    "the name of a shard": lambda path: (path / "model-00002-of-00002.safetensors").rename(path / "z.safetensors"),
}


@pytest.mark.parametrize("change", OTHER_BASES)
def test_another_base_has_another_hash(weights, change):
    before = {file.name: file.read_bytes() for file in weights.iterdir()}
    hash_before = checkpoint.base_hash(weights)
    OTHER_BASES[change](weights)
    assert {file.name: file.read_bytes() for file in weights.iterdir()} != before
    assert checkpoint.base_hash(weights) != hash_before


def test_the_hash_of_a_base_is_of_its_files_alone(weights, tmp_path, monkeypatch):
    want = checkpoint.base_hash(weights)
    copy = tmp_path / "under" / "another name"
    shutil.copytree(weights, copy)
    for file in copy.iterdir():
        os.utime(file, (1, 1))
    (copy / "README.md").write_text("something else")
    assert checkpoint.base_hash(copy) == want
    real = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(real(path), reverse=True)))
    assert checkpoint.base_hash(copy) == want
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(real(path))))
    assert checkpoint.base_hash(str(copy)) == want


def test_a_base_of_parts_says_which_weights_are_which_part(weights, tmp_path):
    other = shutil.copytree(weights, tmp_path / "other")
    one_bit(other / "model-00001-of-00002.safetensors", -1)

    def of(**parts) -> str:
        config = base()
        for part, path in parts.items():
            config.init_parts[part] = str(path)
        return pretrained_hash(config.init_from, dict(config.init_parts))

    found = [
        of(vision=weights),
        of(decoder=weights),
        of(vision=weights, decoder=weights),
        of(vision=weights, decoder=other),
        of(vision=other, decoder=weights),
    ]
    assert len(set(found)) == 5
    assert of(decoder=other, vision=weights) == found[3], "the order in which a config names them does not matter"
    assert found[0] == f"vision:{checkpoint.base_hash(weights)}"
    assert pretrained_hash("", {}) == ""
    assert pretrained_hash(str(weights), {}) == checkpoint.base_hash(weights)


class Changed:
    """A checkpoint whose tensor has other contents."""

    def __init__(self, tensor, change):
        self.value = change(tensor[:])
        self.shape, self.dtype, self.path = self.value.shape, self.value.dtype, tensor.path

    def __getitem__(self, index):
        return self.value[index]


def last_bit(x: np.ndarray) -> np.ndarray:
    raw = bytearray(np.ascontiguousarray(x).tobytes())
    raw[-1] ^= 1
    return np.frombuffer(bytes(raw), x.dtype).reshape(x.shape)


def test_adapters_know_every_tensor_of_their_base_by_part():
    """`fvjax.export` writes these hashes into the adapters' file, so that they are not loaded onto other weights."""
    ckpt = open_checkpoint(TINY, "vlm")
    want = hashes(ckpt)
    assert set(want) == {"vision", "projector", "decoder"}
    needed = {key for source in ckpt.sources.values() for key in source.keys}
    for key in sorted(needed):
        real, part = ckpt.tensors[key], {"v": "vision", "m": "projector", "l": "decoder"}[key[0]]
        ckpt.tensors[key] = Changed(real, last_bit)
        found = hashes(ckpt)
        assert {name for name in want if found[name] != want[name]} == {part}, key
        ckpt.tensors[key] = real
    assert hashes(ckpt) == want
    key = next(key for key in sorted(needed) if ckpt.tensors[key][:].dtype == np.float32 and key[0] == "v")
    real = ckpt.tensors[key]
    for change in (lambda x: x.view(np.int32), lambda x: x.reshape(1, *x.shape)):  # another type or shape, same bits
        ckpt.tensors[key] = Changed(real, change)
        assert hashes(ckpt)["vision"] != want["vision"]


# ---- checkpoints


TREE = {
    "trainable": {"a": jnp.arange(6.0).reshape(2, 3) + 1, "b": {"c": jnp.arange(4.0)}},
    "opt": [jnp.full((2, 2), 0.5), jnp.asarray(7)],
}


def with_leaf(path: str, value) -> dict:
    tree = {"trainable": {"a": TREE["trainable"]["a"], "b": dict(TREE["trainable"]["b"])}, "opt": list(TREE["opt"])}
    *parents, last = path.split("/")
    node = tree
    for part in parents:
        node = node[part]
    node[int(last) if last.isdecimal() else last] = value
    return tree


A, C = TREE["trainable"]["a"], TREE["trainable"]["b"]["c"]
PLACES = list(np.ndindex(2, 3))
OTHER_TREES = {
    **{f"value {i}": with_leaf("trainable/a", A.at[at].set(jnp.nextafter(A[at], 99.0))) for i, at in enumerate(PLACES)},
    "sign of zero": with_leaf("trainable/b/c", C.at[0].set(-0.0)),
    "a scalar": with_leaf("opt/1", jnp.asarray(8)),
    "two values exchanged": with_leaf("trainable/b/c", C[jnp.array([0, 2, 1, 3])]),
    "all values turned round": with_leaf("trainable/a", A[::-1, ::-1]),
    "shape": with_leaf("trainable/a", A.reshape(3, 2)),
    "one more dimension": with_leaf("trainable/b/c", C[None]),
    "a scalar as a vector": with_leaf("opt/1", jnp.asarray([7])),
    "dtype with the same bits": with_leaf("trainable/a", jax.lax.bitcast_convert_type(A, jnp.int32)),
    "dtype with the same values": with_leaf("trainable/b/c", C.astype(jnp.bfloat16)),
    "float16 for bfloat16": with_leaf("trainable/b/c", C.astype(jnp.float16)),
    "name": {**TREE, "trainable": {"A": A, "b": {"c": C}}},
    "name of a branch": {**TREE, "trainable": {"a": A, "B": {"c": C}}},
    "one less": {**TREE, "opt": TREE["opt"][:1]},
    "one more": {**TREE, "extra": jnp.zeros(3)},
    "two arrays exchanged": {**TREE, "opt": [TREE["opt"][1], TREE["opt"][0]]},
    "another place in the tree": {"trainable": TREE["trainable"], "stats": TREE["opt"]},
}


def test_every_other_state_has_another_hash():
    """Each case is one way in which a restored state could differ from the saved one."""
    found = {name: checkpoint.digest(tree) for name, tree in OTHER_TREES.items()}
    want = checkpoint.digest(TREE)
    assert all(len(value) == 16 for value in found.values())
    assert [name for name, value in found.items() if value == want] == []
    assert len(set(found.values())) == len(found), "and they differ from each other"


def test_the_same_state_has_the_same_hash_in_whatever_order_it_is_named():
    other = {"opt": list(TREE["opt"]), "trainable": {"b": {"c": C + 0}, "a": A + 0}}
    assert checkpoint.digest(other) == checkpoint.digest(TREE)
    assert checkpoint.digest(jax.tree.map(np.asarray, TREE)) == checkpoint.digest(TREE)


def test_the_hash_of_a_state_is_that_of_yesterday():
    """Checkpoints contain hashes from earlier versions; another algorithm would report them as damaged."""
    tree = {"w": jnp.arange(12, dtype=jnp.float32).reshape(3, 4), "n": jnp.asarray(3, jnp.int32)}
    assert checkpoint.digest(tree) == "b08e2a322f1e272e"
    assert checkpoint.digest({"h": jnp.arange(5).astype(jnp.bfloat16)}) == "945c1e6ee50fe61f"


# ---- configs and code


def another(value):
    """Return another legal value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, tuple):
        return (*value, ("x", "y"))
    return f"{value}x" if isinstance(value, str) else 0.5  # None: a placeholder of a float


def test_the_config_hash_holds_every_key_that_decides_what_is_computed():
    want = typed(base()).hash()
    for key, value in typed(base()).flat().items():
        config = base()
        config.update_from_flattened_dict({key: another(value)})
        of_the_run = any(f"{key}.".startswith(f"{start}.") for start in MAY_CHANGE)
        assert (typed(config).hash() == want) == of_the_run, key
    rates, parts, plugin = base(), base(), base()  # sections whose keys are chosen by the experiment
    rates.optimizer.lr_scale.lora, parts.init_parts.vision, plugin.plugin.size = 2.0, "x", 3
    assert len({want, *(typed(config).hash() for config in (rates, parts, plugin))}) == 4


def package(root: Path) -> Path:
    for name, text in (("__init__", "a = 1\n"), ("data/store", "b = 2\n"), ("data/__init__", "")):
        (root / "fvjax" / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (root / "fvjax" / f"{name}.py").write_text(text)
    (root / "weights_convert").mkdir()
    (root / "weights_convert" / "read.py").write_text("c = 3\n")
    return root


OTHER_CODE: dict[str, Callable[[Path], object]] = {
    "a file at the top": lambda root: (root / "fvjax/__init__.py").write_text("a = 2\n"),
    "a file in a folder": lambda root: (root / "fvjax/data/store.py").write_text("b = 3\n"),
    "the converter": lambda root: (root / "weights_convert/read.py").write_text("c = 4\n"),
    "a file's name": lambda root: (root / "fvjax/data/store.py").rename(root / "fvjax/data/stores.py"),
    "a file's folder": lambda root: (root / "fvjax/data/store.py").rename(root / "fvjax/store.py"),
    "a file more": lambda root: (root / "fvjax/data/new.py").write_text(""),
    "a file less": lambda root: (root / "fvjax/data/__init__.py").unlink(),
}


@pytest.mark.parametrize("change", OTHER_CODE)
def test_other_code_has_another_version(tmp_path, monkeypatch, change):
    root = package(tmp_path / "a")
    monkeypatch.setattr(fvjax, "__file__", str(root / "fvjax/__init__.py"))
    before = fvjax.code_version()
    OTHER_CODE[change](root)
    assert fvjax.code_version() != before
    assert fvjax.code_version().startswith(f"{fvjax.__version__}+")


def test_the_version_of_the_code_is_of_the_code_alone(tmp_path, monkeypatch):
    root = package(tmp_path / "a")
    monkeypatch.setattr(fvjax, "__file__", str(root / "fvjax/__init__.py"))
    want = fvjax.code_version()
    copy = shutil.copytree(root, tmp_path / "another name")
    (copy / "fvjax/__pycache__").mkdir()
    (copy / "fvjax/__pycache__/store.cpython-311.pyc").write_bytes(b"x")
    (copy / "README.md").write_text("x")
    for file in copy.rglob("*.py"):
        os.utime(file, (1, 1))
    monkeypatch.setattr(fvjax, "__file__", str(copy / "fvjax/__init__.py"))
    assert fvjax.code_version() == want
    real = Path.glob
    for backwards in (False, True):
        monkeypatch.setattr(Path, "glob", lambda p, x, b=backwards: iter(sorted(real(p, x), reverse=b)))
        assert fvjax.code_version() == want
