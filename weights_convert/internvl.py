"""InternVL2 as a whole: vision_model.…, mlp1.… and language_model.…, each by its own table."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from weights_convert import internlm2, internvit, llama
from weights_convert.internvit import CHAT_IRRELEVANT, merged_only, tower_of
from weights_convert.options import Options
from weights_convert.rules import LINEAR, Rule

ARCHITECTURES = ("InternVLChatModel",)
KIND = "vlm"
DECODERS: tuple[ModuleType, ...] = (internlm2, llama)


def _decoder(config: Mapping[str, Any], where: str) -> ModuleType:
    architectures = config["llm_config"].get("architectures") or []
    for table in DECODERS:
        if set(architectures) & set(table.ARCHITECTURES):
            return table
    known = [name for table in DECODERS for name in table.ARCHITECTURES]
    raise ValueError(f"{where}: unknown llm_config architectures {architectures}; known are {known}")


def model_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """config.json -> attributes for fvjax.models.vlm.build.

    ValueError: a key is missing, has a value that is not supported, or is not known here.
    """
    for key in ("vision_config", "llm_config", "downsample_ratio", "ps_version"):
        if key not in config:
            raise ValueError(f"{where}: there is no {key!r}")
    chat = Options(config, where)
    if chat.need("ps_version") not in ("v1", "v2"):
        raise ValueError(f"{where}: ps_version={config['ps_version']!r} is not supported; known are 'v1' and 'v2'")
    shuffle = round(1 / chat.number("downsample_ratio"))
    if shuffle * config["downsample_ratio"] != 1:
        raise ValueError(f"{where}: downsample_ratio={config['downsample_ratio']} is not 1 over a whole number")
    merged_only(chat, "use_llm_lora")
    vision = tower_of(chat)
    if (grid := vision["image_size"] // vision["patch_size"]) % shuffle:
        told = f"downsample_ratio={config['downsample_ratio']} does not go with {grid}x{grid} patches"
        raise ValueError(f"{where}: {told}, which are no whole number of blocks")
    llm = chat.part("llm_config", "the language configuration")
    if llm.get("bos_token_id") is None:
        raise ValueError(f"{where}: llm_config has no 'bos_token_id'")
    decoder = _decoder(config, where).model_config(llm.values, llm.location)
    bos = llm.count("bos_token_id", least=0)
    if bos >= decoder["vocab"]:
        raise ValueError(f"{llm.location}: bos_token_id={bos} is outside the vocabulary of {decoder['vocab']}")
    if (width := chat.get("hidden_size", decoder["width"])) != decoder["width"]:
        raise ValueError(f"{where}: hidden_size={width!r} is not the llm_config's {decoder['width']}")
    tied = chat.get("tie_word_embeddings", decoder["tied"])
    if tied and not decoder["tied"]:
        raise ValueError(f"{where}: tie_word_embeddings={tied!r} contradicts the llm_config; set it in both or in none")
    decoder["tied"] = bool(tied)  # InternVL 2.5 and later say false here, which overrides the llm_config
    chat.finish_model(CHAT_IRRELEVANT)
    projector = {"width": decoder["width"], "shuffle": shuffle, "ps_version": config["ps_version"]}
    return {"vision": vision, "projector": projector, "decoder": decoder, "bos": bos}


def prefix(config: Mapping[str, Any], keys) -> str:
    """Nothing stands before the three parts' keys."""
    del config, keys
    return ""


def ignored(model: Any, prefix: str, config: Mapping[str, Any]) -> list[str]:
    """What the parts do not need."""
    vision = internvit.ignored(model.vision, f"{prefix}vision_model.", {})
    return vision + _decoder(config, "config.json").ignored(model.decoder, f"{prefix}language_model.", config)


def rules(model: Any, prefix: str, config: Mapping[str, Any]) -> list[Rule]:
    """The parts' tables under vision/, projector/ and decoder/."""

    def under(part, table):
        return [rule._replace(ours=rule.ours.replace("params/", f"params/{part}/", 1)) for rule in table]

    decoder = _decoder(config, "config.json")
    return [
        *under("vision", internvit.rules(model.vision, f"{prefix}vision_model.", config)),
        Rule("params/projector/norm/scale", f"{prefix}mlp1.0.weight"),
        Rule("params/projector/norm/bias", f"{prefix}mlp1.0.bias"),
        Rule("params/projector/fc1/kernel", f"{prefix}mlp1.1.weight", LINEAR),
        Rule("params/projector/fc1/bias", f"{prefix}mlp1.1.bias"),
        Rule("params/projector/fc2/kernel", f"{prefix}mlp1.3.weight", LINEAR),
        Rule("params/projector/fc2/bias", f"{prefix}mlp1.3.bias"),
        *under("decoder", decoder.rules(model.decoder, f"{prefix}language_model.", config)),
    ]
