"""Test checkpoints of LLaVA-1.5, Video-LLaVA, Face-LLaVA and the towers of CLIP and LanguageBind."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fvjax import media_model, trees
from fvjax.models import encoder, presets
from tests.reference import facellava
from weights_convert import llava_hf, open_checkpoint
from weights_convert.__main__ import main
from weights_convert.write import convert, invert

FACE = "facellava_tiny/simple"


@pytest.fixture
def directory(tmp_path):
    return facellava.write(FACE, tmp_path)


def change_config(directory: Path, **changes) -> None:
    """Change entries of config.json; None removes one."""
    file = directory / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def change_weights(directory: Path, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize(
    "name", [FACE, "facellava_tiny/masked", "facellava_tiny/paper", "clip_tiny/llava", "clip_tiny/clip"]
)
def test_there_and_back_is_exact(tmp_path, name):
    """Every tensor that the model uses; the others are counted by reason."""
    src = facellava.write(name, tmp_path)
    ckpt = convert(src, tmp_path / "ours")
    assert set(ckpt.reasons) == set(ckpt.ignored)
    invert(tmp_path / "ours", tmp_path / "back")
    before, after = load_file(src / "model.safetensors"), load_file(tmp_path / "back/model.safetensors")
    assert set(before) - set(after) == set(ckpt.ignored)
    assert {k: v.tobytes() for k, v in after.items()} == {k: before[k].tobytes() for k in after}
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads((src / "config.json").read_text())
    again = open_checkpoint(tmp_path / "back")
    assert again.model_config == ckpt.model_config == open_checkpoint(tmp_path / "ours").model_config


@pytest.mark.parametrize("name", ["languagebind_tiny/image", "languagebind_tiny/video"])
def test_languagebinds_towers(tmp_path, name):
    src = facellava.write(name, tmp_path)
    ckpt = convert(src, tmp_path / "ours")
    assert ckpt.kind == "vision_transformer"
    assert ckpt.model_config["frames"] == (8 if name.endswith("video") else 0)
    invert(tmp_path / "ours", tmp_path / "back")
    before, after = load_file(src / "model.safetensors"), load_file(tmp_path / "back/model.safetensors")
    assert all(after[key].tobytes() == before[key].tobytes() for key in after)


def test_what_is_left_out_is_said(directory, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["weights_convert", f"--src={directory}", f"--dst={tmp_path / 'ours'}"])
    assert main() == 0
    printed = capsys.readouterr().out
    assert "3 (computed from rope_theta)" in printed
    assert "2 (a norm that the released code does not use)" in printed


def test_a_checkpoint_without_landmark_weights(directory, tmp_path, monkeypatch, capsys):
    """The released one, by every sign: config.json names the modules and the files do not have them."""
    change_weights(directory, lambda t: [t.pop(key) for key in list(t) if "landmarks" in key])
    change_config(directory, landmarks_projector_type="linear")
    monkeypatch.setattr("sys.argv", ["weights_convert", f"--src={directory}", f"--dst={tmp_path / 'ours'}"])
    assert main() == 0
    assert "there are no landmark weights" in capsys.readouterr().out
    ckpt = open_checkpoint(tmp_path / "ours")
    assert {"landmarks", "attention"}.isdisjoint(ckpt.model_config)
    net = encoder.build("llava", ckpt.model_config, "")
    model = media_model.MediaModel(net, {}, None, "highest", ckpt.notes)
    picture = {"image": np.zeros((56, 56, 3), np.uint8), "landmarks": np.full((68, 2), 0.5)}
    with pytest.raises(ValueError, match="no landmark weights; it reads rows without landmarks only"):
        model.forward([[1, -200, 5]], [[picture]])


def test_only_some_landmark_weights_are_an_error(directory):
    change_weights(directory, lambda t: t.pop("model.landmarks_projector.region_layers.lips.bias"))
    with pytest.raises(ValueError, match=r"missing.*region_layers\.lips\.bias"):
        open_checkpoint(directory)


def test_the_hf_port_of_video_llava_is_refused_by_name(directory):
    change_config(directory, architectures=["VideoLlavaForConditionalGeneration"])
    with pytest.raises(
        ValueError, match=r"VideoLlavaForConditionalGeneration is not read: .*dropped the temporal layers"
    ):
        open_checkpoint(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type='linear' is not supported; only 'mlp2x_gelu'"),
        ({"cross_attn_type": "gated"}, "cross_attn_type='gated' is not supported; known are"),
        ({"use_landmark_tokens": True}, "use_landmark_tokens=True is not supported"),
        ({"landmarks_grid": "yx"}, "landmarks_grid='yx' is not supported"),
        ({"mm_hidden_size": 63}, "mm_hidden_size=63 is not the tower's width of 64"),
        ({"mm_vision_select_layer": 7}, "vision_feature_layer=7 is not a layer of a tower of 3"),
        ({"new_key": 1}, "unknown keys.*new_key"),
    ],
)
def test_a_config_that_is_not_understood(directory, changes, message):
    change_config(directory, **changes)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(directory)


def test_a_tower_that_is_not_known(directory):
    change_config(directory, mm_image_tower="somebody/tower")
    assert open_checkpoint(directory).model_config["vision"]["width"] == 64, "its config.json lies beside"
    shutil.rmtree(directory.parent / "image_tower")
    with pytest.raises(ValueError, match=r"the tower 'somebody/tower' is not one of .*copy its config\.json to"):
        open_checkpoint(directory)


def test_towers_in_folders_of_their_own(directory):
    """The first LLaVA-1.5 holds no tower; nor may a checkpoint of Face-LLaVA."""
    ours = open_checkpoint(directory)
    tower = "model.image_tower.image_tower."
    taken: dict[str, np.ndarray] = {}

    def take(tensors):
        for key in [key for key in tensors if tower in key]:
            taken[f"vision_model.{key.removeprefix(tower)}"] = tensors.pop(key)

    change_weights(directory, take)
    with pytest.raises(ValueError, match=r"missing.*model\.image_tower\.image_tower\.embeddings"):
        open_checkpoint(directory)
    shutil.copytree(directory.parent / "image_tower", directory / "image_tower")
    save_file(taken, directory / "image_tower/model.safetensors")
    opened = open_checkpoint(directory)
    name = "params/vision/blocks/attn/qkv/kernel"
    np.testing.assert_array_equal(opened.params[name], ours.params[name])


def test_files_of_torch(directory, tmp_path):
    """Video-LLaVA, LanguageBind and Face-LLaVA are published as such; a conversion reads them without unpickling."""
    torch = pytest.importorskip("torch", reason="needs tests/requirements-torch.txt")
    expected = open_checkpoint(directory)
    tensors = {key: torch.from_numpy(value) for key, value in load_file(directory / "model.safetensors").items()}
    (directory / "model.safetensors").unlink()
    shards = {"pytorch_model-00001-of-00002.bin": [], "pytorch_model-00002-of-00002.bin": []}
    for number, key in enumerate(tensors):
        list(shards.values())[number % 2].append(key)
    for file, keys in shards.items():
        torch.save({key: tensors[key] for key in keys}, directory / file)
    index = {"weight_map": {key: file for file, keys in shards.items() for key in keys}}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="can run code when opened, so pickles are not read"):
        open_checkpoint(directory)
    convert(directory, tmp_path / "ours")
    for name, leaf in open_checkpoint(tmp_path / "ours").params.items():
        np.testing.assert_array_equal(leaf, expected.params[name])


def test_the_presets_are_the_published_sizes():
    net = encoder.build_llava(presets.facellava_7b("simple"))
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32)))
    count = lambda part: sum(x.size for x in trees.flatten(shapes["params"][part]).values())  # noqa: E731
    assert (count("vision"), count("video")) == (303_179_776 - 12_596_224 - 2_048, 404_187_136 - 16_804_864 - 2_048)
    assert count("projector") == 20_979_712
    assert count("landmarks") + count("attention") == 85_078_016 - 8_192  # without the norm that is not used
    assert (net.image_tokens, 8 * net.frame_tokens) == (256, 2_056)


def test_a_published_llava_1_5_leaves_transformers_defaults_out(tmp_path):
    """config.json of llava-hf/llava-1.5-7b-hf, which names few sizes of its decoder."""
    text = {"max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-5, "vocab_size": 32064}
    vision = {
        **{"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model"},
        **{"num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768},
        "vocab_size": 32000,
    }
    config = {
        **{"architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000},
        **{"projector_hidden_act": "gelu", "text_config": text, "vision_config": vision, "vocab_size": 32064},
        **{"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "pad_token_id": 32001},
    }
    read = llava_hf.model_config(config, "config.json")
    assert (read["decoder"]["width"], read["decoder"]["depth"], read["decoder"]["mlp_dim"]) == (4096, 32, 11008)
    assert (read["vision"]["act"], read["vision"]["select_layer"]) == ("quick_gelu", -2)


# token ids in, logits out: what is refused


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a model without weights: what these tests give it is refused before it computes."""
    ckpt = open_checkpoint(facellava.write(FACE, tmp_path_factory.mktemp("model")))
    return media_model.MediaModel(encoder.build("llava", ckpt.model_config, ""), {}, None, "highest")


PICTURE, CLIP = np.zeros((56, 56, 3), np.uint8), np.zeros((8, 56, 56, 3), np.uint8)
POINTS = np.full((68, 2), 0.5, np.float32)


@pytest.mark.parametrize(
    ("ids", "media", "message"),
    [
        ([1, 5], [{"image": PICTURE}], r"row 0: 0 placeholders \(-200\) for 1 pictures and frames"),
        ([1, -200], [{"video": CLIP}], r"1 placeholders .* for 8 pictures and frames; a picture takes one, a clip one"),
        ([1, -300], [], "id -300 is neither -200 nor from 0 to 319"),
        ([1] + [-200] * 16, [{"video": CLIP}, {"video": CLIP}], "more than one video"),
        ([1], [{"video": CLIP[:0]}], "a clip of 0 frames; the model reads 1 to 8"),
        ([1], [{"video": np.zeros((9, 56, 56, 3), np.uint8)}], "a clip of 9 frames"),
        ([1], [{"image": CLIP}], r"image is uint8 \[8, 56, 56, 3\], expected uint8 \[56,56,3\]"),
        ([1], [{"image": PICTURE.astype(float)}], "image is float64"),
        (
            [1],
            [{"image": PICTURE, "landmarks": POINTS[:5]}],
            r"landmarks are float32 \[5, 2\], expected float \[68, 2\]",
        ),
        ([1], [{"image": PICTURE, "landmarks": POINTS * np.nan}], "landmarks with NaN or infinity"),
        ([1], [{"video": CLIP, "landmarks": POINTS}], r"expected float \[8, 68, 2\]"),
        ([1], [{"tiles": PICTURE}], 'expected {"image": …} or {"video": …}'),
        ([], [], "row 0 needs ids"),
    ],
)
def test_rows_that_do_not_fit(model, ids, media, message):
    with pytest.raises(ValueError, match=message):
        model.forward([ids], [media])


def test_rows_and_media_are_as_many(model):
    with pytest.raises(ValueError, match="1 rows of ids and 0 of media"):
        model.forward([[1]], [])
