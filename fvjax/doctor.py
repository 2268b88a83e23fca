"""`python -m fvjax.doctor --data=PATH [--model=DIR]`: is my pipeline broken?

Looks at a store, an insightface .bin or a folder of crops: colours, values, alignment and template, labels, pairs and
folds. With --model, a work directory of `python -m fvjax.main` or a checkpoint as `fvjax.load` takes it, also at how
the model's input is read, and at the threshold. Every finding comes with its evidence and its remedy; docs/doctor.md
explains them. Exit code 0 without findings, 1 with findings, 2 with one line on standard error for user errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from absl import logging
from numpy.typing import NDArray

from fvjax import startup
from fvjax.diagnosis.examination import MODEL_PAIRS, SAMPLE, Subject, examine
from fvjax.diagnosis.face_sets import FaceSet, open_faces
from fvjax.diagnosis.findings import Check, Finding
from fvjax.evals import verification


def diagnose(
    data: str | Path,
    model: str | Path | None = None,
    *,
    benchmark: str | None = None,
    threshold: float | None = None,
    pictures: int = SAMPLE,
    pairs: int = MODEL_PAIRS,
) -> list[Check]:
    """Examine a set of faces, and a model on it.

    Args:
        data: a store, an insightface .bin or a folder of crops.
        model: a work directory or a checkpoint; None: the data alone.
        benchmark: of the data, the one on which the model is examined; None: the first.
        threshold: same person from this score on; None: that of the work directory's results.json for `benchmark`.
        pictures: how many are looked at. pairs: how many the model scores.
    Raises:
        ValueError: user errors, in one line.
    """
    if threshold is not None and model is None:
        raise ValueError("--threshold is checked against a model's scores: give --model")
    for name, number in (("pictures", pictures), ("pairs", pairs)):
        if number < 1:
            raise ValueError(f"--{name}={number}: at least one is needed")
    faces = open_faces(Path(data))
    if model is None:
        return list(examine(faces, benchmark=benchmark, sample=pictures))
    name = benchmark or next(iter(faces.protocols), "")
    from fvjax import api  # here and not above, because a look at data alone needs no jax

    opened, results = _open_model(Path(model))
    checks, measured = _check_results(Path(model), results, opened.run, faces, name)
    limit = measured if threshold is None else threshold
    origin = f"{model}/results.json" if threshold is None else "--threshold"
    subject = Subject(CosineOf(opened, api.flips(opened, results)), limit, origin)
    return [*examine(faces, subject, benchmark=benchmark, sample=pictures, model_pairs=pairs), *checks]


class CosineOf:
    """Scores pairs of pictures, float32 [M, 112, 112, 3] with values as from 0 to 255, by a model's cosine.

    Pictures need not be of bytes, so that the model can be given what another normalisation would have made of them.

    Args:
        model: a model that embeds faces. flip_sum: add the embedding of the mirrored picture.
    """

    def __init__(self, model: Any, flip_sum: bool):
        import jax  # here and not above, because a look at data alone needs none

        encoder = model.encoder
        self.variables, self.batch_size, self.flip_sum = model.variables, model.batch_size, flip_sum
        self._embed = jax.jit(lambda variables, faces: encoder(variables, faces)[0])

    def __call__(self, a: NDArray, b: NDArray) -> NDArray:
        first, second = (verification.embed(self._one, self._batches(x), flip_sum=self.flip_sum) for x in (a, b))
        rows = SimpleNamespace(a=np.arange(len(a)), b=np.arange(len(a)) + len(a))
        return verification.scores(np.concatenate([first, second]), rows)

    def _one(self, faces: NDArray) -> NDArray:
        return np.asarray(self._embed(self.variables, faces))

    def _batches(self, faces: NDArray) -> Iterator[tuple[NDArray, int]]:
        """Yield batches of one size, the last one filled up with its last picture, and how many of each count."""
        for start in range(0, len(faces), self.batch_size):
            part = faces[start : start + self.batch_size]
            yield np.concatenate([part, np.repeat(part[-1:], self.batch_size - len(part), 0)]), len(part)


def _open_model(path: Path) -> tuple[Any, dict[str, Any]]:
    """Open a model that embeds faces; return it with its results.json, or {}."""
    from fvjax import api, foreign_workdir  # which import jax

    if foreign_workdir.is_evaluated(path):
        raise ValueError(f"{path} holds an evaluation and no model; the doctor examines runs and checkpoints of fvjax")
    model, results = api.open_directory(path)
    if model.encoder.yes_no:
        raise ValueError(f"{path} answers Yes or No about pairs; the doctor examines models that embed faces")
    return model, results


def _check_results(
    path: Path, results: dict[str, Any], run: Any, faces: FaceSet, benchmark: str
) -> tuple[list[Check], float | None]:
    """Check that results.json is of this checkpoint and these data.

    Returns:
        the check, if there is a results.json with this benchmark; and the threshold that it measured for these data.
    """
    configured = run.config.eval.benchmarks if run else {}
    entries = {
        name: entry
        for name, entry in results.get("benchmarks", {}).items()
        if benchmark in (name, getattr(configured.get(name), "pairs", None))
    }
    if not entries:
        return [], None
    try:
        mine = [entry for entry in entries.values() if entry["data_hash"] == faces.data_hash]
        name, entry = next(iter(entries.items()))
        entry = mine[0] if mine else entry
        accuracy = entry["accuracy@best_threshold"]
        evidence = (
            f"{name}: {accuracy['mean']:.1%} of step {results['step']} on data {entry['data_hash'][:8]}; "
            f"the checkpoint is of step {run.step}, the data {faces.data_hash[:8] or 'of no store'}"
        )
        sound = bool(mine) and results["step"] == run.step
    except KeyError as error:
        raise ValueError(f"{path}/results.json lacks {error}, so another version of fvjax wrote it") from None
    if sound:
        return [Check("results.json", evidence)], accuracy["threshold"]
    problem = "results.json is of another checkpoint or of other data, and so is its threshold"
    remedy = f"evaluate again: python -m fvjax.main --config=… --workdir={path} --mode=eval"
    return [Check("results.json", evidence, (Finding("results-stale", problem, evidence, remedy),))], None


def text(checks: Sequence[Check]) -> str:
    """Describe the results for people."""
    lines = []
    for check in checks:
        state = "skipped" if check.skipped else "FINDING" if check.findings else "ok"
        lines.append(f"{state:<8} {check.name}: {check.evidence}")
    findings = [finding for check in checks for finding in check.findings]
    for finding in findings:
        lines += ["", f"[{finding.name}] {finding.problem}", f"  evidence: {finding.evidence}"]
        lines.append(f"  remedy: {finding.remedy}")
    count = f"{len(findings)} finding{'s' if len(findings) > 1 else ''}" if findings else "no findings"
    return "\n".join([*lines, "", count])


@startup.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = startup.Parser(prog="python -m fvjax.doctor", description="Is my pipeline broken?", allow_abbrev=False)
    parser.add_argument("--data", required=True, metavar="PATH", help="a store, an insightface .bin, a folder of crops")
    parser.add_argument("--model", metavar="DIR", help="a run's workdir, or a checkpoint")
    parser.add_argument("--benchmark", metavar="NAME", help="on which the model is examined; default: the first")
    parser.add_argument("--threshold", type=float, metavar="X", help="same person from this score on")
    parser.add_argument("--pictures", type=int, default=SAMPLE, metavar="N", help="how many are looked at")
    parser.add_argument("--pairs", type=int, default=MODEL_PAIRS, metavar="N", help="how many the model scores")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    logging.set_verbosity(logging.WARNING)
    options: dict[str, Any] = vars(parser.parse_args(argv))
    as_json = options.pop("json")
    checks = diagnose(**options)
    print(json.dumps({"checks": [asdict(check) for check in checks]}) if as_json else text(checks))
    return 1 if any(check.findings for check in checks) else 0


if __name__ == "__main__":
    startup.run(main)
