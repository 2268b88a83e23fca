"""The manifest of a store (manifest.json): reading it with every entry checked, and writing it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fvjax.data import images
from fvjax.data.stores.features import Feature, check_names

FORMAT = 2
SPLITS = ("train", "val", "test")


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of the store ``path``.

    Raises:
        ValueError: no store there, another format, or an entry that is missing or malformed.
    """
    file = path / "manifest.json"
    if not file.is_file():
        raise ValueError(f"{path}: no face store here (no manifest.json); python -m fvjax.data.prepare makes one")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error}); prepare the store again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        written = repr(manifest.get("format") if isinstance(manifest, dict) else manifest)[:100]
        raise ValueError(f"{file}: format {written}, this version reads {FORMAT}; prepare it again")
    if malformed := _malformed_keys(manifest):
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


def _malformed_keys(manifest: dict[str, Any]) -> list[str]:
    malformed = [key for key, kind in _TYPES.items() if not isinstance(manifest.get(key), kind)]
    if malformed:
        return malformed
    for key, is_well_formed in _ENTRIES.items():
        malformed += [key for entry in _entries(manifest[key]) if not is_well_formed(entry)]
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


_TYPES = {"split": str, "shards": list, "benchmarks": dict, "identities": list, "index_hash": str, "data_hash": str}
_ENTRIES = {
    "shards": _is_shard,
    "benchmarks": lambda entry: isinstance(entry, dict) and isinstance(entry.get("hash"), str),
    "identities": lambda entry: isinstance(entry, str),
}


def _entries(part: Any) -> Iterable[Any]:
    return part.values() if isinstance(part, dict) else part
