"""The tokenizer of the tiny chat model that comes with fvjax, trained on the questions about procedural faces."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from fvjax.data.face_questions import KINDS
from fvjax.data.tokenizers.byte_level import QWEN2_SPLIT

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")  # of InternVL's chat
VOCABULARY = 512  # with the special tokens, which are the last six


def write(dst: str | os.PathLike) -> None:
    """Train a byte-level BPE of :data:`VOCABULARY` tokens on the questions and answers, and write it to a new folder.

    Its form is that of Qwen2's tokenizer: NFC, the same split into words, all 256 bytes, no token at the beginning. Any
    text encodes. The files are those of a checkpoint, `tokenizer.json` and `tokenizer_config.json`.

    Raises:
        ValueError: `dst` exists.
    """
    folder = Path(dst)
    if folder.exists():
        raise ValueError(f"{folder} exists; choose another directory, or remove it")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "errors": "replace",
        "split_special_tokens": False,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str() + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _training_text() -> list[str]:
    """Return every wording, every option once a wording, and what else a chat is likely to contain."""
    texts: list[str] = []
    for kind in KINDS.values():
        for wording in kind.wordings:
            texts += [wording, *kind.options]
    chat = [
        "system\n",
        "user\n",
        "assistant\n",
        "You see a picture of one face.",
        "Describe this image.",
        "Answer in one word.",
    ]
    return texts + 40 * chat
