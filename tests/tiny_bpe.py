"""A byte-level BPE tokenizer of 267 tokens with the files of a Qwen2 checkpoint: bytes, four merges, added tokens."""

import json
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from fvjax.data.tokenizers.byte_level import QWEN2_SPLIT

MERGES = ["Ċ Ċ", "ĊĊ Ċ", "Y e", "Ye s"]
ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<é b>"]
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
FIRST = 256 + len(MERGES)  # id of the first added token
ID = {text: FIRST + number for number, text in enumerate(ADDED)}


def document() -> dict[str, Any]:
    """Return the contents of tokenizer.json."""
    vocabulary = {symbol: id for id, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary |= {merge.replace(" ", ""): 256 + number for number, merge in enumerate(MERGES)}
    split = {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": text, **FLAGS} for text, id in ID.items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_]},
        "post_processor": None,
        "decoder": bytes_,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": MERGES},
    }


def config() -> dict[str, Any]:
    """Return the contents of tokenizer_config.json."""
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(id): {"content": text, **FLAGS} for text, id in ID.items()},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "pad_token": {"content": "<|endoftext|>", **FLAGS},
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
    }


def write(folder: Path) -> Path:
    """Write tokenizer.json and tokenizer_config.json."""
    (folder / "tokenizer.json").write_text(json.dumps(document()))
    (folder / "tokenizer_config.json").write_text(json.dumps(config()))
    return folder


def write_vocabulary(folder: Path) -> Path:
    """Write the same tokenizer as vocab.json, merges.txt, tokenizer_config.json and added_tokens.json."""
    (folder / "vocab.json").write_text(json.dumps(document()["model"]["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    (folder / "tokenizer_config.json").write_text(json.dumps(config()))
    (folder / "added_tokens.json").write_text(json.dumps(ID))
    return folder
