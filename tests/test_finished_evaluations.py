"""Test what is read from a finished evaluation: its scores, its thresholds and what they rest on."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from fvjax.evals import finished, intervals, operating_points, pair_scores
from fvjax.evals.pair_scores import PairScores

# Of each fold, genuine scores are 0.5 or more and impostor scores less; fold 1 has higher ones and one impostor fewer.
GENUINE = [[0.9, 0.8, 0.7, 0.6], [0.95, 0.85, 0.75, 0.65]]
IMPOSTOR = [[0.1, 0.2, 0.3, 0.4], [0.15, 0.25, 0.35]]
EVALUATION = {"date": "2026-01-02", "name": "first"}


def scored(n_folds: int = 2) -> PairScores:
    """Return the scores above, as they are or as one fold."""
    rows = [(score, kind is GENUINE, fold) for kind in (GENUINE, IMPOSTOR) for fold in (0, 1) for score in kind[fold]]
    scores, same, fold = (np.array(column) for column in zip(*rows))
    ends = np.arange(len(rows))
    fold = fold * (n_folds > 1)
    return PairScores(scores.astype(np.float32), same, fold, ends, ends, ends, ends, "d" * 64, "p" * 64)


def entry(**changes):
    return {
        "n_pairs": 15,
        "n_impostor": 7,
        "n_folds": 2,
        "accuracy@far=1e-3": {"threshold": 0.45},
        "identities_seen_in_training": 0,
        "data_hash": "d" * 64,
    } | changes


def results_of(**entries):
    return {"flip_sum": True, "step": 12, "evaluation": EVALUATION, "benchmarks": entries}


@pytest.fixture
def workdir(tmp_path) -> Path:
    """Return a work directory with the scores of the benchmark lfw."""
    scored().write(pair_scores.file_of(tmp_path, "lfw"))
    return tmp_path


# ---- thresholds


@pytest.mark.parametrize(
    ("n_folds", "far", "fnmr"),
    [
        # Fold 0 is judged by fold 1's scores and the other way round: at FAR 0.5 one of 3 or two of 4 impostors pass.
        (2, (0.35 + 0.3) / 2, (0.85 + 0.8) / 2),
        (1, 0.3, 0.8),
    ],
)
def test_thresholds_by_hand(n_folds, far, fnmr):
    pairs = scored(n_folds)
    least = 3 if n_folds > 1 else 7
    assert operating_points.at_far(pairs, 0.5) == pytest.approx((far, least // 2, least), abs=1e-6)
    least = 4 if n_folds > 1 else 8
    half = operating_points.at_fnmr(pairs, 0.5)
    assert half == pytest.approx((fnmr, least // 2, least), abs=1e-6)


def test_a_rate_of_one_in_as_many_scores_as_there_are():
    pairs = scored()
    assert operating_points.at_far(pairs, 1 / 3)[1:] == (1, 3)
    assert operating_points.at_fnmr(pairs, 1 / 4)[1:] == (1, 4)
    with pytest.raises(ValueError, match=r"FAR 0\.25 needs 4 impostor scores, and there are 3; choose a rate of 0\.33"):
        operating_points.at_far(pairs, 0.25)
    with pytest.raises(ValueError, match=r"FNMR 0\.2 needs 5 genuine scores, and there are 4; choose a rate of 0\.25"):
        operating_points.at_fnmr(pairs, 0.2)
    few = dataclasses.replace(pairs, same=np.arange(15) != 14)  # one impostor, of fold 1
    with pytest.raises(ValueError, match=r"needs 2 impostor scores, and there are 0; choose another benchmark"):
        operating_points.at_far(few, 0.5)
    two = dataclasses.replace(pairs, same=~np.isin(np.arange(15), (8, 9, 13, 14)))
    with pytest.raises(ValueError, match=r"needs 3 impostor scores, and there are 2; choose a rate of 0\.5 or more"):
        operating_points.at_far(two, 0.4)


@pytest.mark.parametrize(
    ("counts", "errors", "scores"),
    [
        ({"n_impostor": 3000, "n_folds": 10}, 2, 2700),
        ({"n_impostor": 20000, "n_folds": 2}, 10, 10000),
        ({"n_impostor": 3000, "n_folds": 1}, 3, 3000),
        ({"n_impostor": 999, "n_folds": 1}, 0, 999),
    ],
)
def test_what_the_threshold_of_results_rests_on(counts, errors, scores):
    assert operating_points.of_entry(entry(**counts)) == (0.45, errors, scores)


def test_the_first_benchmark_of_unseen_people_is_chosen():
    def choose(name=None, **seen):
        entries = {each: {"identities_seen_in_training": count} for each, count in seen.items()}
        return operating_points.choose({"benchmarks": entries}, name, Path("results.json"))

    assert choose(a=3, b=0, c=0) == "b"
    assert choose(a=3, b=None, c=0) == "c"
    assert choose(a=3, b=None, c=None) == "b"
    assert choose("a", a=3, b=0) == "a"
    with pytest.raises(ValueError, match=r"results\.json: training saw identities of every .* --benchmark=a\|b$"):
        choose(a=3, b=1)
    assert choose("a", a=3, b=1) == "a"
    with pytest.raises(ValueError, match=r"^--benchmark=x: results\.json has a, b$"):
        choose("x", a=3, b=0)


def test_what_a_threshold_was_measured_on(workdir):
    found = operating_points.measured(workdir, results_of(lfw=entry()), None)
    assert found == (
        0.45,
        1e-3,
        {
            "benchmark": "lfw",
            "n_impostor": 7,
            "n_impostor_per_fold": 4,
            "impostors_above_per_fold": 0,
            "identities_seen_in_training": 0,
            "data_hash": "d" * 64,
            "flip_sum": True,
            "step": 12,
            "evaluated": "2026-01-02 first",
        },
    )
    found = operating_points.measured(workdir, results_of(lfw=entry()), "lfw", 0.5)
    assert (found.threshold, found.far) == (operating_points.at_far(scored(), 0.5).value, 0.5)
    assert (found.measured_on["n_impostor_per_fold"], found.measured_on["impostors_above_per_fold"]) == (3, 1)
    later = entry(evaluation={"date": "2026-03-04", "name": "", "folder": ""})
    assert operating_points.measured(workdir, results_of(lfw=later), None).measured_on["evaluated"] == "2026-03-04"
    old = results_of(lfw=entry())
    del old["evaluation"]
    assert operating_points.measured(workdir, old, None).measured_on["evaluated"] is None
    with pytest.raises(ValueError, match=r"^--far=0\.1: benchmark lfw: FAR 0\.1 needs 10 impostor scores"):
        operating_points.measured(workdir, results_of(lfw=entry()), "lfw", 0.1)


def test_below_the_lower_threshold_are_two_persons(workdir):
    found = operating_points.lower(workdir, results_of(lfw=entry()), "lfw", 0.5)
    assert found == {
        "fnmr": 0.5,
        "threshold": operating_points.at_fnmr(scored(), 0.5).value,
        "n_genuine_per_fold": 4,
        "genuine_below_per_fold": 2,
        "fnmr_ci95": intervals.wilson(2, 4),
    }
    with pytest.raises(ValueError, match=r"^--unsure=0\.1: benchmark lfw: FNMR 0\.1 needs 10 genuine scores"):
        operating_points.lower(workdir, results_of(lfw=entry()), "lfw", 0.1)


# ---- files of scores


def test_scores_are_those_of_the_entry(workdir):
    results = results_of(lfw=entry())
    found = pair_scores.of_benchmark(workdir, results, "lfw", "REMEDY")
    np.testing.assert_array_equal(found.scores, scored().scores)
    for other in ({"data_hash": "e" * 64}, {"n_pairs": 14}, {"n_pairs": 16}):
        with pytest.raises(ValueError, match=r"lfw\.npz is of other data than .*results\.json; .* again: REMEDY$"):
            pair_scores.of_benchmark(workdir, results_of(lfw=entry(**other)), "lfw", "REMEDY")
    with pytest.raises(ValueError, match=r"cfp%2Ffp\.npz is missing .*; evaluate again: REMEDY$"):
        pair_scores.of_benchmark(workdir, results_of(**{"cfp/fp": entry()}), "cfp/fp", "REMEDY")
    later = results_of(lfw=entry(evaluation={"folder": "evaluations/2026"}))
    with pytest.raises(ValueError, match=r"evaluations/2026/scores/lfw\.npz is missing"):
        pair_scores.of_benchmark(workdir, later, "lfw", "REMEDY")
    assert PairScores.__hash__ is not None  # Python gives a hash to frozen dataclasses only


def test_a_file_of_scores_has_as_many_bytes_as_allowed(workdir, monkeypatch):
    assert pair_scores.MAX_BYTES == 2**31
    file = pair_scores.file_of(workdir, "lfw")
    with np.load(file) as arrays:
        headers = 128 * len(arrays.files)
        size = headers + sum(array.nbytes for array in arrays.values())
    monkeypatch.setattr(pair_scores, "MAX_BYTES", size)
    assert len(pair_scores.read(file).scores) == 15
    monkeypatch.setattr(pair_scores, "MAX_BYTES", size - 1)
    with pytest.raises(ValueError, match=f"its arrays have {size:,} bytes, more than {size - 1:,}"):
        pair_scores.read(file)


@pytest.mark.parametrize(
    "change",
    [
{name: column[:, None] for name, column in vars(scored()).items() if not isinstance(column, str)},
        {"scores": scored().scores.astype(np.float64)},
        {"same": scored().same.astype(np.int64)},
        {"identity_b": np.zeros(15, np.int32)},
        {"identity_b": np.zeros(14, np.int64)},
    ],
)  # fmt: skip
def test_arrays_of_other_shapes_and_types(change, tmp_path):
    np.savez(tmp_path / "x.npz", **dataclasses.asdict(scored()) | change)
    with pytest.raises(ValueError, match=r"x\.npz: its arrays must be of one length and the written types, but are"):
        pair_scores.read(tmp_path / "x.npz")


def test_scores_are_written_into_folders_that_do_not_exist(tmp_path):
    joined = PairScores.of([0.5] * 15, scored(), "data", "pairs")
    assert (joined.scores.dtype, joined.data_hash, joined.pairs_hash) == (np.float32, "data", "pairs")
    for _ in range(2):  # a second file replaces the first
        joined.write(tmp_path / "a/b/c.npz")
    assert pair_scores.read(tmp_path / "a/b/c.npz").data_hash == "data"


# ---- work directories


def a_run(folder: Path, settings: dict | None = None, results: object = None) -> Path:
    folder.mkdir(parents=True)
    if settings is not None:
        (folder / "config.json").write_text(json.dumps(settings))
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_a_finished_run_is_read(workdir):
    results = results_of(lfw=entry(), captions={"generated": 0.5})
    (workdir / "config.json").write_text('{"seed": 3}')
    (workdir / "results.json").write_text(json.dumps(results))
    run = finished.read_run(workdir)
    assert (run.settings, run.results, run.pair_benchmarks, run.is_foreign) == ({"seed": 3}, results, ["lfw"], False)
    assert run.evaluation("lfw") == EVALUATION
    np.testing.assert_array_equal(run.scores("lfw").scores, scored().scores)
    with pytest.raises(ValueError, match="benchmark captions is not of pairs of faces, which alone are compared"):
        run.scores("captions")
    assert type(run).__dataclass_params__.frozen


def test_the_remedy_is_the_command_that_evaluates_such_a_run(tmp_path):
    for name, settings, remedy in (
        ("own", {"seed": 3}, "python -m fvjax.main --workdir=.*/own --mode=eval$"),
        (
            "foreign",
            {"embedder": "x"},
            "python -m fvjax.evaluate --workdir=.*/foreign, with the flags",
        ),
    ):
        run = finished.read_run(a_run(tmp_path / name, settings, {"benchmarks": {"lfw": entry()}}))
        assert run.is_foreign == (name == "foreign")
        assert run.evaluation("lfw") == {}
        with pytest.raises(ValueError, match=f"evaluate again: {remedy}"):
            run.scores("lfw")


def test_folders_of_no_run_and_of_several(tmp_path):
    for name in ("b", "a"):
        a_run(tmp_path / "rows" / name, {}, {"benchmarks": {}})
    message = f"{tmp_path}/rows holds several runs; name them: {tmp_path}/rows/a {tmp_path}/rows/b"
    with pytest.raises(ValueError, match=f"^{message}$"):
        finished.read_run(tmp_path / "rows")
    (tmp_path / "rows/config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"rows/results\.json: no such file, so .*/rows is not the work directory"):
        finished.read_run(tmp_path / "rows")
    for number, (results, problem) in enumerate(
        (([], "not what a run writes"), ({}, "has no benchmarks"), ({"benchmarks": []}, "has no benchmarks"))
    ):
        with pytest.raises(ValueError, match=problem):
            finished.read_run(a_run(tmp_path / f"{number}", {}, results))
    broken = a_run(tmp_path / "broken")
    (broken / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        finished.read_run(broken)


def test_short_names_are_as_long_as_needed():
    paths = [Path(f"/x/{name}") for name in ("1/a/c", "1/b/c", "2/b/c")]
    assert finished.short_names(paths[:1]) == ["c"]
    assert finished.short_names(paths[:2]) == ["a/c", "b/c"]
    assert finished.short_names(paths) == ["1/a/c", "1/b/c", "2/b/c"]
    deep = [Path(f"/{top}/" + "/".join("abcdefgh")) for top in "xy"]
    assert finished.short_names(deep) == [f"{top}/a/b/c/d/e/f/g/h" for top in "xy"]
    deeper = [Path(f"/{top}/" + "/".join("abcdefghi")) for top in "xy"]
    assert finished.short_names(deeper) == [str(path) for path in deeper]
