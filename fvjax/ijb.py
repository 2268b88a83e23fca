"""`python -m fvjax.ijb --data=STORE --model=DIR [--unweighted] [--json=FILE]`: a model on IJB-B or IJB-C.

STORE comes from `python -m fvjax.data.prepare ijb`. Pictures are pooled to templates; then come TAR at FAR 1e-1 to 1e-6
of the pairs of templates (1:1), and ranks 1, 5 and 10 and FNIR at FPIR 0.01 and 0.1 in both galleries (1:N). DIR is a
work directory of `python -m fvjax.main`, or a checkpoint as `fvjax.load` takes it. Exit code 0; 2 with one line on
standard error for user errors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from numpy.typing import NDArray

from fvjax import api, files, startup
from fvjax.console import progress
from fvjax.data import pipeline
from fvjax.data.stores import Store
from fvjax.data.stores.templates import Templates, read_templates
from fvjax.evals import identification, templates
from fvjax.evals.search_text import template_text


def evaluate(data: str | Path, model: str | Path, *, weighted: bool = True) -> dict[str, Any]:
    """Evaluate a model on the templates of a store.

    Args:
        data: a store of `prepare ijb`. model: a work directory or a checkpoint.
        weighted: let a picture count by the detector's score, beside its norm.
    Returns:
        JSON-ready {"set", "data_hash", "model", "weighted", "flip_sum", "pictures", "templates", "1:1": see
        :func:`fvjax.evals.templates.verification`, "1:N"}. The last is {"gallery_1", "gallery_2": see
        :func:`fvjax.evals.identification.figures`, "mean"}, or None without 1:N lists.
    Raises:
        ValueError: user errors, in one line.
    """
    store, protocol = read_templates(data)
    embedder = api.Embedder(Path(model))
    embeddings = _embed(embedder, store)
    weights = protocol.detection if weighted else None
    known, pooled = templates.pool(embeddings, protocol.template, protocol.medium, weights)
    a, b = np.searchsorted(known, protocol.pair_a), np.searchsorted(known, protocol.pair_b)
    scores = templates.pair_scores(pooled, a, b)
    return {
        "set": store.manifest["templates"]["set"],
        "data_hash": store.data_hash,
        "model": str(model),
        "weighted": weighted,
        "flip_sum": embedder.flip_sum,
        "pictures": len(store),
        "templates": len(known),
        "1:1": templates.verification(scores, protocol.pair_same),
        "1:N": _search(protocol, known, pooled) if protocol.has_search else None,
    }


def _embed(embedder: api.Embedder, store: Store) -> NDArray:
    """Embed all pictures of a store: float32 [N, D]."""
    batches = pipeline.eval_batches(store, np.arange(len(store)), embedder.batch_size)
    bar = progress(batches, "embedding", -(-len(store) // embedder.batch_size), count=len(store), unit="pictures")
    return np.concatenate([embedder(faces)[:count] for faces, count in bar])


def _search(protocol: Templates, known: NDArray, pooled: NDArray) -> dict[str, Any]:
    """Search for the probes in each of the two galleries; return the figures of both and their means."""
    probes = pooled[np.searchsorted(known, protocol.probe)]
    result: dict[str, Any] = {}
    for name in ("gallery_1", "gallery_2"):
        gallery = pooled[np.searchsorted(known, getattr(protocol, name))]
        people = getattr(protocol, f"{name}_subject")
        found = templates.search(probes, gallery, protocol.probe_subject, people)
        result[name] = {"templates": len(gallery), **identification.figures(found, fpirs=templates.FPIRS)}
    return {**result, "mean": templates.mean_of_galleries(result["gallery_1"], result["gallery_2"])}


@startup.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = startup.Parser(
        prog="python -m fvjax.ijb", description="Evaluate a model on IJB-B or IJB-C.", allow_abbrev=False
    )
    parser.add_argument("--data", required=True, metavar="STORE", help="made by fvjax.data.prepare ijb")
    parser.add_argument("--model", required=True, metavar="DIR", help="a run's workdir, or a checkpoint")
    parser.add_argument("--unweighted", action="store_true", help="do not weight pictures by the detector's score")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    logging.set_verbosity(logging.WARNING)
    options = parser.parse_args(argv)
    result = evaluate(options.data, options.model, weighted=not options.unweighted)
    if options.json is not None:
        files.replace_file(options.json, json.dumps(result, indent=1) + "\n")
    print(template_text(result))
    return 0


if __name__ == "__main__":
    startup.run(main)
