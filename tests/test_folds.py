"""Test the protocols against slow, simple versions, sklearn, examples worked out by hand and simulated ground truth."""

import json
from itertools import pairwise
from math import floor
from statistics import NormalDist

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fvjax.evals import folds

BEST, FAR = "accuracy@best_threshold", "accuracy@far=1e-3"


def simulated(seed: int, sizes=(120, 120, 80), decimals: int = 1):
    """Draw overlapping scores with many ties, with genuine and impostor pairs mixed in every fold."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(sum(sizes)) % 2 == 0)
    return np.round(rng.normal(size=sum(sizes)) + 1.5 * labels, decimals), labels, list(sizes)


def slow_fold_accuracies(scores, labels, sizes, choose):
    fold = [f for f, size in enumerate(sizes) for _ in range(size)]
    pairs = list(zip(scores, labels, fold))
    out = []
    for f in range(len(sizes)):
        threshold = choose([(s, same) for s, same, g in pairs if g != f])
        test = [(s, same) for s, same, g in pairs if g == f]
        out.append(sum((s >= threshold) == same for s, same in test) / len(test))
    return out


def slow_best(train):
    values = sorted({s for s, _ in train})
    cuts = [values[0] - 1, *[(x + y) / 2 for x, y in pairwise(values)], values[-1] + 1]
    return max(cuts, key=lambda cut: (sum((s >= cut) == same for s, same in train), -cut))


def slow_far(train):
    impostors = sorted((s for s, same in train if not same), reverse=True)
    k = floor(len(impostors) * 0.001)
    return impostors[k - 1] if k else impostors[0] + 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_every_value_equals_its_slow_version(seed):
    scores, labels, sizes = simulated(seed)
    result = folds.verification(scores, labels, sizes, bootstrap=0)
    for name, choose in ((BEST, slow_best), (FAR, slow_far)):
        accuracies = slow_fold_accuracies(scores, labels, sizes, choose)
        assert result[name]["mean"] == pytest.approx(np.mean(accuracies), abs=1e-12)
        assert result[name]["std"] == pytest.approx(
            np.sqrt(np.mean((accuracies - np.mean(accuracies)) ** 2)), abs=1e-12
        )
    impostors = scores[~labels]
    for name, target in folds.FARS.items():
        allowed = [t for t in [*np.unique(scores), np.inf] if np.mean(impostors >= t) <= target]
        figure = result[f"tar@far={name}"]
        assert figure["value"] == pytest.approx(np.mean(scores[labels] >= min(allowed)), abs=1e-12)
        assert figure["impostors_above"] == np.sum(impostors >= min(allowed))
    assert result["auc"]["value"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    thresholds = np.r_[np.inf, np.unique(scores)[::-1]]
    far = np.array([np.mean(impostors >= t) for t in thresholds])
    frr = np.array([np.mean(scores[labels] < t) for t in thresholds])
    part = np.linspace(0, 1, 20001)[:, None]  # walk along the polyline through (far, frr), 20,000 steps per segment
    corners = np.c_[far, frr]
    points = np.concatenate([x + part * (y - x) for x, y in pairwise(corners)])
    nearest = points[np.argmin(np.abs(points[:, 0] - points[:, 1]))]
    assert result["eer"]["value"] == pytest.approx(nearest[0], abs=1e-4)


def test_published_lfw_figure(real_data):
    rows = np.loadtxt(real_data / "faces/protocol/lfw_reference_scores.tsv", delimiter="\t")
    result = folds.verification(rows[:, 2], rows[:, 1], [600] * 10, bootstrap=0)
    assert round(result[BEST]["mean"], 4) == 0.9925
    assert round(result[BEST]["std"], 4) == 0.0040
    assert result["auc"]["value"] == pytest.approx(roc_auc_score(rows[:, 1], rows[:, 2]), abs=1e-12)


def test_by_hand():
    #        fold 0: genuine 0.9 0.5, impostor 0.6 0.1          fold 1: genuine 0.8 0.7, impostor 0.3 0.2
    scores, labels = [0.9, 0.5, 0.6, 0.1, 0.8, 0.7, 0.3, 0.2], [1, 1, 0, 0, 1, 1, 0, 0]
    result = folds.verification(scores, labels, [4, 4], bootstrap=0)
    # Fold 0 is judged at 0.5, halfway between 0.3 and 0.7: 0.9 and 0.5 (>=) right, 0.6 wrong, 0.1 right. For fold 1,
    # 0.3 (halfway 0.1 to 0.5) and 0.75 (0.6 to 0.9) are both right three times; the lower one calls 0.3 the same.
    assert result[BEST] == {"mean": 0.75, "std": 0.0, "ci95": None, "threshold": pytest.approx((0.5 + 0.3) / 2)}
    # k = 0: 0.3 + 1e-6 and 0.6 + 1e-6
    assert result[FAR]["mean"] == (0.75 + 1) / 2
    assert result[FAR]["std"] == 0.125
    assert result[FAR]["threshold"] == pytest.approx(0.45 + 1e-6, abs=1e-12)
    # no impostor may be accepted: genuine above 0.6 are 0.9, 0.8, 0.7
    assert result["tar@far=1e-1"] == {"value": 0.75, "ci95": None, "impostors_above": 0}
    assert result["auc"]["value"] == 15 / 16  # only 0.5 against 0.6 is the wrong way round
    # the ROC goes from (0, 3/4) right to (1/4, 3/4): there 1 - TAR = 1/4 = FAR
    assert result["eer"]["value"] == 0.25
    assert (result["n_pairs"], result["n_genuine"], result["n_impostor"], result["n_folds"]) == (8, 4, 4, 2)
    assert result["intervals"] == "none (bootstrap=0)"


def test_eer_is_interpolated_between_thresholds():
    # The tied scores take (FAR, TAR) from (0, 0) to (1/2, 1) in one step; FAR = 1 - TAR at (1/3, 2/3) on the way.
    assert folds.eer(*folds.roc(np.array([0.5, 0.5, 0.1]), np.array([True, False, False]))) == pytest.approx(1 / 3)


def test_a_score_at_the_threshold_counts_as_the_same_person():
    # Training impostors of either fold top out at 0.5; 1,000 of them make k = 1, so the threshold is exactly 0.5.
    impostors = np.linspace(-0.5, 0.5, 1000)
    # Two genuine pairs stand there and one impostor, since with one of each a strict comparison is right as often.
    scores, labels = np.tile(np.r_[0.5, 0.5, impostors], 2), np.tile(np.arange(1002) < 2, 2)
    result = folds.verification(scores, labels, [1002, 1002], bootstrap=0)
    assert result[FAR]["threshold"] == 0.5
    assert result[FAR]["mean"] == 1001 / 1002  # the genuine pairs at 0.5 are right, the impostor at 0.5 is wrong


@pytest.mark.parametrize(("impostors", "k"), [(999, 0), (1000, 1), (1999, 1), (2700, 2), (3000, 3)])
def test_far_threshold_is_the_kth_impostor_of_the_other_folds(impostors, k):
    train = np.random.default_rng(0).permutation(np.linspace(0, 1, impostors))
    scores = np.r_[train, 2, 5, -5]  # fold 1 holds an impostor (5) that must not count for its own threshold
    labels = np.r_[[False] * impostors, True, False, True]
    expected = np.sort(train)[-k] if k else 1 + 1e-6
    result = folds.verification(scores, labels, [impostors + 1, 2], bootstrap=0)
    assert result[FAR]["threshold"] == pytest.approx((expected + 5 + 1e-6) / 2, abs=1e-12)


def test_the_test_fold_has_no_say_in_its_threshold():
    # Each fold separates perfectly, but at 0.9 and at 0.1. Chosen on the other fold, both are wrong on one kind.
    scores, labels = [0.95, 0.95, 0.85, 0.85, 0.15, 0.15, 0.05, 0.05], [1, 1, 0, 0, 1, 1, 0, 0]
    result = folds.verification(scores, labels, [4, 4], bootstrap=0)
    assert result[BEST]["mean"] == 0.5
    assert result[BEST]["threshold"] == pytest.approx((0.1 + 0.9) / 2)
    assert result[FAR]["mean"] == 0.5


def test_order_inside_a_fold_changes_nothing():
    scores, labels, sizes = simulated(0)
    rng = np.random.default_rng(1)
    a = rng.integers(0, 30, len(scores))
    b = np.where(labels, a, (a + rng.integers(1, 30, len(scores))) % 30)
    starts = np.cumsum([0, *sizes])
    order = np.concatenate([rng.permutation(np.arange(x, y)) for x, y in pairwise(starts)])
    before = folds.verification(scores, labels, sizes, identities_a=a, identities_b=b, bootstrap=50)
    after = folds.verification(
        scores[order], labels[order], sizes, identities_a=a[order], identities_b=b[order], bootstrap=50
    )
    for name, figure in before.items():
        if isinstance(figure, dict):  # sums run in another order: equal up to the last bits
            assert {k: pytest.approx(v, abs=1e-12) for k, v in figure.items()} == after[name], name
    across = order[::-1]
    assert folds.verification(scores[across], labels[across], sizes, bootstrap=0)[BEST] != before[BEST]


def test_auc_eer_and_tar_depend_on_the_order_of_scores_alone():
    scores, labels, sizes = simulated(3)
    plain = folds.verification(scores, labels, sizes, bootstrap=0)
    bent = folds.verification(np.exp(3 * scores) - 7, labels, sizes, bootstrap=0)
    flipped = folds.verification(-scores, labels, sizes, bootstrap=0)
    for name in ("auc", "eer", "tar@far=1e-1", "tar@far=1e-2", "tar@far=1e-3"):
        assert bent[name] == plain[name]
    assert flipped["auc"]["value"] == pytest.approx(1 - plain["auc"]["value"])


def test_weights_mean_repeated_pairs():
    scores, labels, sizes = simulated(2)
    weights = np.random.default_rng(2).integers(1, 4, len(scores))
    fold = np.repeat(np.arange(len(sizes)), sizes)
    repeated = [np.repeat(x, weights) for x in (scores, labels)]
    plain = folds.verification(*repeated, np.bincount(fold, weights).astype(int).tolist(), bootstrap=0)
    weighted = folds.figures(scores, labels, sizes, weights[None].astype(np.int32))
    assert weighted["best"][0] == pytest.approx(plain[BEST]["mean"])
    assert weighted["far"][0] == pytest.approx(plain[FAR]["mean"])
    for name in ("auc", "eer"):
        assert weighted[name][0] == pytest.approx(plain[name]["value"])
    for name in folds.FARS:
        assert weighted[f"tar/{name}"][0] == pytest.approx(plain[f"tar@far={name}"]["value"])


def test_small_rates_are_measured_with_enough_impostors_only():
    rng = np.random.default_rng(3)
    labels = np.arange(20_400) < 400
    scores = rng.normal(size=20_400) + 3 * labels
    order = rng.permutation(20_400)
    result = folds.verification(scores[order], labels[order], [20_400], bootstrap=0)
    impostors = np.sort(scores[~labels])[::-1]
    measured = result["tar@far=1e-4"]  # two of 20,000 may be accepted, so the third is the highest that is not
    assert measured["value"] == np.mean(scores[labels] > impostors[2])
    assert (measured["impostors_above"], measured["impostors"], measured["needed"]) == (2, 20_000, 10_000)
    for far, needed in (("1e-5", 100_000), ("1e-6", 1_000_000)):
        few = {"value": None, "ci95": None, "impostors_above": None, "impostors": 20_000, "needed": needed}
        assert result[f"tar@far={far}"] == few
    just = folds.verification(scores[:10_399], labels[:10_399], [10_399], bootstrap=2)["tar@far=1e-4"]
    assert (just["value"], just["impostors"]) == (None, 9_999)
    enough = folds.verification(scores[:10_400], labels[:10_400], [10_400], bootstrap=2)["tar@far=1e-4"]
    assert enough["impostors_above"] == 1
    assert len(enough["ci95"]) == 2


def people_and_scores(rng, n, genuine_each, impostors, effect):
    """Draw scores whose mean depends on the pair's persons; both kinds have variance 1, and means 0 and 2."""
    noise = np.sqrt(1 - effect**2)
    person, pull = rng.normal(size=(2, n)) * effect
    g = np.repeat(np.arange(n), genuine_each)
    a = rng.integers(0, n, impostors)
    b = (a + rng.integers(1, n, impostors)) % n
    scores = np.r_[2 + person[g], (pull[a] + pull[b]) / np.sqrt(2)] + noise * rng.normal(size=len(g) + impostors)
    labels, left, right = np.arange(len(scores)) < len(g), np.r_[g, a], np.r_[g, b]
    order = rng.permutation(len(scores))
    return scores[order], labels[order], left[order], right[order]


def coverage(runs, make, with_people):
    """Measure how many 95% intervals contain the truth, for AUC, EER and best-threshold accuracy."""
    normal = NormalDist()
    truth = {"auc": normal.cdf(2 / np.sqrt(2)), "eer": normal.cdf(-1), BEST: normal.cdf(1)}
    hits = dict.fromkeys(truth, 0)
    for run in range(runs):
        scores, labels, a, b = make(np.random.default_rng(run))
        people = {"identities_a": a, "identities_b": b} if with_people else {}
        half = len(scores) // 2
        result = folds.verification(scores, labels, [half, len(scores) - half], bootstrap=200, **people)
        for name in truth:
            low, high = result[name]["ci95"]
            hits[name] += low <= truth[name] <= high
    return {name: hits[name] / runs for name in truth}


def test_intervals_hold_the_truth_when_pairs_share_persons():
    def make(rng):
        return people_and_scores(rng, n=40, genuine_each=10, impostors=400, effect=0.8)

    over_people, over_pairs = coverage(60, make, True), coverage(60, make, False)
    assert min(over_people.values()) >= 0.87  # 3 standard deviations under 0.95 with 60 runs are 0.87
    assert over_pairs["auc"] < 0.8  # the reason for resampling identities
    assert over_pairs["eer"] < 0.8


def test_intervals_without_identities_fit_independent_pairs():
    found = coverage(60, lambda rng: people_and_scores(rng, n=400, genuine_each=1, impostors=400, effect=0.0), False)
    assert min(found.values()) >= 0.87


def test_identity_intervals_are_not_needlessly_wide():
    """With independent pairs and about two impostor pairs per identity, the error is at most the stated sqrt(3)."""
    scores, labels, a, b = people_and_scores(
        np.random.default_rng(0), n=1000, genuine_each=1, impostors=1000, effect=0.0
    )
    wide = folds.verification(scores, labels, [1000, 1000], identities_a=a, identities_b=b, bootstrap=400)
    plain = folds.verification(scores, labels, [1000, 1000], bootstrap=400)
    for name in ("auc", "eer", BEST):
        ratio = np.diff(wide[name]["ci95"])[0] / np.diff(plain[name]["ci95"])[0]
        assert 0.9 < ratio < 1.8, name


def test_a_genuine_pair_weighs_its_identity_once():
    # Impostors all score 0, so TAR depends on 400 genuine pairs of 400 persons: drawing persons is drawing those pairs.
    scores = np.r_[np.random.default_rng(0).normal(size=400), np.zeros(400)]
    labels, a = np.arange(800) < 400, np.tile(np.arange(400), 2)
    people = {"identities_a": a, "identities_b": np.where(labels, a, (a + 1) % 400)}
    order = np.random.default_rng(1).permutation(800)
    result = folds.verification(scores[order], labels[order], [400, 400], **{k: v[order] for k, v in people.items()})
    width, tar = np.diff(result["tar@far=1e-2"]["ci95"])[0], result["tar@far=1e-2"]["value"]
    assert width == pytest.approx(2 * 1.96 * np.sqrt(tar * (1 - tar) / 400), rel=0.1)  # the binomial interval


def test_result_is_json_reproducible_and_says_how():
    scores, labels, sizes = simulated(4)
    people = {"identities_a": np.full(len(labels), "p"), "identities_b": np.where(labels, "p", "q")}
    first = folds.verification(scores, labels, sizes, **people, seed=5)
    again = folds.verification(scores, labels, sizes, **people, seed=5)
    assert json.loads(json.dumps(first)) == again
    assert "identities" in first["intervals"]
    assert "seed 5" in first["intervals"]
    pairs = folds.verification(scores, labels, sizes, bootstrap=100)
    assert "over pairs, 100 resamples" in pairs["intervals"]
    for name, figure in pairs.items():
        if isinstance(figure, dict) and name.removeprefix("tar@far=") not in folds.SMALL_FARS:
            low, high = figure["ci95"]
            assert 0 <= low <= high <= 1, name
    assert set(pairs) == {
        *("n_pairs", "n_genuine", "n_impostor", "n_folds", BEST, FAR, "auc", "eer", "intervals"),
        *(f"tar@far={far}" for far in ("1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6")),
    }


def test_a_resample_without_impostors_says_nothing():
    # Perfect separation with one impostor pair a fold: of pairs drawn, 1 resample in 6 has no impostor pair at all.
    scores, labels = [0.9, 0.8, 0.7, 0.6, 0.5, 0.1] * 2, [1, 1, 1, 1, 1, 0] * 2
    result = folds.verification(scores, labels, [6, 6], bootstrap=500)
    json.dumps(result, allow_nan=False)
    for name in ("auc", "tar@far=1e-1"):
        assert result[name]["ci95"] == [1, 1]
    assert result["eer"]["ci95"] == [0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [0.1, float("nan"), 0.3, 0.4]}, "pair 1 is nan"),
        ({"scores": [0.1, 0.2, 0.3, float("inf")]}, "pair 3 is inf"),
        ({"scores": [0.1, 0.2, 0.3]}, "must be of the same pairs"),
        ({"labels": [1, 0, 1]}, "must be of the same pairs"),
        ({"fold_sizes": [2, 1]}, r"sum 3"),
        ({"fold_sizes": [4, 0]}, "a fold has at least one pair"),
        ({"labels": [1, 0, 2, 0]}, "labels must be 0 or 1"),
        ({"labels": [1, 1, 1, 0]}, "fold 0 has no impostor pairs"),
        ({"labels": [1, 0, 0, 0]}, "fold 1 has no genuine pairs"),
        ({"identities_a": [1, 2, 3, 4]}, "give both"),
        ({"identities_a": [1, 2, 3], "identities_b": [1, 3, 3]}, "give both"),
        ({"identities_a": [1, 2, 3, 4], "identities_b": [1, 3, 4, 5]}, r"pair 2 is labelled genuine.*\[3, 4\]"),
        ({"identities_a": [1, 2, 3, 4], "identities_b": [1, 2, 3, 5]}, r"pair 1 is labelled impostor.*\[2, 2\]"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    inputs = {"scores": [0.1, 0.2, 0.3, 0.4], "labels": [1, 0, 1, 0], "fold_sizes": [2, 2]} | change
    with pytest.raises(ValueError, match=message):
        folds.verification(**inputs)
