"""Test that the doctor names what is wrong with a pipeline, and finds nothing in sound ones.

Most tests use drawings, or pictures made of the reference face's parts. Those with real crops, and with a network that
is known to be right, skip without them.
"""

import functools
import importlib
import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import doctor_pipelines, doctor_reference
from fvjax import api, doctor
from fvjax.data import images, synthetic
from fvjax.data.readers import benchmarks
from fvjax.data.stores import Pairs, Store, Writer, read_pairs
from fvjax.diagnosis import labels, mean_face, pictures, protocols, scores
from fvjax.diagnosis.face_sets import open_faces
from tests.reference.recipe import GOLDEN

PARTS = np.array(pictures.reference()["parts"])
SKIN = np.array([160.0, 120.0, 98.0])


def names(checks) -> list[str]:
    return [finding.name for check in checks for finding in check.findings]


def faces_like_the_reference(count: int, scale=(1.0, 1.0), shift=(0.0, 0.0), scatter: float = 0) -> np.ndarray:
    """Return pictures of skin colour with the parts of a face and noise, uint8 [count, 112, 112, 3]."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(count):
        drawing, weights = mean_face.draw(PARTS, scale, tuple(np.asarray(shift) + rng.normal(0, scatter, 2)))
        light = 1 + 0.2 * np.kron(drawing * weights, np.ones((2, 2))) + rng.normal(0, 0.06, (112, 112))
        out.append(np.clip(light[..., None] * SKIN + rng.normal(0, 3, 3), 0, 255))
    return np.stack(out).astype(np.uint8)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Return a store of 120 drawings with 80 pairs."""
    return synthetic.write(tmp_path_factory.mktemp("drawings") / "s", range(40), 3, 0, split="test", pairs=80)


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda x: x, []),
        (lambda x: x[..., ::-1], ["channel-order"]),
        (lambda x: x[..., [1, 0, 2]], ["channel-order"]),
        (lambda x: np.where(np.arange(40)[:, None, None, None] % 2, x[..., ::-1], x), ["channel-order-mixed"]),
        (lambda x: np.repeat(x[..., :1], 3, -1), ["grey-pictures"]),
    ],
)
def test_colours(change, found):
    assert names([pictures.check_colours(change(faces_like_the_reference(40)))]) == found


def test_the_order_that_is_named_is_the_stored_one():
    stored = faces_like_the_reference(40)[..., [1, 2, 0]]  # the first channel holds green, the second blue
    (finding,) = pictures.check_colours(stored).findings
    assert "stored as G, B, R" in finding.problem


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda x: x, []),
        (lambda x: (x / 255).astype(np.uint8), ["normalised-pixels"]),
        (lambda x: (x / 255.0 + 0.5).astype(np.uint8), ["normalised-pixels"]),
        (doctor_pipelines.normalised, ["normalised-pixels"]),
        (lambda x: np.where(np.arange(40)[:, None, None, None] < 3, 90, x), ["blank-pictures"]),
    ],
)
def test_values(change, found):
    assert names([pictures.check_values(change(faces_like_the_reference(40)))]) == found


@pytest.mark.parametrize(
    ("made", "change", "found"),
    [
        ({}, lambda x: x, []),
        ({"scatter": 1.5}, lambda x: x, []),
        ({"scatter": 6}, lambda x: x, ["unaligned"]),
        ({"shift": (-8, 0)}, lambda x: x, ["template"]),
        ({"shift": (0, 6)}, lambda x: x, ["template"]),
        ({"scale": (0.85, 0.85)}, lambda x: x, ["template"]),
        ({"scale": (1.15, 1.0)}, lambda x: x, ["template"]),
        ({}, lambda x: x[:, ::-1], ["orientation"]),
        ({}, lambda x: np.rot90(x, -1, (1, 2)), ["orientation"]),
        ({}, lambda x: np.random.default_rng(0).integers(0, 256, x.shape).astype(np.uint8), ["unaligned"]),
    ],
)
def test_places(made, change, found):
    assert names([pictures.check_places(change(faces_like_the_reference(40, **made)))]) == found


def test_the_place_is_measured():
    """Scale to 3%, shift to a pixel, whichever way the pictures are turned."""
    for turn, change in (("upright", lambda x: x), ("turned clockwise", lambda x: np.rot90(x, -1, (1, 2)))):
        pixels = change(faces_like_the_reference(40, scale=(0.8, 0.9), shift=(5, -7)))
        found = mean_face.find(mean_face.contrast(pixels).mean(0), PARTS)
        assert found.turn == turn
        assert found.scale == pytest.approx((0.8, 0.9), rel=0.03)
        assert found.shift == pytest.approx((5, -7), abs=1)
    eyes = mean_face.Place("upright", (2.0, 1.0), (1.0, 0.0), 1.0).points()[:2]
    assert np.diff(eyes, axis=0)[0, 0] == pytest.approx(2 * (73.5318 - 38.2946))


def test_correlations_are_those_of_single_places():
    """The sums by Fourier transforms equal the plain ones, but for what of the face is beyond the picture's edge."""
    one = mean_face.contrast(faces_like_the_reference(1, shift=(3, 4)))[0]
    values = mean_face.correlate(one, PARTS, (0.9, 1.1))
    for across, down in ((0, 0), (6, -10), (-20, 14)):
        plain = mean_face.match(one, PARTS, (0.9, 1.1), (across, down))
        assert values[(down + 30) // 2, (across + 30) // 2] == pytest.approx(plain, abs=5e-3)


def test_too_few_pictures_have_no_mean_face():
    assert pictures.check_places(faces_like_the_reference(29)).skipped


# ---- labels and folds ------------------------------------------------------------------------------------------------


def test_labels_by_appearance(drawings):
    faces, pairs = open_faces(drawings.path), read_pairs(drawings.path, "synthetic")
    rng = np.random.default_rng(0)
    for same, found in ((pairs.same, []), (~pairs.same, ["labels-inverted"]), (rng.permutation(pairs.same), None)):
        check = labels.check_pairs(faces, "synthetic", Pairs(**{**vars(pairs), "same": same}))
        assert names([check]) == (["labels-unrelated"] if found is None else found)


def test_an_auc_and_its_standard_error():
    """0.75 with 2 and 2 scores; Hanley and McNeil's formula by hand."""
    area, error = labels.auc(np.array([4.0, 2.0, 3.0, 1.0]), np.array([True, True, False, False]))
    assert area == pytest.approx(0.75)
    assert error == pytest.approx((0.75 * 0.25 + (0.75 / 1.25 - 0.5625) + (1.125 / 1.75 - 0.5625)) ** 0.5 / 2)


@pytest.mark.parametrize(("by", "found"), [(0, []), (1, ["labels-shifted"]), (-1, ["labels-shifted"])])
def test_labels_that_moved_by_one_record(by, found, drawings, tmp_path):
    moved = drawings.labels[np.clip(np.arange(len(drawings)) - by, 0, len(drawings) - 1)]
    with Writer(tmp_path / "s", split="train", sources=["drawn"]) as writer:
        for i in range(len(drawings)):
            writer.add(drawings.jpeg(i), f"person {moved[i]:03d}", f"drawn#{i}")
    assert names([labels.check_order(open_faces(tmp_path / "s"))]) == found


def test_labels_that_are_not_those_of_the_folders(tmp_path):
    jpeg = images.encode(np.zeros((112, 112, 3), np.uint8))
    for name, people in (("sound", ("a", "b", "c")), ("moved", ("b", "c", "a"))):
        with Writer(tmp_path / name, split="train", sources=["x"]) as writer:
            for person, folder in zip(people, "abc"):
                writer.add(jpeg, person, f"{folder}/1.jpg")
    assert names([labels.check_names(open_faces(tmp_path / "sound"))]) == []
    (finding,) = labels.check_names(open_faces(tmp_path / "moved")).findings
    assert finding.name == "labels-not-of-files"
    assert "a/1.jpg is labelled 'b'" in finding.evidence
    assert "3 pictures" in finding.problem


def test_folds():
    """60 people, of whom each has a genuine pair and an impostor pair with the next one of the same fold."""
    people = np.arange(60)
    partner = people // 6 * 6 + (people + 1) % 6
    a, b = np.r_[2 * people, 2 * people], np.r_[2 * people + 1, 2 * partner + 1]
    fold, order = np.tile(people // 6, 2), np.argsort(np.tile(people // 6, 2), kind="stable")
    sound = Pairs(a[order], b[order], (a // 2 == b // 2)[order], fold[order], (a // 2)[order], (b // 2)[order])
    assert names([protocols.check_folds("lfw", sound)]) == []
    mixed = np.random.default_rng(0).permutation(len(a))
    columns = {name: getattr(sound, name)[mixed] for name in ("a", "b", "same", "identity_a", "identity_b")}
    shuffled = Pairs(fold=sound.fold, **columns)
    assert names([protocols.check_folds("lfw", shuffled)]) == ["folds-shuffled"]
    assert "folds-shuffled" not in names([protocols.check_folds("mine", shuffled)])
    order = np.argsort(~sound.same, kind="stable")
    columns = {name: getattr(sound, name)[order] for name in ("a", "b", "same", "identity_a", "identity_b")}
    assert names([protocols.check_folds("mine", Pairs(fold=sound.fold, **columns))]) == ["folds-unbalanced"]
    selfs = Pairs(**{**vars(sound), "b": np.where(np.arange(120) == 0, sound.a, sound.b)})
    check = protocols.check_folds("mine", selfs)
    assert names([check]) == ["self-pairs"]
    assert check.figures["self"] == 1


# ---- models ----------------------------------------------------------------------------------------------------------


def scorer(faces, reading=lambda x: x):
    """Return what stands for a network: the further the colours of its input are from what it was trained on, the
    drawings' own, the more noise is in its scores. `reading` is how it reads pictures."""
    pairs = faces.protocols["synthetic"]
    same, trained_on = pairs.same, faces.faces(np.r_[pairs.a, pairs.b]).astype(np.float32).mean((0, 1, 2))

    def score(a, b):
        away = np.abs(reading(np.concatenate([a, b])).mean((0, 1, 2)) - trained_on).mean() / 30
        return same + (0.3 + away) * np.random.default_rng(0).normal(size=len(a))

    return score


@pytest.mark.parametrize(
    ("reading", "found", "variant"),
    [
        (lambda x: x, [], ""),
        (lambda x: x[..., ::-1], ["model-channel-order"], "with channels swapped"),
        (lambda x: 2 * x - 255, ["model-normalisation"], "values from 0 to 1 instead of values from -1 to 1"),
        (lambda x: (x - 127.5) / 127.5, ["model-normalisation"], "values from 0 to 255 instead of values from -1 to 1"),
        (lambda x: x * np.nan, ["model-broken"], ""),
    ],
)
def test_how_a_model_reads_pictures(reading, found, variant, drawings):
    faces = open_faces(drawings.path)
    check, _, _ = scores.check_model(faces, "synthetic", faces.protocols["synthetic"], scorer(faces, reading), 80)
    assert names([check]) == found
    assert variant in "".join(finding.evidence for finding in check.findings)


@pytest.mark.parametrize(("noise", "said"), [(0.93, True), (1.1, False), (0.3, False)])
def test_a_reading_that_may_be_better_is_said_to_be_undecided(noise, said, drawings):
    """Swapped channels have less noise in their scores: a little less may be chance, much less is a finding."""
    faces = open_faces(drawings.path)
    pairs = faces.protocols["synthetic"]

    def score(a, b):
        common, other = np.random.default_rng(0).normal(size=(2, len(a)))
        swapped = a[..., 0].mean() < a[..., 2].mean()
        return pairs.same + 0.33 * (noise * (0.9 * common + 0.44 * other) if swapped else common)

    check, _, _ = scores.check_model(faces, "synthetic", pairs, score, 80)
    assert names([check]) == (["model-channel-order"] if noise == 0.3 else [])
    text = r"; with channels swapped it is \d\.\d\d, which may be chance: --pairs=\d+00 or more would tell$"
    assert bool(re.search(text, check.evidence)) == said, check.figures


@pytest.mark.parametrize(
    ("change", "found"), [(lambda x: -x, ["scores-inverted"]), (lambda x: 0 * x + 0.9, ["model-collapsed"])]
)
def test_scores_that_no_other_reading_helps(change, found, drawings):
    faces = open_faces(drawings.path)
    score = scorer(faces)
    pairs = faces.protocols["synthetic"]
    check, usable, _ = scores.check_model(faces, "synthetic", pairs, lambda a, b: change(score(a, b)), 80)
    assert names([check]) == found
    assert len(usable) == 0, "no threshold is checked with such scores"


def test_normalisations_are_exchanged_exactly():
    """Undo one normalisation and do another: the network's input is what it would be with the other."""
    faces = np.random.default_rng(0).uniform(0, 255, (2, 4, 4, 3))
    change = scores._renormalised(scores.HALF, scores.IMAGENET)
    network_input = (change(faces) - 127.5) / 127.5
    expected = (faces / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(network_input, expected, atol=1e-12)


def test_separation_with_weights_is_that_of_repeated_pairs():
    rng = np.random.default_rng(0)
    values, same, weights = rng.normal(size=30), np.arange(30) % 2 == 0, rng.integers(0, 3, 30)
    repeated = scores.separation(np.repeat(values, weights), np.repeat(same, weights))
    assert scores.separation(values, same, weights[None])[0] == pytest.approx(repeated)
    genuine, impostor = values[same], values[~same]
    by_hand = (genuine.mean() - impostor.mean()) / ((genuine.var() + impostor.var()) / 2) ** 0.5
    assert scores.separation(values, same) == pytest.approx(by_hand)


def test_a_threshold_of_other_scores():
    same = np.tile([True, False], 50)
    pairs = Pairs(*np.zeros((2, 100), int), same, np.arange(100) // 10, *np.zeros((2, 100), int))
    values = np.where(same, 0.6, 0.2) + np.random.default_rng(0).normal(0, 0.05, 100)
    pairs = Pairs(**{**vars(pairs), "identity_b": np.where(same, 0, 1)})
    assert names([scores.check_threshold("lfw", values, pairs, 0.4, "given")]) == []
    check = scores.check_threshold("lfw", values, pairs, 0.9, "--threshold")
    assert names([check]) == ["threshold"]
    assert "accuracy 50.0% at 0.9000 (--threshold), 10-fold 100.0% at 0.39" in check.evidence


# ---- the command -----------------------------------------------------------------------------------------------------


def say(capsys, *args) -> tuple[int, str, str]:
    try:
        code = doctor.main([str(arg) for arg in args])
    except SystemExit as end:  # of wrong arguments
        code = end.code
    return code, *capsys.readouterr()


def test_the_command(drawings, tmp_path, capsys):
    code, out, err = say(capsys, f"--data={drawings.path}")
    assert (code, err) == (0, "")
    assert out.endswith("\nno findings\n")
    assert "120 of 120 pictures are 112x112" in out
    for i in range(40):
        swapped = np.ascontiguousarray(drawings.image(i)[..., ::-1])
        (tmp_path / "crops" / f"{drawings.labels[i]}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "crops" / f"{drawings.labels[i]}" / f"{i}.jpg").write_bytes(images.encode(swapped))
    (tmp_path / "crops" / ".hidden").mkdir()
    (tmp_path / "crops" / ".hidden" / "1.jpg").write_bytes(b"no picture")
    code, out, err = say(capsys, f"--data={tmp_path / 'crops'}", "--json", "--pictures=20")
    checks = json.loads(out)["checks"]
    assert (code, err) == (1, "")
    assert checks[0]["evidence"] == "20 of 20 pictures are 112x112"
    assert [finding["name"] for check in checks for finding in check["findings"]] == ["channel-order"]
    code, out, _ = say(capsys, f"--data={tmp_path / 'crops'}")
    assert code == 1
    assert (
        "[channel-order] the channels are stored as B, G, R, and R, G, B is expected\n  evidence: R > G > B in" in out
    )
    assert "\n  remedy: swap the channels" in out


def test_pictures_of_other_sizes(drawings, tmp_path):
    for i in range(4):
        picture = np.kron(drawings.image(i), np.ones((2, 2, 1), np.uint8))[:, : 224 - 50 * (i % 2)]
        (tmp_path / f"{i}.jpg").write_bytes(images.encode(np.ascontiguousarray(picture), size=picture.shape[:2]))
    (check,) = [check for check in doctor.diagnose(tmp_path) if check.name == "sizes"]
    assert names([check]) == ["size"]
    assert check.figures == {"224x224": 2, "174x224": 2}


@pytest.fixture
def run(drawings, monkeypatch, tmp_path):
    """Return the work directory of a run whose network stands for a trained one, with results of the drawings."""

    def embed(variables, faces):  # light of 7x7 cells, without colours
        cells = faces.astype("float32").mean(-1).reshape(len(faces), 7, 16, 7, 16).mean((2, 4)).reshape(len(faces), -1)
        return (cells - cells.mean(1, keepdims=True),)

    embed.yes_no = ()  # type: ignore[attr-defined]
    evaluation = SimpleNamespace(flip_sum=False, benchmarks={"mine": SimpleNamespace(pairs="synthetic")})
    config = SimpleNamespace(eval=evaluation)
    network = SimpleNamespace(encoder=embed, variables={}, batch_size=16, run=SimpleNamespace(config=config, step=7))
    (tmp_path / "config.json").write_text('{"trainable": []}')
    entry = {"data_hash": drawings.data_hash, "accuracy@best_threshold": {"mean": 0.7, "threshold": 0.99}}
    results = {"step": 7, "flip_sum": True, "benchmarks": {"mine": entry}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    monkeypatch.setattr(api, "load_workdir", lambda path: network)
    return tmp_path


def test_a_model_is_examined(run, drawings, capsys, monkeypatch):
    monkeypatch.setattr(scores, "VARIANTS", scores.VARIANTS[:1])
    code, out, err = say(capsys, f"--data={drawings.path}", f"--model={run}", "--pairs=60", "--benchmark=synthetic")
    assert err == ""
    assert "of 60 pairs" in out
    assert f"at 0.9900 ({run}/results.json), 10-fold" in out
    assert "ok       results.json: mine: 70.0% of step 7" in out
    out = say(capsys, f"--data={drawings.path}", f"--model={run}", "--pairs=40", "--threshold=0.5")[1]
    assert "at 0.5000 (--threshold), 10-fold" in out
    code, _, err = say(capsys, f"--data={drawings.path}", f"--model={run}", "--benchmark=lfw")
    assert (code, err) == (2, f"fvjax: error: --benchmark=lfw: {drawings.path} has synthetic\n")


@pytest.mark.parametrize("change", [{"step": 3}, {"benchmarks": "other"}])
def test_results_of_another_checkpoint_or_other_data(change, run, drawings):
    results = json.loads((run / "results.json").read_text())
    if "benchmarks" in change:
        results["benchmarks"]["mine"]["data_hash"] = "0123456789"
    else:
        results |= change
    (run / "results.json").write_text(json.dumps(results))
    network, results = doctor._open_model(run)
    checks, threshold = doctor._check_results(run, results, network.run, open_faces(drawings.path), "synthetic")
    assert names(checks) == ["results-stale"]
    assert threshold is None, "a threshold of something else is not used"


def test_scores_are_those_of_the_evaluation(run, drawings):
    """The mirrored embedding is added as results.json says, whatever the size of the last batch."""
    network, _ = doctor._open_model(run)
    faces = drawings.images(range(18)).astype(np.float32)
    plain, summed = (doctor.CosineOf(network, flip)(faces[:9], faces[9:]) for flip in (False, True))
    for got, values in ((plain, faces), (summed, faces + faces[:, :, ::-1])):
        cells = np.asarray(network.encoder({}, values)[0], np.float64)
        cells /= np.linalg.norm(cells, axis=1, keepdims=True)
        np.testing.assert_allclose(got, (cells[:9] * cells[9:]).sum(1), atol=1e-5)
    assert np.abs(plain - summed).max() > 1e-3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: --data"),
        (["--data=nowhere"], "nowhere: no such file or folder; give a store, an insightface .bin or a folder of crops"),
        (["--data=README.md"], "README.md: expected a store, an insightface .bin or a folder of crops"),
        (["--data=launch"], "launch: no pictures (.jpg"),
        (["--data=x", "--threshold=0.3"], "--threshold is checked against a model's scores: give --model"),
        (["--data=x", "--pictures=0"], "--pictures=0: at least one is needed"),
    ],
)
def test_mistakes(args, message, capsys):
    code, out, err = say(capsys, *args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_model_that_is_none(drawings, tmp_path, capsys):
    code, _, err = say(capsys, f"--data={drawings.path}", f"--model={tmp_path}")
    assert code == 2
    assert f"{tmp_path} is neither a workdir of python -m fvjax.main nor a checkpoint" in err


@pytest.mark.slow
def test_a_checkpoint_is_examined(drawings):
    checks = doctor.diagnose(drawings.path, GOLDEN / "internvl_tiny", pairs=20)
    assert any(check.name == "model on synthetic" for check in checks)


# ---- programs that make the figures ----------------------------------------------------------------------------------


def test_the_reference_is_made_of_stores(monkeypatch, tmp_path, capsys):
    for name, scale in (("a", (1.0, 1.0)), ("b", (1.05, 1.05))):
        with Writer(tmp_path / name, split="train", sources=["x"]) as writer:
            for i, face in enumerate(faces_like_the_reference(40, scale)):
                writer.add(images.encode(face), f"{i}", f"{i}")
    quick = functools.partial(doctor_reference.least_squares, max_nfev=2)  # START is near to the result
    monkeypatch.setattr(doctor_reference, "least_squares", quick)
    monkeypatch.setattr(doctor_reference, "START", PARTS)
    monkeypatch.setattr("sys.argv", ["doctor_reference", str(tmp_path / "a"), str(tmp_path / "b")])
    doctor_reference.main()
    made = json.loads(capsys.readouterr().out)
    assert np.shape(made["parts"]) == PARTS.shape
    assert set(made["measured"]) == {"a", "b"}
    assert made["measured"]["a"].keys() == pictures.reference()["measured"]["lfw"].keys()
    assert made["measured"]["b"]["scale"][0] > made["measured"]["a"]["scale"][0]


def test_the_table_of_pipelines(drawings, monkeypatch, capsys):
    module = importlib.import_module("benchmarks.doctor_pipelines")
    monkeypatch.setattr(module, "material", lambda store, name, count: (store.path, count))
    monkeypatch.setattr(module, "found_in", lambda name, sound: [f"{sound[1]} pairs"])
    monkeypatch.setattr("sys.argv", ["doctor_pipelines", f"--lfw={drawings.path}", "--pairs=7"])
    module.main()
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + len(module.PIPELINES)
    assert rows[2] == "| sound store | nothing | 7 pairs |"


# ---- real faces ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lfw(real_data, tmp_path_factory):
    """Return sound crops: 100 pairs of LFW."""
    crops, protocol = real_data / "faces/lfw112_pairs", real_data / "faces/protocol/lfw_pairs.txt"
    folder = tmp_path_factory.mktemp("lfw")
    store = benchmarks.lfw(crops, folder / "lfw", pairs=protocol, policy="fail", resize=False)
    return doctor_pipelines.material(store, "lfw", 100)


@pytest.mark.parametrize("pipeline", doctor_pipelines.PIPELINES)
def test_pipelines_of_real_crops(pipeline, lfw):
    expected, _ = doctor_pipelines.PIPELINES[pipeline]
    found = doctor_pipelines.found_in(pipeline, lfw)
    assert expected in found if expected else found == []


def test_nothing_is_found_in_real_profiles_and_frontals(real_data, tmp_path):
    """Every seventh identity of CFP as a training store."""
    with Writer(tmp_path / "s", split="train", sources=["cfp"]) as writer:
        for person in sorted((real_data / "faces/cfp112").iterdir())[::12]:
            for file in sorted(person.glob("*/*.jpg")):
                writer.add(file.read_bytes(), person.name, str(file.relative_to(person.parent)))
    assert names(doctor.diagnose(tmp_path / "s")) == []


@pytest.fixture(scope="module")
def mobilefacenet(real_data):
    """Return MobileFaceNet with a given normalisation: a function that makes a scorer."""
    onnxruntime = pytest.importorskip("onnxruntime")
    file = real_data / "mobilefacenet/MobileFaceNet.onnx"
    if not file.is_file():
        pytest.skip(f"{file} is not there; it is not part of the project")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    session = onnxruntime.InferenceSession(str(file), options)

    def with_input(reading):
        def score(a, b):
            inputs = reading(np.concatenate([a, b])).transpose(0, 3, 1, 2).astype(np.float32)
            embedded = np.concatenate([session.run(None, {"input0": x[None]})[0] for x in np.ascontiguousarray(inputs)])
            embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
            return (embedded[: len(a)] * embedded[len(a) :]).sum(1)

        return score

    return with_input


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reading", "found"),
    [
        (lambda x: (x / 255 - scores.IMAGENET.mean) / scores.IMAGENET.std, []),
        (lambda x: (x[..., ::-1] / 255 - scores.IMAGENET.mean) / scores.IMAGENET.std, ["model-channel-order"]),
        (lambda x: x / 255, ["model-normalisation"]),
    ],
    ids=["right", "BGR", "0 to 1"],
)
def test_a_known_network(reading, found, mobilefacenet, real_data, tmp_path):
    """300 pairs of LFW in 15 readings, two minutes a case."""
    crops, protocol = real_data / "faces/lfw112_pairs", real_data / "faces/protocol/lfw_pairs.txt"
    store = benchmarks.lfw(crops, tmp_path / "lfw", pairs=protocol, policy="fail", resize=False)
    faces = open_faces(store.path)
    check, _, _ = scores.check_model(faces, "lfw", faces.protocols["lfw"], mobilefacenet(reading), 300)
    assert names([check]) == found, check.figures
    assert Store(store.path, "test").data_hash == faces.data_hash
