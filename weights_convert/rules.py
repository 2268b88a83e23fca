"""Conversion rules between fvjax names and the keys of an original checkpoint.

One table of rules serves both directions. The model determines which fvjax names exist; the first rule whose regex
matches a name gives the original's key or keys, and a transform with an inverse changes the layout. All keys and shapes
that a checkpoint must have are therefore known before a byte is read, and a missing, unexpected or misshapen one is an
error.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fvjax import trees


class Transform(NamedTuple):
    """A change of layout of one array and its inverse; both may return views."""

    to_fvjax: Callable[[np.ndarray], np.ndarray]
    to_original: Callable[[np.ndarray], np.ndarray]


class Part(NamedTuple):
    """The transform of an fvjax array that is only part of an original tensor; see :func:`join`."""

    to_fvjax: Callable[[np.ndarray], np.ndarray]  # the whole tensor -> the part
    to_original: Callable[[np.ndarray], np.ndarray]  # the part -> the whole tensor, zero elsewhere


KEEP = Transform(lambda x: x, lambda x: x)
LINEAR = Transform(lambda x: x.T, lambda x: x.T)  # [out, in] <-> [in, out]
CONV = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO


REMEDY = "check that config.json belongs to these weights, and that all files are of one checkpoint"
WRAPPERS = ("module.", "_orig_mod.")  # before all keys of a network that DistributedDataParallel or torch.compile holds


class Rule(NamedTuple):
    """Which key of the original the matching fvjax names have, and how the layout changes."""

    name: str  # regex that matches the whole fvjax name
    # The original's key: {0} is the regex's first group with . for /, {layer} the index in a stack. Several keys are
    # tensors of equal shape, joined along their first axis in this order (q, k and v of one fused matrix).
    key: str | tuple[str, ...]
    transform: Transform | Part = KEEP


class Source(NamedTuple):
    """Where one fvjax array is stored in a checkpoint."""

    keys: tuple[str, ...]  # `pieces` per layer if stacked, layer by layer; else `pieces` in all
    stacked: bool
    transform: Transform | Part
    shape: tuple[int, ...]  # of each key, in the checkpoint's layout
    pieces: int = 1  # number of tensors that are joined along their first axis before the transform

    @property
    def layers(self) -> list[tuple[str, ...]]:
        """The keys of each layer (of the whole array if it is not stacked)."""
        return [self.keys[i : i + self.pieces] for i in range(0, len(self.keys), self.pieces)]


def join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Join one tensor from its parts, each zero where the others are not. Bitwise, so that a -0.0 stays one."""
    if len(parts) == 1:
        return parts[0]
    bits = [np.ascontiguousarray(part).view(f"u{part.dtype.itemsize}") for part in parts]
    return functools.reduce(np.bitwise_or, bits).view(parts[0].dtype)


def split(tensor: np.ndarray, pieces: int) -> list[np.ndarray]:
    """Split a tensor into equal pieces along its first axis, which a single number does not have."""
    return [tensor] if pieces == 1 else np.array_split(tensor, pieces)


def plan(rules: Sequence[Rule], expected: Mapping[str, Any]) -> dict[str, Source]:
    """Apply the rules to every expected fvjax array (name -> anything with ``.shape``).

    Raises ValueError for a name that no rule matches.
    """
    sources: dict[str, Source] = {}
    for name, leaf in expected.items():
        rule = next((rule for rule in rules if re.fullmatch(rule.name, name)), None)
        if rule is None:
            raise ValueError(f"no conversion rule matches {name!r}")
        match = re.fullmatch(rule.name, name)
        groups = [group.replace("/", ".") for group in match.groups()]  # type: ignore[union-attr]
        patterns = (rule.key,) if isinstance(rule.key, str) else rule.key
        stacked = "{layer}" in patterns[0]
        count, shape = (leaf.shape[0], leaf.shape[1:]) if stacked else (1, leaf.shape)
        pieces = split(rule.transform.to_original(np.broadcast_to(np.int8(0), shape)), len(patterns))
        keys = tuple(pattern.format(*groups, layer=i) for i in range(count) for pattern in patterns)
        sources[name] = Source(keys, stacked, rule.transform, pieces[0].shape, len(patterns))
    return sources


def check(
    sources: Mapping[str, Source], tensors: Mapping[str, Any], ignored: Sequence[str], location: str
) -> list[str]:
    """Compare a checkpoint's keys (key -> anything with ``.shape``) with the keys that the sources need.

    Returns the unneeded keys that one of the regexes in ``ignored`` matches.
    Raises ValueError naming missing, unexpected and misshapen keys.
    """
    expected = {key: np.broadcast_to(np.int8(0), s.shape) for s in sources.values() for key in s.keys}
    unneeded = [key for key in tensors if key not in expected and any(re.fullmatch(p, key) for p in ignored)]
    wrapper = next((each for each in WRAPPERS if tensors and all(key.startswith(each) for key in tensors)), "")
    remedy = (
        f"all keys begin with {wrapper!r}: save the state_dict of the model within that wrapper" if wrapper else REMEDY
    )
    trees.strict_diff(expected, {k: v for k, v in tensors.items() if k not in set(unneeded)}, location, remedy)
    return sorted(unneeded)
