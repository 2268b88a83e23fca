"""Convert InternVL2 as a whole: vision_model.…, mlp1.… and language_model.…, each by its own table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from weights_convert import internlm2, internvit, llama
from weights_convert.internvit import CHAT_IRRELEVANT, refuse_unmerged_adapters, tower_config
from weights_convert.options import Options
from weights_convert.rules import LINEAR, Rule

ARCHITECTURES = ("InternVLChatModel",)
KIND = "vlm"
DECODERS: tuple[ModuleType, ...] = (internlm2, llama)


def _decoder_table(config: Mapping[str, Any], location: str) -> ModuleType:
    """Choose the decoder's conversion table by its architecture. Raises ValueError for an unknown one."""
    architectures = config["llm_config"].get("architectures") or []
    for table in DECODERS:
        if set(architectures) & set(table.ARCHITECTURES):
            return table
    known = [name for table in DECODERS for name in table.ARCHITECTURES]
    raise ValueError(f"{location}: unknown llm_config architectures {architectures}; known are {known}")


def model_config(config: Mapping[str, Any], location: str) -> dict[str, Any]:
    """Convert config.json to the attributes of fvjax.models.encoder.build_vlm.

    Raises ValueError for a key that is missing or unknown, or has a value that is not supported.
    """
    for key in ("vision_config", "llm_config", "downsample_ratio", "ps_version"):
        if key not in config:
            raise ValueError(f"{location}: there is no {key!r}")
    chat = Options(config, location)
    projector = _projector_config(chat)
    refuse_unmerged_adapters(chat, "use_llm_lora")
    vision = tower_config(chat)
    check_grid(vision, projector, chat)
    decoder, bos = _decoder_config(chat)
    chat.finish_model(CHAT_IRRELEVANT)
    return {"vision": vision, "projector": {"width": decoder["width"], **projector}, "decoder": decoder, "bos": bos}


def _projector_config(chat: Options) -> dict[str, Any]:
    """Read the projector's attributes, without its width."""
    version = chat.need("ps_version")
    if version not in ("v1", "v2"):
        raise ValueError(f"{chat.location}: ps_version={version!r} is not supported; known are 'v1' and 'v2'")
    return {"shuffle": shuffle_size(chat), "ps_version": version}


def shuffle_size(chat: Options) -> int:
    """Read how many patches in each direction become one visual token."""
    ratio = chat.number("downsample_ratio")
    size = round(1 / ratio)
    if size * ratio != 1:
        raise ValueError(f"{chat.location}: downsample_ratio={ratio} is not 1 over a whole number")
    return size


def check_grid(vision: Mapping[str, Any], projector: Mapping[str, Any], chat: Options) -> None:
    """Raise ValueError if the tower's patches are not a whole number of the projector's blocks."""
    if (grid := vision["image_size"] // vision["patch_size"]) % projector["shuffle"]:
        raise ValueError(
            f"{chat.location}: downsample_ratio={chat.values['downsample_ratio']} does not fit {grid}x{grid} patches, "
            "which are not a whole number of blocks"
        )


def _decoder_config(chat: Options) -> tuple[dict[str, Any], int]:
    """Read the decoder's attributes and the id of its first token."""
    llm = chat.part("llm_config", "the language configuration")
    if llm.get("bos_token_id") is None:
        raise ValueError(f"{chat.location}: llm_config has no 'bos_token_id'")
    decoder = _decoder_table(chat.values, chat.location).model_config(llm.values, llm.location)
    bos = first_token(llm, decoder)
    if (width := chat.get("hidden_size", decoder["width"])) != decoder["width"]:
        raise ValueError(f"{chat.location}: hidden_size={width!r} is not the llm_config's {decoder['width']}")
    tied = chat.get("tie_word_embeddings", decoder["tied"])
    if tied and not decoder["tied"]:
        raise ValueError(
            f"{chat.location}: tie_word_embeddings={tied!r} contradicts the llm_config; set it in both or in none"
        )
    decoder["tied"] = bool(tied)  # InternVL 2.5 and later say false here, which overrides the llm_config
    return decoder, bos


def first_token(llm: Options, decoder: Mapping[str, Any]) -> int:
    """Read the id of the first token. Raises ValueError if the decoder's vocabulary does not have it."""
    bos = llm.count("bos_token_id", least=0)
    if bos >= decoder["vocab"]:
        raise ValueError(f"{llm.location}: bos_token_id={bos} is outside the vocabulary of {decoder['vocab']}")
    return bos


def input_shape(model: Any) -> tuple[int, ...]:
    """Return the shape of an input of the network: one image."""
    return internvit.input_shape(model.vision)


def prefix(config: Mapping[str, Any], keys) -> str:
    """Return the prefix of the original's keys, which is empty."""
    del config, keys
    return ""


def ignored(model: Any, prefix: str, config: Mapping[str, Any]) -> list[str]:
    """Return regexes of keys that none of the parts needs."""
    vision = internvit.ignored(model.vision, f"{prefix}vision_model.", {})
    return vision + _decoder_table(config, "config.json").ignored(model.decoder, f"{prefix}language_model.", config)


def under(part: str, table: Sequence[Rule]) -> list[Rule]:
    """Return a part's rules with their names under the part's."""
    return [rule._replace(name=rule.name.replace("params/", f"params/{part}/", 1)) for rule in table]


def rules(model: Any, prefix: str, config: Mapping[str, Any]) -> list[Rule]:
    """Return the rules of the parts, with their names under vision/, projector/ and decoder/."""

    decoder = _decoder_table(config, "config.json")
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
