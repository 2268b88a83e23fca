"""The benchmarks LFW and CFP to a store with pairs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fvjax.data import images, names
from fvjax.data.alignment import aligner as alignment
from fvjax.data.progress import track
from fvjax.data.readers.benchmark_lists import NamedPair, read_cfp, read_lfw
from fvjax.data.readers.files import Copies, FileNames, require_directory
from fvjax.data.readers.odd_pairs import odd_pairs
from fvjax.data.stores import Pairs, Store, Writer, check_folds


def lfw(
    src: Path, dst: Path, *, pairs: Path, policy: str, resize: bool, aligner: alignment.Aligner | None = None
) -> Store:
    """Convert DIR/NAME/NAME_0001.jpg and the official pairs.txt to a store with the benchmark "lfw"."""
    protocols = {"lfw": read_lfw(pairs)}
    return convert(require_directory(src), dst, protocols, [str(src), str(pairs)], policy, resize, aligner)


def cfp(
    src: Path, dst: Path, *, protocol: Path, policy: str, resize: bool, aligner: alignment.Aligner | None = None
) -> Store:
    """Convert DIR/ID/{frontal,profile}/NN.jpg and CFP's Protocol folder to a store with benchmarks "ff" and "fp"."""
    protocols = {"ff": read_cfp(protocol, "FF"), "fp": read_cfp(protocol, "FP")}
    return convert(require_directory(src), dst, protocols, [str(src), str(protocol)], policy, resize, aligner)


def convert(
    src: Path,
    dst: Path,
    protocols: dict[str, list[NamedPair]],
    sources: list[str],
    policy: str,
    resize: bool,
    aligner: alignment.Aligner | None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> Store:
    """Store every image that the protocols name, once, sorted by file name, and the pairs as record numbers.

    facts: by protocol, further entries for the manifest; its "contradictory_pairs" count as dropped.
    """
    protocols = _find_files(src, protocols, policy)
    identity = {}
    for pair in (pair for pairs in protocols.values() for pair in pairs):
        identity |= {pair.a: pair.identity_a, pair.b: pair.identity_b}
    files = sorted(identity)
    with (
        Writer(dst, split="test", sources=sources) as writer,
        alignment.crops(aligner, src, files, writer.info) as crops,
    ):
        number: dict[str, int] = {}
        copies, first_of = Copies(), {}
        for file in track(files):
            try:
                jpeg = alignment.face_jpeg(src, file, resize=resize, crop=next(crops))
            except images.WrongSize as error:  # the whole source is likely to have that size, so it is never dropped
                raise ValueError(f"{src}: {error}") from error
            except ValueError as error:
                if policy != "drop":
                    raise ValueError(f"{src}: {error}; supply it, or leave out its pairs with --policy=drop") from error
                writer.reject(file, str(error))
                continue
            number[file] = writer.add(jpeg, identity[file], names.plain(file))
            first_of[file] = copies.first(jpeg, file)
        no_face = aligner.no_face if aligner else ()
        for name, pairs in protocols.items():
            _add_pairs(writer, src, name, pairs, number, no_face, policy, first_of, (facts or {}).get(name, {}))
    return Store(dst, "test")


def _find_files(src: Path, protocols: Mapping[str, list[NamedPair]], policy: str) -> dict[str, list[NamedPair]]:
    """Return the protocols with the files that their names mean (:class:`FileNames`).

    Raises:
        ValueError: a file is missing and ``policy`` is not "drop", or several could be meant.
    """
    listed = dict.fromkeys(file for pairs in protocols.values() for pair in pairs for file in (pair.a, pair.b))
    file_names = FileNames(src)
    files = {}
    for name in listed:
        try:
            files[name] = file_names.find(name)
        except ValueError as error:
            raise ValueError(f"{src}: {error}") from error
    missing = [name for name, file in files.items() if file is None]
    if missing and policy != "drop":
        raise ValueError(
            f"{src / missing[0]}: missing, and {len(missing) - 1} more of the {len(listed)} images that the pairs "
            "name; supply them, or leave out their pairs with --policy=drop"
        )
    return {
        name: [pair._replace(a=files[pair.a] or pair.a, b=files[pair.b] or pair.b) for pair in pairs]
        for name, pairs in protocols.items()
    }


def _add_pairs(
    writer: Writer,
    src: Path,
    name: str,
    pairs: list[NamedPair],
    number: dict[str, int],
    no_face: Collection[str],
    policy: str,
    first_of: Mapping[str, str],
    facts: Mapping[str, Any],
) -> None:
    """Add a benchmark of the pairs whose images are stored.

    Args:
        number: the record number of each stored file.
        no_face: files in which no face was found, some of which may be stored nevertheless.
        first_of: see :func:`odd_pairs`. facts: see :func:`convert`.
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
    protocol = Pairs(a, b, labels[a] == labels[b], fold, labels[a], labels[b])
    check_folds(protocol, f"{src}: benchmark {name}")
    writer.add_pairs(
        name,
        protocol,
        policy=policy,
        failure_to_acquire=len((used - number.keys()) | used.intersection(no_face)),
        pairs_dropped=len(pairs) - len(usable) + len(facts.get("contradictory_pairs", ())),
        facts={**odd_pairs([(p.a, p.b) for p in usable], first_of), **facts},
    )
