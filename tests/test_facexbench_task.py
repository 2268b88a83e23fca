"""Test FaceXBench through the task conversation: both ways of asking, resuming, the entry and the tables."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from rich.console import Console

from fvjax import experiment
from fvjax.config import base, typed
from fvjax.data.readers import facexbench_store
from fvjax.evals.choices import extract
from fvjax.parallel import sharding
from fvjax.tasks import conversation_evaluation, dialogue
from fvjax.tasks.predictor import Predictor
from tests import tiny_chat
from tests.parts import model_of, state_with, task_of
from tests.test_facexbench_reader import EXPECTED, copy_sample

ABCD = [32, 33, 34, 35]  # ids of the letters; a letter with a space before it is two tokens of this tokenizer


def config_of(folder: Path):
    config = base()
    config.name, config.task, config.model.kind = "tiny", "conversation", "vlm"
    config.init_from = str(folder / "model")
    config.model.bos = 506
    config.model.vision_transformer.update(
        {"image_size": 56, "patch_size": 14, "width": 64, "depth": 1, "heads": 4, "mlp_dim": 128}
    )
    config.model.decoder.update(
        {"vocab": 512, "width": 64, "depth": 1, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp_dim": 160}
    )
    config.trainable = ((".*", "frozen"),)
    config.chat.system, config.chat.max_new_tokens = "", 4
    config.data.flip = False
    config.eval.batch_size = 2
    config.eval.benchmarks = {"facexbench": {"store": str(folder / "store"), "pairs": ""}}
    return config


class Asked(NamedTuple):
    """What a model was asked in one way, file by file, and what it answered."""

    prompts: list[Any]
    answers: list[Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Evaluate a tiny model: a first run is interrupted in its second file, a second one goes on.

    Returns the folder, the task, its evaluator, the questions, the entry, and what was asked by generation and letters.
    """
    folder = tmp_path_factory.mktemp("facexbench")
    store = facexbench_store.convert(copy_sample(folder), folder / "store", setting="zero_shot", layout="plain")
    tiny_chat.write(folder / "model")
    config = config_of(folder)
    task, model = task_of(config, folder / "run"), model_of(config)
    predictor = Predictor(model.variables, model.read_frozen(), sharding.one_device())
    evaluator = task.evaluator(model.encoder, predictor, set())
    asked = {"generate": Asked([], []), "next_logits": Asked([], [])}
    interrupted = iter((False, True))

    def record(way):
        original = getattr(evaluator.dialogue, way)

        def ask(state, prompts, *arguments):
            if way == "generate" and next(interrupted, False):
                raise KeyboardInterrupt
            answers = original(state, prompts, *arguments)
            asked[way].prompts.append([prompt.load() for prompt in prompts])
            asked[way].answers.append(answers)
            return answers

        return ask

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialogue, "ROUND", 384)  # one length of rows for all files, so that less is compiled
        for way in asked:
            patch.setattr(evaluator.dialogue, way, record(way))
        with pytest.raises(KeyboardInterrupt):
            evaluator.entries(state_with({}), "tiny")
        kept = sorted(file.name for file in (folder / "run/answers").glob("*/*.jsonl"))
        entries = evaluator.entries(state_with({}), "tiny")
    assert kept == ["synthetic_multiple_mcq.jsonl"]
    return SimpleNamespace(
        folder=folder,
        config=config,
        evaluator=evaluator,
        questions=facexbench_store.questions(store),
        data_hash=store.data_hash,
        entry=entries["facexbench"],
        asked=asked,
    )


def test_no_question_is_asked_twice(run):
    """The first file is asked about before the interruption only, both ways."""
    for way in run.asked.values():
        assert [len(prompts) for prompts in way.prompts] == [2, 2, 2]
    tokenizer = run.evaluator.task.eval_format.tokenizer
    golden = sorted(EXPECTED["zero_shot"]["questions"], key=lambda q: q["file"])
    expected = [(q["image_paths"], q["prompt"]) for q in golden]
    asked = [piece for prompts in run.asked["generate"].prompts for piece in prompts]
    for piece, (paths, text) in zip(asked, expected, strict=True):
        got = tokenizer.decode(piece.rendered.ids)
        images = ("<img>" + "<IMG_CONTEXT>" * 4 + "</img>\n") * len(paths)
        assert got == f"<|im_start|>user\n{images}{text}<|im_end|>\n<|im_start|>assistant\n"
        assert len(piece.tiles) == len(paths)


def test_the_figures_are_of_what_the_model_said(run):
    texts = [answer for answers in run.asked["generate"].answers for answer in answers]
    letters = ["ABCD"[int(row[ABCD].argmax())] for rows in run.asked["next_logits"].answers for row in rows]
    right = [q.answer for q in run.questions]
    extracted = [extract(answer.text, q.options) for answer, q in zip(texts, run.questions, strict=True)]
    generation, chosen = run.entry["generation"]["overall"], run.entry["letters"]["overall"]
    assert generation["correct"] == sum(a == b for a, b in zip(extracted, right))
    assert generation["unparsed"] == extracted.count(None)
    assert generation["cut"] == sum(answer.cut for answer in texts) == 6
    assert chosen["correct"] == sum(a == b for a, b in zip(letters, right, strict=True))
    assert chosen["accuracy"] == chosen["correct"] / 6
    assert run.entry["data_hash"] == run.data_hash
    assert run.entry["n_questions"] == 6


def test_answers_are_kept_with_their_probabilities(run):
    rows = [row for rows in run.asked["next_logits"].answers for row in rows]
    lines = []
    for file in sorted((run.folder / "run/answers").glob("*/*.jsonl")):
        header, *answers = [json.loads(line) for line in file.read_text().splitlines()]
        assert header == {"file": f"{file.stem}.json", "fingerprint": file.parent.name}
        assert file.parent.name.startswith("step_0_")
        lines += answers
    for line, row in zip(lines, rows, strict=True):
        scores = np.exp(row[ABCD].astype(np.float64))
        np.testing.assert_allclose(line["probabilities"], scores / scores.sum(), rtol=1e-6)
        assert line["cut"] is True


def test_other_settings_are_other_answers(run):
    """Whatever changes an answer changes the folder that answers are kept in."""
    store = conversation_evaluation.ConversationStore(run.folder / "store", "test")

    def fingerprint(step=0, base="", **changes):
        config = config_of(run.folder)
        for key, value in changes.items():
            config.chat[key] = value
        settings = SimpleNamespace(task=task_of(config, run.folder), predictor=SimpleNamespace(base_hash=base))
        return conversation_evaluation.ConversationEvaluator._fingerprint(settings, state_with({}, step=step), store)  # type: ignore[arg-type]

    changes = [
        *({"max_new_tokens": 5}, {"system": "Be brief."}, {"max_tiles": 2}, {"tile_rule": "vlmevalkit"}),
        *({"eval_template": "internvl2_5_hf"}, {"eval_max_tiles": 3}, {"hide_pictures": True}, {"step": 1}),
        {"base": "another"},
    ]
    names = [fingerprint(), *(fingerprint(**one) for one in changes)]
    assert len(set(names)) == len(names)
    assert fingerprint() == names[0]


def printed(table) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_the_report_has_both_ways_and_the_row_before_training(run):
    """The answers are all there, so nothing is computed."""
    before = run.entry | {"generation": None, "agreement": None}
    report = run.evaluator.report(state_with({}), {"facexbench": before, "gone": before}, None)
    entry = report.results["benchmarks"]["facexbench"]
    assert entry == run.entry | {"before_training": before}
    assert report.summary == {
        "facexbench": {way: run.entry[way]["overall"]["accuracy"] for way in ("generation", "letters")}
    }
    text = printed(report.table)
    names = [line.split("  ")[0] for line in text.splitlines()[3:12:3]]
    assert names == ["tiny, before training", "tiny", "tiny"]
    ways = [line.split()[0] for line in text.splitlines()[4:13:3]]
    assert ways == ["letters", "generated", "letters"]
    assert "FaceXBench by sub-task (%): tiny " in text
    other = run.evaluator.report(state_with({}), {"facexbench": before | {"data_hash": "another"}}, None)
    assert other.results["benchmarks"]["facexbench"]["before_training"] is None
    alone = " ".join(printed(other.table).split())
    assert "before training" not in alone
    assert "Of 6 generated answers, 6 had no letter and 6 were cut." in alone


def test_two_forms_of_the_benchmark_are_two_rows(run):
    """One experiment may ask zero_shot and in_context; several experiments have no tables by sub-task."""
    both = {"benchmarks": {"zero_shot": run.entry, "in_context": run.entry}}
    text = printed(conversation_evaluation.comparison({"tiny": both}))
    assert text.count("by sub-task (%): tiny, zero_shot") == text.count("by sub-task (%): tiny, in_context") == 1
    several = printed(conversation_evaluation.comparison({"tiny": both, "other": both}))
    assert "by sub-task" not in several
    assert all(f"{row}, {name}" in several for row in ("tiny", "other") for name in both["benchmarks"])


def test_results_json_of_a_run_that_has_its_answers(run, capsys):
    """Another batch size asks nothing again."""
    config = config_of(run.folder)
    config.eval.batch_size = 8
    workdir = run.folder / "run"
    (workdir / "before_training.json").write_text(json.dumps({"facexbench": run.entry}))
    experiment.run(typed(config), workdir, train=True)
    results = json.loads((workdir / "results.json").read_text())
    assert results["benchmarks"]["facexbench"] == {
        **json.loads(json.dumps(run.entry)),
        "before_training": json.loads(json.dumps(run.entry)),
    }
    assert results["step"] == 0
    assert "FaceXBench (%)" in capsys.readouterr().out


def test_examples_are_shown_with_the_tokens_that_carry_loss(run):
    """As --show prints them before training, here from a store of questions."""
    store = conversation_evaluation.ConversationStore(run.folder / "store", "test")
    shown = printed(run.evaluator.task.show(store, 2))
    assert "record 0 (synthetic_multiple_mcq.json question 1): " in shown
    assert "record 1 (" in shown
    assert "record 2 (" not in shown
    assert "⟦A<|im_end|>↵⟧" in shown
    assert "<IMG_CONTEXT>×4" in shown


class Words:
    """A tokenizer of letters: "A" and " A" are one token each, " B" is two, "C" is two, and D none of one token."""

    path = Path("words")
    ids = {"A": [5], " A": [7], "B": [6], " B": [8, 9], "C": [10, 11], " C": [12], "D": [1, 2], " D": [1, 2]}  # noqa: RUF012

    def encode(self, text: str) -> list[int]:
        return self.ids[text]


def letter_probabilities(logits, options, tokenizer=None) -> np.ndarray:
    format = SimpleNamespace(tokenizer=tokenizer or Words())
    return conversation_evaluation.letter_probabilities(logits, format, options)  # type: ignore[arg-type]


def test_a_letter_counts_with_and_without_a_space():
    logits = np.random.default_rng(0).standard_normal(20).astype(np.float32) * 3
    p = np.exp(logits.astype(np.float64))
    expected = np.array([p[5] + p[7], p[6], p[12]])
    got = letter_probabilities(logits, 3)
    np.testing.assert_allclose(got, expected / expected.sum(), rtol=1e-12)
    np.testing.assert_allclose(letter_probabilities(logits + 1000, 3), got, rtol=1e-4)
    np.testing.assert_allclose(letter_probabilities(logits - 1000, 3), got, rtol=1e-4)
    with pytest.raises(ValueError, match="words: the letter D is no single token, so it has no logit"):
        letter_probabilities(logits, 4)


def test_two_spellings_of_one_token_count_once():
    same = Words()
    same.ids = Words.ids | {" A": [5]}
    logits = np.zeros(20, np.float32)
    np.testing.assert_allclose(letter_probabilities(logits, 2, same), [0.5, 0.5])
