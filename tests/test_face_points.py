"""Test facial points: those of the procedural faces, files of points, frame numbers and stores that hold both."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fvjax.data import cartoon, face_points, frames, synthetic
from fvjax.data.stores import Store
from fvjax.data.stores.conversations import ConversationStore, Unusable, Writer
from fvjax.face_regions import POINTS, REGIONS
from tests.test_conversation_store import chat, picture

GOLDEN = json.loads(Path("tests/golden/facellava/facellava_frames.json").read_text())
POINT = GOLDEN["landmarks"]


def test_frame_numbers_are_the_reference_s():
    assert {n: frames.indices(int(n)) for n in GOLDEN["frames"]} == GOLDEN["frames"]
    for words, expected in GOLDEN["other_counts"].items():
        total, wanted = (int(word) for word in words.split() if word.isdigit())
        assert frames.indices(total, wanted) == expected
    with pytest.raises(ValueError, match="empty video: 0 frames"):
        frames.indices(0)


def test_regions_are_the_reference_s():
    assert list(REGIONS.items()) == [(name, tuple(points)) for name, points in GOLDEN["regions"].items()]
    pixels = face_points.normalise(np.array(POINT["image_pixels"]))
    centroids = {name: pixels[list(points)].mean(0) for name, points in REGIONS.items()}
    for name, expected in POINT["region_centroids_of_the_image"].items():
        np.testing.assert_allclose(centroids[name], expected, atol=1e-6)


def test_normalisation_is_the_reference_s(tmp_path):
    pixels = np.array(POINT["image_pixels"])
    assert face_points.normalise(pixels).ravel().tolist() == POINT["image_normalised"]
    whole = face_points.normalise(pixels.astype(int)).ravel().tolist()
    assert whole == POINT["image_normalised_from_integers"]
    for shape in ((136,), (68, 2), (1, 68, 2)):
        np.save(tmp_path / "face.npy", pixels.reshape(shape))
        assert face_points.read_npy(tmp_path / "face.npy", None).ravel().tolist() == POINT["image_normalised"]


def save(path: Path, array: np.ndarray, **options) -> Path:
    np.save(path / "points.npy", array, **options)
    return path / "points.npy"


FACE = np.full((68, 2), 100.0)
CLIP = np.full((9, 68, 2), 100.0)


@pytest.mark.parametrize(
    ("array", "count", "error"),
    [
        (np.full((67, 2), 1.0), None, r"^malformed landmarks: points.npy has the shape \[67, 2\]"),
        (CLIP[:, :5], 9, r"^malformed landmarks: points.npy has the shape \[9, 5, 2\]"),
        (CLIP, 10, "^landmarks of another length: points.npy has 9 frames, the clip 10"),
        (CLIP[:2], None, "^several faces: points.npy has the points of 2 faces"),
        (np.stack([CLIP, CLIP], 1), 9, "^several faces: points.npy has the points of 2 faces"),
        (FACE * np.nan, None, "^landmarks that are not finite: points.npy"),
        (FACE * 100, None, "^landmarks in pixels: points.npy"),
        (np.full((68, 2), "a"), None, "^malformed landmarks: points.npy is no .npy file of numbers"),
    ],
)
def test_files_of_points_that_cannot_be_used(tmp_path, array, count, error):
    with pytest.raises(ValueError, match=error):
        face_points.read_npy(save(tmp_path, array), count)


def test_a_pickle_is_never_loaded(tmp_path):
    file = save(tmp_path, np.array([{"a": print}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="pickles are never loaded"):
        face_points.read_npy(file, None)


def test_files_that_promise_more_than_they_hold(tmp_path):
    file = save(tmp_path, FACE)
    data = file.read_bytes()
    file.write_bytes(data[:-8])
    with pytest.raises(ValueError, match="1208 bytes, 1216 expected"):
        face_points.read_npy(file, None)
    file.write_bytes(data.replace(b"(68, 2), }", b"(68, 99999999999), }"[:10] + b"(68, 99999999999), }"[10:]))
    with pytest.raises(ValueError, match="malformed landmarks"):
        face_points.read_npy(file, None)
    with pytest.raises(ValueError, match=r"^missing landmarks: none.npy"):
        face_points.read_npy(tmp_path / "none.npy", None)


def drawn_at(identity: int, shot: int, difficulty: float) -> tuple[dict, SimpleNamespace, np.ndarray]:
    """Return the shape, and the drawing's own coordinates x, y, u, v at each of its 68 points."""
    shape, attributes = synthetic.identity_shape(identity, 0), synthetic.shot_attributes(identity, shot, 0, difficulty)
    portrait = cartoon._Portrait(SimpleNamespace(**shape), SimpleNamespace(**attributes), cartoon.Strokes())
    points = synthetic.landmarks(identity, shot, 0, difficulty)
    x, y = np.clip(points.T * 112 - 0.5, 0, 110.999)
    column, row = x.astype(int), y.astype(int)
    right, down = x - column, y - row
    fields = {}
    for name in ("x", "y", "u", "v"):
        field = getattr(portrait, name)
        top = field[row, column] * (1 - right) + field[row, column + 1] * right
        bottom = field[row + 1, column] * (1 - right) + field[row + 1, column + 1] * right
        fields[name] = top * (1 - down) + bottom * down
    return shape, SimpleNamespace(**fields), portrait.outline(0.0, portrait.v)[row, column]


@pytest.mark.parametrize("difficulty", [0, 1, 2])
def test_points_of_procedural_faces_lie_on_what_is_drawn(difficulty):
    for identity in range(5):
        shape, at, outline = drawn_at(identity, 1, difficulty)
        shot = synthetic.shot_attributes(identity, 1, 0, difficulty)
        corners = [36, 39, 42, 45]
        gap, width = shape["eye_gap"], shape["eye_width"]
        np.testing.assert_allclose(at.x[corners], [-gap - width, width - gap, gap - width, gap + width], atol=0.01)
        np.testing.assert_allclose(at.x[27:31], 0, atol=0.01)
        half_width = shape["mouth_width"] * (1 + 0.12 * shot["smile"])
        np.testing.assert_allclose(at.x[[48, 54]], [-half_width, half_width], atol=0.01)
        mouth = shape["nose_y"] + shape["mouth_gap"]
        np.testing.assert_allclose(at.y[[48, 54, 60, 64]], mouth - 0.07 * shot["smile"] * 0.7, atol=0.01)
        np.testing.assert_allclose(at.y[66] - at.y[62], 0.13 * shot["mouth_open"], atol=0.012)
        assert (np.abs(outline[:17]) < 0.035).all()
        assert at.y[19] < at.y[37] < at.y[33] < at.y[57]  # brow, lid, nose, lip, downwards


def test_points_are_stored_beside_procedural_faces(tmp_path):
    plain = synthetic.write(tmp_path / "plain", range(2), 2, 0, split="train")
    store = synthetic.write(tmp_path / "points", range(2), 2, 0, split="train", features=["landmarks"])
    assert isinstance(store, Store)
    assert store.manifest["landmarks"] == {"detector": synthetic.DETECTOR, "points": POINTS}
    records = store.read(np.arange(4), ["landmarks"])
    np.testing.assert_array_equal(records["landmarks"][3], synthetic.landmarks(1, 1, 0))
    for number in range(4):
        np.testing.assert_array_equal(store.image(number), plain.image(number))


def points_of(pictures: int, start: float = 0.25) -> np.ndarray:
    return np.linspace(start, start + 0.5, pictures * 136, dtype=np.float32).reshape(pictures, 68, 2)


def write(path: Path, landmarks, **options) -> ConversationStore:
    with Writer(path, split="train", sources=["here"], **({"frames": 3, "detector": "by hand"} | options)) as writer:
        writer.add(chat("<image><video>\nSame?", "Yes"), [picture(n) for n in range(4)], "a", landmarks)
        writer.add(chat("<image>?", "No"), [picture(4)], "b", [None])
    return ConversationStore(path)


def test_clips_and_points_come_back(tmp_path):
    points = [points_of(1), points_of(3)]
    store = write(tmp_path / "store", points)
    assert (store.frames, store.detector) == (3, "by hand")
    assert store.manifest["landmarks"] == {"detector": "by hand", "points": 68, "missing": 1}
    record = store.conversation(0)
    assert len(record.pictures) == 4
    for got, want in zip(record.landmarks, points, strict=True):
        np.testing.assert_array_equal(got, want)
    assert store.conversation(1).landmarks == (None,)
    other = write(tmp_path / "other", [points_of(1), points_of(3, 0.3)])
    assert other.data_hash != store.data_hash


@pytest.mark.parametrize(
    ("landmarks", "options", "error"),
    [
        ([points_of(1)], {}, "landmarks: of 1 pictures and clips, the conversation has 2"),
        ([points_of(1), points_of(2)], {}, "landmarks of another length: 2 pictures, expected 3"),
        ([points_of(1), points_of(3) * 256], {}, "landmarks in pixels: 64.0 to 192.0"),
        ([points_of(1), points_of(3) * np.nan], {}, "landmarks that are not finite"),
        ([points_of(1), points_of(3)[:, :5]], {}, r"malformed landmarks: float32 \[3, 5, 2\]"),
        ([points_of(1), points_of(3)], {"detector": None}, "landmarks: the store has none"),
        ([points_of(1), points_of(3)], {"frames": 0}, "special token in a text: <video>"),
        ([points_of(1), points_of(3)], {"frames": 4}, "1 <image> and 1 <video> of 4 frames, 4 pictures"),
    ],
)
def test_what_stores_with_clips_refuse(tmp_path, landmarks, options, error):
    with pytest.raises(Unusable, match=error):
        write(tmp_path / "store", landmarks, **options)


def test_a_clip_has_its_frames_in_its_manifest(tmp_path):
    store = write(tmp_path / "store", [points_of(1), points_of(3)])
    manifest = json.loads((store.path / "manifest.json").read_text())
    for entry, value in (("frames", "3"), ("landmarks", [])):
        (store.path / "manifest.json").write_text(json.dumps(manifest | {entry: value}))
        with pytest.raises(ValueError, match=f"'{entry}' is malformed"):
            ConversationStore(store.path)
