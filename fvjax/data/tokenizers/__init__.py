"""Tokenizers from the files of a checkpoint: `load` chooses by the files that are there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fvjax.data.tokenizers import byte_level, clip, internlm2, llama
from fvjax.data.tokenizers.files import read_json
from fvjax.data.tokenizers.tokenizer import Tokenizer

__all__ = ["Tokenizer", "fingerprint", "load"]

# Files that decide which ids a text has.
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)


def load(path: str | os.PathLike) -> Tokenizer:
    """Open the tokenizer of a checkpoint.

    tokenizer.model is SentencePiece: LLaMA's if tokenizer_config.json says so, otherwise InternLM2's. Without it,
    vocab.json with merges.txt is CLIP's if tokenizer_config.json says so; it and tokenizer.json are byte-level BPE
    otherwise.

    Args:
        path: a checkpoint's directory.
    Raises:
        ValueError: there is no tokenizer, or its files are damaged, contradict each other or need what fvjax lacks.
            The message names the file and the remedy.
    """
    folder = Path(path)
    if (folder / "tokenizer.model").is_file():
        name = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
        return (llama if name in llama.SETTINGS["tokenizer_class"] else internlm2).Tokenizer(folder)
    if read_json(folder / "tokenizer_config.json").get("tokenizer_class") in clip.CLASSES:
        return clip.Tokenizer(folder)
    if any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json", "merges.txt")):
        return byte_level.Tokenizer(folder)
    raise ValueError(
        f"{folder}: no tokenizer (tokenizer.json, vocab.json with merges.txt, or tokenizer.model); copy its files from "
        "the checkpoint"
    )


def fingerprint(path: str | os.PathLike) -> str:
    """Return a hash of a tokenizer's files, for a checkpoint to know which ids it was trained on."""
    digest = hashlib.sha256()
    for name in FILES:
        if (file := Path(path) / name).is_file():
            digest.update(f"{name}:{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]
