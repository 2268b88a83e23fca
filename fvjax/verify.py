"""`python -m fvjax.verify A.jpg B.jpg --model=DIR [--face=centre|largest|all] [--save=FILE.png]`

Do two photographs show one person? Finds the face in each (with the `align` extra; a 112x112 crop is taken as it is),
and prints the verdict, the score behind it (a cosine, or P(Yes) of a model that answers), the threshold, its false
accept rate (FAR) and the benchmark that it was measured on. DIR is a work directory of `python -m fvjax.main`, or a
checkpoint as `fvjax.load` takes it, for which no threshold is known. Exit code 0 whatever the verdict; 2 with one line
on standard error for user errors.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
from absl import logging
from numpy.typing import NDArray

from fvjax import api, errors, files, shipped, startup
from fvjax.data.alignment.faces import CHOICES, Picture, read_picture
from fvjax.evals import folds, intervals, pair_picture, verification
from fvjax.evals.pair_text import caption, text
from weights_convert.read import load_json

FAR_ABOVE = 0.2  # a given threshold so far above the measured one may be meant as a probability
DRAWINGS = "fvjax.data.synthetic"  # how the sources of a store of procedural faces begin


def compare(
    a: str | Path | NDArray,
    b: str | Path | NDArray,
    model: str | Path,
    *,
    threshold: float | None = None,
    benchmark: str | None = None,
    face: str = "centre",
    save: str | Path | None = None,
) -> dict[str, Any]:
    """Score two pictures of faces as the evaluation of the model's run scores them.

    Args:
        a, b: pictures, see :func:`fvjax.faces`.
        model: a work directory, whose best or newest checkpoint is used, or a checkpoint directory.
        threshold: same person if score >= threshold. Its FAR is then unknown.
        benchmark: the entry of results.json whose threshold is used; None: the first without identities that training
            has seen.
        face: which face of a picture with several: the one nearest the "centre", the "largest", or "all", each face of
            a with each of b; the score is then the highest.
        save: a PNG file to draw both pictures into.
    Returns:
        see :meth:`Verifier.compare`.
    Raises:
        ValueError: user errors, in one line.
    """
    _check_threshold(threshold, benchmark)
    _check_target(save, (a, b))
    pictures = read_picture(a), read_picture(b)
    for picture in pictures:
        picture.chosen(face)  # reports what is wrong with a picture before a large model is read
    return Verifier(model, threshold=threshold, benchmark=benchmark).compare(*pictures, face=face, save=save)


class Verifier:
    """A model that compares many pairs of pictures at one threshold.

    Args:
        model, threshold, benchmark: see :func:`compare`.
    Raises:
        ValueError: not a model, no such benchmark, or a threshold that no score of this model can have.
    """

    def __init__(self, model: str | Path, *, threshold: float | None = None, benchmark: str | None = None):
        _check_threshold(threshold, benchmark)
        self.name = str(model)
        self.opened = network, results = api.open_directory(Path(model))
        self.network, run = network, network.run
        self.measure = "P(Yes)" if network.encoder.yes_no else "cosine"
        if self.measure == "P(Yes)" and threshold is not None and threshold < 0:
            raise ValueError(f"--threshold={threshold}: {model} answers with P(Yes), which lies between 0 and 1")
        self.flip_sum = api.flips(network, results)
        self.drawings = _knows_drawings_only(Path(model), run)
        self.threshold, self.far, self.measured_on = threshold, None, None
        self.hint = None if threshold is None else self._hint(threshold, results)
        if threshold is None and run and results.get("benchmarks"):
            file = Path(model) / "results.json"
            self.threshold, self.far, self.measured_on = _operating_point(file, results, run, benchmark)
        elif benchmark is not None:
            raise ValueError(f"--benchmark={benchmark}: {model} has no results.json with benchmarks; give --threshold")

    def compare(
        self,
        a: str | Path | NDArray | Picture,
        b: str | Path | NDArray | Picture,
        *,
        face: str = "centre",
        save: str | Path | None = None,
    ) -> dict[str, Any]:
        """Compare two pictures; the arguments are those of :func:`verify.compare`.

        Returns:
            JSON-ready {"score", "measure", "threshold", "same", "far", "measured_on", "model", "images", "far_ci95",
            "face", "pictures", "comparisons", "caution", "notes"}. "measure" is "cosine", or "P(Yes)" of a model that
            answers. Without a threshold it and "same" are None; "far", its 95% Wilson interval and "measured_on" are
            None unless the threshold was measured. "pictures" has each picture's size, faces and chosen faces;
            "comparisons" each chosen face of a with each of b, by number, and "score" is the highest of them.
        Raises:
            ValueError: no picture, no face in it, or a file that cannot be written.
        """
        _check_target(save, (a, b))
        pictures = [each if isinstance(each, Picture) else read_picture(each) for each in (a, b)]
        chosen = [picture.chosen(face) for picture in pictures]
        scores = self._scores(*(picture.faces.crops[which] for picture, which in zip(pictures, chosen)))
        best = np.unravel_index(np.argmax(scores), scores.shape)
        score, threshold = float(scores[best]), self.threshold
        result: dict[str, Any] = {
            "score": score,
            "measure": self.measure,
            "threshold": threshold,
            "same": None if threshold is None else score >= threshold,
            "far": self.far,
            "measured_on": self.measured_on,
            "model": self.name,
            "images": [picture.name for picture in pictures],
            "far_ci95": _far_interval(self.measured_on),
            "face": face,
            "pictures": [_describe(picture, which) for picture, which in zip(pictures, chosen)],
            "comparisons": [
                {"a": i, "b": j, "score": float(scores[row, column])}
                for row, i in enumerate(chosen[0])
                for column, j in enumerate(chosen[1])
            ],
            "caution": None,
            "notes": [] if self.hint is None else [self.hint],
        }
        if self.drawings and not all(picture.is_crop for picture in pictures):
            result["caution"] = f"{self.name} was trained on drawings of faces: its scores of photographs mean nothing"
        if save is not None:
            best_faces = [which[number] for which, number in zip(chosen, best)]
            files.replace_file(Path(save), pair_picture.draw(pictures, best_faces, caption(result)))
        return result

    def _scores(self, a: NDArray, b: NDArray) -> NDArray:
        """Score each crop of a, uint8 [n, 112, 112, 3], with each of b: float32 [n, m]."""
        rows, columns = np.indices((len(a), len(b))).reshape(2, -1)
        if self.network.encoder.yes_no:
            return self.network.p_same(a[rows], b[columns]).reshape(len(a), len(b))
        crops = np.concatenate([a, b])
        embeddings = verification.embed(self.network.embed, [(crops, len(crops))], flip_sum=self.flip_sum)
        pairs = SimpleNamespace(a=rows, b=len(a) + columns)
        return verification.scores(embeddings, pairs).reshape(len(a), len(b))

    def _hint(self, threshold: float, results: dict[str, Any]) -> str | None:
        """Compare a threshold that a user gave with the one that was measured, if there is one."""
        run = self.network.run
        if run is None or not results.get("benchmarks"):
            return None
        try:
            measured, far, origin = _operating_point(Path(self.name) / "results.json", results, run, None)
        except ValueError:
            return None  # what cannot be trusted is no comparison
        hint = f"for comparison: on {origin['benchmark']}, threshold {measured:.4f} was measured for FAR {far:g}"
        if self.measure == "cosine" and threshold > measured + FAR_ABOVE:
            hint += f"; {threshold:g} is far above it, and this model's scores are cosines, not probabilities"
        return hint


def _check_threshold(threshold: float | None, benchmark: str | None) -> None:
    if threshold is not None and benchmark is not None:
        raise ValueError("--threshold and --benchmark: give one, a benchmark is where a threshold comes from")
    if threshold is not None and not -1 <= threshold <= 1:
        raise ValueError(f"--threshold={threshold}: a cosine lies between -1 and 1, P(Yes) between 0 and 1")


def _check_target(save: str | Path | None, sources: Sequence[Any]) -> None:
    """Raise ValueError if a picture cannot be saved there, before anything is computed for it."""
    if save is None:
        return
    file = Path(save)
    if file.suffix.lower() != ".png":
        raise ValueError(f"--save={save}: it is written as a PNG; give a name that ends in .png")
    if not file.parent.is_dir():
        raise ValueError(f"--save={save}: there is no folder {file.parent}; make it first")
    if file.is_dir():
        raise ValueError(f"--save={save}: that is a folder; give a file")
    names = [each.name if isinstance(each, Picture) else each for each in sources]
    if any(isinstance(each, str | Path) and Path(each).resolve() == file.resolve() for each in names):
        raise ValueError(f"--save={save}: that is one of the two pictures; give another file")


def _knows_drawings_only(path: Path, run: api.Run | None) -> bool:
    """Tell whether a model was trained on procedural faces: the embedded ones, a store of them, or shipped weights."""
    if run is None or not run.config.trains:
        weights = path if run is None else Path(shipped.weights(run.config.init_from))
        return weights.resolve().is_relative_to(shipped.PACKAGE / "pretrained")
    if run.config.data.synthetic.identities:
        return True
    manifest = Path(run.config.data.train) / "manifest.json"
    if not run.config.data.train or not manifest.is_file():
        return False  # a store that has moved since cannot be asked
    sources = load_json(manifest).get("sources", [])
    return bool(sources) and all(str(source).startswith(DRAWINGS) for source in sources)


def _far_interval(measured_on: dict[str, Any] | None) -> list[float] | None:
    """Return the 95% interval of a threshold's FAR: of the impostor scores above it among those that it rests on."""
    if measured_on is None:
        return None
    return intervals.wilson(measured_on["impostors_above_per_fold"], measured_on["n_impostor_per_fold"])


def _describe(picture: Picture, chosen: list[int]) -> dict[str, Any]:
    """Return the entry of a picture in the result, JSON-ready."""
    faces = picture.faces
    entries = [
        {
            "number": number,
            "box": faces.boxes[number].tolist(),
            "points": faces.points[number].tolist(),
            "score": None if picture.is_crop else float(faces.scores[number]),
            "enlargement": picture.enlargement(number),
        }
        for number in chosen
    ]
    size = [picture.pixels.shape[1], picture.pixels.shape[0]]
    return {"size": size, "is_crop": picture.is_crop, "faces": len(faces.boxes), "chosen": entries}


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
        # The threshold is the mean over folds of the k-th highest impostor score of the other folds, if there are any.
        own = entry["n_impostor"] // entry["n_folds"] if entry["n_folds"] > 1 else 0
        others = entry["n_impostor"] - own
        measured_on = {
            "benchmark": name,
            "n_impostor": entry["n_impostor"],
            "n_impostor_per_fold": others,
            "impostors_above_per_fold": int(others * folds.FOLD_FAR + 1e-9),
            "identities_seen_in_training": entry["identities_seen_in_training"],
            "data_hash": entry["data_hash"],
            "flip_sum": results["flip_sum"],
            "step": results["step"],
            "evaluated": _evaluated(entry.get("evaluation", results.get("evaluation"))),
        }
        return entry["accuracy@far=1e-3"]["threshold"], folds.FOLD_FAR, measured_on
    except KeyError as error:
        raise ValueError(f"{file} lacks {error}, so another version of fvjax wrote it; {again}") from None


def _evaluated(evaluation: dict[str, str] | None) -> str | None:
    """Return the date of an evaluation, and its name if it has one; None if an older version wrote the results."""
    return None if evaluation is None else " ".join(filter(None, (evaluation["date"], evaluation["name"])))


class _Parser(argparse.ArgumentParser):
    """Raises ValueError for wrong arguments, so that they are reported in one line as all errors are."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see python -m fvjax.verify --help")


def main(argv: Sequence[str] | None = None) -> int:
    about = "Do two photographs show one person? Crops of 112x112 are taken as they are; see --face for others."
    parser = _Parser(prog="python -m fvjax.verify", description=about, allow_abbrev=False)
    parser.add_argument("a", metavar="A.jpg")
    parser.add_argument("b", metavar="B.jpg")
    parser.add_argument("--model", required=True, metavar="DIR", help="a run's workdir, or a checkpoint")
    parser.add_argument("--benchmark", metavar="NAME", help="whose threshold; default: the first unseen in training")
    parser.add_argument("--threshold", type=float, metavar="X", help="same person from this score on")
    parser.add_argument("--face", choices=CHOICES, default="centre", help="of several in a picture (%(default)s)")
    parser.add_argument("--save", metavar="FILE.png", help="draw both pictures with faces, score and verdict")
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
    startup.run(main)
