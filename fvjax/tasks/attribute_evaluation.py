"""How attributes are judged: figures in three averages, average precision, and how often rules are broken."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from fvjax.attribute_rules import RuleTable
from fvjax.config import AttributesConfig, DataConfig, EvalConfig
from fvjax.console import progress
from fvjax.data import attributes, maps, pipeline
from fvjax.data.stores import Store
from fvjax.evals import attributes as figures
from fvjax.evals.wide_table import WideTable
from fvjax.losses.accumulation import Variables
from fvjax.models.encoder import Encoder
from fvjax.tasks.predictor import Predictor, Trained
from fvjax.tasks.task import Evaluator, Report, Validation

Entries = dict[str, dict[str, Any]]
CAPTION = (
    "Accuracy and F1: means over attributes, with 95% intervals by identity. 'F1 samples': mean over pictures. 'mAP': "
    "mean average precision. 'majority': accuracy of each attribute's more frequent label. 'broken': pictures whose "
    "predicted attributes break a rule."
)
COLUMNS = ("set", "pictures", "accuracy", "majority", "F1 macro", "F1 samples", "F1 micro", "mAP", "broken")
RULES = "violations"


class Settings(Protocol):
    """What an evaluation needs of the task."""

    name: str
    data: DataConfig
    eval: EvalConfig
    settings: AttributesConfig

    columns: cached_property[attributes.Attributes]
    rules: cached_property[RuleTable | None]

    @property
    def benchmarks(self) -> dict[str, Path]: ...

    def open_benchmark(self, name: str) -> Store: ...

    def logits(
        self, encoder: Encoder, variables: Variables, images: jax.Array, maps: jax.Array | None
    ) -> jax.Array: ...


class AttributeEvaluator(Evaluator):
    def __init__(self, task: Settings, encoder: Encoder, predictor: Predictor):
        self.task, self.put = task, predictor.put
        self.probabilities = predictor.compile(
            lambda variables, images, classes: jax.nn.sigmoid(task.logits(encoder, variables, images, classes))
        )

    def predict(self, state: Trained, store: Store, title: str) -> np.ndarray:
        """Return the probabilities of a store's pictures, float32 [N, K]."""
        size, numbers, done = self.task.eval.batch_size, np.arange(len(store)), []
        others = np.roll(numbers, 1) if self.task.settings.shuffle_maps else numbers
        batches = pipeline.eval_batches(store, numbers, size)
        for i, (images, count) in enumerate(progress(batches, title, -(-len(store) // size), unit="batches")):
            classes = None
            if self.task.settings.maps:
                ids = others[i * size : i * size + count]
                classes = store.read(ids, [maps.FEATURE])[maps.FEATURE]
                classes = self.put(np.concatenate([classes, np.repeat(classes[-1:], size - count, axis=0)]))
            done.append(np.asarray(self.probabilities(state, self.put(images), classes))[:count])
        return np.concatenate(done)

    def _run(self, state: Trained, title: str, bootstrap: int) -> tuple[Entries, dict[str, np.ndarray]]:
        entries: Entries = {}
        predictions = {}
        for name in self.task.benchmarks:
            store = self.task.open_benchmark(name)
            predictions[name] = self.predict(state, store, f"{title}, {name}")
            columns = attributes.of(store)
            labels = attributes.labels(store)
            entries[name] = figures.entry(
                predictions[name],
                labels,
                columns.names,
                labelled=labels != attributes.UNLABELLED,
                identities=store.labels if columns.has_identities else None,
                table=self.task.rules,
                groups=columns.group_columns,
                bootstrap=bootstrap,
                data_hash=store.data_hash,
            )
        return entries, predictions

    def entries(self, state: Trained, title: str) -> dict[str, Any]:
        return self._run(state, title, self.task.eval.bootstrap)[0]

    def during(self, state: Trained, title: str) -> dict[str, dict[str, float]]:
        return self.summary(self._run(state, title, 0)[0])

    def validate(self, state: Trained, title: str) -> Validation:
        store = Store(self.task.data.val, "val")
        labels = attributes.labels(store)
        found = figures.metrics(self.predict(state, store, title), labels, labels != attributes.UNLABELLED)
        accuracy = float(found["mean_accuracy_over_attributes"])
        return Validation(accuracy, {"mean_accuracy_over_attributes": accuracy, "n": len(store)})

    def summary(self, entries: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        return {name: _summary(entry) for name, entry in entries.items()}

    def report(self, state: Trained, before: Mapping[str, Any], validation: Mapping[str, Any] | None) -> Report:
        entries, predictions = self._run(state, "attributes", self.task.eval.bootstrap)
        results: dict[str, Any] = {"benchmarks": entries}
        if validation:
            results["validation"] = validation
        rows = {f"{self.task.name}, before training": before} if before else {}
        shown = table({**rows, self.task.name: entries})

        def save(workdir: Path) -> None:
            for name, p in predictions.items():
                text = {"names": list(self.task.columns.names), "p": np.round(p.astype(float), 6).tolist()}
                (workdir / f"attributes_{name}.json").write_text(json.dumps(text))

        return Report(results, self.summary(entries), shown, save)


def _summary(entry: Mapping[str, Any]) -> dict[str, float]:
    out = {
        "accuracy": entry["mean_accuracy_over_attributes"]["value"],
        "f1": entry["macro"]["f1"]["value"],
        "map": entry["map"]["value"],
    }
    if entry.get(RULES):
        out["broken"] = entry[RULES]["rate"]["value"]
    return {name: value for name, value in out.items() if value is not None}


def comparison(results: Mapping[str, Mapping[str, Any]]) -> WideTable:
    """Return one table of several experiments' results.json, by row."""
    return table({row: found["benchmarks"] for row, found in results.items()})


def table(rows: Mapping[str, Mapping[str, Any]]) -> WideTable:
    """Return the table of some rows' entries, for rich to print."""
    out = WideTable("attributes", CAPTION, "row", COLUMNS)
    for row, entries in rows.items():
        for name, entry in entries.items():
            broken = _percent(entry[RULES]["rate"]) if entry.get(RULES) else "-"
            averages = [_percent(entry[average]["f1"]) for average in ("macro", "samples", "micro")]
            accuracy = _percent(entry["mean_accuracy_over_attributes"])
            cells = [accuracy, f"{100 * entry['majority']:.1f}", *averages, _percent(entry["map"]), broken]
            out.rows.append((row, name, f"{entry['n']:,}", *cells))
    return out


def _percent(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "-"
    text = f"{100 * figure['value']:.1f}"
    return f"{text} ({100 * figure['ci95'][0]:.1f}-{100 * figure['ci95'][1]:.1f})" if figure.get("ci95") else text
