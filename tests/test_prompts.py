"""Test the tokenizer against results of the slow InternLM2 tokenizer, and a checkpoint's files in every state."""

import importlib
import io
import json
import pickle
import shutil
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from fvjax import tasks
from fvjax.config import typed
from fvjax.data.prompts import pair_prompt_ids, prompt_ids, yes_no_ids
from fvjax.data.tokenizers.internlm2 import Tokenizer
from fvjax.parallel import sharding
from fvjax.training import model

GOLDEN = json.loads(Path("tests/golden/internlm2_tokenizer.json").read_text())
# The added tokens of OpenGVLab/InternVL2-2B. Those from 92544 on are not pieces of tokenizer.model.
ADDED = {"<unk>": 0, "<s>": 1, "</s>": 2, "<|plugin|>": 92538, "<|interpreter|>": 92539, "<|action_end|>": 92540}
ADDED |= {"<|action_start|>": 92541, "<|im_end|>": 92542, "<|im_start|>": 92543, "<img>": 92544, "</img>": 92545}
ADDED |= {"<IMG_CONTEXT>": 92546, "<quad>": 92547, "</quad>": 92548, "<ref>": 92549, "</ref>": 92550, "<box>": 92551}
ADDED |= {"</box>": 92552}


def describe(folder: Path, added: dict[str, int]) -> None:
    """Write the three files beside tokenizer.model, as in InternVL2-2B."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    decoder = {str(id): {"content": text, **flags} for text, id in added.items()}
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": {"content": "<unk>", **flags}}
    special["additional_special_tokens"] = list(added)[3:]
    (folder / "added_tokens.json").write_text(json.dumps({t: id for t, id in added.items() if id > 2}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder, "bos_token": "<s>"}))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


@pytest.fixture(scope="module")
def internvl(real_data, tmp_path_factory) -> Path:
    """Return the tokenizer's files of OpenGVLab/InternVL2-2B."""
    file = real_data / "tokenizers/internlm2.model"
    if not file.is_file():
        pytest.skip(f"no {file}: InternLM2's tokenizer.model, 1,477,754 bytes")
    folder = tmp_path_factory.mktemp("internvl")
    shutil.copy(file, folder / "tokenizer.model")
    describe(folder, ADDED)
    return folder


@pytest.fixture(scope="module")
def trained() -> bytes:
    """Return a byte-fallback BPE model like InternLM2's, with 300 pieces."""
    out = io.BytesIO()
    text = ["Do these two images show the same person? Answer Yes or No.", "Yes Yes No No No", "one two three"] * 20
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(text),
        model_writer=out,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return out.getvalue()


@pytest.fixture
def small(trained, tmp_path) -> Path:
    (tmp_path / "tokenizer.model").write_bytes(trained)
    describe(tmp_path, {"<unk>": 0, "<s>": 1, "</s>": 2, "<img>": 300, "<img>>": 301, "<|end|>": 302})
    return tmp_path


def test_ids_are_the_slow_tokenizers(internvl):
    tokenizer = Tokenizer(internvl)
    assert {text: tokenizer.encode(text) for text in GOLDEN["encode"]} == GOLDEN["encode"]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (GOLDEN["bos_id"], GOLDEN["eos_id"])


def test_prompts_and_answers_of_internvl2(internvl):
    tokenizer = Tokenizer(internvl)
    one, two = list(GOLDEN["encode"].values())[:2]
    assert (prompt_ids(tokenizer), pair_prompt_ids(tokenizer)) == (one, two)
    assert (len(one), len(two)) == (10, 14)
    assert yes_no_ids(tokenizer) == (9583, 2917)
    assert tokenizer.added["<IMG_CONTEXT>"] == 92546
    assert tokenizer.size == 92553


def test_added_tokens_are_found_in_a_text(internvl):
    tokenizer = Tokenizer(internvl)
    text = "<s><|im_start|>Yes<img><IMG_CONTEXT><IMG_CONTEXT></img> Yes</s>"
    assert tokenizer.encode(text) == [1, 92543, 9583, 92544, 92546, 92546, 92545, 7560, 2]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", [*GOLDEN["encode"], "", "  <img> x </img>\n", "\ttab", "人<box>脸"])
def test_decoding_gives_the_text_back(internvl, text):
    tokenizer = Tokenizer(internvl)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def slow(folder: Path):
    """Return transformers' own splitting at added tokens over the same pieces, as in a checkpoint's remote code."""
    transformers = pytest.importorskip("transformers")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    config = json.loads((folder / "tokenizer_config.json").read_text())

    class Slow(transformers.PreTrainedTokenizer):
        vocab_size = property(lambda self: len(pieces))

        def get_vocab(self):
            return {pieces.IdToPiece(i): i for i in range(len(pieces))} | self.added_tokens_encoder

        def _tokenize(self, text, **_):
            return pieces.EncodeAsPieces(text)

        def _convert_token_to_id(self, token):
            return pieces.PieceToId(token)

        def _convert_id_to_token(self, index):
            return pieces.IdToPiece(index)

    decoder = {int(i): transformers.AddedToken(**token) for i, token in config["added_tokens_decoder"].items()}
    special = json.loads((folder / "special_tokens_map.json").read_text())
    special["unk_token"] = special["unk_token"]["content"]
    return Slow(added_tokens_decoder=decoder, **special)


def test_any_text_has_the_ids_of_the_slow_tokenizer(internvl):
    ours, theirs = Tokenizer(internvl), slow(internvl)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.sampled_from([*ADDED, " ", "\n", "Yes", " No", "<im", ">", "<|", "▁"]) | st.text(max_size=8)))
    def check(parts):
        text = "".join(parts)
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)

    check()


def test_the_longest_added_token_wins(small):
    tokenizer = Tokenizer(small)
    assert tokenizer.encode("<img>><img><|end|>") == [301, 300, 302]
    assert tokenizer.size == 303


def test_bytes_that_are_not_text_and_ids_that_are_none(small):
    tokenizer = Tokenizer(small)
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"
    for id in (-1, 303):
        with pytest.raises(ValueError, match=f"no token has id {id}, there are 303"):
            tokenizer.decode([5, id])


def test_a_pickled_tokenizer_is_the_same(small):
    """Grain pickles the functions of a pipeline for worker processes."""
    tokenizer = Tokenizer(small)
    copy = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301 (our own bytes)
    text = "Do these <img> two"
    assert copy.encode(text) == tokenizer.encode(text)
    assert copy.decode(tokenizer.encode(text)) == text


def test_tokenizer_model_alone_is_enough(small):
    for file in ("added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"):
        (small / file).unlink()
    tokenizer = Tokenizer(small)
    assert (tokenizer.added, tokenizer.size) == ({}, 300)
    assert tokenizer.decode(tokenizer.encode("one <img>")) == "one <img>"


def half_of_the_pieces(model: bytes) -> bytes:
    """Cut the file between two pieces. A piece is the byte 10, its length and its bytes."""
    at = 0
    for _ in range(150):
        assert model[at] == 10
        at += 2 + model[at + 1]
    return model[:at]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (None, "tokenizer.model: missing; copy it from the checkpoint again"),
        (lambda model: b"", "tokenizer.model: not a SentencePiece model; copy it"),
        (lambda model: b"version https://git-lfs.github.com/spec/v1\n", "not a SentencePiece model; copy it"),
        (lambda model: model[:1001], "not a SentencePiece model; copy it"),
        (half_of_the_pieces, "not a SentencePiece model; copy it"),
    ],
)
def test_a_damaged_model_is_named(small, damage, message):
    file = small / "tokenizer.model"
    if damage:
        file.write_bytes(damage(file.read_bytes()))
    else:
        file.unlink()
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer(small)
    assert str(error.value).startswith(str(small))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("added_tokens.json", '{"<img>": 301}', "token '<img>' with id 300 contradicts"),
        ("added_tokens.json", '{"<image>": 300}', "token '<img>' with id 300 contradicts"),
        ("added_tokens.json", '{"<box>": 305}', r"has 300 pieces, the added tokens after them are .*305"),
        ("added_tokens.json", "{", "added_tokens.json: not JSON"),
        ("added_tokens.json", "[]", "added_tokens.json: not a JSON object"),
        ("special_tokens_map.json", '{"eos_token": "<|endoftext|>"}', r"map.json: token '<\|endoftext\|>' has no id"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"300": {"content": "<img>", "lstrip": true}}}',
            "config.json: token '<img>' has lstrip, which this tokenizer cannot do",
        ),
    ],
)
def test_contradictions_are_named(small, file, content, message):
    (small / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        Tokenizer(small)


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
@pytest.mark.parametrize(
    ("file", "described"),
    [
        ("tokenizer_config.json", lambda token: {"added_tokens_decoder": {"300": token}}),
        ("tokenizer_config.json", lambda token: {"bos_token": token}),
        ("tokenizer_config.json", lambda token: {"additional_special_tokens": ["<|end|>", token]}),
        ("special_tokens_map.json", lambda token: {"unk_token": token}),
        ("special_tokens_map.json", lambda token: {"additional_special_tokens": ["<|end|>", token]}),
    ],
)
def test_tokens_that_look_at_their_neighbours_are_refused_wherever_they_are_described(small, file, described, flag):
    """Such a token removes spaces beside it, or only counts between spaces. Ignoring that would give other ids."""
    token = {"content": "<img>", "normalized": False, "special": True}
    (small / file).write_text(json.dumps(described(token | {flag: True})))
    with pytest.raises(ValueError, match=f"{file}: token '<img>' has {flag}, which this tokenizer cannot do"):
        Tokenizer(small)
    (small / file).write_text(json.dumps(described(token | {flag: False})))
    assert Tokenizer(small).size == 303


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer_class", "LlamaTokenizer"),
        ("split_special_tokens", True),
        ("do_lower_case", True),
        ("add_prefix_space", True),
        ("sp_model_kwargs", {"enable_sampling": True, "alpha": 0.1}),
    ],
)
def test_settings_that_would_change_the_ids_are_refused(small, key, value):
    file = small / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {key: value}))
    with pytest.raises(ValueError, match=f"tokenizer_config.json: {key}=.* changes the ids"):
        Tokenizer(small)
    published = {"tokenizer_class": "InternLM2Tokenizer", "split_special_tokens": False, "sp_model_kwargs": {}}
    file.write_text(json.dumps(config | published | {"chat_template": "x", "model_max_length": 8192, key: None}))
    assert Tokenizer(small).size == 303


def test_answers_of_several_tokens_are_refused(small, monkeypatch):
    tokenizer = Tokenizer(small)
    yes_no_ids(tokenizer)
    monkeypatch.setattr(tokenizer, "encode", {"Yes": [7, 8], "No": [9]}.get)
    with pytest.raises(ValueError, match=r"must be one token each, here they are \[7, 8\] and \[9\]"):
        yes_no_ids(tokenizer)


@pytest.mark.parametrize("name", ["mllm_lora", "pair_lora"])
def test_a_configs_text_becomes_ids(name, internvl, monkeypatch):
    config = importlib.import_module(f"configs.{name}").get_config()
    text, config.init_from = config.prompt.text, str(internvl)
    monkeypatch.setattr(model, "open_pretrained", lambda *_: None)  # the directory has a tokenizer but no weights

    def ids_of_model() -> tuple:
        task = tasks.get(config.task)(typed(config), Path())
        encoder = model.open_model(typed(config), task, sharding.one_device()).encoder
        return encoder.prompt, encoder.yes_no

    ids, yes_no = ids_of_model()
    assert ids == tuple(GOLDEN["encode"][text])
    assert yes_no == ((9583, 2917) if name == "pair_lora" else ())
    config.prompt.update({"text": "", "ids": (1, 2), "yes_no_ids": (3, 4)})
    config.init_from = ""  # so the ids cannot come from a tokenizer
    assert ids_of_model() == ((1, 2), (3, 4) if name == "pair_lora" else ())
