"""Test the tokenizers against golden ids of transformers' slow ones, and a checkpoint's files in every state."""

import contextlib
import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
from transformers.models.qwen2 import tokenization_qwen2

from fvjax.data import tokenizers
from fvjax.data.tokenizers import byte_level, internlm2, llama
from tests import tiny_bpe

GOLDEN = json.loads(Path("tests/golden/qwen2_tokenizer.json").read_text())
QWEN2_FILES = {
    "whole": ("tokenizer.json", "tokenizer_config.json"),
    "parts": ("vocab.json", "merges.txt", "tokenizer_config.json"),
}
# plain_tokenizer_calls of the slow LlamaTokenizer, transformers 4.31, legacy, without bos
LLAMA_IDS = {
    "": [],
    " ": [259],
    "\n": [29871, 13],
    "Yes": [3869],
    " Yes": [29871, 3869],
    "Hello, world!  two  spaces": [15043, 29892, 3186, 29991, 29871, 1023, 29871, 8162],
    "naïve café – 漢字 ☃": [1055, 30085, 345, 274, 28059, 785, 29871, 31652, 30578, 29871, 229, 155, 134],
    "</s>": [2],
    "<s>": [1],
    "a</s>b": [263, 2, 289],
    "AU12": [319, 29965, 29896, 29906],
}


@pytest.fixture(scope="module", params=QWEN2_FILES.values(), ids=QWEN2_FILES)
def qwen2(request, real_data, tmp_path_factory) -> tokenizers.Tokenizer:
    """Open InternVL3's tokenizer from tokenizer.json, and from vocab.json with merges.txt."""
    source = real_data / "tokenizers/qwen2_internvl3"
    if not (source / "tokenizer.json").is_file():
        pytest.skip(f"no {source}: InternVL3's tokenizer files, 9 MB")
    folder = tmp_path_factory.mktemp("qwen2")
    for file in request.param:
        shutil.copy(source / file, folder)
    return tokenizers.load(folder)


@pytest.fixture
def tiny(tmp_path) -> Path:
    return tiny_bpe.write(tmp_path)


def test_qwen2s_golden_ids_and_texts(qwen2):
    assert len(GOLDEN) == 86
    for case in GOLDEN:
        text = case["text"]
        assert qwen2.encode(text) == case["ids"], text
        assert qwen2.decode(case["ids"]) == (text if case["decoded"] == "same" else case["decoded"])


def test_qwen2s_special_ids(qwen2):
    assert (qwen2.size, qwen2.bos_id, qwen2.eos_id) == (151674, None, 151645)
    assert (qwen2.added["<|im_start|>"], qwen2.added["<IMG_CONTEXT>"], len(qwen2.added)) == (151644, 151667, 31)


@pytest.mark.parametrize("write", [tiny_bpe.write, tiny_bpe.write_vocabulary])
def test_ids_of_a_tiny_tokenizer(write, tmp_path):
    tokenizer = tokenizers.load(write(tmp_path))
    byte = tiny_bpe.document()["model"]["vocab"]
    ids = [258 + 1, byte["Ġ"], byte["Ã"], byte["©"], tiny_bpe.ID["<img>"], 257, byte["1"], byte["2"]]
    assert tokenizer.encode("Yes e\u0301<img>\n\n\n12") == ids, "merges, NFC, added tokens"
    assert tokenizer.decode(ids) == "Yes é<img>\n\n\n12"
    assert (tokenizer.size, tokenizer.bos_id, tokenizer.eos_id) == (267, None, tiny_bpe.ID["<|im_end|>"])
    assert tokenizer.added == tiny_bpe.ID


def test_merges_that_begin_with_a_hash_are_no_comments(tmp_path):
    tiny_bpe.write_vocabulary(tmp_path)
    for file, old, new in (("merges.txt", "Ye s", "# #"), ("vocab.json", '"Yes"', '"##"')):
        (tmp_path / file).write_text((tmp_path / file).read_text().replace(old, new))
    assert tokenizers.load(tmp_path).encode("##") == [259]


def test_texts_are_split_as_transformers_does():
    assert tokenization_qwen2.PRETOKENIZE_REGEX == byte_level.QWEN2_SPLIT


def test_decoding_of_halves_and_of_odd_added_tokens(tiny):
    tokenizer = tokenizers.load(tiny)
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"
    text = "x<é b>é"
    assert tokenizer.encode(text)[1] == tiny_bpe.ID["<é b>"]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([]) == ""
    for id in (-1, 267):
        with pytest.raises(ValueError, match=f"no token has id {id}, there are 267"):
            tokenizer.decode([5, id])


def test_text_with_half_a_surrogate_pair_is_refused(tiny):
    with pytest.raises(ValueError, match=r"cannot encode 'a\\ud800'; it is not valid Unicode"):
        tokenizers.load(tiny).encode("a\ud800")


def test_a_pickled_tokenizer_is_the_same(tiny):
    """Grain pickles the functions of a pipeline for worker processes, where the files may be gone."""
    tokenizer = tokenizers.load(tiny)
    data = pickle.dumps(tokenizer)
    (tiny / "tokenizer.json").unlink()
    copy = pickle.loads(data)  # noqa: S301 (our own bytes)
    text = "Yes <img>\n\né"
    assert copy.encode(text) == tokenizer.encode(text)
    assert copy.decode(tokenizer.encode(text)) == text
    assert copy.added == tokenizer.added


def test_truncation_and_padding_of_the_file_are_not_applied(tiny):
    document = tiny_bpe.document()
    document["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    document["padding"] = padding | {"pad_type_id": 0, "pad_token": "!"}
    (tiny / "tokenizer.json").write_text(json.dumps(document))
    assert len(tokenizers.load(tiny).encode("abc")) == 3


def test_special_tokens_may_be_in_their_own_map_or_nowhere(tiny):
    config = tiny_bpe.config()
    del config["eos_token"]
    (tiny / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokenizers.load(tiny).eos_id is None
    (tiny / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    assert tokenizers.load(tiny).eos_id == tiny_bpe.ID["<|im_end|>"]
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        (tiny / file).unlink()
    tokenizer = tokenizers.load(tiny)
    assert (tokenizer.eos_id, tokenizer.encode("<img>")) == (None, [tiny_bpe.ID["<img>"]])


# ---- damaged files


def change(**changes):
    """Return a function that changes entries of tokenizer.json; `a__b` is the entry b of a."""

    def apply(text: str) -> bytes:
        document = json.loads(text)
        for key, value in changes.items():
            *path, last = key.split("__")
            part = document
            for step in path:
                part = part[step]
            part[last] = value(part[last]) if callable(value) else value
        return json.dumps(document).encode()

    return apply


WORDS = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: b"", "not a tokenizer .*; copy it from the checkpoint again"),
        (lambda text: b"version https://git-lfs.github.com/spec/v1\n", "not a tokenizer"),
        (lambda text: text[:1000].encode(), "not a tokenizer"),
        (lambda text: text.encode("utf-16"), "not UTF-8"),
        (lambda text: b"[" * 100_000, "not a tokenizer"),
        (change(model__merges=lambda merges: [*merges, "nothing such"]), "not a tokenizer"),
        (change(model__vocab=lambda vocab: {**vocab, "!": 2**31}), "ids of 267 tokens are not 0 to 266"),
        (change(model__vocab=lambda vocab: {**vocab, "!": 5}), "ids of 267 tokens are not 0 to 266"),
        (change(model__vocab=lambda vocab: vocab | {"zz": 260}), "'<|endoftext|>' cannot have id 260"),
        (change(added_tokens=lambda tokens: [{**tokens[0], "id": 3}, *tokens[1:]]), "'<|endoftext|>' cannot have id 3"),
        (change(model__dropout=0.5), "has dropout 0.5, so that ids would be random"),
        (change(pre_tokenizer=None), "has a pre_tokenizer that makes '' of 'é a'"),
        (change(pre_tokenizer={"type": "Whitespace"}), "makes 'éa' of 'é a'"),
        (change(pre_tokenizer__pretokenizers=lambda p: [p[0], p[1] | {"add_prefix_space": True}]), "makes 'ĠÃ©Ġa'"),
        (change(decoder={"type": "Fuse"}), "is BPE with the decoder Fuse, not byte-level BPE"),
        (change(model=WORDS, added_tokens=[]), "is WordLevel with"),
    ],
)
def test_a_damaged_tokenizer_json_is_named(tiny, damage, message):
    file = tiny / "tokenizer.json"
    (tiny / "tokenizer_config.json").unlink()
    file.write_bytes(damage(file.read_text()))
    with pytest.raises(ValueError, match=f"tokenizer.json: .*{message.replace('|', '[|]')}"):
        tokenizers.load(tiny)


def test_a_character_without_tokens_is_refused(tiny):
    """The library would leave it out without a word."""
    document = tiny_bpe.document()
    vocabulary = document["model"]["vocab"]
    vocabulary["another"] = vocabulary.pop("Ã")
    (tiny / "tokenizer.json").write_text(json.dumps(document))
    tokenizer = tokenizers.load(tiny)
    assert tokenizer.decode(tokenizer.encode("Yes<img>½")) == "Yes<img>½"
    with pytest.raises(ValueError, match=r"no tokens for the character 'é'; leave it out of the text"):
        tokenizer.encode("Yes, 'été'.")


LIMITS = {"tokenizer.json": 32, "vocab.json": 32, "merges.txt": 32, "tokenizer_config.json": 4, "added_tokens.json": 4}


@pytest.mark.parametrize(("name", "limit"), LIMITS.items())
def test_files_of_any_size_are_not_read(tmp_path, name, limit):
    (tiny_bpe.write if name == "tokenizer.json" else tiny_bpe.write_vocabulary)(tmp_path)
    with (tmp_path / name).open("r+b") as stream:
        stream.truncate(1 << 30)  # sparse
    with pytest.raises(ValueError, match=f"{name}: larger than {limit} MB"):
        tokenizers.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer_class", "LlamaTokenizerFast"),
        ("add_bos_token", True),
        ("add_eos_token", True),
        ("add_prefix_space", True),
        ("split_special_tokens", True),
        ("clean_up_tokenization_spaces", True),
        ("errors", "strict"),
    ],
)
def test_settings_that_would_change_the_ids_are_refused(tiny, key, value):
    (tiny / "tokenizer_config.json").write_text(json.dumps(tiny_bpe.config() | {key: value}))
    with pytest.raises(ValueError, match=f"tokenizer_config.json: {key}=.* changes the ids"):
        tokenizers.load(tiny)
    (tiny / "tokenizer_config.json").write_text(json.dumps(tiny_bpe.config() | {key: None, "chat_template": "x"}))
    assert tokenizers.load(tiny).size == 267


CONFIG, ADDED, MAP = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
IMG = str(tiny_bpe.ID["<img>"])
STRIPS = {**tiny_bpe.FLAGS, "content": "<img>", "lstrip": True}


@pytest.mark.parametrize(
    ("file", "contents", "message"),
    [
        (CONFIG, {"added_tokens_decoder": {IMG: {"content": "<pic>"}}}, "token 263 is .*<img>.* says .*<pic>"),
        (CONFIG, {"added_tokens_decoder": {"300": {"content": "<pic>"}}}, "token 300 is None.* says .*<pic>"),
        (CONFIG, {"added_tokens_decoder": {IMG: STRIPS}}, "token 263 is .*lstrip=False.* says .*'lstrip': True"),
        (CONFIG, {"added_tokens_decoder": {"first": {"content": "<pic>"}}}, "must have an id and a text"),
        (CONFIG, {"added_tokens_decoder": {"1": "<pic>"}}, "must have an id and a text"),
        (CONFIG, {"eos_token": "<end>"}, "eos_token '<end>' is no added token"),
        (CONFIG, {"extra_special_tokens": {"image": "<pic>"}}, "extra_special_tokens '<pic>' is no added token"),
        (ADDED, {"<pic>": 263}, "added_tokens.json: token 263 is '<pic>', in tokenizer_config.json '<img>'"),
        (ADDED, {"<pic>": None}, "added_tokens.json: each added token must have an id and a text"),
        (ADDED, ["<img>"], "added_tokens.json: not a JSON object"),
        (MAP, {"additional_special_tokens": ["<img>", "<pic>"]}, "'<pic>' is no added token"),
        (MAP, {"eos_token": "<img>"}, "eos_token '<img>' is not tokenizer_config.json's"),
        (MAP, {"bos_token": "<img>"}, "bos_token '<img>' is not tokenizer_config.json's"),
    ],
)
def test_contradictions_are_named(tiny, file, contents, message):
    before = tiny_bpe.config() if file == CONFIG else {}
    (tiny / file).write_text(json.dumps(before | contents if isinstance(contents, dict) else contents))
    with pytest.raises(ValueError, match=message):
        tokenizers.load(tiny)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tokenizer_config.json", None, "tokenizer_config.json: missing; vocab.json and merges.txt need it"),
        ("tokenizer_config.json", "{}", "tokenizer_class=None changes the ids"),
        ("vocab.json", None, "vocab.json: missing or empty"),
        ("vocab.json", '{"a": ', "vocab.json: not JSON"),
        ("vocab.json", '{"a": 0}', "vocab.json: not a tokenizer"),
        ("merges.txt", None, "merges.txt: missing"),
        ("merges.txt", "#version: 0.2\nY e\nYe s t\n", "merges.txt: line 3 must be two tokens"),
        ("merges.txt", "Y e\nq q\n", "not a tokenizer"),
    ],
)
def test_vocabulary_and_merges_in_every_state(tmp_path, file, text, message):
    tiny_bpe.write_vocabulary(tmp_path)
    (tmp_path / file).unlink()
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        tokenizers.load(tmp_path)


def test_damaged_files_raise_nothing_but_value_errors(tiny):
    random_numbers = random.Random(0)
    file = tiny / "tokenizer.json"
    whole = file.read_bytes()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(random_numbers.randint(1, 3)):
            data[random_numbers.randrange(len(data))] = random_numbers.randrange(256)
        file.write_bytes(data[: random_numbers.choice([None, None, random_numbers.randrange(len(data))])])
        with contextlib.suppress(ValueError):
            tokenizers.load(tiny).encode("Yes é<img>")


# ---- the choice between tokenizers


def test_a_directory_without_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer \(tokenizer.json, vocab.json with merges.txt, or .*copy"):
        tokenizers.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, internlm2.Tokenizer),
        ({"tokenizer_class": "InternLM2Tokenizer"}, internlm2.Tokenizer),
        ({"tokenizer_class": "LlamaTokenizer"}, llama.Tokenizer),
        ({"tokenizer_class": "LlamaTokenizerFast"}, llama.Tokenizer),
    ],
)
def test_a_sentencepiece_model_is_the_models_that_the_config_names(tmp_path, monkeypatch, config, expected):
    """SentencePiece models come first: the tokenizer.json beside one says the same in the library's words."""
    (tmp_path / "tokenizer.model").touch()
    (tmp_path / "tokenizer.json").touch()
    if config:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    for module in (internlm2, llama):
        monkeypatch.setattr(module.Tokenizer, "__init__", lambda self, path: None)
    assert type(tokenizers.load(tmp_path)) is expected


def test_llamas_ids(real_data, tmp_path):
    source = real_data / "tokenizers/llama.model"
    if not source.is_file():
        pytest.skip(f"no {source}: LLaMA's tokenizer.model, 499,723 bytes")
    shutil.copy(source, tmp_path / "tokenizer.model")
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}))
    tokenizer = tokenizers.load(tmp_path)
    assert {text: tokenizer.encode(text) for text in LLAMA_IDS} == LLAMA_IDS
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.size) == (1, 2, 32000)
    assert tokenizer.decode([3869, 2, 289]) == "Yes</s>b"
    config.write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": False}))
    assert tokenizers.load(tmp_path).encode("Yes</s>b") == [3869, 2, 29890]  # no blank before b
    config.write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": "no"}))
    with pytest.raises(ValueError, match=r"legacy='no' changes the ids.*it is for LLaMA's checkpoints"):
        tokenizers.load(tmp_path)


def test_byte_level_tokenizers_are_tokenizers(tiny):
    opened: tokenizers.Tokenizer = byte_level.Tokenizer(str(tiny))
    assert opened.path == tiny
