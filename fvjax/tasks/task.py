"""What a task is: something to learn, and how it is judged.

A task owns its examples, its loss, its predictions and its evaluation. Everything else (the loop, accumulation, meshes,
checkpoints, planning, FLOP counting) asks the task through the methods below and never which task it is. A task of your
own is a subclass of :class:`Task` in any module, named `module:Class` in `config.task`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fvjax.config import Config, Rules
from fvjax.data.pipeline import Read
from fvjax.data.plans import Plan
from fvjax.data.stores.store import RecordStore
from fvjax.data.tokenizers import Tokenizer
from fvjax.losses.accumulation import Inputs, Objective, Variables
from fvjax.models.encoder import Encoder
from fvjax.tasks.predictor import Predictor, Trained

Batch = Mapping[str, jax.Array]  # arrays of a step's examples, see fvjax.data.pipeline.train_batches


@dataclass(frozen=True)
class Examples:
    """What a task trains on: a store, which of its records make up each step, and a line about them for the log."""

    store: RecordStore
    plan: Plan
    description: str
    features: tuple[str, ...] = ()  # arrays of a face store's records that a batch holds beside the images
    identities: Sequence[str] = ()  # names of those trained on, to find them in benchmarks
    read: Read | None = None  # for another store: from the plan's columns to a batch, see pipeline.train_batches

    @property
    def contents(self) -> dict[str, Any]:
        """What a batch holds, as arguments of :func:`fvjax.data.pipeline.train_batches`."""
        return {"features": self.features, "read": self.read}


class Text(NamedTuple):
    """Token ids that a language model is given: of the prompt, and of the answers that it chooses between."""

    prompt: tuple[int, ...] = ()
    answers: tuple[int, ...] = ()


class Shown(NamedTuple):
    """A training example for people to look at: its pictures uint8 [H, W, 3], all of one size, and a line below."""

    pictures: Sequence[np.ndarray]
    caption: str


class Validation(NamedTuple):
    """`score` decides which checkpoint is the best, `entry` goes into results.json."""

    score: float
    entry: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """The outcome of a run.

    Attributes:
        results: what goes into results.json beside the facts of the run; "benchmarks" holds an entry for each.
        summary: figures by benchmark for evaluations.jsonl.
        table: something that rich can print, or None.
        save: writes what belongs to these results beside results.json into its folder: plots, scores …
        origin: what results.json notes beside the evaluation's date, such as where the data are. It changes no figure.
    """

    results: dict[str, Any]
    summary: dict[str, dict[str, float]]
    table: Any
    save: Callable[[Path], None]
    origin: dict[str, Any] = field(default_factory=dict)


class Evaluator(ABC):
    """Judges states of one run. What it compiles once serves all of them."""

    @abstractmethod
    def entries(self, state: Trained, title: str) -> dict[str, Any]:
        """Return an entry for each benchmark, as complete as in results.json; `title` names a progress bar."""

    @abstractmethod
    def during(self, state: Trained, title: str) -> dict[str, dict[str, float]]:
        """Return figures by benchmark while training goes on, for evaluations.jsonl."""

    @abstractmethod
    def validate(self, state: Trained, title: str) -> Validation:
        """Measure how good a checkpoint is; only called if the config names validation data."""

    @abstractmethod
    def summary(self, entries: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Return the figures of some entries that go into evaluations.jsonl, by benchmark."""

    def describe(self, summary: Mapping[str, Mapping[str, float]]) -> str:
        """Say a summary in one line for the terminal."""
        texts = (f"{n} {k} {v:.4g}" for n, figures in summary.items() for k, v in figures.items())
        return ", ".join(texts)

    @abstractmethod
    def report(self, state: Trained, before: Mapping[str, Any], validation: Mapping[str, Any] | None) -> Report:
        """Evaluate the final state. `before`: the entries from before training, {} if there are none."""


class Task(ABC):
    """Something to learn.

    Attributes:
        images_per_example: images that a training example holds; batch sizes in a config count images.
        images_per_prediction: images of one prediction; `eval.batch_size` counts predictions.
        unit: what `config.batch_size` counts, for rates.
        image_size: height and width of the pictures.
        head_sharding: rules for the task's own parameters that come before `config.sharding`.
        head_predicts: whether predictions use the task's own parameters; if not, whoever uses what a run has trained
            does without them, and they are not exported.
    """

    images_per_example: int = 1
    images_per_prediction: int = 1
    unit: str = "images"
    image_size: tuple[int, int]
    head_sharding: Rules = ()
    head_predicts: bool = True

    @classmethod
    def check(cls, config: Config) -> None:
        """Raise ValueError for settings that do not go with this task, before anything is read."""
        del config

    @abstractmethod
    def __init__(self, config: Config, workdir: Path):
        """Make the task of a run. Reads nothing larger than a manifest."""

    # ---- examples

    @abstractmethod
    def open_store(self) -> RecordStore | None:
        """Open (or make) the training data; None: the config names none. All of several processes call this."""

    @abstractmethod
    def examples(self, store: Any) -> Examples:
        """Return what each step trains on. Raises ValueError: the store cannot be used."""

    def show(self, store: Any, count: int) -> Any:
        """Return so many training examples as the model gets them, for rich to print. Raises ValueError: it cannot."""
        raise ValueError(f"config.log.show={count}: this task has no examples that can be printed; use 0")

    def pictures(self, batch: Mapping[str, np.ndarray], count: int) -> list[Shown]:
        """Return the first examples of a batch as the model gets them, with about `count` pictures altogether.

        batch: as a step gets it, on the host, its first rows. A task that returns [] has nothing to show.
        """
        del batch, count
        return []

    @abstractmethod
    def batch_shapes(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a batch of `count` examples, for tracing, planning and counting."""

    def steps_per_epoch(self, examples_per_step: int) -> int:
        """Return how many steps an epoch has if that is known without the data, otherwise 0."""
        del examples_per_step
        return 0

    def data_hashes(self) -> dict[str, str]:
        """Open all evaluation data, so that problems show before training. Return hashes, by what they are of.

        Raises ValueError naming what is missing or wrong.
        """
        return {}

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint must agree on beside data and settings, as JSON: a tokenizer's files …"""
        return {}

    def validation_hash(self) -> str:
        """Return the hash of the data that checkpoints are chosen by, "" if there is none."""
        return ""

    # ---- loss

    def text(self, tokenizer: Callable[[], Tokenizer]) -> Text:
        """Return the token ids of the prompt and of the answers; `tokenizer` opens the base's when called."""
        del tokenizer
        return Text()

    def init_head(self, key: jax.Array, encoder: Encoder) -> dict[str, Any]:
        """Return parameters of the task's own, a nested dict; the network's variables then hold them under "head"."""
        del key, encoder
        return {}

    def init_head_stats(self) -> dict[str, Any]:
        """Return running statistics that the loss keeps, a dict; the network's variables hold them as "head_stats"."""
        return {}

    @abstractmethod
    def prepare(self, batch: Batch) -> Inputs:
        """Turn a batch into the inputs of the loss, on the device: augmentation, random keys."""

    def counts(self, batch: Batch) -> dict[str, jax.Array]:
        """Return how much a batch holds beside examples, by name as in metrics.jsonl; "tokens" gives tokens/s."""
        del batch
        return {}

    @abstractmethod
    def objective(self, encoder: Encoder) -> Objective:
        """Return the loss and how it is differentiated, see :mod:`fvjax.losses.accumulation`."""

    # ---- prediction and evaluation

    @abstractmethod
    def predict(self, encoder: Encoder, variables: Variables, batch: Batch) -> jax.Array:
        """Return what the model says about the examples of a batch, without augmentation: embeddings, answers …"""

    @abstractmethod
    def evaluator(self, encoder: Encoder, predictor: Predictor, seen: set[str]) -> Evaluator:
        """Return the judge of this run's states.

        Args:
            predictor: compiles functions of the model's variables, see :class:`fvjax.tasks.predictor.Predictor`.
            seen: names of the identities (or other units) that the run trains on.
        """

    @staticmethod
    @abstractmethod
    def comparison(results: Mapping[str, Mapping[str, Any]]) -> Any:
        """Return one table, for rich to print, of several experiments' results.json, by row."""
