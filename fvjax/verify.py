"""`python -m fvjax.verify A.jpg B.jpg --model=DIR [--benchmark=NAME | --threshold=X] [--json]`

Do two photographs show one person? Prints the verdict, the score behind it (a cosine, or P(Yes) of a model that
answers), the threshold, its false accept rate (FAR) and the benchmark that it was measured on. DIR is a work directory
of `python -m fvjax.main`, or a checkpoint as `fvjax.load` takes it, for which no threshold is known. Exit code 0
whatever the verdict; 2 with one line on standard error for user errors.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
from absl import logging

import weights_convert
from fvjax import api, errors
from fvjax.data import images
from fvjax.evals import folds, verification
from weights_convert.read import load_json

FEW = 10  # impostor scores: a rate that rests on fewer may well be wrong by a factor of two


def compare(
    a: str | Path, b: str | Path, model: str | Path, *, threshold: float | None = None, benchmark: str | None = None
) -> dict[str, Any]:
    """Score two aligned 112x112 crops as the evaluation of the model's run scores them.

    Args:
        a, b: image files, read by :func:`read_face`.
        model: a work directory, whose best or newest checkpoint is used, or a checkpoint directory.
        threshold: same person if score >= threshold. Its FAR is then unknown.
        benchmark: the entry of results.json whose threshold is used; None: the first without identities that training
            has seen.
    Returns:
        JSON-ready {"score", "measure", "threshold", "same", "far", "measured_on", "model", "images"}. "measure" is
        "cosine", or "P(Yes)" of a model that answers. Without a threshold it and "same" are None; "far" and
        "measured_on" are None unless the threshold was measured.
    Raises:
        ValueError: user errors, in one line.
    """
    if threshold is not None and benchmark is not None:
        raise ValueError("--threshold and --benchmark: give one, a benchmark is where a threshold comes from")
    if threshold is not None and not -1 <= threshold <= 1:
        raise ValueError(f"--threshold={threshold}: a cosine lies between -1 and 1")
    faces = np.stack([read_face(Path(a)), read_face(Path(b))])

    network, results = _open(Path(model))
    far = measured_on = None
    if threshold is None and network.run and results.get("benchmarks"):
        threshold, far, measured_on = _operating_point(Path(model) / "results.json", results, network.run, benchmark)
    elif benchmark is not None:
        raise ValueError(f"--benchmark={benchmark}: {model} has no results.json with benchmarks; give --threshold")

    measure = "P(Yes)" if network.encoder.yes_no else "cosine"
    if network.encoder.yes_no:
        score = float(network.p_same(faces[:1], faces[1:])[0])
    else:
        # --mode=eval may have asked for another flip_sum than the run's own.
        flip_sum = results.get("flip_sum", network.run.config.eval.flip_sum) if network.run else False
        embeddings = verification.embed(network.embed, [(faces, 2)], flip_sum=flip_sum)
        score = float(verification.scores(embeddings, SimpleNamespace(a=np.array([0]), b=np.array([1])))[0])
    return {
        "score": score,
        "measure": measure,
        "threshold": threshold,
        "same": None if threshold is None else score >= threshold,
        "far": far,
        "measured_on": measured_on,
        "model": str(model),
        "images": [str(a), str(b)],
    }


def read_face(file: Path) -> np.ndarray:
    """Read a face as `fvjax.data.prepare` would store it: uint8 [112,112,3] RGB. ValueError: missing, no image, or
    of another size."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about pictures that are refused anyway
            return images.decode(images.to_jpeg(file.read_bytes(), str(file)), str(file))
    except images.WrongSize as error:
        problem = str(error).rpartition(";")[0]  # without the advice, which is for preparing a store
        raise ValueError(
            f"{problem}; this version finds no faces in pictures (the align extra is not there yet): give aligned "
            f"{images.SIZE}x{images.SIZE} crops, made like those that the model was trained on"
        ) from error


def _open(path: Path) -> tuple[api.Model, dict[str, Any]]:
    """Open the model of a directory; return it with its results.json or {}."""
    if api.is_workdir(path):
        file = path / "results.json"
        return api.load_workdir(path), load_json(file) if file.exists() else {}
    if not (path / "config.json").is_file():
        if rows := sorted(file.parent.name for file in path.glob("*/config.json")):
            raise ValueError(f"{path} holds several runs; give one of them: {', '.join(str(path / r) for r in rows)}")
        raise ValueError(f"{path} is neither a workdir of python -m fvjax.main nor a checkpoint: it has no config.json")
    kind = weights_convert.open_checkpoint(path).kind
    scenario: Any = next((name for name, its in api.KINDS.items() if its == kind), None)
    if scenario is None:
        raise ValueError(f"{path} holds a {kind}, which sees no faces")
    return api.load(path, scenario), {}


def _operating_point(file: Path, results: dict, run: api.Run, name: str | None) -> tuple[float, float, dict]:
    """Return (threshold, its FAR, what it was measured on) of accuracy@far=1e-3 in results.json.

    Raises ValueError: the figures are not of this checkpoint, there is no such benchmark, or training has seen all.
    """
    again = f"evaluate again (--workdir={file.parent} --mode=eval) or give --threshold"
    try:
        evaluated, current = (results["step"], results["base_hash"][:8]), (run.step, run.base_hash[:8])
        if evaluated != current:
            raise ValueError(f"{file} is of (step, base) {evaluated}, the newest checkpoint is {current}; {again}")
        entries = results["benchmarks"]
        if name is None:
            unseen = [each for each, entry in entries.items() if not entry["identities_seen_in_training"]]
            if not unseen:
                names = "|".join(entries)
                raise ValueError(f"{file}: training saw identities of every benchmark; choose --benchmark={names}")
            name = unseen[0]
        if name not in entries:
            raise ValueError(f"--benchmark={name}: {file} has {', '.join(entries)}")
        entry = entries[name]
        # The threshold is the mean over folds of the k-th highest impostor score of the other folds.
        others = entry["n_impostor"] - entry["n_impostor"] // entry["n_folds"]
        measured_on = {
            "benchmark": name,
            "n_impostor": entry["n_impostor"],
            "n_impostor_per_fold": others,
            "impostors_above_per_fold": int(others * folds.FOLD_FAR + 1e-9),
            "identities_seen_in_training": entry["identities_seen_in_training"],
            "data_hash": entry["data_hash"],
            "flip_sum": results["flip_sum"],
            "step": results["step"],
        }
        return entry["accuracy@far=1e-3"]["threshold"], folds.FOLD_FAR, measured_on
    except KeyError as error:
        raise ValueError(f"{file} lacks {error}, so another version of fvjax wrote it; {again}") from None


def text(result: dict[str, Any]) -> str:
    """Describe a result in a few lines for people."""
    score, threshold, measured_on = result["score"], result["threshold"], result["measured_on"]
    if threshold is None:
        return (
            f"score {score:.4f} ({result['measure']})\nno threshold is known for {result['model']}, so no verdict: "
            "give --threshold=X, or as --model the workdir of a run whose results.json has a benchmark"
        )
    verdict = ("same person", ">=") if result["same"] else ("different persons", "<")
    first = f"{verdict[0]}: score {score:.4f} ({result['measure']}) {verdict[1]} threshold {threshold:.4f}"
    if measured_on is None:
        return f"{first}\nFAR of this threshold: not known"
    above, others = measured_on["impostors_above_per_fold"], measured_on["n_impostor_per_fold"]
    far, name = result["far"], measured_on["benchmark"]
    lines = [
        f"{first}, for FAR {far:g}",
        f"measured on {name}: {measured_on['n_impostor']:,} impostor pairs, data {measured_on['data_hash'][:8]}, "
        f"model at step {measured_on['step']}",
    ]
    if not above:
        lines.append(f"too few for FAR {far:g}: the threshold lies just above all of some {others:,} impostor scores")
    else:
        few = ": few, so take the FAR as a rough one" if above < FEW else ""
        lines.append(f"the threshold rests on the {above} highest of some {others:,} impostor scores{few}")
    seen = measured_on["identities_seen_in_training"]
    if seen is None:
        lines.append(f"whether training saw identities of {name} is not known: it follows another naming")
    elif seen:
        lines.append(f"training saw {seen} of its identities: expect more false accepts among strangers")
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    """Raises ValueError for wrong arguments, so that they are reported in one line as all errors are."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see python -m fvjax.verify --help")


def main(argv: Sequence[str] | None = None) -> int:
    about = "Do two photographs (aligned 112x112 crops) show one person?"
    parser = _Parser(prog="python -m fvjax.verify", description=about, allow_abbrev=False)
    parser.add_argument("a", metavar="A.jpg")
    parser.add_argument("b", metavar="B.jpg")
    parser.add_argument("--model", required=True, metavar="DIR", help="a run's workdir, or a checkpoint")
    parser.add_argument("--benchmark", metavar="NAME", help="whose threshold; default: the first unseen in training")
    parser.add_argument("--threshold", type=float, metavar="X", help="same person from this score on")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    logging.set_verbosity(logging.WARNING)
    try:
        options = vars(parser.parse_args(argv))
        as_json = options.pop("json")
        result = compare(**options)
    except (ValueError, OSError) as error:
        print("fvjax: error:", *errors.line(error).splitlines(), file=sys.stderr)
        return 2
    print(json.dumps(result) if as_json else text(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
