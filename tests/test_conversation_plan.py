"""Test which conversations make up each row and step: all of them once an epoch, whatever is grouped or packed."""

import math
import pickle
from typing import Any

import numpy as np
import pytest

from fvjax.data.conversation_plan import ConversationPlan, pack

TOKENS = np.random.default_rng(0).integers(5, 61, 103)
TILES = np.random.default_rng(1).integers(0, 6, 103)
BUCKETS = (16, 32, 64)
SETTINGS = [
    pytest.param({"by_length": by_length, "packed": packed}, id=f"by_length={by_length} packed={packed}")
    for by_length in (False, True)
    for packed in (False, True)
]


def plan_of(tokens: Any = TOKENS, tiles: Any = TILES, rows=4, seed=0, buckets=BUCKETS, **settings) -> ConversationPlan:
    return ConversationPlan(np.asarray(tokens), np.asarray(tiles), rows, seed, buckets=buckets, **settings)


def epoch(plan: ConversationPlan, number: int = 0) -> dict[str, np.ndarray]:
    size = plan.steps_per_epoch * plan.examples_per_step
    return plan.examples(np.arange(size) + number * size)


def steps(plan: ConversationPlan, number: int = 0) -> list[list[tuple[int, ...]]]:
    """Return an epoch as steps of rows of conversations."""
    rows = [tuple(int(i) for i in row if i >= 0) for row in epoch(plan, number)["ids"]]
    return [rows[start : start + plan.examples_per_step] for start in range(0, len(rows), plan.examples_per_step)]


def members(rows) -> list[int]:
    return sorted(i for row in rows for i in row)


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_conversation_is_seen_once_an_epoch(settings):
    plan = plan_of(**settings)
    orders = []
    for number in range(3):
        rows = [row for step in steps(plan, number) for row in step]
        assert members(rows) == list(range(103))
        orders.append(rows)
    assert orders[0] != orders[1] != orders[2], "in another order each time"


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("rows", [1, 4, 7, 200])
def test_only_the_end_of_the_last_step_is_empty(settings, rows):
    plan = plan_of(rows=rows, **settings)
    assert plan.steps_per_epoch == math.ceil(plan.rows / rows)
    *full, last = steps(plan)
    assert all(row for step in full for row in step)
    used = [bool(row) for row in last]
    assert used == sorted(used, reverse=True)
    assert used[0]
    assert sum(used) == plan.rows - rows * (plan.steps_per_epoch - 1)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_step_has_room_for_its_longest_row_and_no_more_than_needed(settings):
    plan = plan_of(**settings)
    columns = epoch(plan)
    for number, step in enumerate(steps(plan)):
        at = slice(4 * number, 4 * number + 4)
        longest, most = (max(sum(x[i] for i in row) for row in step) for x in (TOKENS, TILES))
        assert set(columns["length"][at]) == {min(b for b in BUCKETS if b >= longest)}
        assert set(columns["tiles"][at]) == {min(p for p in (1, 2, 4, 8, 16, 32, 64) if p >= most)}


def test_a_row_as_long_as_a_bucket_gets_that_bucket():
    columns = epoch(plan_of([16, 17, 32, 64], [0, 1, 2, 3], rows=1))
    sizes = {
        int(i): (length, tiles) for i, length, tiles in zip(columns["ids"][:, 0], columns["length"], columns["tiles"])
    }
    assert sizes == {0: (16, 1), 1: (32, 1), 2: (32, 2), 3: (64, 4)}


def test_similar_lengths_share_a_step_and_steps_are_shuffled():
    plain, grouped = plan_of(rows=8), plan_of(rows=8, by_length=True)
    assert members(row for step in steps(plain) for row in step) == members(
        row for step in steps(grouped) for row in step
    )
    means = [np.mean([TOKENS[i] for row in step for i in row]) for step in steps(grouped)]
    assert means[:-1] != sorted(means[:-1]), "short steps do not all come first"

    def spread(plan):
        return np.mean([np.ptp([TOKENS[i] for row in step for i in row]) for step in steps(plan)])

    assert spread(grouped) < 0.3 * spread(plain)
    assert grouped.padding() < plain.padding()


def test_rows_are_sorted_within_fifty_steps_only():
    """Otherwise the same conversations would meet in every epoch."""
    tokens = np.arange(1, 201) % 60 + 1
    plan = plan_of(tokens, np.zeros(200), rows=2, by_length=True)
    first = [{tokens[i] for row in step for i in row} for step in steps(plan)]
    assert {frozenset(row for row in step) for step in steps(plan)} != {
        frozenset(row for row in step) for step in steps(plan, 1)
    }
    assert max(max(step) for step in first[:50]) > 50
    assert max(max(step) for step in first[50:]) > 50


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_fewer_rows_than_a_step_has(count):
    plan = plan_of(TOKENS[:count], TILES[:count], rows=4, by_length=True)
    assert plan.steps_per_epoch == (2 if count == 5 else 1)
    assert members(row for step in steps(plan) for row in step) == list(range(count))


@pytest.mark.parametrize("settings", SETTINGS)
def test_any_part_of_any_step_is_the_same_on_every_host(settings):
    whole = plan_of(**settings)
    size = whole.steps_per_epoch * 4
    index = np.array([size + 3, 2, size - 1, 2 * size, 0, 7])
    parts = plan_of(**settings).examples(index)
    for name, column in parts.items():
        expected = np.concatenate([epoch(whole, number)[name] for number in range(3)])[index]
        assert np.array_equal(column, expected), name
    assert not np.array_equal(epoch(plan_of(seed=1, **settings))["ids"], epoch(whole)["ids"])


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_worker_gets_the_same_plan(settings):
    plan = plan_of(leave_out=[3, 8], **settings)
    again = pickle.loads(pickle.dumps(plan))  # noqa: S301 (our own bytes)
    assert again.steps_per_epoch == plan.steps_per_epoch
    for name, column in epoch(plan, 1).items():
        assert np.array_equal(epoch(again, 1)[name], column), name


# ---- packing


def test_best_fit_decreasing_by_hand():
    """9 and 7 open rows of 10; 3 fits the second alone; 2 opens a third; 1 goes into the first, the fullest."""
    assert pack(np.array([2, 7, 1, 9, 3]), 10).tolist() == [[3, 2], [1, 4], [0, -1]]
    assert pack(np.array([10, 10]), 10).tolist() == [[0], [1]]
    assert pack(np.array([], int), 10).shape == (0, 1)


@pytest.mark.parametrize("seed", range(5))
def test_no_packed_row_is_too_long_and_nothing_is_cut(seed):
    tokens = np.random.default_rng(seed).integers(1, 65, 200)
    rows = [[i for i in row if i >= 0] for row in pack(tokens, 64).tolist()]
    assert members(rows) == list(range(200))
    assert max(tokens[row].sum() for row in rows) <= 64
    assert len(rows) <= 11 / 9 * math.ceil(tokens.sum() / 64) + 1 + (tokens > 32).sum(), "best fit's bound, roughly"
    assert len(rows) < 0.75 * len(tokens)


def test_rows_are_packed_the_same_for_every_seed():
    packs = [{row for step in steps(plan_of(packed=True, seed=seed)) for row in step if row} for seed in (0, 1)]
    assert packs[0] == packs[1]
    assert plan_of(packed=True).steps_per_epoch == plan_of(packed=True, seed=1).steps_per_epoch
    assert plan_of(packed=True).rows < 0.8 * len(TOKENS)


# ---- what is left out, and errors


@pytest.mark.parametrize("settings", SETTINGS)
def test_what_is_left_out_never_comes(settings):
    out = [0, 50, 51, 102]
    tokens = TOKENS.copy()
    tokens[out] = 1000
    plan = plan_of(tokens, leave_out=out, **settings)
    assert plan.records == 103
    for number in range(2):
        assert members(row for step in steps(plan, number) for row in step) == sorted(set(range(103)) - set(out))


def test_padding_by_hand():
    """The steps (10, 16) and (20, nothing) have two rows of 16 and two of 32 tokens."""
    plan = plan_of([10, 16, 20], [1, 1, 1], rows=2, by_length=True)
    assert plan.padding() == pytest.approx(1 - 46 / 96)
    assert plan_of([16, 16], [1, 1], rows=1).padding() == 0
    packed = plan_of([10, 16, 20], [1, 1, 1], rows=1, packed=True)
    assert packed.padding() == pytest.approx(1 - 46 / 64), "all in one row"


def test_errors():
    with pytest.raises(ValueError, match="not one conversation to train on: every one is left out"):
        plan_of([70, 80], [1, 1], leave_out=[0, 1])
    with pytest.raises(ValueError, match="conversation 2 has 80 tokens, more than 64"):
        plan_of([70, 20, 80], [1, 1, 1], leave_out=[0])
