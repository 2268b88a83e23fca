"""Test the way from faces to scores, entries, table and plots, on examples small enough to work out by hand."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fvjax.evals import baselines, folds, plots, verification

BENCHMARK = {"policy": "drop", "failure_to_acquire": 3, "fold_sizes": [1]}


def make_pairs(people: int = 24, n_folds: int = 4, seed: int = 0):
    """Make two records per person; fold f has persons f, f + n_folds, …, each in a genuine and an impostor pair."""
    person = np.arange(people)
    order = np.argsort(person % n_folds, kind="stable")
    a, other = person[order], np.roll(person[order].reshape(n_folds, -1), 1, axis=1).ravel()
    columns = [
        (2 * i, 2 * (i if same else j) + 1, same, i % n_folds, i, i if same else j)
        for i, j in zip(a, other)
        for same in (True, False)
    ]
    names = ("a", "b", "same", "fold", "identity_a", "identity_b")
    pairs = SimpleNamespace(**{name: np.array(x) for name, x in zip(names, zip(*columns))})
    rng = np.random.default_rng(seed)
    embeddings = np.repeat(rng.normal(size=(people, 16)), 2, axis=0) + rng.normal(size=(2 * people, 16))
    return pairs, embeddings.astype(np.float32)


def test_every_face_is_embedded_once_and_padding_is_dropped():
    faces = np.arange(5, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 112, 112, 3), np.uint8)
    faces[:, :, 0] += 100  # brighten the left edge, so that mirroring is visible
    seen = []

    def left_edge(batch):
        seen.extend(batch[:, 0, 0, 0])
        return batch[:, 0, 0, :2].astype(np.float32)

    batches = [(faces[[0, 1]], 2), (faces[[2, 3]], 2), (faces[[4, 4]], 1)]
    out = verification.embed(left_edge, batches)
    assert out.dtype == np.float32
    assert out.tolist() == [[100 + i] * 2 for i in range(5)]
    assert seen == [100, 101, 102, 103, 104, 104]
    assert verification.embed(left_edge, batches, flip_sum=True).tolist() == [[100 + 2 * i] * 2 for i in range(5)]


def test_scores_are_cosines_of_the_named_records():
    embeddings = np.array([[3, 4], [30, 40], [-4, 3], [np.nan, 0], [0, 0]], np.float32)
    pairs = SimpleNamespace(a=np.array([0, 0, 1]), b=np.array([1, 2, 0]))
    assert verification.scores(embeddings, pairs) == pytest.approx([1, 0, 1], abs=1e-6)
    for record, count in ((3, 1), (4, 1)):
        pairs.b[1] = record
        with pytest.raises(ValueError, match=f"record {record} is zero or not finite .records affected: {count}"):
            verification.scores(embeddings, pairs)
    pairs.b[1] = 5
    with pytest.raises(ValueError, match="record 5, but there are 5 embeddings"):
        verification.scores(embeddings, pairs)


def test_entry_is_the_folds_figures_and_where_they_come_from():
    pairs, embeddings = make_pairs()
    scores = verification.scores(embeddings, pairs)
    entry = verification.entry(scores, pairs, BENCHMARK, "abc", bootstrap=20)
    people = {"identities_a": pairs.identity_a, "identities_b": pairs.identity_b}
    figures = folds.verification(scores, pairs.same, [12] * 4, **people, bootstrap=20)
    provenance = {"policy": "drop", "failure_to_acquire": 3, "data_hash": "abc", "identity_disjoint": None}
    assert entry == {**figures, **provenance, "identities": "named"}
    assert "identities" in entry["intervals"]

    order = np.random.default_rng(0).permutation(len(scores))  # pairs need not be ordered by fold
    shuffled = SimpleNamespace(**{name: column[order] for name, column in vars(pairs).items()})
    again = verification.entry(scores[order], shuffled, BENCHMARK, "abc", bootstrap=20)["accuracy@best_threshold"]
    assert again == {name: pytest.approx(x) for name, x in figures["accuracy@best_threshold"].items()}

    with pytest.raises(ValueError, match=r"lacks \['policy'\]"):
        verification.entry(scores, pairs, {"failure_to_acquire": 0}, "abc")
    with pytest.raises(ValueError, match=r"47,.* for 48 pairs"):
        verification.entry(scores[1:], pairs, BENCHMARK, "abc")
    derived = BENCHMARK | {"identities": "derived from genuine pairs"}
    assert verification.entry(scores, pairs, derived, "abc", bootstrap=0)["identities"] == derived["identities"]


def test_a_thousand_resamples_if_nothing_else_is_said():
    pairs, embeddings = make_pairs()
    entry = verification.entry(verification.scores(embeddings, pairs), pairs, BENCHMARK, "abc")
    assert ", 1000 resamples, seed 0;" in entry["intervals"]
    figures = folds.verification([0.9, 0.1, 0.8, 0.2], [1, 0, 1, 0], [2, 2])
    assert ", 1000 resamples, seed 0;" in figures["intervals"]


def test_identity_disjoint_leaves_out_every_pair_with_a_seen_identity():
    pairs, embeddings = make_pairs()
    scores = verification.scores(embeddings, pairs)

    def disjoint(seen):
        return verification.entry(scores, pairs, BENCHMARK, "abc", seen=seen, bootstrap=10)["identity_disjoint"]

    part = disjoint({0})  # of fold 0: its genuine pair, and the impostor pairs where it is a or b
    assert (part["n_genuine"], part["n_impostor"], part["n_folds"]) == (23, 22, 4)
    keep = (pairs.identity_a != 0) & (pairs.identity_b != 0)
    assert part["auc"]["value"] == pytest.approx(folds.auc(*folds.roc(scores[keep], pairs.same[keep])))
    everyone_of_fold_0 = range(0, 24, 4)
    assert disjoint(everyone_of_fold_0)["n_folds"] == 3
    assert disjoint(everyone_of_fold_0)["n_pairs"] == 36
    assert disjoint([i for i in range(24) if i % 4 != 1]) is None  # no other fold to choose the threshold on
    assert disjoint(range(24)) is None
    assert disjoint(set())["n_pairs"] == 48


def test_a_benchmark_of_one_fold_has_figures_over_unseen_people():
    pairs, embeddings = make_pairs(n_folds=1)
    scores = verification.scores(embeddings, pairs)
    part = verification.entry(scores, pairs, BENCHMARK, "abc", seen={0}, bootstrap=0)["identity_disjoint"]
    assert (part["n_genuine"], part["n_impostor"], part["n_folds"]) == (23, 22, 1)


def test_table_fits_120_columns_and_shows_the_figures():
    pairs, embeddings = make_pairs()
    entry = verification.entry(verification.scores(embeddings, pairs), pairs, BENCHMARK, "abc", bootstrap=20)
    big = {**entry, "n_pairs": 60000}
    for far in folds.FARS:  # the widest possible cells
        big[f"tar@far={far}"] = {"value": 1.0, "ci95": [0.995, 1.0], "impostors_above": 3000}
    console = Console(width=120, file=io.StringIO())
    console.print(verification.table([("before training", "lfw", entry), ("[trained]", "synthetic_test", big)]))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 120
    figure = entry["accuracy@best_threshold"]
    low, high = (100 * x for x in figure["ci95"])
    wanted = ["before training", "[trained]", "synthetic_test", "4-fold", "3 FTA", "100.00 (3000)", "FAR 1e-3", "60000"]
    wanted += [f"{100 * figure['mean']:.2f} ± {100 * figure['std']:.2f}", f"{low:.1f}–{high:.1f}"]
    assert [word for word in wanted if word not in text] == []
    assert "…" not in text  # nothing was cut off


def test_a_table_too_wide_for_the_terminal_becomes_several():
    pairs, embeddings = make_pairs()
    entry = verification.entry(verification.scores(embeddings, pairs), pairs, BENCHMARK, "abc", bootstrap=20)
    table = verification.table([("a row", "lfw", entry), ("another row", "cfp", entry)])

    def shown(width: int) -> str:
        console = Console(width=width, file=io.StringIO())
        console.print(table)
        return console.file.getvalue()

    wide, narrow = shown(120), shown(80)
    assert (wide.count("another row"), narrow.count("another row")) == (1, 2)
    assert max(map(len, narrow.splitlines())) <= 80
    words = [set(text.replace("─", "").partition("Accuracy:")[0].split()) for text in (wide, narrow)]
    assert words[0] == words[1]
    assert [narrow.count(text) for text in ("Face verification", "Accuracy:", "another row")] == [1, 1, 2]


def test_groups_of_a_benchmark_are_summarised_if_all_are_there():
    entries = {
        f"rfw_{group}": {"accuracy@best_threshold": {"mean": mean}}
        for group, mean in (("african", 0.90), ("asian", 0.92), ("caucasian", 0.98), ("indian", 0.92))
    }
    groups = verification.over_groups({"lfw": {}, **entries})
    assert groups["rfw"]["mean"] == pytest.approx(0.93)
    assert groups["rfw"]["std"] == pytest.approx((0.0036 / 4) ** 0.5)  # deviations -3, -1, 5 and -1 per cent
    assert (groups["rfw"]["lowest"], groups["rfw"]["highest"]) == (["rfw_african", 0.90], ["rfw_caucasian", 0.98])
    assert verification.groups_line(groups) == (
        "rfw over its groups, best threshold: mean 93.00, std 3.00, lowest 90.00 (rfw_african), highest 98.00 "
        "(rfw_caucasian)."
    )
    del entries["rfw_indian"]
    assert verification.over_groups(entries) == {}


def test_the_table_has_small_rates_where_a_row_has_enough_impostors():
    pairs, embeddings = make_pairs()
    entry = verification.entry(verification.scores(embeddings, pairs), pairs, BENCHMARK, "abc", bootstrap=2)
    older = {key: value for key, value in entry.items() if key not in ("tar@far=1e-4", "tar@far=1e-5", "tar@far=1e-6")}
    measured = {**entry, "tar@far=1e-4": {"value": 0.4321, "ci95": None, "impostors_above": 2}}

    def shown(*entries) -> str:
        console = Console(width=160, file=io.StringIO())
        console.print(verification.table([("row", "lfw", each) for each in entries]))
        return console.file.getvalue()

    assert "1e-4" not in shown(entry, older)
    text = shown(entry, older, measured)
    assert "@FAR 1e-4" in text
    assert "1e-5" not in text
    assert "43.21 (2)" in text
    assert text.count("of 24") == 2, "the others say how many impostor pairs they have"


def test_plots_are_readable_images_that_follow_the_scores(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2 == 0
    noisy, perfect = rng.normal(size=400) + labels, labels + 0.1 * rng.random(400)
    for draw in (plots.roc, plots.det):
        images = []
        for name, scores in (("noisy", noisy), ("perfect", perfect)):
            draw(tmp_path / f"{name}.png", {name: (scores, labels)})
            images.append(np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"), np.float32))
        assert images[0].shape == images[1].shape == (750, 1050)
        assert images[0].std() > 10
        assert np.abs(images[0] - images[1]).max() > 100


def test_curves_start_at_one_impostor_pair():
    far = np.array([0, 0, 0.01, 0.01, 0.02, 1])
    x, y = plots._measured(far, np.array([0, 0.1, 0.1, 0.4, 0.4, 1]), 100)
    assert x.tolist() == [0.01, 0.02, 1]
    assert y.tolist() == [0.4, 0.4, 1]


def test_baselines_by_hand():
    faces = np.zeros((3, 112, 112, 3), np.uint8)
    faces[0, :56] = (10, 20, 30)
    faces[1, :56] = (30, 40, 50)  # the same shape, brighter
    faces[2, 56:] = (255, 31, 32)
    pixels = baselines.pixel(faces)
    assert pixels.dtype == np.float32
    assert pixels.shape == (3, 37632)
    assert pixels[0].mean() == pytest.approx(0, abs=1e-4)
    assert pixels[0, 0] == pytest.approx(10 - 10)  # the face's mean is (10 + 20 + 30) / 6
    colours = baselines.histogram(faces)
    assert colours.dtype == np.float32
    assert colours.shape == (3, 512)
    assert colours.sum(1).tolist() == [1, 1, 1]
    assert colours[2, 7 * 64 + 0 * 8 + 1] == 0.5  # 255, 31 and 32 are in bins 7, 0 and 1
    assert colours[2, 0] == 0.5
    assert np.flatnonzero(colours[1]).tolist() == [0, 0 * 64 + 1 * 8 + 1]


@pytest.mark.parametrize("batch_size", [3, 8, 40])
def test_answers_share_what_is_kept_of_a_first_image(batch_size):
    """Use a model in numpy whose cache of a first image is the sum of its tokens."""
    rng = np.random.default_rng(0)
    visual = rng.normal(size=(10, 4, 5)).astype(np.float32)
    pairs = SimpleNamespace(a=rng.integers(0, 6, 29), b=rng.integers(0, 10, 29))
    seen, asked = [], []

    def prefix(tokens):
        seen.append(len(tokens))
        return tokens.sum(axis=1)

    def after(kept, whose, tokens):
        asked.append(len(whose))
        return np.einsum("bd,bd->b", kept[whose], tokens[:, 0]) - kept[whose, 0]

    got = verification.answers(prefix, after, visual, pairs, batch_size=batch_size, multiple=2)
    first = visual.sum(axis=1)[pairs.a]
    expected = np.einsum("md,md->m", first, visual[pairs.b, 0]) - first[:, 0]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert set(asked) == {batch_size}, "one shape"
    assert all(n % 2 == 0 for n in seen)
    assert sum(seen) < 29 or batch_size == 3, "what is kept is not shared"
    with pytest.raises(ValueError, match="the answer to pair 0 is not finite"):
        verification.answers(prefix, after, visual * np.nan, pairs, batch_size=8, multiple=1)
