"""Tokenizers from the files of a checkpoint: `load` chooses by the files that are there."""

from __future__ import annotations

import os
from pathlib import Path

from fvjax.data.tokenizers import byte_level, internlm2, llama
from fvjax.data.tokenizers.files import read_json
from fvjax.data.tokenizers.tokenizer import Tokenizer

__all__ = ["Tokenizer", "load"]


def load(path: str | os.PathLike) -> Tokenizer:
    """Open the tokenizer of a checkpoint.

    tokenizer.model is SentencePiece: LLaMA's if tokenizer_config.json says so, otherwise InternLM2's. Without it,
    tokenizer.json, or vocab.json with merges.txt, is byte-level BPE.

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
    if any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json", "merges.txt")):
        return byte_level.Tokenizer(folder)
    raise ValueError(
        f"{folder}: no tokenizer (tokenizer.json, vocab.json with merges.txt, or tokenizer.model); copy its files from "
        "the checkpoint"
    )
