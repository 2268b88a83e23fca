"""Byte-level BPE, the tokenizers of Qwen2 and of other models whose tokenizer.json says it, without their code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from fvjax.data.tokenizers.files import AGAIN, MAX_BYTES, check_settings, read_json, read_text

# How Qwen2 cuts a text before merging: contractions, words, single digits, punctuation, line breaks, other space.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
CLASSES = (None, *QWEN2, "GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
# Settings of tokenizer_config.json that change ids or decoded text, each with the values that leave them unchanged.
SETTINGS: dict[str, tuple[Any, ...]] = {
    "add_bos_token": (None, False),
    "add_eos_token": (None, False),
    "add_prefix_space": (None, False),
    "split_special_tokens": (None, False),
    "clean_up_tokenization_spaces": (None, False),
    "errors": (None, "replace"),
}
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens", "extra_special_tokens")
# Named by InternVL's -hf tokenizers, also where no file has it: transformers then adds it on loading. Texts lack it.
OPTIONAL = ("<video>",)
ONE_CHECKPOINT = "copy all files from one checkpoint"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")  # of an added token; they decide where it is found
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


class Tokenizer:
    """Byte-level BPE with added tokens, from tokenizer.json or from Qwen2's vocab.json and merges.txt. Picklable.

    tokenizer.json describes all of it: normalisation, splitting, merges, added tokens. vocab.json and merges.txt are
    completed with what Qwen2 does (NFC and its split expression); their added tokens are those of tokenizer_config.json
    and added_tokens.json.

    Args:
        path: a checkpoint's directory.
    Attributes:
        added: the id of each added token's text.
        bos_id, eos_id: of the tokens that tokenizer_config.json or special_tokens_map.json names; None without a name.
        size: all ids are below it (InternVL3: 151,674).
    Raises:
        ValueError: a file is missing, damaged or contradicts another one, or asks for something else than byte-level
            BPE. The message names the file and the remedy.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        config_file = self.path / "tokenizer_config.json"
        config = read_json(config_file)
        described = _described_tokens(self.path, config)
        file, classes = self.path / "tokenizer.json", CLASSES
        if file.is_file():
            document = read_text(file)
        elif config_file.is_file():
            file, classes = self.path / "vocab.json", QWEN2
            document = json.dumps(_qwen2_document(self.path, described))
        else:
            raise ValueError(f"{config_file}: missing; vocab.json and merges.txt need it, {AGAIN}")
        check_settings(config, {"tokenizer_class": classes, **SETTINGS}, config_file, "Qwen2's")
        self._bpe = _parse(document, file)
        added = self._bpe.get_added_tokens_decoder()
        _check_described(described, added, file)
        # SmolLM2 has no token for 21 bytes, which only rare characters have; the library would leave these out.
        self._lacking = frozenset(pre_tokenizers.ByteLevel.alphabet()) - set(
            self._bpe.get_vocab(with_added_tokens=False)
        )
        self.size = self._bpe.get_vocab_size()
        self.added = {token.content: id for id, token in added.items()}
        self._text_of = {id: text for text, id in self.added.items()}
        named = self._named_tokens()
        self.bos_id, self.eos_id = named.get("bos_token"), named.get("eos_token")

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, without bos and eos.

        Raises ValueError: half a surrogate pair, which is no text, or a character that the vocabulary has no bytes for.
        """
        try:
            ids = self._bpe.encode(text, add_special_tokens=False).ids
        except TypeError:
            raise ValueError(f"{self.path}: cannot encode {text!r:.60}; it is not valid Unicode text") from None
        if self._lacking and (lost := self._lost(text)):
            raise ValueError(f"{self.path}: no tokens for the character {lost[0]!r}; leave it out of the text")
        return ids

    def _lost(self, text: str) -> list[str]:
        """Return the characters of a text that have a byte without a token."""
        symbols = self._bpe.pre_tokenizer.pre_tokenize_str
        return [c for c in dict.fromkeys(text) if any(self._lacking & set(piece) for piece, _ in symbols(c))]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; added tokens are as written, and bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: an id outside 0 … size - 1.
        """
        if outside := [id for id in ids if not 0 <= id < self.size]:
            raise ValueError(f"{self.path}: no token has id {outside[0]}, there are {self.size}")
        text = ""
        for are_added, group in groupby(map(int, ids), self._text_of.__contains__):
            run = list(group)
            text += "".join(self._text_of[id] for id in run) if are_added else self._bpe.decode(run)
        return text

    def _named_tokens(self) -> dict[str, int | None]:
        """Return the ids of bos_token and eos_token, as far as a file has these keys.

        Raises ValueError: the files differ, or they name as special a text that is no added token.
        """
        named: dict[str, int | None] = {}
        for file in (self.path / "tokenizer_config.json", self.path / "special_tokens_map.json"):
            for key, value in read_json(file).items():
                texts = _texts(value) if key in SPECIAL else []
                if unknown := [text for text in texts if text not in self.added and text not in OPTIONAL]:
                    raise ValueError(f"{file}: {key} {unknown[0]!r} is no added token; {ONE_CHECKPOINT}")
                if key in ("bos_token", "eos_token"):
                    id = self.added[texts[0]] if texts else None
                    if named.setdefault(key, id) != id:
                        raise ValueError(f"{file}: {key} {value!r} is not tokenizer_config.json's; {ONE_CHECKPOINT}")
        return named


def _texts(value: Any) -> list[str]:
    """Return the texts of one special token or of several, which are strings, or objects with "content"."""
    if isinstance(value, dict):
        value = value.get("content", list(value.values()))
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [] if value is None else [str(value)]


def _described_tokens(path: Path, config: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the added tokens of tokenizer_config.json and added_tokens.json by id, as far as these files exist.

    Each has "content", and those of tokenizer_config.json have flags too. Raises ValueError: the two files differ.
    """
    more = read_json(path / "added_tokens.json")
    file = path / "tokenizer_config.json"
    try:
        decoder = config.get("added_tokens_decoder") or {}
        tokens = {int(id): {"content": token["content"], **_flags(token)} for id, token in decoder.items()}
        file = path / "added_tokens.json"
        texts = {int(id): text for text, id in more.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: each added token must have an id and a text ({error!r}); {AGAIN}") from None
    for id, text in texts.items():
        if tokens.setdefault(id, {"content": text})["content"] != text:
            other = f"in tokenizer_config.json {tokens[id]['content']!r}"
            raise ValueError(f"{file}: token {id} is {text!r}, {other}; {ONE_CHECKPOINT}")
    return tokens


def _flags(token: dict[str, Any]) -> dict[str, bool]:
    """Return the flags of an added token, absent ones false."""
    return {flag: bool(token.get(flag, False)) for flag in FLAGS}


def _qwen2_document(path: Path, described: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return what tokenizer.json would say, from vocab.json and merges.txt of Qwen2 and its added tokens."""
    vocabulary = read_json(path / "vocab.json", MAX_BYTES)
    if not vocabulary:
        raise ValueError(f"{path / 'vocab.json'}: missing or empty; {AGAIN}")
    split = {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "special": True, **_flags({}), **described[id]} for id in sorted(described)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]},
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": list(merges(path / "merges.txt"))},
    }


def merges(file: Path) -> Iterator[list[str]]:
    """Yield the pairs of merges.txt in order; its first line may be a version."""
    for number, line in enumerate(read_text(file).split("\n")):
        text = line.strip()
        if not text or (number == 0 and text.startswith("#version:")):
            continue
        pair = text.split(" ")
        if len(pair) != 2:
            raise ValueError(f"{file}: line {number + 1} must be two tokens with a space between; {AGAIN}")
        yield pair


def _parse(document: str, file: Path) -> tokenizers.Tokenizer:
    """Build the library's tokenizer from a tokenizer.json.

    Raises ValueError: the document is damaged, or is not of byte-level BPE that always gives the same ids.
    """
    try:
        bpe = tokenizers.Tokenizer.from_str(document)
    except Exception as error:  # the library raises no narrower class
        raise ValueError(f"{file}: not a tokenizer ({error}); {AGAIN}") from None
    vocabulary = bpe.get_vocab(with_added_tokens=True)
    if set(vocabulary.values()) != set(range(len(vocabulary))):
        raise ValueError(f"{file}: the ids of {len(vocabulary)} tokens are not 0 to {len(vocabulary) - 1}; {AGAIN}")
    bpe.no_truncation()
    bpe.no_padding()
    for token in json.loads(document).get("added_tokens", []):
        if vocabulary.get(token["content"]) != token["id"]:  # the library numbers them anew without an error
            raise ValueError(f"{file}: token {token['content']!r} cannot have id {token['id']}; {AGAIN}")
    _check_byte_level(bpe, file)
    return bpe


def _check_byte_level(bpe: tokenizers.Tokenizer, file: Path) -> None:
    """Raise ValueError for anything else than byte-level BPE, and for BPE that draws random numbers."""
    model, pre_tokenizer = bpe.model, bpe.pre_tokenizer
    pieces = pre_tokenizer.pre_tokenize_str("é a") if pre_tokenizer else []
    if not isinstance(model, models.BPE) or not isinstance(bpe.decoder, decoders.ByteLevel):
        problem = f"is {type(model).__name__} with the decoder {type(bpe.decoder).__name__}, not byte-level BPE"
    elif (symbols := "".join(symbol for symbol, _ in pieces)) != "Ã©Ġa":
        problem = f"has a pre_tokenizer that makes {symbols!r} of 'é a', not its bytes 'Ã©Ġa'"
    elif model.dropout:
        problem = f"has dropout {model.dropout}, so that ids would be random"
    else:
        return
    raise ValueError(f"{file}: {problem}; use the tokenizer's files of a Qwen2 checkpoint as they are published")


def _check_described(described: dict[int, dict[str, Any]], added: dict[int, tokenizers.AddedToken], file: Path) -> None:
    """Raise ValueError if tokenizer_config.json or added_tokens.json describes a token otherwise than `file`."""
    for id, token in described.items():
        if any(getattr(added.get(id), key, None) != value for key, value in token.items()):
            others = f"tokenizer_config.json or added_tokens.json says {token}"
            raise ValueError(f"{file}: token {id} is {added.get(id)!r}, {others}; {ONE_CHECKPOINT}")
