"""Test that a run resumes only with the same weights, faces and adapters; otherwise it names the difference.

A small run with adapters on its own tower is repeated with the same command after one thing has changed.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax import checks, trees
from fvjax.config import base, typed
from fvjax.data import images, stores
from fvjax.data.stores import shards
from fvjax.models import encoder
from fvjax.training.checkpoint import Checkpoints, Unreadable, best
from tests.test_bad_input import Commands, small, snapshot
from tests.test_images import smooth_face
from weights_convert import internvit
from weights_convert.write import write_original

TOWER = {
    "architectures": ["InternVisionModel"],
    "model_type": "intern_vit_6b",
    "hidden_size": 16,
    "image_size": 28,
    "intermediate_size": 32,
    "layer_norm_eps": 1e-6,
    "norm_type": "layer_norm",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "patch_size": 14,
    "qk_normalization": False,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "drop_path_rate": 0.0,
}


def faces(path: Path, split: str, first: int) -> None:
    """Write a store of eight people with four images each; another `first` makes other images."""
    records = [(images.encode(smooth_face(first + i), 60), f"{i // 4}", f"{i}.jpg") for i in range(32)]
    stores.write(path, records, split=split, sources=["here"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Callable]:
    """Return a folder with `tower`, `train`, `val` and the finished `run` on them, and a function for its config.

    The run has validation and no benchmark, so there is nothing to plot.
    """
    root = tmp_path_factory.mktemp("resume")
    tower = encoder.build("vision_transformer", internvit.model_config(TOWER, "TOWER"), "mean")
    params = tower.init(jax.random.key(0))["params"]
    arrays = {f"params/{name}": np.asarray(x) for name, x in trees.flatten(params).items()}
    write_original(root / "tower", arrays, TOWER)
    faces(root / "train", "train", 0)
    faces(root / "val", "val", 100)

    def config(**changes):
        adapters = {"lora.rank": 2, "lora.alpha": 4.0, "lora.targets": ("blocks/mlp/fc[12]",), "lora.count": 2}
        groups = {"trainable": (("lora/.*", "adapter"), (".*", "frozen"))}
        val = {"data.val": str(root / "val"), "data.val_pairs": 20, "eval.every_epochs": 1}
        where = {"init_from": str(root / "tower"), "epochs": 1, "log.tensorboard": False}
        return small(root / "train", **(adapters | groups | val | where | changes))

    with pytest.MonkeyPatch.context() as monkeypatch:
        assert Commands(monkeypatch, None).main(config(), root / "run") == 0
    return root, config


@pytest.fixture
def again(trained, tmp_path):
    """Return the folder, and restore its files afterwards."""
    root, config = trained
    for part in ("tower", "train", "val", "run"):
        shutil.copytree(root / part, tmp_path / part)
    yield root, config
    for part in ("tower", "train", "val", "run"):
        shutil.rmtree(root / part)
        shutil.copytree(tmp_path / part, root / part)


def last_bit(root: Path) -> None:
    file = root / "tower/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def other_words(root: Path) -> None:
    """Change a key that has no effect. The program cannot know that of every key."""
    file = root / "tower/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "transformers_version": "x"}))


def other_val(root: Path) -> None:
    shutil.rmtree(root / "val")
    faces(root / "val", "val", 500)


def other_order(root: Path) -> None:
    """Write the same pictures of the same people in another order."""
    old = stores.Store(root / "train")
    records = [(old.jpeg(i), old.identities[old.labels[i]], old.sources[i]) for i in (1, 0, *range(2, 32))]
    shutil.rmtree(root / "train")
    stores.write(root / "train", records, split="train", sources=["here"])


CHANGES = {
    "a bit of the base": (last_bit, "eval", "base_hash"),  # and it is not evaluated
    "the base's config.json": (other_words, "train", "base_hash"),
    "the order of the faces trained on": (other_order, "train", "train_data_hash"),
    "the faces validated on": (other_val, "train", "val_data_hash"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_on_something_else_is_refused_by_the_name_of_what_it_is(again, monkeypatch, capsys, change):
    (root, config), (harm, mode, key) = again, CHANGES[change]
    harm(root)
    kept = snapshot(root / "run")
    told = Commands(monkeypatch, capsys).refuses("main", config(), root / "run", mode)
    assert f"{root}/run/checkpoints/2: {key} is '" in told
    assert "choose another --workdir" in told
    assert snapshot(root / "run") == kept, "nothing of the run has changed"


def test_the_same_in_another_place_goes_on(again, monkeypatch, capsys):
    """Stores that were moved, with other file times and other shards, count as the same."""
    root, config = again
    moved = root / "moved"
    moved.mkdir()
    old = stores.Store(root / "train")
    with monkeypatch.context() as patch:
        patch.setattr(shards, "SHARD_RECORDS", 10)
        records = [(old.jpeg(i), old.identities[old.labels[i]], old.sources[i]) for i in range(32)]
        stores.write(moved / "train", records, split="train", sources=["elsewhere"])
    shutil.copytree(root / "val", moved / "val")
    for file in (*moved.rglob("*"), *(root / "tower").iterdir()):
        os.utime(file, (1, 1))
    changed = config(**{"data.train": str(moved / "train"), "data.val": str(moved / "val")})
    assert Commands(monkeypatch, capsys).main(changed, root / "run") == 0
    assert f"Restored step 2 of {root}/run" in " ".join(capsys.readouterr().out.split())
    shutil.rmtree(moved)


def test_a_checkpoint_knows_what_it_is_of(trained):
    root, config = trained
    checkpoints = Checkpoints(root / "run", config().checkpoint, read_only=True)
    meta = checkpoints.meta(2)
    checkpoints.close()
    assert set(meta) == {"base_hash", "train_data_hash", "val_data_hash", "plan", "seconds", "hashes"}
    assert meta["train_data_hash"] == stores.Store(root / "train").data_hash
    assert meta["val_data_hash"] == stores.Store(root / "val", "val").data_hash
    assert meta["plan"] == [0, 8], "the seed and the pairs of a step, 16 images"
    assert set(meta["hashes"]) == {"trainable", "stats", "opt", "step"}
    results = json.loads((root / "run/results.json").read_text())
    assert (results["base_hash"], results["train_data_hash"]) == (meta["base_hash"], meta["train_data_hash"])


KEYS = {
    "data.synthetic.difficulty": 2.0,
    "data.synthetic.seed": 1,
    "data.synthetic.identities": 13,
    "data.synthetic.images": 5,
    "data.synthetic.test_identities": 21,
    "data.synthetic.test_images": 5,
    "data.synthetic.test_pairs": 60,
    "lora.rank": 3,
    "lora.alpha": 5.0,
    "lora.targets": ("blocks/mlp/fc1",),
    "lora.count": 1,
    "init_from": "elsewhere",
    "base_dtype": "float16",
    "base_kernels": "int8",
    "seed": 1,
    "batch_size": 8,
    "model.vision_transformer.depth": 2,
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_workdir_of_another_config_names_the_key(trained, tmp_path, key, mode):
    _, config = trained
    (tmp_path / "config.json").write_text(typed(config()).to_json())
    checks.check_workdir(typed(config()).to_json(), tmp_path, mode == "eval")
    changed = config(**{key: KEYS[key]})
    with pytest.raises(
        ValueError, match=rf"{tmp_path} is of another config \({key}: .* there, .* now\); choose another"
    ):
        checks.check_workdir(typed(changed).to_json(), tmp_path, mode == "eval")


# ---- single checkpoints


def state(value=1.0) -> dict:
    return {
        "trainable": {"a": jnp.full((4, 3), value), "b": jnp.arange(5.0)},
        "stats": {"mean": jnp.zeros(3)},
        "opt": {"m": jnp.full((4, 3), value / 2)},
        "step": jnp.asarray(3),
    }


def abstract(tree: dict) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@pytest.fixture
def saved(tmp_path) -> Path:
    checkpoints = Checkpoints(tmp_path, base().checkpoint)
    checkpoints.save(3, state(), {"base_hash": "b", "prompt_ids": [[1, 2], []], "val_data_hash": "v"})
    checkpoints.close()
    return tmp_path


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"base_hash": "c"}, "base_hash is 'b', this run has 'c'"),
        ({"base_hash": ""}, "base_hash is 'b', this run has ''"),
        ({"prompt_ids": [[2, 1], []]}, r"prompt_ids is \[\[1, 2\], \[\]\], this run has \[\[2, 1\], \[\]\]"),
        ({"val_data_hash": "w"}, "val_data_hash is 'v', this run has 'w'"),
        ({"train_data_hash": "x"}, "train_data_hash is None, this run has 'x'"),
        ({"base_hash": "b", "prompt_ids": [[1, 2], []], "val_data_hash": "v"}, None),
        ({}, None),
    ],
)
def test_each_fact_of_a_checkpoint_is_compared(saved, meta, message):
    checkpoints = Checkpoints(saved, base().checkpoint)
    if message:
        with pytest.raises(ValueError, match=f"checkpoints/3: {message}; choose another --workdir"):
            checkpoints.restore(3, abstract(state()), meta)
    else:
        assert checkpoints.restore(3, abstract(state()), meta)["step"] == 3
    checkpoints.close()


def test_a_checkpoint_without_a_fact_that_this_run_has_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, base().checkpoint)
    checkpoints.save(3, state(), {"base_hash": "b"})
    checkpoints.wait()
    assert checkpoints.restore(3, abstract(state()), {"base_hash": "b"})["step"] == 3
    with pytest.raises(ValueError, match="3: val_data_hash is None, this run has 'v'; choose another --workdir"):
        checkpoints.restore(3, abstract(state()), {"base_hash": "b", "val_data_hash": "v"})
    checkpoints.close()


@pytest.mark.parametrize("part", ["trainable", "stats", "opt", "step"])
def test_every_part_of_a_state_is_compared_with_its_own_hash(saved, part):
    """The disk may return other bits that can still be read."""
    file = saved / "checkpoints/3/meta/metadata"
    meta = json.loads(file.read_text())
    meta["hashes"][part] = "0" * 16
    file.write_text(json.dumps(meta))
    checkpoints = Checkpoints(saved, base().checkpoint)
    with pytest.raises(Unreadable, match=rf"checkpoints/3 is damaged \({part} has hash \w{{16}}, not 0{{16}}\)"):
        checkpoints.restore(3, abstract(state()), {})
    checkpoints.close()


@pytest.mark.parametrize(
    ("steps", "accuracies", "want"),
    [
        ([1, 2, 3], {1: 0.5, 2: 0.6, 3: 0.5}, 2),
        ([1, 2, 3], {1: 0.6, 2: 0.6, 3: 0.5}, 2),
        ([3, 1, 2], {1: 0.6, 2: 0.5}, 1),
        ([1, 2, 3], {3: 0.0}, 3),
        ([1, 2, 3], {1: 0.0}, 1),
        ([2, 3], {1: 0.9}, 3),
        ([10, 9], {}, 10),
        ([], {1: 0.5}, None),
    ],
)
def test_the_best_checkpoint_is_the_newest_of_equals_and_of_those_that_are_there(steps, accuracies, want):
    assert best(steps, accuracies) == want
