"""InternVL2 as a whole: vision_model.…, mlp1.… and language_model.…, each by its own table."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from weights_convert import internlm2, internvit, llama
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
    """config.json -> attributes for fvjax.models.vlm.build."""
    for key in ("vision_config", "llm_config", "downsample_ratio", "ps_version"):
        if key not in config:
            raise ValueError(f"{where}: there is no {key!r}")
    if config["ps_version"] not in ("v1", "v2"):
        raise ValueError(f"{where}: ps_version={config['ps_version']!r} is not supported; known are 'v1' and 'v2'")
    shuffle = round(1 / config["downsample_ratio"])
    if shuffle * config["downsample_ratio"] != 1:
        raise ValueError(f"{where}: downsample_ratio={config['downsample_ratio']} is not 1 over a whole number")
    for key in ("use_backbone_lora", "use_llm_lora"):
        if config.get(key, 0):
            raise ValueError(f"{where}: {key}={config[key]}: its adapters must be merged into the weights first")
    vision, llm = internvit.model_config(config, where), config["llm_config"]
    if config.get("force_image_size") not in (None, vision["image_size"]):
        told = f"force_image_size={config['force_image_size']} is not the tower's {vision['image_size']}"
        raise ValueError(f"{where}: {told}, which is not supported")
    if "bos_token_id" not in llm:
        raise ValueError(f"{where}: llm_config has no 'bos_token_id'")
    decoder = _decoder(config, where).model_config(llm, f"{where} (llm_config)")
    projector = {"width": decoder["width"], "shuffle": shuffle, "ps_version": config["ps_version"]}
    return {"vision": vision, "projector": projector, "decoder": decoder, "bos": llm["bos_token_id"]}


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
