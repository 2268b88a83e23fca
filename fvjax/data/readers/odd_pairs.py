"""Pairs of a benchmark that say nothing new: of one picture, or repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fvjax.data import names


def odd_pairs(pairs: Sequence[tuple[str, str]], first_of: Mapping[str, str]) -> dict[str, Any]:
    """Return the manifest's entries about pairs that say nothing new, each as [a, b].

    "self_pairs" are those of a picture with itself or a copy, "repeated_pairs" those of the same two pictures as an
    earlier one, whatever their order.

    Args:
        pairs: the two files of each pair.
        first_of: for each file the first one with the same picture.
    """
    entries: dict[str, list[list[str]]] = {"self_pairs": [], "repeated_pairs": []}
    earlier: set[frozenset[str]] = set()
    for a, b in pairs:
        pictures = frozenset((first_of[a], first_of[b]))
        if len(pictures) == 1:
            entries["self_pairs"].append([names.plain(a), names.plain(b)])
        if pictures in earlier:
            entries["repeated_pairs"].append([names.plain(a), names.plain(b)])
        earlier.add(pictures)
    return entries


def summary(benchmark: Mapping[str, Any]) -> list[str]:
    """Return lines for the user about a benchmark's entry of the manifest; none if its pairs are as they should be."""
    kinds = {"self_pairs": "of one picture with itself or a copy of it", "repeated_pairs": "a second time"}
    return [
        f"  {len(odd)} pairs {text}, kept and listed in manifest.json; the first: {', '.join(odd[0])}"
        for kind, text in kinds.items()
        if (odd := benchmark.get(kind))
    ]
