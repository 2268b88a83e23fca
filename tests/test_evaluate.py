"""Test the evaluation of a config's benchmarks by an embedding function, and which identities count as seen."""

from pathlib import Path

import numpy as np
import pytest

from fvjax import results
from fvjax.config import base, benchmark, typed
from fvjax.data import stores, synthetic
from fvjax.evals import baselines, folds
from fvjax.tasks.benchmarks import Benchmarks, CosineScore, comparison


def test_seen_identities_are_marked_within_one_naming(tmp_path):
    faces = synthetic.write(tmp_path / "s", range(40), 3, 0, split="test", pairs=200)
    config = base()
    config.eval.bootstrap, config.data.names = 0, "here"
    for names in ("here", "elsewhere", ""):
        config.eval.benchmarks[f"named_{names}"] = benchmark(str(faces.path), "synthetic", names=names)
    seen = {"synthetic000003", "synthetic000017", "somebody else"}

    c = typed(config)
    benchmarks, score = Benchmarks(c.eval, c.data, c.seed, tmp_path), CosineScore(c.eval, baselines.pixel)
    entries, _ = benchmarks.run(score, seen=seen, title="")
    marked = entries["named_here"]
    assert marked["identities_seen_in_training"] == 2
    pairs = stores.read_pairs(faces.path, "synthetic")
    known = [faces.identities.index(name) for name in sorted(seen)[1:]]
    unseen = ~(np.isin(pairs.identity_a, known) | np.isin(pairs.identity_b, known))
    assert marked["identity_disjoint"]["n_pairs"] == unseen.sum() < 200
    for names in ("elsewhere", ""):
        assert entries[f"named_{names}"]["identities_seen_in_training"] is None
        assert entries[f"named_{names}"]["identity_disjoint"] is None

    entries, _ = benchmarks.run(score, seen={"somebody else"}, title="")
    assert entries["named_here"]["identities_seen_in_training"] == 0
    assert entries["named_here"]["identity_disjoint"] is None


def test_two_stores_without_a_naming_cannot_be_compared(tmp_path):
    """Two empty names are equal, but they do not say that a person has the same name in both stores."""
    faces = synthetic.write(tmp_path / "s", range(20), 2, 0, split="test", pairs=20)
    config = base()
    config.eval.bootstrap, config.data.names = 0, ""
    config.eval.benchmarks["unnamed"] = benchmark(str(faces.path), "synthetic", names="")
    c = typed(config)
    score = CosineScore(c.eval, baselines.pixel)
    entries, _ = Benchmarks(c.eval, c.data, c.seed, tmp_path).run(score, seen=set(faces.identities), title="")
    assert entries["unnamed"]["identities_seen_in_training"] is None
    assert entries["unnamed"]["identity_disjoint"] is None


def test_one_benchmark_that_fails_costs_no_other_its_results(tmp_path, capsys):
    """One whose store is damaged, and one whose picture the model cannot embed: each is named, the third is there."""
    stores_of = {
        name: synthetic.write(tmp_path / name, range(20), 2, seed, split="test", pairs=20)
        for seed, name in enumerate(("damaged", "dark", "sound"))
    }
    config = base()
    config.eval.bootstrap = 0
    for name, store in stores_of.items():
        config.eval.benchmarks[name] = benchmark(str(store.path), "synthetic")
    c = typed(config)
    benchmarks = Benchmarks(c.eval, c.data, c.seed, tmp_path)
    (tmp_path / "damaged" / "pairs_synthetic.csv").write_text("a,b,same,fold\n")
    cosine = CosineScore(c.eval, baselines.pixel)

    def score(store, pairs, title):
        values = cosine(store, pairs, title)
        return np.full_like(values, np.nan) if store.path.name == "dark" else values

    alone = Benchmarks(typed(config).eval, c.data, c.seed, tmp_path).run(score, seen=set(), title="", only=("sound",))
    entries, curves = benchmarks.run(score, seen=set(), title="")
    assert entries == alone[0]
    assert set(curves) == {"sound"}
    assert set(benchmarks.failed) == {"damaged", "dark"}
    assert "prepare the store again" in benchmarks.failed["damaged"]
    assert "the score of pair 0 is nan" in benchmarks.failed["dark"]
    assert "benchmark dark could not be evaluated" in capsys.readouterr().out
    with pytest.raises(ValueError, match="benchmark damaged: "):  # nothing is left to report
        Benchmarks(c.eval, c.data, c.seed, tmp_path).run(score, seen=set(), title="", only=("damaged", "dark"))


def test_a_run_with_a_failed_benchmark_ends_with_its_name():
    sound, failed = {"benchmarks": {"a": {}}}, {"benchmarks": {}, "failed": {"b": "why"}}
    results.check_complete({Path("x"): sound})
    with pytest.raises(
        ValueError, match=r"^benchmark b: why \(everything else is in x/results.json, y/results.json\)$"
    ):
        results.check_complete({Path("x"): sound, Path("y"): failed})


def test_rows_of_a_benchmark_that_failed_are_left_out():
    entry = folds.verification([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0], [2, 2], bootstrap=0)
    x = {"benchmarks": {"a": entry}, "baselines": {"pixels": {}}}
    assert len(comparison({"x": x, "y": {"benchmarks": {}, "baselines": {}}}).rows) == 1


def test_folds_of_one_kind_are_refused_before_the_first_step(tmp_path):
    faces = synthetic.write(tmp_path / "s", range(20), 2, 0, split="test", pairs=20)
    pairs = stores.read_pairs(faces.path, "synthetic")
    order = np.argsort(~pairs.same, kind="stable")  # Talgin's: genuine pairs first
    for name, fold in (("sorted", pairs.fold), ("single", 0 * pairs.fold)):
        ends = pairs.a[order], pairs.b[order], pairs.same[order], fold
        stores.write_pairs(faces.path, name, stores.Pairs(*ends, pairs.identity_a[order], pairs.identity_b[order]))
    config = base()
    config.eval.bootstrap = 0
    for name in ("single", "sorted"):
        config.eval.benchmarks[name] = benchmark(str(faces.path), name)
        c = typed(config)
        benchmarks = Benchmarks(c.eval, c.data, c.seed, tmp_path)
        if name == "single":
            assert set(benchmarks.check((112, 112))) == {"data of single", "pairs of single"}
            entry = benchmarks.run(CosineScore(c.eval, baselines.pixel), seen=set(), title="")[0]["single"]
            assert (entry["n_folds"], entry["thresholds"]) == (1, folds.ONE_FOLD)
    with pytest.raises(ValueError, match=r"^benchmark sorted: .*fold 1 of 10 has no impostor pairs"):
        benchmarks.check((112, 112))


def test_one_fold_is_judged_at_thresholds_of_its_own_pairs():
    figures = folds.verification([0.9, 0.2, 0.3, 0.1], [1, 1, 0, 0], [4], bootstrap=5)
    best, far = figures["accuracy@best_threshold"], figures["accuracy@far=1e-3"]
    assert (best["mean"], best["std"], far["mean"]) == (0.75, 0, 0.75)
    assert best["threshold"] == pytest.approx(0.15)  # the lowest of the best: above 0.1 alone
    assert far["threshold"] == pytest.approx(0.3 + 1e-6)
    assert "thresholds" not in folds.verification([0.9, 0.2, 0.3, 0.1], [1, 0, 1, 0], [2, 2], bootstrap=0)
