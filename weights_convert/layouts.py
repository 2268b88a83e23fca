"""Translate an InternVL model between its two published layouts.

"remote": OpenGVLab's own code (InternVLChatModel), with keys such as vision_model.encoder.layers.0.attn.qkv.weight.
"hf": transformers' own classes (InternVLForConditionalGeneration), repositories with the suffix -hf.

The weights are the same bits under other keys. config.json is translated key by key, and files that only one of the two
uses (processor, chat template) are written anew. Code is never written: a "remote" directory still needs the three
Python files of its model's repository, as it does after a conversion.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from weights_convert import internvit, internvit_hf, internvl, internvl_hf
from weights_convert.read import Checkpoint, build, load_json
from weights_convert.rules import Source, plan

# layout -> kind -> conversion table
TABLES: dict[str, dict[str, ModuleType]] = {
    "remote": {"vlm": internvl, "vision_transformer": internvit},
    "hf": {"vlm": internvl_hf, "vision_transformer": internvit_hf},
}
# kind -> (layout, prefix of its keys) for every path by which PEFT may know a module; a layout's first is written.
MODULE_PATHS = {
    "vlm": [
        *(("hf", spelling) for spelling in (internvl_hf.IN_MEMORY, internvl_hf.ON_DISK, internvl_hf.WITHOUT_WRAPPER)),
        ("remote", ""),
    ],
    "vision_transformer": [("hf", "model.vision_tower."), ("hf", "vision_tower."), ("remote", "vision_model.")],
}
# Keys of a decoder's configuration that both layouts write; all others name code or have no effect.
TEXT_KEYS = (
    *("attention_bias", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "head_dim", "hidden_act"),
    *("hidden_size", "initializer_range", "intermediate_size", "layer_types", "max_position_embeddings"),
    *("max_window_layers", "mlp_bias", "num_attention_heads", "num_hidden_layers", "num_key_value_heads"),
    *("rms_norm_eps", "sliding_window", "use_cache", "use_sliding_window", "vocab_size"),
)
# Settings of the remote code's chat that the -hf layout cannot say, with the only value that it means.
CHAT_SETTINGS = {"pad2square": False, "use_thumbnail": True, "template": "internvl2_5", "system_message": None}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
BICUBIC = 3  # PIL's number of the filter
# InternVL's added tokens are the last rows of a Qwen2 decoder's vocabulary: token -> its place from the end.
FROM_THE_END = {"<|endoftext|>": 31, "<|im_end|>": 29, "<IMG_CONTEXT>": 7}
# A message is its role and its items, an image being a placeholder and a line break. No system message is added.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'image' -%}
{{- '<IMG_CONTEXT>\\n' -}}
{%- elif item['type'] == 'video' -%}
{{- '<video>\\n' -}}
{%- elif item['type'] == 'text' -%}
{{- item['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
# The names by which transformers' InternVLProcessor asks its tokenizer for tokens.
NAMED_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def layout_of(ckpt: Checkpoint) -> str | None:
    """Return the layout of a checkpoint, converted or not; None for a model that is no InternVL."""
    architectures = set(ckpt.config.get("architectures") or [])
    for layout, tables in TABLES.items():
        if ckpt.kind in tables and architectures & set(tables[ckpt.kind].ARCHITECTURES):
            return layout
    return None


def sources_in(ckpt: Checkpoint, layout: str, prefix: str) -> dict[str, Source]:
    """Return where each array of a checkpoint is stored in a layout, under keys with a prefix."""
    config = {"llm_config": {"architectures": _decoder_architectures(ckpt)}}
    model = build(ckpt.kind, ckpt.model_config)
    return plan(TABLES[layout][ckpt.kind].rules(model, prefix, config), ckpt.params)


def _decoder_architectures(ckpt: Checkpoint) -> list[str]:
    """Return the decoder's architecture as a list, as the original layout has it."""
    if "text_config" in ckpt.config:
        return [internvl_hf.DECODERS[ckpt.config["text_config"]["model_type"]][0]]
    return ckpt.config.get("llm_config", {}).get("architectures") or []


def _has_both(ckpt: Checkpoint) -> bool:
    """Return whether the model exists in both layouts: whole, or as the tower of a whole, with a decoder both know."""
    known = {architecture for architecture, _ in internvl_hf.DECODERS.values()}
    whole = layout_of(ckpt) is not None and "vision_config" in ckpt.config
    return whole and (ckpt.kind == "vision_transformer" or set(_decoder_architectures(ckpt)) <= known)


def module_paths(ckpt: Checkpoint) -> list[dict[str, Source]]:
    """Return the sources by every path that PEFT may have for the model's modules, the checkpoint's own first."""
    if not _has_both(ckpt):
        return [ckpt.sources]
    return [ckpt.sources, *(sources_in(ckpt, *path) for path in MODULE_PATHS[ckpt.kind])]


def written_paths(ckpt: Checkpoint, layout: str | None = None) -> dict[str, Source]:
    """Return the sources by the paths that a program which opens ``layout`` (default: the checkpoint's) has in memory.

    Raises ValueError for a layout that the model does not have.
    """
    layout = layout or layout_of(ckpt)
    if layout is None or (layout == layout_of(ckpt) and not _has_both(ckpt)):
        return ckpt.sources
    _check_layout(ckpt, layout)
    return next(sources_in(ckpt, *path) for path in MODULE_PATHS[ckpt.kind] if path[0] == layout)


def _check_layout(ckpt: Checkpoint, layout: str) -> None:
    """Raise ValueError if a layout is unknown or the model does not have it."""
    if layout not in TABLES:
        raise ValueError(f"layout {layout!r} is unknown; known are {sorted(TABLES)}")
    if not _has_both(ckpt):
        what = f"a {ckpt.kind} with architectures {ckpt.config.get('architectures')}"
        if decoder := _decoder_architectures(ckpt):
            what += f" and the decoder {decoder}"
        known = sorted(architecture for architecture, _ in internvl_hf.DECODERS.values())
        raise ValueError(f"{ckpt.path} is {what}; only an InternVL model with one of {known} has the layout {layout!r}")


def translate(ckpt: Checkpoint, layout: str) -> tuple[Checkpoint, dict[str, str | None]]:
    """Return a checkpoint as it is in another layout, and the companion files that differ there.

    The checkpoint has other sources and another config.json; its arrays are the same. Of the files, name -> text, or
    None for a file that must not be copied. A checkpoint that has the layout is returned as it is.

    Raises ValueError for a model that does not have the layout, a tower alone, or a model some of whose tensors would
    be lost.
    """
    _check_layout(ckpt, layout)
    if layout == layout_of(ckpt):
        return ckpt, {}
    if ckpt.kind != "vlm":
        raise ValueError(f"{ckpt.path} is opened as its tower alone; another layout needs the whole model (kind 'vlm')")
    vision = ckpt.model_config["vision"]
    if ckpt.model_config["projector"]["ps_version"] != "v2":
        raise ValueError(f"{ckpt.path}/config.json: ps_version='v1' has no equivalent in the layout {layout!r}")
    if vision["select_layer"] != -1:
        unused = f"its select_layer={vision['select_layer']} leaves layers of the tower out"
        raise ValueError(f"{ckpt.path}: {unused}, and the layout {layout!r} would lose their weights")
    lost = {k: ckpt.config.get(k) for k, v in CHAT_SETTINGS.items() if ckpt.config.get(k) not in (v, None)}
    if lost:
        key, value = next(iter(lost.items()))
        raise ValueError(f"{ckpt.path}/config.json: {key}={value!r} has no equivalent in the layout {layout!r}")
    if layout == "hf":
        config, files, prefix = _hf_config(ckpt), _hf_files(ckpt), internvl_hf.ON_DISK
    else:
        config, files, prefix = _remote_config(ckpt), _remote_files(ckpt), ""
    return replace(ckpt, config=config, sources=sources_in(ckpt, layout, prefix), prefix=prefix), files


def _text_config(ckpt: Checkpoint, key: str) -> dict[str, Any]:
    """Return the decoder's configuration in both layouts, from the part ``key`` of the checkpoint's config.json."""
    part, decoder = ckpt.config[key], ckpt.model_config["decoder"]
    architecture = _decoder_architectures(ckpt)[0]
    model_type = next(name for name, (known, _) in internvl_hf.DECODERS.items() if known == architecture)
    return {
        "architectures": [architecture],
        "model_type": model_type,
        **{name: part[name] for name in TEXT_KEYS if name in part},
        "rope_scaling": _rope_scaling(decoder),
        "rope_theta": decoder["rope_theta"],
        "tie_word_embeddings": decoder["tied"],
    }


def _rope_scaling(decoder: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the scaling of rotary positions in the spelling that every version of transformers reads."""
    kind = decoder["rope"]
    if kind == "plain":
        return None
    scaling = {"factor": decoder["rope_factor"], "rope_type": kind, "type": kind}
    if kind == "llama3":
        scaling |= {"original_max_position_embeddings": decoder["rope_original"]}
        scaling |= {"low_freq_factor": decoder["rope_low"], "high_freq_factor": decoder["rope_high"]}
    return scaling


def _dtype(ckpt: Checkpoint) -> str:
    """Return the dtype of the weights, by which both layouts are loaded unless the caller says otherwise."""
    return ckpt.params["params/decoder/embed"].dtype.name


def _hf_config(ckpt: Checkpoint) -> dict[str, Any]:
    """Return config.json of the layout "hf" for a checkpoint of the other."""
    vision, decoder = ckpt.model_config["vision"], ckpt.model_config["decoder"]
    tokens = _token_ids(ckpt)
    tower = {
        "architectures": ["InternVLVisionModel"],
        "model_type": "internvl_vision",
        "attention_bias": vision["qkv_bias"],
        "drop_path_rate": vision["drop_path"],
        "hidden_act": vision["act"],
        "hidden_size": vision["width"],
        "image_size": [vision["image_size"]] * 2,
        "intermediate_size": vision["mlp_dim"],
        "layer_norm_eps": vision["norm_eps"],
        "norm_type": _key_of(internvit.NORMS, vision["norm"]),
        "num_attention_heads": vision["heads"],
        "num_hidden_layers": vision["depth"],
        "patch_size": [vision["patch_size"]] * 2,
        "use_qk_norm": vision["qk_norm"],
        **dict.fromkeys(("attention_dropout", "hidden_dropout_prob", "projection_dropout"), 0.0),
        **{"use_absolute_position_embeddings": True, "use_mask_token": False, "use_mean_pooling": True},
        **{"num_channels": 3, "layer_scale_init_value": 0.1},
    }
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "downsample_ratio": 1 / ckpt.model_config["projector"]["shuffle"],
        "image_seq_length": _tokens_of_a_tile(ckpt),
        "image_token_id": tokens["<IMG_CONTEXT>"],
        "projector_hidden_act": "gelu",
        "text_config": {**_text_config(ckpt, "llm_config"), "eos_token_id": tokens["<|im_end|>"]},
        "tie_word_embeddings": decoder["tied"],
        "torch_dtype": _dtype(ckpt),
        "vision_config": tower,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def _remote_config(ckpt: Checkpoint) -> dict[str, Any]:
    """Return config.json of the layout "remote" for a checkpoint of the other."""
    vision, decoder = ckpt.model_config["vision"], ckpt.model_config["decoder"]
    tower = {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "attention_dropout": 0.0,
        "drop_path_rate": vision["drop_path"],
        "dropout": 0.0,
        "hidden_act": vision["act"],
        "hidden_size": vision["width"],
        "image_size": vision["image_size"],
        "initializer_factor": 0.1,
        "intermediate_size": vision["mlp_dim"],
        "layer_norm_eps": vision["norm_eps"],
        "norm_type": _key_of(internvit.NORMS, vision["norm"]),
        "num_attention_heads": vision["heads"],
        "num_channels": 3,
        "num_hidden_layers": vision["depth"],
        "patch_size": vision["patch_size"],
        "qk_normalization": vision["qk_norm"],
        "qkv_bias": vision["qkv_bias"],
    }
    code = {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}
    code |= dict.fromkeys(("AutoModel", "AutoModelForCausalLM"), "modeling_internvl_chat.InternVLChatModel")
    tiles = _json_file(ckpt.path / "preprocessor_config.json")
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "auto_map": code,
        "downsample_ratio": 1 / ckpt.model_config["projector"]["shuffle"],
        "dynamic_image_size": True,
        "force_image_size": vision["image_size"],
        "hidden_size": decoder["width"],
        **({"img_context_token_id": token} if (token := ckpt.config.get("image_token_id")) is not None else {}),
        "llm_config": _text_config(ckpt, "text_config"),
        "max_dynamic_patch": tiles.get("max_patches", 12),
        "min_dynamic_patch": tiles.get("min_patches", 1),
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "tie_word_embeddings": decoder["tied"],
        "torch_dtype": _dtype(ckpt),
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": tower,
    }


def _key_of(names: Mapping[str, str], value: str) -> str:
    return next(name for name, known in names.items() if known == value)


def _tokens_of_a_tile(ckpt: Checkpoint) -> int:
    vision = ckpt.model_config["vision"]
    return (vision["image_size"] // vision["patch_size"] // ckpt.model_config["projector"]["shuffle"]) ** 2


def _hf_files(ckpt: Checkpoint) -> dict[str, str | None]:
    """Return the companion files of the layout "hf": processor, chat template, generation and the tokenizer's names."""
    size = ckpt.model_config["vision"]["image_size"]
    image = {
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "processor_class": "InternVLProcessor",
        "crop_to_patches": False,
        "min_patches": ckpt.config.get("min_dynamic_patch", 1),
        "max_patches": ckpt.config.get("max_dynamic_patch", 12) if ckpt.config.get("dynamic_image_size", True) else 1,
        **dict.fromkeys(("do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), True),
        **IMAGENET,
        "resample": BICUBIC,
        "rescale_factor": 1 / 255,
        "size": {"height": size, "width": size},
    }
    processor = {"image_seq_length": _tokens_of_a_tile(ckpt), "processor_class": "InternVLProcessor"}
    contents: dict[str, Any] = {"preprocessor_config.json": image, "processor_config.json": processor}
    if not (ckpt.path / "generation_config.json").exists():
        tokens = _token_ids(ckpt)
        contents["generation_config.json"] = {"eos_token_id": tokens["<|im_end|>"], "do_sample": False}
    if tokenizer := _json_file(ckpt.path / "tokenizer_config.json"):
        tokenizer.pop("chat_template", None)  # the file chat_template.jinja has it
        names = {**NAMED_TOKENS, "extra_special_tokens": NAMED_TOKENS, "processor_class": "InternVLProcessor"}
        contents["tokenizer_config.json"] = tokenizer | names
    files: dict[str, str | None] = {name: json.dumps(content, indent=1) for name, content in contents.items()}
    return files | {"chat_template.jinja": CHAT_TEMPLATE}


def _remote_files(ckpt: Checkpoint) -> dict[str, str | None]:
    """Return the companion files of the layout "remote", which has no processor and its chat template in its code."""
    size = ckpt.model_config["vision"]["image_size"]
    image = {
        **{"feature_extractor_type": "CLIPFeatureExtractor", "crop_size": size, "size": size, "resample": BICUBIC},
        **dict.fromkeys(("do_center_crop", "do_normalize", "do_resize"), True),
        **IMAGENET,
    }
    unused = ("processor_config.json", "video_preprocessor_config.json", "chat_template.jinja", "chat_template.json")
    return {"preprocessor_config.json": json.dumps(image, indent=1), **dict.fromkeys(unused)}


def _json_file(path: Path) -> dict[str, Any]:
    """Load a JSON object if there is such a file."""
    return load_json(path) if path.exists() else {}


def _token_ids(ckpt: Checkpoint) -> dict[str, int]:
    """Return the ids of the tokens in FROM_THE_END that a chat needs.

    The tokenizer's files decide. Without them, the ids follow from InternVL's vocabulary, whose last rows are the added
    tokens, if the first token's id agrees.

    Raises ValueError if neither knows them, or an id is outside the vocabulary.
    """
    vocab, needed = ckpt.model_config["decoder"]["vocab"], ("<|im_end|>", "<IMG_CONTEXT>")
    ids = _added_tokens(ckpt.path)
    if not ids and ckpt.model_config["bos"] == vocab - FROM_THE_END["<|endoftext|>"]:
        ids = {token: vocab - place for token, place in FROM_THE_END.items()}
    if missing := [token for token in needed if token not in ids]:
        remedy = "put the tokenizer's files (tokenizer_config.json or added_tokens.json) into the directory"
        raise ValueError(f"{ckpt.path}: the id of {missing[0]} is not known; {remedy}")
    if outside := [token for token in needed if not 0 <= ids[token] < vocab]:
        which = f"the tokenizer's {outside[0]} has the id {ids[outside[0]]}"
        raise ValueError(
            f"{ckpt.path}: {which}, outside the decoder's vocabulary of {vocab}; use the model's own files"
        )
    return {token: ids[token] for token in needed}


def _added_tokens(path: Path) -> dict[str, int]:
    """Return the added tokens of the tokenizer in a directory, token -> id; empty if there is none."""
    decoder = _json_file(path / "tokenizer_config.json").get("added_tokens_decoder") or {}
    entries = _json_file(path / "tokenizer.json").get("added_tokens") or []
    try:
        return {
            **{entry["content"]: int(entry["id"]) for entry in entries},
            **{token: int(number) for token, number in _json_file(path / "added_tokens.json").items()},
            **{entry["content"]: int(number) for number, entry in decoder.items()},
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        files = "tokenizer_config.json, tokenizer.json or added_tokens.json"
        raise ValueError(f"{path}: {files} lists its added tokens in an unknown form ({error!r})") from None
