"""Test the pair plan: the conditions that every epoch must satisfy, for any numbers of images per identity."""

import pickle
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fvjax.data.pairs import GenuineImpostorPlan, PairPlan, PairsPlan, validation
from tests.parts import pairs_of


def epoch_of(plan: PairsPlan, epoch: int) -> np.ndarray:
    """Return int64 [steps, P, 3] of (a, b, label)."""
    n = plan.steps_per_epoch * plan.examples_per_step
    table = np.array(pairs_of(plan, range(epoch * n, (epoch + 1) * n)), np.int64)
    return table.reshape(plan.steps_per_epoch, plan.examples_per_step, 3)


@st.composite
def plans(draw):
    """Draw plans with any counts, records in any order, and gaps between identity numbers."""
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
    assert plan.steps_per_epoch == sum(size // plan.examples_per_step for size in rounds)
    assert (plan.eligible, plan.single) == (sum(c >= 2 for c in counts), counts.count(1))


@settings(max_examples=30, deadline=None)
@given(plans(), st.lists(st.integers(0, 2000), min_size=1, max_size=30))
def test_random_access_equals_sequential(drawn, places):
    plan, _ = drawn
    fresh = PairPlan(plan.labels, plan.examples_per_step, plan.seed)
    want = pairs_of(plan, range(max(places) + 1))
    assert pairs_of(fresh, places) == [want[i] for i in places]


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
    plan = PairPlan(np.repeat(np.arange(5), 4), 2, 3)  # two rounds of 5 pairs, one pair of each is dropped
    pairs, identities = Counter(), Counter()
    epochs = 600
    for epoch in range(epochs):
        for a, b, identity in epoch_of(plan, epoch).reshape(-1, 3).tolist():
            identities[identity] += 1
            pairs[frozenset((a, b))] += 1
    # 8 of 10 pairs per epoch: 1.6 per identity, spread over 6 pairs of images; tolerance five standard deviations
    assert len(pairs) == 30
    assert max(abs(n - epochs * 1.6) for n in identities.values()) < 5 * (epochs * 2 * 0.8 * 0.2) ** 0.5
    p = 1.6 / 6
    assert max(abs(n - epochs * p) for n in pairs.values()) < 5 * (epochs * p * (1 - p)) ** 0.5


GOLDEN = [(3, 0, 0), (4, 5, 1), (6, 8, 2), (10, 9, 3), (10, 9, 3), (1, 3, 0), (7, 8, 2), (4, 5, 1)]


def test_golden_ids():
    """Plans of published runs must not change: these numbers may never be updated without a new seed scheme."""
    plan = PairPlan(np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4]), 2, 7)
    assert (plan.steps_per_epoch, plan.eligible, plan.single) == (2, 4, 1)
    assert pairs_of(plan, range(8)) == GOLDEN


def test_pickled_plan_is_the_same_plan():
    """Grain pickles the plan for worker processes. Nothing that was pickled is ever read from a file."""
    plan = PairPlan(LABELS, 4, 5)
    want = pairs_of(plan, range(30))
    copy = pickle.loads(pickle.dumps(plan))  # noqa: S301 (our own bytes)
    assert pairs_of(copy, range(30)) == want


def test_impossible_batches_are_refused():
    labels = np.array([0, 0, 1, 1, 2])
    for pairs_per_batch in (3, 0, -1):
        with pytest.raises(ValueError, match=rf"={pairs_per_batch}, .* 2 identities with two or more .*1 with one"):
            PairPlan(labels, pairs_per_batch, 0)
    with pytest.raises(ValueError, match="there are 0 identities"):
        PairPlan(np.zeros(0, np.int64), 1, 0)
    with pytest.raises(IndexError, match="starts at 0"):
        PairPlan(labels, 2, 0).examples(np.array([-1]))


# genuine and impostor pairs


@st.composite
def answer_plans(draw):
    """Draw plans with any counts, records in any order, and more pairs than exist as often as fewer."""
    counts = draw(st.lists(st.integers(1, 6), min_size=2, max_size=8))
    assume(max(counts) > 1)
    labels = draw(st.permutations(np.repeat(np.arange(len(counts)) * 7, counts).tolist()))
    batch = draw(st.integers(1, 12))
    size = draw(st.integers(batch, 150))
    return GenuineImpostorPlan(np.array(labels, np.int64), batch, size, draw(st.integers(0, 2**40)))


def possible(plan: PairsPlan) -> dict[int, set[frozenset]]:
    """Return all pairs of records, by label."""
    every = {frozenset(pair) for pair in combinations(range(len(plan.labels)), 2)}
    genuine = {pair for pair in every if len({int(plan.labels[i]) for i in pair}) == 1}
    return {1: genuine, 0: every - genuine}


@settings(max_examples=100, deadline=None)
@given(answer_plans(), st.integers(0, 1000))
def test_every_epoch_of_genuine_and_impostor_pairs(plan, epoch):
    table = epoch_of(plan, epoch).reshape(-1, 3).tolist()
    assert plan.steps_per_epoch == plan.pairs_per_epoch // plan.examples_per_step
    labels = [label for *_, label in table]
    assert sum(labels) == len(labels) // 2
    for label, pairs in possible(plan).items():
        drawn = Counter(frozenset((a, b)) for a, b, its in table if its == label)
        assert set(drawn) <= pairs, "a pair of the other kind, or an image with itself"
        times = [drawn[pair] for pair in pairs]
        assert max(times) - min(times) <= 1, "a pair again before all have come"


@settings(max_examples=100, deadline=None)
@given(answer_plans(), st.integers(0, 1000))
def test_identities_and_images_take_turns(plan, epoch):
    table = epoch_of(plan, epoch).reshape(-1, 3)
    for label, pairs in possible(plan).items():
        capacity = Counter(frozenset(plan.labels[list(pair)].tolist()) for pair in pairs)
        turns = Counter(frozenset(plan.labels[row[:2]].tolist()) for row in table if row[2] == label)
        rounds = sum(turns.values()) // len(pairs)
        more = {who: turns[who] - rounds * capacity[who] for who in capacity}
        waiting = [more[who] for who in capacity if more[who] < capacity[who]]
        # if fewer pairs are drawn than there are pairs of identities, each of these has one turn or none
        assert not waiting or max(more.values()) <= min(waiting) + 1
    genuine = Counter(table[table[:, 2] == 1, :2].ravel().tolist())
    for who in np.unique(plan.labels):
        used = [genuine[i] for i in np.flatnonzero(plan.labels == who)]
        assert max(used) - min(used) <= 2


@settings(max_examples=30, deadline=None)
@given(answer_plans(), st.lists(st.integers(0, 1000), min_size=1, max_size=30))
def test_random_access_to_genuine_and_impostor_pairs(plan, places):
    fresh = pickle.loads(pickle.dumps(plan))  # noqa: S301 (our own bytes; a copy whose epochs are not drawn yet)
    want = pairs_of(plan, range(max(places) + 1))
    assert pairs_of(fresh, places) == [want[i] for i in places]


def test_an_epoch_of_the_seeds_size():
    """Draw 100,000 pairs of 3,000 identities with 10 images, 2,048 per step.

    No pair is repeated, and every part has both kinds.
    """
    plan = GenuineImpostorPlan(np.repeat(np.arange(3000), 10), 2048, 100_000, 0)
    table = epoch_of(plan, 0)
    assert plan.steps_per_epoch == 48
    pairs = np.sort(table[..., :2].reshape(-1, 2), axis=1)
    assert len(np.unique(pairs, axis=0)) == 48 * 2048
    per_batch = table[..., 2].sum(axis=1)
    assert per_batch.sum() == 24 * 2048
    # a batch is a draw of 2,048 from the epoch: five standard deviations, and not always the same number
    assert 0 < np.abs(per_batch - 1024).max() < 5 * (2048 * 0.25) ** 0.5
    sides = np.bincount(table[..., 0].ravel(), minlength=30000) / np.bincount(table[..., :2].ravel(), minlength=30000)
    assert abs(np.nanmean(sides) - 0.5) < 0.01, "an image is as often first as second"
    for label in (0, 1):  # each identity 33 times, so that few of its 10 images never occur
        assert len(np.unique(table[table[..., 2] == label, :2])) > 0.9 * 30_000


def test_epochs_seeds_and_kinds_are_drawn_anew():
    plans = [GenuineImpostorPlan(LABELS, 4, 40, seed) for seed in (0, 1)]
    tables = [epoch_of(plans[0], 0), epoch_of(plans[0], 1), epoch_of(plans[1], 0)]
    for label in (0, 1):
        sets = [{frozenset(row[:2]) for row in t.reshape(-1, 3).tolist() if row[2] == label} for t in tables]
        assert sets[0] != sets[1] != sets[2] != sets[0]
    assert len({t[..., 2].tobytes() for t in tables}) == 3, "the order of the kinds is drawn too"


def test_all_pairs_are_drawn_evenly():
    """Over many epochs, identities with 2, 3 and 4 images are drawn equally often, and so are pairs of both kinds."""
    labels = np.repeat(np.arange(4), [2, 3, 4, 1])
    plan, epochs = GenuineImpostorPlan(labels, 4, 4, 5), 1500
    pairs = {1: Counter(), 0: Counter()}
    for epoch in range(epochs):
        for a, b, label in epoch_of(plan, epoch).reshape(-1, 3).tolist():
            pairs[label][a, b] += 1

    def check(found: Counter, p: dict) -> None:
        """Allow five standard deviations."""
        assert set(found) == set(p)
        for key, chance in p.items():
            assert abs(found[key] - epochs * chance) < 5 * (epochs * chance * (1 - chance)) ** 0.5, key

    every = [(a, b) for a in range(10) for b in range(10) if a != b]
    of = labels.tolist()
    counts = np.bincount(labels)
    # two genuine pairs per epoch, of two of the three identities; all c (c - 1) ordered pairs are equally likely
    check(pairs[1], {(a, b): 2 / 3 / (c * (c - 1)) for a, b in every if of[a] == of[b] and (c := counts[of[a]])})
    # two impostor pairs of two of the six pairs of identities; either order
    check(pairs[0], {(a, b): 2 / 6 / 2 / (counts[of[a]] * counts[of[b]]) for a, b in every if of[a] != of[b]})


GOLDEN_ANSWERS = [
    (11, 10, 0),
    (11, 3, 0),
    (4, 8, 0),
    (10, 9, 1),
    (8, 7, 1),
    (4, 5, 1),
    (10, 7, 0),
    (0, 2, 1),
    (8, 6, 1),
    (3, 2, 1),
    (6, 10, 0),
    (4, 5, 1),
]


def test_golden_genuine_and_impostor_pairs():
    """Plans of published runs must not change: these numbers may never be updated without a new seed scheme."""
    plan = GenuineImpostorPlan(np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4]), 4, 10, 7)
    assert (plan.steps_per_epoch, plan.eligible, plan.single) == (2, 4, 1)
    assert pairs_of(plan, range(12)) == GOLDEN_ANSWERS


def test_impossible_answer_plans_are_refused():
    for batch in (0, 11):
        with pytest.raises(ValueError, match=f"pairs_per_batch={batch}, .* an epoch has 10 pairs; choose 1 … 10"):
            GenuineImpostorPlan(LABELS, batch, 10, 0)
    for labels, message in (([0, 1, 2], "0 identities with two .* 3 with one"), ([0, 0], "1 .* and 0 with one")):
        with pytest.raises(ValueError, match=message):
            GenuineImpostorPlan(np.array(labels), 2, 10, 0)
    with pytest.raises(IndexError, match="starts at 0"):
        GenuineImpostorPlan(LABELS, 2, 10, 0).examples(np.array([-1]))


@pytest.mark.parametrize(("count", "folds"), [(60, 10), (40, 2), (18, 3)])
def test_validation_pairs_are_the_plans_with_as_many_of_both_kinds_in_every_fold(count, folds):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(30) * 3, 4))
    drawn = validation(labels, count, 5, folds)
    assert drawn.fold.tolist() == sorted(drawn.fold.tolist())
    assert np.bincount(drawn.fold).tolist() == [count // folds] * folds
    assert np.bincount(drawn.fold[drawn.same]).tolist() == [count // folds // 2] * folds
    np.testing.assert_array_equal(drawn.identity_a, labels[drawn.a])
    np.testing.assert_array_equal(drawn.identity_b, labels[drawn.b])
    np.testing.assert_array_equal(drawn.same, drawn.identity_a == drawn.identity_b)
    assert (drawn.a != drawn.b).all()
    plan = GenuineImpostorPlan(labels, count, count, 5)
    assert sorted(zip(drawn.a, drawn.b)) == sorted(pair[:2] for pair in pairs_of(plan, range(count)))
    assert set(validation(labels, 20, 5).fold) == set(range(10)), "ten folds, if nothing else is said"


@pytest.mark.parametrize("make", [PairPlan, lambda labels, p, seed: GenuineImpostorPlan(labels, p, 40, seed)])
def test_two_epochs_are_kept_and_the_one_used_last_is_not_forgotten(make, monkeypatch):
    """Prefetching alternates between two epochs at their border. Drawing one again each time would stall it."""
    plan, drawn = make(LABELS, 4, 0), []
    original = plan.epoch_pairs
    monkeypatch.setattr(plan, "epoch_pairs", lambda bits: drawn.append(1) or original(bits))
    n = plan.steps_per_epoch * plan.examples_per_step
    for i in (n - 1, n, n - 1, n, 0, n):
        pairs_of(plan, [i])
    assert len(drawn) == 2, "both sides of the border are there"
    pairs_of(plan, [2 * n]), pairs_of(plan, [n])  # a third epoch replaces epoch 0, which was used before epoch 1
    assert len(drawn) == 3
    pairs_of(plan, [0])
    assert len(drawn) == 4


def test_an_epoch_may_hold_a_single_pair_or_batch():
    one = GenuineImpostorPlan(np.array([0, 0, 1]), 1, 1, 0)
    assert (one.steps_per_epoch, pairs_of(one, [0])[0][2]) == (1, 0), "the odd one is an impostor pair"
    all_of_it = PairPlan(np.array([0, 0, 1, 1]), 2, 0)
    assert all_of_it.steps_per_epoch == 1
    assert sorted(label for *_, label in pairs_of(all_of_it, range(2))) == [0, 1]
    assert GenuineImpostorPlan(LABELS, 10, 10, 0).steps_per_epoch == 1
