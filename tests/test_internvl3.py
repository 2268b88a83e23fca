"""Test checkpoints of InternVL3: the presets, and the remote-code and -hf layouts of the same weights."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fvjax import export, trees
from fvjax.config import base as settings
from fvjax.models import encoder, lora, presets
from tests.reference.recipe import GOLDEN
from tests.test_checkpoint_options import CHAT
from tests.test_convert import shard, spoil
from weights_convert import internvl, open_checkpoint, read_adapters, write_adapters
from weights_convert.__main__ import main
from weights_convert.read import hashes
from weights_convert.write import convert, invert, rewrite

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


def test_a_damaged_spelling_is_refused(tmp_path):
    convert(TINY / "hf", tmp_path / "ours", "vlm")
    config = json.loads((tmp_path / "ours/config.json").read_text())
    config["fvjax"]["prefix"] = "vision_tower."
    (tmp_path / "ours/config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"the fvjax prefix 'vision_tower\.' is not like .* convert the original again"
    ):
        open_checkpoint(tmp_path / "ours")


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


# the other layout


def layouts(name: str) -> tuple[dict, dict]:
    """Return the golden tensors and the config.json of a layout."""
    return load_file(TINY / name / "model.safetensors"), json.loads((TINY / name / "config.json").read_text())


def same_bits(directory: Path, tensors: dict) -> bool:
    """Return whether a directory holds exactly these tensors."""
    written = {k: v for file in directory.glob("*.safetensors") for k, v in load_file(file).items()}
    return {k: (v.dtype, v.shape, v.tobytes()) for k, v in written.items()} == {
        k: (v.dtype, v.shape, v.tobytes()) for k, v in tensors.items()
    }


def differences(one: dict, other: dict) -> set[str]:
    """Return the dotted names of the keys whose values differ."""
    out = set()
    for key in set(one) | set(other):
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            out |= {f"{key}.{name}" for name in differences(a, b)}
        elif a != b:
            out.add(key)
    return out


@pytest.mark.parametrize("via", ["original", "converted"])
@pytest.mark.parametrize(("source", "layout"), [("remote", "hf"), ("hf", "remote")])
def test_the_other_layout_is_the_golden_one(tmp_path, source, layout, via):
    src = TINY / source
    if via == "converted":
        src = tmp_path / "ours"
        convert(TINY / source, src, "vlm")
    invert(src, tmp_path / "out", layout=layout)
    tensors, config = layouts(layout)
    assert same_bits(tmp_path / "out", tensors)
    written = json.loads((tmp_path / "out/config.json").read_text())
    no_effect = {
        "initializer_range",
        "initializer_factor",
        "architectures",
        "dropout",
        "drop_path_rate",
        "use_flash_attn",
    }
    assert differences(written, config) <= {f"vision_config.{key}" for key in no_effect} | {
        *("hidden_size", "img_context_token_id", "llm_config.eos_token_id")
    }
    ckpt, golden = open_checkpoint(tmp_path / "out", "vlm"), open_checkpoint(TINY / layout, "vlm")
    assert ckpt.model_config == golden.model_config
    assert hashes(ckpt) == hashes(golden)


def test_there_and_back_is_exact(tmp_path):
    """With a drop-path rate, RMSNorm towers' keys, half precision and several shards."""
    src = shutil.copytree(TINY / "remote", tmp_path / "src")
    spoil(src, lambda t: t.update({k: v.astype(ml_dtypes.bfloat16) for k, v in t.items()}))
    tensors, config = load_file(src / "model.safetensors"), json.loads((src / "config.json").read_text())
    config["vision_config"]["drop_path_rate"] = 0.1
    (src / "config.json").write_text(json.dumps(config | {"min_dynamic_patch": 2, "max_dynamic_patch": 6}))
    shard(src)
    invert(src, tmp_path / "hf", layout="hf")
    invert(tmp_path / "hf", tmp_path / "back", layout="remote")
    assert same_bits(tmp_path / "back", tensors)
    back = json.loads((tmp_path / "back/config.json").read_text())
    assert (back["min_dynamic_patch"], back["max_dynamic_patch"], back["torch_dtype"]) == (2, 6, "bfloat16")
    assert back["llm_config"]["eos_token_id"] == 371, "the end of a turn, as the -hf layout has it"
    assert open_checkpoint(tmp_path / "back", "vlm").model_config == open_checkpoint(src, "vlm").model_config
    convert(tmp_path / "hf", tmp_path / "ours", "vlm")
    invert(tmp_path / "ours", tmp_path / "again", layout="remote")
    assert same_bits(tmp_path / "again", tensors)


def test_a_layout_that_the_original_has_copies_its_files(hf, tmp_path):
    directory = hf("in memory")
    shard(directory)
    invert(directory, tmp_path / "out", layout="hf")
    for file in directory.iterdir():
        if file.suffix == ".json":
            written = json.loads((tmp_path / "out" / file.name).read_text())
            assert written.get("weight_map", written) == (old := json.loads(file.read_text())).get("weight_map", old)
    assert same_bits(tmp_path / "out", {k: v for f in directory.glob("*.safetensors") for k, v in load_file(f).items()})


TOKENIZER = {
    "added_tokens_decoder": {"371": {"content": "<|im_end|>"}, "392": {"content": "<IMG_CONTEXT>"}},
    "chat_template": "old",
    "eos_token": "<|im_end|>",
}


def test_the_files_beside_the_weights(tmp_path):
    """transformers gets a processor, a chat template and the names of the tokens, and the original its own again."""
    src = shutil.copytree(TINY / "remote", tmp_path / "src")
    written = {"tokenizer_config.json": TOKENIZER, "vocab.json": {}, "preprocessor_config.json": {"size": 112}}
    for name, content in written.items():
        (src / name).write_text(json.dumps(content))
    (src / "modeling_internvl_chat.py").write_text("raise SystemExit")
    invert(src, tmp_path / "hf", layout="hf")
    files = {file.name for file in (tmp_path / "hf").iterdir()}
    assert files == {
        *("config.json", "model.safetensors", "tokenizer_config.json", "vocab.json", "preprocessor_config.json"),
        *("processor_config.json", "generation_config.json", "chat_template.jinja"),
    }
    read = {name: json.loads((tmp_path / "hf" / name).read_text()) for name in files if name.endswith(".json")}
    assert read["config.json"]["image_token_id"] == 392, "the tokenizer decides"
    assert read["generation_config.json"]["eos_token_id"] == read["config.json"]["text_config"]["eos_token_id"] == 371
    assert read["processor_config.json"] == {"image_seq_length": 16, "processor_class": "InternVLProcessor"}
    assert read["preprocessor_config.json"]["size"] == {"height": 112, "width": 112}
    assert read["preprocessor_config.json"]["image_mean"] == [0.485, 0.456, 0.406]
    assert read["tokenizer_config.json"]["context_image_token"] == "<IMG_CONTEXT>"
    assert "chat_template" not in read["tokenizer_config.json"]
    invert(tmp_path / "hf", tmp_path / "back", layout="remote")
    assert {file.name for file in (tmp_path / "back").iterdir()} == files - {
        *("processor_config.json", "chat_template.jinja")
    }
    assert json.loads((tmp_path / "back/preprocessor_config.json").read_text())["crop_size"] == 112


@pytest.mark.parametrize(
    ("changes", "files", "message"),
    [
        ({"ps_version": "v1"}, {}, "ps_version='v1' has no equivalent in the layout 'hf'"),
        ({"select_layer": -2}, {}, "select_layer=-2 leaves layers of the tower out"),
        ({"template": "internlm2-chat"}, {}, "template='internlm2-chat' has no equivalent"),
        ({"pad2square": True}, {}, "pad2square=True has no equivalent"),
        ({"use_thumbnail": False}, {}, "use_thumbnail=False has no equivalent"),
        ({}, {"added_tokens.json": {"<|im_end|>": 371}}, "the id of <IMG_CONTEXT> is not known; put the tokenizer's"),
        ({}, {"added_tokens.json": {"<|im_end|>": 371, "<IMG_CONTEXT>": 400}}, "id 400, outside the decoder's vocab"),
        ({}, {"tokenizer_config.json": {"added_tokens_decoder": [1]}}, "lists its added tokens in an unknown form"),
    ],
)
def test_a_model_without_the_other_layout_is_refused(tmp_path, changes, files, message):
    src = shutil.copytree(TINY / "remote", tmp_path / "src")
    config = json.loads((src / "config.json").read_text())
    (src / "config.json").write_text(json.dumps(config | changes))
    for name, content in files.items():
        (src / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        invert(src, tmp_path / "out", layout="hf")
    assert str(error.value).startswith(str(src))
    assert not (tmp_path / "out").exists()


def test_an_unknown_first_token_leaves_the_others_unknown(tmp_path):
    """Without a tokenizer, ids are taken from the end of InternVL3's vocabulary only if <|endoftext|> agrees."""
    src = shutil.copytree(TINY / "remote", tmp_path / "src")
    config = json.loads((src / "config.json").read_text())
    config["llm_config"]["bos_token_id"] = 1
    (src / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=re.escape("the id of <|im_end|> is not known; put the tokenizer's files")):
        invert(src, tmp_path / "out", layout="hf")


def test_models_that_have_one_layout_only(tmp_path):
    with pytest.raises(ValueError, match=r"decoder \['InternLM2ForCausalLM'\]; only an InternVL model with one of"):
        invert(GOLDEN / "internvl_tiny", tmp_path / "out", layout="hf")
    tower = open_checkpoint(TINY / "remote", "vision_transformer")
    with pytest.raises(ValueError, match="opened as its tower alone; another layout needs the whole model"):
        rewrite(tower, tmp_path / "out", {}, "hf")
    with pytest.raises(ValueError, match="layout 'onnx' is unknown; known are"):
        rewrite(tower, tmp_path / "out", {}, "onnx")


def test_the_command(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["weights_convert", f"--src={TINY / 'remote'}", f"--dst={out}", *flags])
        return main(), *capsys.readouterr()

    code, _, err = run("--layout=hf", "--kind=vision_transformer")
    assert (code, err.count("\n")) == (2, 1)
    assert "--layout writes whole models, so --kind=vision_transformer cannot be combined with it" in err
    with pytest.raises(SystemExit):
        run("--layout=hf", "--inverse")
    assert not out.exists()
    capsys.readouterr()
    assert run("--layout=hf") == (0, f"{out}: vlm, 39 arrays, 311,296 parameters\n", "")
    assert same_bits(out, layouts("hf")[0])


# adapters


def read_golden(layout: str, base: Path = TINY / "remote", kind: str = "vlm"):
    return read_adapters(TINY / f"adapters_{layout}/adapter_model.safetensors", base, kind)


@pytest.mark.parametrize("base", ["remote", "hf", "converted"])
@pytest.mark.parametrize("layout", ["remote", "hf"])
def test_adapters_of_both_layouts_fit_either_base(tmp_path, layout, base):
    path = TINY / base
    if base == "converted":
        path = tmp_path / "ours"
        convert(TINY / "hf", path, "vlm")
    adapters, scale = read_golden(layout, path)
    expected, _ = read_golden("remote")
    assert scale == 2.0
    assert len(adapters) == 14
    assert {n: x.tobytes() for n, x in adapters.items()} == {n: x.tobytes() for n, x in expected.items()}
    theirs = load_file(TINY / "adapters_remote/adapter_model.safetensors")
    one = theirs["base_model.model.language_model.model.layers.2.mlp.up_proj.lora_B.weight"]
    np.testing.assert_array_equal(adapters["decoder/blocks/mlp/up/b"][2], one.T)


@pytest.mark.parametrize(
    "prefix",
    [
        *("base_model.model.language_model.layers.", "language_model.layers.", "model.language_model.layers."),
        *("base_model.model.model.language_model.layers.", "base_model.model.language_model.model.layers."),
    ],
)
def test_every_path_of_a_decoder_is_known(tmp_path, prefix):
    tensors = load_file(TINY / "adapters_hf/adapter_model.safetensors")
    published = "base_model.model.model.language_model.layers."
    file = tmp_path / "adapter_model.safetensors"
    save_file({prefix + key.removeprefix(published): value for key, value in tensors.items()}, file)
    adapters, _ = read_adapters(file, TINY / "hf", "vlm")
    np.testing.assert_array_equal(adapters["decoder/blocks/attn/q/a"], read_golden("hf")[0]["decoder/blocks/attn/q/a"])
    mixed = {
        "language_model.model.layers.0.self_attn.q_proj.lora_A.weight": tensors[
            f"{published}0.self_attn.q_proj.lora_A.weight"
        ]
    }
    save_file(mixed | {f"x.{key}": value for key, value in tensors.items()}, file)
    with pytest.raises(ValueError, match=r"adapts a module that .* does not have"):
        read_adapters(file, TINY / "hf", "vlm")


@pytest.mark.parametrize("base", ["remote", "hf"])
@pytest.mark.parametrize("layout", [None, "remote", "hf"])
def test_adapters_are_written_as_the_golden_files(tmp_path, base, layout):
    adapters, scale = read_golden("remote")
    write_adapters(tmp_path / "out", adapters, 16 * scale, TINY / base, "vlm", layout)
    layout = layout or base
    golden = TINY / f"adapters_{layout}"
    assert same_bits(tmp_path / "out", load_file(golden / "adapter_model.safetensors"))
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    theirs = json.loads((golden / "adapter_config.json").read_text())
    for key in ("r", "lora_alpha", "peft_type", "bias", "rank_pattern", "inference_mode"):
        assert config[key] == theirs[key], key
    assert config["base_model_name_or_path"] == str(TINY / base)
    assert len(config["target_modules"]) == 21
    back, _ = read_adapters(tmp_path / "out/adapter_model.safetensors", TINY / "remote", "vlm")  # by its hash
    assert {n: x.tobytes() for n, x in back.items()} == {n: x.tobytes() for n, x in adapters.items()}


def test_adapters_know_their_base_in_either_layout(hf, tmp_path):
    adapters, _ = read_golden("remote")
    write_adapters(tmp_path / "out", adapters, 32, TINY / "hf", "vlm")
    directory = hf()
    spoil(directory, lambda t: t["language_model.model.norm.weight"].__setitem__(0, 9))
    with pytest.raises(ValueError, match="was made for another base: the decoder"):
        read_adapters(tmp_path / "out/adapter_model.safetensors", directory, "vlm")
    invert(directory, tmp_path / "remote", layout="remote")
    with pytest.raises(ValueError, match="was made for another base: the decoder"):
        read_adapters(tmp_path / "out/adapter_model.safetensors", tmp_path / "remote", "vlm")


def tower_adapters(rank=2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 64, rank)), rng.standard_normal((2, rank, 192))
    return {"blocks/attn/qkv/a": a.astype(np.float32), "blocks/attn/qkv/b": b.astype(np.float32)}


def test_adapters_of_the_towers_qkv_are_three_in_the_hf_layout(tmp_path):
    adapters = tower_adapters()
    for base in ("remote", "hf"):
        for layout in ("remote", "hf"):
            out = tmp_path / f"{base}_{layout}"
            write_adapters(out, adapters, 2, TINY / base, "vision_transformer", layout)
            keys = set(load_file(out / "adapter_model.safetensors"))
            q = "base_model.model.model.vision_tower.encoder.layer.1.attention.q_proj.lora_B.weight"
            assert (q in keys, len(keys)) == ((True, 12) if layout == "hf" else (False, 4))
            for other in ("remote", "hf"):
                back, scale = read_adapters(out / "adapter_model.safetensors", TINY / other, "vision_transformer")
                assert scale == 1.0
                assert {n: x.tobytes() for n, x in back.items()} == {n: x.tobytes() for n, x in adapters.items()}


def test_separate_adapters_of_q_and_v_become_one_with_the_same_sums(tmp_path):
    """PEFT trains q_proj and v_proj each with an a of its own; k_proj has none."""
    rng = np.random.default_rng(4)
    path = "base_model.model.model.vision_tower.encoder.layer.{}.attention.{}_proj.lora_{}.weight"
    tensors = {
        path.format(i, x, half): rng.standard_normal((2, 64) if half == "A" else (64, 2)).astype(np.float32)
        for i in (0, 1)
        for x in "qv"
        for half in "AB"
    }
    file = tmp_path / "adapter_model.safetensors"
    save_file(tensors, file)
    adapters, _ = read_adapters(file, TINY / "hf", "vision_transformer")
    a, b = adapters["blocks/attn/qkv/a"], adapters["blocks/attn/qkv/b"]
    assert (a.shape, b.shape) == ((2, 64, 4), (2, 4, 192))
    for i in (0, 1):
        deltas = [tensors[path.format(i, x, "B")] @ tensors[path.format(i, x, "A")] for x in "qv"]
        expected = np.concatenate([deltas[0], np.zeros((64, 64)), deltas[1]])
        np.testing.assert_allclose((a[i] @ b[i]).T, expected, atol=1e-5)
    del tensors[path.format(0, "v", "A")]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"layer\.0\.attention\.v_proj\.lora_A\.weight is missing"):
        read_adapters(file, TINY / "hf", "vision_transformer")


# merged weights


def test_zero_adapters_change_no_bit_in_either_layout(tmp_path):
    adapters, _ = read_golden("remote")
    zero = {n: np.zeros_like(x) if n.endswith("/b") else x for n, x in adapters.items()}
    for base in ("remote", "hf"):
        for layout in ("remote", "hf"):
            out = tmp_path / f"{base}_{layout}"
            export.merge(open_checkpoint(TINY / base, "vlm"), out, zero, 2.0, {}, layout)
            assert same_bits(out, layouts(layout)[0])


def test_merged_weights_are_the_same_in_either_layout(tmp_path):
    """The adapted kernels change, and a tensor that replaces the tower's qkv is cut into q, k and v."""
    adapters, scale = read_golden("remote")
    whole = {QKV: np.random.default_rng(5).standard_normal((2, 64, 192)).astype(np.float32)}
    found = {}
    for base in ("remote", "hf"):
        for layout in ("remote", "hf"):
            out = tmp_path / f"{base}_{layout}"
            export.merge(open_checkpoint(TINY / base, "vlm"), out, adapters, scale, whole, layout)
            found[base, layout] = contents(open_checkpoint(out, "vlm"))
    assert all(tensors == found["remote", "remote"] for tensors in found.values())
    written = open_checkpoint(tmp_path / "remote_hf", "vlm")
    np.testing.assert_array_equal(np.asarray(written.params[QKV]), whole[QKV])
    changed = {n for n, value in contents(open_checkpoint(TINY / "hf", "vlm")).items() if found["hf", "hf"][n] != value}
    assert changed == {QKV} | {f"params/{n[:-2]}/kernel" for n in adapters}


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """Return a function (base layout) -> work directory of a run that trained the golden adapters."""

    def make(base: str) -> Path:
        config = settings()
        config.init_from, config.epochs, config.model.kind = str(TINY / base), 1, "vlm"
        config.lora.rank, config.lora.alpha = 16, 32.0
        folder = tmp_path / f"run_{base}"
        folder.mkdir()
        (folder / "config.json").write_text(config.to_json())
        trained = {"lora": trees.unflatten(read_golden("remote")[0])}
        restored = SimpleNamespace(trainable=trained, stats={}, step=3, model=None)
        monkeypatch.setattr(export, "restore", lambda config, workdir: restored)
        return folder

    return make


@pytest.mark.parametrize("base", ["remote", "hf"])
@pytest.mark.parametrize("layout", [None, "remote", "hf"])
def test_a_run_is_exported_in_either_layout(workdir, tmp_path, capsys, base, layout):
    flags = [f"--workdir={workdir(base)}", *([f"--layout={layout}"] if layout else [])]
    layout = layout or base
    assert export.main([*flags, f"--dst={tmp_path / 'adapters'}"]) == 0
    assert same_bits(tmp_path / "adapters", load_file(TINY / f"adapters_{layout}/adapter_model.safetensors"))
    assert export.main([*flags, f"--dst={tmp_path / 'merged'}", "--merged"]) == 0
    export.merge(open_checkpoint(TINY / layout, "vlm"), tmp_path / "expected", *read_golden("remote"), {})
    assert same_bits(tmp_path / "merged", load_file(tmp_path / "expected/model.safetensors"))
    assert set(json.loads((tmp_path / "merged/config.json").read_text())) >= {"architectures", "vision_config"}
    assert capsys.readouterr().err == ""
