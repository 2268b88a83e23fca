"""Segmentation maps of a face store: a class id for each pixel of each picture.

Every record has the feature "map", of the size of the picture. The manifest's entry "maps" names the classes in the
order of their ids, and the pairs of classes that a mirror exchanges, such as the right and the left eye.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvjax import face_classes
from fvjax.data.stores import Feature, Store
from fvjax.data.stores.features import MAP

FEATURE = "map"
BACKGROUND = 0
_ROWS = 1024  # read at a time


@dataclass(frozen=True)
class Maps:
    """The classes of a store's maps.

    Args:
        classes: names, in the order of their ids; the first is the background.
        swap: pairs of classes that a mirror exchanges.
    Raises:
        ValueError: no class, more than 256, a name twice, or a pair that is not of two classes.
    """

    classes: tuple[str, ...] = face_classes.CLASSES
    swap: tuple[tuple[str, str], ...] = face_classes.SWAP

    def __post_init__(self):
        if not 1 <= len(self.classes) <= 256 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"maps have {len(self.classes)} classes; expected 1 to 256 names, each another one")
        exchanged = [name for pair in self.swap for name in pair]
        if len(set(exchanged)) < len(exchanged) or not all(len(pair) == 2 for pair in self.swap):
            raise ValueError("a class is exchanged with two others, or with itself, by the maps' swap")
        if unknown := [name for name in exchanged if name not in self.classes]:
            raise ValueError(f"the maps' swap has {unknown[0]!r}, which is no class")

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's entry."""
        return {"classes": list(self.classes), "swap": [list(pair) for pair in self.swap]}

    @property
    def mirrored(self) -> NDArray[np.uint8]:
        """The class id that each id becomes in a mirror, uint8 [classes]."""
        return mirrored(self.classes, self.swap).astype(np.uint8)

    def feature(self, size: tuple[int, int]) -> Feature:
        """The type of the feature in a record with pictures of `size` (height, width)."""
        return Feature(MAP, size)


def mirrored(names: Sequence[str], swap: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """Return the place from which each name's value comes in a mirror; `swap`: pairs of names that are exchanged."""
    other = {a: b for pair in swap for a, b in (tuple(pair), tuple(pair)[::-1])}
    return np.array([list(names).index(other.get(name, name)) for name in names], np.int64)


def of(store: Store) -> Maps:
    """Return the classes of a store's maps.

    Raises:
        ValueError: the store has no maps, maps of another size than its pictures, or a malformed description.
    """
    entry, feature = store.manifest.get("maps"), store.features.get(FEATURE)
    if entry is None or feature is None:
        raise ValueError(f"{store.path}: it has no segmentation maps; config.attributes.maps=False trains without")
    if feature != Feature(MAP, store.image_size):
        (height, width), shape = store.image_size, " ".join(map(str, feature.shape))
        raise ValueError(f"{store.path}: maps of {shape} for pictures of {height} {width}; prepare the store again")
    try:
        return Maps(tuple(entry["classes"]), tuple((right, left) for right, left in entry["swap"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{store.path}: 'maps' in manifest.json is malformed ({error}); prepare it again") from error


def check(classes: NDArray[np.uint8], maps: Maps, location: str) -> None:
    """Raise ValueError if a map [..., h, w] has ids that are no class; `location` is the file or record."""
    highest, count = int(classes.max(initial=0)), len(maps.classes)
    if highest >= count:
        raise ValueError(f"{location}: class {highest} in a map of {count} classes (0 to {count - 1})")


def quality(store: Store) -> dict[str, Any]:
    """Count what a store's maps show: the pictures with each class, and the maps that are all background.

    Raises ValueError as :func:`of`, or for a map with a class that there is not. The message names the record.
    """
    maps = of(store)
    pictures, empty = np.zeros(len(maps.classes), np.int64), 0
    for start in range(0, len(store), _ROWS):
        ids = np.arange(start, min(start + _ROWS, len(store)))
        for number, one in zip(ids, store.read(ids, [FEATURE])[FEATURE]):
            check(one, maps, f"{store.path} record {number}")
            present = np.bincount(one.reshape(-1), minlength=len(maps.classes)) > 0
            pictures += present
            empty += not present[BACKGROUND + 1 :].any()
    return {"maps": len(store), "empty": empty, "pictures_with": dict(zip(maps.classes, pictures.tolist()))}
