"""python -m weights_convert --src=HF_DIR_OR_REPO_ID --dst=DIR [--kind=KIND] [--inverse]"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from fvjax import errors
from weights_convert.read import FORMAT, INDEX, Checkpoint, Leaf, open_checkpoint
from weights_convert.rules import Source, join

SHARD_BYTES = 2 << 30
# files that belong to a checkpoint besides its weights; code never does
COMPANIONS = re.compile(
    r"(tokenizer.*|special_tokens_map|added_tokens|vocab|generation_config|preprocessor_config)\.(json|model|txt)|merges\.txt"
)


def convert(src: str | Path, dst: str | Path, kind: str | None = None) -> Checkpoint:
    """Write directory ``dst``: fvjax names in (sharded) safetensors, config.json plus {"fvjax": …}, the tokenizer.

    Dtypes are kept. ``kind``: see :func:`weights_convert.open_checkpoint`. ``dst`` appears complete or not at all.
    ValueError: ``dst`` exists, or ``src`` does not fit.
    """
    ckpt = open_checkpoint(src, kind)
    config = {**ckpt.config, "fvjax": {"format": FORMAT, "prefix": ckpt.prefix, "kind": ckpt.kind}}
    tensors = ((name, leaf.size * leaf.dtype.itemsize, lambda leaf=leaf: leaf[:]) for name, leaf in ckpt.params.items())
    _write(Path(dst), tensors, config, ckpt)
    return ckpt


def invert(src: str | Path, dst: str | Path, kind: str | None = None) -> Checkpoint:
    """Write directory ``dst`` in the original's layout and keys, from a converted (or original) directory.

    Keys that were ignored in conversion are not there; torch's batch counters are written as 0. Errors as convert.
    """
    ckpt = open_checkpoint(src, kind)
    config = {key: value for key, value in ckpt.config.items() if key != "fvjax"}

    pieces: dict[str, list[tuple[Leaf, Source, int]]] = {}  # several of ours may be parts of one of theirs
    for name, source in ckpt.sources.items():
        for i, key in enumerate(source.keys):
            pieces.setdefault(key, []).append((ckpt.params[name], source, i))

    def load(parts):
        return join([s.transform.to_theirs(leaf[i] if s.stacked else leaf[:]) for leaf, s, i in parts])

    def tensors():
        for key, parts in pieces.items():
            leaf, source, _ = parts[0]
            yield key, math.prod(source.shape) * leaf.dtype.itemsize, lambda parts=parts: load(parts)
            if key.endswith(".running_var"):
                yield key.replace("running_var", "num_batches_tracked"), 8, lambda: np.zeros((), np.int64)

    _write(Path(dst), tensors(), config, ckpt)
    return ckpt


def _write(dst: Path, tensors: Iterable[tuple[str, int, Callable[[], np.ndarray]]], config: dict, ckpt: Checkpoint):
    """Tensors are (key, bytes, function that reads it): one shard is in memory at a time."""
    if dst.exists():
        raise ValueError(f"{dst} exists; choose a new directory")
    dst.parent.mkdir(parents=True, exist_ok=True)
    shards: list[list[tuple[str, Callable[[], np.ndarray]]]] = [[]]
    filled = total = 0
    for key, nbytes, load in tensors:
        if shards[-1] and filled + nbytes > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append((key, load))
        filled, total = filled + nbytes, total + nbytes
    temporary = Path(tempfile.mkdtemp(prefix=f".{dst.name}.", dir=dst.parent))
    try:
        where = {}
        for i, shard in enumerate(shards, start=1):
            file = "model.safetensors"
            if len(shards) > 1:
                file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
            # safetensors writes a transposed view's memory as it lies: make it contiguous
            tensors_here = {key: np.ascontiguousarray(load()) for key, load in shard}
            try:
                save_file(tensors_here, temporary / file, {"format": "pt"})
            except SafetensorError as error:  # its own type even for a full disk
                raise OSError(f"{dst}: {error}") from error
            (temporary / file).chmod(0o644)  # safetensors keeps others from reading it
            where |= {key: file for key, _ in shard}
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (temporary / INDEX).write_text(json.dumps(index, indent=1))
        (temporary / "config.json").write_text(json.dumps(config, indent=1))
        for file in sorted(ckpt.path.iterdir()):
            if COMPANIONS.fullmatch(file.name):
                shutil.copyfile(file, temporary / file.name)
        temporary.chmod(0o755)
        temporary.rename(dst)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def source_directory(src: str) -> Path:
    """A directory as it is; a repository id ("OpenGVLab/InternVL2-2B") is downloaded, safetensors and JSON only."""
    path = Path(src)
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", src):
        raise ValueError(f"{src} is neither a directory nor a repository id such as OpenGVLab/InternVL2-2B")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(src, allow_patterns=["*.safetensors", "*.json", "*.model", "*.txt"]))
    except Exception as error:  # offline, gated, no such repository: the library has many types for it
        raise ValueError(f"{src} is not a directory, and downloading it failed: {error}") from error


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m weights_convert", description=__doc__)
    parser.add_argument("--src", required=True, help="checkpoint directory, or a Hugging Face repository id")
    parser.add_argument("--dst", required=True, help="directory to write; must not exist")
    parser.add_argument("--kind", help='what to open an InternVL model as: its vision tower (if not given), or "vlm"')
    parser.add_argument("--inverse", action="store_true", help="from fvjax names back to the original's keys")
    flags = parser.parse_args()
    try:
        with errors.naming(flags.dst):
            ckpt = (invert if flags.inverse else convert)(source_directory(flags.src), flags.dst, flags.kind)
    except (ValueError, OSError) as error:
        print(f"weights_convert: {' '.join(errors.line(error).split())}", file=sys.stderr)
        return 2
    elements = sum(leaf.size for name, leaf in ckpt.params.items() if name.startswith("params/"))
    print(f"{flags.dst}: {ckpt.kind}, {len(ckpt.params)} arrays, {elements:,} parameters")
    if ckpt.ignored:
        groups = sorted({key.split(".")[0] if "." in key else key for key in ckpt.ignored})
        print(f"left out {len(ckpt.ignored)} tensors this model does not use: {', '.join(groups)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
