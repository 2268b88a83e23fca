"""Test checkpoints of InternVL3: the presets, and the remote-code and -hf layouts of the same weights."""

import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fvjax import trees
from fvjax.models import encoder, lora, presets
from tests.reference.recipe import GOLDEN
from tests.test_checkpoint_options import CHAT
from tests.test_convert import shard, spoil
from weights_convert import internvl, open_checkpoint
from weights_convert.read import hashes
from weights_convert.write import convert, invert

TINY = GOLDEN / "internvl3_tiny"
QKV = "params/vision/blocks/attn/qkv/kernel"
SPELLINGS = {  # published prefix -> another
    "on disk": {},
    "in memory": {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    },
    "without its wrapper": {"language_model.model.": "language_model.", "language_model.lm_head.": "lm_head."},
    "in an outer model": {
        "language_model.": "model.language_model.",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    },
}


def respell(tensors: dict, prefixes: dict[str, str]) -> dict:
    """Return tensors with other prefixes of their keys."""

    def key(old):
        prefix = next((p for p in prefixes if old.startswith(p)), "")
        return prefixes.get(prefix, "") + old.removeprefix(prefix)

    return {key(old): value for old, value in tensors.items()}


@pytest.fixture
def hf(tmp_path):
    """Return a function (spelling) -> copy of the -hf checkpoint with that spelling, which a test may change."""

    def copy(spelling: str = "on disk") -> Path:
        directory = shutil.copytree(TINY / "hf", tmp_path / spelling.replace(" ", "_"))
        tensors = load_file(directory / "model.safetensors")
        save_file(respell(tensors, SPELLINGS[spelling]), directory / "model.safetensors")
        return directory

    return copy


def contents(ckpt) -> dict[str, tuple]:
    return {n: (leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for n, leaf in ckpt.params.items()}


# presets


@pytest.mark.parametrize(
    ("size", "parameters", "adapters"),
    [
        ("1b", 938_193_024, 8_798_208),
        ("2b", 2_088_957_440, 18_464_768),
        ("8b", 7_944_373_760, 40_370_176),
        ("14b", 15_117_256_704, 68_812_800),
        ("38b", 38_388_164_992, 134_217_728),
    ],
)
def test_parameter_counts(size, parameters, adapters):
    """Count each size and its rank-16 adapters on the decoder, as FaceLLM trains them, without computing anything."""
    model = encoder.build_vlm(getattr(presets, f"internvl3_{size}")())
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 448, 448, 3))))
    params = trees.flatten(shapes["params"])
    assert sum(leaf.size for leaf in params.values()) == parameters
    targets = ("decoder/blocks/attn/[qkvo]", "decoder/blocks/mlp/(gate|up|down)")
    made = jax.eval_shape(lambda key: lora.init(params, targets, 16, 7 * model.decoder.depth, key), jax.random.key(0))
    assert sum(leaf.size for leaf in made.values()) == adapters


def test_the_preset_is_the_published_internvl3_1b():
    read = internvl.model_config(CHAT, "config.json")
    assert read["vision"].pop("drop_path") == 0.1  # of pretraining; a network without a checkpoint has none
    assert encoder.build_vlm(presets.internvl3_1b()) == encoder.build_vlm(read)


# reading


@pytest.mark.parametrize("kind", ["vlm", "vision_transformer"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_the_remote_layouts_model(hf, spelling, kind):
    theirs, ours = open_checkpoint(TINY / "remote", kind), open_checkpoint(hf(spelling), kind)
    assert ours.model_config == theirs.model_config
    assert contents(ours) == contents(theirs)
    assert hashes(ours) == hashes(theirs), "adapters fit the base in either layout"
    assert (ours.ignored == []) == (kind == "vlm")


def test_q_k_and_v_become_one_array_layer_by_layer(hf):
    directory = hf()
    shard(directory)
    ckpt, tensors = open_checkpoint(directory, "vlm"), load_file(TINY / "hf/model.safetensors")
    names = [f"vision_tower.encoder.layer.1.attention.{x}_proj" for x in "qkv"]
    kernel = np.concatenate([tensors[f"{name}.weight"] for name in names]).T
    bias = np.concatenate([tensors[f"{name}.bias"] for name in names])
    leaf, biases = ckpt.params[QKV], ckpt.params[QKV.replace("kernel", "bias")]
    assert (leaf.shape, biases.shape) == ((2, 64, 192), (2, 192))
    for index in (1, -1, (1, slice(3, 9)), (slice(1, None),), (slice(None), slice(0, 2), slice(100, 150))):
        np.testing.assert_array_equal(leaf[index], np.asarray(leaf)[index])
    np.testing.assert_array_equal(leaf[1], kernel)
    np.testing.assert_array_equal(leaf[(slice(1, 2), slice(None), slice(60, 70))], kernel[None, :, 60:70])
    np.testing.assert_array_equal(biases[1], bias)
    np.testing.assert_array_equal(biases[(slice(None), slice(63, 130))][1], bias[63:130])


@pytest.mark.parametrize("layers", [[], [1]])
def test_one_layer_of_q_k_and_v_is_read_at_a_time(monkeypatch, layers):
    """Indexing one layer reads that layer's three tensors and no others."""
    ckpt = open_checkpoint(TINY / "hf", "vlm")
    asked = []
    leaf = ckpt.params[QKV]
    for tensor in leaf._tensors:
        original = tensor._slice
        monkeypatch.setattr(tensor, "_slice", Counted(original, asked, tensor.key))
    for layer in layers:
        leaf[layer]
    assert asked == [f"vision_tower.encoder.layer.{i}.attention.{x}_proj.weight" for i in layers for x in "qkv"]


class Counted:
    """A slice of a file that records which tensor is read."""

    def __init__(self, inner, asked, key):
        self.inner, self.asked, self.key = inner, asked, key

    def __getitem__(self, index):
        self.asked.append(self.key)
        return self.inner[index]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("vision_tower.encoder.layer.1.attention.k_proj.weight"), "1 missing.*attention.k_proj.weight"),
        (lambda t: t.pop("language_model.model.norm.weight"), "missing.*language_model.model.norm.weight"),
        (lambda t: t.update({"vision_tower.layernorm.weight": np.ones(64)}), "unexpected.*vision_tower.layernorm"),
        (lambda t: t.update({"model.language_model.norm.weight": np.ones(64)}), "unexpected.*model.language_model"),
        (
            lambda t: t.update({"vision_tower.encoder.layer.0.attention.q_proj.bias": np.ones(32, np.float32)}),
            r"attention.q_proj.bias.*\(32,\).*\(64,\)|attention.q_proj.bias.*\(64,\).*\(32,\)",
        ),
    ],
)
def test_a_damaged_hf_checkpoint_is_refused_by_key(hf, change, message):
    directory = hf()
    spoil(directory, change)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        open_checkpoint(directory, "vlm")


def test_a_missing_head_is_an_error_or_means_that_it_is_tied(hf):
    """config.json says false, so the file must have it; without an entry the embedding is the head."""
    directory = hf()
    spoil(directory, lambda t: t.pop("language_model.lm_head.weight"))
    with pytest.raises(ValueError, match=r"language_model\.lm_head\.weight"):
        open_checkpoint(directory, "vlm")
    config = json.loads((directory / "config.json").read_text())
    del config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]
    (directory / "config.json").write_text(json.dumps(config))
    ckpt = open_checkpoint(directory, "vlm")
    assert ckpt.model_config["decoder"]["tied"] is True
    assert "params/decoder/head" not in ckpt.params


def test_the_tie_that_newer_transformers_assumes_loses_no_head(hf):
    directory = hf("in memory")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert contents(open_checkpoint(directory, "vlm")) == contents(open_checkpoint(TINY / "remote", "vlm"))
    convert(directory, directory.parent / "ours", "vlm")
    assert "params/decoder/head" in open_checkpoint(directory.parent / "ours").params


# conversion and back


@pytest.mark.parametrize("kind", ["vlm", "vision_transformer"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_hf_round_trip_is_exact_in_the_same_spelling(hf, tmp_path, spelling, kind):
    directory = hf(spelling)
    spoil(directory, lambda t: t.update({k: v.astype(ml_dtypes.bfloat16) for k, v in t.items()}))
    before = load_file(directory / "model.safetensors")
    shard(directory)
    convert(directory, tmp_path / "ours", kind)
    assert contents(open_checkpoint(tmp_path / "ours")) == contents(open_checkpoint(directory, kind))
    assert hashes(open_checkpoint(tmp_path / "ours")) == hashes(open_checkpoint(directory, kind))
    invert(tmp_path / "ours", tmp_path / "back")
    after = load_file(tmp_path / "back/model.safetensors")
    assert set(after) == {key for key in before if kind == "vlm" or "vision_tower." in key}
    assert all((after[key].dtype, after[key].tobytes()) == (before[key].dtype, before[key].tobytes()) for key in after)
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads(
        (directory / "config.json").read_text()
    )


@pytest.mark.parametrize("spelling", ["on disk", "in memory"])
def test_the_tower_of_a_converted_hf_model(hf, tmp_path, spelling):
    directory = hf(spelling)
    convert(directory, tmp_path / "ours", "vlm")
    tower, alone = open_checkpoint(tmp_path / "ours", "vision_transformer"), open_checkpoint(directory)
    assert {n: s.keys for n, s in tower.sources.items()} == {n: s.keys for n, s in alone.sources.items()}
    assert contents(tower) == contents(alone)


def test_a_bare_hf_tower(hf, tmp_path):
    """InternVLVisionModel has the tower's keys without a prefix."""
    directory = hf()
    config = json.loads((directory / "config.json").read_text())["vision_config"]
    (directory / "config.json").write_text(json.dumps(config | {"architectures": ["InternVLVisionModel"]}))
    tensors = load_file(directory / "model.safetensors")
    tower = {k.removeprefix("vision_tower."): v for k, v in tensors.items() if k.startswith("vision_tower.")}
    save_file(tower, directory / "model.safetensors")
    assert contents(open_checkpoint(directory)) == contents(open_checkpoint(TINY / "remote", "vision_transformer"))
    convert(directory, tmp_path / "ours")
    invert(tmp_path / "ours", tmp_path / "back")
    assert set(load_file(tmp_path / "back/model.safetensors")) == set(tower)


def test_a_tower_of_the_6b_kind_has_no_biases_of_q_k_v(hf, tmp_path):
    """RMSNorm without biases, q and k normalised over all heads, no qkv bias."""
    directory = hf()
    config = json.loads((directory / "config.json").read_text())
    config["vision_config"] |= {"attention_bias": False, "use_qk_norm": True, "norm_type": "rms_norm"}
    (directory / "config.json").write_text(json.dumps(config))

    def change(tensors):
        for key in [k for k in tensors if re.search(r"layernorm_\w+\.bias|attention\.[qkv]_proj\.bias", k)]:
            del tensors[key]
        for i in (0, 1):
            for x in "qk":
                key = f"vision_tower.encoder.layer.{i}.attention.{x}_norm.weight"
                tensors[key] = np.random.default_rng(i).random(64, np.float32)

    spoil(directory, change)
    ckpt = open_checkpoint(directory, "vlm")
    assert ckpt.model_config["vision"]["norm"] == "rms"
    assert "params/vision/blocks/attn/q_norm/scale" in ckpt.params
    convert(directory, tmp_path / "ours", "vlm")
    invert(tmp_path / "ours", tmp_path / "back")
    before, after = (load_file(d / "model.safetensors") for d in (directory, tmp_path / "back"))
    assert {k: v.tobytes() for k, v in after.items()} == {k: v.tobytes() for k, v in before.items()}
