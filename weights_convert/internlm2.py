"""Convert InternLM2: keys model.layers.0.attention.wqkv, feed_forward.w1 (gate), w3 (up), w2 (down)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from weights_convert import llama
from weights_convert.llama import IRRELEVANT, common_config, heads_config, rope_config
from weights_convert.options import Options
from weights_convert.rules import LINEAR, Part, Rule

ARCHITECTURES = ("InternLM2ForCausalLM",)
KIND = "decoder"
prefix = llama.prefix
input_shape = llama.input_shape


def model_config(config: Mapping[str, Any], location: str) -> dict[str, Any]:
    """Convert config.json (or its llm_config) to the attributes of fvjax.models.decoder.Decoder. Errors as llama's."""
    options = Options(config, location, "the language configuration")
    attributes = common_config(options)
    attributes |= heads_config(options, attributes, None) | rope_config(options)
    options.only("rope_pos_id_version", "default")
    bias = options.flag("bias")
    options.finish_model(IRRELEVANT)
    return attributes | {"qkv_bias": bias, "out_bias": bias, "mlp_bias": False}


def ignored(model: Any, prefix: str, config: Mapping[str, Any]) -> list[str]:
    """Return regexes of unneeded keys: a tied head may be stored a second time."""
    del config
    return [rf"{prefix}output\.weight"] if model.tied else []


def _fused(model: Any, part: slice) -> Part:
    """Take a part of wqkv, whose rows are ordered (key head, [its queries …, key, value], dim), as rows (head, dim)."""
    dims = (model.kv_heads, model.heads // model.kv_heads + 2, model.head_dim)

    def to_fvjax(x):
        return x.reshape(*dims, *x.shape[1:])[:, part].reshape(-1, *x.shape[1:]).T

    def to_original(x):
        x = x.T
        whole = np.zeros((*dims, *x.shape[1:]), x.dtype)
        whole[:, part] = x.reshape(dims[0], -1, dims[2], *x.shape[1:])
        return whole.reshape(-1, *x.shape[1:])

    return Part(to_fvjax, to_original)


def rules(model: Any, prefix: str, config: Mapping[str, Any]) -> list[Rule]:
    """Return the rules; a bias is a vector, which transposing leaves as it is."""
    del config
    layer = prefix + "model.layers.{layer}."
    groups = model.heads // model.kv_heads
    qkv = {"q": slice(groups), "k": slice(groups, groups + 1), "v": slice(groups + 1, groups + 2)}
    return [
        Rule("params/embed", prefix + "model.tok_embeddings.weight"),
        Rule("params/head", prefix + "output.weight"),
        Rule("params/final_norm/scale", prefix + "model.norm.weight"),
        Rule("params/blocks/norm1/scale", layer + "attention_norm.weight"),
        Rule("params/blocks/norm2/scale", layer + "ffn_norm.weight"),
        *(Rule(f"params/blocks/attn/{x}/kernel", layer + "attention.wqkv.weight", _fused(model, qkv[x])) for x in qkv),
        *(Rule(f"params/blocks/attn/{x}/bias", layer + "attention.wqkv.bias", _fused(model, qkv[x])) for x in qkv),
        Rule("params/blocks/attn/o/kernel", layer + "attention.wo.weight", LINEAR),
        Rule("params/blocks/attn/o/bias", layer + "attention.wo.bias"),
        Rule("params/blocks/mlp/gate/kernel", layer + "feed_forward.w1.weight", LINEAR),
        Rule("params/blocks/mlp/up/kernel", layer + "feed_forward.w3.weight", LINEAR),
        Rule("params/blocks/mlp/down/kernel", layer + "feed_forward.w2.weight", LINEAR),
    ]
