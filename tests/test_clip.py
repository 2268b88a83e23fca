"""Test CLIP's text tower, features and conversion against transformers' figures."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fvjax import trees
from fvjax.models import clip
from fvjax.models.preprocess import STATISTICS
from tests.reference import facellava
from tests.reference.recipe import GOLDEN
from weights_convert import open_checkpoint
from weights_convert.write import convert, invert

SET = "clip_tiny/clip"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(facellava.write(SET, tmp_path_factory.mktemp("clip")), "clip")


@pytest.fixture(scope="module")
def variables(checkpoint):
    return trees.unflatten({name: jnp.asarray(np.asarray(leaf)) for name, leaf in checkpoint.params.items()})


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "clip_tiny/golden.npz"))


@pytest.fixture(scope="module")
def model(checkpoint):
    return clip.build(checkpoint.model_config)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("end", [99, None])
def test_features_of_texts(model, variables, golden, end):
    """The end is found as the first end token, or, as in files with eos_token_id 2, as the largest id."""
    tower = model.text.clone(end=end, parent=None, name=None)
    own = {"params": variables["params"]["text"]}
    close(tower.apply(own, golden["ids"], method="pooled"), golden["text_pooled"])
    close(tower.apply(own, golden["ids"]), golden["text_features"])


def test_states_of_every_layer(model, variables, golden):
    own = variables["params"]["text"]
    for depth in (1, 2):
        tower = model.text.clone(depth=depth, parent=None, name=None)
        params = own | {"blocks": jax.tree.map(lambda x, depth=depth: x[:depth], own["blocks"])}
        states = tower.apply({"params": params}, golden["ids"][2:3], method="states")
        close(states[0], np.asarray(golden["text2_hidden_states"]).reshape(3, 77, -1)[depth])


def test_a_token_after_the_end_changes_nothing(model, variables, golden):
    own = {"params": variables["params"]["text"]}
    ids = np.array(golden["ids"])
    end = int(golden["end_positions"][0])
    ids[0, end + 1 :] = 5
    other = ids.copy()
    other[0, end - 1] = (ids[0, end - 1] + 1) % 90
    features, changed = (model.text.apply(own, each) for each in (ids, other))
    close(features, golden["text_features"])
    assert np.abs(changed[0] - features[0]).max() > 1e-4


def test_features_of_pictures_and_logits(model, variables, golden):
    pixels = (golden["images"].astype(np.float32) / 255 - STATISTICS["clip"][0]) / STATISTICS["clip"][1]
    images = model.apply(variables, pixels, method="images")
    close(images, golden["image_embeds"])
    close(model.apply(variables, pixels, golden["ids"], method="logits"), golden["logits_per_image"])


def test_a_text_that_is_too_long(model, variables):
    with pytest.raises(ValueError, match="a text of 78 tokens; this tower reads at most 77"):
        model.text.apply({"params": variables["params"]["text"]}, jnp.zeros((1, 78), int))


def test_there_and_back_is_exact(checkpoint, tmp_path):
    """Every tensor of the whole model, bit for bit; nothing is left out."""
    assert convert(checkpoint.path, tmp_path / "ours", "clip").ignored == []
    invert(tmp_path / "ours", tmp_path / "back")
    before, after = (load_file(d / "model.safetensors") for d in (checkpoint.path, tmp_path / "back"))
    assert {k: (v.shape, v.tobytes()) for k, v in after.items()} == {
        k: (v.shape, v.tobytes()) for k, v in before.items()
    }
    assert json.loads((tmp_path / "back/config.json").read_text()) == checkpoint.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eos_token_id": 100}, "eos_token_id=100 is outside the vocabulary of 100"),
        ({"num_attention_heads": 5}, "hidden_size=32 has no 5 equal heads"),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported"),
        ({"rotary": True}, "unknown keys"),
    ],
)
def test_bad_text_configurations(tmp_path, change, message):
    directory = facellava.write(SET, tmp_path)
    config = json.loads((directory / "config.json").read_text())
    config["text_config"] |= change
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        open_checkpoint(directory, "clip")


def test_the_legacy_end_token(tmp_path):
    directory = facellava.write(SET, tmp_path)
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (directory / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(directory, "clip").model_config["text"]["end"] is None
