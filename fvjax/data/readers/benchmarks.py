"""The benchmarks LFW and CFP to a store with pairs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from fvjax.data.alignment import aligner as alignment
from fvjax.data.progress import track
from fvjax.data.readers.benchmark_lists import NamedPair, read_cfp, read_lfw
from fvjax.data.readers.files import add_file, require_directory
from fvjax.data.stores import Pairs, Store, Writer


def lfw(
    src: Path, dst: Path, *, pairs: Path, policy: str, resize: bool, aligner: alignment.Aligner | None = None
) -> Store:
    """Convert DIR/NAME/NAME_0001.jpg and the official pairs.txt to a store with the benchmark "lfw"."""
    protocols = {"lfw": read_lfw(pairs)}
    return _convert(require_directory(src), dst, protocols, [str(src), str(pairs)], policy, resize, aligner)


def cfp(
    src: Path, dst: Path, *, protocol: Path, policy: str, resize: bool, aligner: alignment.Aligner | None = None
) -> Store:
    """Convert DIR/ID/{frontal,profile}/NN.jpg and CFP's Protocol folder to a store with benchmarks "ff" and "fp"."""
    protocols = {"ff": read_cfp(protocol, "FF"), "fp": read_cfp(protocol, "FP")}
    return _convert(require_directory(src), dst, protocols, [str(src), str(protocol)], policy, resize, aligner)


def _convert(
    src: Path,
    dst: Path,
    protocols: dict[str, list[NamedPair]],
    sources: list[str],
    policy: str,
    resize: bool,
    aligner: alignment.Aligner | None,
) -> Store:
    """Store every image that the protocols name, once, sorted by file name, and the pairs as record numbers."""
    identity = {}
    for pair in (pair for pairs in protocols.values() for pair in pairs):
        identity |= {pair.a: pair.identity_a, pair.b: pair.identity_b}
    missing = [file for file in identity if not (src / file).is_file()]
    if missing and policy != "drop":
        raise ValueError(
            f"{src / missing[0]}: missing, and {len(missing) - 1} more of the {len(identity)} images that the pairs "
            "name; supply them, or leave out their pairs with --policy=drop"
        )
    files = sorted(identity)
    drop = policy == "drop"
    with (
        Writer(dst, split="test", sources=sources) as writer,
        alignment.crops(aligner, src, files, writer.info) as crops,
    ):
        number: dict[str, int] = {}
        for file in track(files):
            i = add_file(writer, src, file, identity[file], resize=resize, drop=drop, crop=next(crops))
            if i is not None:
                number[file] = i
        no_face = aligner.no_face if aligner else ()
        for name, pairs in protocols.items():
            _add_pairs(writer, src, name, pairs, number, no_face, policy)
    return Store(dst, "test")


def _add_pairs(
    writer: Writer,
    src: Path,
    name: str,
    pairs: list[NamedPair],
    number: dict[str, int],
    no_face: Collection[str],
    policy: str,
) -> None:
    """Add a benchmark of the pairs whose images are stored.

    Args:
        number: the record number of each stored file.
        no_face: files in which no face was found, some of which may be stored nevertheless.
    """
    usable = [p for p in pairs if p.a in number and p.b in number]
    used = {file for p in pairs for file in (p.a, p.b)}
    sizes = np.bincount([p.fold for p in usable], minlength=pairs[-1].fold + 1)
    if not sizes.all():
        raise ValueError(f"{src}: no pair of fold {int(sizes.argmin()) + 1} of {name} is left; supply images")
    a = np.asarray([number[p.a] for p in usable], np.int64)
    b = np.asarray([number[p.b] for p in usable], np.int64)
    fold = np.asarray([p.fold for p in usable], np.int64)
    labels = np.asarray(writer.labels)
    writer.add_pairs(
        name,
        Pairs(a, b, labels[a] == labels[b], fold, labels[a], labels[b]),
        policy=policy,
        failure_to_acquire=len((used - number.keys()) | used.intersection(no_face)),
        pairs_dropped=len(pairs) - len(usable),
    )
