"""Convert LLaMA and Qwen2, whose keys coincide (model.layers.0.self_attn.q_proj …), and read any decoder's config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weights_convert.options import Options
from weights_convert.rules import LINEAR, Rule

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM")
KIND = "decoder"
ROPES = ("linear", "dynamic", "llama3")

# Keys of a decoder's configuration that change nothing, each with the reason.
IRRELEVANT = {
    "bos_token_id": "the caller of the decoder puts the first token into the prompt",
    "pretraining_tp": "splits matrix products without changing their sums",
    "max_sequence_length": "early LLaMA files have it besides max_position_embeddings, and no code reads it",
}
QWEN2_IRRELEVANT = dict.fromkeys(
    ("sliding_window", "max_window_layers"), "belongs to a sliding window, and use_sliding_window says there is none"
)


def common_config(options: Options) -> dict[str, Any]:
    """Read the attributes that every decoder's configuration has.

    Raises ValueError for a missing key or a value that is not supported.
    """
    keys = {
        "vocab": "vocab_size",
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp_dim": "intermediate_size",
        "positions": "max_position_embeddings",
    }
    sizes = {name: options.count(key) for name, key in keys.items()}
    options.need("hidden_act")
    for key, only in (("hidden_act", "silu"), ("attention_dropout", 0.0), ("use_sliding_window", False)):
        options.only(key, only)
    options.only("partial_rotary_factor", 1.0)
    options.get("architectures")
    kinds = options.get("layer_types", [])
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise ValueError(f"{options.location}: layer_types={kinds!r} is not supported; only 'full_attention' is")
    return sizes | {
        "norm_eps": options.number("rms_norm_eps"),
        "kv_heads": options.count("num_key_value_heads", sizes["heads"]),  # absent or null before grouped queries
        "tied": options.flag("tie_word_embeddings", False),
    }


def heads_config(options: Options, attributes: Mapping[str, Any], head_dim: int | None) -> dict[str, Any]:
    """Return the width of a head: ``head_dim``, or (None) an equal share of the model's width.

    Raises ValueError for numbers of heads that do not divide the model's width or each other.
    """
    width, heads = attributes["width"], attributes["heads"]
    groups = attributes["kv_heads"]
    conflict = f"{options.location}: num_attention_heads={heads} does not fit"
    if head_dim is None and width % heads:
        raise ValueError(f"{conflict} hidden_size={width}, which is not a multiple of it, without a head_dim")
    size: int = width // heads if head_dim is None else head_dim
    if heads % groups:
        raise ValueError(f"{conflict} num_key_value_heads={groups}, which does not divide it")
    if size % 2:
        raise ValueError(f"{conflict} hidden_size={width}: rotary positions need heads of even width, not {size}")
    return {"head_dim": size}


def rope_config(options: Options, theta: float | None = None) -> dict[str, Any]:
    """Read the rotary positions, as published with models (rope_theta, rope_scaling) or as transformers 5 writes them.

    ``theta``: the base if the file has none; None means that the file must have one.
    """
    key = "rope_parameters" if options.get("rope_parameters") else "rope_scaling"
    scaling = Options(options.get(key) or {}, f"{options.location} ({key})", "the rope scaling")
    theta = scaling.get("rope_theta", options.get("rope_theta", theta))
    if theta is None:
        raise ValueError(f"{options.location}: the language configuration has no 'rope_theta'")
    if isinstance(theta, bool) or not isinstance(theta, int | float) or theta <= 1:
        raise ValueError(f"{options.location}: rope_theta={theta!r} is not a number above 1")
    other = options.get("rope_scaling")
    if key == "rope_parameters" and other and _same_spelling(other) != _same_spelling(scaling.values):
        conflict = f"rope_scaling={other!r} contradicts rope_parameters={scaling.values!r}"
        raise ValueError(f"{options.location}: {conflict}; keep the one that the model was trained with")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    scaling.get("type")
    scaling.only("partial_rotary_factor", 1.0)
    if kind == "default":
        scaling.finish({})
        return {"rope": "plain", "rope_theta": float(theta)}
    if kind not in ROPES:
        raise ValueError(f"{options.location}: rope scaling {kind!r} is not supported; known are {('default', *ROPES)}")
    numbers = _scaling_numbers(scaling, kind, options.location)
    scaling.finish({})
    return {"rope": kind, "rope_theta": float(theta)} | numbers


def _scaling_numbers(scaling: Options, kind: str, location: str) -> dict[str, float]:
    """Read the numbers that one kind of rope scaling has. Raises ValueError for a missing or impossible one."""
    keys = {"rope_factor": "factor"}
    if kind == "llama3":
        keys |= {"rope_original": "original_max_position_embeddings"}
        keys |= {"rope_low": "low_freq_factor", "rope_high": "high_freq_factor"}
    missing = [key for key in keys.values() if scaling.get(key) is None]
    if missing:
        raise ValueError(f"{location}: rope scaling {kind!r} has no {missing[0]!r}")
    numbers = {name: scaling.number(key) for name, key in keys.items()}
    if kind == "llama3" and numbers["rope_high"] <= numbers["rope_low"]:
        low, high = numbers["rope_low"], numbers["rope_high"]
        raise ValueError(f"{scaling.location}: high_freq_factor={high} is not above low_freq_factor={low}")
    return numbers


def _same_spelling(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Spell a rope scaling in one way, for comparison: without the base, and with the kind as rope_type."""
    kind = scaling.get("rope_type", scaling.get("type"))
    return {k: v for k, v in scaling.items() if k not in ("rope_theta", "type")} | {"rope_type": kind}


def model_config(config: Mapping[str, Any], location: str) -> dict[str, Any]:
    """Convert config.json (or an InternVL model's llm_config) to the attributes of fvjax.models.decoder.Decoder.

    Raises ValueError for a key that is missing or unknown, or has a value that is not supported.
    """
    options = Options(config, location, "the language configuration")
    qwen2 = "Qwen2ForCausalLM" in config["architectures"]
    attributes = common_config(options)
    head_dim = None if options.get("head_dim") is None else options.count("head_dim")
    attributes |= heads_config(options, attributes, head_dim)
    attributes |= rope_config(options, None if qwen2 else 10000.0)  # LLaMA 1 and 2 leave it out
    if qwen2:  # its configuration does not mention its biases
        options.finish_model({**IRRELEVANT, **QWEN2_IRRELEVANT})
        return attributes | {"qkv_bias": True, "out_bias": False, "mlp_bias": False}
    attention_bias, mlp_bias = options.flag("attention_bias", False), options.flag("mlp_bias", False)
    options.finish_model(IRRELEVANT)
    return attributes | {"qkv_bias": attention_bias, "out_bias": attention_bias, "mlp_bias": mlp_bias}


def input_shape(model: Any) -> tuple[int, ...]:
    """Return the shape of an input of the network: one embedded token."""
    return (1, 1, model.width)


def prefix(config: Mapping[str, Any], keys) -> str:
    """Return the prefix of a decoder's keys, which is empty; inside InternVL it is "language_model."."""
    del config, keys
    return ""


def ignored(model: Any, prefix: str, config: Mapping[str, Any]) -> list[str]:
    """Return regexes of unneeded keys: a tied head stored a second time, and early LLaMA's rotary frequencies."""
    del config
    return ignored_under(model, f"{prefix}model.", f"{prefix}lm_head.")


def ignored_under(model: Any, body: str, head: str) -> list[str]:
    """Return the regexes of :func:`ignored` for layers and head with the prefixes ``body`` and ``head``."""
    tied = [rf"{head}weight"] if model.tied else []
    return [rf"{body}layers\.\d+\.self_attn\.rotary_emb\.inv_freq", *tied]


def rules(model: Any, prefix: str, config: Mapping[str, Any]) -> list[Rule]:
    """Return the rules."""
    del model, config
    return rules_under(f"{prefix}model.", f"{prefix}lm_head.")


def rules_under(body: str, head: str) -> list[Rule]:
    """Return the rules for layers and head with the prefixes ``body`` and ``head``."""
    layer = body + "layers.{layer}."
    return [
        Rule("params/embed", body + "embed_tokens.weight"),
        Rule("params/head", head + "weight"),
        Rule("params/final_norm/scale", body + "norm.weight"),
        Rule("params/blocks/norm1/scale", layer + "input_layernorm.weight"),
        Rule("params/blocks/norm2/scale", layer + "post_attention_layernorm.weight"),
        Rule("params/blocks/attn/(.)/kernel", layer + "self_attn.{0}_proj.weight", LINEAR),
        Rule("params/blocks/attn/(.)/bias", layer + "self_attn.{0}_proj.bias"),
        Rule("params/blocks/mlp/(.*)/kernel", layer + "mlp.{0}_proj.weight", LINEAR),
        Rule("params/blocks/mlp/(.*)/bias", layer + "mlp.{0}_proj.bias"),
    ]
