"""Convert LLaVA-1.5, Video-LLaVA and Face-LLaVA in the layout of their own code (LlavaLlamaForCausalLM).

    part                    keys
    tower of LLaVA-1.5      model.vision_tower.vision_tower.vision_model.…
    towers of the others    model.image_tower.image_tower.…, model.video_tower.video_tower.…
    projector               model.mm_projector.0.…, model.mm_projector.2.…
    landmark modules        model.{landmarks_projector,global_landmarks_projector,landmarks_cross_attn}.…
    decoder                 model.embed_tokens…, model.layers.…, model.norm…, lm_head…

config.json names the towers and does not describe them. Their own configurations are read from folders `image_tower`,
`video_tower` or (LLaVA-1.5) `vision_tower`, in the directory or beside it; those of the published towers are known. The
weights of a tower that the checkpoint lacks are read from its folder in the directory. A model without landmark
weights, as the released Face-LLaVA, reads pictures and clips without landmarks.

Sources: haotian-liu/LLaVA, PKU-YuanGroup/Video-LLaVA (llava/model/llava_arch.py), Face-LLaVA (arXiv:2504.07198).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weights_convert import clip_vision, llama
from weights_convert.internvl import first_token, under
from weights_convert.options import Options
from weights_convert.rules import LINEAR, Part, Rule

ARCHITECTURES = ("LlavaLlamaForCausalLM",)
KIND = "llava"
TOWERS = "towers"  # key of config.json's entry "fvjax", and of what `beside` adds to an original's
LANDMARKS = "model.landmarks_projector."
ATTENTION = "model.landmarks_cross_attn."
# part -> (key of config.json that names its tower, folder of the tower's configuration, prefix of its keys)
PARTS = {
    "vision": ("mm_image_tower", "image_tower", "model.image_tower.image_tower."),
    "video": ("mm_video_tower", "video_tower", "model.video_tower.video_tower."),
}
LLAVA_1_5 = ("mm_vision_tower", "vision_tower", "model.vision_tower.vision_tower.vision_model.")

_VIT_L = {
    **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    **{"image_size": 224, "patch_size": 14, "layer_norm_eps": 1e-5},
}
# The published towers, whose configurations need not be there.
PUBLISHED: dict[str, dict[str, Any]] = {
    "LanguageBind/LanguageBind_Image": {**_VIT_L, "hidden_act": "gelu"},
    "LanguageBind/LanguageBind_Video_merge": {**_VIT_L, "hidden_act": "gelu", "add_time_attn": True, "num_frames": 8},
    "openai/clip-vit-large-patch14": {**_VIT_L, "hidden_act": "quick_gelu"},
    "openai/clip-vit-large-patch14-336": {**_VIT_L, "hidden_act": "quick_gelu", "image_size": 336},
}
# Keys of the decoder's configuration, which stand beside those of the other parts.
DECODER_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_scaling"),
    *("rope_theta", "rope_parameters", "tie_word_embeddings", "pretraining_tp", "attention_bias", "mlp_bias"),
    *("attention_dropout", "max_sequence_length"),
)
TRAINING = "chooses what trains, or how fast"
# Keys of config.json that change nothing, each with the reason.
IRRELEVANT: dict[str, str] = {
    **dict.fromkeys(
        (
            *("tune_mm_mlp_adapter", "tune_landmarks_mlp_adapter", "freeze_mm_mlp_adapter", "mm_projector_lr"),
            *("unfreeze_mm_vision_tower", "mm_vision_tower_lr", "freeze_landmarks_mlp_adapter"),
            *("freeze_mm_vision_resampler", "tune_mm_vision_resampler"),
        ),
        TRAINING,
    ),
    "use_mm_proj": "the keys say whether there is a projector",
    **dict.fromkeys(
        ("image_aspect_ratio", "image_grid_pinpoints", "image_crop_resolution", "image_split_resolution"),
        "belongs to the pictures that come in",
    ),
    **dict.fromkeys(("tokenizer_model_max_length", "tokenizer_padding_side"), "belongs to the texts that come in"),
}
ONLY = {  # key -> the value that is supported
    **{"mm_projector_type": "mlp2x_gelu", "mm_vision_select_feature": "patch", "mm_patch_merge_type": "flat"},
    **{"mm_use_im_start_end": False, "mm_use_im_patch_token": False, "use_landmark_tokens": False},
    **{"landmarks_hidden_size": 136, "global_landmarks_projector_type": "linear"},
}
PROJECTORS = {"landmarks_region_projector": "regions", "linear": "linear"}
HEADS = 8  # of the attention, a constant of the released code
VARIANTS = ("paper", "simple", "masked")


def beside(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return {tower part: its vision_config} of an original, from the files beside it or by its published name.

    Raises ValueError for a tower that is neither there nor known.
    """
    return {part: _tower_beside(path, config[key], folder) for part, (key, folder, _) in _parts(config).items()}


def _parts(config: Mapping[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Return the tower parts that config.json names."""
    parts = {"vision": LLAVA_1_5} if config.get(PARTS["vision"][0]) is None else PARTS
    return {part: entry for part, entry in parts.items() if config.get(entry[0]) is not None}


def tower_files(path: Path, config: Mapping[str, Any], keys: Collection[str]) -> dict[Path, str]:
    """Return the files with the weights of towers that an original lacks -> the prefix that their keys take."""
    missing = {folder: start for _, folder, start in _parts(config).values() if not any(map(_under(start), keys))}
    files = {path / folder / "model.safetensors": start for folder, start in missing.items()}
    return {file: start for file, start in files.items() if file.is_file()}


def tower_descriptions(config: Mapping[str, Any], towers: Mapping[str, Any]) -> dict[str, str]:
    """Return the files that describe an original's towers, name -> text, from what :func:`beside` returned."""
    return {
        f"{folder}/config.json": json.dumps({"vision_config": towers[part]}, indent=1)
        for part, (_, folder, _) in _parts(config).items()
    }


def _under(start: str) -> Callable[[str], bool]:
    return lambda key: key.startswith(start)


def _tower_beside(path: Path, name: Any, folder: str) -> dict[str, Any]:
    """Return the vision_config of one tower."""
    for directory in (path / folder, path.parent / folder):
        file = directory / "config.json"
        if file.is_file():
            try:
                stored = json.loads(file.read_text(encoding="utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file} is not JSON: {error}") from None
            config = stored.get("vision_config", stored) if isinstance(stored, dict) else stored
            return dict(Options(config, str(file), "the vision configuration").values)
    if not isinstance(name, str) or name not in PUBLISHED:
        raise ValueError(
            f"{path}/config.json: the tower {name!r} is not one of {sorted(PUBLISHED)}; "
            f"copy its config.json to {path / folder}"
        )
    return PUBLISHED[name]


def model_config(config: Mapping[str, Any], location: str) -> dict[str, Any]:
    """Convert config.json to the attributes of fvjax.models.encoder.build_llava.

    ``config`` has, besides what the file says, the towers' configurations as :func:`beside` returns them.
    Raises ValueError for a key that is missing or unknown, or has a value that is not supported.
    """
    options = Options(config, location)
    for key, only in ONLY.items():
        options.only(key, only)
    towers = options.part(TOWERS, "the towers' configurations")
    layer = options.get("mm_vision_select_layer", -2)
    parts: dict[str, Any] = {}
    for part, (key, _, _) in _parts(config).items():
        options.get(key)
        parts[part] = clip_vision.tower_config(towers.part(part, f"the configuration of {config[key]}"), layer)
    if "vision" not in parts:
        raise ValueError(f"{location}: there is neither {PARTS['vision'][0]!r} nor {LLAVA_1_5[0]!r}")
    _check_towers(parts, options)
    llm = Options({key: options.get(key) for key in DECODER_KEYS} | {"architectures": ["LlamaForCausalLM"]}, location)
    decoder = llama.model_config(llm.values, location)
    bos = first_token(Options({"bos_token_id": options.get("bos_token_id", 1)}, location), decoder)
    parts |= {"projector": projector(decoder), "decoder": decoder, "bos": bos}
    parts |= _landmark_config(options, decoder)
    options.get("architectures")
    options.finish_model(IRRELEVANT)
    return parts


def projector(decoder: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of LLaVA's projector."""
    return {"width": decoder["width"], "shuffle": 1, "norm": False}


def _check_towers(parts: Mapping[str, Any], options: Options) -> None:
    """Raise ValueError if the two towers do not fit each other or the projector."""
    vision, video = parts["vision"], parts.get("video", parts["vision"])
    for name in ("image_size", "width"):
        if vision[name] != video[name]:
            raise ValueError(f"{options.location}: the towers' {name} differs: {vision[name]} and {video[name]}")
    if vision["frames"] or ("video" in parts and not video["frames"]):
        raise ValueError(f"{options.location}: needs a tower for images, and for clips one with add_time_attn=true")
    if (stated := options.get("mm_hidden_size", vision["width"])) != vision["width"]:
        raise ValueError(f"{options.location}: mm_hidden_size={stated!r} is not the tower's width of {vision['width']}")


def _landmark_config(options: Options, decoder: Mapping[str, Any]) -> dict[str, Any]:
    """Read the landmark modules, as far as config.json names them; the keys decide whether they exist (`settle`)."""
    kind, variant = options.get("landmarks_projector_type"), options.get("cross_attn_type")
    grid = options.get("landmarks_grid", "rowcol" if variant == "masked" else "xy")
    scale = options.number("landmarks_scale", 0.1)
    if kind is None:
        return {}
    kind, variant = options.choice("landmarks_projector_type", PROJECTORS), options.choice("cross_attn_type", VARIANTS)
    if grid not in ("xy", "rowcol"):
        raise ValueError(f"{options.location}: landmarks_grid={grid!r} is not supported; known are 'rowcol' and 'xy'")
    return {
        "landmarks": {"width": decoder["width"], "kind": kind},
        "attention": {"variant": variant, "heads": HEADS, "scale": scale, "grid": grid},
    }


def settle(attributes: dict[str, Any], config: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """Return the attributes without landmark modules if the file has no weights for them."""
    del config
    if any(key.startswith((LANDMARKS, "params/landmarks/")) for key in keys):
        return attributes
    return {name: part for name, part in attributes.items() if name not in ("landmarks", "attention")}


def notes(attributes: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Return what a user should know about the model before using it."""
    if "landmarks" in attributes or config.get("landmarks_projector_type") is None:
        return []
    return [
        "there are no landmark weights, though config.json names landmark modules: the model reads pictures and clips "
        "without landmarks, and its results say nothing about landmarks"
    ]


def input_shape(model: Any) -> tuple[int, ...]:
    """Return the shape of an input of the network: one picture."""
    return (1, model.vision.image_size, model.vision.image_size, 3)


def prefix(config: Mapping[str, Any], keys) -> str:
    """Return the prefix of the original's keys, which is empty."""
    del config, keys
    return ""


def ignored(model: Any, prefix: str, config: Mapping[str, Any]) -> dict[str, str]:
    """Return regexes of keys that none of the parts needs, each with the reason."""
    towers: dict[str, str] = {}
    for part, (_, _, start) in _parts(config).items():
        towers |= clip_vision.unneeded(getattr(model, part), prefix + start.replace(".", r"\."))
    decoder = {key: _why(key) for key in llama.ignored_under(model.decoder, f"{prefix}model.", f"{prefix}lm_head.")}
    return towers | decoder | {rf"{prefix}{ATTENTION}ln\..*": "a norm that the released code does not use"}


def _why(key: str) -> str:
    return "computed from rope_theta" if "inv_freq" in key else "the head is the embedding"


def rules(model: Any, prefix: str, config: Mapping[str, Any]) -> list[Rule]:
    """Return the rules of all parts."""
    parts = _parts(config)
    towers = [
        rule
        for part, (_, _, start) in parts.items()
        for rule in under(part, clip_vision.rules(getattr(model, part), prefix + start, config))
    ]
    return [
        *towers,
        *(
            rule
            for ours, theirs in (("fc1", 0), ("fc2", 2))
            for rule in _dense(f"params/projector/{ours}", f"{prefix}model.mm_projector.{theirs}")
        ),
        *_landmark_rules(model, prefix),
        *under("decoder", llama.rules_under(f"{prefix}model.", f"{prefix}lm_head.")),
    ]


def _dense(ours: str, theirs: str) -> list[Rule]:
    """Return the rules of a linear layer."""
    return [Rule(f"{ours}/kernel", f"{theirs}.weight", LINEAR), Rule(f"{ours}/bias", f"{theirs}.bias")]


def _landmark_rules(model: Any, prefix: str) -> list[Rule]:
    """Return the rules of the landmark modules; the variants of the attention have other keys."""
    if model.attention is None:
        return []
    inner = f"{prefix}{ATTENTION}cross_attn."
    local = f"{prefix}{LANDMARKS}region_layers." + "{0}"
    variant = model.attention.variant
    out = {"simple": f"{inner}attn.out_proj", "paper": f"{prefix}{ATTENTION}linear_proj"}.get(variant, "")
    fused = f"{inner}attn.in_proj_"
    return [
        *_dense("params/landmarks/global", f"{prefix}model.global_landmarks_projector"),
        *_dense("params/landmarks/local", f"{prefix}{LANDMARKS.removesuffix('.')}"),
        *_dense("params/landmarks/local_(.*)", local),
        *(
            rule
            for i, x in enumerate("qkv")
            for rule in (
                [
                    Rule(f"params/attention/{x}/kernel", fused + "weight", _third(i)),
                    Rule(f"params/attention/{x}/bias", fused + "bias", _third(i)),
                ]
                if variant == "simple"
                else _dense(f"params/attention/{x}", f"{inner}{x}_proj")
            )
        ),
        *_dense("params/attention/out", out),
        *_dense("params/attention/linear", f"{prefix}{ATTENTION}linear_proj"),
        Rule("params/attention/norm/scale", inner + "ln.weight"),
        Rule("params/attention/norm/bias", inner + "ln.bias"),
    ]


def _third(number: int) -> Part:
    """Take one third of the rows of a tensor that joins q, k and v, transposed if it is a matrix."""

    def to_original(x: np.ndarray) -> np.ndarray:
        whole = np.zeros((3, *x.T.shape), x.dtype)
        whole[number] = x.T
        return whole.reshape(-1, *x.T.shape[1:])

    return Part(lambda x: np.split(x, 3)[number].T, to_original)
