"""What the tasks that verify faces share: pairs as examples, the benchmarks as judge, rules for their settings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fvjax.config import CompatConfig, Config, PromptConfig
from fvjax.data.pairs import PairsPlan
from fvjax.data.stores import Store
from fvjax.losses.accumulation import Inputs
from fvjax.tasks import benchmarks, faces
from fvjax.tasks.benchmarks import Benchmarks, Entries, Score, Scored
from fvjax.tasks.predictor import Trained
from fvjax.tasks.task import Batch, Evaluator, Examples, Report, Shown, Task, Validation


class FaceVerification(Task):
    """A task whose examples are pairs of faces; how pairs are drawn is up to the subclass."""

    images_per_example = 2
    single_images: str  # what becomes of an identity with one image, for the log

    def __init__(self, config: Config, workdir: Path):
        self.name, self.seed, self.workdir = config.name, config.seed, workdir
        self.data, self.prompt, self.loss = config.data, config.prompt, config.loss
        self.pairs_per_step, self.dtype = config.batch_size // 2, config.dtype
        self.negatives_group, self.pooling = config.compat.negatives_group, config.model.pooling
        self.benchmarks = Benchmarks(config.eval, config.data, config.seed, workdir)
        self.image_size = faces.image_size(config.data, self.benchmarks.chosen)

    @abstractmethod
    def plan(self, labels: np.ndarray) -> PairsPlan:
        """Return which pairs make up each step; `labels` int64 [N], the identity of each record."""

    def open_store(self) -> Store | None:
        return faces.open_store(self.data, self.workdir)

    def examples(self, store: Store) -> Examples:
        faces.check_size(store, self.image_size)
        return faces.pair_examples(store, self.plan(store.labels), self.single_images)

    def pictures(self, batch: Mapping[str, np.ndarray], count: int) -> list[Shown]:
        examples = max(1, count // self.images_per_example)
        few = {name: array[:examples] for name, array in batch.items()}
        images = np.asarray(jax.jit(self.prepare)(few).get("images", 0.0))
        if images.dtype != np.uint8:  # of a subclass that prepares no pictures
            return []
        return [Shown(list(each), self.caption(int(label))) for each, label in zip(images, few["labels"])]

    def caption(self, label: int) -> str:
        """Say in words what the label of an example means."""
        return f"identity {label}"

    def batch_shapes(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return faces.pair_shapes(count, self.image_size)

    def data_hashes(self) -> dict[str, str]:
        return self.benchmarks.check(self.image_size)

    def validation_hash(self) -> str:
        return self.benchmarks.check_validation(self.image_size)

    def prepare(self, batch: Batch) -> Inputs:
        return faces.augment(batch, self.seed, self.data.flip)

    comparison = staticmethod(benchmarks.comparison)


class VerificationEvaluator(Evaluator):
    """Judges by the benchmarks; how a state scores pairs is up to the subclass."""

    def __init__(self, name: str, benchmarks: Benchmarks, seen: set[str]):
        self.name, self.benchmarks, self.seen = name, benchmarks, seen

    @abstractmethod
    def score(self, state: Trained) -> Score: ...

    def run(self, state: Trained, title: str) -> tuple[Entries, Scored, dict[str, Entries]]:
        """Return entries and scores of every benchmark, and the entries of further poolings."""
        entries, scored = self.benchmarks.run(self.score(state), seen=self.seen, title=title)
        return entries, scored, {}

    def entries(self, state: Trained, title: str) -> Entries:
        return self.benchmarks.run(self.score(state), seen=self.seen, title=title)[0]

    def during(self, state: Trained, title: str) -> dict[str, dict[str, float]]:
        only = self.benchmarks.eval.during
        entries, _ = self.benchmarks.run(self.score(state), seen=self.seen, title=title, only=only, bootstrap=0)
        return benchmarks.summary(entries)

    def validate(self, state: Trained, title: str) -> Validation:
        entry = self.benchmarks.validate(self.score(state), title)
        return Validation(entry["accuracy@best_threshold"]["mean"], entry)

    def summary(self, entries: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        return benchmarks.summary(entries)

    def describe(self, summary: Mapping[str, Mapping[str, float]]) -> str:
        best = benchmarks.ACCURACIES[0]
        return ", ".join(f"{name} {100 * figures[best]:.2f}% best threshold" for name, figures in summary.items())

    def report(self, state: Trained, before: Mapping[str, Any], validation: Mapping[str, Any] | None) -> Report:
        self.benchmarks.failed.clear()  # of earlier evaluations
        entries, scored, pools = self.run(state, self.name)
        before = {n: e for n, e in before.items() if n in entries and e["data_hash"] == entries[n]["data_hash"]}
        results = {
            "benchmarks": {name: {**entry, "before_training": before.get(name)} for name, entry in entries.items()},
            "pools": pools,  # other ones than the config's own
            "baselines": self.benchmarks.baselines(self.seen) if self.benchmarks.eval.baselines else {},
            "validation": validation,
            "flip_sum": self.benchmarks.eval.flip_sum,  # of these figures: --mode=eval may have asked for another
        }
        if self.benchmarks.failed:
            results["failed"] = dict(self.benchmarks.failed)
        return benchmarks.report(self.name, results, scored, self.benchmarks.stores)


# ---- settings --------------------------------------------------------------------------------------------------------


def check_pairs(batch_size: int, parts: int, compat: CompatConfig, kind: str) -> None:
    """Raise ValueError unless a batch is made of whole pairs that divide into accumulation's parts."""
    if batch_size % 2:
        raise ValueError(f"config.batch_size={batch_size} must be even: it is made of pairs")
    if compat.batch_norm_group and kind != "iresnet":
        raise ValueError("config.compat.batch_norm_group: only an iresnet has batch statistics")
    if batch_size // 2 % parts:
        problem = f"its {batch_size // 2} pairs do not divide into config.accumulation={parts} parts"
        raise ValueError(f"config.batch_size={batch_size}: {problem}")
    images = batch_size // parts if compat.last_micro_batch else batch_size
    for key in ("negatives_group", "batch_norm_group"):
        group = getattr(compat, key)
        if group and (group % 2 or images % group):
            raise ValueError(f"config.compat.{key}={group}: must be even and divide the {images} images of a step")


def check_prompt(prompt: PromptConfig, kind: str, has_tokenizer: bool, answers: bool) -> None:
    """Raise ValueError for a prompt that contradicts itself, the model or the absence of a tokenizer."""
    vlm = kind == "vlm"
    if (prompt.text and prompt.ids) or (not vlm and (prompt.text or prompt.ids)):
        raise ValueError("config.prompt: give text or ids, and both only to a model of kind vlm")
    if not has_tokenizer and (prompt.text or (answers and not prompt.yes_no_ids)):
        raise ValueError(
            "config.prompt: without init_from there is no tokenizer; give ids, and for pair_answer yes_no_ids"
        )
