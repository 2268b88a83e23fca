"""Comparing runs on the same pairs: figures, paired differences, groups of seeds, what is printed and written."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import io
import json
from pathlib import Path

import numpy as np
import pytest

from fvjax import compare as command
from fvjax.config import base, typed
from fvjax.evals import folds, pair_scores, paired
from fvjax.evals.pair_scores import PairScores

PEOPLE, EACH = 40, 3


def pairs(seed: int = 0) -> PairScores:
    """Return 240 pairs of 40 people in 4 folds, with scores of zero."""
    rng = np.random.default_rng(seed)
    identity = np.repeat(np.arange(PEOPLE), EACH)
    columns = []
    for fold in range(4):
        people = np.arange(fold * 10, fold * 10 + 10)
        for same in (True, False):
            for _ in range(30):
                a = rng.choice(people)
                b = a if same else rng.choice(people[people != a])
                columns.append((a * EACH, b * EACH + 1, same, fold))
    a, b, same, fold = (np.array(column) for column in zip(*columns, strict=True))
    return PairScores(np.zeros(len(a), np.float32), same, fold, a, b, identity[a], identity[b], "d" * 64, "p" * 64)


def judged(quality: float, seed: int, of: PairScores | None = None, shared: float = 0.0) -> PairScores:
    """Return scores of a model: better with `quality`; `shared` is how much people differ in being hard for all."""
    of = of or pairs()
    hard = np.random.default_rng(99).normal(size=PEOPLE)[of.identity_a] * shared
    noise = np.random.default_rng(seed).normal(size=len(of.same))
    return dataclasses.replace(of, scores=(quality * of.same + hard + noise).astype(np.float32))


def a_run(folder: Path, scores: PairScores, *, seed: int = 0, lr: float = 0.1, benchmark: str = "lfw") -> Path:
    """Write the files of a finished run that comparisons read."""
    folder.mkdir(parents=True, exist_ok=True)
    config = base()
    config.seed, config.optimizer.lr, config.name = seed, lr, folder.name
    (folder / "config.json").write_text(typed(config).to_json())
    results = {"benchmarks": {benchmark: {"data_hash": scores.data_hash, "n_pairs": 240}}, "base_hash": ""}
    (folder / "results.json").write_text(json.dumps(results))
    scores.write(pair_scores.file_of(folder, benchmark))
    return folder


# ---- the file of scores


def test_scores_come_back_from_their_file_as_they_were(tmp_path):
    scores = judged(1.0, 1)
    file = pair_scores.file_of(tmp_path, "cfp/fp")
    assert file.parent == tmp_path / "scores"
    scores.write(file)
    found = pair_scores.read(file)
    for field in dataclasses.fields(PairScores):
        expected, value = getattr(scores, field.name), getattr(found, field.name)
        assert np.array_equal(value, expected)
        assert isinstance(value, str) or value.dtype == expected.dtype
    assert [p.name for p in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"same": None}, "lacks same"),
        ({"a": np.arange(3)}, "one length"),
        ({"fold": np.zeros(240, np.float64)}, "fold float64"),
        ({"scores": np.array([{}] * 240, object)}, "not the scores"),
    ],
)
def test_a_file_that_is_not_scores_is_refused_by_name(tmp_path, change, message):
    arrays = {k: v for k, v in {**dataclasses.asdict(judged(1.0, 1)), **change}.items() if v is not None}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        pair_scores.read(tmp_path / "x.npz")
    assert str(tmp_path / "x.npz") in str(error.value)


def test_a_text_file_and_a_bomb_are_no_scores(tmp_path, monkeypatch):
    (tmp_path / "text.npz").write_text("scores")
    with pytest.raises(ValueError, match="not the scores of a benchmark"):
        pair_scores.read(tmp_path / "text.npz")
    large = tmp_path / "large.npz"
    judged(1.0, 1).write(large)
    packed = large.stat().st_size  # the arrays in it are larger
    monkeypatch.setattr(pair_scores, "MAX_BYTES", packed)
    with pytest.raises(ValueError, match=f"bytes, more than {packed:,}"):
        pair_scores.read(large)


# ---- figures and differences


def plain(scores: PairScores, weights: np.ndarray) -> dict[str, float]:
    """Compute the area and the best-threshold accuracy of weighted pairs by repeating them, without fvjax.evals."""
    rows = np.repeat(np.arange(len(weights)), weights)
    s, y, fold = scores.scores[rows].astype(float), scores.same[rows], scores.fold[rows]
    area = np.mean((s[y][:, None] > s[~y]) + 0.5 * (s[y][:, None] == s[~y]))
    accuracies = []
    for each in np.unique(fold):
        train, test = fold != each, fold == each
        values = np.unique(scores.scores[scores.fold != each].astype(float))  # also of pairs that were not drawn
        cuts = np.r_[values[0] - 1e-6, (values[1:] + values[:-1]) / 2, values[-1] + 1e-6]
        right = [np.sum((s[train] >= cut) == y[train]) for cut in cuts]
        accuracies.append(np.mean((s[test] >= cuts[int(np.argmax(right))]) == y[test]))
    return {"auc": float(area), "accuracy@best_threshold": float(np.mean(accuracies))}


def test_the_difference_its_interval_and_p_are_those_of_a_plain_bootstrap():
    a, b = judged(1.2, 1), judged(0.9, 2)
    measured = [paired.resample([each], bootstrap=200, seed=5) for each in (a, b)]
    rng, counts = np.random.default_rng(5), []
    numbers = np.unique(np.r_[a.identity_a, a.identity_b], return_inverse=True)[1].reshape(2, -1)
    n = numbers.max() + 1
    draws = rng.integers(0, n, (200, n))  # one chunk: the same stream of random numbers
    for draw in draws:
        times = np.bincount(draw, minlength=n)
        counts.append(times[numbers[0]] * np.where(a.same, 1, times[numbers[1]]))
    for figure in ("auc", "accuracy@best_threshold"):
        found = paired.difference(measured[0], measured[1], figure)
        whole = [plain(each, np.ones(len(each.same), int))[figure] for each in (a, b)]
        sample = np.array([plain(a, w)[figure] - plain(b, w)[figure] for w in counts])
        assert found["difference"] == pytest.approx(whole[0] - whole[1], abs=1e-12)
        assert found["ci95"] == pytest.approx(np.percentile(sample, [2.5, 97.5]).tolist(), abs=1e-9)
        share = min(np.sum(sample <= 1e-12), np.sum(sample >= -1e-12)) + 1
        assert found["p"] == pytest.approx(min(1, 2 * share / 201))


def test_a_model_does_not_differ_from_itself_and_a_difference_has_a_sign():
    a, b = judged(2.0, 1), judged(0.5, 2)
    better, worse = (paired.resample([each], bootstrap=200) for each in (a, b))
    assert paired.difference(better, better, "auc") == {"difference": 0.0, "ci95": [0.0, 0.0], "p": 1.0}
    found, other = paired.difference(better, worse, "auc"), paired.difference(worse, better, "auc")
    assert found["difference"] == -other["difference"] > 0.1
    assert found["p"] == other["p"] == pytest.approx(2 / 201)
    assert found["ci95"][0] > 0 > other["ci95"][1]


def test_without_resamples_a_difference_has_a_sign_and_no_interval():
    better, worse = (paired.resample([judged(quality, 1)], bootstrap=0) for quality in (2.0, 1.0))
    assert {len(sample) for sample in better.samples.values()} == {0}
    found = paired.difference(better, worse, "auc")
    assert found["difference"] > 0
    assert (found["ci95"], found["p"]) == (None, None)
    assert paired.summary(better, "auc")["ci95"] is None
    defaults = {
        each: inspect.signature(each).parameters["bootstrap"].default for each in (paired.resample, paired.bands)
    }
    assert defaults == {paired.resample: 2000, paired.bands: 500}


def test_pairing_narrows_the_interval_when_people_are_hard_for_both():
    a, b = judged(1.5, 1, shared=2.0), judged(1.5, 1, shared=2.0)
    b = dataclasses.replace(b, scores=b.scores + np.float32(0.3) * b.same)
    one, two = (paired.resample([each], bootstrap=300) for each in (a, b))
    difference = paired.difference(two, one, "auc")["ci95"]
    alone = paired.summary(one, "auc")["ci95"]
    assert difference[1] - difference[0] < 0.5 * (alone[1] - alone[0])


def test_no_difference_is_found_between_equal_models_in_95_of_100_cases():
    """The issue's null: p < 0.05 in at most 5% of comparisons, up to what 120 cases can tell."""
    found = []
    for case in range(120):
        of = pairs(case)
        one, two = (paired.resample([judged(1.0, 1000 + 2 * case + k, of)], bootstrap=100) for k in (0, 1))
        found.append(paired.difference(one, two, "auc")["p"])
    significant = np.mean(np.array(found) < 0.05)
    assert significant <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 120)
    assert np.mean(np.array(found) < 0.6) > 0.3  # p is not 1 all the time either


def test_seeds_are_averaged_and_their_spread_is_shown():
    seeds = [judged(1.0, 1), judged(1.0, 2), judged(1.0, 3)]
    both = paired.resample(seeds, bootstrap=50)
    each = [paired.resample([one], bootstrap=50) for one in seeds]
    found = paired.summary(both, "auc")
    values = [one.values["auc"][0] for one in each]
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["std_over_seeds"] == pytest.approx(np.std(values, ddof=1))
    assert found["seeds"] == 3
    assert both.samples["auc"] == pytest.approx(np.mean([one.samples["auc"] for one in each], 0))
    assert paired.summary(each[0], "auc")["std_over_seeds"] is None


def test_figures_are_those_of_the_evaluation():
    scores = judged(1.0, 4)
    expected = folds.verification(scores.scores, scores.same, [60] * 4, bootstrap=0)
    measured = paired.resample([scores], bootstrap=100).values
    for figure in paired.FIGURES:
        one = expected[figure]
        assert measured[figure].tolist() == [pytest.approx(one["mean"] if "mean" in one else one["value"])]


def test_true_accept_rates_are_at_the_lowest_threshold_that_keeps_the_rate():
    of = pairs()
    scores = dataclasses.replace(of, scores=np.where(of.same, 0.5, np.linspace(0, 1, len(of.same))).astype(np.float32))
    impostors = np.sort(scores.scores[~of.same])[::-1]
    rates = np.array([1 / 120, 0.25, 1.0])
    expected = []
    for rate in rates:
        allowed = int(rate * 120 + 1e-9)
        threshold = impostors[allowed] if allowed < 120 else -1.0  # any value above the next impostor
        expected.append(float(np.mean(scores.scores[of.same] > threshold)))
    assert paired.true_accept_rates(scores, rates).tolist() == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_hash": "x" * 64}, "same pictures"),
        ({"pairs_hash": "x" * 64}, "same list of pairs"),
        ({"b": pairs().b + 1}, "b differs"),
    ],
)
def test_scores_of_other_pairs_are_not_compared(change, message):
    one = judged(1.0, 1)
    with pytest.raises(ValueError, match=message):
        paired.check_same_pairs({"A": one, "B": dataclasses.replace(one, **change)})


# ---- the command


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    """Return three runs of one recipe, which differ in their seed, and one of another recipe."""
    same = [a_run(tmp_path / f"seed{n}", judged(1.0, n), seed=n) for n in range(3)]
    return [a_run(tmp_path / "other", judged(2.0, 7), lr=0.5), *same]


def test_runs_that_differ_in_their_seed_are_one_model(runs):
    found = command.compare(runs, bootstrap=100)
    assert found["models"] == {
        "other": {"runs": [str(runs[0])], "seeds": [0]},
        "seed0": {"runs": [str(run) for run in runs[1:]], "seeds": [0, 1, 2]},
    }
    entry = found["benchmarks"]["lfw"]["figures"]["auc"]
    assert found["benchmarks"]["lfw"]["n_pairs"] == 240
    assert entry["other"]["to_first"] is None
    one, other = (paired.resample(m.scores("lfw"), bootstrap=100) for m in command.open_models(runs))
    assert entry["seed0"] == {
        **paired.summary(other, "auc"),
        "to_first": paired.difference(other, one, "auc"),
    }


def test_runs_on_another_base_are_another_model(runs):
    """The config names a base by its path, which may lead to other weights by now."""
    file = runs[3] / "results.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_hash": "b" * 64}))
    assert [model.seeds for model in command.open_models(runs)] == [(0,), (0, 1), (2,)]


def test_the_table_fits_80_columns_with_every_figure_whole(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert command.main([*map(str, runs), "--bootstrap=100"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    found = command.compare(runs, bootstrap=100)["benchmarks"]["lfw"]["figures"]["eer"]
    title = text.splitlines().index(next(line for line in text.splitlines() if line.strip() == "lfw: eer"))
    block = "\n".join(text.splitlines()[title : title + 9])
    for model, its in found.items():
        assert model in block
        assert f"{100 * its['mean']:.2f}" in block
    assert "(3 seeds)" in block
    assert f"{100 * found['seed0']['to_first']['difference']:+.2f}" in block
    assert "two-sided" in text


def test_other_formats_hold_the_same_cells(runs, capsys):
    cells = command.rows(command.compare(runs, bootstrap=100), command.SHOWN)
    assert command.main([*map(str, runs), "--bootstrap=100", "--format=csv"]) == 0
    assert [tuple(row) for row in csv.reader(io.StringIO(capsys.readouterr().out))] == [command.HEADS, *cells]
    assert command.main([*map(str, runs), "--bootstrap=100", "--format=markdown", "--figure=auc"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [len(line.split(" | ")) for line in lines[:4]] == [len(command.HEADS)] * 4
    assert command.main([*map(str, runs), "--bootstrap=100", "--format=latex", "--figure=auc"]) == 0
    text = capsys.readouterr().out
    assert text.count(" \\\\\n") == 3
    assert "95\\%" in text
    assert command.main([*map(str, runs), "--bootstrap=100", "--format=json"]) == 0
    assert json.loads(capsys.readouterr().out) == command.compare(runs, bootstrap=100)


def test_dst_gets_plots_table_and_json(runs, tmp_path, capsys):
    assert command.main([*map(str, runs), "--bootstrap=100", "--format=csv", f"--dst={tmp_path / 'out'}"]) == 0
    written = {p.name for p in (tmp_path / "out").iterdir()}
    plots = {f"{kind}_lfw.{suffix}" for kind in ("roc", "det") for suffix in ("png", "pdf")}
    assert written == plots | {"comparison.json", "table.txt"}
    assert (tmp_path / "out/roc_lfw.pdf").read_bytes().startswith(b"%PDF")
    saved = json.loads((tmp_path / "out/comparison.json").read_text())
    assert saved == command.compare(runs, bootstrap=100)
    assert "tar@far=1e-2" in (tmp_path / "out/table.txt").read_text()


def test_resamples_are_chosen_by_flags(runs, capsys):
    for flags in ((100, 0), (150, 0), (150, 4)):
        assert command.main([*map(str, runs), "--format=json", f"--bootstrap={flags[0]}", f"--seed={flags[1]}"]) == 0
        assert json.loads(capsys.readouterr().out) == command.compare(runs, bootstrap=flags[0], seed=flags[1])
    intervals = [
        command.compare(runs, bootstrap=b, seed=s)["benchmarks"]["lfw"]["figures"]["auc"]["other"]["ci95"]
        for b, s in ((100, 0), (150, 0), (150, 4))
    ]
    assert len({tuple(each) for each in intervals}) == 3


def test_a_benchmark_that_a_later_evaluation_added_is_found_there(tmp_path):
    runs = [a_run(tmp_path / name, judged(1.0, n), lr=0.1 * (n + 1)) for n, name in enumerate(("a", "b"))]
    for n, run in enumerate(runs):
        later = judged(1.0, 10 + n)
        later.write(pair_scores.file_of(run / "evaluations/2026", "cfp"))
        results = json.loads((run / "results.json").read_text())
        results["benchmarks"]["cfp"] = {
            "data_hash": later.data_hash,
            "n_pairs": 240,
            "evaluation": {"folder": "evaluations/2026"},
        }
        (run / "results.json").write_text(json.dumps(results))
    found = command.compare(runs, bootstrap=100)
    assert list(found["benchmarks"]) == ["lfw", "cfp"]
    expected = paired.resample([judged(1.0, 11)], bootstrap=100).values["auc"][0]
    assert found["benchmarks"]["cfp"]["figures"]["auc"]["b"]["mean"] == pytest.approx(expected)


def test_bad_input_is_one_line(runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    old = a_run(tmp_path / "old", judged(1.0, 1), lr=0.7)
    pair_scores.file_of(old, "lfw").unlink()
    elsewhere = a_run(tmp_path / "elsewhere", judged(1.0, 1), lr=0.8, benchmark="agedb")
    questions = a_run(tmp_path / "questions", judged(1.0, 1), lr=0.9)
    (questions / "results.json").write_text('{"benchmarks": {"lfw": {"generated": 0.5}}, "base_hash": ""}')
    for arguments, message in (
        ([runs[0]], "at least two runs"),
        ([runs[0], runs[0]], "given twice"),
        ([runs[0], tmp_path / "empty"], "not the work directory of a finished run"),
        ([runs[0], elsewhere], "no benchmark in common"),
        ([runs[0], old], "evaluate again: python -m fvjax.main"),
        ([*runs, "--benchmark=cfp"], "was evaluated on lfw"),
        ([*runs, "--bootstrap=5"], "at least 100"),
        ([runs[0], questions], "benchmark lfw is not of pairs of faces"),
    ):
        assert command.main([*map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_benchmark_whose_name_has_a_slash_is_plotted_beside_the_others(tmp_path, capsys):
    runs = [a_run(tmp_path / n, judged(1.0, k), lr=0.1 * (k + 1), benchmark="cfp/fp") for k, n in enumerate("ab")]
    assert command.main([*map(str, runs), "--bootstrap=100", f"--dst={tmp_path / 'out'}"]) == 0
    assert {"roc_cfp%2Ffp.png", "det_cfp%2Ffp.pdf"} <= {p.name for p in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    ("flag", "shown"), [("--format=json", False), ("--format=csv", True), ("--format=table", True)]
)
def test_a_bar_counts_the_resamples_but_not_beside_json_for_a_program(runs, monkeypatch, capsys, flag, shown):
    """Two models of 100 resamples each; standard output is no terminal here."""
    asked, advanced, totals = [], [], []

    class Bar:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def add_task(self, name, total):
            totals.append((name, total))
            return 7

        def advance(self, task, count):
            advanced.append((task, count))

    monkeypatch.setattr(command, "progress_bar", lambda shown: asked.append(shown) or Bar())
    assert command.main([*map(str, runs), "--bootstrap=100", flag]) == 0
    assert asked == [shown]
    assert totals == [("resamples", 200)]
    assert {task for task, _ in advanced} == {7}
    assert sum(count for _, count in advanced) == 200


def test_runs_of_one_recipe_are_opened_as_one_model(runs, tmp_path):
    model = command.open_model("mine", runs[1:])
    assert (model.name, model.seeds, model.workdirs) == ("mine", (0, 1, 2), tuple(runs[1:]))
    assert command.open_model("alone", runs[:1]).seeds == (0,)
    with pytest.raises(ValueError, match="differ in more than their seed"):
        command.open_model("mine", runs)
    with pytest.raises(ValueError, match="not the work directory of a finished run"):
        command.open_model("mine", [tmp_path / "nothing"])
