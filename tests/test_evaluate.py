"""Test the evaluation of a config's benchmarks by an embedding function, and which identities count as seen."""

import numpy as np

from fvjax.config import base, benchmark, typed
from fvjax.data import stores, synthetic
from fvjax.evals import baselines
from fvjax.tasks.benchmarks import Benchmarks, CosineScore


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
