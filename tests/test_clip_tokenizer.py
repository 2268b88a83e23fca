"""Test CLIP's tokenizer against ids that transformers 5.23 (CLIPTokenizer) gives for the same small vocabulary."""

import json
import pickle

import pytest
from tokenizers import pre_tokenizers

from fvjax.data.tokenizers import clip, load

PAIRS = (
    *("p h", "ph o", "pho t", "phot o</w>", "w i", "t h</w>", "wi th</w>", "b e", "be a", "bea r", "bear d</w>"),
    *("' s</w>", "Ã ©</w>", "o f</w>"),
)


@pytest.fixture
def directory(tmp_path):
    """Write a tokenizer of all bytes and a few merges, in the order of CLIP's own vocabulary."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [pair.replace(" ", "") for pair in PAIRS]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *merged, clip.BEGIN, clip.END]
    (tmp_path / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(PAIRS) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "ids", "decoded"),
    [
        (
            "A Photo of  a person\twith a beard",
            [320, 515, 525, 320, 79, 68, 81, 82, 78, 333, 518, 320, 522],
            "a photo of a person with a beard",
        ),
        (
            "it's 5 o'clock, café!",
            [72, 339, 523, 276, 334, 262, 66, 75, 78, 66, 330, 267, 66, 64, 69, 524, 256],
            "it 's 5 o ' clock , café !",
        ),
        ("PHOTOS with-beards 42", [514, 78, 338, 518, 268, 521, 67, 338, 275, 273], "photos with - beards 4 2"),
        ("   ", [], ""),
        (
            "naïve 日本 <|endoftext|> x",
            [77, 64, 127, 107, 85, 324, 162, 245, 98, 162, 250, 361, 527, 343],
            "naïve 日本 <|endoftext|>x",
        ),
    ],
)
def test_ids_and_texts(directory, text, ids, decoded):
    tokenizer = pickle.loads(pickle.dumps(load(directory)))  # noqa: S301 (our own bytes)
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == decoded


def test_rows_of_a_text_tower(directory):
    tokenizer = clip.Tokenizer(directory)
    rows = tokenizer.rows(["of", "a photo"], 5)
    assert rows.tolist() == [[526, 525, 527, 527, 527], [526, 320, 515, 527, 527]]
    with pytest.raises(ValueError, match="'a photo of a beard' has 7 tokens with begin and end; at most 6 fit"):
        tokenizer.rows(["a photo of a beard"], 6)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("vocab.json", '{"a": 0}', r"vocab\.json: without <\|startoftext\|>, so it is not CLIP's"),
        ("vocab.json", '{"<|startoftext|>": 0, "<|endoftext|>": 5}', "the ids of 2 tokens are not 0, 1, 2"),
        ("vocab.json", None, r"vocab\.json: missing or empty"),
        ("merges.txt", None, r"merges\.txt: missing"),
        ("merges.txt", "q q\n", "vocab.json and merges.txt do not fit together"),
        ("merges.txt", "a b c\n", "line 1 must be two tokens"),
        (
            "tokenizer_config.json",
            '{"tokenizer_class": "CLIPTokenizer", "do_lower_case": false}',
            "do_lower_case=False",
        ),
    ],
)
def test_damaged_files(directory, file, text, message):
    (directory / file).unlink() if text is None else (directory / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        load(directory)
