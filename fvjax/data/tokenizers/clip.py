"""CLIP's tokenizer: lower-case byte-level BPE whose last piece of each word ends with `</w>`.

Source: openai/CLIP (clip/simple_tokenizer.py), transformers (convert_slow_tokenizer.py, CLIPConverter).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, normalizers, pre_tokenizers

from fvjax.data.tokenizers.byte_level import merges
from fvjax.data.tokenizers.files import AGAIN, MAX_BYTES, check_settings, read_json

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
# How a text is cut before merging: contractions, words, single digits, other signs; spaces are dropped.
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
SETTINGS: dict[str, tuple[Any, ...]] = {
    "tokenizer_class": (None, *CLASSES),
    "do_lower_case": (None, True),
    "bos_token": (None, BEGIN),
    "eos_token": (None, END),
}


class Tokenizer:
    """CLIP's BPE from vocab.json and merges.txt; tokenizer_config.json is checked if it is there. Picklable.

    Args:
        path: a checkpoint's directory.
    Attributes:
        bos_id, eos_id: of the tokens that begin and end a text; `added` has both.
        size: all ids are below it (CLIP: 49,408).
    Raises:
        ValueError: a file is missing, damaged or without the tokens that begin and end a text, or asks for something
            else. The message names the file and the remedy.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        file = self.path / "tokenizer_config.json"
        config = {key: _text(value) for key, value in read_json(file).items()}
        check_settings(config, SETTINGS, file, "CLIP's")
        vocabulary = read_json(self.path / "vocab.json", MAX_BYTES)
        if not vocabulary:
            raise ValueError(f"{self.path / 'vocab.json'}: missing or empty; {AGAIN}")
        if missing := [token for token in (BEGIN, END) if token not in vocabulary]:
            raise ValueError(f"{self.path / 'vocab.json'}: without {missing[0]}, so it is not CLIP's; {AGAIN}")
        pairs = [tuple(pair) for pair in merges(self.path / "merges.txt")]
        self._bpe = _build(vocabulary, pairs, self.path)
        self.size = len(vocabulary)
        self.added = {token: vocabulary[token] for token in (BEGIN, END)}
        self._text_of = {id: text for text, id in self.added.items()}
        self.bos_id, self.eos_id = vocabulary[BEGIN], vocabulary[END]

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, without the tokens that begin and end it.

        Raises ValueError: half a surrogate pair, which is no text.
        """
        try:
            return self._bpe.encode(text, add_special_tokens=False).ids
        except TypeError:
            raise ValueError(f"{self.path}: cannot encode {text!r:.60}; it is not valid Unicode text") from None

    def rows(self, texts: Sequence[str], length: int) -> NDArray[np.int32]:
        """Return ids int32 [N, length] for a text tower: begin, the text, end, and further ends that fill the row.

        Raises ValueError for a text that does not fit; the message quotes it.
        """
        out = np.full((len(texts), length), self.eos_id, np.int32)
        for row, text in zip(out, texts, strict=True):
            ids = [self.bos_id, *self.encode(text), self.eos_id]
            if len(ids) > length:
                raise ValueError(f"{text!r:.80} has {len(ids)} tokens with begin and end; at most {length} fit")
            row[: len(ids)] = ids
        return out

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids in lower case, with a space after each word; added tokens are as written.

        Raises ValueError: an id outside 0 … size - 1.
        """
        if outside := [id for id in ids if not 0 <= id < self.size]:
            raise ValueError(f"{self.path}: no token has id {outside[0]}, there are {self.size}")
        text = ""
        for are_added, group in groupby(map(int, ids), self._text_of.__contains__):
            run = list(group)
            text += "".join(self._text_of[id] for id in run) if are_added else self._bpe.decode(run)
        return text.replace(WORD_END, " ").strip()


def _text(value: Any) -> Any:
    """Return the text of a token that a file describes as an object."""
    return value["content"] if isinstance(value, dict) and "content" in value else value


def _build(vocabulary: dict[str, Any], pairs: Any, path: Path) -> tokenizers.Tokenizer:
    """Build the library's tokenizer. Raises ValueError: ids or merges that do not fit together."""
    if sorted(map(str, vocabulary.values())) != sorted(map(str, range(len(vocabulary)))):
        raise ValueError(f"{path / 'vocab.json'}: the ids of {len(vocabulary)} tokens are not 0, 1, 2, …; {AGAIN}")
    try:
        model = models.BPE(vocabulary, pairs, continuing_subword_prefix="", end_of_word_suffix=WORD_END, unk_token=END)
    except Exception as error:  # the library raises no narrower class
        raise ValueError(f"{path}: vocab.json and merges.txt do not fit together ({error}); {AGAIN}") from None
    bpe: Any = tokenizers.Tokenizer(model)
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in (BEGIN, END)])
    return bpe
