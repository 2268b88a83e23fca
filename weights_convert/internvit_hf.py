"""Convert InternViT in the -hf layout, with transformers' own keys, inside an InternVL model or as a bare tower.

Source: transformers (models/internvl/modeling_internvl.py and configuration_internvl.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weights_convert.internvit import ACTS, CLS, NORMS, PATCH, POS, check_tower, input_shape
from weights_convert.options import Options
from weights_convert.rules import LINEAR, Rule

__all__ = ["ARCHITECTURES", "KIND", "ignored", "input_shape", "model_config", "prefix", "rules"]

ARCHITECTURES = ("InternVLForConditionalGeneration", "InternVLVisionModel")
KIND = "vision_transformer"

# Keys of a vision_config that change nothing, each with the reason.
IRRELEVANT = {"layer_scale_init_value": "initialises the weights, which are read here"}
# Keys of the parts that a tower does not have, with the reason.
OTHER_PARTS: dict[str, str] = dict.fromkeys(
    ("text_config", "downsample_ratio", "projector_hidden_act", "tie_word_embeddings", "image_seq_length"),
    "belongs to the projector and the decoder, which a tower alone does not have",
)
# Keys of a whole InternVL model's config.json that change nothing, each with the reason.
CHAT_IRRELEVANT = {"image_token_id": "belongs to placeholders in a text; visual tokens are inserted by position"}


def model_config(config: Mapping[str, Any], location: str) -> dict[str, Any]:
    """Convert config.json to the attributes of fvjax.models.vision_transformer.VisionTransformer.

    Raises ValueError for a key that is missing or unknown, or has a value that is not supported.
    """
    if "vision_config" not in config:
        return _tower(Options(config, location, "the vision configuration"), -1)
    chat = Options(config, location)
    attributes = tower_config(chat)
    chat.finish_model({**CHAT_IRRELEVANT, **OTHER_PARTS})
    return attributes


def tower_config(chat: Options) -> dict[str, Any]:
    """Convert an InternVL model's config.json to the attributes of its tower."""
    vision = chat.part("vision_config", "the vision configuration")
    chat.only("vision_feature_select_strategy", "default")  # leaves the CLS token out
    chat.get("architectures")
    return _tower(vision, chat.get("vision_feature_layer", -1))


def _tower(vision: Options, select_layer: Any) -> dict[str, Any]:
    """Read and check the attributes of a tower."""
    for key, only in (
        *(("num_channels", 3), ("use_mask_token", False), ("use_absolute_position_embeddings", True)),
        *(("dropout", 0.0), ("attention_dropout", 0.0), ("hidden_dropout_prob", 0.0), ("projection_dropout", 0.0)),
        ("use_mean_pooling", True),  # without it the tower has a final norm
    ):
        vision.only(key, only)
    vision.get("architectures")
    attributes = {
        "image_size": _side(vision, "image_size"),
        "patch_size": _side(vision, "patch_size"),
        "width": vision.count("hidden_size"),
        "depth": vision.count("num_hidden_layers"),
        "heads": vision.count("num_attention_heads"),
        "mlp_dim": vision.count("intermediate_size"),
        "qkv_bias": vision.flag("attention_bias"),
        "norm": vision.choice("norm_type", NORMS),
        "norm_eps": vision.number("layer_norm_eps"),
        "qk_norm": vision.flag("use_qk_norm"),
        "act": vision.choice("hidden_act", ACTS),
        "drop_path": vision.get("drop_path_rate", 0.0),  # transformers has none; conversion from the original keeps it
        "select_layer": select_layer,
    }
    vision.finish_model(IRRELEVANT)
    if attributes["qk_norm"] and attributes["norm_eps"] != 1e-6:  # transformers passes it to the other norms only
        epsilon = attributes["norm_eps"]
        raise ValueError(
            f"{vision.location}: layer_norm_eps={epsilon} with use_qk_norm is not supported; only 1e-06 is"
        )
    check_tower(attributes, vision.location, "vision_feature_layer")
    return attributes


def _side(vision: Options, key: str) -> int:
    """Read the side of a square, written as [height, width] or as one number."""
    value = vision.need(key)
    if isinstance(value, list):
        if len(value) != 2 or value[0] != value[1]:
            raise ValueError(f"{vision.location}: {key}={value!r} is not supported; only squares [side, side] are")
        return Options({key: value[0]}, vision.location).count(key)
    return vision.count(key)


def prefix(config: Mapping[str, Any], keys) -> str:
    """Return the prefix of the original's keys; that of a converted whole model begins with its tower's."""
    if "vision_config" not in config:
        return ""
    if converted := config.get("fvjax"):
        return converted["prefix"].partition(" ")[0]
    return "model.vision_tower." if any(key.startswith("model.vision_tower.") for key in keys) else "vision_tower."


def ignored(model: Any, prefix: str, config: Mapping[str, Any]) -> list[str]:
    """Return regexes of keys that a vision tower does not need."""
    unbuilt = [rf"{prefix}encoder\.layer\.{i}\..*" for i in range(model.layers, model.depth)]
    others = [r"(model\.)?(multi_modal_projector|language_model)\..*", r"lm_head\.weight"]
    return unbuilt + (others if "vision_config" in config else [])


def rules(model: Any, prefix: str, config: Mapping[str, Any]) -> list[Rule]:
    """Return the rules; q, k and v of theirs are the rows of our qkv, ordered (3, head, dim)."""
    del model, config
    layer = prefix + "encoder.layer.{layer}."
    attention, patch = layer + "attention.", prefix + "embeddings.patch_embeddings.projection."
    q, k, v = (f"{attention}{name}_proj." for name in "qkv")
    return [
        Rule("params/cls", prefix + "embeddings.cls_token", CLS),
        Rule("params/pos", prefix + "embeddings.position_embeddings", POS),
        Rule("params/patch/kernel", patch + "weight", PATCH),
        Rule("params/patch/bias", patch + "bias"),
        Rule("params/blocks/norm1/scale", layer + "layernorm_before.weight"),
        Rule("params/blocks/norm1/bias", layer + "layernorm_before.bias"),
        Rule("params/blocks/norm2/scale", layer + "layernorm_after.weight"),
        Rule("params/blocks/norm2/bias", layer + "layernorm_after.bias"),
        Rule("params/blocks/attn/qkv/kernel", (q + "weight", k + "weight", v + "weight"), LINEAR),
        Rule("params/blocks/attn/qkv/bias", (q + "bias", k + "bias", v + "bias")),
        Rule("params/blocks/attn/([qk]_norm)/scale", attention + "{0}.weight"),
        Rule("params/blocks/attn/proj/kernel", attention + "projection_layer.weight", LINEAR),
        Rule("params/blocks/attn/proj/bias", attention + "projection_layer.bias"),
        Rule("params/blocks/mlp/(.*)/kernel", layer + "mlp.{0}.weight", LINEAR),
        Rule("params/blocks/mlp/(.*)/bias", layer + "mlp.{0}.bias"),
        Rule("params/blocks/ls([12])", layer + "lambda_{0}"),
    ]
