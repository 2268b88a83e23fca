"""Test the prompts of attributes and their features by a text tower."""

import json

import numpy as np
import pytest

from fvjax.data import attribute_faces, attribute_prompts
from fvjax.data.attribute_prompts import prompts
from fvjax.data.readers import celeba, fairface, maad, utkface
from fvjax.data.readers.expressions import EXPRESSIONS
from fvjax.tasks.attribute_prompts import features
from tests import tiny_clip


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Write a small CLIP with a tokenizer of single letters."""
    return tiny_clip.write(tmp_path_factory.mktemp("clip"))


def test_every_attribute_of_the_data_sets_has_a_prompt_of_its_own():
    for names in (celeba.NAMES, maad.NAMES, fairface.AGES, fairface.RACES, utkface.RACES, EXPRESSIONS):
        assert len(set(prompts(names))) == len(names)
    assert len(prompts(attribute_faces.NAMES)) == len(attribute_faces.NAMES)
    assert prompts(["Male", "No_Beard", "Bangs", "Big_Nose"]) == [
        "a photo of a man",
        "a photo of a person without a beard",
        "a photo of a person with bangs",
        "a photo of a person with a big nose",
    ]
    assert not set(attribute_prompts.WORDING) - {
        *(*celeba.NAMES, *maad.NAMES, *fairface.AGES, *fairface.GENDERS, *fairface.RACES, *utkface.RACES),
        *(*EXPRESSIONS, *attribute_faces.NAMES),
    }, "wordings that nothing uses"


def test_wordings_of_ones_own(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text('Freckles = "a person with freckles"\nMale = "a gentleman"\n')
    assert prompts(["Freckles", "Male"], file) == ["a photo of a person with freckles", "a photo of a gentleman"]
    with pytest.raises(ValueError, match=r"'Freckles' has no prompt \(1 of 2 have none\): write a line such as"):
        prompts(["Male", "Freckles"])
    file.write_text('Freckles = "a man"\n')
    with pytest.raises(ValueError, match="'Male' and 'Freckles' have the same prompt 'a man'"):
        prompts(["Male", "Freckles"], file)
    file.write_text("Freckles = 3\n")
    with pytest.raises(ValueError, match=r"own\.toml: Freckles = 3 is no wording"):
        prompts(["Freckles"], file)
    file.write_text("Freckles")
    with pytest.raises(ValueError, match=r"own\.toml: not TOML"):
        prompts(["Freckles"], file)


def test_features_are_of_the_prompt_alone(directory):
    both, one = features(directory, ["Male", "Bald"]), features(directory, ["Bald"])
    assert (both.shape, both.dtype) == ((2, 24), np.float32)
    np.testing.assert_allclose(both[1], one[0], atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 1e-3


def test_a_tokenizer_of_another_checkpoint(directory):
    file = directory / "vocab.json"
    text = file.read_text()
    file.write_text(json.dumps({**json.loads(text), "more": 100}))
    try:
        with pytest.raises(ValueError, match="101 tokens with end 99, the tower 100 and 99; copy all files from one"):
            features(directory, ["Bald"])
    finally:
        file.write_text(text)
