"""LLaMA and Qwen2, whose keys coincide (model.layers.0.self_attn.q_proj …), and what all decoders' configs share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weights_convert.rules import LINEAR, Rule

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM")
KIND = "decoder"
ROPES = ("linear", "dynamic", "llama3")


def common_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What every decoder's configuration says. ValueError: a key is missing, or a value that is not supported."""
    ours = {
        "vocab": "vocab_size",
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp_dim": "intermediate_size",
        "norm_eps": "rms_norm_eps",
        "positions": "max_position_embeddings",
    }
    for key in (*ours.values(), "hidden_act"):
        if key not in config:
            raise ValueError(f"{where}: the language configuration has no {key!r}")
    for key, only in (("hidden_act", "silu"), ("attention_dropout", 0.0), ("use_sliding_window", False)):
        if config.get(key, only) != only:
            raise ValueError(f"{where}: {key}={config[key]!r} is not supported; only {only!r} is")
    heads = config["num_attention_heads"]
    return {name: config[key] for name, key in ours.items()} | {
        "kv_heads": config.get("num_key_value_heads") or heads,  # absent or null before grouped queries
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "tied": config.get("tie_word_embeddings", False),
    }


def rope_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Rotary positions, as published with models (rope_theta, rope_scaling) or as transformers 5 writes them."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = scaling.get("rope_theta", config.get("rope_theta"))
    if theta is None:
        raise ValueError(f"{where}: the language configuration has no 'rope_theta'")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return {"rope": "plain", "rope_theta": float(theta)}
    if kind not in ROPES:
        raise ValueError(f"{where}: rope scaling {kind!r} is not supported; known are {('default', *ROPES)}")
    theirs = {"rope_factor": "factor"}
    if kind == "llama3":
        theirs |= {"rope_original": "original_max_position_embeddings"}
        theirs |= {"rope_low": "low_freq_factor", "rope_high": "high_freq_factor"}
    missing = [key for key in theirs.values() if key not in scaling]
    if missing:
        raise ValueError(f"{where}: rope scaling {kind!r} has no {missing[0]!r}")
    return {"rope": kind, "rope_theta": float(theta)} | {name: scaling[key] for name, key in theirs.items()}


def model_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """config.json (or an InternVL model's llm_config) -> keyword arguments of fvjax.models.decoder.Decoder."""
    if "LlamaForCausalLM" in config["architectures"]:
        config = {"rope_theta": 10000.0, **config}  # LLaMA 1 and 2 leave it out
    out = common_config(config, where) | rope_config(config, where)
    if "Qwen2ForCausalLM" in config["architectures"]:  # its biases are not in its configuration
        return out | {"qkv_bias": True, "out_bias": False, "mlp_bias": False}
    attention, mlp = config.get("attention_bias", False), config.get("mlp_bias", False)  # absent in early LLaMA
    return out | {"qkv_bias": attention, "out_bias": attention, "mlp_bias": mlp}


def prefix(config: Mapping[str, Any], keys) -> str:
    """A decoder alone has none; inside InternVL it is "language_model."."""
    del config, keys
    return ""


def ignored(model: Any, prefix: str, config: Mapping[str, Any]) -> list[str]:
    """A tied head may be stored a second time; early LLaMA files hold the rotary frequencies."""
    del config
    tied = [rf"{prefix}lm_head\.weight"] if model.tied else []
    return [rf"{prefix}model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", *tied]


def rules(model: Any, prefix: str, config: Mapping[str, Any]) -> list[Rule]:
    """The table."""
    del model, config
    layer = prefix + "model.layers.{layer}."
    return [
        Rule("params/embed", prefix + "model.embed_tokens.weight"),
        Rule("params/head", prefix + "lm_head.weight"),
        Rule("params/final_norm/scale", prefix + "model.norm.weight"),
        Rule("params/blocks/norm1/scale", layer + "input_layernorm.weight"),
        Rule("params/blocks/norm2/scale", layer + "post_attention_layernorm.weight"),
        Rule("params/blocks/attn/(.)/kernel", layer + "self_attn.{0}_proj.weight", LINEAR),
        Rule("params/blocks/attn/(.)/bias", layer + "self_attn.{0}_proj.bias"),
        Rule("params/blocks/mlp/(.*)/kernel", layer + "mlp.{0}_proj.weight", LINEAR),
        Rule("params/blocks/mlp/(.*)/bias", layer + "mlp.{0}_proj.bias"),
    ]
