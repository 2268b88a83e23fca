"""Verification protocols over a store's records: pairs of images with folds, in pairs_NAME.csv."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fvjax.data.stores.manifest import read_manifest, write_manifest
from fvjax.data.stores.store import Store


@dataclass(frozen=True)
class Pairs:
    """A verification protocol over a store's records, in protocol order (fold by fold). All arrays have M entries."""

    a: np.ndarray  # int64, record number
    b: np.ndarray  # int64, record number
    same: np.ndarray  # bool
    fold: np.ndarray  # int64, 0, 0, …, 1, 1, …
    identity_a: np.ndarray  # int64, the store's label of a
    identity_b: np.ndarray  # int64

    @property
    def fold_sizes(self) -> list[int]:
        return np.bincount(self.fold).tolist()


def write_pairs(
    path: str | os.PathLike,
    name: str,
    pairs: Pairs,
    *,
    policy: str = "fail",
    failure_to_acquire: int = 0,
    pairs_dropped: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Add a benchmark to a store: pairs_NAME.csv, and its counts in the manifest.

    Args:
        path: the store.
        name: letters, digits and underscores.
        policy: how images were treated that the pairs name but that could not be used ("fail", "drop" or "fallback").
        failure_to_acquire: the number of such images.
        pairs_dropped: the number of pairs left out because of them.
        facts: further entries for the manifest; "identities" says how identities are known ("named" by default).
    Raises:
        ValueError: the name is taken or invalid, or the pairs do not agree with the store's records and labels.
    """
    path = Path(path)
    manifest = read_manifest(path)
    location = f"{path}: benchmark {name!r}"
    if not name.isidentifier():
        raise ValueError(f"{location}: the name must be letters, digits and underscores")
    if name in manifest["benchmarks"]:
        raise ValueError(f"{location} exists already")
    with np.load(path / "index.npz", allow_pickle=False) as arrays:
        check_pairs(pairs, arrays["labels"], location)
    data = _to_csv(pairs)
    (path / f"pairs_{name}.csv").write_bytes(data)
    manifest["benchmarks"][name] = {
        "pairs": len(pairs.a),
        "genuine": int(pairs.same.sum()),
        "impostor": int((~pairs.same).sum()),
        "fold_sizes": pairs.fold_sizes,
        "policy": policy,
        "failure_to_acquire": failure_to_acquire,
        "pairs_dropped": pairs_dropped,
        "hash": hashlib.sha256(data).hexdigest(),
        "identities": "named",
        **(facts or {}),
    }
    write_manifest(path, manifest)


def read_pairs(path: str | os.PathLike, name: str) -> Pairs:
    """Read the benchmark ``name`` of a store.

    Raises:
        ValueError: the benchmark or a file is missing, changed or malformed. The message says which.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if name not in manifest["benchmarks"]:
        raise ValueError(f"{path}: no benchmark {name!r}; it has {sorted(manifest['benchmarks']) or 'none'}")
    file = path / f"pairs_{name}.csv"
    data = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(data).hexdigest() != manifest["benchmarks"][name]["hash"]:
        raise ValueError(f"{file}: missing or changed since writing; prepare the store again")
    labels = Store(path, manifest["split"]).labels
    try:
        pairs = _from_csv(data, labels)
    except (ValueError, OverflowError, IndexError) as error:
        raise ValueError(f"{file}: not rows of a,b,same,fold ({error}); prepare the store again") from error
    check_pairs(pairs, labels, str(file))
    return pairs


def check_pairs(pairs: Pairs, labels: np.ndarray, location: str) -> None:
    """Raise ValueError, which begins with ``location``, if ``pairs`` do not agree with the labels of a store."""
    a, b, fold = pairs.a, pairs.b, pairs.fold
    if len({len(x) for x in (a, b, pairs.same, fold, pairs.identity_a, pairs.identity_b)}) != 1 or not len(a):
        raise ValueError(f"{location}: the columns must have one common length above zero")
    if min(a.min(), b.min()) < 0 or max(a.max(), b.max()) >= len(labels):
        raise ValueError(f"{location}: record numbers run from 0 to {len(labels) - 1}")
    if fold[0] != 0 or not np.isin(np.diff(fold), (0, 1)).all():
        raise ValueError(f"{location}: folds must be 0, 0, …, 1, 1, … in order")
    if (labels[a] != pairs.identity_a).any() or (labels[b] != pairs.identity_b).any():
        raise ValueError(f"{location}: identity_a and identity_b must be the store's labels of a and b")
    if len(wrong := np.flatnonzero(pairs.same != (labels[a] == labels[b]))):
        i = wrong[0]
        raise ValueError(
            f"{location}: pair {i} has same={pairs.same[i]}, but its records {a[i]} and {b[i]} have the labels "
            f"{labels[a[i]]} and {labels[b[i]]}"
        )


def check_folds(pairs: Pairs, location: str) -> None:
    """Raise ValueError, which begins with ``location``, for a fold that no threshold can be judged on."""
    sizes = np.bincount(pairs.fold)
    genuine = np.bincount(pairs.fold[pairs.same], minlength=len(sizes))
    for number, (size, same) in enumerate(zip(sizes.tolist(), genuine.tolist()), 1):
        if same in (0, size):
            lacking = "impostor" if same else "genuine"
            raise ValueError(
                f"{location}: fold {number} of {len(sizes)} has no {lacking} pairs ({size} pairs), so it cannot be "
                "evaluated; prepare the pairs in their published order, or as one fold, which needs no other folds"
            )


def _to_csv(pairs: Pairs) -> bytes:
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["a", "b", "same", "fold"])
    out.writerows(zip(pairs.a.tolist(), pairs.b.tolist(), pairs.same.astype(int).tolist(), pairs.fold.tolist()))
    return text.getvalue().encode()


def _from_csv(data: bytes, labels: np.ndarray) -> Pairs:
    if not data.partition(b"\n")[2].strip():
        raise ValueError("there are none")  # numpy would only warn
    a, b, same, fold = np.loadtxt(io.BytesIO(data), np.int64, delimiter=",", skiprows=1, ndmin=2).T
    return Pairs(a, b, same.astype(bool), fold, labels[a], labels[b])
