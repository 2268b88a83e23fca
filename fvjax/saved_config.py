"""The config.json of a run as a config file: `--config=RUN/config.json` repeats the experiment as it was."""

from __future__ import annotations

import json
from pathlib import Path

from fvjax.config import EditableConfig, base, flatten

# Config keys, or how they begin, that decide what a trained model computes.
NEEDED = (
    "model",
    "task",
    "prompt",
    "chat",
    "init_from",
    "base_dtype",
    "lora",
    "trainable",
    "dtype",
    "eval.flip_sum",
    "epochs",
    "seed",
)
NAMED = ("eval.benchmarks.", "optimizer.lr_scale.", "init_parts.", "plugin.")  # an experiment chooses their keys


def get_config(file: str) -> EditableConfig:
    """Return the config of a run; `file` is its config.json. This is what ml_collections calls for `--config`."""
    return read(Path(file))


def read(file: Path) -> EditableConfig:
    """Read a run's config.json.

    Raises ValueError: it is not JSON, has keys unknown to this version, or lacks some that decide what a model does.
    """
    try:
        saved = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    config = base()
    theirs, ours = flatten(saved), flatten(config.to_dict())
    odd = [key for key in theirs if key not in ours and not key.startswith(NAMED)]
    odd += [key for key in ours if key not in theirs and key.startswith(NEEDED)]
    if odd:
        raise ValueError(f"{file} is of another version of fvjax (it differs in {', '.join(odd[:3])}); use that one")
    try:
        config.update(saved)  # makes tuples of lists where the default is a tuple
    except (TypeError, KeyError) as error:
        raise ValueError(f"{file}: {error}") from None
    return config
