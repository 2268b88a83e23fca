"""`python -m fvjax.verify A.jpg B.jpg [--model=DIR|FILE.onnx] [--far=X] [--unsure=X] [--face=…] [--save=FILE.png]`

Do two photographs show one person? Finds the face in each (with the `align` extra; a 112x112 crop is taken as it is),
and prints the verdict, the score behind it (a cosine, or P(Yes) of a model that answers), the threshold, its false
accept rate (FAR) and the benchmark that it was measured on. DIR is a work directory of `python -m fvjax.main` or of
`python -m fvjax.evaluate`, or a checkpoint as `fvjax.load` takes it, for which no threshold is known, as for an ONNX
file. Without --model, OpenCV's SFace is downloaded once and used. Exit code 0 whatever the verdict; 2 with one line on
standard error for user errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from absl import logging
from numpy.typing import NDArray

from fvjax import api, default_model, files, foreign, foreign_workdir, shipped, startup
from fvjax.data.alignment.faces import CHOICES, Picture, read_picture
from fvjax.evals import intervals, operating_points, pair_picture, verification
from fvjax.evals.pair_text import caption, text, verdict
from weights_convert.read import load_json

FAR_ABOVE = 0.2  # a given threshold so far above the measured one may be meant as a probability
DRAWINGS = "fvjax.data.synthetic"  # how the sources of a store of procedural faces begin
RULES = ("benchmark", "far", "unsure")  # arguments about a threshold that was measured


def compare(
    a: str | Path | NDArray,
    b: str | Path | NDArray,
    model: str | Path | None = None,
    *,
    threshold: float | None = None,
    benchmark: str | None = None,
    far: float | None = None,
    unsure: float | None = None,
    channels: str | None = None,
    pixels: str | None = None,
    face: str = "centre",
    save: str | Path | None = None,
) -> dict[str, Any]:
    """Score two pictures of faces as the evaluation of the model's run scores them.

    Args:
        a, b: pictures, see :func:`fvjax.faces`.
        model: a work directory of a run, whose best or newest checkpoint is used, or of `python -m fvjax.evaluate`; a
            checkpoint directory; an ONNX file; or None: OpenCV's SFace, see :mod:`fvjax.default_model`.
        threshold: same person if score >= threshold. Its FAR is then unknown.
        benchmark: the entry of results.json whose threshold is used; None: the first without identities that training
            has seen.
        far: the false accept rate of the threshold; None: the one of accuracy@far=1e-3.
        unsure: a false non-match rate. There is no verdict on scores between its threshold and that of `far`.
        channels, pixels: what an ONNX file reads, see :func:`fvjax.foreign.of_onnx`; None: "rgb", "-1..1".
        face: which face of a picture with several: the one nearest the "centre", the "largest", or "all", each face of
            a with each of b; the score is then the highest.
        save: a PNG file to draw both pictures into.
    Returns:
        see :meth:`Verifier.compare`.
    Raises:
        ValueError: user errors, in one line.
    """
    _check_threshold(threshold, benchmark, far, unsure)
    _check_target(save, (a, b))
    pictures = read_picture(a), read_picture(b)
    for picture in pictures:
        picture.chosen(face)  # reports what is wrong with a picture before a large model is read
    verifier = Verifier(
        model, threshold=threshold, benchmark=benchmark, far=far, unsure=unsure, channels=channels, pixels=pixels
    )
    return verifier.compare(*pictures, face=face, save=save)


class Verifier:
    """A model that compares many pairs of pictures at one threshold, or with a range in which it cannot tell.

    Args:
        model, threshold, benchmark, far, unsure, channels, pixels: see :func:`compare`.
    Raises:
        ValueError: not a model, no such benchmark, or a threshold that no score of this model can have.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        threshold: float | None = None,
        benchmark: str | None = None,
        far: float | None = None,
        unsure: float | None = None,
        channels: str | None = None,
        pixels: str | None = None,
    ):
        _check_threshold(threshold, benchmark, far, unsure)
        self.name, self.network, results = _open(model, channels, pixels)
        self.opened, run = (self.network, results), self.network.run
        self.measure = "P(Yes)" if self.network.encoder.yes_no else "cosine"
        if self.measure == "P(Yes)" and threshold is not None and threshold < 0:
            raise ValueError(f"--threshold={threshold}: {model} answers with P(Yes), which lies between 0 and 1")
        self.flip_sum = api.flips(self.network, results)
        self.drawings = model is not None and _knows_drawings_only(Path(model), run)
        self.threshold, self.far, self.measured_on, self.lower = threshold, None, None, None
        self.notes: list[str] = []
        if threshold is not None:
            self.notes += self._hints(threshold, results)
        elif model is not None and results.get("benchmarks"):
            self._measure(Path(model), results, benchmark, far, unsure)
        elif asked := [f"--{key}={value}" for key, value in zip(RULES, (benchmark, far, unsure)) if value is not None]:
            raise ValueError(f"{asked[0]}: {self.name} has no results.json with benchmarks; give --threshold")
        elif model is None:
            self.threshold = default_model.THRESHOLD
            self.notes.append(default_model.ORIGIN)

    def _measure(
        self, workdir: Path, results: dict[str, Any], benchmark: str | None, far: float | None, unsure: float | None
    ) -> None:
        """Take the thresholds that were measured on a benchmark."""
        with _of_this_model(workdir, results, self.network.run):
            self.threshold, self.far, self.measured_on = operating_points.measured(workdir, results, benchmark, far)
            if unsure is not None:
                self.lower = operating_points.lower(workdir, results, self.measured_on["benchmark"], unsure)
                self.lower["has_range"] = self.lower["threshold"] < self.threshold

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
            "face", "pictures", "comparisons", "caution", "notes", "verdict", "lower"}. "measure" is "cosine", or
            "P(Yes)" of a model that answers. "verdict" is "same person", "different persons" or "cannot tell", and then
            "same" is None. Without a threshold it, "same" and "verdict" are None; "far", its 95% Wilson interval and
            "measured_on" are None unless the threshold was measured. "lower" is None without `unsure`, otherwise that
            of :func:`fvjax.evals.operating_points.lower` and "has_range", whether it is below the threshold. "pictures"
            has each picture's size, faces and chosen faces; "comparisons" each chosen face of a with each of b, by
            number, and "score" is the highest of them.
        Raises:
            ValueError: no picture, no face in it, or a file that cannot be written.
        """
        _check_target(save, (a, b))
        pictures = [each if isinstance(each, Picture) else read_picture(each) for each in (a, b)]
        chosen = [picture.chosen(face) for picture in pictures]
        scores = self._scores(*(picture.faces.crops[which] for picture, which in zip(pictures, chosen)))
        best = np.unravel_index(np.argmax(scores), scores.shape)
        score = float(scores[best])
        result: dict[str, Any] = {
            "score": score,
            "measure": self.measure,
            "threshold": self.threshold,
            "same": self._is_same(score),
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
            "notes": [*self.notes],
            "verdict": None,
            "lower": self.lower,
        }
        result["verdict"] = verdict(result)
        if self.drawings and not all(picture.is_crop for picture in pictures):
            result["caution"] = f"{self.name} was trained on drawings of faces: its scores of photographs mean nothing"
        if save is not None:
            best_faces = [which[number] for which, number in zip(chosen, best)]
            files.replace_file(Path(save), pair_picture.draw(pictures, best_faces, caption(result)))
        return result

    def _is_same(self, score: float) -> bool | None:
        """Decide on a score; None without a threshold, and in the range in which the model cannot tell."""
        if self.threshold is None:
            return None
        if score >= self.threshold:
            return True
        is_unsure = self.lower is not None and score >= self.lower["threshold"]
        return None if is_unsure else False

    def _scores(self, a: NDArray, b: NDArray) -> NDArray:
        """Score each crop of a, uint8 [n, 112, 112, 3], with each of b: float32 [n, m]."""
        rows, columns = np.indices((len(a), len(b))).reshape(2, -1)
        if self.network.encoder.yes_no:
            return self.network.p_same(a[rows], b[columns]).reshape(len(a), len(b))
        crops = np.concatenate([a, b])
        embeddings = verification.embed(self.network.embed, [(crops, len(crops))], flip_sum=self.flip_sum)
        pairs = SimpleNamespace(a=rows, b=len(a) + columns)
        return verification.scores(embeddings, pairs).reshape(len(a), len(b))

    def _hints(self, threshold: float, results: dict[str, Any]) -> list[str]:
        """Compare a threshold that a user gave with the one that was measured, if there is one."""
        if not results.get("benchmarks"):
            return []
        workdir = Path(self.name)
        try:
            with _of_this_model(workdir, results, self.network.run):
                measured, far, origin = operating_points.measured(workdir, results, None)
        except ValueError:
            return []  # what cannot be trusted is no comparison
        hint = f"for comparison: on {origin['benchmark']}, threshold {measured:.4f} was measured for FAR {far:g}"
        if self.measure == "cosine" and threshold > measured + FAR_ABOVE:
            hint += f"; {threshold:g} is far above it, and this model's scores are cosines, not probabilities"
        return [hint]


def _open(
    model: str | Path | None, channels: str | None, pixels: str | None
) -> tuple[str, api.Model | foreign.ForeignModel, dict[str, Any]]:
    """Open a model; return its name, the model, and its results.json or {}."""
    is_file = model is not None and Path(model).suffix.lower() == ".onnx"
    if not is_file and (channels or pixels):
        raise ValueError("--channels and --pixels say what an ONNX file reads: give one as --model, or leave them out")
    if model is None:
        foreign.require_onnxruntime()  # before anything is downloaded
        file, reads = default_model.fetch(), (default_model.CHANNELS, default_model.PIXELS)
        return default_model.NAME, foreign.ForeignModel(*foreign.of_onnx(file, *reads)), {}
    if is_file:
        embedder = foreign.of_onnx(Path(model), channels or "rgb", pixels or "-1..1")
        return str(model), foreign.ForeignModel(*embedder), {}
    return str(model), *api.open_directory(Path(model))


def _check_threshold(
    threshold: float | None, benchmark: str | None, far: float | None = None, unsure: float | None = None
) -> None:
    for name, value in zip(RULES, (benchmark, far, unsure), strict=True):
        if threshold is not None and value is not None:
            raise ValueError(f"--threshold and --{name}: give one, a benchmark is where a threshold comes from")
    for name, rate in (("far", far), ("unsure", unsure)):
        if rate is not None and not 0 < rate < 1:
            raise ValueError(f"--{name}={rate:g}: choose a rate above 0 and below 1")
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
        weights = foreign_workdir.model_path(path) if run is None else Path(shipped.weights(run.config.init_from))
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


@contextmanager
def _of_this_model(workdir: Path, results: dict[str, Any], run: api.Run | None) -> Iterator[None]:
    """Report results.json in one line if it is of another checkpoint than `run`, or lacks what is read from it."""
    file = workdir / "results.json"
    again = f"evaluate again (--workdir={workdir} --mode=eval) or give --threshold"
    try:
        if run is not None:
            measured, current = (results["step"], results["base_hash"][:8]), (run.step, run.base_hash[:8])
            if measured != current:
                raise ValueError(f"{file} is of (step, base) {measured}, the newest checkpoint is {current}; {again}")
        yield
    except KeyError as error:
        raise ValueError(f"{file} lacks {error}, so another version of fvjax wrote it; {again}") from None


@startup.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    about = "Do two photographs show one person? Crops of 112x112 are taken as they are; see --face for others."
    parser = startup.Parser(prog="python -m fvjax.verify", description=about, allow_abbrev=False)
    parser.add_argument("a", metavar="A.jpg")
    parser.add_argument("b", metavar="B.jpg")
    what = "a workdir of a run or of fvjax evaluate, a checkpoint, or an ONNX file; default: OpenCV's SFace, downloaded"
    parser.add_argument("--model", metavar="DIR|FILE.onnx", help=what)
    parser.add_argument("--benchmark", metavar="NAME", help="whose threshold; default: the first unseen in training")
    parser.add_argument("--threshold", type=float, metavar="X", help="same person from this score on")
    parser.add_argument("--far", type=float, metavar="X", help="the threshold's false accept rate (default: 0.001)")
    what = "cannot tell below the threshold of --far, as long as at most this share of genuine pairs scores lower"
    parser.add_argument("--unsure", type=float, metavar="X", help=what)
    parser.add_argument("--channels", choices=foreign.CHANNELS, help="of an ONNX file (rgb)")
    parser.add_argument("--pixels", choices=list(foreign.PIXELS), help="likewise (-1..1)")
    parser.add_argument("--face", choices=CHOICES, default="centre", help="of several in a picture (%(default)s)")
    parser.add_argument("--save", metavar="FILE.png", help="draw both pictures with faces, score and verdict")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    logging.set_verbosity(logging.WARNING)
    options = vars(parser.parse_args(argv))
    as_json = options.pop("json")
    result = compare(**options)
    print(json.dumps(result) if as_json else text(result))
    return 0


if __name__ == "__main__":
    startup.run(main)
