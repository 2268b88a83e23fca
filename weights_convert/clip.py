"""Convert whole CLIP models, with both towers: OpenAI's and its relatives (FLIP-80M, FaRL) in transformers' layout.

The vision tower alone is :mod:`weights_convert.clip_vision`'s, which is used unless kind "clip" is asked for.

Source: transformers (models/clip/configuration_clip.py, modeling_clip.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weights_convert import clip_vision
from weights_convert.internvit import ACTS
from weights_convert.internvl import under
from weights_convert.options import Options
from weights_convert.rules import LINEAR, Rule

ARCHITECTURES = ("CLIPModel",)
KIND = "clip"
LEGACY_END = 2  # published files name this id, which is no end token; transformers then looks for the largest id

IRRELEVANT: dict[str, str] = {
    **dict.fromkeys(("text_config_dict", "vision_config_dict"), "repeats the configuration of a tower"),
    "logit_scale_init_value": "initialises a weight, which is read here",
}
TEXT_IRRELEVANT: dict[str, str] = {
    "bos_token_id": "begins a text, which the tokenizer does",
    "logit_scale_init_value": "initialises a weight of the whole model",
}
NO_WEIGHTS = {r"(text|vision)_model\.embeddings\.position_ids": "the numbers 0, 1, 2, …"}


def model_config(config: Mapping[str, Any], location: str) -> dict[str, Any]:
    """Convert config.json to the attributes of :class:`fvjax.models.clip.CLIP`.

    Raises ValueError for a key that is missing or unknown, or has a value that is not supported.
    """
    whole = Options(config, location)
    vision = whole.part("vision_config", "the vision configuration")
    text = whole.part("text_config", "the text configuration")
    attributes = {
        "vision": clip_vision.tower_config(vision, -1, final_norm=True),
        "text": _text_config(text, whole.count("projection_dim", 512)),
    }
    whole.get("architectures")
    whole.finish_model(IRRELEVANT)
    return attributes


def _text_config(text: Options, projection: int) -> dict[str, Any]:
    """Read and check the attributes of the text tower; a missing key means CLIP's default, as in transformers."""
    for key in ("attention_dropout", "dropout"):
        text.only(key, 0.0)
    for key in ("architectures", "projection_dim"):  # the projection is the whole model's
        text.get(key)
    act, end = text.get("hidden_act", "quick_gelu"), text.count("eos_token_id", 49407, least=0)
    if act not in ACTS:
        raise ValueError(f"{text.location}: hidden_act={act!r} is not supported; known are {sorted(ACTS)}")
    attributes = {
        "vocab": text.count("vocab_size", 49408),
        "width": text.count("hidden_size", 512),
        "depth": text.count("num_hidden_layers", 12),
        "heads": text.count("num_attention_heads", 8),
        "mlp_dim": text.count("intermediate_size", 2048),
        "positions": text.count("max_position_embeddings", 77),
        "norm_eps": text.number("layer_norm_eps", 1e-5),
        "projection": projection,
        "end": None if end == LEGACY_END else end,
        "act": act,
    }
    if attributes["width"] % attributes["heads"]:
        raise ValueError(f"{text.location}: hidden_size={attributes['width']} has no {attributes['heads']} equal heads")
    if end >= attributes["vocab"]:
        raise ValueError(f"{text.location}: eos_token_id={end} is outside the vocabulary of {attributes['vocab']}")
    text.finish_model(TEXT_IRRELEVANT)
    return attributes


def input_shape(model: Any) -> tuple[int, ...]:
    """Return the shape of pixels by which the network can be initialised."""
    return clip_vision.input_shape(model.vision)


def prefix(config: Mapping[str, Any], keys) -> str:
    """Return the prefix of the original's keys: none."""
    del config, keys
    return ""


def ignored(model: Any, prefix: str, config: Mapping[str, Any]) -> dict[str, str]:
    """Return regexes of keys that the network does not need, each with the reason."""
    del model, prefix, config
    return NO_WEIGHTS


def rules(model: Any, prefix: str, config: Mapping[str, Any]) -> list[Rule]:
    """Return the rules of both towers and of what they share."""
    layer = prefix + "text_model.encoder.layers.{layer}."
    return [
        *under("vision", clip_vision.rules(model.vision, prefix + "vision_model.", config)),
        *under("text", clip_vision.block_rules(layer)),
        Rule("params/text/embed", prefix + "text_model.embeddings.token_embedding.weight"),
        Rule("params/text/pos", prefix + "text_model.embeddings.position_embedding.weight"),
        Rule("params/text/final_norm/scale", prefix + "text_model.final_layer_norm.weight"),
        Rule("params/text/final_norm/bias", prefix + "text_model.final_layer_norm.bias"),
        Rule("params/text/project/kernel", prefix + "text_projection.weight", LINEAR),
        Rule("params/project/kernel", prefix + "visual_projection.weight", LINEAR),
        Rule("params/logit_scale", prefix + "logit_scale"),
    ]
