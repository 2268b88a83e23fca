"""The scores of a benchmark's pairs as a file, so that any figure can be redrawn and two models compared on it."""

from __future__ import annotations

import io
import urllib.parse
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TYPES = {"scores": "float32", "same": "bool"}  # of arrays; all others: int64
MAX_BYTES = 2**31  # of a file's arrays; 6 million IJB-C pairs are 300 MB


@dataclass(frozen=True)
class PairScores:
    """What a model says about every pair of a benchmark, in the benchmark's order. All arrays have M entries."""

    scores: NDArray  # float32, higher for the same person
    same: NDArray  # bool
    fold: NDArray  # int64, from 0
    a: NDArray  # int64, record number in the store of the first image
    b: NDArray  # int64, of the second
    identity_a: NDArray  # int64, the store's label of a
    identity_b: NDArray  # int64
    data_hash: str  # of the store's records
    pairs_hash: str  # of its list of pairs

    @classmethod
    def of(cls, scores: NDArray, pairs: Any, data_hash: str, pairs_hash: str) -> PairScores:
        """Join scores to the pairs, as ``read_pairs`` returns them, that they are of."""
        columns = {name: getattr(pairs, name) for name in ("same", "fold", "a", "b", "identity_a", "identity_b")}
        return cls(np.asarray(scores, np.float32), **columns, data_hash=data_hash, pairs_hash=pairs_hash)

    def write(self, path: Path) -> None:
        """Write an .npz file that ``np.load(path, allow_pickle=False)`` opens, with an array for each attribute."""
        buffer = io.BytesIO()
        columns: dict[str, Any] = {name: np.asarray(value) for name, value in asdict(self).items()}
        np.savez_compressed(buffer, **columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = path.with_name(f"{path.name}.tmp")
        tmp.write_bytes(buffer.getvalue())
        tmp.replace(path)


def file_name(benchmark: str) -> str:
    """Return a benchmark's name as a part of a file's name: a name such as "cfp/fp" opens no folder."""
    return urllib.parse.quote(benchmark, safe="")


def file_of(folder: Path, benchmark: str) -> Path:
    """Return the file with a benchmark's scores, in the folder of its results.json."""
    return folder / "scores" / f"{file_name(benchmark)}.npz"


def of_benchmark(workdir: Path, results: Mapping[str, Any], name: str, again: str) -> PairScores:
    """Read the scores that a benchmark's entry of results.json was computed from.

    Args:
        workdir, results: a work directory, and its results.json.
        name: the benchmark.
        again: the remedy, for messages: how to evaluate again.
    Raises:
        ValueError: the file is missing (older versions wrote none), of other data than the entry, or damaged.
    """
    entry = results["benchmarks"][name]
    folder = entry.get("evaluation", {}).get("folder", "")  # of the later evaluation that added it
    file = file_of(workdir / folder, name)
    if not file.is_file():
        raise ValueError(f"{file} is missing (an older fvjax did not write it); evaluate again: {again}")
    scores = read(file)
    if scores.data_hash != entry["data_hash"] or len(scores.same) != entry["n_pairs"]:
        raise ValueError(f"{file} is of other data than {workdir}/results.json; evaluate again: {again}")
    return scores


def read(path: Path) -> PairScores:
    """Read what :meth:`PairScores.write` wrote. Raises ValueError: it is not such a file."""
    names = [each.name for each in fields(PairScores)]
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_BYTES:
            raise ValueError(f"its arrays have {size:,} bytes, more than {MAX_BYTES:,}")
        with np.load(path, allow_pickle=False) as file:
            if missing := set(names) - set(file.files):
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            columns: dict[str, Any] = {name: file[name] for name in names}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path}: not the scores of a benchmark ({error}); evaluate again") from error
    for name in ("data_hash", "pairs_hash"):
        columns[name] = str(columns[name])
    arrays = {name: value for name, value in columns.items() if not isinstance(value, str)}
    wrong = [name for name, value in arrays.items() if value.dtype.name != TYPES.get(name, "int64")]
    if wrong or len({value.shape for value in arrays.values()}) != 1 or arrays["scores"].ndim != 1:
        shapes = ", ".join(f"{name} {value.dtype} {value.shape}" for name, value in arrays.items())
        raise ValueError(f"{path}: its arrays must be of one length and the written types, but are {shapes}")
    return PairScores(**columns)
