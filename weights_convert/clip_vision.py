"""Convert vision towers in CLIP's layout: CLIP's own, and LanguageBind's for images and for video.

A video tower has temporal attention in every layer. The last norm (`post_layernorm`) belongs to CLIP's pooled output.
LanguageBind's towers are opened as Video-LLaVA and Face-LLaVA use them, up to the last layer but one and without it.

Sources: transformers (models/clip/modeling_clip.py), PKU-YuanGroup/LanguageBind (…/modeling_video.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weights_convert.internvit import ACTS, PATCH, check_tower, input_shape
from weights_convert.options import Options
from weights_convert.rules import LINEAR, Rule, Transform

__all__ = ["ARCHITECTURES", "KIND", "ignored", "input_shape", "model_config", "prefix", "rules"]

LANGUAGEBIND = ("LanguageBindImage", "LanguageBindVideo")
ARCHITECTURES = ("CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection", *LANGUAGEBIND)
KIND = "vision_transformer"

# Keys of a vision_config that change nothing, each with the reason.
IRRELEVANT: dict[str, str] = {
    "projection_dim": "belongs to the projection of the pooled output into the space that texts share",
    "vocab_size": "some files have it, and a tower has no vocabulary",
    "logit_scale_init_value": "initialises a temperature of training",
    "video_decode_backend": "chooses a program that reads videos",
    **dict.fromkeys(("lora_alpha", "lora_dropout"), "belongs to adapters, and lora_r says that there are none"),
}
# Keys of a whole CLIP model that a tower does not have, with the reason.
OTHER_PARTS: dict[str, str] = {
    **dict.fromkeys(("text_config", "text_config_dict", "vision_config_dict"), "belongs to the text tower, or repeats"),
    **{key: IRRELEVANT[key] for key in ("projection_dim", "logit_scale_init_value")},
}
# Regexes of keys that a tower does not need, each with the reason.
NO_WEIGHTS = {r"embeddings\.position_ids": "the numbers 0, 1, 2, …"}
OTHER_WEIGHTS = {
    r"text_model\..*": "the text tower",
    r"(text|visual)_projection\..*|logit_scale": "belongs to the space that pictures and texts share",
}
EMBEDDING = Transform(lambda x: x[0], lambda x: x[None])  # [1, frames, width] <-> [frames, width]


def model_config(config: Mapping[str, Any], location: str) -> dict[str, Any]:
    """Convert config.json to the attributes of fvjax.models.vision_transformer.VisionTransformer.

    Raises ValueError for a key that is missing or unknown, or has a value that is not supported.
    """
    languagebind = bool(set(config.get("architectures") or []) & set(LANGUAGEBIND))
    layer = -2 if languagebind else -1
    if "vision_config" not in config:
        return tower_config(Options(config, location, "the vision configuration"), layer, final_norm=not languagebind)
    whole = Options(config, location)
    attributes = tower_config(whole.part("vision_config", "the vision configuration"), layer, not languagebind)
    whole.get("architectures")
    whole.finish_model(OTHER_PARTS)
    return attributes


def tower_config(vision: Options, select_layer: Any, final_norm: bool = False) -> dict[str, Any]:
    """Read and check the attributes of a tower; a missing key means CLIP's default, as in transformers."""
    for key, only in (
        *(("num_channels", 3), ("attention_dropout", 0.0), ("dropout", 0.0), ("force_patch_dropout", 0.0)),
        ("lora_r", 0),
    ):
        vision.only(key, only)
    vision.get("architectures")
    act = vision.get("hidden_act", "quick_gelu")
    if act not in ACTS:
        raise ValueError(f"{vision.location}: hidden_act={act!r} is not supported; known are {sorted(ACTS)}")
    attributes = {
        "image_size": vision.count("image_size"),
        "patch_size": vision.count("patch_size"),
        "width": vision.count("hidden_size"),
        "depth": vision.count("num_hidden_layers"),
        "heads": vision.count("num_attention_heads"),
        "mlp_dim": vision.count("intermediate_size"),
        "norm_eps": vision.number("layer_norm_eps", 1e-5),
        "act": act,
        **{"layer_scale": False, "pre_norm": True, "patch_bias": False, "final_norm": final_norm, "pixels": "clip"},
        "drop_path": 0.0,
        "select_layer": select_layer,
        "frames": _frames(vision),
    }
    vision.finish_model(IRRELEVANT)
    check_tower(attributes, vision.location, "vision_feature_layer")
    return attributes


def _frames(vision: Options) -> int:
    """Read the number of frames of a video tower; 0 for a tower of images."""
    temporal, frames = vision.flag("add_time_attn", False), vision.count("num_frames", 1)
    if not temporal and frames > 1:
        raise ValueError(f"{vision.location}: num_frames={frames} needs add_time_attn=true")
    return frames if temporal else 0


def prefix(config: Mapping[str, Any], keys) -> str:
    """Return the prefix of the original's keys."""
    del config
    return "vision_model." if any(key.startswith("vision_model.") for key in keys) else ""


def ignored(model: Any, prefix: str, config: Mapping[str, Any]) -> dict[str, str]:
    """Return regexes of keys that a tower does not need, each with the reason."""
    others = OTHER_WEIGHTS if "vision_config" in config else {}
    return unneeded(model, prefix) | others


def unneeded(model: Any, prefix: str) -> dict[str, str]:
    """Return regexes of a tower's own keys that it does not need, each with the reason."""
    layers = {
        rf"{prefix}encoder\.layers\.{i}\..*": f"layers after the output, hidden_states[{model.select_layer}]"
        for i in range(model.layers, model.depth)
    }
    norm = {} if model.final_norm else {rf"{prefix}post_layernorm\..*": "the norm of the pooled output"}
    return {prefix + key: reason for key, reason in NO_WEIGHTS.items()} | layers | norm


def rules(model: Any, prefix: str, config: Mapping[str, Any]) -> list[Rule]:
    """Return the rules; q, k and v are the rows of our qkv, ordered (3, head, dim)."""
    del model, config
    layer = prefix + "encoder.layers.{layer}."
    norms = {"pre_norm": "pre_layrnorm", "final_norm": "post_layernorm"}
    return [
        Rule("params/cls", prefix + "embeddings.class_embedding"),
        Rule("params/pos", prefix + "embeddings.position_embedding.weight"),
        Rule("params/patch/kernel", prefix + "embeddings.patch_embedding.weight", PATCH),
        *(Rule(f"params/{ours}/scale", f"{prefix}{theirs}.weight") for ours, theirs in norms.items()),
        *(Rule(f"params/{ours}/bias", f"{prefix}{theirs}.bias") for ours, theirs in norms.items()),
        Rule("params/blocks/temporal/embedding", layer + "temporal_embedding", EMBEDDING),
        Rule("params/blocks/temporal/norm/scale", layer + "temporal_layer_norm1.weight"),
        Rule("params/blocks/temporal/norm/bias", layer + "temporal_layer_norm1.bias"),
        *_attention("temporal/attn", layer + "temporal_attn."),
        *block_rules(layer),
    ]


def block_rules(layer: str) -> list[Rule]:
    """Return the rules of a layer's attention, norms and MLP, which the text tower has too."""
    return [
        *_attention("attn", layer + "self_attn."),
        Rule("params/blocks/norm([12])/scale", layer + "layer_norm{0}.weight"),
        Rule("params/blocks/norm([12])/bias", layer + "layer_norm{0}.bias"),
        Rule("params/blocks/mlp/(.*)/kernel", layer + "mlp.{0}.weight", LINEAR),
        Rule("params/blocks/mlp/(.*)/bias", layer + "mlp.{0}.bias"),
    ]


def _attention(ours: str, theirs: str) -> list[Rule]:
    """Return the rules of one attention: three matrices for q, k and v there, one here."""
    weights, biases = (tuple(f"{theirs}{x}_proj.{kind}" for x in "qkv") for kind in ("weight", "bias"))
    return [
        Rule(f"params/blocks/{ours}/qkv/kernel", weights, LINEAR),
        Rule(f"params/blocks/{ours}/qkv/bias", biases),
        Rule(f"params/blocks/{ours}/proj/kernel", theirs + "out_proj.weight", LINEAR),
        Rule(f"params/blocks/{ours}/proj/bias", theirs + "out_proj.bias"),
    ]
