"""The report card: every figure of results.json stands in it, it loads nothing, and what is unknown is said."""

from __future__ import annotations

import base64
import json
import math
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fvjax import compare, evaluate, prepared, report
from fvjax.data import images, stores, synthetic
from fvjax.evals import pair_scores, paired
from fvjax.reporting import figures, page, pair_sections, rates, words

NAME = "<script>alert(1)</script> & $x$"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The parts of a page that tests look at."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[dict] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, "an element is not closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in VOID:
            return
        self._open.append(tag)
        if tag == "table":
            self.tables.append({"caption": "", "rows": []})
        elif tag == "tr":
            self.tables[-1]["rows"].append([])
        elif tag in ("td", "th"):
            self.tables[-1]["rows"][-1].append("")
        elif tag == "small":
            self.tables[-1]["rows"][-1][-1] += "\n"
        else:
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "table" in self._open:
            if "caption" in self._open:
                self.tables[-1]["caption"] += data
            elif self._open[-1] in ("td", "th", "small"):
                self.tables[-1]["rows"][-1][-1] += data
        elif self._open:
            self.texts.setdefault(self._open[-1], [""])[-1] += data

    @property
    def text(self) -> str:
        return "\n".join(part for name, parts in self.texts.items() if name != "style" for part in parts)

    def table(self, *head: str) -> list[list[str]]:
        """Return the rows of the first table whose head begins so, without the head."""
        return next(table["rows"][1:] for table in self.tables if tuple(table["rows"][0][: len(head)]) == head)

    def fact(self, name: str) -> str:
        """Return the first value of a name in a list of facts."""
        return self.texts["dd"][self.texts["dt"].index(name)]


def embedder(step: int) -> Callable:
    return lambda faces: faces[:, ::step, ::step].reshape(len(faces), -1).astype(np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return Path(synthetic.write(tmp_path_factory.mktemp("s") / "s", range(20), 3, 0, split="test", pairs=80).path)


@pytest.fixture(scope="module")
def made(tmp_path_factory, store) -> Path:
    """Return a folder with two evaluations of foreign models, "one" and "two"."""
    folder = tmp_path_factory.mktemp("runs")
    for name, step in (("one", 8), ("two", 16)):
        identity = {"embedder": NAME, "hash": "ab" * 32, "step": step}
        benchmarks = prepared.benchmarks_of([str(store)])
        evaluate.evaluate(
            embedder(step), benchmarks, folder / name, identity=identity, bootstrap=40, devices="a pencil"
        )
    return folder


@pytest.fixture
def run(made, tmp_path) -> Path:
    """Return a copy of the first evaluation, which a test may change."""
    return Path(shutil.copytree(made / "one", tmp_path / "one"))


def change(run: Path, **changes) -> dict:
    """Change entries of results.json, and return it."""
    results = json.loads((run / "results.json").read_text()) | changes
    (run / "results.json").write_text(json.dumps(results))
    return results


def entry_of(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())["benchmarks"]["synthetic"]


def made_page(*arguments: object, out: Path) -> Page:
    file = out / "report.html"
    assert report.main([*map(str, arguments), f"--out={file}"]) == 0
    return Page(file.read_text())


@pytest.fixture(scope="module")
def both(made, tmp_path_factory) -> Page:
    """Return the page of both evaluations."""
    out = tmp_path_factory.mktemp("page")
    return made_page(made / "one", made / "two", "--bootstrap=100", "--hardest=3", out=out)


def shown(figure: dict) -> str:
    value = figure.get("mean", figure.get("value"))
    std = f" ± {100 * figure['std']:.2f}" if "std" in figure else ""
    low, high = figure["ci95"]
    return f"{100 * value:.2f}{std}\n{100 * low:.2f} to {100 * high:.2f}"


# ---- what the page shows


def test_every_figure_of_the_results_is_a_cell(both, made):
    for head in (("row", "pairs"), ("benchmark, model", "pairs")):
        rows = both.table(*head)
        entry = entry_of(made / "one")
        assert rows[0][0] in ("one", "synthetic\none")
        assert rows[0][1:] == ["80", *(shown(entry[key]) for key in words.FIGURES)]
    rows = both.table("benchmark, model")
    assert rows[1] == ["synthetic\ntwo", "80", *(shown(entry_of(made / "two")[key]) for key in words.FIGURES)]


def test_the_table_of_error_rates_is_that_of_a_plain_count(both, made):
    scores = pair_scores.read(made / "one/scores/synthetic.npz")
    rows = both.table("FMR at most")
    assert [row[0] for row in rows] == ["1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6"]
    impostors, genuine = scores.scores[~scores.same], scores.scores[scores.same]
    thresholds = sorted(t for t in scores.scores if np.mean(impostors >= t) <= 0.1)
    threshold, *_ = thresholds
    edges = entry_of(made / "one")["tar@far=1e-1"]["ci95"]
    above = int((impostors >= threshold).sum())
    assert rows[0][1] == f"{threshold:.4f}"
    assert rows[0][2] == f"{above} of 40 (few)"
    assert rows[0][4] == f"{100 * np.mean(genuine < threshold):.2f}"
    assert rows[0][5] == f"{100 - 100 * edges[1]:.2f} to {100 - 100 * edges[0]:.2f}"
    for row, needed in zip(rows[1:], ("100", "1,000", "10,000", "100,000", "1,000,000"), strict=True):
        assert row[1:3] == ["not measured", f"40 impostor pairs, {needed} needed"]


def test_a_threshold_is_the_lowest_that_accepts_few_enough():
    rng = np.random.default_rng(0)
    for ties in (1000, 8):  # of 8 different scores, many are equal
        values = (np.floor(rng.random(200) * ties) / ties).astype(np.float32)
        same = np.arange(200) < 60
        scores = pair_scores.PairScores(values, same, *[np.zeros(200, np.int64)] * 5, "d", "p")
        for rate in (0.5, 0.1, 0.01, 0.001):
            allowed = [float(t) for t in values if np.mean(values[~same] >= t) <= rate]
            assert rates.lowest_threshold(scores, rate) == (min(allowed) if allowed else math.inf)


def test_a_threshold_that_no_score_reaches_is_said():
    values, same = np.array([0.5, 0.9, 0.1], np.float32), np.array([True, False, False])
    scores = pair_scores.PairScores(values, same, *[np.zeros(3, np.int64)] * 5, "d", "p")
    entry = {"n_impostor": 10, "tar@far=1e-1": {"value": 0.0, "ci95": None, "impostors_above": 0}}
    row = pair_sections.rate_row(rates.operating_points(entry, scores)[0])
    assert row == ["1e-1", "above all scores", "0 of 10 (few)", "0 to 28", "100.00", "no interval"]


def test_protocol_and_threshold_are_told_in_words(both, made):
    entry = entry_of(made / "one")
    assert (
        "80 pairs of pictures: 40 genuine ones (one person) and 40 impostor pairs (two persons), in 10 folds."
        in both.text
    )
    assert "A score is the cosine of two embeddings, of the pictures as they are." in both.text
    assert entry["intervals"] in both.text
    assert "Failure to acquire: 0 pictures (policy “fail”" in both.text
    threshold = entry["accuracy@far=1e-3"]["threshold"]
    assert (
        f"which fvjax verify uses: {threshold:.4f}, the mean over folds. It lies just above all of some 36" in both.text
    )
    assert "people of this benchmark is not known" in both.text


def test_the_origin_of_the_figures_is_listed(both, made):
    results = json.loads((made / "one/results.json").read_text())
    evaluation = results["evaluation"]
    assert both.fact("evaluated") == evaluation["date"]
    assert both.fact("devices") == "a pencil"
    assert both.fact("seconds").startswith(f"{results['seconds']:,} (the evaluation")
    assert results["seconds"] > 0
    for key in ("python", "jax", "processor", "system", "numpy"):
        assert both.fact(key) == (
            evaluation["environment"][key] or "not known: an older version of fvjax did not note it"
        )
    assert both.fact("hash of the model") == "ab" * 32
    assert both.fact("hash of synthetic") == results["benchmarks"]["synthetic"]["data_hash"]
    assert both.fact("code version") == results["code_version"]
    assert all(text.strip() for text in both.texts["dd"])


def test_the_hardest_pairs_have_their_records_and_files(both, made, store):
    scores, opened = pair_scores.read(made / "one/scores/synthetic.npz"), stores.Store(store, "test")
    tables = [table for table in both.tables if table["rows"][0][:2] == ["score", "pair"]]
    for table, same, sign in zip(tables[:2], (False, True), (-1, 1), strict=True):
        numbers = np.flatnonzero(scores.same == same)
        expected = numbers[np.argsort(sign * scores.scores[numbers], kind="stable")][:3]
        assert len(table["rows"]) == 1 + 3
        for row, number in zip(table["rows"][1:], expected, strict=True):
            a, b = int(scores.a[number]), int(scores.b[number])
            assert row[:3] == [f"{scores.scores[number]:.4f}", str(number), str(scores.fold[number])]
            for cell, record in zip(row[3:], (a, b), strict=True):
                person = opened.identities[opened.labels[record]]
                assert cell == f"record {record}\n{opened.sources[record]} (person: {person})"
    assert not [1 for tag, attributes in both.tags if "jpeg" in str(attributes.get("src"))]


def test_two_runs_are_compared_pair_by_pair(both, made):
    found = compare.compare([made / "one", made / "two"], bootstrap=100)
    expected = [
        [f"{model}\n{words.FIGURES[figure]}", *(cell or "–" for cell in cells)]
        for _, figure, model, *cells in compare.rows(found, list(paired.FIGURES))
    ]
    assert both.table("model and figure", "seeds") == expected
    assert compare.NOTE in both.text


# ---- what the page is


def test_the_page_loads_nothing_and_runs_nothing(both):
    names = {tag for tag, _ in both.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "a", "form"}
    for tag, attributes in both.tags:
        assert not [key for key in attributes if key.startswith("on")], tag
        for key in ("src", "href", "action", "data"):
            assert str(attributes.get(key, "data:")).startswith("data:image/") or key not in attributes
    policy = next(a["content"] for tag, a in both.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == page.POLICY
    assert "url(" not in page.STYLE
    assert "@import" not in page.STYLE
    assert "@media print" in page.STYLE


def test_every_figure_is_a_drawing_of_its_own(both):
    drawn = [attributes for tag, attributes in both.tags if tag == "img"]
    kinds = [("ROC", "DET"), ("ROC", "DET", "distribution of scores"), ("ROC", "DET", "distribution of scores")]
    assert [str(a["alt"]).split(" of ")[0] for a in drawn] == [k.split(" of ")[0] for three in kinds for k in three]
    for attributes in drawn:
        kind, data = str(attributes["src"]).split(";base64,")
        assert kind == "data:image/svg+xml"
        root = ElementTree.fromstring(base64.b64decode(data))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
        links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")]
        assert all(link.startswith("#") for link in links)
    assert len({a["src"] for a in drawn}) == len(drawn)


def test_names_are_text_whatever_they_hold(run, tmp_path):
    odd = run.rename(tmp_path / '<img src=x onerror="alert(2)">$_&')
    found = made_page(odd, "--bootstrap=100", out=tmp_path)
    assert found.fact("model") == NAME
    assert found.fact("work directory") == str(odd)
    assert found.table("row", "pairs")[0][0] == odd.name
    assert {attributes.get("src", "data:")[:5] for _, attributes in found.tags} == {"data:"}
    assert not {"script"} & {tag for tag, _ in found.tags}
    assert found.texts["title"] == [f"Report: {odd.name}"]


def test_elements_escape_text_and_attributes():
    inner = page.element("b", "<i>", title='"')
    assert inner == '<b title="&quot;">&lt;i&gt;</b>'
    assert page.element("p", inner, "&") == f"<p>{inner}&amp;</p>"
    assert page.table(("<",), [("&",)]).count("&lt;") == 1


# ---- runs that have more, or less


def test_what_an_old_run_lacks_is_said(run, tmp_path):
    results = change(run)
    del results["evaluation"], results["flip_sum"]
    entry = results["benchmarks"]["synthetic"]
    for far in ("1e-4", "1e-5", "1e-6"):
        del entry[f"tar@far={far}"]
    change(run, **{**results, "seconds": 0.0, "evaluation": {}, "flip_sum": None})
    (run / "scores/synthetic.npz").unlink()
    found = made_page(run, out=tmp_path)
    assert found.fact("evaluated") == found.fact("jax") == "not known: an older version of fvjax did not note it"
    assert found.fact("seconds").startswith("not known")
    assert "No curves, thresholds, score distributions or hardest pairs: " in found.text
    assert "synthetic.npz is missing" in found.text
    assert "whether mirrored pictures were added to them is not known" in found.text
    assert found.table("FMR at most")[0][1] == "not known"
    assert all(cell.strip() for table in found.tables for row in table["rows"] for cell in row)
    assert not [1 for tag, _ in found.tags if tag == "img"]


def test_every_row_of_a_run_is_there(run, tmp_path):
    """Baselines, before training, other poolings and unseen people, each with its own figures."""
    results = change(run)
    entry = results["benchmarks"]["synthetic"]

    def other(number: int) -> dict:
        return {**entry, "n_pairs": number, "eer": {"value": number / 100, "ci95": None}}

    entry = {**entry, "before_training": other(11), "identity_disjoint": other(12), "identities_seen_in_training": 3}
    change(
        run,
        benchmarks={"synthetic": entry},
        baselines={"raw pixels": {"synthetic": other(13)}},
        pools={"cls": {"synthetic": other(14)}},
        failed={"cfp": "its <store> is damaged"},
        evaluations=[{"date": "2026", "name": "mirrored", "benchmarks": ["lfw"], "folder": "evaluations/2026"}],
        train_data_hash="t" * 8,
        validation=other(15),
    )
    found = made_page(run, "--bootstrap=100", out=tmp_path)
    rows = {row[0]: (row[1], row[-1]) for row in found.table("row", "pairs")}
    assert rows == {
        "raw pixels": ("13", "13.00\nno interval"),
        "one, before training": ("11", "11.00\nno interval"),
        "one": ("80", shown(entry["eer"])),
        "one, pooling cls": ("14", "14.00\nno interval"),
        "one, unseen people only": ("12", "12.00\nno interval"),
    }
    assert "Training saw 3 of these people; the row “unseen people only” leaves their pairs out." in found.text
    assert "cfp: its <store> is damaged" in found.text
    assert found.table("date")[0] == ["2026", "mirrored", "lfw", "evaluations/2026"]
    assert found.fact("hash of the training data") == "t" * 8
    assert any(row[0] == "validation" and row[1] == "15" for table in found.tables for row in table["rows"])
    assert "No benchmark of this run has labels of groups" in found.text


def test_groups_have_rows_and_a_caution(run, tmp_path):
    entry = change(run)["benchmarks"]["synthetic"]
    parts = [f"rfw_{group}" for group in ("african", "asian", "caucasian", "indian")]
    members = {name: {**entry, "n_pairs": 100 + number} for number, name in enumerate(parts)}
    groups = {"rfw": {"mean": 0.91, "std": 0.02, "lowest": [parts[1], 0.88], "highest": [parts[2], 0.93]}}
    change(run, benchmarks=members, groups=groups)
    found = made_page(run, out=tmp_path)
    assert [row[:2] for row in found.table("group")] == [[name, str(100 + n)] for n, name in enumerate(parts)]
    sentence = "mean 91.00, standard deviation 2.00, lowest rfw_asian 88.00, highest rfw_caucasian 93.00."
    assert sentence in found.text
    assert "A group of few people has a wide interval" in found.text


def test_benchmarks_without_pairs_are_tables_or_one_line(run, tmp_path):
    share = {"value": 0.656, "ci95": [0.6, 0.7]}
    asked = {"n": 1001, "generated": share, "chosen": share, "majority": 0.53, "random": 0.5, "data_hash": "q"}
    benchmarks = {
        "fairface": {**asked, "by_kind": {"gender": asked}, "before_training": None},
        "facexbench": {"generation": {}, "data_hash": "x"},
        "head_pose": {"degrees": 3.0, "data_hash": "y"},
    }
    change(run, benchmarks=benchmarks)
    found = made_page(run, out=tmp_path)
    cell = "65.60\n60.00 to 70.00"
    assert found.table("questions") == [[kind, "1,001", cell, cell, "53.00", "50.00"] for kind in ("all", "gender")]
    assert "of FaceXBench's questions" in found.text
    assert "of a task that reports do not know" in found.text
    assert "No run has a benchmark of pairs of faces." in found.text


def test_a_training_run_is_described(run, tmp_path):
    settings = {
        "name": "vit_lora",
        "task": "pair_answer",
        "model": {"kind": "vlm", "pooling": ""},
        "init_from": "/data/InternVL2",
        "lora": {"rank": 8},
        "epochs": 20,
        "steps": 0,
        "seed": 3,
    }
    (run / "config.json").write_text(json.dumps(settings))
    found = made_page(run, out=tmp_path)
    assert found.fact("weights that it started from") == "InternVL2"
    assert found.fact("adapters") == "LoRA, rank 8"
    assert found.fact("trained") == "20 epochs, seed 3"
    assert "A score is the probability with which the model answers Yes" in found.text
    assert found.fact("hash of the training data") == "none: nothing was trained"


def test_pictures_are_shown_on_request_from_the_store_at_hand(run, store, tmp_path):
    found = made_page(run, "--pictures", "--hardest=2", "--bootstrap=100", out=tmp_path)
    scores, opened = pair_scores.read(run / "scores/synthetic.npz"), stores.Store(store, "test")
    first = int(np.flatnonzero(~scores.same)[np.argmax(scores.scores[~scores.same])])
    faces = [a for tag, a in found.tags if tag == "img" and a.get("class") == "face"]
    assert len(faces) == 2 * 2 * 2
    data = base64.b64decode(str(faces[0]["src"]).removeprefix("data:image/jpeg;base64,"))
    difference = images.decode(data, "face").astype(int) - opened.image(int(scores.a[first]))
    assert np.abs(difference).mean() < 3


def test_a_store_that_has_moved_is_recognised_by_its_hash(run, store, tmp_path):
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(store, moved)
    synthetic.write(other, range(20), 2, 5, split="test", pairs=20)
    results = change(run)
    results["evaluation"]["stores"] = {"synthetic": str(tmp_path / "nowhere")}
    change(run, **results)
    found = made_page(run, "--pictures", f"--data={other}", "--hardest=2", "--bootstrap=100", out=tmp_path)
    missing = f"The store with these pictures is not at hand; it is not in {other}, {tmp_path / 'nowhere'}."
    assert missing in found.text
    assert found.table("score", "pair")[0][3].startswith("record ")
    assert "\n" not in found.table("score", "pair")[0][3]
    found = made_page(run, f"--data={other}", f"--data={moved}", "--hardest=2", "--bootstrap=100", out=tmp_path)
    assert "not at hand" not in found.text
    assert "(person: synthetic" in found.table("score", "pair")[0][3]


def test_runs_of_other_benchmarks_stand_side_by_side_uncompared(run, made, tmp_path):
    results = change(run)
    change(run, benchmarks={"other": results["benchmarks"]["synthetic"]})
    found = made_page(run, made / "two", "--bootstrap=100", "--hardest=0", out=tmp_path)
    assert "The runs are not compared: they have no benchmark of pairs of faces in common." in found.text
    assert not [table for table in found.tables if table["rows"][0][:2] == ["score", "pair"]]


def test_flags_reach_the_figures(run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(figures, "roc", lambda benchmark, models, count: asked.append(count) or b"<svg/>")
    made_page(run, "--bootstrap=123", "--hardest=0", out=tmp_path)
    made_page(run, out=tmp_path)
    assert asked == [123, 500]
    scores = pair_scores.read(run / "scores/synthetic.npz")
    monkeypatch.setattr(figures, "MOST_WEIGHTS", 80 * 60)
    assert (figures.resamples(scores, 500), figures.resamples(scores, 40)) == (60, 40)
    monkeypatch.setattr(figures, "MOST_WEIGHTS", 80)
    assert figures.resamples(scores, 500) == 50


def test_an_evaluation_notes_where_and_on_what_it_was(made, store):
    evaluation = json.loads((made / "one/results.json").read_text())["evaluation"]
    assert evaluation["stores"] == {"synthetic": str(store)}
    assert evaluation["environment"].keys() == {"python", "jax", "numpy", "system", "processor", "devices"}


def test_mistakes_are_one_line(run, tmp_path, capsys):
    old = Path(shutil.copytree(run, tmp_path / "old"))
    results = change(old)
    del results["benchmarks"]["synthetic"]["eer"]
    change(old, **results)
    out = f"--out={tmp_path / 'x.html'}"
    for arguments, message in (
        ([run, run, out], "is given twice"),
        ([tmp_path / "nothing", out], "not the work directory of a finished run"),
        ([tmp_path, out], f"holds several runs; name them: {old} {run}"),
        ([run, f"--out={tmp_path / 'x.pdf'}"], "give a name that ends in .html"),
        ([run, out, "--bootstrap=5"], "at least 100"),
        ([run, out, "--hardest=-1"], "at least 0"),
        ([old, out], "old/results.json: another version of fvjax wrote it (KeyError: 'eer')"),
        ([run, f"--out={tmp_path / 'no/x.html'}"], "there is no folder"),
    ):
        assert report.main([*map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "x.html").exists()
