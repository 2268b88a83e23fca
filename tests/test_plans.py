"""Test plans of single records: which of them make up each step, in any order and from any thread."""

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fvjax.data.plans import ClassPlan, EpochPlan, ShufflePlan, shuffle_within


def ids(plan, index) -> list[int]:
    return plan.examples(np.asarray(index, np.int64))["ids"][:, 0].tolist()


def step_ids(plan, step) -> list[int]:
    size = plan.examples_per_step
    return ids(plan, np.arange(size * step, size * (step + 1)))


class Numbered(EpochPlan):
    """A plan of 2 steps of 3 examples; "epoch" counts the epochs that were computed before, "name" is the position."""

    steps_per_epoch = 2

    def __init__(self, seed=0, pause=0.0):
        super().__init__(6, 3, seed)
        self.pause, self.made = pause, []

    def epoch_columns(self, bits):
        time.sleep(self.pause)
        number = len(self.made)
        self.made.append(int(bits.random_raw()))
        places = np.arange(6)
        return {"ids": np.stack([places, places + 10], axis=1), "epoch": np.full(6, number), "name": places.astype(str)}


# ---- every record once


@pytest.mark.parametrize(("records", "size"), [(12, 4), (13, 4), (5, 5), (7, 1), (1, 1), (200, 17)])
def test_every_record_is_seen_once_an_epoch_but_for_what_fills_no_batch(records, size):
    plan = ShufflePlan(records, size, seed=3)
    assert plan.steps_per_epoch == records // size
    assert (plan.records, plan.examples_per_step, plan.seed) == (records, size, 3)
    each = plan.steps_per_epoch * size
    for epoch in range(3):
        found = ids(plan, np.arange(each * epoch, each * (epoch + 1)))
        assert len(set(found)) == each
        assert set(found) <= set(range(records))
    examples = plan.examples(np.arange(size))
    assert list(examples) == ["ids"]
    assert (examples["ids"].shape, examples["ids"].dtype) == ((size, 1), np.int64)


def test_which_records_are_left_out_and_the_order_change_with_the_epoch():
    plan = ShufflePlan(13, 4, seed=0)
    epochs = [ids(plan, np.arange(12 * epoch, 12 * (epoch + 1))) for epoch in range(30)]
    left = [(set(range(13)) - set(found)).pop() for found in epochs]
    assert len(set(left)) > 6
    assert len({tuple(found) for found in epochs}) == 30


def test_records_are_equally_often_anywhere():
    plan = ShufflePlan(4, 2, seed=1)
    first = [ids(plan, [4 * epoch])[0] for epoch in range(400)]
    assert np.bincount(first, minlength=4) == pytest.approx([100] * 4, abs=30)  # more than three standard deviations


def test_the_order_is_that_of_random_bits():
    """numpy promises PCG64's raw bits for ever, so that the same seed means the same batches in later versions."""
    for seed, epoch in ((0, 0), (0, 1), (5, 3)):
        raw = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(20)
        expected = sorted(range(20), key=lambda i: int(raw[i]) >> 24)
        assert ids(ShufflePlan(20, 4, seed), np.arange(20 * epoch, 20 * epoch + 20)) == expected
    golden = [3, 2, 1, 6, 0, 7, 4, 5, 7, 4, 5, 1, 6, 2, 0, 3]
    assert ids(ShufflePlan(8, 4, seed=0), range(16)) == golden


# ---- a pure function of seed and step


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_a_step_does_not_depend_on_what_was_asked_before(seed):
    steps = [0, 7, 3, 3, 25, 0, 8]
    fresh = [step_ids(ShufflePlan(11, 3, seed), step) for step in steps]
    plan = ShufflePlan(11, 3, seed)
    assert [step_ids(plan, step) for step in steps] == fresh
    assert fresh[0] == fresh[5]


def test_seeds_differ_and_are_not_shifted_epochs():
    def epochs(seed):
        return {tuple(ids(ShufflePlan(20, 4, seed), np.arange(20 * e, 20 * e + 20))) for e in range(5)}

    assert not epochs(0) & epochs(1)


def test_examples_may_be_asked_for_one_by_one_repeated_and_in_any_order():
    plan = ShufflePlan(10, 3, seed=2)
    whole = ids(plan, range(40))
    index = np.random.default_rng(0).integers(0, 40, 100)
    assert ids(plan, index) == [whole[i] for i in index]
    assert [ids(plan, [i])[0] for i in (39, 0, 17)] == [whole[i] for i in (39, 0, 17)]


def test_a_pickled_plan_is_the_same_plan_and_carries_no_epochs():
    plan = ShufflePlan(100_000, 4, seed=7)
    before = step_ids(plan, 30_000)
    packed = pickle.dumps(plan)
    assert len(packed) < 500
    copy = pickle.loads(packed)  # noqa: S301  # made here
    assert vars(copy).keys() == vars(plan).keys()
    assert step_ids(copy, 30_000) == before


# ---- across epochs


def test_a_batch_across_a_border_is_in_the_order_that_was_asked_for():
    examples = Numbered().examples(np.array([4, 7, 5, 6, 12, 0]))
    assert examples["ids"].tolist() == [[4, 14], [1, 11], [5, 15], [0, 10], [0, 10], [0, 10]]
    assert examples["epoch"].tolist() == [0, 1, 0, 1, 2, 0]
    assert examples["name"].tolist() == ["4", "1", "5", "0", "0", "0"], "all columns alike"


def test_an_epochs_generator_is_seeded_with_seed_and_epoch():
    plan = Numbered(seed=4)
    plan.examples(np.array([13, 1]))
    expected = [int(np.random.PCG64(np.random.SeedSequence([4, epoch])).random_raw()) for epoch in (0, 2)]
    assert plan.made == expected, "and the epoch in between is not worked out"


def test_two_epochs_are_kept():
    plan = Numbered()
    for place in (5, 6, 5, 6, 0):
        plan.examples(np.array([place]))
    assert len(plan.made) == 2
    plan.examples(np.array([12]))  # in place of epoch 1, which was used before epoch 0
    plan.examples(np.array([0]))
    assert len(plan.made) == 3
    plan.examples(np.array([6]))
    assert len(plan.made) == 4


def test_no_examples_have_the_same_columns_as_some():
    examples = Numbered().examples(np.zeros(0, np.int64))
    assert {name: column.shape for name, column in examples.items()} == {"ids": (0, 2), "epoch": (0,), "name": (0,)}


# ---- threads


def test_threads_get_what_one_thread_gets():
    plan, draw = ShufflePlan(50, 4, seed=1), np.random.default_rng(1)
    asked = [draw.integers(0, 48 * 6, 9) for _ in range(300)]
    expected = [ids(ShufflePlan(50, 4, seed=1), index) for index in asked]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda index: ids(plan, index), asked)) == expected


def test_an_epoch_that_several_threads_ask_for_is_worked_out_once():
    plan, start = Numbered(pause=0.05), threading.Barrier(6)

    def ask(_):
        start.wait()
        return plan.examples(np.array([3]))["epoch"].tolist()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == [[0]] * 6
    assert len(plan.made) == 1


# ---- errors


@pytest.mark.parametrize("index", [[-1], [3, -2, 0], [-1, -2]])
def test_a_negative_number_is_no_example(index):
    with pytest.raises(IndexError, match=f"^example {min(index)}: the plan starts at 0$"):
        ShufflePlan(10, 2, 0).examples(np.array(index))


@pytest.mark.parametrize(("records", "size"), [(10, 11), (10, 0), (10, -1), (0, 1)])
def test_a_batch_is_at_least_one_and_at_most_all_records(records, size):
    with pytest.raises(
        ValueError, match=rf"^config\.batch_size={size}, but the store has {records} records; choose 1 … {records}$"
    ):
        ShufflePlan(records, size, 0)


def test_groups_are_shuffled_within_themselves():
    groups = np.repeat([0, 1, 3], [5, 1, 6])
    bits = [np.random.PCG64(seed) for seed in (0, 0, 1)]
    one, again, other = (shuffle_within(groups, each) for each in bits)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    for order in (one, other):
        assert sorted(order.tolist()) == list(range(12))
        assert np.array_equal(groups[order], groups)


def test_a_plan_with_classes_gives_each_example_the_class_of_its_record():
    labels = np.array([3, 0, 2, 2, 1, 0, 3])
    plan = ClassPlan(labels, 3, seed=5)
    given = plan.examples(np.arange(12))
    assert (given["ids"].shape, given["labels"].dtype) == ((12, 1), np.int32)
    np.testing.assert_array_equal(given["labels"], labels[given["ids"][:, 0]])
    np.testing.assert_array_equal(given["ids"], ShufflePlan(7, 3, seed=5).examples(np.arange(12))["ids"])
