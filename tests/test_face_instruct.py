"""Test the small FaceInstruct: labels that follow from the drawing, clips with motion, and its command."""

import numpy as np
import pytest

from fvjax.data import describe, face_instruct, synthetic
from fvjax.data.face_instruct import EXPRESSIONS, answer, face, write
from fvjax.data.face_labels import ACTION_UNITS, ATTRIBUTES, TASKS
from fvjax.data.stores.conversations import ConversationStore


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ConversationStore:
    path = tmp_path_factory.mktemp("face_instruct") / "store"
    return write(path, range(8), images_per_identity=1, clips_per_identity=1, seed=3, frames=4)


def records(store):
    return [store.conversation(i) for i in range(len(store))]


def test_every_picture_and_clip_has_a_question_of_each_task(store):
    metas = [record.meta for record in records(store)]
    assert [meta["task"] for meta in metas] == list(TASKS) * 16
    assert [meta["media"] for meta in metas[:10]] == ["image"] * 5 + ["video"] * 5
    assert store.manifest["face_instruct"]["records"] == dict.fromkeys(TASKS, 16)
    assert store.detector == synthetic.DETECTOR
    for record in records(store):
        assert record.messages[1]["content"] == answer(record.meta["task"], record.meta["label"])
        assert [one.shape for one in record.landmarks] == [(len(record.pictures), 68, 2)]


def test_labels_are_what_is_drawn():
    for identity in range(40):
        one = face(identity, 0, 0)
        assert one.expression in EXPRESSIONS
        assert set(one.action_units) <= set(ACTION_UNITS)
        assert set(one.attributes) <= set(face_instruct.ATTRIBUTES) <= set(ATTRIBUTES)
        assert (12 in one.action_units) == (one.shot["smile"] > 0.5) == ("Smiling" in one.attributes)
        assert (15 in one.action_units) == (one.shot["smile"] < -0.5)
        assert (25 in one.action_units) == (one.shot["mouth_open"] > 0.2) == ("Mouth_Slightly_Open" in one.attributes)
        assert (2 in one.action_units) == (one.shot["brow_raise"] > 1)
        assert ("Eyeglasses" in one.attributes) == one.shot["glasses"]
        assert ("Gray_Hair" in one.attributes) == (one.age >= 60)
    assert {face(i, 0, 0).expression for i in range(40)} == set(EXPRESSIONS)
    assert face(3, 0, 0).age == face(3, 1, 0).age, "a person has one age"
    assert 18 <= min(face(i, 0, 0).age for i in range(100)) < max(face(i, 0, 0).age for i in range(100)) <= 80


def test_an_expression_grows_in_a_clip(store):
    for record in records(store):
        if record.meta["media"] == "video" and record.meta["label"] in ("happy", "surprise"):
            points = record.landmarks[0]
            corners, lips = points[:, [48, 54], 1].mean(1), points[:, 66, 1] - points[:, 62, 1]
            moved = (points[:, 51, 1] - corners) if record.meta["label"] == "happy" else lips
            assert (np.diff(moved) > 0.002).all()


def test_fakes_differ_from_the_picture_and_others_do_not(store):
    by_medium = {}
    for record in records(store):
        by_medium.setdefault(record.source.rpartition("/")[0], {})[record.meta["task"]] = record
    labels = set()
    for medium in by_medium.values():
        assert len({medium[task].pictures for task in TASKS[:4]}) == 1
        is_fake = medium["deepfake"].meta["label"] == "fake"
        assert (medium["deepfake"].pictures != medium["age"].pictures) == is_fake
        labels.add(is_fake)
    assert labels == {True, False}


def test_low_resolution_hides_the_picture_and_not_the_points(tmp_path):
    kinds = {"images_per_identity": 1, "clips_per_identity": 0, "seed": 0, "tasks": ["expression"]}
    sharp, coarse = (write(tmp_path / str(n), range(2), low_resolution=n, **kinds) for n in (None, 8))
    detail = [np.abs(np.diff(np.asarray(store.images(0)[0], float), axis=1)).max() for store in (sharp, coarse)]
    assert detail[1] < detail[0] / 2
    np.testing.assert_array_equal(sharp.conversation(0).landmarks[0], coarse.conversation(0).landmarks[0])


def test_a_store_depends_on_its_people_alone(store, tmp_path):
    again = write(tmp_path / "again", range(8), images_per_identity=1, clips_per_identity=1, seed=3, frames=4)
    assert again.data_hash == store.data_hash
    part = write(tmp_path / "part", [5], images_per_identity=1, clips_per_identity=1, seed=3, frames=4)
    assert part.conversation(0) == store.conversation(50)


def test_test_questions_have_one_wording(tmp_path):
    kinds = {"images_per_identity": 1, "clips_per_identity": 0, "seed": 0, "tasks": ["age"]}
    for split, wordings in (("test", 1), ("train", 3)):
        store = write(tmp_path / split, range(20), split=split, **kinds)
        assert len({record.messages[0]["content"] for record in records(store)}) == wordings


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tasks": ["gaze"]}, "task 'gaze': choose of expression, action_units"),
        ({"low_resolution": 2}, "low_resolution=2: expected 4 to 112 pixels"),
        ({"images_per_identity": 0, "clips_per_identity": 0}, "0 pictures and 0 clips of each person"),
        ({"images_per_identity": -1}, "-1 pictures and 1 clips of each person"),
    ],
)
def test_what_cannot_be_drawn(tmp_path, options, error):
    with pytest.raises(ValueError, match=error):
        write(
            tmp_path / "store", range(1), **({"images_per_identity": 1, "clips_per_identity": 1, "seed": 0} | options)
        )


def test_the_command(tmp_path, capsys):
    flags = ["--first=7", "--identities=2", "--images=1", "--clips=1", "--frames=2", "--seed=1", "--split=test"]
    flags += ["--tasks=age,expression", "--low-resolution=16", f"--dst={tmp_path / 'store'}"]
    assert describe.main(["procedural", *flags]) == 0
    store = ConversationStore(tmp_path / "store", "test")
    assert (len(store), store.frames) == (8, 2)
    assert [record.meta["identity"] for record in records(store)] == [7] * 4 + [8] * 4
    assert store.manifest["face_instruct"]["seed"] == 1
    assert store.manifest["face_instruct"]["low_resolution"] == 16
    assert "age 4 (50%), expression 4 (50%); landmarks: fvjax.data.synthetic (exact)" in capsys.readouterr().out
    assert describe.main(["procedural", "--identities=0", f"--dst={tmp_path / 'none'}"]) == 2
    assert "--identities=0" in capsys.readouterr().err
