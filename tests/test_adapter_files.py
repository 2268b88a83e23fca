"""Test adapters as people have them: parts of a stack, rsLoRA, other spellings, directories, files without a config."""

import json
import logging
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.reference.recipe import GOLDEN
from weights_convert import read_adapters, write_adapters
from weights_convert.write import convert

TINY = GOLDEN / "internvl_tiny"
HF = GOLDEN / "internvl3_tiny/hf"
FC1 = "base_model.model.vision_model.encoder.layers.{}.mlp.fc1.lora_{}.weight"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Return the directory of rank-8 adapters of fc1 and fc2 in three layers, scale 2, as PEFT saves them."""
    directory = tmp_path_factory.mktemp("peft") / "published"
    flat, _ = read_adapters(TINY / "adapters.safetensors", TINY)
    write_adapters(directory, flat, 16, TINY)
    return directory


@pytest.fixture
def files(published, tmp_path):
    """Return a function that changes a copy of the published adapters and returns its directory."""

    def make(tensors=None, config=None, name="changed"):
        directory = shutil.copytree(published, tmp_path / name)
        if tensors is not None:
            save_file(tensors, directory / "adapter_model.safetensors")
        if config is not None:
            written = json.loads((directory / "adapter_config.json").read_text())
            (directory / "adapter_config.json").write_text(json.dumps(written | config))
        return directory

    return make


@pytest.fixture
def stored(published):
    return load_file(published / "adapter_model.safetensors")


def sums(path, base=TINY, kind=None):
    """Return scale * a @ b of every module and layer, [layers, in, out]."""
    flat, scale = read_adapters(path, base, kind)
    return {name[:-2]: scale * flat[name] @ flat[f"{name[:-2]}/b"] for name in flat if name.endswith("/a")}


def test_adapters_of_some_layers_leave_the_others_as_they_are(files, published, stored, caplog):
    whole = sums(published)
    last = {key: value for key, value in stored.items() if ".layers.2." in key}
    directory = files(last, {"layers_to_transform": [2], "target_modules": ["fc1", "fc2"]})
    got = sums(directory)
    for module, expected in whole.items():
        np.testing.assert_array_equal(got[module][2], expected[2])
        assert (got[module].shape, np.abs(got[module][:2]).max()) == (expected.shape, 0)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], "the config says that these are all"
    without = {key: value for key, value in stored.items() if ".layers.0.mlp.fc2." not in key}
    got = sums(files(without, name="without"))
    assert np.abs(got["blocks/mlp/fc2"][0]).max() == 0
    np.testing.assert_array_equal(got["blocks/mlp/fc2"][1:], whole["blocks/mlp/fc2"][1:])
    np.testing.assert_array_equal(got["blocks/mlp/fc1"], whole["blocks/mlp/fc1"])
    assert "1 of the modules in target_modules have no adapters in the file" in caplog.text
    assert "vision_model.encoder.layers.0.mlp.fc2" in caplog.text


def test_ranks_and_scales_that_differ_by_layer(files, published, stored):
    """rank_pattern and alpha_pattern may name layers; the sums are those of each layer's own rank and alpha."""
    low = {
        key: np.ascontiguousarray(value[:4] if "lora_A" in key else value[:, :4]) if ".layers.0." in key else value
        for key, value in stored.items()
    }
    patterns = {"rank_pattern": {r".*layers\.0\..*": 4}, "alpha_pattern": {r"layers\.0\.mlp\.fc1": 6}}
    got, whole = sums(files(low, patterns)), sums(published)
    a, b = low[FC1.format(0, "A")], low[FC1.format(0, "B")]
    np.testing.assert_allclose(got["blocks/mlp/fc1"][0], 6 / 4 * (b @ a).T, rtol=1e-5, atol=1e-7)
    for module in whole:
        np.testing.assert_allclose(got[module][1:], whole[module][1:], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["default", "pissa_run", "0"])
def test_keys_with_the_adapters_name(files, published, stored, name):
    spelled = {k.replace("lora_A.", f"lora_A.{name}.").replace("lora_B.", f"lora_B.{name}."): stored[k] for k in stored}
    got, whole = sums(files(spelled)), sums(published)
    assert {module: x.tobytes() for module, x in got.items()} == {module: x.tobytes() for module, x in whole.items()}


def test_modules_that_the_config_leaves_out_are_an_error(files):
    """PEFT would ignore their weights, so reading them would be another model than the one that was trained."""
    for name, change in {
        "layer": {"layers_to_transform": [2], "target_modules": ["fc1", "fc2"]},
        "module": {"target_modules": ["fc1"]},
        "regex": {"target_modules": r".*fc1"},
        "excluded": {"exclude_modules": ["fc2"]},
    }.items():
        leaves_out = r"leave out \d modules that have adapters in the file, the first vision_model\.encoder\.layers\.0"
        with pytest.raises(ValueError, match=rf"adapter_config\.json: target_modules.* {leaves_out}"):
            read_adapters(files(config=change, name=name), TINY)


def test_a_directory_is_accepted_where_a_file_is(files, published, tmp_path):
    assert sums(published).keys() == sums(published / "adapter_model.safetensors").keys()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no adapter_model\.safetensors; it holds nothing"):
        read_adapters(tmp_path / "empty", TINY)
    directory = files()
    (directory / "adapter_model.safetensors").rename(directory / "lora.safetensors")
    with pytest.raises(ValueError, match=r"it holds adapter_config\.json, lora\.safetensors; give the directory"):
        read_adapters(directory, TINY)
    assert sums(directory / "lora.safetensors").keys() == sums(published).keys()
    (directory / "lora.safetensors").rename(directory / "adapter_model.bin")
    with pytest.raises(ValueError, match="pickles are not read: open it with a current PEFT and save it again"):
        read_adapters(directory, TINY)


def test_a_file_without_its_config_keeps_its_scale(files, published, stored, caplog):
    """What we write says its scale in the file itself; for a file that does not, the assumption is said."""
    directory = files()
    (directory / "adapter_config.json").unlink()
    assert read_adapters(directory, TINY)[1] == 2.0
    assert not caplog.records
    save_file(stored, directory / "adapter_model.safetensors")
    assert read_adapters(directory, TINY)[1] == 1.0
    assert "there is no adapter_config.json beside it, so alpha = rank is assumed" in caplog.text
    assert read_adapters(files(config={"lora_alpha": 4}, name="other"), TINY)[1] == 0.5, "the config has priority"
    for wrong in ("nan", "-1", "0", "x"):
        save_file(stored, directory / "adapter_model.safetensors", {"fvjax_scale": wrong})
        with pytest.raises(ValueError, match=f"fvjax_scale='{wrong}', which is no number above 0"):
            read_adapters(directory, TINY)


def test_a_config_with_a_byte_order_mark(files, published):
    file = files() / "adapter_config.json"
    file.write_text("\ufeff" + file.read_text(), encoding="utf-8")
    assert read_adapters(file.parent, TINY)[1] == 2.0
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"adapter_config\.json is not JSON"):
        read_adapters(file.parent, TINY)


def test_exported_adapters_name_their_base_and_its_class(tmp_path):
    convert(TINY, tmp_path / "ours", "vlm", {"source": "OpenGVLab/InternVL2-2B", "revision": "0123abc"})
    flat, _ = read_adapters(TINY / "adapters.safetensors", TINY, "vlm")
    write_adapters(tmp_path / "out", flat, 8, tmp_path / "ours", "vlm")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("OpenGVLab/InternVL2-2B", "0123abc")
    assert config["auto_mapping"] == {"base_model_class": "AutoModel", "parent_library": "transformers"}
    assert config["task_type"] is None
    hf_flat, _ = read_adapters(GOLDEN / "internvl3_tiny/adapters_hf", HF, "vlm")
    write_adapters(tmp_path / "hf", hf_flat, 32, HF, "vlm")
    config = json.loads((tmp_path / "hf/adapter_config.json").read_text())
    assert config["auto_mapping"]["base_model_class"] == "AutoModelForImageTextToText"
    assert (config["base_model_name_or_path"], config["revision"]) == (str(HF), None)
    write_adapters(tmp_path / "remote", hf_flat, 32, HF, "vlm", "remote")
    config = json.loads((tmp_path / "remote/adapter_config.json").read_text())
    assert config["auto_mapping"]["base_model_class"] == "AutoModel"
