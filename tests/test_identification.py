"""Test the 1:N protocols by cases worked out by hand and against slow, simple versions."""

import numpy as np
import pytest

from fvjax.evals import folds, identification, intervals

# Rows are probes of the people 1, 2, 3, 8 and 9, columns entries of the gallery. Nobody knows 8 and 9.
GALLERY = [1, 2, 3, 3]
PROBES = [1, 2, 3, 8, 9]
SCORES = np.array(
    [
        [0.9, 0.2, 0.1, 0.0],  # rank 1
        [0.5, 0.5, 0.1, 0.0],  # a tie with person 1: rank 2
        [0.8, 0.7, 0.6, 0.4],  # the better entry of two has 0.6, and two others are above it: rank 3
        [0.3, 0.1, 0.2, 0.1],
        [0.1, 0.6, 0.2, 0.1],
    ]
)


def by_hand() -> identification.Outcomes:
    return identification.outcomes(SCORES, PROBES, GALLERY)


def test_outcomes_by_hand():
    found = by_hand()
    assert found.rank.tolist() == [1, 2, 3, 0, 0]
    assert found.mate[:3].tolist() == [0.9, 0.5, 0.6]
    assert np.isnan(found.mate[3:]).all()
    assert found.highest.tolist() == [0.9, 0.5, 0.8, 0.3, 0.6]
    assert found.mated.tolist() == [True, True, True, False, False]


def test_figures_by_hand():
    figures = identification.figures(by_hand(), fpirs=(0.5, 0.1), ranks=(1, 2, 3))
    assert (figures["probes"], figures["mated"], figures["non_mated"]) == (5, 3, 2)
    assert [figures[f"rank-{k}"]["hits"] for k in (1, 2, 3)] == [1, 2, 3]
    assert figures["rank-1"]["value"] == 1 / 3
    assert figures["rank-2"]["ci95"] == intervals.wilson(2, 3)
    # One of two strangers may be accepted (0.6), so the threshold is just above 0.3: of the mated probes only the
    # first one is at rank 1, and it is accepted. A mate that is not at rank 1 is not found at any threshold.
    at_half = figures["fnir@fpir=0.5"]
    assert at_half["value"] == 2 / 3
    assert 0.3 < at_half["threshold"] < 0.3 + 1e-9
    assert (at_half["false_positives"], at_half["non_mated"], at_half["needed"]) == (1, 2, 2)
    assert figures["fnir@fpir=0.1"] == {
        "value": None,
        "ci95": None,
        "threshold": None,
        "false_positives": None,
        "non_mated": 2,
        "needed": 10,
    }


def test_det_by_hand():
    threshold, fpir, fnir = identification.det(by_hand())
    assert threshold.tolist() == [0.6, 0.3]
    assert fpir.tolist() == [0.5, 1]
    assert fnir == pytest.approx([2 / 3, 2 / 3])
    with pytest.raises(ValueError, match="needs mated and non-mated probes, and 3 of 3 are mated"):
        identification.det(identification.outcomes(SCORES[:3], PROBES[:3], GALLERY))


def simulated(seed: int):
    """Return scores [60, 20] with many ties, and whose they are; a third of the probes is of strangers."""
    rng = np.random.default_rng(seed)
    gallery, probes = rng.integers(0, 12, 20), rng.integers(0, 18, 60)
    scores = np.round(rng.normal(size=(60, 20)) + 1.5 * (probes[:, None] == gallery), 1)
    return scores, probes, gallery


@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_their_slow_versions(seed):
    scores, probes, gallery = simulated(seed)
    ranks, mates, strangers = [], [], []
    for row, person in zip(scores, probes):
        own = [s for s, other in zip(row, gallery) if other == person]
        if not own:
            strangers.append(max(row))
            continue
        mates.append(max(own))
        ranks.append(1 + sum(s >= max(own) for s, other in zip(row, gallery) if other != person))
    figures = identification.figures(identification.outcomes(scores, probes, gallery), fpirs=(0.1, 0.3))
    assert (figures["mated"], figures["non_mated"]) == (len(ranks), len(strangers))
    for k in (1, 5, 10):
        assert figures[f"rank-{k}"]["value"] == np.mean([rank <= k for rank in ranks])
    for fpir in (0.1, 0.3):
        candidates = [t for t in np.unique(scores) if np.mean([s >= t for s in strangers]) <= fpir]
        figure = figures[f"fnir@fpir={fpir}"]
        missed = [rank > 1 or mate < min(candidates) for rank, mate in zip(ranks, mates)]
        assert figure["value"] == pytest.approx(np.mean(missed), abs=1e-12)
        assert figure["false_positives"] == sum(s >= min(candidates) for s in strangers)


def test_parts_of_the_probes_are_put_together():
    scores, probes, gallery = simulated(0)
    whole = identification.outcomes(scores, probes, gallery)
    rows = np.array_split(np.arange(60), 7)
    parts = [identification.outcomes(scores[i], probes[i], gallery) for i in rows]
    joined = identification.Outcomes.concatenate(parts)
    assert identification.figures(joined) == identification.figures(whole)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_threshold_accepts_as_many_as_the_rate_allows(dtype):
    scores = np.random.default_rng(0).permutation(np.linspace(-1, 1, 1000)).astype(dtype)
    for rate, accepted in ((1e-3, 1), (0.0019, 1), (0.29, 290), (0.5, 500)):
        limit = identification.threshold(scores, rate)
        assert limit is not None
        assert (scores >= limit).sum() == accepted
        rejected = np.sort(scores)[::-1][accepted]
        assert limit == float(np.nextafter(rejected, dtype(2))), "no lower threshold does"
    assert identification.threshold(scores, 0.00099) is None
    assert identification.threshold(scores[:0], 0.5) is None
    tied = np.array([0.5, 0.5, 0.5, 0.1], dtype)
    limit = identification.threshold(tied, 0.5)
    assert limit is not None
    assert (tied >= limit).sum() == 0, "ties are accepted or rejected together"


def test_one_to_one_figures_agree_with_those_of_the_folds():
    rng = np.random.default_rng(1)
    labels = np.arange(4000) % 2 == 0
    scores = np.round(rng.normal(size=4000) + labels, 2)
    far = folds.verification(scores, labels, [4000], bootstrap=0)["tar@far=1e-2"]
    limit = identification.threshold(scores[~labels], 1e-2)
    assert far["value"] == np.mean(scores[labels] >= limit)
    assert far["impostors_above"] == np.sum(scores[~labels] >= limit)


def test_how_many_a_rate_needs():
    rates = (0.1, 0.01, 1e-3, 1e-6, 0.3)
    assert [identification.needed(rate) for rate in rates] == [10, 100, 1000, 1_000_000, 4]
    for rate in rates:
        assert identification.accepted_at(identification.needed(rate), rate) == 1
        assert identification.accepted_at(identification.needed(rate) - 1, rate) == 0


def test_nobody_mated_or_everybody():
    strangers = identification.figures(identification.outcomes(SCORES[3:], PROBES[3:], GALLERY), fpirs=(0.5,))
    assert strangers["rank-1"] == {"value": None, "ci95": None, "hits": 0}
    assert strangers["fnir@fpir=0.5"]["value"] is None
    assert strangers["fnir@fpir=0.5"]["threshold"] is not None
    mated = identification.figures(identification.outcomes(SCORES[:3], PROBES[:3], GALLERY), fpirs=(0.5,))
    assert mated["rank-1"]["hits"] == 1
    assert mated["fnir@fpir=0.5"]["threshold"] is None


def test_what_cannot_be_evaluated():
    for scores, gallery in ((SCORES[:, :2], GALLERY), (SCORES[:, :0], [])):
        with pytest.raises(ValueError, match="expected one score for each probe and entry"):
            identification.outcomes(scores, PROBES, gallery)
    with pytest.raises(ValueError, match="not finite"):
        identification.outcomes(np.where(SCORES == 0.9, np.nan, SCORES), PROBES, GALLERY)
    for rate in (0, 1, -1, np.nan):
        with pytest.raises(ValueError, match="choose one above 0 and below 1"):
            identification.threshold([0.1, 0.2], rate)


@pytest.mark.parametrize("block", [1, 2, 5, 256])
def test_only_other_people_of_a_gallery_are_found(block, monkeypatch):
    """Entries 0 and 1 are alike and of two people, 2 and 3 alike and of one, and 4 is alike to nobody."""
    monkeypatch.setattr(identification, "BLOCK", block)
    angles = np.array([0.0, 0.1, 1.5, 1.6, 3.0])
    vectors, people = np.stack([np.cos(angles), np.sin(angles)], 1), np.array([0, 1, 2, 2, 3])
    found = identification.find_others(vectors, people, np.array([4, 0, 1, 2, 3]), 0.9)
    assert found.tolist() == [False, True, True, False, False]
    alike = float(np.cos(0.1))
    for threshold, reached in ((alike - 1e-9, True), (alike + 1e-9, False)):
        assert identification.find_others(vectors, people, np.array([0]), threshold).tolist() == [reached]
    assert identification.find_others(vectors, people, np.zeros(0, int), 0.9).tolist() == []
    assert identification.Outcomes.__hash__ is not None  # Python gives a hash to frozen dataclasses only
