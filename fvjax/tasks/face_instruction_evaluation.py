"""How a model that answers about faces is judged: by its written answers, and by the loss of held-out ones.

Answers are parsed and compared with the labels by fvjax.evals.face_tasks. They stay in a file in the work directory,
from which `python -m fvjax.face_tasks` can judge them again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from rich.table import Table
from rich.text import Text

from fvjax.config import ChatConfig, DataConfig, EvalConfig
from fvjax.console import progress, say
from fvjax.data import chat, spliced
from fvjax.data.stores.conversations import ConversationStore
from fvjax.evals import face_tasks
from fvjax.losses.accumulation import Inputs, Variables
from fvjax.models.encoder import Encoder
from fvjax.tasks.predictor import Predictor, Trained
from fvjax.tasks.task import Evaluator, Report, Validation

Entries = dict[str, dict[str, Any]]
ROUND = 64  # rows are filled up to a multiple of so many tokens, so that few shapes are compiled
CAPTION = (
    "Figures of parsed answers, with 95% intervals; 'constant': the best answer that is always the same. The age's "
    "mean absolute error counts an answer without an age as the median age."
)
# The figures that are printed for each task; the first is followed during training.
FIGURES = {
    "expression": ("war", "uar"),
    "action_units": ("mean_f1",),
    "attributes": ("mean_accuracy",),
    "age": ("mae_unparsed_as_median",),
    "deepfake": ("accuracy",),
}


class Settings(Protocol):
    """What an evaluation needs of the task."""

    name: str
    data: DataConfig
    eval: EvalConfig
    chat: ChatConfig
    workdir: Path

    format: cached_property[spliced.Format]
    eval_format: cached_property[spliced.Format]

    @property
    def benchmarks(self) -> dict[str, Path]: ...

    def sum_of_losses(self, encoder: Encoder, variables: Variables, inputs: Inputs) -> tuple[jax.Array, jax.Array]: ...

    def sizes(self, store: ConversationStore, format: spliced.Format, title: str) -> list[spliced.Size]: ...


def check(benchmarks: Mapping[str, Path], during: Sequence[str]) -> dict[str, str]:
    """Open every benchmark, so that problems show before training; return their hashes, as "data of NAME".

    Raises ValueError: one is missing or has a record without a task and a label, or two records of one source and task.
    """
    if unknown := set(during) - set(benchmarks):
        raise ValueError(f"config.eval.during: no benchmark {sorted(unknown)}; there are {sorted(benchmarks)}")
    hashes = {}
    for name, path in benchmarks.items():
        store = ConversationStore(path, "test")
        for i in range(len(store)):
            _question(store, i, "")
        hashes[f"data of {name}"] = store.data_hash
    return hashes


def _question(store: ConversationStore, i: int, answer: str) -> face_tasks.Answer:
    """Return record `i` with an answer to its question. Raises ValueError if it has no known task, or no label."""
    record = store.conversation(i)
    task, label = record.meta.get("task"), record.meta.get("label")
    if task not in FIGURES or label is None:
        raise ValueError(
            f"{store.path} record {i} ({record.source}): meta needs a task of {', '.join(FIGURES)} and a label, it has "
            f"{task!r:.40} and {label!r:.40}"
        )
    asked = record.messages[-2]["content"].replace("<image>", "").replace("<video>", "").strip()
    group = str(record.meta.get("identity", ""))
    return face_tasks.Answer(record.source, task, label, answer, question=asked, group=group)


class Answering:
    """Writes answers to the questions of stores, with one model in any of its states."""

    def __init__(self, encoder: Encoder, format: spliced.Format, predictor: Predictor, batch_size: int, limit: int):
        self.encoder, self.format, self.predictor = encoder, format, predictor
        self.batch_size, self.limit = batch_size, limit
        self.stop = chat.stop_ids(format.template, format.tokenizer)
        self._generate = predictor.compile(self._continue)

    def _continue(self, variables: Variables, tokens: Any, media: Any, lengths: Any) -> tuple[jax.Array, jax.Array]:
        settings = {"max_tokens": self.limit, "eos": self.stop}
        return self.encoder.continue_conversation(variables, tokens, media, None, lengths, **settings)

    def answers(self, state: Trained, store: ConversationStore, numbers: Sequence[int], title: str) -> list[str]:
        """Answer the last question of some records greedily."""
        out: dict[int, str] = {}
        for chosen, batch, lengths in self._batches(store, numbers, title):
            put = self.predictor.put
            media = {name: put(batch[name]) for name in batch if name.startswith(("image", "video"))}
            media = {n: x for n, x in media.items() if batch[f"{n.split('_')[0].rstrip('s')}s"].shape[1]}
            ids, counts = self._generate(state, put(batch["tokens"]), media, put(lengths))
            for i, row, count in zip(chosen, np.asarray(ids), np.asarray(counts)):
                ended = row[count - 1] in self.stop
                out[i] = self.format.tokenizer.decode(row[: count - ended].tolist()).strip()
        return [out[i] for i in numbers]

    def _batches(
        self, store: ConversationStore, numbers: Sequence[int], title: str
    ) -> Iterator[tuple[list[int], dict[str, np.ndarray], np.ndarray]]:
        """Yield (records, arrays, lengths) of `batch_size` rows; rows of like media stand together.

        What is missing in the last batch of a kind is filled up with its last record.
        """
        reader = spliced.Reader(store, self.format)
        kinds: dict[tuple[int, int], list[int]] = {}
        for i in numbers:
            size = spliced.measure(self.format, store.conversation(i))
            kinds.setdefault((size.images, size.videos), []).append(i)
        batches = [
            (kind, some[start : start + self.batch_size])
            for kind, some in sorted(kinds.items())
            for start in range(0, len(some), self.batch_size)
        ]
        for (images, videos), some in progress(batches, title, len(batches)):
            pieces = [reader.prompt(i) for i in some]
            pieces += pieces[-1:] * (self.batch_size - len(some))
            lengths = np.array([len(piece.ids) for piece in pieces], np.int32)
            room = -(-int(lengths.max()) // ROUND) * ROUND
            rows = [[piece] for piece in pieces]
            yield some, spliced.pack_rows(rows, self.format, room, images, videos), lengths


class FaceInstructionEvaluator(Evaluator):
    """Judges states of one run."""

    def __init__(self, task: Settings, encoder: Encoder, predictor: Predictor):
        self.task, self.predictor = task, predictor
        size, limit = task.eval.batch_size, task.chat.max_new_tokens
        self.answering = Answering(encoder, task.eval_format, predictor, size, limit)
        self.losses = predictor.compile(partial(task.sum_of_losses, encoder))

    def entries(self, state: Trained, title: str, only: Sequence[str] = ()) -> Entries:
        chosen = {name: path for name, path in self.task.benchmarks.items() if not only or name in only}
        return {name: self._ask(state, name, ConversationStore(path, "test"), title) for name, path in chosen.items()}

    def _ask(self, state: Trained, name: str, store: ConversationStore, title: str) -> dict[str, Any]:
        """Ask all questions of a store, keep the answers, and return the entry of results.json."""
        numbers = range(len(store))
        answers = self.answering.answers(state, store, numbers, f"{title}: {name}")
        rows = [_question(store, i, answer) for i, answer in enumerate(answers)]
        if jax.process_index() == 0:
            folder = self.task.workdir / "answers"
            folder.mkdir(parents=True, exist_ok=True)
            face_tasks.write_answers(folder / f"{name}_step_{int(state.step)}.jsonl", rows)
        return {"n": len(store), "tasks": figures(rows), "data_hash": store.data_hash}

    def during(self, state: Trained, title: str) -> dict[str, dict[str, float]]:
        return self.summary(self.entries(state, title, self.task.eval.during))

    def validate(self, state: Trained, title: str) -> Validation:
        """Measure the mean loss of the label tokens of the held-out conversations, and print some answers."""
        store = ConversationStore(self.task.data.val, "val")
        total = count = 0.0
        for batch in self._validation_batches(store, title):
            losses, weight = self.losses(state, {name: self.predictor.put(array) for name, array in batch.items()})
            total, count = total + float(losses), count + float(weight)
        self._print_answers(state, store, title)
        entry = {"loss": total / count, "label_tokens": int(count), "conversations": len(store)}
        return Validation(-total / count, {**entry, "data_hash": store.data_hash})

    def _validation_batches(self, store: ConversationStore, title: str) -> Iterator[dict[str, np.ndarray]]:
        sizes = self.task.sizes(store, self.task.format, f"{title}: measuring")
        longest = max(size.tokens for size in sizes)
        tokens, images, videos = (np.array([size[name] for size in sizes]) for name in (0, 2, 3))
        buckets = sorted({*(b for b in self.task.chat.buckets if b < longest), longest})
        plan = spliced.Plan(tokens, images, videos, self.task.eval.batch_size, 0, buckets=buckets, by_length=True)
        reader = spliced.Reader(store, self.task.format)
        size = plan.examples_per_step
        for step in progress(range(plan.steps_per_epoch), f"{title}: validation", plan.steps_per_epoch):
            yield reader(plan.examples(np.arange(step * size, (step + 1) * size)))

    def _print_answers(self, state: Trained, store: ConversationStore, title: str) -> None:
        numbers = range(min(self.task.chat.answers, len(store)))
        for i, answer in zip(numbers, self.answering.answers(state, store, numbers, title) if numbers else ()):
            asked, expected = store.conversation(i).messages[-2:]
            lines = f"{asked['content'].strip()}\n  model: {answer}\n  expected: {expected['content']}"
            say(Text(lines))  # not as markup: a model may write brackets

    def summary(self, entries: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        return {
            name: {task: one[FIGURES[task][0]]["value"] for task, one in entry["tasks"].items()}
            for name, entry in entries.items()
        }

    def report(self, state: Trained, before: Mapping[str, Any], validation: Mapping[str, Any] | None) -> Report:
        entries = self.entries(state, self.task.name)
        before = {n: e for n, e in before.items() if n in entries and e["data_hash"] == entries[n]["data_hash"]}
        results = {
            "benchmarks": {name: {**entry, "before_training": before.get(name)} for name, entry in entries.items()},
            "validation": validation,
        }
        return Report(results, self.summary(entries), comparison({self.task.name: results}), lambda workdir: None)


def figures(rows: Sequence[face_tasks.Answer]) -> dict[str, Any]:
    """Return the figures of each task that occurs, as :func:`fvjax.evals.face_tasks.score` does."""
    by_task: dict[str, list[face_tasks.Answer]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    return {
        task: face_tasks.score(task, some, [face_tasks.parse(row) for row in some]) for task, some in by_task.items()
    }


def comparison(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return one table of several experiments' results.json, a line for each task and figure."""
    table = Table("row", "benchmark", "task", "questions", "unparsed", "figure", "value", "constant", caption=CAPTION)
    for row, result in results.items():
        for name, entry in result["benchmarks"].items():
            for title, one in ((f"{row}, before training", entry.get("before_training")), (row, entry)):
                for task, each in (one or {"tasks": {}})["tasks"].items():
                    for figure in FIGURES[task]:
                        table.add_row(title, name, task, *_cells(each, figure))
    return table


def _cells(entry: Mapping[str, Any], figure: str) -> tuple[str, ...]:
    """Return the cells of one figure of a task: questions, unparsed share, its name, its value, the constant answer."""
    low, high = entry[figure]["ci95"]
    constant = entry["constant"].get({"accuracy": "war", "mae_unparsed_as_median": "mae"}.get(figure, figure))
    shown = f"{entry[figure]['value']:.3f} ({low:.3f} to {high:.3f})"
    always = "" if constant is None else f"{constant:.3f}"
    return f"{entry['n']:,}", f"{100 * entry['unparsed']['value']:.1f}%", figure, shown, always
