"""InternViT: OpenGVLab's own keys, inside InternVL2 (vision_model.encoder.layers.0.…) or as a bare tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from weights_convert.options import Options
from weights_convert.rules import LINEAR, Rule, Transform

ARCHITECTURES = ("InternVLChatModel", "InternVisionModel")
KIND = "vision_transformer"
NORMS = {"layer_norm": "layer", "rms_norm": "rms"}
ACTS = {"gelu": "gelu", "quick_gelu": "quick_gelu"}


EXPERTS = "belongs to experts, and use_moe says that there are none"
# Keys of a vision_config that change nothing, with the reason.
IRRELEVANT: dict[str, str] = dict.fromkeys(
    (
        *("capacity_factor", "eval_capacity_factor", "laux_allreduce", "moe_coeff_ratio", "moe_intermediate_size"),
        *("moe_output_scale", "noisy_gate_policy", "num_experts", "num_routed_experts", "num_shared_experts"),
        *("shared_expert_intermediate_size", "use_residual", "use_rts", "use_weighted_residual"),
    ),
    EXPERTS,
)
TILES = "cuts a large picture into tiles; an aligned face is one, resized to the tower's size"
# Keys of a whole InternVL model's config.json that change nothing, with the reason.
CHAT_IRRELEVANT: dict[str, str] = {
    **dict.fromkeys(
        ("dynamic_image_size", "max_dynamic_patch", "min_dynamic_patch", "use_thumbnail", "pad2square"), TILES
    ),
    **dict.fromkeys(("template", "system_message"), "of conversations; a prompt is given by its ids"),
    "img_context_token_id": "of placeholders in a text; visual tokens are put in by position",
}
REST: dict[str, str] = dict.fromkeys(
    ("llm_config", "downsample_ratio", "ps_version", "use_llm_lora", "tie_word_embeddings", "hidden_size"),
    "of projector and decoder, which a tower alone does not have",
)


def model_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """config.json -> keyword arguments of fvjax.models.vision_transformer.VisionTransformer.

    ValueError: a key is missing, has a value that is not supported, or is not known here.
    """
    if "vision_config" not in config:
        return _tower(Options(config, where, "the vision configuration"), -1)
    chat = Options(config, where)
    attributes = tower_of(chat)
    chat.finish_model({**CHAT_IRRELEVANT, **REST})
    return attributes


def tower_of(chat: Options) -> dict[str, Any]:
    """The tower's attributes from an InternVL model's config.json."""
    vision = chat.part("vision_config", "the vision configuration")
    vision.only("architectures", ["InternVisionModel"])
    attributes = _tower(vision, chat.get("select_layer", -1))
    merged_only(chat, "use_backbone_lora")
    size = chat.get("force_image_size") or attributes["image_size"]
    if size != attributes["image_size"]:
        told = f"force_image_size={size} is not the tower's {attributes['image_size']}"
        raise ValueError(f"{chat.location}: {told}, which is not supported")
    chat.get("architectures")
    return attributes


def merged_only(chat: Options, key: str) -> None:
    """Refuse a rank of adapters inside of the checkpoint."""
    if rank := chat.get(key, 0):
        raise ValueError(f"{chat.location}: {key}={rank}: its adapters must be merged into the weights first")


def _tower(vision: Options, select_layer: Any) -> dict[str, Any]:
    for key, only in (("num_channels", 3), ("dropout", 0.0), ("attention_dropout", 0.0), ("use_moe", False)):
        vision.only(key, only)
    vision.get("architectures")
    attributes = {
        "image_size": vision.count("image_size"),
        "patch_size": vision.count("patch_size"),
        "width": vision.count("hidden_size"),
        "depth": vision.count("num_hidden_layers"),
        "heads": vision.count("num_attention_heads"),
        "mlp_dim": vision.count("intermediate_size"),
        "qkv_bias": vision.flag("qkv_bias"),
        "norm": vision.choice("norm_type", NORMS),
        "norm_eps": vision.number("layer_norm_eps"),
        "qk_norm": vision.flag("qk_normalization"),
        "act": vision.choice("hidden_act", ACTS),
        "drop_path": vision.need("drop_path_rate"),
        "select_layer": select_layer,
    }
    vision.finish_model(IRRELEVANT)
    depth, drop_path = attributes["depth"], attributes["drop_path"]
    if isinstance(drop_path, bool) or not isinstance(drop_path, int | float) or not 0 <= drop_path < 1:
        raise ValueError(f"{vision.location}: drop_path_rate={drop_path!r} is not a number from 0 to less than 1")
    if attributes["width"] % attributes["heads"]:
        told = f"hidden_size={attributes['width']} is no multiple of num_attention_heads={attributes['heads']}"
        raise ValueError(f"{vision.location}: {told}")
    if attributes["image_size"] % attributes["patch_size"]:
        told = f"image_size={attributes['image_size']} is no multiple of patch_size={attributes['patch_size']}"
        raise ValueError(f"{vision.location}: {told}")
    whole = isinstance(select_layer, int) and not isinstance(select_layer, bool)
    if not whole or not (-depth <= select_layer < 0 or 0 < select_layer <= depth):
        raise ValueError(f"{vision.location}: select_layer={select_layer!r} is no layer of a tower of {depth}")
    return attributes


def prefix(config: Mapping[str, Any], keys) -> str:
    """What stands before the tower's keys."""
    return "vision_model." if "vision_config" in config or any(k.startswith("vision_model.") for k in keys) else ""


def ignored(model: Any, prefix: str, config: Mapping[str, Any]) -> list[str]:
    """Regexes of keys that a vision tower does not need."""
    unbuilt = [rf"{prefix}encoder\.layers\.{i}\..*" for i in range(model.layers, model.depth)]
    return unbuilt + ([r"mlp1\..*", r"language_model\..*"] if "vision_config" in config else [])


def _patch_to_theirs(x: np.ndarray) -> np.ndarray:
    size = round((x.shape[0] / 3) ** 0.5)
    return x.reshape(size, size, 3, -1).transpose(3, 2, 0, 1)


# [width, 3, p, p] <-> [p * p * 3, width]: the patch embedding is a matrix product here
PATCH = Transform(lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), _patch_to_theirs)
CLS = Transform(lambda x: x[0, 0], lambda x: x[None, None])
POS = Transform(lambda x: x[0], lambda x: x[None])


def rules(model: Any, prefix: str, config: Mapping[str, Any]) -> list[Rule]:
    """The table; qkv rows stay ordered (3, head, dim)."""
    del model, config
    layer = prefix + "encoder.layers.{layer}."
    return [
        Rule("params/cls", prefix + "embeddings.class_embedding", CLS),
        Rule("params/pos", prefix + "embeddings.position_embedding", POS),
        Rule("params/patch/kernel", prefix + "embeddings.patch_embedding.weight", PATCH),
        Rule("params/patch/bias", prefix + "embeddings.patch_embedding.bias"),
        Rule("params/blocks/(.*)/kernel", layer + "{0}.weight", LINEAR),
        Rule("params/blocks/(.*)/scale", layer + "{0}.weight"),
        Rule("params/blocks/(.*)/bias", layer + "{0}.bias"),
        Rule("params/blocks/(ls[12])", layer + "{0}"),
    ]
