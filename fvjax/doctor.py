"""`python -m fvjax.doctor --data=PATH [--model=DIR]`: is my pipeline broken?

Looks at a store, an insightface .bin or a folder of crops: colours, values, alignment and template, labels, pairs and
folds. With --model, a work directory of `python -m fvjax.main` or a checkpoint as `fvjax.load` takes it, also at how
the model's input is read, and at the threshold. Every finding comes with its evidence and its remedy; docs/doctor.md
explains them. Exit code 0 without findings, 1 with findings, 2 with one line on standard error for user errors.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from absl import logging
from numpy.typing import NDArray

from fvjax import errors
from fvjax.diagnosis.examination import MODEL_PAIRS, SAMPLE, Subject, examine
from fvjax.diagnosis.face_sets import open_faces
from fvjax.diagnosis.findings import Check


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
    subject = None
    if model is not None:
        name = benchmark or next(iter(faces.protocols), "")
        subject = open_subject(Path(model), name, threshold)
    return list(examine(faces, subject, benchmark=benchmark, sample=pictures, model_pairs=pairs))


def open_subject(path: Path, benchmark: str, threshold: float | None) -> Subject:
    """Open a model for :func:`diagnose`, with the threshold of its results.json for ``benchmark`` if none is given."""
    import jax  # here and not above: data alone need no jax
    import jax.numpy as jnp

    from fvjax import verify

    model, results = verify.open_model(path)
    encoder, variables = model.encoder, model.variables
    flip_sum = bool(results.get("flip_sum", model.run.config.eval.flip_sum)) if model.run else False
    embed = jax.jit(lambda variables, faces: encoder(variables, faces)[0])
    if encoder.yes_no:
        raise ValueError(f"{path} answers Yes or No about pairs; the doctor examines models that embed faces")

    def embed_all(faces: NDArray) -> NDArray:
        parts = [faces[start : start + model.batch_size] for start in range(0, len(faces), model.batch_size)]
        size = len(parts[0])
        padded = [np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)]) for part in parts]
        out = np.concatenate([np.asarray(embed(variables, jnp.asarray(part)), np.float64) for part in padded])
        return out[: len(faces)]

    def score(a: NDArray, b: NDArray) -> NDArray:
        embedded = []
        for faces in (a, b):
            values = embed_all(faces)
            values = values + embed_all(faces[:, :, ::-1]) if flip_sum else values
            embedded.append(values / np.linalg.norm(values, axis=1, keepdims=True).clip(1e-12))
        return (embedded[0] * embedded[1]).sum(1)

    if threshold is not None:
        return Subject(score, threshold, "--threshold")
    entry = results.get("benchmarks", {}).get(benchmark)
    if entry is None:
        return Subject(score)
    return Subject(score, entry["accuracy@best_threshold"]["threshold"], f"{path}/results.json")


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


class _Parser(argparse.ArgumentParser):
    """Raises ValueError for wrong arguments, so that they are reported in one line as all errors are."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see python -m fvjax.doctor --help")


def main(argv: Sequence[str] | None = None) -> int:
    parser = _Parser(prog="python -m fvjax.doctor", description="Is my pipeline broken?", allow_abbrev=False)
    parser.add_argument("--data", required=True, metavar="PATH", help="a store, an insightface .bin, a folder of crops")
    parser.add_argument("--model", metavar="DIR", help="a run's workdir, or a checkpoint")
    parser.add_argument("--benchmark", metavar="NAME", help="on which the model is examined; default: the first")
    parser.add_argument("--threshold", type=float, metavar="X", help="same person from this score on")
    parser.add_argument("--pictures", type=int, default=SAMPLE, metavar="N", help="how many are looked at")
    parser.add_argument("--pairs", type=int, default=MODEL_PAIRS, metavar="N", help="how many the model scores")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    logging.set_verbosity(logging.WARNING)
    try:
        options: dict[str, Any] = vars(parser.parse_args(argv))
        as_json = options.pop("json")
        checks = diagnose(**options)
    except (ValueError, OSError) as error:
        print("fvjax: error:", *errors.line(error).splitlines(), file=sys.stderr)
        return 2
    print(json.dumps({"checks": [asdict(check) for check in checks]}) if as_json else text(checks))
    return 1 if any(check.findings for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
