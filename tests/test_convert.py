"""Test the conversion of checkpoints: it is exact in both directions, and every bad input is one clear ValueError."""

import json
import pickle
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.reference.recipe import GOLDEN, weight, write_checkpoint
from weights_convert import open_checkpoint, read, read_adapters, write_adapters
from weights_convert.__main__ import source_directory
from weights_convert.write import convert, invert

TINY = GOLDEN / "internvl_tiny"
FC1 = "vision_model.encoder.layers.1.mlp.fc1.weight"
SIZES = (("wqkv", 128), ("wo", 64))  # rows of the tiny decoder's attention
IRESNET = {"architectures": ["IResNet"], "layers": [1, 1], "widths": [4, 8], "num_features": 6}


@pytest.fixture
def tiny(tmp_path):
    """Copy the tiny InternVL2, so that a test can damage it."""
    return shutil.copytree(TINY, tmp_path / "tiny", ignore=shutil.ignore_patterns("golden.npz"))


def spoil(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def shard(directory):
    """Split a checkpoint into two shards with an index."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(sorted(tensors))}
    for file in set(names.values()):
        save_file({k: v for k, v in tensors.items() if names[k] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def iresnet_shapes():
    """Return insightface's keys and torch's shapes of the IRESNET configuration."""
    shapes = {"conv1.weight": (4, 3, 3, 3), "prelu.weight": (4,), "fc.weight": (6, 8 * 28 * 28), "fc.bias": (6,)}
    norms = {"bn1": 4, "bn2": 8, "features": 6}
    for stage, (inputs, width) in enumerate(((4, 4), (4, 8)), start=1):
        block = f"layer{stage}.0."
        shapes |= {f"{block}conv1.weight": (width, inputs, 3, 3), f"{block}conv2.weight": (width, width, 3, 3)}
        shapes |= {f"{block}downsample.0.weight": (width, inputs, 1, 1), f"{block}prelu.weight": (width,)}
        norms |= {f"{block}bn1": inputs, f"{block}bn2": width, f"{block}bn3": width, f"{block}downsample.1": width}
    for name, width in norms.items():
        shapes |= {f"{name}.{leaf}": (width,) for leaf in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{name}.num_batches_tracked"] = ()
    return shapes


def test_internvl_round_trip_is_exact(tiny, tmp_path):
    (tiny / "tokenizer.json").write_text("{}")
    (tiny / "modeling_internvl.py").write_text("raise SystemExit")
    ckpt = convert(tiny, tmp_path / "ours")
    assert {key.split(".")[0] for key in ckpt.ignored} == {"mlp1", "language_model"}
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    invert(tmp_path / "ours", tmp_path / "back")
    before, after = load_file(tiny / "model.safetensors"), load_file(tmp_path / "back/model.safetensors")
    assert set(after) == {key for key in before if key.startswith("vision_model.")}
    for key in after:
        np.testing.assert_array_equal(after[key], before[key], err_msg=key)
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads((tiny / "config.json").read_text())


def test_iresnet_round_trip_is_exact(tmp_path):
    src = write_checkpoint(tmp_path / "src", IRESNET, iresnet_shapes())
    convert(src, tmp_path / "ours")
    invert(tmp_path / "ours", tmp_path / "back")
    before, after = load_file(src / "model.safetensors"), load_file(tmp_path / "back/model.safetensors")
    assert {key: leaf.shape for key, leaf in after.items()} == {key: leaf.shape for key, leaf in before.items()}
    for key in after:
        np.testing.assert_array_equal(after[key], before[key], err_msg=key)


def test_whole_internvl_round_trip_is_exact(tiny, tmp_path):
    """Converting and converting back reproduces every key of the original bit for bit, in half precision."""
    beside = {"tokenizer.model", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"}
    beside |= {"merges.txt", "generation_config.json", "preprocessor_config.json"}
    for name in [*beside, "modeling_internvl_chat.py"]:
        (tiny / name).write_bytes(b"{}")
    spoil(tiny, lambda t: t.update({k: v.astype(np.float16) for k, v in t.items()}))
    key = "language_model.model.layers.0.attention.wqkv.weight"
    spoil(tiny, lambda t: t[key].__setitem__((slice(None), 0), -0.0))  # summing the parts would lose the sign
    ckpt = convert(tiny, tmp_path / "ours", "vlm")
    assert (ckpt.kind, ckpt.ignored) == ("vlm", [])
    invert(tmp_path / "ours", tmp_path / "back")
    for written in ("ours", "back"):
        kept = {file.name for file in (tmp_path / written).iterdir() if file.suffix != ".safetensors"}
        assert kept == beside | {"config.json"}, "all that belongs to a checkpoint but code"
    before, after = load_file(tiny / "model.safetensors"), load_file(tmp_path / "back/model.safetensors")
    assert set(after) == set(before)
    for key in after:
        assert after[key].dtype == np.float16
        assert after[key].tobytes() == before[key].tobytes(), key


def test_the_tower_of_a_converted_whole(tiny, tmp_path):
    convert(tiny, tmp_path / "ours", "vlm")
    whole, tower = open_checkpoint(tmp_path / "ours"), open_checkpoint(tmp_path / "ours", "vision_transformer")
    assert (whole.kind, tower.kind) == ("vlm", "vision_transformer")
    alone = open_checkpoint(tiny)
    assert set(tower.params) == set(alone.params)
    for name, leaf in tower.params.items():
        np.testing.assert_array_equal(leaf, alone.params[name], err_msg=name)
        np.testing.assert_array_equal(leaf, whole.params[name.replace("params/", "params/vision/", 1)])
    assert {n: s.keys for n, s in tower.sources.items()} == {n: s.keys for n, s in alone.sources.items()}
    convert(tiny, tmp_path / "tower")
    for directory, kind in ((tmp_path / "tower", "vlm"), (tiny, "iresnet"), (tiny, "decoder")):
        with pytest.raises(ValueError, match=f"holds a vision_transformer, and '{kind}' was asked for"):
            open_checkpoint(directory, kind)


@pytest.mark.parametrize("bias", [False, True])
def test_bare_internlm2_and_its_fused_heads(tiny, tmp_path, bias):
    """wqkv's rows are (key head, [queries, key, value], dim): each part is converted to its place and back."""
    config = json.loads((tiny / "config.json").read_text())["llm_config"] | {"bias": bias}
    tensors = {k.removeprefix("language_model."): v for k, v in load_file(tiny / "model.safetensors").items()}
    tensors = {k: v for k, v in tensors.items() if k.startswith(("model.", "output"))}
    if bias:
        layers = [f"model.layers.{i}.attention." for i in range(3)]
        tensors |= {f"{layer}{k}.bias": weight(7, f"{layer}{k}", (n,)) for layer in layers for k, n in SIZES}
    save_file(tensors, tiny / "model.safetensors")
    (tiny / "config.json").write_text(json.dumps(config))
    shard(tiny)
    kind, attributes, flat = read(tiny)
    assert (kind, attributes["kv_heads"], attributes["rope"]) == ("decoder", 2, "dynamic")
    for leaf, theirs in (("kernel", "weight"), *((("bias", "bias"),) if bias else ())):
        whole = tensors[f"model.layers.1.attention.wqkv.{theirs}"].reshape(2, 4, 16, -1)
        rows = {"q": whole[:, :2], "k": whole[:, 2:3], "v": whole[:, 3:]}  # 2 queries per key head
        for part, values in rows.items():
            got = np.asarray(flat[f"params/blocks/attn/{part}/{leaf}"][1])
            np.testing.assert_array_equal(got, values.reshape(-1, values.shape[-1]).T.reshape(got.shape))
    convert(tiny, tmp_path / "ours")
    invert(tmp_path / "ours", tmp_path / "back")
    after = load_file(tmp_path / "back/model.safetensors")
    assert set(after) == set(tensors)
    for key in after:
        np.testing.assert_array_equal(after[key], tensors[key], err_msg=key)


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_bare_tower_half_precision_and_shards(tmp_path, tiny, prefix):
    """OpenGVLab publishes the tower alone, without the prefix; checkpoints may have shards and bfloat16."""
    import ml_dtypes

    config = json.loads((tiny / "config.json").read_text())["vision_config"]
    tensors = load_file(tiny / "model.safetensors")
    tensors = {k.removeprefix("vision_model."): v for k, v in tensors.items() if k.startswith("vision_model.")}
    save_file({prefix + k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}, tiny / "model.safetensors")
    (tiny / "config.json").write_text(json.dumps(config))
    shard(tiny)
    kind, attributes, flat = read(tiny)
    assert (kind, attributes["width"], attributes["depth"]) == ("vision_transformer", 32, 3)
    leaf = flat["params/blocks/mlp/fc1/kernel"]
    assert (leaf.shape, leaf.dtype) == ((3, 32, 64), ml_dtypes.bfloat16)
    np.testing.assert_array_equal(leaf[1], tensors["encoder.layers.1.mlp.fc1.weight"].T.astype(ml_dtypes.bfloat16))
    convert(tiny, tmp_path / "ours")
    invert(tmp_path / "ours", tmp_path / "back")
    assert set(load_file(tmp_path / "back/model.safetensors")) == {prefix + k for k in tensors}


def test_lazy_slices_equal_slices_of_the_whole(tmp_path):
    convert(TINY, tmp_path / "ours")
    for directory in (TINY, tmp_path / "ours"):
        for name, leaf in read(directory)[2].items():
            whole = np.asarray(leaf)
            assert whole.shape == leaf.shape, name
            index = tuple(slice(0, max(1, n // 2)) for n in leaf.shape)
            np.testing.assert_array_equal(leaf[index], whole[index], err_msg=name)
            np.testing.assert_array_equal(leaf[(slice(1, None),)], whole[1:], err_msg=name)


def test_one_shard_is_in_memory_at_a_time(tmp_path, monkeypatch):
    """Converting and converting back allocates well under two shards at its peak; the checkpoint has nine."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 8192,
        "hidden_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "intermediate_size": 2048,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "hidden_act": "silu",
    }
    layer = {f"self_attn.{x}_proj": (512, 512) for x in "qkvo"} | {"mlp.down_proj": (512, 2048)}
    layer |= {f"mlp.{x}_proj": (2048, 512) for x in ("gate", "up")}
    layer |= {f"{x}_layernorm": (512,) for x in ("input", "post_attention")}
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in range(4) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (8192, 512), "lm_head.weight": (8192, 512), "model.norm.weight": (512,)}
    src = write_checkpoint(tmp_path / "src", config, shapes)
    shard_bytes = 17 << 20
    monkeypatch.setattr("weights_convert.write.SHARD_BYTES", shard_bytes)
    convert(src, tmp_path / "warm")  # so that jax's own allocations are not counted
    for write, given, dst in ((convert, src, "ours"), (invert, tmp_path / "warm", "back")):
        tracemalloc.start()
        write(given, tmp_path / dst)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(list((tmp_path / dst).glob("model-*.safetensors"))) >= 5
        print(f"{dst}: peak {peak / shard_bytes:.2f} shards")
        assert shard_bytes * 0.9 < peak < 1.7 * shard_bytes
    before, after = (load_file(p) for p in (tmp_path / "src/model.safetensors", *(tmp_path / "back").glob("*1-of*")))
    assert all(after[key].tobytes() == before[key].tobytes() for key in after)


def test_large_checkpoints_are_written_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("weights_convert.write.SHARD_BYTES", 50_000)
    convert(TINY, tmp_path / "ours")
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 3
    for name, leaf in read(tmp_path / "ours")[2].items():
        np.testing.assert_array_equal(leaf, read(TINY)[2][name], err_msg=name)


def wrapped(prefix: str):
    """Return what gives all keys a prefix, as saving a wrapped network does."""

    def change(tensors):
        everything = {f"{prefix}{key}": value for key, value in tensors.items()}
        tensors.clear()
        tensors.update(everything)

    return change


def test_a_single_numbered_file_needs_no_index(tiny):
    before = read(tiny)[2]
    (tiny / "model.safetensors").rename(tiny / "model-00001-of-00001.safetensors")
    after = read(tiny)[2]
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[name], before[name]) for name in before)


BAD_WEIGHTS = {
    "missing key": (lambda t: t.pop(FC1), f"1 missing .{FC1}"),
    "unexpected key": (lambda t: t.update({"vision_model.encoder.extra": np.ones(3)}), "unexpected .*encoder.extra"),
    "extra layer": (lambda t: t.update({FC1.replace("1", "3", 1): np.ones(3)}), r"unexpected .*layers\.3"),
    "wrong shape": (lambda t: t.update({FC1: np.ones((64, 31), np.float32)}), r"\(64, 31\), expected \(64, 32\)"),
    "mixed dtypes": (lambda t: t.update({FC1: t[FC1].astype(np.float16)}), "differ in dtype"),
    "of torch's DistributedDataParallel": (
        wrapped("module."),
        r"all keys begin with 'module\.': save the state_dict of",
    ),
    "of torch.compile": (wrapped("_orig_mod."), r"all keys begin with '_orig_mod\.': save the state_dict of the model"),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_weights_that_do_not_fit(tiny, case):
    change, message = BAD_WEIGHTS[case]
    spoil(tiny, change)
    with pytest.raises(ValueError, match=message):
        read(tiny)


def write_config(directory, **changes):
    config = json.loads((directory / "config.json").read_text())
    vision = config["vision_config"] | {k: v for k, v in changes.items() if k in config["vision_config"]}
    (directory / "config.json").write_text(json.dumps(config | changes | {"vision_config": vision}))


def without_norm_type(directory):
    config = json.loads((directory / "config.json").read_text())
    del config["vision_config"]["norm_type"]
    (directory / "config.json").write_text(json.dumps(config))


def lose_shard(directory):
    shard(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()


def lose_index(directory):
    shard(directory)
    (directory / "model.safetensors.index.json").unlink()


def lie_in_index(directory):
    shard(directory)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    index["weight_map"]["vision_model.nowhere"] = "model-00001-of-00002.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def escape(directory):
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {FC1: "../x.safetensors"}}))


def only_pickle(directory):
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps({}))


BAD_DIRECTORIES = {
    "missing shard": (lose_shard, r"model-00002-of-00002\.safetensors is missing"),
    "index names a key no shard has": (lie_in_index, "disagree about 1 keys, first 'vision_model.nowhere'"),
    "shard outside the directory": (escape, "not a plain file name"),
    "pickle": (only_pickle, r"pytorch_model\.bin can run code"),
    "shards without their index": (lose_index, r"model-00001-of-00002.safetensors is one of several .* copy it too"),
    "another name": (
        lambda d: (d / "model.safetensors").rename(d / "weights.safetensors"),
        r"if weights\.safetensors has all weights, name it model\.safetensors",
    ),
    "pickle under another name": (
        lambda d: (d / "model.safetensors").write_bytes(pickle.dumps({"a": 1})),
        "pickles are not read",
    ),
    "cut short": (
        lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-100]),
        "not a complete safetensors file",
    ),
    "unknown architecture": (
        lambda d: write_config(d, architectures=["BlipForConditionalGeneration"]),
        r"unknown architectures \['Blip.*known are \['CLIPModel'",
    ),
    "unknown norm": (lambda d: write_config(d, norm_type="group_norm"), "norm_type='group_norm' is not supported"),
    "no norm": (without_norm_type, "no 'norm_type'"),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json is missing"),
    "broken config": (lambda d: (d / "config.json").write_text("{"), "config.json is not JSON"),
    "other format": (lambda d: write_config(d, fvjax={"format": 99}), "format 99, this version reads 1"),
}


@pytest.mark.parametrize("case", BAD_DIRECTORIES)
def test_directories_that_are_not_a_checkpoint(tiny, case):
    change, message = BAD_DIRECTORIES[case]
    change(tiny)
    with pytest.raises(ValueError, match=message):
        read(tiny)


def test_unknown_iresnet_setting(tmp_path):
    write_checkpoint(tmp_path / "src", IRESNET | {"se": True}, iresnet_shapes())
    with pytest.raises(ValueError, match=r"unknown keys \['se'\]"):
        read(tmp_path / "src")


BAD_WHOLES = {
    "ps_version": (lambda d: write_config(d, ps_version="v3"), "ps_version='v3' is not supported; known are 'v1' and"),
    "ratio": (lambda d: write_config(d, downsample_ratio=0.4), "downsample_ratio=0.4 is not 1 over"),
    "image size": (lambda d: write_config(d, force_image_size=224), "force_image_size=224 is not the tower's 448"),
    "adapters inside": (lambda d: write_config(d, use_llm_lora=16), "use_llm_lora=16: its adapters must be merged"),
    "decoder": (
        lambda d: write_config(d, llm_config={"architectures": ["PhiForCausalLM"], "bos_token_id": 1}),
        r"unknown llm_config architectures \['Phi.*known are \['InternLM2ForCausalLM', 'LlamaForCausalLM', 'Qwen2",
    ),
    "no decoder": (lambda d: drop(d, "llm_config"), "there is no 'llm_config'"),
    "no theta": (lambda d: drop(d, "llm_config", "rope_theta"), r"\(llm_config\): .* has no 'rope_theta'"),
    "no bias": (lambda d: drop(d, "llm_config", "bias"), "has no 'bias'"),
    "no width": (lambda d: drop(d, "llm_config", "hidden_size"), "has no 'hidden_size'"),
    "no bos": (lambda d: drop(d, "llm_config", "bos_token_id"), "has no 'bos_token_id'"),
    "rope": (lambda d: change_llm(d, rope_scaling={"type": "yarn", "factor": 2}), "rope scaling 'yarn' is not supp"),
    "rope factor": (lambda d: change_llm(d, rope_scaling={"type": "linear"}), "rope scaling 'linear' has no 'factor'"),
    "activation": (lambda d: change_llm(d, hidden_act="gelu"), "hidden_act='gelu' is not supported; only 'silu'"),
    "missing weight": (lambda d: spoil(d, lambda t: t.pop("mlp1.1.bias")), r"1 missing \(mlp1.1.bias\)"),
    "unexpected weight": (
        lambda d: spoil(d, lambda t: t.update({"language_model.model.layers.3.ffn_norm.weight": np.ones(64)})),
        r"1 unexpected \(language_model.model.layers.3",
    ),
    "heads": (lambda d: change_llm(d, num_key_value_heads=4), r"wqkv.weight is \(128, 64\), expected \(192, 64\)"),
}


def drop(directory, *path):
    config = json.loads((directory / "config.json").read_text())
    part = config
    for key in path[:-1]:
        part = part[key]
    del part[path[-1]]
    (directory / "config.json").write_text(json.dumps(config))


def change_llm(directory, **changes):
    config = json.loads((directory / "config.json").read_text())
    config["llm_config"] |= changes
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("case", BAD_WHOLES)
def test_wholes_that_do_not_fit(tiny, case):
    change, message = BAD_WHOLES[case]
    change(tiny)
    with pytest.raises(ValueError, match=message):
        read(tiny, "vlm")


def test_select_layer_leaves_later_layers_out_by_name(tiny):
    write_config(tiny, select_layer=-2)
    ckpt = open_checkpoint(tiny)
    assert ckpt.params["params/blocks/ls1"].shape == (2, 32)
    assert any("encoder.layers.2." in key for key in ckpt.ignored)


def test_command_line(tmp_path):
    def run(*args):
        command = [sys.executable, "-m", "weights_convert", *args]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run(f"--src={TINY}", f"--dst={tmp_path / 'ours'}")
    assert done.returncode == 0, done.stderr
    assert "left out 30 tensors" in done.stdout
    again = run(f"--src={TINY}", f"--dst={tmp_path / 'ours'}")
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
    assert "exists" in again.stderr
    whole = run(f"--src={TINY}", f"--dst={tmp_path / 'whole'}", "--kind=vlm")
    assert (whole.returncode, "vlm, " in whole.stdout, "left out" in whole.stdout) == (0, True, False), whole.stderr
    with pytest.raises(ValueError, match="neither a directory nor a repository id"):
        source_directory("/no/such/dir")


# adapters


def test_adapters_round_trip(tmp_path):
    flat, scale = read_adapters(TINY / "adapters.safetensors", TINY)
    assert scale == 1.0
    assert {name: leaf.shape for name, leaf in flat.items()} == {
        "blocks/mlp/fc1/a": (3, 32, 8),
        "blocks/mlp/fc1/b": (3, 8, 64),
        "blocks/mlp/fc2/a": (3, 64, 8),
        "blocks/mlp/fc2/b": (3, 8, 32),
    }
    write_adapters(tmp_path / "out", flat, 16, TINY)
    again, scale = read_adapters(tmp_path / "out/adapter_model.safetensors", TINY)
    assert scale == 2.0
    for name in flat:
        np.testing.assert_array_equal(again[name], flat[name])


def test_adapters_of_the_whole(tmp_path):
    """Adapters of vision and decoder are written and read back; w1 is the gate, w3 the up projection."""
    flat, scale = read_adapters(TINY / "adapters.safetensors", TINY, "vlm")
    assert (scale, sum(len(leaf) for leaf in flat.values())) == (1.0, 2 * 3 * 5)
    stored = load_file(TINY / "adapters.safetensors")
    for ours, theirs in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        for half in "ab":
            key = f"language_model.model.layers.1.feed_forward.{theirs}.lora_{half.upper()}.weight"
            np.testing.assert_array_equal(flat[f"decoder/blocks/mlp/{ours}/{half}"][1], stored[key].T)
    write_adapters(tmp_path / "out", flat, 8, TINY, "vlm")
    written = load_file(tmp_path / "out/adapter_model.safetensors")
    assert {k.removeprefix("base_model.model."): v.tobytes() for k, v in written.items()} == {
        k: v.tobytes() for k, v in stored.items()
    }


def test_adapters_of_fused_heads(tmp_path):
    """One adapter of wqkv becomes one each of q, k and v with the same a: the same change of weights, both ways."""
    rng = np.random.default_rng(0)
    layers = [f"language_model.model.layers.{i}.attention." for i in range(3)]
    shapes = {"wqkv": ((4, 64), (128, 4)), "wo": ((4, 64), (64, 4))}
    tensors = {
        f"{layer}{module}.lora_{half}.weight": rng.standard_normal(shape).astype(np.float32)
        for layer in layers
        for module, both in shapes.items()
        for half, shape in zip("AB", both)
    }
    save_file(tensors, tmp_path / "wqkv.safetensors")
    flat, _ = read_adapters(tmp_path / "wqkv.safetensors", TINY, "vlm")
    assert {n for n in flat if n.endswith("/a")} == {f"decoder/blocks/attn/{x}/a" for x in "qkvo"}
    sources = open_checkpoint(TINY, "vlm").sources
    for i, layer in enumerate(layers):
        delta = tensors[f"{layer}wqkv.lora_B.weight"] @ tensors[f"{layer}wqkv.lora_A.weight"]
        for x in "qkv":
            got = flat[f"decoder/blocks/attn/{x}/a"][i] @ flat[f"decoder/blocks/attn/{x}/b"][i]
            expected = sources[f"params/decoder/blocks/attn/{x}/kernel"].transform.to_fvjax(delta)
            np.testing.assert_allclose(got, expected, atol=1e-5)
    write_adapters(tmp_path / "out", flat, 4, TINY, "vlm")
    written = load_file(tmp_path / "out/adapter_model.safetensors")
    assert {k.removeprefix("base_model.model."): v.tobytes() for k, v in written.items()} == {
        k: v.tobytes() for k, v in tensors.items()
    }
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["rank_pattern"] == {}
    flat["decoder/blocks/attn/k/a"] = flat["decoder/blocks/attn/k/a"] + 1  # tests/parity/test_peft.py opens such a file
    write_adapters(tmp_path / "again", flat, 4, TINY, "vlm")
    again, scale = read_adapters(tmp_path / "again/adapter_model.safetensors", TINY, "vlm")
    assert (scale, again["decoder/blocks/attn/k/a"].shape, again["decoder/blocks/attn/o/a"].shape) == (
        1.0,
        (3, 64, 12),
        (3, 64, 4),
    )


def test_adapters_say_which_base_they_belong_to(tiny, tmp_path):
    """A changed bit in a part that the adapters refer to is refused; other shards, layouts and parts are accepted."""
    whole, _ = read_adapters(TINY / "adapters.safetensors", TINY, "vlm")
    tower, _ = read_adapters(TINY / "adapters.safetensors", TINY)
    write_adapters(tmp_path / "whole", whole, 8, TINY, "vlm")
    write_adapters(tmp_path / "tower", tower, 8, TINY)
    whole, tower = (tmp_path / name / "adapter_model.safetensors" for name in ("whole", "tower"))
    convert(tiny, tmp_path / "ours", "vlm")
    shard(tiny)
    for base in (tiny, tmp_path / "ours"):
        for file, kind in ((whole, "vlm"), (whole, "vision_transformer"), (tower, "vlm"), (tower, None)):
            read_adapters(file, base, kind or "vision_transformer")
    key = "language_model.model.norm.weight"  # it has no adapter
    shutil.copytree(TINY, tmp_path / "other")
    spoil(tmp_path / "other", lambda t: t[key].__setitem__(0, np.nextafter(t[key][0], np.float32(9))))
    told = "was made for another base: the decoder of .*other has the hash [0-9a-f]{12}, but the adapters belong"
    with pytest.raises(ValueError, match=f"{whole} {told}"):
        read_adapters(whole, tmp_path / "other", "vlm")
    read_adapters(whole, tmp_path / "other", "vision_transformer")
    read_adapters(tower, tmp_path / "other", "vlm")
    save_file(load_file(whole), whole)  # like a file of another program, without the hashes
    read_adapters(whole, tmp_path / "other", "vlm")


def test_ranks_and_alphas_by_module(tmp_path):
    """rank_pattern and alpha_pattern mean what they mean in PEFT; another scale than the first's goes into b."""
    flat, _ = read_adapters(TINY / "adapters.safetensors", TINY)
    flat |= {"blocks/mlp/fc2/a": flat["blocks/mlp/fc2/a"][..., :4], "blocks/mlp/fc2/b": flat["blocks/mlp/fc2/b"][:, :4]}
    write_adapters(tmp_path / "out", flat, 2, TINY)
    file, config = tmp_path / "out/adapter_model.safetensors", tmp_path / "out/adapter_config.json"
    again, scale = read_adapters(file, TINY)
    assert scale == 0.5
    for name in flat:
        np.testing.assert_array_equal(again[name], flat[name])
    written = json.loads(config.read_text())
    assert (written["r"], set(written["rank_pattern"].values()), len(written["rank_pattern"])) == (4, {8}, 3)
    config.write_text(json.dumps(written | {"rank_pattern": {"fc1": 8}, "alpha_pattern": {r"mlp\.fc1": 4}}))
    assert read_adapters(file, TINY)[1] == 0.5
    for change, scales in (  # of fc2, of rank 4, and of fc1, of rank 8
        ({"alpha_pattern": {}}, (2 / 4, 2 / 8)),
        ({"use_rslora": True}, (2 / 4**0.5, 4 / 8**0.5)),
        ({"use_rslora": True, "alpha_pattern": {"fc2": 6}}, (6 / 4**0.5, 2 / 8**0.5)),
    ):
        config.write_text(json.dumps(written | change))
        again, scale = read_adapters(file, TINY)
        assert scale == scales[0]
        for module, expected in zip(("fc2", "fc1"), scales):
            name = f"blocks/mlp/{module}/b"
            np.testing.assert_allclose(scale * again[name], expected * flat[name], rtol=1e-6)
            np.testing.assert_array_equal(again[f"blocks/mlp/{module}/a"], flat[f"blocks/mlp/{module}/a"])
    config.write_text(json.dumps(written | {"rank_pattern": {"c1": 8}}))
    with pytest.raises(ValueError, match=r"r=4 for .*fc1, lora_alpha=4\.0, but the weights have rank 8"):
        read_adapters(file, TINY)


BAD_ADAPTERS = {
    "half": (
        lambda t: t.pop("base_model.model." + FC1.replace("weight", "lora_B.weight")),
        r"lora_B\.weight is missing",
    ),
    "unknown module": (lambda t: t.update({"vision_model.nowhere.lora_A.weight": np.ones((8, 4))}), "does not have"),
    "two names": (
        lambda t: t.update({k.replace("lora_A", "lora_A.b"): v for k, v in t.items() if "lora_A" in k}),
        r"holds adapters of several names \(None, 'b'\); save one of them alone",
    ),
    "NaN": (lambda t: next(v for k, v in t.items() if "lora_B" in k).fill(np.nan), "lora_B.weight holds numbers that"),
    "whole numbers": (
        lambda t: t.update({k: v.astype(np.int32) for k, v in t.items() if k.endswith("fc1.lora_A.weight")}),
        r"fc1.lora_A.weight' is int32\[8, 32\], not a matrix of floats",
    ),
    "widths of layers": (
        lambda t: t.update({k: v[:, :5] for k, v in t.items() if k.endswith("0.mlp.fc1.lora_A.weight")}),
        r"the layers of blocks/mlp/fc1 differ in shape \(in, out\): \[\(5, 64\), \(32, 64\)\]",
    ),
    "not LoRA": (lambda t: t.update({"vision_model.ls1": np.ones(3)}), "not a LoRA key"),
    "wrong shape": (
        lambda t: t.update({k: np.ones((8, 7), np.float32) for k in t if k.endswith("fc1.lora_A.weight")}),
        r"needs \(3, 32, 8\)",
    ),
    "rank": (
        lambda t: t.update({k: v[:4] for k, v in t.items() if k.endswith("fc1.lora_A.weight")}),
        "different ranks",
    ),
    "empty": (lambda t: t.clear(), "holds no adapter"),
}


@pytest.mark.parametrize("case", BAD_ADAPTERS)
def test_adapters_that_do_not_fit(tmp_path, case):
    flat, _ = read_adapters(TINY / "adapters.safetensors", TINY)
    write_adapters(tmp_path / "out", flat, 8, TINY)
    change, message = BAD_ADAPTERS[case]
    file = tmp_path / "out/adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=message):
        read_adapters(file, TINY)


def test_adapters_of_another_kind(tmp_path):
    flat, _ = read_adapters(TINY / "adapters.safetensors", TINY)
    write_adapters(tmp_path / "out", flat, 8, TINY)
    config = tmp_path / "out/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    with pytest.raises(ValueError, match="use_dora is not supported"):
        read_adapters(tmp_path / "out/adapter_model.safetensors", TINY)
    (tmp_path / "adapters.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match="pickles are not read"):
        read_adapters(tmp_path / "adapters.bin", TINY)


def test_recipe_scales():
    """The golden figures depend on the recipe: check one value of each of its special cases."""
    stored = load_file(TINY / "model.safetensors")
    for key in (FC1, "vision_model.encoder.layers.2.ls1", "vision_model.embeddings.class_embedding"):
        np.testing.assert_array_equal(weight(7, key, stored[key].shape), stored[key])
