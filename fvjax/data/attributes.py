"""Attribute labels of a face store: a column per attribute with negative, unlabelled or positive for each picture.

Every record has the feature "attributes", int8 [K]: -1 negative, 0 unlabelled, 1 positive. The manifest's entry
"attributes" names the columns, and the groups of columns that are classes of one question (age, gender, race,
expression), of which a picture has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvjax.data.stores import Feature, Store

FEATURE = "attributes"
NEGATIVE, UNLABELLED, POSITIVE = -1, 0, 1
_ROWS = 4096  # read at a time


@dataclass(frozen=True)
class Attributes:
    """The attribute columns of a store.

    Args:
        names: of the columns, each another one.
        groups: by the question's name, the columns that are its classes.
        dataset: where the labels come from.
        has_identities: whether the store's identities are people; otherwise each picture has one of its own.
    Raises:
        ValueError: no name, a name twice, a group of fewer than two classes or with a class that is no column.
    """

    names: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dataset: str = ""
    has_identities: bool = False

    def __post_init__(self):
        if not self.names or len(set(self.names)) < len(self.names) or not all(self.names):
            raise ValueError(f"attributes {', '.join(self.names) or 'none'}: expected names, each another one")
        for group, classes in self.groups.items():
            if unknown := [name for name in classes if name not in self.names]:
                raise ValueError(f"group {group!r}: its class {unknown[0]!r} is no attribute")
            if len(set(classes)) < max(2, len(classes)):
                raise ValueError(f"group {group!r}: expected at least two classes, each another one")

    @property
    def feature(self) -> Feature:
        """The type of the feature in a record."""
        return Feature("int8", (len(self.names),))

    @property
    def group_columns(self) -> dict[str, tuple[int, ...]]:
        """The columns of each group's classes."""
        return {group: tuple(map(self.names.index, classes)) for group, classes in self.groups.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's entry."""
        return {
            "names": list(self.names),
            "groups": {group: list(classes) for group, classes in self.groups.items()},
            "dataset": self.dataset,
            "identities": self.has_identities,
        }

    def row(self, positive: Iterable[str]) -> NDArray[np.int8]:
        """Return the labels of a picture that has these attributes and no others, int8 [K]."""
        row = np.full(len(self.names), NEGATIVE, np.int8)
        row[[self.names.index(name) for name in positive]] = POSITIVE
        return row


def of(store: Store) -> Attributes:
    """Return the attribute columns of a store.

    Raises:
        ValueError: the store has no attribute labels, or its manifest describes them badly.
    """
    entry, feature = store.manifest.get(FEATURE), store.features.get(FEATURE)
    if entry is None or feature is None:
        remedy = "prepare one with python -m fvjax.data.prepare celeba, maad, fairface, utkface, expw or rafdb"
        raise ValueError(f"{store.path}: it has no attribute labels; {remedy}")
    try:
        groups = {group: tuple(classes) for group, classes in entry["groups"].items()}
        columns = Attributes(tuple(entry["names"]), groups, entry["dataset"], entry["identities"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{store.path}: 'attributes' in manifest.json is malformed ({error}); prepare it again"
        ) from error
    if columns.feature != feature:
        raise ValueError(f"{store.path}: {len(columns.names)} names for the feature {feature}; prepare the store again")
    return columns


def labels(store: Store, ids: Sequence[int] | NDArray | None = None) -> NDArray[np.int8]:
    """Return the labels of records, int8 [N, K]; of all records by default.

    Raises:
        ValueError: as :func:`of`, or a label other than -1, 0 and 1. The message names the store and the record.
    """
    columns = of(store)
    ids = np.arange(len(store)) if ids is None else np.asarray(ids)
    parts = [store.read(ids[i : i + _ROWS], [FEATURE])[FEATURE] for i in range(0, len(ids), _ROWS)]
    values = np.concatenate([np.empty((0, len(columns.names)), np.int8), *parts])
    if len(wrong := np.flatnonzero(np.abs(values.astype(np.int16)).max(1, initial=0) > 1)):
        raise ValueError(
            f"{store.path} record {ids[wrong[0]]}: a label other than -1, 0 and 1; prepare the store again"
        )
    return values


def union(sets: Iterable[Attributes]) -> tuple[str, ...]:
    """Return the names of several stores' columns, in order of first appearance; equal names are one attribute."""
    return tuple(dict.fromkeys(name for one in sets for name in one.names))


def spread(values: NDArray[np.int8], names: Sequence[str], all_names: Sequence[str]) -> NDArray[np.int8]:
    """Return labels [N, K] of the columns `names` as columns `all_names`, int8 [N, K_all]; others are unlabelled."""
    wide = np.zeros((len(values), len(all_names)), np.int8)
    columns = {name: i for i, name in enumerate(all_names)}
    wide[:, [columns[name] for name in names]] = values
    return wide


def describe(columns: Attributes, values: NDArray[np.int8]) -> list[str]:
    """Describe labels [N, K] in a few lines: how many are known, and what has no positive picture."""
    known, positive = (values != UNLABELLED), (values == POSITIVE)
    lines = [
        f"  {len(columns.names)} attributes of {columns.dataset or 'unknown origin'}: {known.mean():.1%} of the labels "
        f"known, {positive.sum() / max(known.sum(), 1):.1%} of these positive"
    ]
    for group, own in columns.group_columns.items():
        counts = ", ".join(f"{columns.names[i]} {positive[:, i].sum()}" for i in own)
        lines.append(f"  {group}: {counts}")
    if empty := [columns.names[i] for i in np.flatnonzero(~positive.any(0))]:
        lines.append(f"  without a single positive picture, so that nothing can be learned of: {', '.join(empty)}")
    return lines
