"""What a second evaluation of a run writes: nothing of the first is lost, and new benchmarks are added to it."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest

from fvjax import results as files_of_a_run
from fvjax import runtime
from fvjax.tasks.task import Report

FIRST = {
    "benchmarks": {"lfw": {"auc": 0.5, "data_hash": "1"}},
    "pools": {"mean": {"lfw": {"auc": 0.4}}},
    "baselines": {},
    "validation": None,
    "flip_sum": False,
    "step": 10,
    "config_hash": "c",
    "base_hash": "b",
    "dtype": "float32",
    "code_version": "1",
    "seconds": 1.0,
}
DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ(-\d+)?")


def published(workdir: Path, name: str = "", **changes) -> dict:
    """Publish FIRST with changes; every evaluation leaves a plot that holds its seconds. Return results.json."""
    results = {**copy.deepcopy(FIRST), **changes}

    def save(folder: Path) -> None:
        (folder / "roc.png").write_text(str(results["seconds"]))
        (folder / "scores").mkdir(exist_ok=True)
        (folder / "scores/lfw.npz").write_text(str(results["seconds"]))

    files_of_a_run.publish(workdir, results, Report(results, {}, None, save), name)
    return saved(workdir)


def saved(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def drawn(folder: Path) -> tuple[str, str]:
    return (folder / "roc.png").read_text(), (folder / "scores/lfw.npz").read_text()


def later(workdir: Path) -> list[Path]:
    return sorted((workdir / "evaluations").iterdir()) if (workdir / "evaluations").exists() else []


def test_the_first_evaluation_is_dated_and_named(tmp_path):
    found = published(tmp_path, "as published")
    assert found.pop("evaluation")["name"] == "as published"
    assert found == FIRST
    assert DATE.fullmatch(saved(tmp_path)["evaluation"]["date"])
    assert later(tmp_path) == []


def test_the_same_figures_again_change_nothing_but_the_drawings(tmp_path):
    first = published(tmp_path)
    assert published(tmp_path, "again", seconds=2.0, code_version="2") == first
    assert drawn(tmp_path) == ("2.0", "2.0")
    assert later(tmp_path) == []


def test_a_new_benchmark_is_added_and_the_whole_evaluation_kept(tmp_path):
    first = published(tmp_path)
    new = {"cfp": {"auc": 0.7}}
    pools = {"mean": {"cfp": {"auc": 0.6}}, "cls": {"cfp": {"auc": 0.8}}}
    found = published(tmp_path, "more", benchmarks=new, pools=pools, seconds=2.0)
    added = found["benchmarks"]["cfp"].pop("evaluation")
    assert found["benchmarks"] == {**FIRST["benchmarks"], **new}
    assert next(iter(found["benchmarks"])) == "lfw"  # the first whose threshold can be used stays the first
    assert found["pools"] == {"mean": {"cfp": {"auc": 0.6}, "lfw": {"auc": 0.4}}, "cls": {"cfp": {"auc": 0.8}}}
    (folder,) = later(tmp_path)
    assert found["evaluations"] == [{**added, "benchmarks": ["cfp"]}]
    assert added.pop("environment").keys() == runtime.environment().keys()
    assert added == {"name": "more", "date": folder.name, "folder": f"evaluations/{folder.name}"}
    assert {k: v for k, v in found.items() if k not in ("benchmarks", "pools", "evaluations")} == {
        k: v for k, v in first.items() if k not in ("benchmarks", "pools")
    }
    assert (saved(folder)["benchmarks"], saved(folder)["seconds"]) == (new, 2.0)
    assert (drawn(tmp_path), drawn(folder)) == (("1.0", "1.0"), ("2.0", "2.0"))


def test_an_added_benchmark_once_more_changes_nothing(tmp_path):
    published(tmp_path)
    found = published(tmp_path, benchmarks={"cfp": {"auc": 0.7}}, pools={})
    assert published(tmp_path, benchmarks={"cfp": {"auc": 0.7}}, pools={}) == found
    assert len(later(tmp_path)) == 1


@pytest.mark.parametrize("setting", [{"flip_sum": True}, {"dtype": "bfloat16"}])
def test_other_settings_never_reach_the_first_figures(tmp_path, setting):
    first = published(tmp_path)
    new = {"lfw": {"auc": 0.9, "data_hash": "1"}, "cfp": {"auc": 0.7}}
    found = published(tmp_path, benchmarks=new, seconds=2.0, **setting)
    (folder,) = later(tmp_path)
    assert found["benchmarks"] == first["benchmarks"]
    assert found["flip_sum"] is False
    assert saved(folder)["benchmarks"] == new
    assert [each["benchmarks"] for each in found["evaluations"]] == [["lfw", "cfp"]]


def test_another_figure_of_the_same_benchmark_is_kept_beside_the_first(tmp_path):
    published(tmp_path)
    for auc in (0.6, 0.7):
        published(tmp_path, benchmarks={"lfw": {"auc": auc, "data_hash": "2"}})
    assert saved(tmp_path)["benchmarks"] == FIRST["benchmarks"]
    folders = [tmp_path / each["folder"] for each in saved(tmp_path)["evaluations"]]
    assert [saved(folder)["benchmarks"]["lfw"]["auc"] for folder in folders] == [0.6, 0.7]
    assert sorted(folders) == later(tmp_path)


def test_a_model_that_was_trained_further_takes_the_place_and_the_old_figures_move(tmp_path):
    first = published(tmp_path)
    found = published(tmp_path, step=20, seconds=2.0)
    (folder,) = later(tmp_path)
    assert (found["step"], saved(folder)) == (20, first)
    assert folder.name == first["evaluation"]["date"]
    assert (drawn(tmp_path), drawn(folder)) == (("2.0", "2.0"), ("1.0", "1.0"))


def test_a_benchmark_that_failed_and_then_did_not_is_no_failure_any_more(tmp_path):
    published(tmp_path, failed={"cfp": "broken", "agedb": "missing"})
    found = published(tmp_path, benchmarks={"cfp": {"auc": 0.7}}, failed={"calfw": "empty"})
    assert found["failed"] == {"agedb": "missing", "calfw": "empty"}
    assert "failed" not in published(tmp_path, benchmarks={"agedb": {}, "calfw": {}})


def test_results_of_an_older_version_without_a_date_are_kept(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(FIRST))
    published(tmp_path, step=20)
    (folder,) = later(tmp_path)
    assert saved(folder) == FIRST
    assert folder.name.startswith("before-")
