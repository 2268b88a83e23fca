"""The pair plan: what every epoch must satisfy, for any counts of images per identity."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fvjax.data.pairs import PairPlan


def epoch_of(plan: PairPlan, epoch: int) -> np.ndarray:
    """int64 [steps, P, 3] of (a, b, identity)."""
    n = plan.steps_per_epoch * plan.pairs_per_batch
    table = np.array([plan[i] for i in range(epoch * n, (epoch + 1) * n)], np.int64)
    return table.reshape(plan.steps_per_epoch, plan.pairs_per_batch, 3)


@st.composite
def plans(draw):
    """Any counts, records in any order, identity numbers with gaps."""
    counts = draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
    numbers = draw(st.lists(st.integers(0, 10**6), min_size=len(counts), max_size=len(counts), unique=True))
    labels = draw(st.permutations(np.repeat(numbers, counts).tolist()))
    eligible = sum(c >= 2 for c in counts)
    assume(eligible > 0)
    return PairPlan(np.array(labels, np.int64), draw(st.integers(1, eligible)), draw(st.integers(0, 2**40))), counts


@settings(max_examples=60, deadline=None)
@given(plans(), st.integers(0, 1000))
def test_every_epoch(drawn, epoch):
    plan, counts = drawn
    table = epoch_of(plan, epoch)
    a, b, identity = table[..., 0], table[..., 1], table[..., 2]
    assert (a != b).all()
    assert (plan.labels[a] == identity).all()
    assert (plan.labels[b] == identity).all()
    assert len({*a.ravel(), *b.ravel()}) == 2 * a.size, "an image twice in an epoch"
    assert all(len(set(batch)) == len(batch) for batch in identity.tolist()), "an identity twice in a batch"
    rounds = [sum(c // 2 > r for c in counts) for r in range(max(counts) // 2)]
    assert plan.steps_per_epoch == sum(size // plan.pairs_per_batch for size in rounds)
    assert (plan.eligible, plan.single) == (sum(c >= 2 for c in counts), counts.count(1))


@settings(max_examples=30, deadline=None)
@given(plans(), st.lists(st.integers(0, 2000), min_size=1, max_size=30))
def test_random_access_equals_sequential(drawn, places):
    plan, _ = drawn
    fresh = PairPlan(plan.labels, plan.pairs_per_batch, plan.seed)
    want = [plan[i] for i in range(max(places) + 1)]
    assert [fresh[i] for i in places] == [want[i] for i in places]


LABELS = np.repeat(np.arange(20), np.arange(20) % 6 + 1)


def test_epochs_and_seeds_differ_and_cover_the_same_counts():
    plan = PairPlan(LABELS, 4, 0)
    tables = [epoch_of(plan, 0), epoch_of(plan, 1), epoch_of(PairPlan(LABELS, 4, 1), 0)]
    assert len({t.tobytes() for t in tables}) == 3
    pairings = [{frozenset(pair) for pair in t[..., :2].reshape(-1, 2).tolist()} for t in tables]
    assert pairings[0] != pairings[1] != pairings[2], "same partners, only dealt in another order"


def test_steps_do_not_depend_on_the_order_of_records():
    shuffled = np.random.default_rng(0).permutation(LABELS)
    assert PairPlan(shuffled, 4, 0).steps_per_epoch == PairPlan(LABELS, 4, 0).steps_per_epoch


def test_partners_and_dropped_identities_are_drawn_evenly():
    plan = PairPlan(np.repeat(np.arange(5), 4), 2, 3)  # two rounds of 5 pairs, one of each is dropped
    pairs, identities = Counter(), Counter()
    epochs = 600
    for epoch in range(epochs):
        for a, b, identity in epoch_of(plan, epoch).reshape(-1, 3).tolist():
            identities[identity] += 1
            pairs[frozenset((a, b))] += 1
    # 8 of 10 pairs an epoch: 1.6 per identity, spread over 6 partnerships; five standard deviations of slack
    assert len(pairs) == 30
    assert max(abs(n - epochs * 1.6) for n in identities.values()) < 5 * (epochs * 2 * 0.8 * 0.2) ** 0.5
    p = 1.6 / 6
    assert max(abs(n - epochs * p) for n in pairs.values()) < 5 * (epochs * p * (1 - p)) ** 0.5


GOLDEN = [(3, 0, 0), (4, 5, 1), (6, 8, 2), (10, 9, 3), (10, 9, 3), (1, 3, 0), (7, 8, 2), (4, 5, 1)]


def test_golden_ids():
    """Plans of published runs must not change: these numbers may never be updated without a new seed scheme."""
    plan = PairPlan(np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4]), 2, 7)
    assert (plan.steps_per_epoch, plan.eligible, plan.single) == (2, 4, 1)
    assert [tuple(plan[i]) for i in range(8)] == GOLDEN


def test_pickled_plan_is_the_same_plan():
    """Grain sends it to worker processes by pickling it; nothing that was pickled is ever read from a file."""
    plan = PairPlan(LABELS, 4, 5)
    want = [plan[i] for i in range(30)]
    copy = pickle.loads(pickle.dumps(plan))  # noqa: S301 (our own bytes)
    assert [copy[i] for i in range(30)] == want


def test_impossible_batches_are_refused():
    labels = np.array([0, 0, 1, 1, 2])
    for pairs_per_batch in (3, 0, -1):
        with pytest.raises(ValueError, match=rf"={pairs_per_batch}, .* 2 identities with two or more .*1 with one"):
            PairPlan(labels, pairs_per_batch, 0)
    with pytest.raises(ValueError, match="there are 0 identities"):
        PairPlan(np.zeros(0, np.int64), 1, 0)
    with pytest.raises(IndexError, match="starts at 0"):
        PairPlan(labels, 2, 0)[-1]
