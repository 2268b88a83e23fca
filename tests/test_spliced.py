"""Test conversations with pictures and clips as arrays, and the resizing of pictures, against rows made by hand."""

import dataclasses
import pickle

import numpy as np
import pytest

from fvjax.data import resizing, tokenizers
from fvjax.data.chat import render
from fvjax.data.placeholders import PLACEHOLDER_ID
from fvjax.data.spliced import Format, Plan, Reader, measure, piece
from fvjax.data.stores.conversations import ConversationStore, Writer
from tests.test_conversation_store import chat, picture
from tests.test_face_points import points_of
from tests.test_images import smooth_face

FRAMES, SIZE = 3, 28


@pytest.fixture(scope="module")
def format() -> Format:
    tokenizer = tokenizers.load("fvjax/pretrained/tiny_chat")
    return Format(tokenizer, "vicuna_tiny", image_tokens=4, frame_tokens=5, frames=FRAMES, size=SIZE)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ConversationStore:
    path = tmp_path_factory.mktemp("spliced") / "store"
    with Writer(path, split="train", sources=["here"], frames=FRAMES, detector="by hand") as writer:
        writer.add(chat("<image>\nWho?", "A man."), [picture(0, 28, 28)], "image", [points_of(1)])
        writer.add(chat("<video>\nWhat?", "Joy."), [picture(n, 28, 28) for n in range(1, 4)], "clip", [points_of(3)])
        writer.add(chat("<image>\nWho?", "A woman."), [picture(5, 28, 28)], "plain", [None])
        writer.add(chat("Why?", "So."), [], "text", [])
        writer.add(chat("<image>\nAge?", "Old."), [picture(6, 28, 28)], "other", [points_of(1, 0.1)])
    return ConversationStore(path)


def columns(ids, length=200, images=1, videos=1) -> dict[str, np.ndarray]:
    ids = np.array(ids)
    room = {"length": length, "images": images, "videos": videos}
    return {"ids": ids} | {name: np.full(len(ids), value) for name, value in room.items()}


def test_a_batch_mixes_pictures_clips_and_rows_without(store, format):
    batch = Reader(store, format)(columns([[0], [1], [2], [3], [-1]]))
    assert {name: (x.dtype.name, x.shape) for name, x in batch.items()} == {
        "tokens": ("int32", (5, 200)),
        "targets": ("int32", (5, 200)),
        "segments": ("int32", (5, 200)),
        "images": ("uint8", (5, 1, 28, 28, 3)),
        "image_places": ("int32", (5, 4)),
        "image_landmarks": ("float32", (5, 1, 68, 2)),
        "image_has_landmarks": ("bool", (5, 1)),
        "videos": ("uint8", (5, 1, 3, 28, 28, 3)),
        "video_places": ("int32", (5, 15)),
        "video_landmarks": ("float32", (5, 1, 3, 68, 2)),
        "video_has_landmarks": ("bool", (5, 1)),
    }
    assert batch["image_has_landmarks"].ravel().tolist() == [True, False, False, False, False]
    assert batch["video_has_landmarks"].ravel().tolist() == [False, True, False, False, False]
    np.testing.assert_array_equal(batch["video_landmarks"][1, 0], points_of(3))
    np.testing.assert_array_equal(batch["image_landmarks"][0], points_of(1))
    assert (batch["image_places"][[1, 3, 4]] == 200).all()
    assert (batch["video_places"][[0, 2, 3, 4]] == 200).all()
    for number in range(3):
        np.testing.assert_array_equal(batch["videos"][1, 0, number], np.asarray(store.images(1)[number]))


def test_visual_places_stand_where_the_placeholders_stood(store, format):
    for number, name, tokens in ((0, "image_places", 4), (1, "video_places", 5)):
        row = {key: x[0] for key, x in Reader(store, format)(columns([[number]])).items()}
        rendered = format.render(store.conversation(number).messages)
        expanded = []
        for id in rendered.ids:
            expanded += [0] * tokens if id == PLACEHOLDER_ID else [id]
        assert row["tokens"][: len(expanded)].tolist() == expanded
        assert (row["tokens"][row[name]] == 0).all()
        assert np.unique(row[name]).size == row[name].size
        learned = row["targets"][row["targets"] >= 0].tolist()
        assert learned == [id for id, counted in zip(*rendered) if counted]
        assert row["targets"][len(expanded) - 1] == -1, "nothing follows the last token"
        size = measure(format, store.conversation(number))
        assert size == (len(expanded), len(learned), number == 0, number == 1)


def test_the_answer_is_what_is_learned(format):
    rendered = render("vicuna_tiny", chat("<image>\nWho?", "A man."), format.tokenizer)
    answer = [id for id, counted in zip(*rendered) if counted]
    assert format.tokenizer.decode(answer) == " A man.<|im_end|>"


def test_a_row_is_the_same_alone_and_beside_others(store, format):
    read = Reader(store, format)
    together = read(columns([[0], [1], [2]]))
    for number in range(3):
        for name, alone in read(columns([[number]])).items():
            np.testing.assert_array_equal(alone[0], together[name][number], err_msg=name)


def test_two_conversations_share_a_row(store, format):
    row = {name: x[0] for name, x in Reader(store, format)(columns([[0, 2]], length=300, images=2, videos=0)).items()}
    first = {name: x[0] for name, x in Reader(store, format)(columns([[0]])).items()}
    length = measure(format, store.conversation(0)).tokens
    assert row["segments"][[0, length - 1, length]].tolist() == [0, 0, 1]
    assert row["image_places"][:4].tolist() == first["image_places"].tolist()
    assert (row["image_places"][4:] > length).all()
    assert row["image_has_landmarks"].tolist() == [True, False]


def test_nothing_is_cut(store, format):
    for room in ({"length": 20}, {"images": 0}, {"videos": 0}):
        with pytest.raises(ValueError, match="room is for"):
            Reader(store, format)(columns([[0], [1]], **room))


def test_landmarks_can_be_hidden_and_shuffled(store, format):
    hidden = Reader(store, dataclasses.replace(format, landmarks="none"))(columns([[0], [1]]))
    assert not hidden["image_has_landmarks"].any()
    assert not hidden["video_landmarks"].any()
    shuffled = Reader(store, dataclasses.replace(format, landmarks="shuffled"))
    np.testing.assert_array_equal(shuffled(columns([[0]]))["image_landmarks"][0], points_of(1, 0.1))
    with pytest.raises(ValueError, match="record 1: no other record has landmarks of its shape"):
        shuffled(columns([[1]]))
    with pytest.raises(ValueError, match="landmarks='off': choose one of own, none, shuffled"):
        dataclasses.replace(format, landmarks="off")


def first(points):
    """Return the first point of a picture, or of the first frame of a clip."""
    return np.asarray(points).reshape(-1, 2)[0]


def test_points_move_with_their_picture(format):
    points = np.full((1, 68, 2), 0.25, np.float32)
    wide = np.zeros((28, 56, 3), np.uint8)
    padded = piece(format, chat("<image>", "A"), [wide], [points]).image_landmarks[0]
    np.testing.assert_allclose(first(padded), [0.25, 0.375])  # the picture fills the middle half of the square's height
    cropped = piece(dataclasses.replace(format, square="crop"), chat("<image>", "A"), [wide], [points])
    np.testing.assert_allclose(first(cropped.image_landmarks[0]), [0.0, 0.25])
    clip = piece(format, chat("<video>", "A"), [wide] * 3, [points.repeat(3, 0)])
    np.testing.assert_allclose(first(clip.video_landmarks[0]), [0.0, 0.25])


def test_clips_of_another_length_are_refused(store, format):
    with pytest.raises(ValueError, match="its clips have 3 frames, the model takes 8"):
        Reader(store, dataclasses.replace(format, frames=8))
    with pytest.raises(ValueError, match="has places for 3 pictures and frames, 2 are given"):
        piece(format, chat("<video>", "A"), [np.zeros((28, 28, 3), np.uint8)] * 2)


def test_a_plan_has_room_for_pictures_and_clips():
    images, videos = np.array([1, 0, 3, 0]), np.array([0, 1, 0, 0])
    plan = Plan(np.array([10, 90, 20, 5]), images, videos, 1, 0, buckets=(32, 100))
    assert plan.steps_per_epoch == 4
    seen = {}
    for step in range(4):
        batch = plan.examples(np.array([step]))
        seen[int(batch["ids"][0, 0])] = tuple(int(batch[name][0]) for name in ("length", "images", "videos"))
    assert seen == {0: (32, 1, 0), 1: (100, 0, 1), 2: (32, 4, 0), 3: (32, 0, 0)}
    copy = pickle.loads(pickle.dumps(plan))  # noqa: S301
    np.testing.assert_array_equal(copy.examples(np.arange(4))["videos"], plan.examples(np.arange(4))["videos"])


@pytest.mark.parametrize("kernel", resizing.KERNELS)
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(20, 31), (80, 44)])
def test_resizing_is_torch_s(kernel, antialias, size):
    torch = pytest.importorskip("torch")
    face = smooth_face(0, 60)[:50]
    floats = torch.tensor(face).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(floats, size=size, mode=kernel, align_corners=False, antialias=antialias)
    expected = expected[0].permute(1, 2, 0).clip(0, 255).numpy()
    assert np.abs(resizing.resize(face, size, kernel, antialias) - expected).max() < 0.51


def test_a_square_is_padded_or_cut_out():
    face = smooth_face(0, 56)[:, 14:42]
    padded = resizing.to_square(face, 28, square="pad")
    assert padded.shape == (28, 28, 3)
    assert (padded[:, :5] == resizing.MEAN_COLOUR).all()
    cropped = resizing.to_square(face, 28)
    np.testing.assert_array_equal(cropped, face[14:42])
    np.testing.assert_array_equal(resizing.to_square(padded, 28), padded)
    with pytest.raises(ValueError, match="square='fit'"):
        resizing.to_square(face, 28, square="fit")
