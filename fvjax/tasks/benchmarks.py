"""Face verification benchmarks: run them with any scores, and report the results as JSON, table and plots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from fvjax import errors
from fvjax.config import BenchmarkConfig, DataConfig, EvalConfig
from fvjax.console import progress, say
from fvjax.data import pairs as draw
from fvjax.data import pipeline
from fvjax.data.names import normal as normal_name
from fvjax.data.stores import Pairs, Store, check_folds, read_pairs
from fvjax.evals import baselines, pair_scores, plots, verification
from fvjax.evals.pair_scores import PairScores
from fvjax.tasks import faces
from fvjax.tasks.task import Report

Embed = Callable[[np.ndarray], np.ndarray]  # uint8 [b,H,W,3] -> float32 [b,D], or [b,pools,D]
Entries = dict[str, dict[str, Any]]  # by benchmark, as in results.json
Scored = dict[str, PairScores]  # by benchmark
ACCURACIES = ("accuracy@best_threshold", "accuracy@far=1e-3")
BASELINES = {"raw pixels, cosine": baselines.pixel, "colour histogram, cosine": baselines.histogram}


class Score(Protocol):
    """How a model judges pairs of a store."""

    def __call__(self, store: Store, pairs: Pairs, title: str) -> np.ndarray:
        """Return float32 [M], higher for the same person; `title` names the progress bar."""
        ...


@dataclass(frozen=True)
class Benchmarks:
    """The benchmarks of a run: those of its config, and with embedded synthetic data the held-out identities."""

    eval: EvalConfig
    data: DataConfig
    seed: int  # of the bootstrap and of validation pairs
    workdir: Path
    failed: dict[str, str] = field(default_factory=dict)  # benchmark -> why it could not be evaluated

    @property
    def chosen(self) -> dict[str, BenchmarkConfig]:
        out = dict(self.eval.benchmarks)
        if self.data.synthetic.identities:
            store = faces.synthetic_store(self.data.synthetic, self.workdir, "test")
            out["synthetic"] = BenchmarkConfig(str(store), "synthetic", self.data.names)
        return out

    @property
    def stores(self) -> dict[str, str]:
        """Where the data of each benchmark are."""
        return {name: benchmark.store for name, benchmark in self.chosen.items()}

    def check(self, image_size: tuple[int, int]) -> dict[str, str]:
        """Open every benchmark, so that problems show before anything is trained.

        Returns the hashes of their records and of their pairs, as "data of NAME" and "pairs of NAME". Raises
        ValueError: something is missing or broken, or its images are not of `image_size`.
        """
        chosen = self.chosen
        if unknown := set(self.eval.during) - set(chosen):
            raise ValueError(f"config.eval.during: no benchmark {sorted(unknown)}; there are {sorted(chosen)}")
        hashes = {}
        for name, benchmark in chosen.items():
            store = Store(benchmark.store, "test")
            faces.check_size(store, image_size)
            check_folds(read_pairs(benchmark.store, benchmark.pairs), f"benchmark {name}: {benchmark.store}")
            hashes[f"data of {name}"] = store.data_hash
            hashes[f"pairs of {name}"] = store.manifest["benchmarks"][benchmark.pairs]["hash"]
        return hashes

    def check_validation(self, image_size: tuple[int, int]) -> str:
        """Open the validation data; return their hash, or "" if the config names none. Errors as in :meth:`check`."""
        if not self.data.val:
            return ""
        store = Store(self.data.val, "val")
        faces.check_size(store, image_size)
        draw.validation(store.labels, self.data.val_pairs, self.seed)
        return store.data_hash

    def run(
        self, score: Score, *, seen: set[str], title: str, only: tuple[str, ...] = (), bootstrap: int | None = None
    ) -> tuple[Entries, Scored]:
        """Score the pairs of every benchmark, or `only` of some.

        Args:
            seen: names of the identities trained on. A benchmark that follows the same naming (config.data.names)
                reports how many of its identities are among them, and gets an `identity_disjoint` entry if there are
                any. For other benchmarks that is not known, and both are None.
            bootstrap: resamples behind the intervals, None: the config's.
        Returns:
            entries and scores of those that could be evaluated; the others are in `failed`.
        Raises:
            ValueError: none could be evaluated, or one of several processes failed.
        """
        entries, scored = {}, {}
        seen = {normal_name(identity) for identity in seen}
        for name, benchmark in self.chosen.items():
            if only and name not in only:
                continue
            try:
                entries[name], scored[name] = self._run(benchmark, score, seen, f"{title}: {name}", bootstrap)
            except (ValueError, OSError) as error:
                text = errors.line(error)
                if jax.process_count() > 1:  # the others may be in the midst of it
                    raise ValueError(f"benchmark {name}: {text}") from error
                self.failed[name] = text
                say(f"benchmark {name} could not be evaluated: {text}")
        if self.failed and not entries:
            name, text = next(iter(self.failed.items()))
            raise ValueError(f"benchmark {name}: {text}")
        return entries, scored

    def _run(
        self, benchmark: BenchmarkConfig, score: Score, seen: set[str], title: str, bootstrap: int | None
    ) -> tuple[dict[str, Any], PairScores]:
        """Return the entry and the scores of one benchmark; arguments as of :meth:`run`, `seen` in normal form."""
        store, pairs = Store(benchmark.store, "test"), read_pairs(benchmark.store, benchmark.pairs)
        scores, prepared = score(store, pairs, title), store.manifest["benchmarks"][benchmark.pairs]
        comparable = seen and benchmark.names and benchmark.names == self.data.names
        present = [normal_name(identity) in seen for identity in store.identities]
        known = np.flatnonzero(present).tolist() if comparable else []
        entry = verification.entry(
            scores,
            pairs,
            prepared,
            store.data_hash,
            seen=known or None,
            bootstrap=self.eval.bootstrap if bootstrap is None else bootstrap,
            seed=self.seed,
        )
        entry["identities_seen_in_training"] = len(known) if comparable else None
        return entry, PairScores.of(scores, pairs, store.data_hash, prepared["hash"])

    def validate(self, score: Score, title: str) -> dict[str, Any]:
        """Verify pairs of config.data.val, always the same ones, in ten folds; return an entry as of a benchmark."""
        store = Store(self.data.val, "val")
        pairs = draw.validation(store.labels, self.data.val_pairs, self.seed)
        scores = score(store, pairs, f"{title}: validation")
        benchmark = {"policy": "drawn from config.data.val", "failure_to_acquire": 0}
        entry = verification.entry(scores, pairs, benchmark, store.data_hash, bootstrap=0)
        return {**entry, "identities_seen_in_training": len(store.identities)}

    def baselines(self, seen: set[str]) -> dict[str, Entries]:
        """Measure what the benchmarks give away without any learning, by the same pairs and protocol."""
        scores = {row: CosineScore(self.eval, embed) for row, embed in BASELINES.items()}
        return {row: self.run(score, seen=seen, title=row)[0] for row, score in scores.items()}


class CosineScore:
    """Scores pairs by the cosine of their embeddings; an image is embedded once, when a pair first asks for it.

    Args:
        embed: a batch of images -> their embeddings, or several embeddings of each image.
    """

    def __init__(self, eval: EvalConfig, embed: Embed):
        self.eval, self.embed = eval, embed
        self._known: dict[Path, tuple[np.ndarray, np.ndarray]] = {}  # store -> (is embedded [N], embeddings [N, …])

    def __call__(self, store: Store, pairs: Pairs, title: str, pool: int | None = None) -> np.ndarray:
        """`pool`: which of an image's several embeddings counts."""
        embeddings = self._embeddings(store, np.union1d(pairs.a, pairs.b), title)
        return verification.scores(embeddings if pool is None else embeddings[:, pool], pairs)

    def _embeddings(self, store: Store, used: np.ndarray, title: str) -> np.ndarray:
        """Return [N, …] by record number, of which the `used` ones are known."""
        embedded = self._known[store.path][0] if store.path in self._known else np.zeros(len(store), bool)
        new = np.setdiff1d(used, np.flatnonzero(embedded))
        if len(new):
            batches = pipeline.eval_batches(store, new, self.eval.batch_size)
            total = -(-len(new) // self.eval.batch_size)
            bar = progress(batches, title, total, count=len(new), unit="images")
            values = verification.embed(self.embed, bar, flip_sum=self.eval.flip_sum)
            if store.path not in self._known:
                self._known[store.path] = embedded, np.zeros((len(store), *values.shape[1:]), values.dtype)
            embedded[new], self._known[store.path][1][new] = True, values
        return self._known[store.path][1]


# ---- the report ------------------------------------------------------------------------------------------------------


def summary(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the mean accuracies by benchmark."""
    return {name: {key: entry[key]["mean"] for key in ACCURACIES} for name, entry in entries.items()}


def report(name: str, results: dict[str, Any], scored: Scored, stores: Mapping[str, str] | None = None) -> Report:
    """Make the report of one run from its part of results.json.

    Args:
        name: of the run.
        scored: the scores of each benchmark's pairs.
        stores: where the data of each benchmark are, for results.json.
    """
    rows = [(f"{name} (ids seen)", "validation", results["validation"])] if results["validation"] else []
    for benchmark, entry in results["benchmarks"].items():
        rows += _rows(name, benchmark, entry, results)

    def save(folder: Path) -> None:
        if scored:  # there are none with validation alone
            curves = {benchmark: (its.scores, its.same) for benchmark, its in scored.items()}
            plots.roc(folder / "roc.png", curves)
            plots.det(folder / "det.png", curves)
        for benchmark, its in scored.items():
            its.write(pair_scores.file_of(folder, benchmark))

    if groups := verification.over_groups(results["benchmarks"]):
        results["groups"] = groups
    table = verification.table(rows, verification.groups_line(groups)) if rows else None
    return Report(results, summary(results["benchmarks"]), table, save, {"stores": dict(stores)} if stores else {})


def _rows(name: str, benchmark: str, entry: Mapping[str, Any], results: Mapping[str, Any]) -> Iterable[tuple]:
    """The table's rows for one benchmark: baselines, before training, the run, its other pools, unseen people only."""
    rows = [(row, benchmark, its[benchmark]) for row, its in results["baselines"].items() if benchmark in its]
    if entry["before_training"]:
        rows.append((f"{name}, before training", benchmark, entry["before_training"]))
    seen = entry["identities_seen_in_training"]
    rows.append((name + (f" ({seen} ids seen)" if seen else ""), benchmark, entry))
    pools = results["pools"].items()
    rows += [(f"{name}, {pool}", benchmark, its[benchmark]) for pool, its in pools if benchmark in its]
    if entry["identity_disjoint"]:
        rows.append((f"{name}, unseen ids only", benchmark, entry["identity_disjoint"]))
    return rows


def comparison(results: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return one table of several finished experiments' results.json, by row."""
    without_learning = next((r["baselines"] for r in results.values() if r["baselines"]), {})
    rows = []
    for name in dict.fromkeys(name for r in results.values() for name in r["benchmarks"]):
        rows += [(row, name, its[name]) for row, its in without_learning.items() if name in its]
        rows += [(row, name, r["benchmarks"][name]) for row, r in results.items() if name in r["benchmarks"]]
    return verification.table(rows)
