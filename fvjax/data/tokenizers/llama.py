"""The tokenizer of LLaMA and of what was trained from it, from a checkpoint's own files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from fvjax.data.tokenizers import internlm2
from fvjax.data.tokenizers.files import read_json

_BLANK = "▁"  # how SentencePiece writes a blank
SETTINGS: dict[str, tuple[Any, ...]] = {
    "tokenizer_class": ("LlamaTokenizer", "LlamaTokenizerFast"),
    "legacy": (None, True, False),
    "split_special_tokens": (None, False),
    "add_prefix_space": (None, True),
    "sp_model_kwargs": (None, {}),
}


class Tokenizer(internlm2.Tokenizer):
    """SentencePiece pieces and added tokens, with the ids of the slow LlamaTokenizer. Picklable.

    As InternLM2's, except that <unk>, <s> and </s> in a text are always those tokens. In legacy mode, which is what a
    tokenizer_config.json without "legacy" means, the text after an added token begins with a space, as the text's own
    beginning does. With "legacy": false it does not (as in transformers 4.31, in which Vicuna v1.5 was published).
    """

    models: ClassVar[str] = "LLaMA's"
    settings: ClassVar[dict[str, tuple[Any, ...]]] = SETTINGS
    source: ClassVar[str] = "LLaMA's has 499,723 bytes"

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        self._legacy = read_json(self.path / "tokenizer_config.json").get("legacy") is not False

    def _encode_stretch(self, text: str, is_first: bool) -> list[int]:
        """Return the ids of a stretch without added tokens; outside legacy mode only a text's beginning has a blank."""
        ids = self._pieces.EncodeAsIds(text)
        if self._legacy or is_first or not ids or text[0] in f" {_BLANK}":
            return ids
        first = self._pieces.IdToPiece(ids[0])
        if not first.startswith(_BLANK):
            return ids
        rest = first[len(_BLANK) :]
        return [self._pieces.PieceToId(rest), *ids[1:]] if rest else ids[1:]

    def _control_pieces(self) -> Iterator[tuple[str, int, Path]]:
        for id in (self._pieces.unk_id(), self.bos_id, self.eos_id):
            yield self._pieces.IdToPiece(id), id, self.path / "tokenizer.model"
