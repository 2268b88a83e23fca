"""Convert InternViT: OpenGVLab's own keys, inside InternVL2 (vision_model.encoder.layers.0.…) or as a bare tower."""

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
# Keys of a vision_config that change nothing, each with the reason.
IRRELEVANT: dict[str, str] = dict.fromkeys(
    (
        *("capacity_factor", "eval_capacity_factor", "laux_allreduce", "moe_coeff_ratio", "moe_intermediate_size"),
        *("moe_output_scale", "noisy_gate_policy", "num_experts", "num_routed_experts", "num_shared_experts"),
        *("shared_expert_intermediate_size", "use_residual", "use_rts", "use_weighted_residual"),
    ),
    EXPERTS,
)
TILES = "cuts a large picture into tiles; an aligned face is one tile, resized to the tower's size"
# Keys of a whole InternVL model's config.json that change nothing, each with the reason.
CHAT_IRRELEVANT: dict[str, str] = {
    **dict.fromkeys(
        ("dynamic_image_size", "max_dynamic_patch", "min_dynamic_patch", "use_thumbnail", "pad2square"), TILES
    ),
    **dict.fromkeys(("template", "system_message"), "belongs to conversations; a prompt is passed as its ids"),
    "img_context_token_id": "belongs to placeholders in a text; visual tokens are inserted by position",
}
# Keys of the parts that a tower does not have, with the reason.
OTHER_PARTS: dict[str, str] = dict.fromkeys(
    ("llm_config", "downsample_ratio", "ps_version", "use_llm_lora", "tie_word_embeddings", "hidden_size"),
    "belongs to the projector and the decoder, which a tower alone does not have",
)


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
    vision.only("architectures", ["InternVisionModel"])
    attributes = _tower(vision, chat.get("select_layer", -1))
    refuse_unmerged_adapters(chat, "use_backbone_lora")
    size = chat.get("force_image_size") or attributes["image_size"]
    if size != attributes["image_size"]:
        difference = f"force_image_size={size} is not the tower's {attributes['image_size']}"
        raise ValueError(f"{chat.location}: {difference}, which is not supported")
    chat.get("architectures")
    return attributes


def refuse_unmerged_adapters(chat: Options, key: str) -> None:
    """Raise ValueError if the key, a rank, says that the checkpoint contains adapters."""
    if rank := chat.get(key, 0):
        raise ValueError(f"{chat.location}: {key}={rank}: its adapters must be merged into the weights first")


def _tower(vision: Options, select_layer: Any) -> dict[str, Any]:
    """Read and check the attributes of a tower."""
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
    check_tower(attributes, vision.location)
    return attributes


def check_tower(attributes: Mapping[str, Any], location: str, layer_key: str = "select_layer") -> None:
    """Raise ValueError if a tower's attributes do not fit each other; names the keys of its configuration.

    ``layer_key``: the key that selects the output.
    """
    depth, drop_path, select_layer = (attributes[key] for key in ("depth", "drop_path", "select_layer"))
    if isinstance(drop_path, bool) or not isinstance(drop_path, int | float) or not 0 <= drop_path < 1:
        raise ValueError(f"{location}: drop_path_rate={drop_path!r} is not a number from 0 to less than 1")
    for key, name, divisor_key, divisor_name in (
        ("hidden_size", "width", "num_attention_heads", "heads"),
        ("image_size", "image_size", "patch_size", "patch_size"),
    ):
        value, divisor = attributes[name], attributes[divisor_name]
        if value % divisor:
            raise ValueError(f"{location}: {key}={value} is not a multiple of {divisor_key}={divisor}")
    whole = isinstance(select_layer, int) and not isinstance(select_layer, bool)
    if not whole or not (-depth <= select_layer < 0 or 0 < select_layer <= depth):
        raise ValueError(f"{location}: {layer_key}={select_layer!r} is not a layer of a tower of {depth}")


def input_shape(model: Any) -> tuple[int, ...]:
    """Return the shape of an input of the network: one image."""
    return (1, model.image_size, model.image_size, 3)


def prefix(config: Mapping[str, Any], keys) -> str:
    """Return the prefix of the original's keys."""
    return "vision_model." if "vision_config" in config or any(k.startswith("vision_model.") for k in keys) else ""


def ignored(model: Any, prefix: str, config: Mapping[str, Any]) -> list[str]:
    """Return regexes of keys that a vision tower does not need."""
    unbuilt = [rf"{prefix}encoder\.layers\.{i}\..*" for i in range(model.layers, model.depth)]
    return unbuilt + ([r"mlp1\..*", r"language_model\..*"] if "vision_config" in config else [])


def _patch_to_original(x: np.ndarray) -> np.ndarray:
    size = round((x.shape[0] / 3) ** 0.5)
    return x.reshape(size, size, 3, -1).transpose(3, 2, 0, 1)


# [width, 3, p, p] <-> [p * p * 3, width]: fvjax embeds patches by a matrix product
PATCH = Transform(lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), _patch_to_original)
CLS = Transform(lambda x: x[0, 0], lambda x: x[None, None])
POS = Transform(lambda x: x[0], lambda x: x[None])


def rules(model: Any, prefix: str, config: Mapping[str, Any]) -> list[Rule]:
    """Return the rules; qkv rows stay ordered (3, head, dim)."""
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
