"""Test that batches are a function of plan and step: hosts, workers and restarts do not change them."""

import multiprocessing

import numpy as np
import pytest

from fvjax import errors
from fvjax.data import images, pipeline, stores
from fvjax.data.pairs import GenuineImpostorPlan, PairPlan, PairsPlan
from tests.parts import pairs_of
from tests.test_images import smooth_face


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> stores.Store:
    """Return 12 identities with 2, 3, 4, 2, 3, 4, … images."""
    owners = np.repeat(np.arange(12), [2, 3, 4] * 4)
    records = ((images.encode(smooth_face(i)), f"id{who}", f"{i}.jpg") for i, who in enumerate(owners))
    path = tmp_path_factory.mktemp("faces") / "s"
    return stores.write(path, records, split="train", sources=[])


@pytest.fixture(scope="module", params=["identities", "answers"])
def plan(request, faces) -> PairsPlan:
    if request.param == "answers":
        return GenuineImpostorPlan(faces.labels, 4, pairs_per_epoch=22, seed=1)
    return PairPlan(faces.labels, 4, seed=1)


def batches(faces, plan, start_step=0, num_steps=8, **options):
    return list(pipeline.train_batches(faces, plan, start_step=start_step, num_steps=num_steps, **options))


def same(one, other) -> bool:
    return len(one) == len(other) and all(np.array_equal(x[k], y[k]) for x, y in zip(one, other) for k in x)


def test_a_batch_is_the_plan_decoded(faces, plan):
    for step, batch in enumerate(batches(faces, plan)):
        shapes = {key: (value.shape, value.dtype) for key, value in batch.items()}
        assert shapes == {
            "images": ((4, 2, 112, 112, 3), np.uint8),
            "labels": ((4,), np.int32),
            "index": ((4,), np.int64),
            "ids": ((4, 2), np.int64),
        }
        assert batch["index"].tolist() == list(range(step * 4, step * 4 + 4))
        assert [(*ids, label) for ids, label in zip(batch["ids"].tolist(), batch["labels"])] == pairs_of(
            plan, batch["index"]
        )
        for pair, ids in zip(batch["images"], batch["ids"]):
            assert np.array_equal(pair[0], faces.image(ids[0]))
            assert np.array_equal(pair[1], faces.image(ids[1]))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_share_every_step_between_them(faces, plan, hosts):
    whole = batches(faces, plan)
    parts = [batches(faces, plan, rows=rows) for rows in np.split(np.arange(plan.examples_per_step), hosts)]
    for step, want in enumerate(whole):
        got = [(int(i), *ids) for part in parts for i, ids in zip(part[step]["index"], part[step]["ids"].tolist())]
        assert all(len(part[step]["index"]) == 4 // hosts for part in parts)
        assert sorted(got) == [(int(i), *ids) for i, ids in zip(want["index"], want["ids"].tolist())]


def test_resuming_continues_the_same_sequence(faces, plan):
    whole = batches(faces, plan, num_steps=2 * plan.steps_per_epoch)
    for start in (1, plan.steps_per_epoch - 1, plan.steps_per_epoch + 1):
        assert same(batches(faces, plan, start_step=start, num_steps=len(whole) - start), whole[start:])
    assert batches(faces, plan, num_steps=0) == []


def test_threads_and_worker_processes_change_nothing(faces, plan):
    want = batches(faces, plan, start_step=3)
    assert same(batches(faces, plan, start_step=3, threads=1, prefetch=1), want)
    assert same(batches(faces, plan, start_step=3, workers=2), want)


def test_a_killed_worker_process_is_told_from_a_mistake(faces, plan):
    running = pipeline.train_batches(faces, plan, start_step=0, num_steps=10_000, workers=1, prefetch=1)
    next(running)
    for child in multiprocessing.active_children():
        child.kill()
    with pytest.raises(errors.WorkerLost, match=r"a data worker ended with -9 \(-9: killed, often for lack of memory"):
        list(running)


def test_what_does_not_fit_is_refused(faces, plan):
    with pytest.raises(ValueError, match="rows 3 to 4 of a batch that has 4 examples"):
        batches(faces, plan, rows=np.array([3, 4]))
    with pytest.raises(ValueError, match="rows -1 to 0 of a batch"):
        batches(faces, plan, rows=np.array([-1, 0]))
    with pytest.raises(ValueError, match=f"over 4 images, .* has {len(faces)}"):
        batches(faces, PairPlan(np.array([0, 0, 1, 1]), 2, 0))
    with pytest.raises(ValueError, match="start_step=-1"):
        batches(faces, plan, start_step=-1)


def test_a_broken_image_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(images, "decode", lambda *_, **__: None)  # let a bad record into the store
        records = [(images.encode(smooth_face(0))[: 900 if i == 1 else None], "a", f"a/{i}.jpg") for i in range(2)]
        broken = stores.write(tmp_path / "s", records, split="train", sources=[])
    with pytest.raises(ValueError, match=r"/s record 1 \(a/1\.jpg\): cannot be read"):
        batches(broken, PairPlan(broken.labels, 1, 0), num_steps=1)
    with pytest.raises(ValueError, match=r"/s record 1 \(a/1\.jpg\): cannot be read"):
        list(pipeline.eval_batches(broken, [0, 1], 2))


@pytest.mark.parametrize(("size", "counts"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (8, [5])])
def test_eval_batches_are_in_order_and_padded(faces, size, counts):
    wanted = np.array([7, 3, 3, 0, 11])
    got = list(pipeline.eval_batches(faces, wanted, size))
    assert [valid for _, valid in got] == counts
    assert all(batch.shape == (size, 112, 112, 3) and batch.dtype == np.uint8 for batch, _ in got)
    faces_got = np.concatenate([batch[:valid] for batch, valid in got])
    assert all(np.array_equal(face, faces.image(i)) for face, i in zip(faces_got, wanted))
    last, valid = got[-1]
    assert (last[valid:] == last[valid - 1]).all()


def test_no_records_make_no_eval_batches(faces):
    assert list(pipeline.eval_batches(faces, [], 4)) == []
