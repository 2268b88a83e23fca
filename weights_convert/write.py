"""Write checkpoint directories shard by shard: converted, or in the original's layout with or without changes."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from weights_convert import llava
from weights_convert.layouts import translate
from weights_convert.read import FORMAT, INDEX, Change, Checkpoint, open_checkpoint, originals

SHARD_BYTES = 2 << 30
SINGLE = "model.safetensors"
Read = Callable[[], np.ndarray]
Shards = dict[str, dict[str, Read]]  # file -> key -> function that reads the tensor
# Files that belong to a checkpoint besides its weights; code never does.
COMPANIONS = re.compile(
    r"(tokenizer.*|special_tokens_map|added_tokens|vocab|generation_config|(video_)?preprocessor_config|processor_config)"
    r"\.(json|model|txt)|merges\.txt|chat_template\.(json|jinja)"
)


@contextmanager
def new_directory(dst: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes ``dst`` if nothing fails. Raises ValueError if ``dst`` exists."""
    if dst.exists():
        raise ValueError(f"{dst} exists; choose a new directory")
    dst.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{dst.name}.", dir=dst.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(dst)
    except SafetensorError as error:  # safetensors raises it even for a full disk
        raise OSError(f"{dst}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Save a safetensors file that other users may read."""
    save_file(dict(tensors), path, {"format": "pt", **(metadata or {})})
    path.chmod(0o644)  # safetensors makes it readable by its owner only


def convert(
    src: str | Path, dst: str | Path, kind: str | None = None, origin: Mapping[str, str] | None = None
) -> Checkpoint:
    """Convert ``src`` to the new directory ``dst`` with fvjax names.

    ``dst`` gets (sharded) safetensors in the dtypes of ``src``, config.json with an entry "fvjax", and the tokenizer.
    It appears complete or not at all. ``kind``: see :func:`weights_convert.open_checkpoint`. ``origin``: where ``src``
    was downloaded from, for config.json. Raises ValueError if ``dst`` exists or ``src`` cannot be opened.
    """
    ckpt = open_checkpoint(src, kind, torch_files=True)
    entry: dict[str, Any] = {"format": FORMAT, "prefix": ckpt.prefix, "kind": ckpt.kind, **(origin or {})}
    if ckpt.towers:
        entry["towers"] = ckpt.towers
    sizes = {name: leaf.size * leaf.dtype.itemsize for name, leaf in ckpt.params.items()}
    tensors = {name: (lambda leaf=leaf: leaf[:]) for name, leaf in ckpt.params.items()}
    _write(Path(dst), by_size(tensors, sizes), ckpt, json.dumps({**ckpt.config, "fvjax": entry}, indent=1))
    return ckpt


def invert(src: str | Path, dst: str | Path, kind: str | None = None, layout: str | None = None) -> Checkpoint:
    """Convert ``src`` back to the original's layout, or to ``layout``, in the new directory ``dst``.

    ``layout``: see :func:`rewrite`; the whole model is opened for it. Errors as in :func:`convert` and `rewrite`.
    """
    ckpt = open_checkpoint(src, kind if layout is None else "vlm")
    rewrite(ckpt, dst, {}, layout)
    return ckpt


def rewrite(ckpt: Checkpoint, dst: str | Path, changes: Mapping[str, Change], layout: str | None = None) -> None:
    """Write the new directory ``dst`` in the original's layout, keys and dtypes, with some arrays changed (by name).

    Everything else of an original is copied: its shards, keys that the model does not need, config.json byte by byte.
    From a converted directory, keys that the conversion ignored are missing and torch's batch counters are 0.
    ``layout``: "remote" or "hf", for an InternVL model; see :mod:`weights_convert.layouts`. If it is not the original's
    own, the keys, config.json and the files beside it are that layout's.
    Raises ValueError if ``dst`` exists, a name is unknown or the model does not have the layout.
    """
    if unknown := sorted(set(changes) - set(ckpt.sources)):
        raise ValueError(f"{ckpt.path} has no {unknown[0]}")
    original, files = ckpt, {}
    if layout is not None:
        ckpt, files = translate(ckpt, layout)
    readers = originals(ckpt, changes)
    if not ckpt.converted and ckpt is original:
        shards: Shards = {}
        for key, tensor in ckpt.tensors.items():
            shards.setdefault(tensor.path.name, {})[key] = readers.get(key, lambda tensor=tensor: tensor[:])
        return _write(Path(dst), shards, ckpt, (ckpt.path / "config.json").read_text())
    sizes = {
        key: math.prod(source.shape) * ckpt.params[name].dtype.itemsize
        for name, source in ckpt.sources.items()
        for key in source.keys
    }
    for key in [key for key in readers if key.endswith(".running_var")]:
        counter = key.replace("running_var", "num_batches_tracked")
        readers[counter] = lambda: np.zeros((), np.int64)
        sizes[counter] = 8
    config = {key: value for key, value in ckpt.config.items() if key != "fvjax"}
    if ckpt.towers:
        files = {**files, **llava.tower_descriptions(config, ckpt.towers)}
    return _write(Path(dst), by_size(readers, sizes), ckpt, json.dumps(config, indent=1), files)


def write_original(
    dst: str | Path, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any], kind: str | None = None
) -> None:
    """Write the new directory ``dst`` in the original's layout from arrays in memory, by fvjax name ("params/…").

    ``config``: config.json with the original's keys. ``kind``: see :func:`weights_convert.open_checkpoint`.
    """
    with tempfile.TemporaryDirectory() as converted:  # write a converted directory, then invert the conversion
        marked = {**config, "fvjax": {"format": FORMAT, "prefix": ""} | ({"kind": kind} if kind else {})}
        (Path(converted) / "config.json").write_text(json.dumps(marked))
        save(Path(converted) / SINGLE, {name: np.ascontiguousarray(value) for name, value in arrays.items()})
        invert(converted, dst)


def by_size(tensors: Mapping[str, Read], sizes: Mapping[str, int]) -> Shards:
    """Split tensors into files of at most SHARD_BYTES, or of a single larger tensor."""
    shards: list[dict[str, Read]] = [{}]
    filled = 0
    for key, read in tensors.items():
        if shards[-1] and filled + sizes[key] > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][key] = read
        filled += sizes[key]
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, start=1)}


def _write(
    dst: Path, shards: Shards, ckpt: Checkpoint, config: str, files: Mapping[str, str | None] | None = None
) -> None:
    """Write shards, their index, config.json and the companion files.

    ``files``: name -> text of companions that differ from the checkpoint's, or None for those that are left out.
    """
    files = files or {}
    with new_directory(dst) as temporary:
        write_shards(temporary, shards)
        (temporary / "config.json").write_text(config)
        for file in sorted(ckpt.path.iterdir()):
            if COMPANIONS.fullmatch(file.name) and file.name not in files:
                shutil.copyfile(file, temporary / file.name)
        for name, text in files.items():
            if text is not None:
                (temporary / name).parent.mkdir(exist_ok=True)
                (temporary / name).write_text(text)


def write_shards(directory: Path, shards: Shards) -> None:
    """Write shards and, if there are several, their index; one shard is in memory at a time."""
    total = sum(_write_shard(directory / file, shard) for file, shard in shards.items())
    if list(shards) != [SINGLE]:
        weight_map = {key: file for file, shard in shards.items() for key in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=1))


def _write_shard(path: Path, shard: Mapping[str, Read]) -> int:
    """Write one shard and return its bytes. A function of its own, so that a shard is freed before the next is read."""
    # safetensors ignores the strides of transposed views: make them contiguous (ascontiguousarray changes 0-d arrays).
    tensors = {key: np.asarray(read(), order="C") for key, read in shard.items()}
    save(path, tensors)
    return sum(tensor.nbytes for tensor in tensors.values())
