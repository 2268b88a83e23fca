"""The tokenizer of LLaMA and of what was trained from it, from a checkpoint's own files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from fvjax.data.tokenizers import internlm2

SETTINGS: dict[str, tuple[Any, ...]] = {
    "tokenizer_class": ("LlamaTokenizer", "LlamaTokenizerFast"),
    "legacy": (None, True),
    "split_special_tokens": (None, False),
    "add_prefix_space": (None, True),
    "sp_model_kwargs": (None, {}),
}


class Tokenizer(internlm2.Tokenizer):
    """SentencePiece pieces and added tokens, with the ids of the slow LlamaTokenizer in its legacy mode. Picklable.

    As InternLM2's, except that <unk>, <s> and </s> in a text are always those tokens. Legacy: the text after an added
    token begins with a space, as the text's own beginning does.
    """

    models: ClassVar[str] = "LLaMA's"
    settings: ClassVar[dict[str, tuple[Any, ...]]] = SETTINGS
    source: ClassVar[str] = "LLaMA's has 499,723 bytes"

    def _control_pieces(self) -> Iterator[tuple[str, int, Path]]:
        for id in (self._pieces.unk_id(), self.bos_id, self.eos_id):
            yield self._pieces.IdToPiece(id), id, self.path / "tokenizer.model"
