"""How a VLM that answers is judged: by questions with options, and by the loss of held-out answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fvjax.config import ChatConfig, DataConfig, EvalConfig
from fvjax.console import progress, say
from fvjax.data.conversation_plan import ConversationPlan
from fvjax.data.conversations import Format, Piece, Reader, Size, measure, piece
from fvjax.data.readers import facexbench_store
from fvjax.data.readers.facexbench import Question
from fvjax.data.stores.conversations import Conversation, ConversationStore
from fvjax.evals import facexbench, facexbench_answers, facexbench_tables, questions
from fvjax.evals.choices import option_letters
from fvjax.evals.questions import Answered
from fvjax.losses.accumulation import Inputs, Variables
from fvjax.models.encoder import Encoder
from fvjax.tasks.dialogue import Dialogue, Prompt
from fvjax.tasks.predictor import Predictor, Trained
from fvjax.tasks.task import Evaluator, Report, Validation

Entries = dict[str, dict[str, Any]]
CAPTION = (
    "'generated': the text that the model writes is the right answer; 'chosen': the right option is the one that it "
    "finds most probable; with 95% Wilson intervals. 'majority': always the most frequent answer to each kind of "
    "question; 'random': expected from guessing."
)


class Settings(Protocol):
    """What an evaluation needs of the task."""

    name: str
    data: DataConfig
    eval: EvalConfig
    chat: ChatConfig
    workdir: Path

    format: cached_property[Format]
    eval_format: cached_property[Format]

    @property
    def benchmarks(self) -> dict[str, Path]: ...

    def sum_of_losses(self, encoder: Encoder, variables: Variables, inputs: Inputs) -> tuple[jax.Array, jax.Array]: ...

    def sizes(self, store: ConversationStore, format: Format, title: str) -> list[Size]: ...


def check(benchmarks: Mapping[str, Path], during: Sequence[str]) -> dict[str, str]:
    """Open every benchmark, so that problems show before training; return their hashes, as "data of NAME".

    Raises ValueError: one is missing, or has a question without options or whose answer is none of them.
    """
    if unknown := set(during) - set(benchmarks):
        raise ValueError(f"config.eval.during: no benchmark {sorted(unknown)}; there are {sorted(benchmarks)}")
    hashes = {}
    for name, path in benchmarks.items():
        store = ConversationStore(path, "test")
        if is_facexbench(store):
            facexbench_store.questions(store)
        else:
            for i in range(len(store)):
                question(store, i)
        hashes[f"data of {name}"] = store.data_hash
    return hashes


def is_facexbench(store: ConversationStore) -> bool:
    """Tell whether a store was made of FaceXBench's questions, which have rules of their own."""
    return facexbench_store.BENCHMARK in store.manifest


def question(store: ConversationStore, i: int) -> Conversation:
    """Return record `i` of a store of questions. Raises ValueError if it does not have options and an answer."""
    record = store.conversation(i)
    options, answer = record.meta.get("options"), record.meta.get("answer")
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options) or answer not in options:
        raise ValueError(
            f"{store.path} record {i} ({record.source}): a question needs meta options (texts) and answer (one of "
            f"them), it has {options!r:.80} and {answer!r:.80}"
        )
    return record


def prompt(format: Format, store: ConversationStore, i: int, answer: str | None = None) -> Prompt:
    """Return record `i` without its last answer, or with `answer` in its place."""
    record = store.conversation(i)
    messages = record.messages[:-1] + ([] if answer is None else [{"role": "assistant", "content": answer}])
    sizes = store.picture_sizes[i]
    changed = Conversation(messages, record.pictures, record.source, record.meta)

    def load() -> Piece:
        return piece(format, messages, store.images(i))

    return Prompt(measure(format, changed, sizes), load)


class ConversationEvaluator(Evaluator):
    """Judges states of one run."""

    def __init__(self, task: Settings, encoder: Encoder, predictor: Predictor):
        self.task, self.predictor = task, predictor
        size = task.eval.batch_size
        self.dialogue = Dialogue(encoder, task.eval_format, predictor.compile, predictor.put, size)
        self.losses = predictor.compile(partial(task.sum_of_losses, encoder))

    def entries(self, state: Trained, title: str, only: Sequence[str] = ()) -> Entries:
        chosen = {name: path for name, path in self.task.benchmarks.items() if not only or name in only}
        entries = {}
        for name, path in chosen.items():
            store = ConversationStore(path, "test")
            ask = self.ask_facexbench if is_facexbench(store) else self.ask
            entries[name] = ask(state, store, f"{title}: {name}")
        return entries

    def ask_facexbench(self, state: Trained, store: ConversationStore, title: str) -> dict[str, Any]:
        """Ask FaceXBench's questions in both of its ways; answers are kept in the work directory file by file."""
        format = self.task.eval_format
        asked = facexbench_store.questions(store)

        def prompts(some: list[Question]) -> list[Prompt]:
            return [prompt(format, store, one.record) for one in some if one.record is not None]

        def generate(some: list[Question]) -> list[tuple[str, bool]]:
            answers = self.dialogue.generate(state, prompts(some), self.task.chat.max_new_tokens)
            return [(answer.text, answer.cut) for answer in answers]

        def letters(some: list[Question]) -> list[np.ndarray]:
            logits = self.dialogue.next_logits(state, prompts(some))
            return [letter_probabilities(row, format, len(one.options)) for row, one in zip(logits, some)]

        fingerprint = self._fingerprint(state, store)
        folder = self.task.workdir / "answers" / fingerprint
        track = partial(_track_files, title)
        written = jax.process_index() == 0
        predictions = facexbench_answers.evaluate(asked, generate, letters, folder, fingerprint, track, write=written)
        return facexbench.entry(asked, predictions, data_hash=store.data_hash)

    def _fingerprint(self, state: Trained, store: ConversationStore) -> str:
        """Say what answers depend on: the step of this run, and a hash of base, questions and settings."""
        format, chat = self.task.eval_format, self.task.chat
        settings = [format.template, format.system, format.max_tiles, format.tile_rule, chat.max_new_tokens]
        settings += [format.hide_pictures, self.predictor.base_hash]
        digest = hashlib.sha256(f"{settings} {store.data_hash}".encode()).hexdigest()[:16]
        return f"step_{int(state.step)}_{digest}"

    def ask(self, state: Trained, store: ConversationStore, title: str) -> dict[str, Any]:
        """Ask all questions of a store, and return its entry in results.json."""
        numbers = range(len(store))
        records = [question(store, i) for i in numbers]
        prompts = [prompt(self.task.eval_format, store, i) for i in numbers]
        limit = self.task.chat.max_new_tokens
        generated = self.dialogue.generate(state, prompts, limit, track=_track(f"{title}: answers"))
        chosen = self.choose(state, store, records, prompts, title)
        answered = [
            Answered(
                str(record.meta.get("tag", "")), tuple(record.meta["options"]), record.meta["answer"], *written, option
            )
            for record, written, option in zip(records, generated, chosen)
        ]
        return questions.entry(answered, store.data_hash)

    def choose(
        self,
        state: Trained,
        store: ConversationStore,
        records: Sequence[Conversation],
        prompts: Sequence[Prompt],
        title: str,
    ) -> list[str]:
        """Return the most probable option of each question."""
        format = self.task.eval_format
        pairs = [(i, option) for i, record in enumerate(records) for option in record.meta["options"]]
        ids = {option: format.tokenizer.encode(option) for _, option in pairs}
        if all(len(tokens) == 1 for tokens in ids.values()):
            logits = self.dialogue.next_logits(state, prompts, _track(f"{title}: options"))
            scores = [float(logits[i, ids[option][0]]) for i, option in pairs]
        else:
            answered = [prompt(format, store, i, option) for i, option in pairs]
            scores = self.dialogue.log_likelihoods(state, answered, _track(f"{title}: options")).tolist()
        best: dict[int, tuple[float, str]] = {}
        for (i, option), score in zip(pairs, scores):
            if i not in best or score > best[i][0]:
                best[i] = score, option
        return [best[i][1] for i in range(len(records))]

    def during(self, state: Trained, title: str) -> dict[str, dict[str, float]]:
        return self.summary(self.entries(state, title, self.task.eval.during))

    def validate(self, state: Trained, title: str) -> Validation:
        """Measure the mean loss of the label tokens of the held-out conversations, and print some answers."""
        store = ConversationStore(self.task.data.val, "val")
        total = count = 0.0
        for batch in self._batches(store, title):
            inputs = {name: self.predictor.put(array) for name, array in batch.items()}
            losses, weight = self.losses(state, inputs)
            total, count = total + float(losses), count + float(weight)
        self._print_answers(state, store)
        entry = {"loss": total / count, "label_tokens": int(count), "conversations": len(store)}
        return Validation(-total / count, {**entry, "data_hash": store.data_hash})

    def _batches(self, store: ConversationStore, title: str) -> Any:
        sizes = self.task.sizes(store, self.task.format, f"{title}: measuring")
        longest = max(size.tokens for size in sizes)
        plan = ConversationPlan(
            np.array([size.tokens for size in sizes]),
            np.array([size.tiles for size in sizes]),
            self.task.eval.batch_size,
            0,
            buckets=sorted({*(b for b in self.task.chat.buckets if b < longest), longest}),
            by_length=True,
        )
        reader = Reader(store, self.task.format)
        size = plan.examples_per_step
        steps = progress(range(plan.steps_per_epoch), f"{title}: validation", plan.steps_per_epoch)
        return (reader(plan.examples(np.arange(step * size, (step + 1) * size))) for step in steps)

    def _print_answers(self, state: Trained, store: ConversationStore) -> None:
        count = min(self.task.chat.answers, len(store))
        prompts = [prompt(self.task.eval_format, store, i) for i in range(count)]
        if not prompts:
            return
        for i, answer in enumerate(self.dialogue.generate(state, prompts, self.task.chat.max_new_tokens)):
            asked, expected = store.conversation(i).messages[-2:]
            lines = f"{asked['content'].strip()}\n  model: {answer.text}\n  expected: {expected['content']}"
            say(Text(lines))  # not as markup: a model may write brackets

    def summary(self, entries: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        return {name: summary(entry) for name, entry in entries.items()}

    def report(self, state: Trained, before: Mapping[str, Any], validation: Mapping[str, Any] | None) -> Report:
        entries = self.entries(state, self.task.name)
        before = {n: e for n, e in before.items() if n in entries and e["data_hash"] == entries[n]["data_hash"]}
        results = {
            "benchmarks": {name: {**entry, "before_training": before.get(name)} for name, entry in entries.items()},
            "validation": validation,
        }
        return Report(results, self.summary(entries), comparison({self.task.name: results}), lambda workdir: None)


def summary(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a benchmark, or of a validation, that are followed during training."""
    if "loss" in entry:
        return {"loss": entry["loss"]}
    if "generation" in entry:  # FaceXBench
        return {way: entry[way]["overall"]["accuracy"] for way in ("generation", "letters")}
    return {way: entry[way]["value"] for way in ("generated", "chosen")}


def comparison(results: Mapping[str, Mapping[str, Any]]) -> Group:
    """Return the tables of several experiments' results.json: of questions with options, and of FaceXBench.

    A single experiment's FaceXBench has a table by sub-task, too.
    """
    table = Table("row", "benchmark", "questions", "generated", "chosen", "majority", "random", caption=CAPTION)
    of_facexbench: dict[str, Mapping[str, Any]] = {}
    details = []
    entries = [(row, name, entry) for row, result in results.items() for name, entry in result["benchmarks"].items()]
    several = len({name for _, name, entry in entries if "generation" in entry}) > 1
    for row, name, entry in entries:
        before = entry.get("before_training")
        if "generation" in entry:
            title = f"{row}, {name}" if several else row
            of_facexbench |= {f"{title}, before training": before} if before else {}
            of_facexbench[title] = entry
            details.append(facexbench_tables.details(entry, title))
        else:
            _add_questions(table, f"{row}, before training", name, before)
            _add_questions(table, row, name, entry)
    tables = [table] if table.row_count else []
    if of_facexbench:
        tables.append(facexbench_tables.comparison(of_facexbench))
    return Group(*tables, *(details if len(results) == 1 else ()))


def _add_questions(table: Table, row: str, name: str, figures: Mapping[str, Any] | None) -> None:
    """Add the row of a benchmark of questions with options, if there are figures."""
    if figures:
        shares = (_share(figures[key]) for key in ("generated", "chosen"))
        baselines = (f"{100 * figures[key]:.1f}" for key in ("majority", "random"))
        table.add_row(row, name, f"{figures['n']:,}", *shares, *baselines)


def letter_probabilities(logits: np.ndarray, format: Format, options: int) -> np.ndarray:
    """Return the probability of each option's letter as an answer's first token, float64 [options].

    A letter with a space before it ("A" and " A" are different tokens) counts as the letter.
    """
    scores = []
    for letter in option_letters(options):
        variants = [format.tokenizer.encode(text) for text in (letter, f" {letter}")]
        ids = sorted({variant[0] for variant in variants if len(variant) == 1})
        if not ids:
            raise ValueError(f"{format.tokenizer.path}: the letter {letter} is no single token, so it has no logit")
        scores.append(np.logaddexp.reduce(logits[ids].astype(np.float64)))
    scores = np.exp(np.array(scores) - max(scores))
    return scores / scores.sum()


def _share(figure: Mapping[str, Any]) -> str:
    low, high = figure["ci95"]
    return f"{100 * figure['value']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _track(title: str) -> Any:
    return lambda batches, count: progress(batches, title, count)


def _track_files(title: str, names: Sequence[str]) -> Any:
    return progress(names, title, len(names), unit="files")
