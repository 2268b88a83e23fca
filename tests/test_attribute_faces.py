"""Test procedural faces with maps and attributes, and maps in stores."""

import json

import numpy as np
import pytest

from fvjax import attribute_rules
from fvjax.data import attribute_faces, attributes, cartoon, map_png, maps, rules, stores, synthetic
from fvjax.data.stores import Feature
from fvjax.face_classes import CLASSES, ID, SWAP

NAMES = attribute_faces.NAMES


@pytest.fixture(scope="module")
def drawn():
    """Some labels, [N, K], and maps."""
    faces = [attribute_faces.draw(person, k, 0) for person in range(40) for k in range(2)]
    return np.stack([labels for *_, labels in faces]), np.stack([classes for _, classes, _ in faces])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("faces") / "store"
    return attribute_faces.write(path, range(3), 4, 0, split="train", labelled=0.5)


def positive(labels, name):
    return labels[:, NAMES.index(name)] == 1


def test_no_label_breaks_a_rule(drawn):
    table = attribute_rules.compile_rules(rules.load("procedural", ("anatomical", "groups")), NAMES)
    assert not attribute_rules.violated(drawn[0] == 1, table).any()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("Wearing_Hat", ["hat"]),
        ("Wearing_Necklace", ["necklace"]),
        ("Eyeglasses", ["glasses"]),
    ],
)
def test_a_map_shows_what_is_worn(drawn, name, parts):
    labels, classes = drawn
    shown = np.isin(classes, [ID[part] for part in parts]).any((1, 2))
    np.testing.assert_array_equal(shown, positive(labels, name))


def test_right_and_left_are_the_persons():
    shape = synthetic.identity_shape(0, 0)
    shot = synthetic.shot_attributes(0, 0, 0, difficulty=0.0) | {"glasses": False}
    _, classes = cartoon.render_with_map(shape, shot)
    columns = {part: np.nonzero(classes == ID[part])[1] for pair in SWAP for part in pair}
    for right, left in SWAP:
        assert columns[right].max() < columns[left].min(), "the person's right is on the left of the picture"


def test_only_the_map_shows_what_is_too_fine():
    shape, shot = synthetic.identity_shape(1, 0), synthetic.shot_attributes(1, 0, 0)
    bare, none = cartoon.render_with_map(shape, shot)
    worn, some = cartoon.render_with_map(shape, shot, cartoon.Strokes(earrings=True, necklace=True))
    np.testing.assert_array_equal(bare, worn)
    assert set(np.unique(some)) - set(np.unique(none)) == {ID["earring"], ID["necklace"]}


def test_a_hidden_attribute_goes_with_a_visible_one():
    labels = np.stack([attribute_faces.draw(person, 0, 5)[2] for person in range(300)])
    for hidden, shown in attribute_faces.HIDDEN.items():
        with_it, without = (positive(labels, hidden)[positive(labels, shown) == value] for value in (True, False))
        assert with_it.mean() > 0.8
        assert without.mean() < 0.12


def test_a_mirror_exchanges_right_and_left():
    mirrored = maps.Maps().mirrored
    assert [CLASSES[i] for i in mirrored[[ID["right_eye"], ID["left_ear"], ID["hair"]]]] == [
        "left_eye",
        "right_ear",
        "hair",
    ]
    order = maps.mirrored(NAMES, attribute_faces.SWAP)
    moved = [name for name, i in zip(NAMES, order) if NAMES[i] != name]
    assert moved == ["Facing_Left", "Facing_Right"]


def test_a_store_has_maps_and_labels(store):
    assert maps.of(store) == maps.Maps()
    columns = attributes.labels(store)
    known = columns[:, NAMES.index("Sailor")] != 0
    assert 0 < known.sum() < len(known)
    assert (columns[:, : NAMES.index("Sailor")] != 0).all()
    _, classes, labels = attribute_faces.draw(0, 1, 0)
    np.testing.assert_array_equal(store.read([1], ["map"])["map"][0], classes)
    np.testing.assert_array_equal(columns[1][columns[1] != 0], labels[columns[1] != 0])
    counts = maps.quality(store)
    assert counts["maps"] == 12
    assert counts["empty"] == 0
    assert counts["pictures_with"]["face"] == 12


def test_a_map_with_an_unknown_class_is_named(tmp_path):
    wrong = np.full((112, 112), 19, np.uint8)
    picture = attribute_faces.draw(0, 0, 0)[0]
    with stores.Writer(
        tmp_path / "s", split="test", sources=["x"], features={"map": Feature("map", (112, 112))}
    ) as writer:
        writer.info["maps"] = maps.Maps().to_json()
        writer.add(synthetic.encode(picture), "a", "a.jpg", map=wrong)
    with pytest.raises(ValueError, match=r"record 0: class 19 in a map of 19 classes"):
        maps.quality(stores.Store(tmp_path / "s", "test"))


def test_maps_of_another_size_are_refused(tmp_path, store):
    with pytest.raises(ValueError, match=r"a map of 20x10 pixels, expected 112x112"):
        map_png.decode(map_png.encode(np.zeros((10, 20), np.uint8)), (112, 112))
    with pytest.raises(ValueError, match="not a PNG file"):
        map_png.decode(b"\xff\xd8\xff", (112, 112))
    with pytest.raises(ValueError, match="damaged PNG"):
        map_png.decode(map_png.encode(np.zeros((112, 112), np.uint8))[:60], (112, 112))
    with pytest.raises(ValueError, match=r"uint8 \[112, 100\], expected map"):
        Feature("map", (112, 112)).encode(np.zeros((112, 100), np.uint8))
    file = store.path / "manifest.json"
    text = file.read_text()
    manifest = json.loads(text)
    manifest["features"]["map"]["shape"] = [100, 112]
    try:
        file.write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match="maps of 100 112 for pictures of 112 112"):
            maps.of(stores.Store(store.path))
    finally:
        file.write_text(text)


def test_classes_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="no class"):
        maps.Maps(("background", "eye"), (("eye", "ear"),))
    with pytest.raises(ValueError, match="each another one"):
        maps.Maps(("background", "background"), ())
