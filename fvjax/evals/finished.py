"""Read what an evaluation has left in a work directory: its config, its figures and the scores of its pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvjax.evals import pair_scores
from fvjax.evals.pair_scores import PairScores


@dataclass(frozen=True)
class FinishedRun:
    """A run that was evaluated.

    Attributes:
        workdir: its work directory.
        settings: config.json: of a training run the whole config, of a foreign model what identifies it.
        results: results.json.
    """

    workdir: Path
    settings: dict[str, Any]
    results: dict[str, Any]

    @property
    def pair_benchmarks(self) -> list[str]:
        """The benchmarks of pairs of faces, in order."""
        return [name for name, entry in self.results["benchmarks"].items() if "n_pairs" in entry]

    @property
    def is_foreign(self) -> bool:
        """Whether this is the evaluation of a model that is not fvjax's (`python -m fvjax.evaluate`)."""
        return "embedder" in self.settings

    def evaluation(self, benchmark: str) -> dict[str, Any]:
        """Return when and how a benchmark was evaluated; {} if an older version wrote the results."""
        return self.results["benchmarks"][benchmark].get("evaluation", self.results.get("evaluation", {}))

    def scores(self, benchmark: str) -> PairScores:
        """Read the score of every pair. Raises ValueError: no file, of other data than results.json, or no pairs."""
        if "n_pairs" not in self.results["benchmarks"][benchmark]:
            raise ValueError(
                f"{self.workdir}: benchmark {benchmark} is not of pairs of faces, which alone are compared"
            )
        if self.is_foreign:
            again = f"python -m fvjax.evaluate --workdir={self.workdir}, with the flags of the first time"
        else:
            again = f"python -m fvjax.main --workdir={self.workdir} --mode=eval"
        return pair_scores.of_benchmark(self.workdir, self.results, benchmark, again)


def read_run(workdir: Path) -> FinishedRun:
    """Read the config and the results of a run. Raises ValueError: it is not the work directory of a finished one."""
    if not (workdir / "config.json").is_file() and (rows := sorted(f.parent for f in workdir.glob("*/results.json"))):
        raise ValueError(f"{workdir} holds several runs; name them: {' '.join(map(str, rows))}")
    settings, results = _read(workdir / "config.json"), _read(workdir / "results.json")
    if not isinstance(results.get("benchmarks"), dict):
        raise ValueError(f"{workdir}/results.json has no benchmarks, so there are no figures")
    return FinishedRun(workdir, settings, results)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return short names for work directories: their last parts, as many as tell them apart."""
    for parts in range(1, 10):
        names = ["/".join(path.resolve().parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path.resolve()) for path in paths]


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file}: no such file, so {file.parent} is not the work directory of a finished run")
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: not what a run writes")
    return found
