"""Rule tables between fvjax names and a checkpoint's keys.

One table serves both directions: the model says which fvjax names exist, the first rule that matches a name gives the
checkpoint's key(s), and a transform with its inverse changes the layout. So every expected key and shape of a
checkpoint is known before a byte is read, and anything missing, left over or misshapen is an error.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fvjax import trees


class Transform(NamedTuple):
    """Layout change of one array and its inverse; both may return views."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


class Part(NamedTuple):
    """One array of ours that is only part of a tensor of theirs; see :func:`join`."""

    to_ours: Callable[[np.ndarray], np.ndarray]  # the whole tensor -> the part
    to_theirs: Callable[[np.ndarray], np.ndarray]  # the part -> the whole tensor, zero elsewhere


KEEP = Transform(lambda x: x, lambda x: x)
LINEAR = Transform(lambda x: x.T, lambda x: x.T)  # [out, in] <-> [in, out]
CONV = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO


REMEDY = "config.json must be of these weights, and all files of one checkpoint"


class Rule(NamedTuple):
    ours: str  # regex that matches all of an fvjax name
    theirs: str  # their key: {0} is the regex's first group with . for /, {layer} the index in a stack
    transform: Transform | Part = KEEP


class Source(NamedTuple):
    """Where one fvjax array is found in a checkpoint."""

    keys: tuple[str, ...]  # one per layer if stacked, else one
    stacked: bool
    transform: Transform | Part
    shape: tuple[int, ...]  # of each key, in the checkpoint's layout


def join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One tensor from its parts, each zero where the others are not. By bits, so that a -0.0 stays one."""
    if len(parts) == 1:
        return parts[0]
    bits = [np.ascontiguousarray(part).view(f"u{part.dtype.itemsize}") for part in parts]
    return functools.reduce(np.bitwise_or, bits).view(parts[0].dtype)


def plan(rules: Sequence[Rule], expected: Mapping[str, Any]) -> dict[str, Source]:
    """Find each expected fvjax array (name -> anything with ``.shape``) in the checkpoint. ValueError: no rule."""
    table = [(rule.ours, rule) for rule in rules]
    sources: dict[str, Source] = {}
    for name, leaf in expected.items():
        rule = next((rule for pattern, rule in table if re.fullmatch(pattern, name)), None)
        if rule is None:
            raise ValueError(f"no conversion rule matches {name!r}")
        match = re.fullmatch(rule.ours, name)
        groups = [group.replace("/", ".") for group in match.groups()]  # type: ignore[union-attr]
        stacked = "{layer}" in rule.theirs
        count, shape = (leaf.shape[0], leaf.shape[1:]) if stacked else (1, leaf.shape)
        theirs = rule.transform.to_theirs(np.broadcast_to(np.int8(0), shape)).shape
        keys = tuple(rule.theirs.format(*groups, layer=i) for i in range(count))
        sources[name] = Source(keys, stacked, rule.transform, theirs)
    return sources


def check(sources: Mapping[str, Source], given: Mapping[str, Any], ignored: Sequence[str], where: str) -> list[str]:
    """Compare a checkpoint's keys (key -> anything with ``.shape``) with what the sources need, both ways.

    Returns the ignored keys: those nothing needs and one of the regexes in ``ignored`` matches.
    Raises ValueError naming missing, unexpected and misshapen keys.
    """
    expected = {key: np.broadcast_to(np.int8(0), s.shape) for s in sources.values() for key in s.keys}
    unneeded = [key for key in given if key not in expected and any(re.fullmatch(p, key) for p in ignored)]
    trees.strict_diff(expected, {k: v for k, v in given.items() if k not in set(unneeded)}, where, REMEDY)
    return sorted(unneeded)
