"""The manifest of a store (manifest.json): reading it with every entry checked, and writing it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvjax.data import images
from fvjax.data.stores.features import Feature, check_names

FORMAT = 2
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Kind:
    """What distinguishes the manifests of one kind of store.

    Args:
        name: the kind in words, for errors.
        format: the manifest's entry "format".
        types: the type of each entry that the manifest must have.
    """

    name: str
    format: int | str
    types: Mapping[str, type]


_COMMON_TYPES = {"split": str, "shards": list, "index_hash": str, "data_hash": str}
FACES = Kind("face store", FORMAT, {**_COMMON_TYPES, "benchmarks": dict, "identities": list})
CONVERSATIONS = Kind("store of conversations", "conversations 1", {**_COMMON_TYPES, "counts": dict, "rejected": list})


def read_manifest(path: Path, kind: Kind = FACES) -> dict[str, Any]:
    """Read the manifest of the store ``path``.

    Raises:
        ValueError: no store there, one of another kind or format, or an entry that is missing or malformed.
    """
    file = path / "manifest.json"
    if not file.is_file():
        raise ValueError(f"{path}: no {kind.name} here (no manifest.json); python -m fvjax.data.prepare makes one")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error}); prepare the store again") from error
    written = manifest.get("format") if isinstance(manifest, dict) else manifest
    for other in (FACES, CONVERSATIONS):
        if other is not kind and written == other.format:
            raise ValueError(f"{path}: this is a {other.name}, expected a {kind.name}; choose another directory")
    if not isinstance(manifest, dict) or written != kind.format:
        shown = repr(written)[:100]
        raise ValueError(f"{file}: format {shown}, this version reads {kind.format}; prepare it again")
    if malformed := _malformed_keys(manifest, kind):
        raise ValueError(f"{file}: {malformed[0]!r} is missing or malformed; prepare the store again")
    return manifest


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write or replace the manifest of the store ``path`` in one step."""
    tmp = path / "manifest.json.tmp"
    tmp.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    tmp.replace(path / "manifest.json")


def layout_entries(image_size: tuple[int, int], features: dict[str, Feature]) -> dict[str, Any]:
    """Return the manifest's entries for the image size and the further features; none for what is usual."""
    entries: dict[str, Any] = {}
    if image_size != images.FACE_SIZE:
        entries["image_size"] = list(image_size)
    if features:
        entries["features"] = {name: features[name].to_json() for name in sorted(features)}
    return entries


def image_size(manifest: dict[str, Any]) -> tuple[int, int]:
    """Return (height, width) of the store's images."""
    height, width = manifest.get("image_size", images.FACE_SIZE)
    return height, width


def features(manifest: dict[str, Any]) -> dict[str, Feature]:
    """Return the further features of the store's records by name."""
    return {name: Feature.from_json(entry) for name, entry in manifest.get("features", {}).items()}


def is_image_size(size: Any) -> bool:
    """Tell whether ``size`` is a pair (height, width) that a store may have."""
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        return False
    return size[0] * size[1] <= images.MAX_PIXELS


def _malformed_keys(manifest: dict[str, Any], kind: Kind) -> list[str]:
    malformed = [key for key, type_ in kind.types.items() if not isinstance(manifest.get(key), type_)]
    if malformed:
        return malformed
    for key in _ENTRIES.keys() & kind.types.keys():
        malformed += [key for entry in _entries(manifest[key]) if not _ENTRIES[key](entry)]
    if not is_image_size(manifest.get("image_size", images.FACE_SIZE)):
        malformed.append("image_size")
    if not _are_features(manifest.get("features", {})):
        malformed.append("features")
    return malformed


def _are_features(entries: Any) -> bool:
    if not isinstance(entries, dict):
        return False
    try:
        check_names({name: Feature.from_json(entry) for name, entry in entries.items()})
    except ValueError:
        return False
    return True


def _is_shard(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
        return False
    minima = ("records", 0), ("bytes", 1)  # a shard may have lost all its records to rejections
    well_formed = all(isinstance(n := entry.get(key), int) and n >= least for key, least in minima)
    return well_formed and Path(entry["file"]).name == entry["file"]


_ENTRIES = {
    "shards": _is_shard,
    "benchmarks": lambda entry: isinstance(entry, dict) and isinstance(entry.get("hash"), str),
    "identities": lambda entry: isinstance(entry, str),
}


def _entries(part: Any) -> Iterable[Any]:
    return part.values() if isinstance(part, dict) else part
