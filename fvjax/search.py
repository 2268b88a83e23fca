"""`python -m fvjax.search --gallery=DIR --probe=DIR --model=DIR [--top=K] [--fpir=X] [--drop-copies] [--json=FILE]`

Who of the gallery is this? Prints, for each face of the probes, the most similar faces of the gallery. Gallery and
probes are face stores, folders of photographs or aligned 112x112 crops, or single pictures. If both say who is who
(stores, or one folder for each person), it also prints how often the right person comes first, the threshold at the
false positive rate --fpir, measured on the probes whose person is not in the gallery, and how many are missed at it.

The model's DIR is a work directory of `python -m fvjax.main`, or a checkpoint as `fvjax.load` takes it. Every probe is
compared with every face of the gallery; docs/search.md has the protocol. Exit code 0; 2 with one line on standard error
for user errors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from numpy.typing import NDArray

from fvjax import api, files, startup
from fvjax.data.face_collections import Face, FaceCollection, open_collection
from fvjax.data.readers.picture_tree import LeftOut
from fvjax.evals import identification
from fvjax.evals.search_text import search_text
from fvjax.parallel import cosine_search

ROUND = 20  # a search for fewer candidates is made for so many, so that one program is compiled
SEARCHES = 2000  # faces of a gallery that are searched for in it; more take minutes and say little more


@dataclass(frozen=True)
class Embedded:
    """The embeddings of a collection of N faces.

    Attributes:
        names: the pictures' files. identities: whose they are, None where nobody says.
        digests: of the pixels, to recognise a picture. vectors: float32 [N, D], of length 1.
    """

    names: list[str]
    identities: list[str | None]
    digests: list[bytes]
    vectors: NDArray

    def take(self, rows: Sequence[int]) -> Embedded:
        return Embedded(
            [self.names[i] for i in rows],
            [self.identities[i] for i in rows],
            [self.digests[i] for i in rows],
            self.vectors[list(rows)],
        )


def search(
    gallery: str | Path,
    probe: str | Path,
    model: str | Path,
    *,
    top: int = 5,
    fpir: float = 0.01,
    drop_copies: bool = False,
) -> dict[str, Any]:
    """Search for each face of the probes in a gallery.

    Args:
        gallery, probe: see :func:`fvjax.data.face_collections.open_collection`.
        model: a work directory or a checkpoint, of a model that embeds faces.
        top: how many faces of the gallery to name for each probe.
        fpir: the false positive identification rate at which the threshold is measured.
        drop_copies: leave out probes that are in the gallery too, as the same pixels. Otherwise they are an error if
            figures are measured, as they find themselves, and are only named if not.
    Returns:
        JSON-ready {"model", "flip_sum", "gallery", "probe", "copies", "results", "figures", "det", "no_figures"}.
        "gallery" and "probe" describe the collections: {"path", "pictures", "identities", "left_out",
        "left_out_by_reason"}. "results" has an entry for each probe: {"file", "identity", "rank", "above_threshold",
        "candidates": [{"file", "identity", "score"}]}. "figures" are those of
        :func:`fvjax.evals.identification.figures`, or None, and then "no_figures" says why. "det" has points
        [threshold, FPIR, FNIR], or is None.
    Raises:
        ValueError: user errors, in one line.
    """
    if top < 1:
        raise ValueError(f"--top={top}: at least one")
    if not 0 < fpir < 1:
        raise ValueError(f"--fpir={fpir:g}: choose a rate above 0 and below 1")
    collections = open_collection(Path(gallery)), open_collection(Path(probe))
    embedder = api.Embedder(Path(model))
    entries, probes = embed(collections[0], embedder), embed(collections[1], embedder)
    no_figures = _no_identities(collections)
    probes, copies = _without_copies(entries, probes, collections[1], drop=drop_copies, measured=not no_figures)
    people, probe_people = _people(entries, probes, known=not no_figures)
    found = cosine_search.nearest(probes.vectors, entries.vectors, probe_people, people, top=top)
    figures, det = (None, None) if no_figures else _measure(found, fpir)
    limit = None if figures is None else figures[f"fnir@fpir={fpir:g}"]["threshold"]
    return {
        "model": str(model),
        "flip_sum": embedder.flip_sum,
        "gallery": _describe(collections[0], entries),
        "probe": _describe(collections[1], probes),
        "copies": copies,
        "results": [_result(i, entries, probes, found, limit, not no_figures) for i in range(len(probes.names))],
        "figures": figures,
        "det": det,
        "no_figures": no_figures,
    }


class Gallery:
    """A gallery whose faces are embedded once, and searched many times.

    Args:
        path: see :func:`fvjax.data.face_collections.open_collection`.
        embedder: of the gallery and of whatever is searched for.
    Raises:
        ValueError: as :func:`search`.
    """

    def __init__(self, path: Path, embedder: api.Embedder):
        self.collection = open_collection(path)
        self._entries, self._embedder = embed(self.collection, embedder), embedder
        self._names = list(dict.fromkeys(self._entries.identities)) if self.collection.has_identities else None

    def __len__(self) -> int:
        return len(self._entries.names)

    @property
    def people(self) -> int | None:
        """How many people the faces are of; None: nobody says."""
        return None if self._names is None else len(self._names)

    def picture(self, file: str) -> NDArray | None:
        """Read the picture of a candidate, if the gallery is a folder; see :meth:`FaceCollection.picture`."""
        return self.collection.picture(file)

    def candidates(self, crop: NDArray, top: int) -> list[dict[str, Any]]:
        """Return the most similar faces to a crop uint8 [112, 112, 3], as the "candidates" of :func:`search`."""
        probe = embed_faces([Face("the face that is searched for", None, crop)], self._embedder, "the search")
        nobody = np.ones(1, np.int64), np.zeros(len(self), np.int64)
        found = cosine_search.nearest(probe.vectors, self._entries.vectors, *nobody, top=max(top, ROUND))
        return _candidates(0, self._entries, found)[:top]

    def false_positives(self, threshold: float) -> tuple[int, int] | None:
        """Search for the gallery's own faces among its other people: how many find somebody, and of how many.

        Of a gallery with more than SEARCHES faces, so many are searched for, evenly spaced. None if nobody says who is
        who, or all are one person.
        """
        if self._names is None or len(self._names) < 2:
            return None
        numbers = {name: i for i, name in enumerate(self._names)}
        people = np.array([numbers[name] for name in self._entries.identities], np.int64)
        rows = np.unique(np.linspace(0, len(self) - 1, min(len(self), SEARCHES)).astype(np.int64))
        found = identification.find_others(self._entries.vectors, people, rows, threshold)
        return int(found.sum()), len(rows)


def embed(collection: FaceCollection, embedder: api.Embedder) -> Embedded:
    """Embed the faces of a collection. Raises ValueError for an embedding that is zero or not finite."""
    return embed_faces(collection.faces(), embedder, str(collection.path))


def embed_faces(faces: Iterable[Face], embedder: api.Embedder, location: str) -> Embedded:
    """Embed faces. Raises ValueError, which begins with `location`, as :func:`embed`."""
    names, identities, digests, parts = [], [], [], []
    for batch in _batches(faces, embedder.batch_size):
        names += [face.name for face in batch]
        identities += [face.identity for face in batch]
        digests += [hashlib.sha256(face.crop.tobytes()).digest()[:16] for face in batch]
        vectors = embedder(np.stack([face.crop for face in batch])).astype(np.float64)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        broken = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
        if len(broken):
            raise ValueError(f"{location}: the embedding of {batch[broken[0]].name} is zero or not finite")
        parts.append((vectors / lengths).astype(np.float32))
    return Embedded(names, identities, digests, np.concatenate(parts))


def _batches(faces: Iterable[Face], size: int) -> Iterator[list[Face]]:
    batch: list[Face] = []
    for face in faces:
        batch.append(face)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _no_identities(collections: Sequence[FaceCollection]) -> str | None:
    """Say why no figures can be measured; None if they can."""
    silent = [str(collection.path) for collection in collections if not collection.has_identities]
    return f"nobody says who is who in {' and '.join(silent)}" if silent else None


def _without_copies(
    entries: Embedded, probes: Embedded, collection: FaceCollection, *, drop: bool, measured: bool
) -> tuple[Embedded, list[dict[str, str]]]:
    """Return the probes that are searched for, and which of all are pictures of the gallery; see :func:`search`."""
    of_gallery = {digest: name for name, digest in zip(reversed(entries.names), reversed(entries.digests))}
    rows = [i for i, digest in enumerate(probes.digests) if digest in of_gallery]
    copies = [{"probe": probes.names[i], "gallery": of_gallery[probes.digests[i]]} for i in rows]
    if copies and measured and not drop:
        raise ValueError(
            f"{collection.path}: {len(copies)} of {len(probes.names)} pictures are in the gallery too and would find "
            f"themselves, the first: {copies[0]['probe']} is {copies[0]['gallery']}; leave them out with --drop-copies"
        )
    if not drop or not copies:
        return probes, copies
    for copy in copies:
        collection.left_out.append(LeftOut(copy["probe"], f"copy of a gallery picture: {copy['gallery']}"))
    kept = sorted(set(range(len(probes.names))) - set(rows))
    if not kept:
        raise ValueError(f"{collection.path}: all {len(rows)} pictures are in the gallery too; give other probes")
    return probes.take(kept), copies


def _people(entries: Embedded, probes: Embedded, *, known: bool) -> tuple[NDArray, NDArray]:
    """Number the people of the gallery and of the probes, int64 [N] and [P]; if not known, nobody is a mate."""
    if not known:
        return np.zeros(len(entries.names), np.int64), np.ones(len(probes.names), np.int64)
    numbers = {name: i for i, name in enumerate(dict.fromkeys((*entries.identities, *probes.identities)))}
    of_entries, of_probes = ([numbers[name] for name in each.identities] for each in (entries, probes))
    return np.array(of_entries, np.int64), np.array(of_probes, np.int64)


def _measure(found: cosine_search.Nearest, fpir: float) -> tuple[dict[str, Any], list[list[float]] | None]:
    """Return the figures of searches among known people, and the points of the DET curve."""
    mate = np.where(found.rank > 0, found.mate, np.nan)
    outcomes = identification.Outcomes(found.score[:, 0], mate, found.rank)
    both = outcomes.mated.any() and not outcomes.mated.all()
    det = np.stack(identification.det(outcomes), axis=1).tolist() if both else None
    return identification.figures(outcomes, fpirs=(fpir,)), det


def _describe(collection: FaceCollection, embedded: Embedded) -> dict[str, Any]:
    return {
        "path": str(collection.path),
        "pictures": len(embedded.names),
        "identities": len(set(embedded.identities)) if collection.has_identities else None,
        "left_out": [entry._asdict() for entry in collection.left_out],
        "left_out_by_reason": collection.reasons(),
    }


def _result(
    i: int,
    entries: Embedded,
    probes: Embedded,
    found: cosine_search.Nearest,
    threshold: float | None,
    has_people: bool,
) -> dict[str, Any]:
    """Return the entry of a probe. Its rank is None if nobody says who it is, 0 if its person is not in the gallery."""
    candidates = _candidates(i, entries, found)
    return {
        "file": probes.names[i],
        "identity": probes.identities[i],
        "rank": int(found.rank[i]) if has_people else None,
        "above_threshold": None if threshold is None else candidates[0]["score"] >= threshold,
        "candidates": candidates,
    }


def _candidates(i: int, entries: Embedded, found: cosine_search.Nearest) -> list[dict[str, Any]]:
    """Return what a search found for probe i."""
    return [
        {"file": entries.names[entry], "identity": entries.identities[entry], "score": float(score)}
        for entry, score in zip(found.index[i].tolist(), found.score[i])
    ]


@startup.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = startup.Parser(
        prog="python -m fvjax.search", description="Who of the gallery is this?", allow_abbrev=False
    )
    what = "a store, a folder of pictures, with one folder for each person, or one picture"
    parser.add_argument("--gallery", required=True, metavar="PATH", help=what)
    parser.add_argument("--probe", required=True, metavar="PATH", help=what)
    parser.add_argument("--model", required=True, metavar="DIR", help="a run's workdir, or a checkpoint")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="faces to name for each probe (%(default)s)")
    parser.add_argument("--fpir", type=float, default=0.01, metavar="X", help="of the threshold (%(default)s)")
    parser.add_argument("--drop-copies", action="store_true", help="leave out probes that are in the gallery too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything there")
    logging.set_verbosity(logging.WARNING)
    options = vars(parser.parse_args(argv))
    file = options.pop("json")
    result = search(**options)
    if file is not None:
        files.replace_file(file, json.dumps(result, indent=1) + "\n")
    print(search_text(result))
    return 0


if __name__ == "__main__":
    startup.run(main)
