"""Test the task of conversations: a tiny model learns, in parts, packed and on any mesh, and is judged as by hand."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from fvjax import experiment, trees
from fvjax.config import base, benchmark, typed
from fvjax.console import console
from fvjax.data import face_questions, tiling
from fvjax.data.conversations import Reader, pack_rows, piece
from fvjax.data.stores.conversations import ConversationStore
from fvjax.parallel import sharding
from fvjax.tasks import conversation_evaluation
from fvjax.tasks.conversation import Conversation
from fvjax.tasks.dialogue import Answer
from fvjax.tasks.predictor import Predictor
from fvjax.training import preemption
from fvjax.training.step import Recipe, gradients
from tests.parts import check, recipe_of, start_of, task_of
from tests.test_conversation_store import chat, make, picture
from tests.test_preemption import AskedAtStep

TOKENIZER = Path("fvjax/pretrained/tiny_chat")


def config(**changes):
    """Return the config of a VLM of one layer each, all of which trains; a picture has at most four tiles."""
    c = base()
    c.name, c.task = "chat", "conversation"
    c.model.kind = "vlm"
    c.model.vision_transformer.update(
        {"image_size": 28, "patch_size": 14, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 16}
    )
    c.model.decoder.update(
        {"vocab": 512, "width": 16, "depth": 1, "heads": 4, "kv_heads": 2, "head_dim": 4, "mlp_dim": 16}
    )
    c.chat.update({"tokenizer": str(TOKENIZER), "system": "", "length": 128, "max_tiles": 3, "answers": 0})
    c.data.flip, c.batch_size, c.eval.batch_size = False, 8, 4
    c.mesh.data = 1
    for key, value in changes.items():
        *parents, last = key.split("__")
        functools.reduce(lambda at, name: at[name], parents, c)[last] = value
    return c


def conversation(c) -> Conversation:
    task = task_of(c)
    assert isinstance(task, Conversation)
    return task


# ---- eight conversations whose answers have 4 to 46 tokens

ANSWERS = (
    "Yes.",
    "No, not at all.",
    "It is Ann. " * 5,
    "Bob",
    "A scarf.",
    "Left " * 9,
    "Hm.",
    "Nothing but dark hair.",
)
WIDTHS = (28, 84, 28, 56, 28, 28, 84, 28)


def records(seed: int = 0) -> list:
    """Return records; another seed makes other pictures of the same sizes. The last one has no picture."""
    shown = [
        (chat("<image>\nWhat?", a), [picture(seed + i, width)], f"{i}.png", {})
        for i, (a, width) in enumerate(zip(ANSWERS[:-1], WIDTHS))
    ]
    return [*shown, (chat("Nothing to see here?", ANSWERS[-1]), [], "text", {})]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make(tmp_path_factory.mktemp("conversations") / "train", records())


def rows(store, format, *numbers: tuple[int, ...], length: int = 128, tiles: int = 8) -> dict[str, np.ndarray]:
    """Return rows of a store's conversations, "index" included."""
    width = max(map(len, numbers))
    ids = np.array([[*row, *[-1] * (width - len(row))] for row in numbers])
    size = len(numbers)
    columns = {"ids": ids, "length": np.full(size, length), "tiles": np.full(size, tiles)}
    return {**Reader(store, format)(columns), "index": np.arange(size)}


EACH = [(i,) for i in range(8)]
PACKED = [(2, 3, 4), (5, 0), (1, 6, 7), *[()] * 5]


def gradient(c, store, numbers, devices: int = 1, **mesh) -> tuple[float, dict[str, np.ndarray]]:
    """Return the loss of a batch before training, and its gradient by name."""
    check(c)
    c.mesh.update(mesh)
    where = sharding.make_mesh(c.mesh, jax.devices()[:devices])
    recipe = recipe_of(c, where)
    state, frozen = start_of(recipe, where), recipe.model.read_frozen()
    batch = sharding.batch(rows(store, conversation(c).format, *numbers), where)
    loss, _, grads = jax.jit(functools.partial(gradients, recipe))(state, frozen, batch)
    return float(loss), {name: np.asarray(g) for name, g in trees.flatten(grads).items()}


@pytest.fixture(scope="module")
def whole(store):
    """Return loss and gradient of the batch as a whole, with which several tests compare."""
    return gradient(config(), store, EACH)


def assert_equal(got, expected) -> None:
    assert got[0] == pytest.approx(expected[0], rel=1e-6)
    assert set(got[1]) == set(expected[1])
    for name, g in expected[1].items():
        assert np.linalg.norm(g) > 0, name
        distance = np.linalg.norm(got[1][name] - g) / np.linalg.norm(g)
        assert distance <= 1e-5, f"{name}: {distance:.1e}"


def test_a_batch_in_parts_is_the_whole_batch(store, whole):
    """Its parts have different numbers of label tokens, so the mean of their means would be another loss."""
    batch = rows(store, conversation(config()).format, *EACH)
    assert len({int((batch["targets"][part::4] >= 0).sum()) for part in range(4)}) == 4
    assert_equal(gradient(config(accumulation=4), store, EACH), whole)


def test_packed_conversations_do_not_see_each_other(store, whole):
    assert_equal(gradient(config(chat__packed=True), store, PACKED), whole)


SHARDED = (
    ("params/decoder/(embed|head)", ("tensor", "fsdp")),
    ("params/decoder/blocks/(attn/[qkv]|mlp/(gate|up))/kernel", (None, "fsdp", "tensor")),
    ("params/decoder/blocks/(attn/o|mlp/down)/kernel", (None, "tensor", "fsdp")),
    (".*", ()),
)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param({"data": 8, "fsdp": 1, "tensor": 1}, marks=pytest.mark.slow),
        pytest.param({"data": 1, "fsdp": 8, "tensor": 1}, marks=pytest.mark.slow),
        pytest.param({"data": 1, "fsdp": 1, "tensor": 8}, marks=pytest.mark.slow),
        {"data": 2, "fsdp": 2, "tensor": 2},
    ],
    ids=str,
)
def test_eight_devices_equal_one(store, whole, mesh):
    """The vocabulary is split over `tensor`, the decoder's matrices over `fsdp` and `tensor`."""
    assert_equal(gradient(config(sharding=SHARDED), store, EACH, devices=8, **mesh), whole)


# ---- one model before training, and what it finds


class Model(NamedTuple):
    recipe: Recipe
    state: Any
    predictor: Predictor
    losses: Any  # a batch -> (sum, number of label tokens)
    logits: Any  # tokens, tiles, places -> logits

    @property
    def task(self) -> Any:
        return self.recipe.task

    def loss(self, batch) -> float:
        total, count = self.losses(self.state, self.task.prepare(batch))
        assert count == (batch["targets"] >= 0).sum()
        return float(total / count)

    def logits_of(self, one) -> np.ndarray:
        """Return the logits of one conversation, float64 [tokens, vocab]."""
        batch = pack_rows([[one]], self.task.format, 128, 8)
        found = self.logits(self.state, batch["tokens"], batch["tiles"], batch["places"])
        return np.asarray(found, np.float64)[0, : len(one.rendered.ids)]


@pytest.fixture(scope="module")
def model() -> Model:
    recipe = recipe_of(config())
    mesh = sharding.one_device()
    predictor = Predictor(recipe.model.variables, recipe.model.read_frozen(), mesh)
    encoder, task = recipe.model.encoder, conversation(config())

    def logits(variables, *arrays):
        return encoder.logits(variables, encoder.read_conversation(variables, *arrays))

    losses = predictor.compile(functools.partial(task.sum_of_losses, encoder))
    return Model(recipe, start_of(recipe), predictor, losses, predictor.compile(logits))


def nll(model: Model, one) -> tuple[float, int]:
    """Return the summed loss of a conversation's label tokens in float64, and their number."""
    ids, learned = np.array(one.rendered.ids), np.array(one.rendered.label_mask)
    log_p = log_softmax(model.logits_of(one), axis=-1)
    return float(-sum(log_p[i - 1, ids[i]] for i in np.flatnonzero(learned))), int(learned.sum())


def pieces(store, format) -> list:
    return [piece(format, store.conversation(i).messages, store.images(i)) for i in range(len(store))]


@pytest.fixture(scope="module")
def expected(model, store) -> list[tuple[float, int]]:
    return [nll(model, one) for one in pieces(store, model.task.format)]


def test_the_loss_is_that_of_the_answers_tokens_alone(model, store, expected, whole):
    total, count = (sum(column) for column in zip(*expected))
    assert [n for _, n in expected] != sorted(n for _, n in expected)
    assert model.loss(rows(store, model.task.format, *EACH)) == pytest.approx(total / count, rel=1e-6)
    assert whole[0] == pytest.approx(total / count, rel=1e-6)
    mean_of_means = np.mean([loss / n for loss, n in expected])
    assert abs(mean_of_means - total / count) > 1e-4


def test_padding_and_the_order_of_rows_change_nothing(model, store):
    usual = rows(store, model.task.format, *EACH)
    assert model.loss(rows(store, model.task.format, *reversed(EACH))) == pytest.approx(model.loss(usual), rel=1e-6)
    longer = rows(store, model.task.format, *EACH[:5], (), *EACH[5:], *[()] * 7, length=192, tiles=16)
    assert model.loss(longer) == pytest.approx(model.loss(usual), rel=1e-6)


def test_the_control_sees_the_text_alone(model, store, tmp_path):
    """With hidden pictures another set of pictures gives the same batch, and it has another loss than seen pictures."""
    hidden = conversation(config(chat__hide_pictures=True))
    other = make(tmp_path / "other", records(seed=50))
    seen, unseen, same = (
        rows(one, format, *EACH)
        for one, format in ((store, model.task.format), (store, hidden.format), (other, hidden.eval_format))
    )
    for name in unseen:
        assert np.array_equal(unseen[name], same[name]), name
    assert np.array_equal(seen["tokens"], unseen["tokens"])
    assert abs(model.loss(unseen) - model.loss(seen)) > 1e-5
    assert abs(model.loss(rows(other, model.task.format, *EACH)) - model.loss(seen)) > 1e-5, "pictures are seen"


def test_validation_is_the_mean_over_all_label_tokens(model, tmp_path, expected):
    """Its batches have 4 and 3 conversations of similar length, so equal weights would give another figure."""
    chosen = (0, 1, 2, 3, 4, 5, 7)
    store = make(tmp_path / "val", [records()[i] for i in chosen], "val")
    task = conversation(config(data__val=str(store.path), chat__buckets=(32,)))
    evaluator = task.evaluator(model.recipe.model.encoder, model.predictor, set())
    score, entry = evaluator.validate(model.state, "")
    total, count = (sum(column) for column in zip(*(expected[i] for i in chosen)))
    assert entry["loss"] == pytest.approx(total / count, rel=1e-6)
    assert entry == {
        "loss": entry["loss"],
        "label_tokens": count,
        "conversations": 7,
        "data_hash": store.data_hash,
    }
    assert score == -entry["loss"], "a lower loss is better"
    assert evaluator.summary({"validation": entry}) == {"validation": {"loss": entry["loss"]}}
    assert task.validation_hash() == store.data_hash


def test_printed_answers_are_not_markup(model, tmp_path, monkeypatch):
    """A model may write brackets, which the terminal's library would take for markup, or for a mistake in it."""
    store = make(tmp_path / "val", records()[:1], "val")
    evaluator = conversation(config(data__val=str(store.path), chat__answers=1)).evaluator(
        model.recipe.model.encoder, model.predictor, set()
    )
    monkeypatch.setattr(evaluator.dialogue, "generate", lambda *_: [Answer("[/bold] [red]yes", False)])
    with console.capture() as captured:
        evaluator._print_answers(model.state, store)
    assert "  model: [/bold] [red]yes\n" in captured.get()


# ---- questions with options


def asked(*questions: tuple[str, tuple[str, ...], str]) -> list:
    return [
        (
            chat(f"<image>\n{text}", answer),
            [picture(i, WIDTHS[i])],
            f"q{i}",
            {"options": list(options), "answer": answer},
        )
        for i, (text, options, answer) in enumerate(questions)
    ]


WORDS = asked(("Glasses?", ("yes", "no"), "no"), ("Hair or not, what is it?", ("dark", "light", "no"), "dark"))
PHRASES = asked(("Glasses?", ("yes, two", "no"), "no"), ("Hair?", ("rather dark", "light"), "light"))


@pytest.mark.parametrize("questions", [WORDS, PHRASES], ids=["words", "phrases"])
def test_the_most_probable_option_is_chosen(model, tmp_path, questions):
    """Words of one token are compared by the logits after the prompt, others by the likelihood of the whole answer."""
    store = make(tmp_path / "test", questions, "test")
    task = conversation(config(eval__benchmarks={"mine": benchmark(str(store.path), "")}))
    evaluator = task.evaluator(model.recipe.model.encoder, model.predictor, set())
    best = []
    for i in range(len(store)):
        record, pictures = store.conversation(i), store.images(i)
        scores = {}
        for option in record.meta["options"]:
            one = piece(task.format, [*record.messages[:-1], {"role": "assistant", "content": option}], pictures)
            ids = np.array(one.rendered.ids)
            learned = np.flatnonzero(one.rendered.label_mask)
            log_p = log_softmax(model.logits_of(one), axis=-1)
            scores[option] = sum(log_p[p - 1, ids[p]] for p in (learned if questions is PHRASES else learned[:1]))
        best.append(max(scores, key=scores.__getitem__))
        assert len({round(s, 6) for s in scores.values()}) == len(scores)
    prompts = [conversation_evaluation.prompt(task.eval_format, store, i) for i in range(len(store))]
    records = [store.conversation(i) for i in range(len(store))]
    assert evaluator.choose(model.state, store, records, prompts, "") == best


def test_generated_answers_end_at_the_stop_token(model, tmp_path):
    """A stand-in for the network writes "no" and ends its turn, or writes on to the limit."""
    store = make(tmp_path / "test", WORDS, "test")
    format = model.task.eval_format
    no = format.tokenizer.encode("no")
    stop = format.tokenizer.added["<|im_end|>"]

    def generate(state, tokens, tiles, places, lengths):
        ids = np.zeros((len(tokens), 4), np.int32)
        ids[:, : len(no)] = no
        ids[np.asarray(lengths) > 20] = no[0]
        ids[np.asarray(lengths) <= 20, len(no)] = stop
        return ids, np.where(np.asarray(lengths) > 20, 4, len(no) + 1)

    evaluator: Any = model.task.evaluator(model.recipe.model.encoder, model.predictor, set())
    evaluator.dialogue._compile = lambda function: generate
    prompts = [conversation_evaluation.prompt(format, store, i) for i in range(2)]
    assert sorted(prompt.size.tokens > 20 for prompt in prompts) == [False, True]
    short, long = evaluator.dialogue.generate(model.state, prompts, 4)
    assert short == ("no", False)
    assert long == (format.tokenizer.decode([no[0]] * 4), True)


def test_a_benchmark_without_options_is_refused_by_its_record(store, tmp_path):
    test = make(tmp_path / "plain", records(), "test")
    c = config(eval__benchmarks={"plain": benchmark(str(test.path), "")})
    message = rf"{test.path} record 0 \(0.png\): a question needs meta options \(texts\) and answer .* None and None"
    with pytest.raises(ValueError, match=message):
        conversation(c).data_hashes()
    wrong = [(chat("Who?", "Ann"), [], "x", {"options": ["Bob", "Eve"], "answer": "Ann"})]
    test = make(tmp_path / "wrong", wrong, "test")
    with pytest.raises(ValueError, match=r"record 0 \(x\): .* it has \['Bob', 'Eve'\] and 'Ann'"):
        conversation_evaluation.check({"mine": test.path}, [])
    with pytest.raises(ValueError, match=r"config.eval.during: no benchmark \['other'\]; there are \['mine'\]"):
        conversation_evaluation.check({"mine": test.path}, ["other"])


def figures(generated: float, chosen: float, n: int = 1200) -> dict[str, Any]:
    shares = {
        name: {"value": v, "ci95": [v - 0.01, v + 0.02]} for name, v in (("generated", generated), ("chosen", chosen))
    }
    return {"n": n, **shares, "majority": 0.5, "random": 0.3333}


def test_the_cells_of_the_table():
    entry = {**figures(0.5, 0.61), "before_training": figures(0.0, 0.333)}
    results = {"lora": {"benchmarks": {"faces": entry}}, "frozen": {"benchmarks": {"faces": figures(0.01, 0.3, 7)}}}
    table: Any
    (table,) = conversation_evaluation.comparison(results).renderables
    assert [column.header for column in table.columns] == [
        "row",
        "benchmark",
        "questions",
        "generated",
        "chosen",
        "majority",
        "random",
    ]
    assert list(zip(*(column.cells for column in table.columns))) == [
        ("lora, before training", "faces", "1,200", "0.0 (-1.0 to 2.0)", "33.3 (32.3 to 35.3)", "50.0", "33.3"),
        ("lora", "faces", "1,200", "50.0 (49.0 to 52.0)", "61.0 (60.0 to 63.0)", "50.0", "33.3"),
        ("frozen", "faces", "7", "1.0 (0.0 to 3.0)", "30.0 (29.0 to 32.0)", "50.0", "33.3"),
    ]


# ---- what is refused


REFUSED = {
    "model.pooling": ("all_mean", "config.task=conversation: needs config.model.kind=vlm and no pooling"),
    "model.kind": ("iresnet", "config.task=conversation: needs config.model.kind=vlm and no pooling"),
    "data.flip": (True, "config.data.flip: words about left and right are wrong in a mirrored picture"),
    "data.cache": ("host", "config.data.cache='host': is for faces of one size; use none"),
    "prompt.text": ("Who?", "config.prompt: a conversation brings its own text"),
    "prompt.ids": ((1, 2), "config.prompt: a conversation brings its own text"),
    "loss.function": ("a:b", "config.loss.function and config.compat: have no effect"),
    "compat.negatives_group": (2, "config.loss.function and config.compat: have no effect"),
    "eval.pools": (("all_mean",), "config.eval.pools, flip_sum and baselines: are of face verification"),
    "eval.flip_sum": (True, "config.eval.pools, flip_sum and baselines: are of face verification"),
    "eval.baselines": (True, "config.eval.pools, flip_sum and baselines: are of face verification"),
    "chat.tokenizer": ("", "config.chat.tokenizer: without init_from there is no tokenizer"),
    "chat.template": ("vicuna", "config.chat.template='vicuna': choose internvl2_5 or internvl2_5_hf"),
    "chat.eval_template": ("vicuna", "config.chat.eval_template='vicuna': choose internvl2_5 or internvl2_5_hf"),
    "chat.buckets": ((64, 32), "config.chat.buckets=.64, 32.: ascending lengths below chat.length=128"),
    "accumulation": (3, "config.batch_size=8 does not divide into config.accumulation=3 parts"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_settings_that_do_not_fit_are_refused_by_name(key):
    value, message = REFUSED[key]
    check(config())
    with pytest.raises(ValueError, match=message):
        check(config(**{key.replace(".", "__"): value}))


def test_too_long_conversations_are_named_or_counted(store):
    c = config(data__train=str(store.path), chat__length=40)
    longest = max(len(one.rendered.ids) for one in pieces(store, conversation(c).format))
    message = rf"{store.path}: 2 of 8 conversations are longer than config.chat.length=40; the longest is record 2 "
    with pytest.raises(
        ValueError, match=message + rf"\(2.png\) with {longest} tokens, 1 of them visual. Raise"
    ) as error:
        conversation(c).examples(store)
    assert str(error.value).endswith("chat.length, lower chat.max_tiles, or leave them out with chat.too_long=drop")
    c.chat.too_long = "drop"
    examples = conversation(c).examples(store)
    learned = sum(
        sum(one.rendered.label_mask) for one in pieces(store, conversation(c).format) if len(one.rendered.ids) <= 40
    )
    said = f"6 conversations, 2 longer than 40 tokens left out, 6 rows, {learned} tokens with loss; 8 rows a step"
    assert examples.description.startswith(said)
    assert sorted(examples.plan.examples(np.arange(8))["ids"].ravel().tolist()) == [-1, -1, 0, 1, 3, 4, 6, 7]


@pytest.mark.parametrize(("max_tiles", "tiles"), [(1, 1), (2, 4), (3, 4), (4, 8), (12, 16)])
def test_the_largest_batch_has_room_for_the_thumbnail(max_tiles, tiles):
    shapes = conversation(config(chat__max_tiles=max_tiles)).batch_shapes(2)
    most = tiling.count(100 * max_tiles, 100, max_tiles)
    assert most <= shapes["tiles"].shape[1] == tiles
    assert shapes["places"].shape == (2, tiles)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match=f"{TOKENIZER}: its ids go up to 511, the decoder's vocabulary has 500; use"):
        _ = conversation(config(model__decoder__vocab=500)).format


# ---- whole runs


def training(folder: Path, **changes):
    """Return the config of 12 steps with adapters, embeddings, head and projector; the first step has the rate 0."""
    c = config(**changes)
    c.data.synthetic.update(
        {"identities": 8, "images": 4, "test_identities": 3, "test_images": 2, "dir": str(folder / "faces")}
    )
    c.chat.update({"tokenizer": str(folder / "tokenizer"), "length": 192, "too_long": "drop", "max_new_tokens": 4})
    c.lora.update({"rank": 2, "alpha": 4.0, "targets": ("decoder/blocks/(attn|mlp)/.*",), "count": 7, "init": "peft"})
    c.trainable = (("lora/.*", "adapter"), ("params/(projector/.*|decoder/(embed|head))", "rest"), (".*", "frozen"))
    c.optimizer.update({"name": "adamw", "lr": 2e-2, "weight_decay": 0.0, "schedule": "cosine", "warmup_steps": 2})
    c.epochs, c.eval.every_epochs, c.eval.batch_size = 3, 1, 16
    c.data.val, c.chat.answers = str(folder / "val"), 2
    c.log.tensorboard, c.log.state_hash_every, c.log.show = False, 1, 2
    return c


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    shutil.copytree(TOKENIZER, folder / "tokenizer")
    (folder / "faces").mkdir()
    face_questions.write(folder / "val", range(100, 103), 2, 0, split="val")
    return folder


def run(c, workdir: Path, **options) -> tuple[dict, list[dict]]:
    """Return results.json and the lines of metrics.jsonl of a run on one device."""
    chosen = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: chosen)
        check(c)
        results = experiment.run(typed(c), workdir, train=True, **options)
    assert json.loads((workdir / "results.json").read_text()) == json.loads(json.dumps(results))
    return results, [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


class Trained(NamedTuple):
    results: dict
    lines: list[dict]
    printed: str


@pytest.fixture(scope="module")
def trained(folder) -> Trained:
    with console.capture() as printed:
        results, lines = run(training(folder), folder / "whole")
    return Trained(results, lines, printed.get())


def test_it_learns(trained):
    losses = [line["loss"] for line in trained.lines]
    assert len(losses) == 12
    assert losses[0] == pytest.approx(np.log(512), rel=0.1), "the first answers are guessed"
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    assert trained.lines[0]["lr"] == 0
    first = trained.lines[0]
    assert 0 < first["label_tokens"] < first["tokens"] == 8 * 192
    assert first["tokens_per_s"] == pytest.approx(first["conversations_per_s"] * 192)


def test_its_results(trained):
    results = trained.results
    entry = results["benchmarks"]["questions"]
    assert entry["n"] == sum(kind["n"] for kind in entry["by_kind"].values()) > 10
    assert 0 <= entry["chosen"]["value"] <= 1
    assert entry["before_training"]["n"] == entry["n"]
    assert entry["before_training"]["data_hash"] == entry["data_hash"]
    assert entry["before_training"]["generated"]["value"] == 0, "random weights do not write words"
    assert set(results["validation"]) == {"loss", "label_tokens", "conversations", "data_hash"}
    assert results["validation"]["conversations"] == 6
    assert len(results["train_data_hash"]) == 64
    assert results["base_hash"] == ""


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(folder, trained):
    lines = [json.loads(line) for line in (folder / "whole/evaluations.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["validation"]["loss"] for line in lines}
    assert list(losses) == [4, 8, 12]
    assert [set(line) - {"step", "epoch", "seconds"} for line in lines] == [{"validation", "questions"}] * 2 + [
        {"validation"}
    ]
    scores = json.loads((folder / "whole/validation.json").read_text())
    assert {int(step): -score for step, score in scores.items()} == losses
    assert trained.results["step"] == min(losses, key=losses.__getitem__)
    assert trained.results["validation"]["loss"] == min(losses.values())


def test_answers_are_printed_with_each_validation(folder, trained):
    assert trained.printed.count("\n  model: ") == 2 * 3
    for i in range(2):
        question, answer = ConversationStore(folder / "val", "val").conversation(i).messages[-2:]
        assert question["content"].removeprefix("<image>").strip() in trained.printed
        assert trained.printed.count(f"\n  expected: {answer['content']}") >= 3


def test_training_examples_are_printed_first(trained):
    assert trained.printed.count("tokens with loss; ") == 1
    before = trained.printed[: trained.printed.index("  model: ")]
    assert [f"record {i} (synthetic/0/000000/{i:03d}): " in before for i in range(3)] == [True, True, False]
    assert "⟦" in before


def test_it_goes_on_after_a_stop_bit_for_bit(folder, trained):
    request = AskedAtStep(folder / "stopped", 6)
    with pytest.raises(preemption.Preempted):
        run(training(folder), folder / "stopped", request=request)
    request.before_leaving()
    results, lines = run(training(folder), folder / "stopped")
    for name in ("loss", "state_hash", "batch_hash", "label_tokens"):
        assert [line[name] for line in lines] == [line[name] for line in trained.lines], name
    assert results["benchmarks"] == trained.results["benchmarks"]
    assert results["validation"] == trained.results["validation"]


def test_another_tokenizer_is_refused(folder, trained):
    file = folder / "tokenizer/tokenizer_config.json"
    before = file.read_text()
    file.write_text(json.dumps({**json.loads(before), "a note": ""}))
    try:
        message = r"checkpoints/12: tokenizer is '\w{16}', this run has '\w{16}'; choose another --workdir"
        with pytest.raises(ValueError, match=message) as error:
            run(training(folder), folder / "whole")
        assert "\n" not in str(error.value)
    finally:
        file.write_text(before)


def test_adapters_that_the_loss_does_not_depend_on_end_the_run(folder, tmp_path):
    """Conversations without pictures do not train the tower; the first step has the rate 0."""
    texts = [(chat("What?", answer), [], f"{i}", {}) for i, answer in enumerate(ANSWERS)]
    make(tmp_path / "train", texts)
    c = training(folder, data__train=str(tmp_path / "train"))
    c.data.synthetic.identities, c.data.val, c.eval.every_epochs = 0, "", 0
    c.lora.update({"targets": ("vision/blocks/mlp/fc[12]",), "count": 2})
    c.trainable = (("lora/.*", "adapter"), (".*", "frozen"))
    c.epochs, c.chat.length = 4, 128
    with pytest.raises(ValueError, match=r"dead adapters, .*: vision/blocks/mlp/fc1/b layers \[0\]"):
        run(c, tmp_path / "run")
