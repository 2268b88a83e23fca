"""Reading a tokenizer's files, which may be damaged or not what their names say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Parsing takes many times a file's size, so that nothing larger than published files is read.
MAX_BYTES = 32 << 20  # of a vocabulary; Qwen2's tokenizer.json has 7 to 11 MB
MAX_CONFIG_BYTES = 4 << 20  # of settings and added tokens
AGAIN = "copy it from the checkpoint again"


def read_bytes(file: Path, remedy: str = AGAIN, limit: int = MAX_BYTES) -> bytes:
    """Read a whole file. Raises ValueError: it is missing, or has more than ``limit`` bytes."""
    if not file.is_file():
        raise ValueError(f"{file}: missing; {remedy}")
    with file.open("rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{file}: larger than {limit >> 20} MB, which no tokenizer's file of this name is; {remedy}")
    return data


def read_text(file: Path, limit: int = MAX_BYTES) -> str:
    """Read a UTF-8 file. Raises ValueError as :func:`read_bytes` does, and if it is not UTF-8."""
    try:
        return read_bytes(file, limit=limit).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error}); {AGAIN}") from None


def read_json(file: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON object, or {} if there is no such file. Raises ValueError if it is anything else, or too large."""
    if not file.is_file():
        return {}
    text = read_text(file, limit)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error}); {AGAIN}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file}: not a JSON object; {AGAIN}")
    return value


def check_settings(config: dict[str, Any], known: dict[str, tuple[Any, ...]], file: Path, models: str) -> None:
    """Raise ValueError for a setting that changes ids or texts in a way that a tokenizer does not follow.

    Args:
        config: the contents of tokenizer_config.json.
        known: such settings, each with the values that the tokenizer follows; None stands for an absent setting.
        file: the name for errors.
        models: whose tokenizers these values belong to, for errors.
    """
    for key, values in known.items():
        if (value := config.get(key)) not in values:
            setting = f"{key}={value!r} changes the ids, which this tokenizer cannot do"
            raise ValueError(f"{file}: {setting}; it is for {models} checkpoints as they are published")
