"""What every tokenizer offers, whatever its files are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Tokenizer(Protocol):
    """Turns a text into token ids and back. Picklable, so that data workers can have it."""

    @property
    def path(self) -> Path:
        """The checkpoint's directory."""
        ...

    @property
    def size(self) -> int:
        """All ids are below it."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text; None if the model has none (Qwen2)."""
        ...

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text; None if no file names one."""
        ...

    @property
    def added(self) -> dict[str, int]:
        """The id of each added token's text, such as "<|im_end|>": wherever it stands in a text, it is one token."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, without bos and eos."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids. Raises ValueError: an id outside 0 … size - 1."""
        ...
