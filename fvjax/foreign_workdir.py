"""Work directories of `python -m fvjax.evaluate`: which model was evaluated there, and opening it again.

Their config.json says what the model is ("embedder", "hash", "channels", "pixels") and where: "kind" is "onnx",
"function" or "checkpoint", "path" that of the file or directory, "folder" the one in which a function's module was
found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvjax import foreign, plugins

LOCATION = ("kind", "path", "folder")  # where a model is, which may change


def read_config(workdir: Path) -> dict[str, Any]:
    """Read config.json of a directory; {} if there is none. Raises ValueError: it is no JSON object."""
    file = workdir / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} does not hold a JSON object")
    return config


def is_evaluated(path: Path) -> bool:
    """Whether a directory is a work directory of `python -m fvjax.evaluate`. ValueError: as :func:`read_config`."""
    return {"embedder", "hash"} <= read_config(path).keys()


def identity_of(workdir: Path) -> dict[str, Any]:
    """Return what config.json says about the model. Raises ValueError: an earlier version wrote it, without a place."""
    identity = read_config(workdir)
    needed = {"onnx": ("path", "channels", "pixels"), "function": ("folder",), "checkpoint": ("path",)}
    kind = identity.get("kind")
    if kind not in needed or not all(isinstance(identity.get(key), str) for key in (*needed[kind], "embedder", "hash")):
        raise ValueError(
            f"{workdir}/config.json does not say where its model is, so another version of fvjax wrote it; evaluate "
            f"the model again: python -m fvjax.evaluate … --workdir={workdir}"
        )
    return identity


def model_path(path: Path) -> Path:
    """Return the path of the model that was evaluated in a work directory; ``path`` itself if it is none of those."""
    return Path(identity_of(path).get("path", path)) if is_evaluated(path) else path


def reopen(workdir: Path, identity: Mapping[str, str]) -> foreign.ForeignModel:
    """Open the ONNX file or the function that was evaluated in a work directory.

    Raises ValueError: it is not there any more, or it has changed since.
    """
    if identity["kind"] == "onnx":
        file = Path(identity["path"])
        check_unchanged(workdir, identity, foreign.hash_of(file))
        return foreign.ForeignModel(*foreign.of_onnx(file, identity["channels"], identity["pixels"]))
    try:
        # Compared before the module itself is imported. Its package and what it imports are not part of the hash.
        check_unchanged(workdir, identity, plugins.source_hash(identity["embedder"]))
        return foreign.ForeignModel(*foreign.of_function(identity["embedder"]))
    except ValueError as error:
        raise ValueError(f"{error} (it was evaluated in the folder {identity['folder']})") from error


def check_unchanged(workdir: Path, identity: Mapping[str, str], digest: str) -> None:
    """Raise ValueError if a model has another hash now than when it was evaluated in ``workdir``."""
    if digest != identity["hash"]:
        raise ValueError(
            f"{identity.get('path', identity['embedder'])} is not what was evaluated in {workdir}: its hash is "
            f"{digest[:8]}, and was {identity['hash'][:8]}; evaluate it with another --workdir"
        )


def is_same(known: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether two identities are of one model, wherever it is."""
    return _without_location(known) == _without_location(identity)


def _without_location(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model is: files and directories are known by their contents, functions also by their name."""
    place = LOCATION if identity.get("kind") == "function" else (*LOCATION, "embedder")
    return {key: value for key, value in identity.items() if key not in place}
