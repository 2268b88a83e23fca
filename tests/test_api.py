"""Test fvjax.load as users call it."""

import json

import jax
import numpy as np
import pytest

import fvjax
from tests.reference.recipe import GOLDEN, write_checkpoint
from tests.test_convert import IRESNET, iresnet_shapes
from weights_convert.write import convert

TINY = GOLDEN / "internvl_tiny"


@pytest.fixture(scope="module")
def golden():
    return np.load(TINY / "golden.npz")


def test_vit_from_both_layouts_with_and_without_adapters(tmp_path, golden):
    convert(TINY, tmp_path / "ours")
    tolerance = {"rtol": 0, "atol": 5e-5}
    for path in (TINY, tmp_path / "ours"):
        got = fvjax.load(path, scenario="vit").embed(golden["faces"])
        assert (got.dtype, got.shape) == (np.float32, (8, 32))
        np.testing.assert_allclose(got, golden["vit_mean"], **tolerance)
    cls = fvjax.load(str(TINY), scenario="vit", pool="cls")
    np.testing.assert_allclose(cls.embed(golden["faces"]), golden["vit_cls"], **tolerance)
    adapted = fvjax.load(tmp_path / "ours", scenario="vit", adapters=TINY / "adapters.safetensors")
    np.testing.assert_allclose(adapted.embed(golden["faces"]), golden["vit_lora_mean"], **tolerance)


def test_mllm_from_both_layouts_with_and_without_adapters(tmp_path, golden):
    convert(TINY, tmp_path / "ours", "vlm")
    adapters, prompt = TINY / "adapters.safetensors", golden["prompt_ids"]
    for path, settings, key in [
        (TINY, {}, "mllm_visual_mean"),
        (tmp_path / "ours", {"pool": "all_mean", "prompt_ids": prompt}, "mllm_all_mean"),
        (TINY, {"pool": "last_token", "prompt_ids": prompt.tolist()}, "mllm_last_token"),
        (tmp_path / "ours", {"adapters": adapters}, "mllm_lora_visual_mean"),
    ]:
        got = fvjax.load(path, scenario="mllm", **settings).embed(golden["faces"])
        assert (got.dtype, got.shape) == (np.float32, (8, 64))
        np.testing.assert_allclose(got, golden[key], rtol=0, atol=5e-5, err_msg=key)
    vit = fvjax.load(tmp_path / "ours", scenario="vit").embed(golden["faces"])  # the tower of a converted whole model
    np.testing.assert_allclose(vit, golden["vit_mean"], rtol=0, atol=5e-5)


def test_pair(golden):
    ids = {"prompt_ids": golden["pair_prompt_ids"], "yes_no_ids": golden["yes_no_ids"]}
    a, b = np.split(golden["faces"], 2)
    model = fvjax.load(TINY, scenario="pair", **ids)
    got = model.p_same(a, b)
    assert (got.dtype, got.shape) == (np.float32, (4,))
    np.testing.assert_allclose(got, golden["pair_pyes"], rtol=1e-5)
    adapted = fvjax.load(TINY, scenario="pair", adapters=TINY / "adapters.safetensors", **ids).p_same(a, b)
    two = golden["pair_lora_logits"][:, golden["yes_no_ids"]]
    np.testing.assert_allclose(adapted, 1 / (1 + np.exp(two[:, 1] - two[:, 0])), rtol=1e-5)
    with pytest.raises(ValueError, match="no embeddings"):
        model.embed(a)
    with pytest.raises(ValueError, match="there are 4 and 3"):
        model.p_same(a, b[:3])


def test_bfloat16_is_close_and_not_the_same(golden):
    got = fvjax.load(TINY, scenario="vit", dtype="bfloat16").embed(golden["faces"])
    assert got.dtype == np.float32
    error = np.linalg.norm(got - golden["vit_mean"]) / np.linalg.norm(golden["vit_mean"])
    assert 1e-5 < error < 2e-2, error


def test_resnet_in_any_number_of_images(tmp_path, golden):
    model = fvjax.load(write_checkpoint(tmp_path / "r", IRESNET, iresnet_shapes()), scenario="resnet")
    model.batch_size = 4
    faces = golden["faces"][:7]
    got = model.embed(faces)
    assert got.shape == (7, 6)
    np.testing.assert_allclose(got, np.concatenate([model.embed(face[None]) for face in faces]), atol=1e-5)
    assert model.embed(faces[:0]).shape == (0, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scenario": "mllm", "pool": "all_mean"}, "depends on the text after the image: give its token ids"),
        ({"scenario": "mllm", "pool": "mean"}, "vlm has no pooling 'mean'"),
        ({"scenario": "mllm", "yes_no_ids": (1, 2)}, "yes_no_ids do not go"),
        ({"scenario": "mllm", "pool": "all_mean", "prompt_ids": [256]}, "prompt id 256 is outside .* of 256"),
        ({"scenario": "pair", "prompt_ids": [1]}, "needs prompt_ids, and yes_no_ids"),
        ({"scenario": "pair", "yes_no_ids": (1, 2)}, "needs prompt_ids, and yes_no_ids"),
        ({"scenario": "pair", "prompt_ids": [1], "yes_no_ids": (2, 2)}, "two different token ids"),
        ({"scenario": "pair", "prompt_ids": [1], "yes_no_ids": (2, 300)}, "300 is outside the vocabulary of 256"),
        ({"scenario": "pair", "prompt_ids": [1], "yes_no_ids": (1, 2), "pool": "mean"}, "takes no pool"),
        ({"scenario": "clip"}, "'clip' is unknown"),
        ({"scenario": "resnet"}, 'holds a vision_transformer, but scenario="resnet" needs a iresnet'),
        ({"scenario": "resnet", "pool": "mean"}, "takes neither pool nor adapters"),
        ({"scenario": "vit", "pool": "max"}, "max"),
        ({"scenario": "vit", "dtype": "float16"}, "'float16' is unknown"),
        ({"scenario": "vit", "prompt_ids": [1]}, "do not go with"),
        ({"scenario": "vit", "adapters": "/no/such.safetensors"}, "/no/such.safetensors is missing"),
    ],
)
def test_arguments_that_do_not_go_together(arguments, message):
    with pytest.raises(ValueError, match=message):
        fvjax.load(TINY, **arguments)


def test_faces_of_another_kind():
    model = fvjax.load(TINY, scenario="vit")
    count = sum(leaf.size for leaf in jax.tree.leaves(model.variables["params"]))
    shown = f"<fvjax model VisionTransformer: {count:,} parameters; embed(faces) of uint8 [N,112,112,3]>"
    assert repr(model) == shown
    with pytest.raises(ValueError, match=r"must be uint8 \[N,112,112,3\]"):
        model.embed(np.zeros((1, 448, 448, 3), np.uint8))
    for faces in (np.zeros((1, 112, 112, 3), np.float32), np.zeros((112, 112, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"must be uint8 \[N,112,112,3\]"):
            model.embed(faces)
    with pytest.raises(ValueError, match='scenario="pair"'):
        model.p_same(np.zeros((1, 112, 112, 3), np.uint8), np.zeros((1, 112, 112, 3), np.uint8))


def test_a_checkpoint_that_is_not_there_names_the_command_that_gets_it(tmp_path):
    with pytest.raises(ValueError) as error:
        fvjax.load(tmp_path / "InternVL2-2B", scenario="vit")
    assert str(error.value).startswith(
        f"{tmp_path}/InternVL2-2B: no such directory; "
        f"`python -m weights_convert --src=OWNER/NAME --dst={tmp_path}/InternVL2-2B` downloads a checkpoint"
    )


def test_not_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"config.json is missing"):
        fvjax.load(tmp_path, scenario="vit")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["InternVLChatModel"]}))
    with pytest.raises(ValueError, match="has no 'image_size'"):
        fvjax.load(tmp_path, scenario="vit")
