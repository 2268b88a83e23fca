"""InternViT: OpenGVLab's own keys, inside InternVL2 (vision_model.encoder.layers.0.…) or as a bare tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from weights_convert.rules import LINEAR, Rule, Transform

ARCHITECTURES = ("InternVLChatModel", "InternVisionModel")
KIND = "vision_transformer"
NORMS = {"layer_norm": "layer", "rms_norm": "rms"}
ACTS = {"gelu": "gelu", "quick_gelu": "quick_gelu"}


def model_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """config.json -> keyword arguments of fvjax.models.vision_transformer.VisionTransformer."""
    chat = "vision_config" in config
    vision = config["vision_config"] if chat else config

    def take(key, known=None):
        if key not in vision:
            raise ValueError(f"{where}: the vision configuration has no {key!r}")
        if known is not None and vision[key] not in known:
            raise ValueError(f"{where}: {key}={vision[key]!r} is not supported; known are {sorted(known)}")
        return vision[key] if known is None else known[vision[key]]

    for key, only in (("num_channels", 3), ("dropout", 0.0), ("attention_dropout", 0.0)):
        if vision.get(key, only) != only:
            raise ValueError(f"{where}: {key}={vision[key]!r} is not supported; only {only} is")
    return {
        "image_size": take("image_size"),
        "patch_size": take("patch_size"),
        "width": take("hidden_size"),
        "depth": take("num_hidden_layers"),
        "heads": take("num_attention_heads"),
        "mlp_dim": take("intermediate_size"),
        "qkv_bias": take("qkv_bias"),
        "norm": take("norm_type", NORMS),
        "norm_eps": take("layer_norm_eps"),
        "qk_norm": take("qk_normalization"),
        "act": take("hidden_act", ACTS),
        "drop_path": take("drop_path_rate"),
        "select_layer": config.get("select_layer", -1) if chat else -1,
    }


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
