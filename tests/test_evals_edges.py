"""Test metrics at their edges: the ends of a curve, the lowest and the highest threshold, the last fold."""

from types import SimpleNamespace

import numpy as np
import pytest

from fvjax.evals import baselines, folds, verification

BEST = "accuracy@best_threshold"


def test_a_curve_starts_at_zero_and_ends_at_one_also_with_ties_at_the_top():
    scores, labels = np.array([0.9, 0.9, 0.9, 0.5, 0.1]), np.array([True, False, False, True, False])
    far, tar = folds.roc(scores, labels)
    assert far.tolist() == [0, 2 / 3, 2 / 3, 1]
    assert tar.tolist() == [0, 1 / 2, 1, 1]
    assert folds.auc(far, tar) == pytest.approx((2 / 3 * 1 / 2) / 2 + 1 / 3)
    weighted = folds.roc(scores, labels, np.array([[1, 1, 1, 1, 1], [2, 0, 1, 6, 3]]))
    assert weighted[0].tolist() == [[0, 2 / 3, 2 / 3, 1], [0, 1 / 4, 1 / 4, 1]]
    assert weighted[1].tolist() == [[0, 1 / 2, 1, 1], [0, 1 / 4, 1, 1]]


def test_accepting_all_or_none_can_be_the_best_threshold():
    """Every genuine score is below every impostor: at best one kind is right, and ties take the lower threshold."""
    even = folds.verification([0.1, 0.9, 0.2, 0.8], [1, 0, 1, 0], [2, 2], bootstrap=0)
    assert even[BEST]["threshold"] == pytest.approx((0.1 + 0.2) / 2 - 1e-6, abs=1e-9)
    assert even[BEST]["mean"] == (0 + 1 / 2) / 2  # 0.2 - 1e-6 accepts 0.9, not 0.1; 0.1 - 1e-6 accepts both of fold 1
    scores, labels = [0.1, 0.9, 0.95, 0.2, 0.8, 0.85], [1, 0, 0, 1, 0, 0]
    none = folds.verification(scores, labels, [3, 3], bootstrap=0)
    assert none[BEST]["threshold"] == pytest.approx((0.95 + 0.85) / 2 + 1e-6, abs=1e-9)
    assert none[BEST]["mean"] == pytest.approx((0 + 2 / 3) / 2)  # 0.85 + 1e-6 accepts 0.9 and 0.95


def test_the_fold_that_lacks_a_kind_is_named_also_the_last_of_three():
    for lacking in range(3):
        labels = np.array([1, 0] * 3)
        labels[2 * lacking + 1] = 1
        with pytest.raises(ValueError, match=rf"fold {lacking} has no impostor pairs \(2 pairs\)"):
            folds.verification(np.arange(6) / 6, labels, [2, 2, 2])


def test_one_fold_is_said_and_several_are_not():
    one, two = (folds.verification([0.9, 0.1, 0.8, 0.2], [1, 0, 1, 0], sizes, bootstrap=0) for sizes in ([4], [2, 2]))
    assert (one["thresholds"], "thresholds" in two) == (folds.ONE_FOLD, False)


def test_intervals_are_the_middle_95_per_cent_of_a_thousand_resamples():
    assert folds._ci95({"auc": np.linspace(0, 1, 1001)}, "auc") == pytest.approx([0.025, 0.975], abs=1e-12)
    assert "1000 resamples" in folds.verification([0.9, 0.1, 0.8, 0.2], [1, 0, 1, 0], [2, 2])["intervals"]


def test_the_first_of_several_wrong_pairs_is_named():
    scores = [0.1, 0.2, float("nan"), float("inf")]
    with pytest.raises(ValueError, match="score of pair 2 is nan"):
        folds.verification(scores, [1, 0, 1, 0], [2, 2])
    with pytest.raises(ValueError, match=r"pair 1 is labelled impostor, but its identities are \['b', 'b'\]"):
        folds.verification([1, 2, 3, 4], [1, 0, 1, 0], [2, 2], identities_a=list("abcd"), identities_b=list("abdd"))


def test_at_exactly_a_far_the_threshold_that_has_it_is_taken():
    """A FAR of 0.1 is 1 of 10 impostors and one of 0.001 is 3 of 3,000, although no float is exactly 0.1 or 0.001."""
    for impostors, far in ((10, "1e-1"), (100, "1e-2"), (1000, "1e-3"), (3000, "1e-3")):
        k = round(impostors * folds.FARS[far])
        low = impostors - k - 1.5  # one more impostor would exceed the target
        scores = np.r_[np.arange(impostors), low, impostors + 1]
        labels = np.arange(impostors + 2) >= impostors
        scores, labels = np.tile(scores, 2), np.tile(labels, 2)
        figure = folds.verification(scores, labels, [impostors + 2] * 2, bootstrap=0)[f"tar@far={far}"]
        assert figure == {"value": 0.5, "ci95": None, "impostors_above": 2 * k}
        higher = np.where(scores == low, low + 1, scores)
        figure = folds.verification(higher, labels, [impostors + 2] * 2, bootstrap=0)[f"tar@far={far}"]
        assert figure["value"] == 1


def test_resamples_do_not_depend_on_how_many_are_done_at_once():
    """Two million weights are computed at a time; with more pairs, 40 resamples need several parts."""
    rng = np.random.default_rng(0)
    n = 120_000
    labels = np.arange(n) % 2 == 0
    scores = rng.normal(size=n) + labels
    found = list(folds.resamples(labels, None, 19, 3))
    assert [len(part) for part in found] == [17, 2]
    assert [part.sum(1).tolist() for part in found] == [[n] * 17, [n] * 2]
    areas = np.concatenate([folds.figures(scores, labels, [n // 2, n // 2], part)["auc"] for part in found])
    assert len(set(areas.tolist())) == 19
    (first,) = folds.resamples(labels, None, 17, 3)
    np.testing.assert_array_equal(first, found[0])


def test_a_fold_without_pairs_in_a_resample_does_not_count():
    """Every pair is judged right, so every resample is: one of ten folds is empty in most of them."""
    labels = np.tile([1, 0], 10)
    found = folds.verification(labels.astype(float), labels, [2] * 10, bootstrap=200)
    assert found[BEST]["ci95"] == [1, 1]
    assert found["accuracy@far=1e-3"]["ci95"] == [1, 1]


def test_a_mirrored_face_is_mirrored_over_its_whole_width():
    faces = np.arange(112, dtype=np.uint8)[None, None, :, None] + np.zeros((2, 112, 112, 3), np.uint8)
    got = verification.embed(lambda batch: batch[:, 0, :, 0].astype(np.float32) ** 2, [(faces, 2)], flip_sum=True)
    across = np.arange(112.0)
    np.testing.assert_array_equal(got, np.tile(across**2 + across[::-1] ** 2, (2, 1)))


def test_a_record_that_is_not_there_is_named_on_either_side():
    embeddings = np.ones((3, 2), np.float32)
    for a, b, named in (([-1, 0], [1, 2], -1), ([0, 1], [2, 3], 3), ([-2], [-2], -2)):
        with pytest.raises(ValueError, match=f"the pairs name record {named}, but there are 3 embeddings"):
            verification.scores(embeddings, SimpleNamespace(a=np.array(a), b=np.array(b)))
    nobody = SimpleNamespace(a=np.array([], int), b=np.array([], int))
    assert verification.scores(embeddings, nobody).shape == (0,)
    last = SimpleNamespace(a=np.array([0]), b=np.array([2]))
    assert verification.scores(embeddings, last).tolist() == pytest.approx([1])


def test_scores_of_many_wide_embeddings_come_in_order():
    """4.2 million numbers are multiplied at a time: with 40,000 each, a few hundred pairs need several parts."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(7, 40_000)).astype(np.float32)
    pairs = SimpleNamespace(a=rng.integers(0, 7, 350), b=rng.integers(0, 7, 350))
    unit = embeddings.astype(np.float64) / np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(verification.scores(embeddings, pairs), (unit @ unit.T)[pairs.a, pairs.b], atol=1e-6)


def test_a_fold_without_unseen_pairs_of_one_kind_is_left_out():
    """Fold 0 keeps only impostor pairs, fold 1 only genuine ones; folds 2 and 3 are complete."""
    rows = [
        (0, 0, 0), (1, 2, 0), (3, 3, 1), (0, 4, 1),  # person 0 has been seen
        (5, 5, 2), (5, 6, 2), (7, 7, 3), (7, 8, 3), (7, 0, 3),
    ]  # fmt: skip
    a, b, fold = (np.array(column) for column in zip(*rows))
    pairs = SimpleNamespace(a=2 * a, b=2 * b + 1, same=a == b, fold=fold, identity_a=a, identity_b=b)
    manifest = {"policy": "drop", "failure_to_acquire": 0}
    scores = np.linspace(0, 1, len(a))
    found = verification.entry(scores, pairs, manifest, "hash", seen={0}, bootstrap=0)["identity_disjoint"]
    assert (found["n_pairs"], found["n_genuine"], found["n_impostor"], found["n_folds"]) == (4, 2, 2, 2)
    assert verification.entry(scores, pairs, manifest, "hash", seen={0, 7}, bootstrap=0)["identity_disjoint"] is None


def test_histogram_bins_have_their_edges_at_multiples_of_32():
    faces = np.zeros((2, 112, 112, 3), np.uint8)
    faces[0], faces[1] = (31, 32, 63), (64, 223, 224)
    found = baselines.histogram(faces)
    assert [np.flatnonzero(one).tolist() for one in found] == [[0 * 64 + 1 * 8 + 1], [2 * 64 + 6 * 8 + 7]]
    assert found.sum(1).tolist() == [1, 1]
