"""Test the visible results for made-up entries: cells of the table, rows of several runs, plotted lines, the log.

All numbers of a made-up entry are different, so that a cell or a point in the wrong place is detected.
"""

import contextlib
import io
import itertools
import json
import time
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console
from tensorboardX.proto import event_pb2

from fvjax import console, errors, files
from fvjax.config import LogConfig, base, benchmark, typed
from fvjax.data import images, stores
from fvjax.evals import pair_scores, plots, verification
from fvjax.evals.pair_scores import PairScores
from fvjax.results import compare, publish
from fvjax.tasks import benchmarks
from fvjax.tasks.face_verification import VerificationEvaluator
from fvjax.training import metrics
from fvjax.training.validation import Evaluations, EvaluationSchedule
from tests.full_disk import PROBLEM, files_up_to
from tests.test_images import smooth_face
from tests.test_run_files import events


def entry(of: int, lost: int = 0, seen: int | None = None, **more) -> dict:
    """Return an entry whose digits say what they are: 0.of1 is the best threshold's mean, 0.of2 its std, ..."""
    at = of / 10

    def figure(place: int, **names) -> dict:
        low = at + place / 100
        return {**names, "ci95": [low + 0.002, low + 0.004]}

    return {
        "n_pairs": 1000 * of,
        "n_genuine": 400 * of,
        "n_impostor": 600 * of,
        "n_folds": 10,
        "accuracy@best_threshold": figure(1, mean=at + 0.0111, std=0.0122, threshold=0.3),
        "accuracy@far=1e-3": figure(2, mean=at + 0.0211, std=0.0222, threshold=0.4),
        "tar@far=1e-1": figure(3, value=at + 0.0311, impostors_above=310 + of),
        "tar@far=1e-2": figure(4, value=at + 0.0411, impostors_above=41 + of),
        "tar@far=1e-3": figure(5, value=at + 0.0511, impostors_above=5 + of),
        "auc": figure(6, value=at + 0.0611),
        "eer": figure(7, value=at + 0.0711),
        "failure_to_acquire": lost,
        "policy": "drop",
        "identity_disjoint": None,
        "identities_seen_in_training": seen,
        "before_training": None,
        "data_hash": f"{of}",
        **more,
    }


def cells(of: int, lost: int = 0) -> tuple[str, str]:
    """Return the two lines of that entry's row, in per cent, without the names."""
    n = of
    above = f"{n}000 {n}1.11 ± 1.22 {n}2.11 ± 2.22 {n}3.11 ({310 + n}) {n}4.11 ({41 + n}) {n}5.11 ({5 + n})"
    below = " ".join(f"{n}{place}.2–{n}{place}.4" for place in range(1, 8))
    return f"{above} {n}6.11 {n}7.11", f"{lost} FTA {below}" if lost else below


def printed(show, width: int = 240) -> str:
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(console.console, "width", width)
        show()
    return out.getvalue()


def rows_of(text: str) -> list[tuple[str, str]]:
    """Return the lines of the table's rows, two by two, with spaces collapsed."""
    shown = text.splitlines()
    body = shown[next(i for i, line in enumerate(shown) if "──" in line) + 1 :]
    body = body[: next((i for i, line in enumerate(body) if not line.strip()), None)]
    lines = [" ".join(line.split()) for line in body]
    return list(zip(lines[::2], lines[1::2], strict=True))


def row(benchmark: str, name: str, of: int, lost: int = 0) -> tuple[str, str]:
    above, below = cells(of, lost)
    return f"{benchmark} {above}", f"{name} {below}"


# ---- the table


def test_every_cell_of_the_table_is_its_figure_in_per_cent_below_its_head():
    text = printed(lambda: console.console.print(verification.table([("a", "x", entry(1, 7)), ("b", "y", entry(2))])))
    assert rows_of(text) == [row("x", "a", 1, 7), row("y", "b", 2)]
    lines = text.splitlines()
    rule = next(i for i, line in enumerate(lines) if "──" in line)
    heads = [line.split() for line in lines[rule - 2 : rule]]
    assert heads[0] == ["benchmark", "pairs", "10-fold", "10-fold", "TAR", "TAR", "TAR", "AUC", "EER"]
    assert " ".join(heads[1]) == "model best @FAR 1e-3 @FAR 1e-1 @FAR 1e-2 @FAR 1e-3"
    for head, cell in (("AUC", "16.11"), ("EER", "17.11"), ("pairs", "1000")):  # right-justified
        assert lines[rule - 2].index(head) + len(head) == lines[rule + 1].index(cell) + len(cell)
    assert "(%)" in text
    assert "95%" in text
    assert "\nAccuracy: 10-fold mean ± std" in text
    assert "floor(n / 1000)" in text


def test_the_table_says_how_many_folds_there_were_and_leaves_out_intervals_that_were_not_asked_for():
    few = entry(3) | {"n_folds": 9}
    none = {
        key: value | {"ci95": None} if isinstance(value, dict) and "ci95" in value else value
        for key, value in entry(1).items()
    }
    text = printed(lambda: console.console.print(verification.table([("a", "x", few), ("b", "y", none)])))
    assert rows_of(text) == [row("x", "a", 3), (f"y {cells(1)[0]}", "b")]
    assert "\nAccuracy: 9/10-fold mean" in text


def finished(**changes) -> dict:
    results = {"benchmarks": {"lfw": entry(1, seen=0), "cfp": entry(2, seen=0)}, "validation": None, "pools": {}}
    return {**results, "baselines": {}, **changes}


class Judge(VerificationEvaluator):
    def score(self, state):
        raise AssertionError("nothing is scored here")


def of(config, workdir: Path) -> benchmarks.Benchmarks:
    c = typed(config)
    return benchmarks.Benchmarks(c.eval, c.data, c.seed, workdir)


def evaluations(workdir: Path, seconds: float) -> Evaluations:
    """Return the object that records a run's evaluations; an epoch has 8 steps."""
    judge, schedule = Judge("net", of(base(), workdir), set()), EvaluationSchedule(8, 24, False)
    writer = metrics.Writer("net", workdir, LogConfig(), active=False)
    return Evaluations(judge, schedule, cast(Any, None), workdir, 8, lambda: seconds, writer)


def drawn(patch) -> dict:
    """Return a dict that receives each figure by file name when it is saved."""
    kept = {}
    real = FigureCanvasAgg.print_png

    def draw(canvas, path):
        kept[Path(path).name] = canvas.figure
        real(canvas, path)

    patch.setattr(FigureCanvasAgg, "print_png", draw)
    return kept


def scored(*scores: float) -> PairScores:
    """Return the scores of as many pairs of one fold, genuine and impostor in turn."""
    number = np.arange(len(scores))
    same = number % 2 == 0
    return PairScores(np.array(scores, np.float32), same, 0 * number, number, number + 1, number, number, "d", "p")


SCORED = {"lfw": scored(0.9, 0.1, 0.4, 0.3), "cfp": scored(0.2, 0.1, 0.4, 0.3, 0.5, 0.6)}


@pytest.mark.parametrize("draw", [plots.roc, plots.det])
def test_a_plot_that_the_disk_cuts_short_is_not_left(tmp_path, draw):
    with files_up_to(1000), pytest.raises(OSError, match="File too large") as full:
        draw(tmp_path / "x.png", {name: (its.scores, its.same) for name, its in SCORED.items()})
    assert errors.line(full.value) == f"{tmp_path}/x.png: {PROBLEM}"
    assert list(tmp_path.iterdir()) == []


def test_a_runs_table_has_its_rows_in_order_and_says_what_was_seen(tmp_path, monkeypatch):
    results = finished(
        validation=entry(9, seen=324),
        pools={"all_mean": {"lfw": entry(3), "cfp": entry(4)}, "last_token": {"lfw": entry(5), "cfp": entry(6)}},
        baselines={"raw pixels": {"lfw": entry(7), "cfp": entry(8)}},
    )
    lfw, cfp = results["benchmarks"]["lfw"], results["benchmarks"]["cfp"]
    lfw |= {"before_training": entry(6, 2)}
    cfp |= {"identities_seen_in_training": 12, "identity_disjoint": entry(3, 4)}
    figures = drawn(monkeypatch)
    text = printed(lambda: publish(tmp_path, results, benchmarks.report("net", results, SCORED)))
    assert rows_of(text) == [
        row("validation", "net (ids seen)", 9),
        row("lfw", "raw pixels", 7),
        row("lfw", "net, before training", 6, 2),
        row("lfw", "net", 1),
        row("lfw", "net, all_mean", 3),
        row("lfw", "net, last_token", 5),
        row("cfp", "raw pixels", 8),
        row("cfp", "net (12 ids seen)", 2),
        row("cfp", "net, all_mean", 4),
        row("cfp", "net, last_token", 6),
        row("cfp", "net, unseen ids only", 3, 4),
    ]
    assert f"Everything about this run is in {tmp_path} " in text
    written = json.loads((tmp_path / "results.json").read_text())
    assert written.pop("evaluation")["name"] == ""
    assert written == results
    for name, its in SCORED.items():
        found = pair_scores.read(tmp_path / "scores" / f"{name}.npz")
        assert found.scores.tolist() == its.scores.tolist()
    assert {file: figure.axes[0].get_title()[:3] for file, figure in figures.items()} == {
        "roc.png": "ROC",
        "det.png": "DET",
    }
    for figure in figures.values():
        labels = [str(line.get_label()) for line in figure.axes[0].get_lines()]
        assert [label[:3] for label in labels if "pairs" in label] == ["lfw", "cfp"]


def test_figures_before_training_are_kept_beside_those_of_the_same_data(tmp_path):
    class Judged(Judge):
        def run(self, state, title):
            return {"lfw": entry(1), "cfp": entry(2)}, {}, {}

    c = base()
    c.eval.baselines = False
    before = {"lfw": entry(3, data_hash="1"), "cfp": entry(4, data_hash="changed since"), "gone": entry(5)}
    report = Judged("net", of(c, tmp_path), set()).report(cast(Any, None), before, None)
    found = report.results["benchmarks"]
    assert {name: one["before_training"] for name, one in found.items()} == {"lfw": before["lfw"], "cfp": None}


def test_only_the_first_process_prints_and_writes(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/results.json").write_text(json.dumps(finished()))
    monkeypatch.setattr(jax, "process_index", lambda: 1)

    def all_of_it():
        publish(tmp_path, finished(), benchmarks.report("net", finished(), SCORED))
        compare({tmp_path / "one": benchmarks.comparison})
        evaluations(tmp_path, 2.0).append(3, {})
        writer = metrics.Writer("net", tmp_path, LogConfig())
        writer.open(0)
        writer.start(0, 3)
        writer.write(0, {"loss": 1.0})
        writer.show(1, "text")
        writer.say("text")
        writer.close()

    assert printed(all_of_it) == ""
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_without_benchmarks_there_is_no_table_and_no_plot(tmp_path):
    nothing = finished(benchmarks={})
    text = printed(lambda: publish(tmp_path, nothing, benchmarks.report("net", nothing, {})))
    assert text.startswith("Everything about this run is in")
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_several_runs_are_compared_benchmark_by_benchmark(tmp_path):
    knowing_nothing = {"raw pixels": {"lfw": entry(7), "cfp": entry(8)}, "colours": {"lfw": entry(5), "cfp": entry(6)}}
    runs = {
        "resnet": finished(baselines=knowing_nothing),
        "vit": finished(benchmarks={"lfw": entry(3), "cfp": entry(4)}, baselines={}),
    }
    for name, results in runs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    expected = [
        row("lfw", "raw pixels", 7),
        row("lfw", "colours", 5),
        row("lfw", "resnet", 1),
        row("lfw", "vit", 3),
        row("cfp", "raw pixels", 8),
        row("cfp", "colours", 6),
        row("cfp", "resnet", 2),
        row("cfp", "vit", 4),
    ]
    assert (
        rows_of(printed(lambda: compare(dict.fromkeys((tmp_path / name for name in runs), benchmarks.comparison))))
        == expected
    )
    swapped = [expected[i] for i in (0, 1, 3, 2, 4, 5, 7, 6)]
    other_order = dict.fromkeys((tmp_path / name for name in ("vit", "resnet")), benchmarks.comparison)
    assert rows_of(printed(lambda: compare(other_order))) == swapped


# ---- the log


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_evaluation_replaces_those_of_its_step_and_later_and_keeps_earlier_ones(tmp_path):
    results = {"lfw": entry(1), "cfp": entry(2)}
    for step, seconds in ((4, 1.04), (8, 2.0), (12, 3.0), (8, 60.26)):
        summary = benchmarks.summary(results)
        text = printed(lambda step=step, s=seconds, x=summary: evaluations(tmp_path, s).append(step, x))
    assert text == "evaluation at step 8: lfw 11.11% best threshold, cfp 21.11% best threshold\n"
    found = jsonl(tmp_path / "evaluations.jsonl")
    assert [(line["step"], line["epoch"], line["seconds"]) for line in found] == [(4, 0.5, 1.0), (8, 1.0, 60.3)]
    keys = ("accuracy@best_threshold", "accuracy@far=1e-3")
    for line in found:
        assert {name: line[name] for name in results} == {
            name: {key: one[key]["mean"] for key in keys} for name, one in results.items()
        }


def test_lines_of_the_step_that_is_redone_go_and_a_line_cut_short_goes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = "".join(f'{{"step": {step}, "loss": 1.5}}\n' for step in range(5))
    path.write_text(whole + '{"step": 5, "lo')
    assert [line["step"] for line in files.read_lines(path)] == [0, 1, 2, 3, 4]
    files.keep_before(path, 5)
    assert path.read_text() == whole
    files.keep_before(path, 3)
    assert [line["step"] for line in jsonl(path)] == [0, 1, 2]
    files.keep_before(path, 0)
    assert path.read_text() == ""
    assert files.read_lines(tmp_path / "none.jsonl") == []


def test_the_events_of_a_start_begin_with_its_step_and_hold_numbers_only(tmp_path, monkeypatch):
    clock = itertools.count(1000, 5)  # seconds; files are named by them
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    for step in (0, 7):
        writer = metrics.Writer("net", tmp_path, LogConfig())
        writer.open(step)
        writer.start(step, 9)
        for at in (step, step + 1):
            writer.write(at, {"loss": at + 0.5, "lr": 0.25, "state_hash": "abc"})
        writer.close()
    found = [events(file) for file in sorted((tmp_path / "tb").iterdir())]
    assert all(event.wall_time >= 1000 for part in found for event in part)
    began = [(e.session_log.status, e.step) for part in found for e in part if e.HasField("session_log")]
    assert began == [(event_pb2.SessionLog.START, 0), (event_pb2.SessionLog.START, 7)]
    values = [(v.tag, e.step, v.simple_value) for part in found for e in part for v in e.summary.value]
    expected = [(tag, step, {"loss": step + 0.5, "lr": 0.25}[tag]) for step in (0, 1, 7, 8) for tag in ("loss", "lr")]
    assert sorted(values) == sorted(expected)
    assert jsonl(tmp_path / "metrics.jsonl")[-1] == {"step": 8, "loss": 8.5, "lr": 0.25, "state_hash": "abc"}


def test_on_a_terminal_a_line_says_how_far_it_is(tmp_path, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(metrics, "console", Console(file=out, force_terminal=True, width=120))
    writer = metrics.Writer("net", tmp_path, LogConfig(tensorboard=False))
    writer.open(5)
    writer.start(5, 12)
    writer.show(6, "epoch 2/3 loss 1.25")
    writer.progress.refresh()
    writer.close()
    assert "step 5/12" in out.getvalue()
    assert "compiling" in out.getvalue()
    assert "step 6/12" in out.getvalue()
    assert "epoch 2/3 loss 1.25" in out.getvalue()
    assert not (tmp_path / "tb").exists()


def test_a_config_says_what_is_evaluated_and_the_synthetic_faces_come_with_it(tmp_path):
    config = base()
    config.data.names = "made up"
    config.eval.benchmarks["mine"] = benchmark("there", "all", "other")
    assert list(of(config, tmp_path).chosen) == ["mine"]
    config.data.synthetic.identities = 3
    found = of(config, tmp_path).chosen
    assert list(found) == ["mine", "synthetic"]
    assert (found["synthetic"].pairs, found["synthetic"].names) == ("synthetic", "made up")


def test_the_bar_of_an_evaluation_counts_batches_of_new_faces(tmp_path, monkeypatch):
    """Two of nine records are in no pair, and records that a benchmark has already used are not embedded again."""
    records = [(images.encode(smooth_face(i)), f"{i // 3}", f"{i}.jpg") for i in range(9)]
    faces = stores.write(tmp_path / "faces", records, split="test", sources=["here"])
    for name, a, b in (("few", [0, 0, 3, 3], [1, 3, 4, 6]), ("more", [0, 0, 3, 3], [2, 3, 4, 7])):
        a, b = np.array(a), np.array(b)
        same = faces.labels[a] == faces.labels[b]
        pairs = stores.Pairs(a, b, same, np.array([0, 0, 1, 1]), faces.labels[a], faces.labels[b])
        stores.write_pairs(faces.path, name, pairs)
    config, bars = base(), []
    config.eval.batch_size, config.eval.bootstrap = 2, 0
    for name in ("few", "more"):
        config.eval.benchmarks[name] = benchmark(str(faces.path), name)
    monkeypatch.setattr(
        benchmarks, "progress", lambda what, *shown, **counted: bars.append((*shown, *counted.values())) or what
    )
    score = benchmarks.CosineScore(config.eval, lambda x: x.reshape(len(x), -1).astype(np.float32))
    of(config, tmp_path).run(score, seen=set(), title="net")
    assert bars == [("net: few", 3, 5, "images"), ("net: more", 1, 2, "images")], (
        "records 0, 1, 3, 4 and 6, then 2 and 7"
    )


# ---- plots


def points(scores: np.ndarray, labels: np.ndarray) -> list[tuple[float, float]]:
    """Return (FAR, TAR) by counting, at each threshold from the highest score on.

    Of equal FARs the highest TAR counts, and none below one impostor pair.
    """
    found: dict[float, float] = {}
    for threshold in sorted(set(scores.tolist()), reverse=True):
        accepted = [score >= threshold for score in scores]
        far = sum(a and not same for a, same in zip(accepted, labels)) / sum(~labels)
        found[far] = sum(a and same for a, same in zip(accepted, labels)) / sum(labels)
    return sorted((far, tar) for far, tar in found.items() if far > 0)


def area_and_equal_error(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    genuine, impostor = scores[labels], scores[~labels]
    auc = np.mean([(g > i) + 0.5 * (g == i) for g in genuine for i in impostor])
    curve = [(0.0, 0.0)]
    for threshold in sorted(set(scores.tolist()), reverse=True):
        curve.append((np.mean(impostor >= threshold), np.mean(genuine >= threshold)))
    for (far, tar), (next_far, next_tar) in itertools.pairwise(curve):
        if next_far >= 1 - next_tar:
            part = (1 - tar - far) / (next_far - far + next_tar - tar)
            return float(auc), far + part * (next_far - far)
    raise AssertionError


@pytest.fixture(scope="module")
def curves() -> dict:
    """Return two benchmarks of different sizes, with ties; FAR and TAR are never equal."""
    rng = np.random.default_rng(0)
    out = {}
    for name, genuine, impostor, apart in (("lfw", 60, 140, 2.0), ("cfp", 50, 40, 1.2)):
        labels = np.arange(genuine + impostor) < genuine
        order = rng.permutation(len(labels))
        scores = np.round(rng.normal(size=len(labels)) + apart * labels, 1)
        out[name] = scores[order], labels[order]
    return out


@pytest.fixture(scope="module")
def axes(curves, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("plots")
    with pytest.MonkeyPatch.context() as patch:
        kept = drawn(patch)
        plots.roc(folder / "roc.png", curves)
        plots.det(folder / "det.png", curves)
    return {file: figure.axes[0] for file, figure in kept.items()}


def named(axes, curves) -> dict:
    """Return the lines of the benchmarks by name, in the legend's order."""
    lines = {str(line.get_label()).partition(",")[0]: line for line in axes.get_lines()}
    assert [text.get_text().partition(",")[0] for text in axes.get_legend().get_texts()][: len(curves)] == list(curves)
    return {name: lines[name] for name in curves}


def test_labels_of_the_curves_say_pairs_area_and_equal_error(axes, curves):
    for plot in axes.values():
        for name, line in named(plot, curves).items():
            auc, eer = area_and_equal_error(*curves[name])
            pairs = len(curves[name][1])
            assert line.get_label() == f"{name}, {pairs} pairs: AUC {100 * auc:.2f}%, EER {100 * eer:.2f}%"


def test_the_roc_has_true_accepts_over_false_accepts(axes, curves):
    plot = axes["roc.png"]
    assert plot.get_title() == "ROC, all pairs of a benchmark pooled (no folds)"
    assert (plot.get_xlabel(), plot.get_ylabel()) == ("false accept rate (FAR)", "true accept rate (TAR)")
    assert (plot.get_xscale(), plot.get_yscale()) == ("log", "linear")
    assert plot.get_xlim() == (pytest.approx(1 / 140), 1), "one impostor pair of the largest benchmark"
    lowest = min(points(*curve)[0][1] for curve in curves.values())
    bottom, top = plot.get_ylim()
    assert top == 1
    assert 20 * bottom == pytest.approx(round(20 * bottom), abs=1e-9), "a multiple of 5%"
    assert lowest - 0.06 < bottom <= lowest - 0.01
    assert plot.yaxis.get_major_formatter()(0.5) == "50%"
    assert plot.xaxis._minor_tick_kw["gridOn"], "lines between the powers of ten"
    for name, line in named(plot, curves).items():
        expected = np.array(points(*curves[name]))
        assert line.get_drawstyle() == "steps-post", "TAR rises at the next FAR, not before"
        np.testing.assert_allclose(np.asarray(line.get_xdata()), expected[:, 0])
        np.testing.assert_allclose(np.asarray(line.get_ydata()), expected[:, 1])


def test_the_det_has_false_rejects_over_false_accepts(axes, curves):
    plot = axes["det.png"]
    assert plot.get_title() == "DET, all pairs of a benchmark pooled (no folds)"
    assert (plot.get_xlabel(), plot.get_ylabel()) == ("false accept rate (FAR)", "false reject rate (FRR)")
    assert (plot.get_xscale(), plot.get_yscale()) == ("log", "log")
    assert plot.get_xlim() == (pytest.approx(1 / 140), 1)
    assert plot.get_ylim() == (pytest.approx(1 / 60), 1), "one genuine pair of the benchmark with the most"
    marks = [line for line in plot.get_lines() if line.get_marker() == "o"]
    assert len(marks) == len(curves)
    for mark, (name, line) in zip(marks, named(plot, curves).items()):
        far, tar = np.array(points(*curves[name])).T
        assert line.get_drawstyle() == "steps-post"
        np.testing.assert_allclose(np.asarray(line.get_xdata()), far)
        np.testing.assert_allclose(np.asarray(line.get_ydata()), np.maximum(1 - tar, 1 / 120), atol=1e-12)
        _, eer = area_and_equal_error(*curves[name])
        assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (pytest.approx(eer), pytest.approx(eer))
        assert mark.get_color() == line.get_color()
    (diagonal,) = [line for line in plot.get_lines() if line.get_label() == "FRR = FAR"]
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())
    assert diagonal.get_xdata()[-1] == 1
