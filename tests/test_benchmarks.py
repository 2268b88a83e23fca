"""Test that the ledger agrees with the result files, and that fvjax counts a step's FLOPs as torch does."""

import argparse
import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import ablations, cases, conversation_step, evaluation, step_time


def test_the_ledger_is_made_of_the_results():
    results = [json.loads(path.read_text()) for path in sorted(step_time.RESULTS.glob("*.json"))]
    assert results
    section = step_time.LEDGER.read_text().partition(step_time.MARKS[0])[2].partition(step_time.MARKS[1])[0]
    assert section == f"\n{step_time.table(results)}\n", "python benchmarks/step_time.py --ledger"
    assert not [problem for problem in map(step_time.problems, results) if problem]


def test_a_twin_with_another_loss_is_a_problem():
    run = {"seconds": [2.0, 1.0, 1.0], "first": 9.0, "loss": 1.0, "gib": 1.0}
    found = {"case": "resnet50", "batch": 4, "precision": "float32", "date": "d", "command": "c", "check": {}}
    found |= {"machine": {"device": "m", "jax": "1"}, "flops": {"ours": {"model": 4e12, "hardware": 6e12}}}
    found["flops"] |= {"best": {"hardware": 5e12}, "seed": {}}
    found["runs"] = {"ours": [run, run], "best": [run | {"seconds": [2.0]}, run], "seed": [{"error": "a | b"}] * 2}
    assert not step_time.problems(found)
    ours, best, seed = step_time.rows(found)
    assert ours.startswith(
        "| resnet50, 4 images, float32 | m; jax 1; d | fvjax | 1 (1 to 1) | 4 | 1.00 (1.00 to 1.00) |"
    )
    assert ours.endswith("| 1.0 | 9.0 | 4, 6 |")
    assert best == "|  |  | torch, best | 1.5 (1 to 2) | 2.67 | 1.50 (1.00 to 2.00) | 1.0 | 9.0 | 2.67, 3.33 |"
    assert seed == "|  |  | torch, seed | a / b | | | | | |"
    found["runs"]["best"][0]["loss"] = 1.01
    assert "first losses differ" in step_time.problems(found)
    found["precision"] = "bfloat16"
    assert not step_time.problems(found)


@pytest.mark.parametrize(("case", "off"), [("small_real", 0.01), ("mllm_100m", 0.05)])
def test_arithmetic_of_a_step(case, off):
    """fvjax's loop also computes the gradient of the first layer's input, which torch leaves out."""
    pytest.importorskip("torch")
    from benchmarks import twins

    model, _ = cases.our_flops(cases.our_config(case, 4, None))
    best, seed = (twins.count(case, 4, what) for what in ("best", "seed"))
    assert model == pytest.approx(best, rel=off)
    assert seed == best if case == "small_real" else seed > 1.3 * best, "checkpoints compute the forward pass again"


def test_pairs_taken_share_images_as_all_do():
    a, b = np.random.default_rng(1).integers(0, 1500, (2, 1000))
    every = len(np.union1d(a, b)) / 1000  # images per pair
    taken = evaluation.sample(SimpleNamespace(a=a, b=b), 100)
    assert len(set(taken)) == 100
    assert len(np.union1d(a[taken], b[taken])) / 100 == pytest.approx(every, abs=0.03)
    assert len(np.unique(a[taken])) / 100 == pytest.approx(len(np.unique(a)) / 1000, abs=0.03)
    assert len(np.union1d(a[:100], b[:100])) / 100 > every + 0.3


@pytest.mark.parametrize("ablation", ablations.ABLATIONS, ids=lambda ablation: ablation.name)
def test_optimisations_can_be_left_out(ablation):
    assert ablation.edits or ablation.settings or not ablation.tunables
    changed = ablations.without(ablation, ablations.step_time.ROOT)  # raises if the list does not match the code
    for path, text in changed.items():
        compile(text, path, "exec")
    test, _, name = ablation.parity.partition(" -k ")
    if ablation.tunables:
        assert name in (ablations.step_time.ROOT / test).read_text()


def test_the_ledger_has_what_optimisations_brought():
    results = [json.loads(path.read_text()) for path in sorted(ablations.RESULTS.glob("*.json"))]
    section = step_time.LEDGER.read_text().partition(ablations.MARKS[0])[2].partition(ablations.MARKS[1])[0]
    assert section == f"\n{ablations.table(results)}\n", "python benchmarks/ablations.py --ledger"
    measured = {(name, found["case"]) for found in results for name in found["runs"]}
    assert measured >= {(a.name, case) for a in ablations.ABLATIONS for case in a.cases}
    assert not [problem for problem in map(ablations.problems, results) if problem]


def options(device):
    return argparse.Namespace(case="resnet50", device=device, batch=2, precision="float32", steps=0, weights=Path("w"))


def test_a_child_gives_a_line_a_turn(tmp_path):
    script = tmp_path / "child.py"
    script.write_text("import sys\nfor i, _ in enumerate(sys.stdin): print(i, flush=True)\n")
    with step_time.started(options("cpu"), "ours", script=script) as turn:
        assert [turn(), turn()] == [0, 1]


def test_a_child_that_fails_says_why(tmp_path, capsys):
    script = tmp_path / "child.py"
    script.write_text("raise SystemExit('no memory left')\n")
    with pytest.raises(SystemExit, match="resnet50, best: no memory left"):
        step_time.call(options("cpu"), "best", script=script)
    with step_time.started(options("gpu"), "best", script=script) as turn:
        assert [turn(), turn()] == [{"error": "no memory left"}] * 2  # the second call writes to a pipe without reader
    assert "no memory left" in capsys.readouterr().err


def test_turns_measure_after_the_warm_up():
    steps = iter([{"loss": float(i)} for i in range(12)])
    turns = step_time.turns(steps, warm=2, measured=3)
    found = next(turns), next(turns)
    assert [len(turn["seconds"]) for turn in found] == [3, 3]
    assert [turn["loss"] for turn in found] == [0.0, 0.0]
    assert next(steps) == {"loss": 11.0}  # 1 step to compile; 2 warm-up and 3 measured ones per turn


@pytest.mark.parametrize("case", conversation_step.TOKENS)
def test_both_programs_of_a_conversation_have_the_same_labels(case):
    """transformers moves labels by one itself; fvjax takes what follows each token."""
    tokens = conversation_step.TOKENS[case]
    ids, labels = conversation_step.conversations(case, 2, tokens)
    batch = conversation_step.our_batch(case, 2, tokens)
    moved = np.where(labels[:, 1:] == conversation_step.LABELS, -1, labels[:, 1:])
    np.testing.assert_array_equal(batch["targets"][:, :-1], moved)
    assert (batch["targets"][:, -1] == -1).all()
    assert (labels[:, tokens // 2 :] == ids[:, tokens // 2 :]).all(), "half of the tokens have a label"
    visual = conversation_step.picture_tokens(case)
    assert visual <= tokens - tokens // 2, "a picture's tokens have no labels"
    in_row = batch["places"][batch["places"] < tokens]
    np.testing.assert_array_equal(in_row.reshape(2, -1), np.tile(np.arange(visual), (2, 1)))


def test_flags_of_the_conversation_step(monkeypatch, tmp_path, capsys):
    """Every flag reaches the programs that take turns, each of which is started once."""
    calls, cores = [], []

    def started(options, name, **given):
        calls.append(
            (name, options.batch, options.steps, options.precision, *(given[k] for k in ("tokens", "threads")))
        )
        turn = {"losses": [2.0], "seconds": [1.0], "cpu": [1.0]}
        return contextlib.nullcontext(lambda: turn)

    monkeypatch.setattr(conversation_step.step_time, "call", lambda *_, **given: calls.append(given["adapters"].name))
    monkeypatch.setattr(conversation_step.step_time, "started", started)
    monkeypatch.setattr(conversation_step.os, "sched_setaffinity", lambda _, allowed: cores.append(len(allowed)))
    flags = [
        "--against",
        "eager",
        "--rounds=2",
        "--steps=3",
        "--batch=5",
        "--tokens=64",
        "--threads=1",
        "--precision=bfloat16",
    ]
    files = f"--weights={tmp_path}", f"--json={tmp_path / 'found.json'}"
    monkeypatch.setattr("sys.argv", ["conversation_step.py", "--case=smollm2", *flags, *files])
    conversation_step.main()
    assert calls == ["adapters", *((name, 5, 3, "bfloat16", 64, 1) for name in ("ours", "eager"))]
    assert cores == [1]
    found = json.loads((tmp_path / "found.json").read_text())
    assert {name: len(runs) for name, runs in found["runs"].items()} == {"ours": 2, "eager": 2}
    assert "smollm2, 5 rows of 64 tokens, bfloat16" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["conversation_step.py", "--case=smollm2"])
    with pytest.raises(SystemExit):
        conversation_step.main()
    assert "--case=smollm2 needs --weights=DIR" in capsys.readouterr().err


def test_a_conversation_step_is_compared_round_by_round():
    def run(seconds, loss=2.0):
        return {"losses": [loss, 1.9, 1.8], "seconds": [seconds], "cpu": [2 * seconds]}

    found = {"case": "smollm2", "batch": 4, "tokens": 256, "precision": "float32"}
    found["runs"] = {"ours": [run(1.0), run(2.0), run(4.0)], "eager": [run(1.5), run(2.0), run(8.0)]}
    assert not conversation_step.problems(found)
    _, ours, eager = conversation_step.summary(found).splitlines()
    assert ours.startswith("fvjax: 2 (1 to 4) s, time / fvjax's 1 (1 to 1); CPU 4 (2 to 8) s")
    assert eager.startswith(
        "transformers + peft, eager: 2 (1.5 to 8) s, time / fvjax's 1.5 (1 to 2); CPU 4 (3 to 16) s"
    )
    found["runs"]["eager"][0] = run(1.5, loss=2.001)
    assert "first losses differ" in conversation_step.problems(found)
    found["precision"] = "bfloat16"
    assert not conversation_step.problems(found)
