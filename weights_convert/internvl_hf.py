"""Convert InternVL in the -hf layout: transformers' own classes, with the vision tower, projector and decoder by parts.

The same weights exist under several spellings of the keys, and each part's is recognised by itself:

    part        on disk, as published       in memory since transformers 4.52, and in files of some programs
    tower       vision_tower.…              model.vision_tower.…
    projector   multi_modal_projector.…     model.multi_modal_projector.…
    decoder     language_model.model.…      model.language_model.…, or language_model.… without its wrapper
    head        language_model.lm_head.…    lm_head.…

Source: transformers (models/internvl, conversion_mapping.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

from weights_convert import internvit_hf, llama
from weights_convert.internvl import check_grid, first_token, input_shape, shuffle_size, under
from weights_convert.options import Options
from weights_convert.rules import LINEAR, Rule

__all__ = ["ARCHITECTURES", "KIND", "ignored", "input_shape", "model_config", "prefix", "rules", "settle"]

ARCHITECTURES = ("InternVLForConditionalGeneration",)
KIND = "vlm"
# model_type of a text_config -> its architecture and conversion table
DECODERS: dict[str, tuple[str, ModuleType]] = {
    "qwen2": ("Qwen2ForCausalLM", llama),
    "llama": ("LlamaForCausalLM", llama),
}
# Prefixes of the tower, the projector, the decoder and the head; the first of each is the published one. A prefix of
# which another is a part comes after it.
SPELLINGS = (
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("language_model.model.", "model.language_model.model.", "model.language_model.", "language_model."),
    ("language_model.lm_head.", "model.language_model.lm_head.", "model.lm_head.", "lm_head."),
)
ON_DISK = " ".join(prefixes[0] for prefixes in SPELLINGS)
IN_MEMORY = "model.vision_tower. model.multi_modal_projector. model.language_model. lm_head."
WITHOUT_WRAPPER = "vision_tower. multi_modal_projector. language_model. lm_head."


def model_config(config: Mapping[str, Any], location: str) -> dict[str, Any]:
    """Convert config.json to the attributes of fvjax.models.encoder.build_vlm.

    Raises ValueError for a key that is missing or unknown, or has a value that is not supported.
    """
    for key in ("vision_config", "text_config", "downsample_ratio"):
        if key not in config:
            raise ValueError(f"{location}: there is no {key!r}")
    chat = Options(config, location)
    chat.only("projector_hidden_act", "gelu")
    projector = {"shuffle": shuffle_size(chat), "ps_version": "v2"}
    vision = internvit_hf.tower_config(chat)
    check_grid(vision, projector, chat)
    tokens = (vision["image_size"] // vision["patch_size"] // projector["shuffle"]) ** 2
    if (stated := chat.get("image_seq_length", tokens)) != tokens:
        raise ValueError(f"{location}: image_seq_length={stated!r} is not the {tokens} visual tokens of a tile")
    decoder, bos = _decoder_config(chat)
    chat.finish_model(internvit_hf.CHAT_IRRELEVANT)
    return {"vision": vision, "projector": {"width": decoder["width"], **projector}, "decoder": decoder, "bos": bos}


def _decoder_config(chat: Options) -> tuple[dict[str, Any], int]:
    """Read the decoder's attributes and the id of its first token."""
    text = chat.part("text_config", "the language configuration")
    architecture, table = text.choice("model_type", DECODERS)
    stated = text.get("architectures", [architecture])
    if stated != [architecture]:
        raise ValueError(f"{text.location}: architectures={stated!r} is not {[architecture]}, which model_type says")
    decoder = table.model_config({**text.values, "architectures": [architecture]}, text.location)
    decoder["tied"] = chat.flag("tie_word_embeddings", decoder["tied"])
    return decoder, first_token(text, decoder)


def settle(attributes: dict[str, Any], config: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """Return the attributes with the head tied to the embedding only if the file has no head of its own.

    config.json is not enough: some versions of transformers take an absent tie_word_embeddings as true, and write
    nothing for it, while every published InternVL3 has a head. A file without a head must not say false.
    """
    head = "params/decoder/head" in keys or any(key.endswith("lm_head.weight") for key in keys)
    stated = config.get("tie_word_embeddings")
    stated = config["text_config"].get("tie_word_embeddings") if stated is None else stated
    return {**attributes, "decoder": {**attributes["decoder"], "tied": not head and stated is not False}}


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
        raise ValueError(
            f"config.json: the fvjax prefix {prefix!r} is not like {ON_DISK!r}; convert the original again"
        )
    return parts


def ignored(model: Any, prefix: str, config: Mapping[str, Any]) -> list[str]:
    """Return regexes of keys that none of the parts needs."""
    del config
    vision, _, decoder, head = _parts(prefix)
    return internvit_hf.ignored(model.vision, vision, {}) + llama.ignored_under(model.decoder, decoder, head)


def rules(model: Any, prefix: str, config: Mapping[str, Any]) -> list[Rule]:
    """Return the rules of the parts, with their names under vision/, projector/ and decoder/."""
    vision, projector, decoder, head = _parts(prefix)
    return [
        *under("vision", internvit_hf.rules(model.vision, vision, config)),
        Rule("params/projector/norm/scale", projector + "layer_norm.weight"),
        Rule("params/projector/norm/bias", projector + "layer_norm.bias"),
        Rule("params/projector/fc([12])/kernel", projector + "linear_{0}.weight", LINEAR),
        Rule("params/projector/fc([12])/bias", projector + "linear_{0}.bias"),
        *under("decoder", llama.rules_under(decoder, head)),
    ]
