"""insightface's verification files (lfw.bin, cfp_fp.bin, …), converted to a store with one benchmark.

Such a file is a pickle of (images, same): 2 M encoded images, of which 2 i and 2 i + 1 are pair i, and M bools. Nothing
is unpickled (:mod:`fvjax.data.readers.plain_pickle`). Source of the format: insightface's
recognition/arcface_torch/eval/verification.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fvjax.data import images
from fvjax.data.readers.odd_pairs import odd_pairs
from fvjax.data.readers.plain_pickle import Array, Blob, load
from fvjax.data.stores import Pairs, Store, Writer, check_folds

PAIRS = {"lfw": 6000, "cfp_ff": 7000, "cfp_fp": 7000, "agedb_30": 6000, "calfw": 6000, "cplfw": 6000}
FOLDS = 10


class Contents(NamedTuple):
    images: list[Blob]  # 2 M encoded images
    same: np.ndarray  # bool [M]


def read(file: Path) -> Contents:
    """Read the images and labels of a .bin file.

    Raises:
        ValueError: not such a pickle, cut short, an instruction or a name that such files do not have, or contents
            other than (2 M encoded images, M bools). The message names the file and the byte.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    with open(file, "rb") as opened:
        try:
            return _contents(load(opened, file.stat().st_size))
        except ValueError as error:
            raise ValueError(f"{file}: {error}; expected a verification file such as insightface's lfw.bin") from error


def _contents(value: Any) -> Contents:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not isinstance(value[0], (list, tuple)):
        raise ValueError("does not hold (list of images, list of bools)")
    blobs = [_image(x, f"image {i}") for i, x in enumerate(value[0])]
    same = value[1]
    if isinstance(same, Array) and len(same.shape) == 1:
        same = same.numbers().tolist()
    if not isinstance(same, (list, tuple)) or not all(type(x) in (bool, int) and x in (0, 1) for x in same):
        raise ValueError("its second part is no list of bools")
    if not same or len(blobs) != 2 * len(same):
        raise ValueError(f"{len(blobs)} images for {len(same)} pairs, and each has two")
    return Contents(blobs, np.asarray(same, bool))


def _image(value: Any, location: str) -> Blob:
    is_vector = isinstance(value, Array) and sum(n != 1 for n in value.shape) == 1
    if is_vector and value.blob and value.dtype == np.uint8:
        return value.blob  # an encoded file as an array [n] or [n, 1], as in insightface's own files
    if isinstance(value, Blob):
        return value
    if isinstance(value, Array):
        array = f"a {value.dtype} array {list(value.shape)}"
        raise ValueError(f"{location} is {array} and no encoded file (JPEG, PNG); pixels may be RGB or BGR")
    raise ValueError(f"{location} is a {type(value).__name__.lower()} and no encoded file (JPEG, PNG)")


def protocol(file: Path, n_pairs: int, name: str | None, folds: int | None) -> tuple[str, np.ndarray]:
    """Return the benchmark's name, and int64 [n_pairs] the fold of each pair.

    Folds are consecutive and as equal as they can be, as insightface's KFold(n_splits=10, shuffle=False) makes them.
    The usual benchmarks are known by file name and number of pairs; any other needs both ``name`` and ``folds``.

    Raises:
        ValueError: the number of pairs is another one, or a flag is missing or invalid. The message names the flag.
    """
    benchmark = name or file.stem
    if benchmark in PAIRS:
        if n_pairs != PAIRS[benchmark]:
            mismatch = f"{file}: has {n_pairs} pairs, but {benchmark} has {PAIRS[benchmark]}"
            raise ValueError(f"{mismatch}; if it is another benchmark, give it another --name, and --folds")
        if folds not in (None, FOLDS):
            raise ValueError(f"--folds={folds}: {benchmark} is evaluated in {FOLDS} folds")
        folds = FOLDS
    elif name is None or folds is None:
        known = ", ".join(f"{known} ({n} pairs)" for known, n in PAIRS.items())
        raise ValueError(f"{file}: {n_pairs} pairs, none of {known}; describe it with --name and --folds")
    if not 1 <= folds <= n_pairs:
        raise ValueError(f"--folds={folds}: choose 1 … {n_pairs}, the number of pairs")
    return benchmark, np.repeat(np.arange(folds), [len(x) for x in np.array_split(np.arange(n_pairs), folds)])


def derive_identities(n_images: int, genuine: np.ndarray) -> np.ndarray:
    """Group images that genuine pairs [M, 2] connect, by union-find.

    This is all that a .bin tells about identities: two groups may be one person whom no genuine pair connects.

    Returns:
        int64 [n_images], the lowest image number of each image's group.
    """
    parent = list(range(n_images))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for a, b in genuine.tolist():
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return np.asarray([root(i) for i in range(n_images)], np.int64)


class _Images(NamedTuple):
    """The images of a .bin without repetitions, D in number."""

    blobs: list[Blob]  # [2 M], all of them
    index: np.ndarray  # int64 [2 M], which of the D images each is
    firsts: list[int]  # [D], the number in the file of each one's first occurrence

    @classmethod
    def of(cls, blobs: list[Blob]) -> _Images:
        numbers: dict[bytes, int] = {}
        firsts: list[int] = []
        for i, blob in enumerate(blobs):
            if numbers.setdefault(blob.data, len(firsts)) == len(firsts):
                firsts.append(i)
        return cls(blobs, np.asarray([numbers[blob.data] for blob in blobs], np.int64), firsts)


def convert(src: Path, dst: Path, *, name: str | None, folds: int | None, policy: str, resize: bool) -> Store:
    """Convert FILE.bin (insightface's pickled verification pairs) to a store with one benchmark.

    Images of equal bytes become one record. Identities are derived from genuine pairs (:func:`derive_identities`), and
    the manifest says so. An impostor pair of one derived identity contradicts the other pairs.

    Args:
        name, folds: see :func:`protocol`.
        policy: what to do about images that cannot be read, and about contradictions: "fail", or "drop" their pairs.
    Raises:
        ValueError: see :func:`read` and :func:`protocol`; with "fail" the first such image or pair; a size other than
            112x112 without ``resize``; a fold without pairs.
    """
    blobs, same = read(src)
    name, fold = protocol(src, len(same), name, folds)
    distinct = _Images.of(blobs)
    ends = distinct.index.reshape(-1, 2)
    identity = derive_identities(len(distinct.firsts), ends[same])
    contradictions = np.flatnonzero(~same & (identity[ends[:, 0]] == identity[ends[:, 1]]))
    if len(contradictions) and policy == "fail":
        first = f"pair {contradictions[0]} is labelled different, but is one person by the genuine pairs"
        remedy = f"and {len(contradictions) - 1} more; leave them out with --policy=drop"
        raise ValueError(f"{src}: {first} ({remedy})")
    with Writer(dst, split="test", sources=[str(src)]) as writer:
        record, reasons = _add_images(writer, src, distinct, identity, policy, resize)
        usable = np.all(record[ends] >= 0, axis=1)
        usable[contradictions] = False
        sizes = np.bincount(fold[usable], minlength=fold[-1] + 1)
        if not sizes.all():
            raise ValueError(f"{src}: no pair of fold {int(sizes.argmin()) + 1} is left")
        (a, b), labels = record[ends[usable]].T, np.asarray(writer.labels)
        facts = {
            "identities": "derived from genuine pairs",
            "images_read": len(blobs),
            "images_repeated": len(blobs) - len(distinct.firsts) - (len(writer.rejected) - len(reasons)),
            "contradictory_pairs": contradictions.tolist(),
            **_odd_pairs(src, ends[usable], distinct),
            "genuine_by_fold": np.bincount(fold[usable & same], minlength=len(sizes)).tolist(),
        }
        pairs = Pairs(a, b, same[usable], fold[usable], labels[a], labels[b])
        check_folds(pairs, f"{src}: --folds={fold[-1] + 1}: benchmark {name}")
        writer.add_pairs(
            name,
            pairs,
            policy=policy,
            failure_to_acquire=len(reasons),
            pairs_dropped=int((~usable).sum()),
            facts=facts,
        )
    return Store(dst, "test")


def _odd_pairs(src: Path, ends: np.ndarray, distinct: _Images) -> dict[str, Any]:
    """Return :func:`odd_pairs` of the pairs ``ends`` [M, 2] of distinct images."""
    sources = [f"{src.name}#{first}" for first in distinct.firsts]
    return odd_pairs([(sources[a], sources[b]) for a, b in ends.tolist()], dict(zip(sources, sources)))


def _add_images(
    writer: Writer, src: Path, distinct: _Images, identity: np.ndarray, policy: str, resize: bool
) -> tuple[np.ndarray, dict[int, str]]:
    """Add the D distinct images, and reject every occurrence of those that cannot be read.

    Returns:
        int64 [D], each image's record number, or -1; and the reason by the index of an image that cannot be read.
    """
    record = np.full(len(distinct.firsts), -1, np.int64)
    reasons: dict[int, str] = {}
    for k, i in enumerate(distinct.firsts):
        blob = distinct.blobs[i]
        location = f"{src.name} image {i} (pair {i // 2}, byte {blob.at})"
        try:
            jpeg = images.to_jpeg(blob.data, location, resize)
            record[k] = writer.add(jpeg, f"derived {identity[k]:06d}", f"{src.name}#{i}")
        except images.WrongSize as error:
            raise ValueError(f"{src}: {error}") from error
        except ValueError as error:
            if policy == "fail":
                raise ValueError(f"{src}: {error}; leave out its pairs with --policy=drop") from error
            problem = str(error).removeprefix(f"{location}: ")
            reasons[k] = f"{problem}, image {i} (pair {i // 2}, byte {blob.at})"
    for i, k in enumerate(distinct.index.tolist()):
        if k in reasons:
            writer.reject(f"{src.name}#{i}", reasons[k])
    return record, reasons


def add_command(commands: Any) -> None:
    """Add the command ``bin`` with its flags to an argparse parser."""
    sub = commands.add_parser("bin", help=(convert.__doc__ or "").split("\n")[0], allow_abbrev=False)
    sub.add_argument("--src", type=Path, required=True, help="FILE.bin")
    sub.add_argument("--dst", type=Path, required=True, help="the store to make; must not exist")
    sub.add_argument("--resize", action="store_true", help="resize square images of other sizes to 112x112")
    sub.add_argument("--name", help="the benchmark's name; by default the file's, if it is that of a usual benchmark")
    sub.add_argument("--folds", type=int, help="the number of folds, needed for other benchmarks")
    sub.add_argument("--policy", choices=("fail", "drop"), default="fail", help="for images that cannot be read")
    sub.set_defaults(run=convert)


def summary(store: Store) -> list[str]:
    """Return lines for the user about benchmarks from a .bin; none for a store of another origin."""
    lines = []
    for name, b in store.manifest["benchmarks"].items():
        if "images_read" not in b:
            continue
        read, repeated, rejected = b["images_read"], b["images_repeated"], store.manifest["counts"]["rejected"]
        balanced = [2 * g for g in b["genuine_by_fold"]] == b["fold_sizes"]
        folds = "balanced" if balanced else f"not balanced, genuine pairs by fold: {b['genuine_by_fold']}"
        lines += [
            f"  {name}: {read} images read = {len(store)} written + {repeated} repeats of them + {rejected} rejected; "
            f"folds {folds}; {len(b['contradictory_pairs'])} contradictory pairs",
            f"  {name}: identities are {b['identities']}, as the file names nobody: intervals are on the narrow side",
        ]
    return lines
