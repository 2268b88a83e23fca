"""Convert LLaVA-1.5 in the -hf layout: transformers' own classes (LlavaForConditionalGeneration), with CLIP's tower.

The published configurations leave out what is a default of transformers, which is therefore filled in here. For the
spellings of the keys see weights_convert/internvl_hf.py. Source: transformers (models/llava).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from weights_convert import clip_vision, internvl_hf, llama
from weights_convert.internvl import first_token, under
from weights_convert.llava import input_shape, projector
from weights_convert.options import Options
from weights_convert.rules import LINEAR, Rule

__all__ = ["ARCHITECTURES", "KIND", "ignored", "input_shape", "model_config", "prefix", "rules"]

ARCHITECTURES = ("LlavaForConditionalGeneration",)
KIND = "llava"
# Prefixes of the tower, the projector, the decoder and the head; the first of each is the published one.
SPELLINGS = (
    ("vision_tower.vision_model.", "model.vision_tower.vision_model.", "model.vision_tower."),
    *internvl_hf.SPELLINGS[1:],
)
LLAMA_DEFAULTS = {
    **{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
    **{"num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    **{"bos_token_id": 1},
}
# Keys of config.json that change nothing, each with the reason.
IRRELEVANT = {
    **dict.fromkeys(
        ("image_token_index", "image_token_id", "image_seq_length"),
        "belongs to placeholders in a text; visual tokens are inserted by position",
    ),
    "ignore_index": "marks the tokens without a loss in training",
    "vocab_size": "repeats the decoder's",
}


def model_config(config: Mapping[str, Any], location: str) -> dict[str, Any]:
    """Convert config.json to the attributes of fvjax.models.encoder.build_llava.

    Raises ValueError for a key that is missing or unknown, or has a value that is not supported.
    """
    whole = Options(config, location)
    for key, only in (
        *(("projector_hidden_act", "gelu"), ("vision_feature_select_strategy", "default")),
        ("multimodal_projector_bias", True),
    ):
        whole.only(key, only)
    vision = whole.part("vision_config", "the vision configuration")
    tower = clip_vision.tower_config(vision, whole.get("vision_feature_layer", -2))
    text = whole.part("text_config", "the language configuration")
    llm = Options({**LLAMA_DEFAULTS, **text.values}, text.location, text.name)
    if (kind := llm.get("model_type", "llama")) != "llama":
        raise ValueError(f"{text.location}: model_type={kind!r} is not supported; only 'llama' is")
    decoder = llama.model_config({**llm.values, "architectures": ["LlamaForCausalLM"]}, text.location)
    decoder["tied"] = whole.flag("tie_word_embeddings", decoder["tied"])
    whole.get("architectures")
    whole.finish_model(IRRELEVANT)
    return {"vision": tower, "projector": projector(decoder), "decoder": decoder, "bos": first_token(llm, decoder)}


def prefix(config: Mapping[str, Any], keys: Collection[str]) -> str:
    """Return the prefixes of the tower, the projector, the decoder and the head, with spaces between them."""
    del config

    def spelling(prefixes):
        return next((prefix for prefix in prefixes if any(key.startswith(prefix) for key in keys)), prefixes[0])

    return " ".join(map(spelling, SPELLINGS))


def _parts(prefix: str) -> list[str]:
    """Split what :func:`prefix` returns. Raises ValueError for anything else, which a damaged config.json may have."""
    parts = prefix.split()
    if len(parts) != len(SPELLINGS):
        raise ValueError(f"config.json: the fvjax prefix {prefix!r} has not {len(SPELLINGS)} parts; convert again")
    return parts


def ignored(model: Any, prefix: str, config: Mapping[str, Any]) -> dict[str, str]:
    """Return regexes of keys that none of the parts needs, each with the reason."""
    del config
    vision, _, decoder, head = _parts(prefix)
    unused = llama.ignored_under(model.decoder, decoder, head)
    return clip_vision.unneeded(model.vision, vision) | dict.fromkeys(unused, "computed, or the embedding again")


def rules(model: Any, prefix: str, config: Mapping[str, Any]) -> list[Rule]:
    """Return the rules of the parts, with their names under vision/, projector/ and decoder/."""
    vision, projector, decoder, head = _parts(prefix)
    return [
        *under("vision", clip_vision.rules(model.vision, vision, config)),
        Rule("params/projector/fc([12])/kernel", projector + "linear_{0}.weight", LINEAR),
        Rule("params/projector/fc([12])/bias", projector + "linear_{0}.bias"),
        *under("decoder", llama.rules_under(decoder, head)),
    ]
