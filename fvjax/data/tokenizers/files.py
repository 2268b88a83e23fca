"""Reading a tokenizer's files, which may be damaged or not what their names say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 32 << 20  # of one file; the largest published ones have 11 MB, and parsing takes several times their size
AGAIN = "copy it from the checkpoint again"


def read_bytes(file: Path, remedy: str = AGAIN) -> bytes:
    """Read a whole file. Raises ValueError if it is missing or larger than any tokenizer's file."""
    if not file.is_file():
        raise ValueError(f"{file}: missing; {remedy}")
    with file.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{file}: larger than {MAX_BYTES >> 20} MB, which no tokenizer's file is; {remedy}")
    return data


def read_text(file: Path) -> str:
    """Read a UTF-8 file. Raises ValueError if it is missing, too large or not UTF-8."""
    try:
        return read_bytes(file).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error}); {AGAIN}") from None


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object, or {} if there is no such file. Raises ValueError if it is anything else."""
    if not file.is_file():
        return {}
    text = read_text(file)
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
