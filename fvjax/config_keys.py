"""The keys of a config: as dotted names, whether there is one, and what to say if not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

NAMED_BY_THE_EXPERIMENT = ("eval.benchmarks", "optimizer.lr_scale", "rows", "init_parts", "plugin")
NEAREST = 3  # keys that an error suggests


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    out = {}
    for key, value in values.items():
        out |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def has(config: ConfigDict, key: str) -> bool:
    """Tell whether a config has a key, dotted; sections whose keys an experiment chooses have every key."""
    if key.startswith(tuple(f"{each}." for each in NAMED_BY_THE_EXPERIMENT)):
        return True
    node: Any = config
    for part in re.split(r"\.|\[", key.replace("]", "")):
        if isinstance(node, ConfigDict):
            if part not in node:
                return False
            node = node[part]
        elif not isinstance(node, tuple | list):
            return False  # a key below a value; what is below a tuple is ml_collections' to judge
    return True


def unknown_key(key: str, config: ConfigDict, known: Mapping[str, Any] | None = None) -> str:
    """Describe a key that no config has: `config.KEY: …`, the nearest keys, and those of its section.

    Args:
        key: dotted, without the leading "config.".
        known: other keys than those of `config`, to look for the nearest among.
    """
    names = list(flatten(known or config.to_dict()))
    last = key.rpartition(".")[2]
    by_last = {name.rpartition(".")[2]: name for name in names}
    near = difflib.get_close_matches(key, names, NEAREST, 0.75)
    near += [by_last[name] for name in difflib.get_close_matches(last, by_last, NEAREST, 0.6)]
    near = list(dict.fromkeys(near))[:NEAREST]
    section, path = _deepest(key, config)
    where = f"config.{path}" if path else "the config"
    return (
        f"config.{key}: there is no such key"
        + (f"; the nearest are {', '.join(near)}" if near else "")
        + f"; {where} has {', '.join(sorted(section.keys()))}"
    )


def _deepest(key: str, config: ConfigDict) -> tuple[ConfigDict, str]:
    """Return the deepest section on the way to a key, and its name."""
    node: Any = config
    path: list[str] = []
    for part in key.split("."):
        if part not in node or not isinstance(node[part], ConfigDict):
            break
        node, path = node[part], [*path, part]
    return node, ".".join(path)
