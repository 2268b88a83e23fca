"""The tokenizer of InternVL2 with InternLM2, from a checkpoint's own files and without its code."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any, ClassVar

from sentencepiece import SentencePieceProcessor

from fvjax.data.tokenizers.files import check_settings, read_bytes, read_json

# Settings of tokenizer_config.json that change ids, each with the values that leave the ids unchanged.
SETTINGS: dict[str, tuple[Any, ...]] = {
    "tokenizer_class": (None, "InternLM2Tokenizer", "InternLM2TokenizerFast"),
    "split_special_tokens": (None, False),
    "do_lower_case": (None, False),
    "add_prefix_space": (None, False),
    "sp_model_kwargs": (None, {}),
}
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens")


class Tokenizer:
    """SentencePiece pieces (tokenizer.model) and added tokens, with the ids of the slow InternLM2Tokenizer. Picklable.

    Added tokens are those of added_tokens.json, of ``added_tokens_decoder`` in tokenizer_config.json and of
    special_tokens_map.json, as far as these exist. A text is first split at them, the longest where several fit; each
    stretch between them goes through SentencePiece by itself.

    Args:
        path: a checkpoint's directory.
    Attributes:
        added: the id of each added token's text.
        bos_id, eos_id: InternLM2 has 1 and 2.
        size: all ids are below it (InternVL2-2B: 92,553).
    Raises:
        ValueError: a file is missing, damaged or contradicts another one. The message names the file and the remedy.
    """

    models: ClassVar[str] = "InternLM2's"  # for errors
    settings: ClassVar[dict[str, tuple[Any, ...]]] = SETTINGS
    source: ClassVar[str] = "huggingface.co/OpenGVLab/InternVL2-2B has it, 1.5 MB"

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        file = self.path / "tokenizer.model"
        remedy = f"copy it from the checkpoint again ({self.source})"
        self._pieces = SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(read_bytes(file, remedy))
        except RuntimeError as error:
            raise ValueError(f"{file}: not a SentencePiece model; {remedy}") from error
        count = self._pieces.GetPieceSize()
        self.bos_id, self.eos_id = self._pieces.bos_id(), self._pieces.eos_id()
        if min(self.bos_id, self.eos_id) < 0:
            raise ValueError(f"{file}: has no begin- and end-of-text pieces; {remedy}")
        self.added = self._read_added()
        beyond = {id for id in self.added.values() if id >= count}
        if beyond != set(range(count, count + len(beyond))):  # the file of another model
            raise ValueError(f"{file}: has {count} pieces, the added tokens after them are {sorted(beyond)}; {remedy}")
        self.size = count + len(beyond)
        self._text_of = {id: text for text, id in self.added.items()}
        longest_first = sorted(self.added, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, without bos and eos."""
        ids = []
        for number, part in enumerate(self._split.split(text)):
            ids += [self.added[part]] if part in self.added else self._encode_stretch(part, number == 0)
        return ids

    def _encode_stretch(self, text: str, is_first: bool) -> list[int]:
        """Return the ids of a stretch without added tokens; is_first: no added token stands before it."""
        return self._pieces.EncodeAsIds(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids.

        Added tokens are as written, without the space that the slow tokenizer puts before them. Bytes that are not
        UTF-8 become U+FFFD.

        Raises:
            ValueError: an id outside 0 … size - 1.
        """
        if outside := [id for id in ids if not 0 <= id < self.size]:
            raise ValueError(f"{self.path}: no token has id {outside[0]}, there are {self.size}")
        text = ""
        for are_added, group in groupby(map(int, ids), self._text_of.__contains__):
            run = list(group)
            text += "".join(self._text_of[id] for id in run) if are_added else self._pieces.DecodeIds(run)
        return text

    def _read_added(self) -> dict[str, int]:
        """Return the id of each added token's text, from all files that have some."""
        added: dict[str, int] = {}
        files = self._added_tokens_json(), self._tokenizer_config(), self._special_tokens_map(added)
        entries = chain(self._control_pieces(), *files)
        for text, id, file in entries:
            if not text or added.setdefault(text, id) != id or list(added.values()).count(id) > 1:
                raise ValueError(
                    f"{file}: token {text!r} with id {id} contradicts {added}; copy all files from one checkpoint"
                )
        return added

    def _control_pieces(self) -> Iterator[tuple[str, int, Path]]:
        """Yield the pieces of tokenizer.model that are added tokens even if no other file says so: here none."""
        return iter(())

    def _added_tokens_json(self) -> Iterator[tuple[str, int, Path]]:
        file = self.path / "added_tokens.json"
        for text, id in read_json(file).items():
            yield text, id, file

    def _tokenizer_config(self) -> Iterator[tuple[str, int, Path]]:
        file = self.path / "tokenizer_config.json"
        config = read_json(file)
        check_settings(config, self.settings, file, self.models)
        for id, token in config.get("added_tokens_decoder", {}).items():
            yield _text(token, file), int(id), file
        for key in SPECIAL:
            for token in _as_list(config.get(key)):
                _text(token, file)

    def _special_tokens_map(self, added: dict[str, int]) -> Iterator[tuple[str, int, Path]]:
        """Yield its tokens; ``added`` has the ids that the other files give to tokens outside tokenizer.model."""
        file = self.path / "special_tokens_map.json"
        for value in read_json(file).values():
            for token in _as_list(value):
                text = _text(token, file)
                id = added.get(text, self._pieces.PieceToId(text))
                if id == self._pieces.unk_id() and text != self._pieces.IdToPiece(id):
                    raise ValueError(f"{file}: token {text!r} has no id; copy added_tokens.json from the checkpoint")
                yield text, id, file


def _as_list(value: Any) -> list[Any]:
    """Return one token or several, or none, as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _text(token: str | dict[str, Any], file: Path) -> str:
    """Return an added token's text. Raises ValueError if matching it depends on spaces or word borders around it."""
    if isinstance(token, str):
        return token
    if strips := [flag for flag in ("lstrip", "rstrip", "single_word") if token.get(flag)]:
        raise ValueError(f"{file}: token {token['content']!r} has {strips[0]}, which this tokenizer cannot do")
    return token["content"]
