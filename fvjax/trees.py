"""Trees by name: every parameter has one path name such as ``blocks/mlp/fc1/kernel``.

A *flat tree* is a plain dict from path name to leaf, sorted by name. Optimizer state, checkpoints, sharding rules,
LoRA targets and weight conversion all use these names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to {"a/b/c": leaf}, sorted by name. Empty dicts are dropped."""
    flat: dict[str, Any] = {}
    for key in sorted(tree):
        value, name = tree[key], f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}/"))
        else:
            flat[name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Invert :func:`flatten`. Raises ValueError if a name is both a leaf and a branch."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        node = tree
        *parents, last = name.split("/")
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ValueError(f"{name}: one of its parents is itself a leaf")
        if last in node:
            raise ValueError(f"{name} appears twice")
        node[last] = leaf
    return tree


def first_match(rules: Sequence[tuple[str, Any]], names: Iterable[str], what: str) -> dict[str, Any]:
    """Give every name the value of the first rule whose regex matches all of it.

    Args:
        rules: ordered (regex, value) pairs; the regex must match the whole name.
        names: path names.
        what: description of the rules for errors ("sharding rule").
    Raises:
        ValueError: a name that no rule matches, or a rule that decides no name. Both are usually typing errors.
    """
    used: set[int] = set()
    values: dict[str, Any] = {}
    for name in names:
        for i, (pattern, value) in enumerate(rules):
            if re.fullmatch(pattern, name):
                used.add(i)
                values[name] = value
                break
        else:
            raise ValueError(f"{what}: nothing matches {name!r}; add a ('.*', …) rule if a default is meant")
    unused = [rules[i][0] for i in range(len(rules)) if i not in used and rules[i][0] != ".*"]
    if unused:
        raise ValueError(f"{what}: {unused[0]!r} decides nothing; names look like {sorted(values)[:3]}")
    return values


def strict_diff(expected: Mapping[str, Any], actual: Mapping[str, Any], location: str, remedy: str = "") -> None:
    """Raise ValueError unless both flat trees have the same names and shapes; it names the first few differences.

    Leaves need ``.shape``. ``location`` is the file or checkpoint that ``actual`` comes from, ``remedy`` tells what to
    do about a difference.
    """
    missing = sorted(set(expected) - set(actual))
    extra = sorted(set(actual) - set(expected))
    misshapen = [
        f"{n} is {tuple(actual[n].shape)}, expected {tuple(expected[n].shape)}"
        for n in sorted(set(expected) & set(actual))
        if tuple(actual[n].shape) != tuple(expected[n].shape)
    ]
    if not (missing or extra or misshapen):
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({', '.join(missing[:3])}{' …' if len(missing) > 3 else ''})")
    if extra:
        near = get_close_matches(extra[0], missing, 1)
        hint = f", did you mean {near[0]}?" if near else ""
        parts.append(f"{len(extra)} unexpected ({', '.join(extra[:3])}{' …' if len(extra) > 3 else ''}{hint})")
    if misshapen:
        parts.append(f"{len(misshapen)} of another shape ({'; '.join(misshapen[:3])})")
    if remedy:
        parts.append(remedy)
    raise ValueError(f"{location} does not fit the model: {'; '.join(parts)}")
