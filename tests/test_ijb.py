"""Test IJB's template protocols on a small set in the official layout, against a straightforward implementation."""

import argparse
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fvjax import api, ijb
from fvjax.data import images, prepare
from fvjax.data.alignment import geometry
from fvjax.data.readers import ijb as ijb_lists
from fvjax.data.stores import templates as stored
from fvjax.evals import templates
from tests.test_images import smooth_face

pytest.importorskip("cv2")
SIDE = 140  # of a loose crop
# template: (subject, its media as lists of pictures)
GALLERY_1 = {1: (11, [["1.jpg"], ["2.jpg", "3.jpg", "4.jpg"]]), 2: (12, [["5.jpg"]])}
GALLERY_2 = {3: (13, [["6.jpg", "7.jpg"]]), 4: (14, [["8.jpg"], ["9.jpg"]])}
PROBES = {
    10: (11, [["10.jpg"]]),
    11: (12, [["11.jpg", "12.jpg"], ["13.jpg"]]),
    12: (13, [["14.jpg"]]),
    13: (14, [["15.jpg"]]),
    14: (11, [["16.jpg", "17.jpg"]]),
}
EVERYBODY = GALLERY_1 | GALLERY_2 | PROBES
PAIRS = [(a, b, int(EVERYBODY[a][0] == EVERYBODY[b][0])) for a in (1, 2, 3, 4) for b in PROBES]


def rows() -> list[tuple[str, int, int]]:
    """Return (picture, template, medium), the media numbered anew in each template."""
    return [
        (file, template, 100 + medium)
        for template, (_, media) in EVERYBODY.items()
        for medium, files in enumerate(media)
        for file in files
    ]


def subject_of(file: str) -> int:
    return next(EVERYBODY[template][0] for name, template, _ in rows() if name == file)


def points_of(number: int) -> np.ndarray:
    return geometry.TEMPLATE + 14 + [number % 3, number % 2]


def score_of(number: int) -> float:
    return round(0.5 + number / 40, 3)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Return the folder of a set in the layout of IJB-C. Tests change only copies of it."""
    src = tmp_path_factory.mktemp("official") / "IJBC"
    (src / "loose_crop").mkdir(parents=True)
    (src / "meta").mkdir()
    lines = []
    for number in range(1, 18):
        face = 0.7 * smooth_face(subject_of(f"{number}.jpg"), SIDE) + 0.3 * smooth_face(100 + number, SIDE)
        Image.fromarray(face.astype(np.uint8)).save(src / f"loose_crop/{number}.jpg", quality=95)
        cells = (f"{x:.3f}" for x in points_of(number).ravel())
        lines.append(f"{number}.jpg {' '.join(cells)} {score_of(number)}\n")
    (src / "meta/ijbc_name_5pts_score.txt").write_text("".join(lines))
    (src / "meta/ijbc_face_tid_mid.txt").write_text("".join(f"{f} {t} {m}\n" for f, t, m in rows()))
    (src / "meta/ijbc_template_pair_label.txt").write_text("".join(f"{a} {b} {same}\n" for a, b, same in PAIRS))
    for name, part in (("gallery_G1", GALLERY_1), ("gallery_G2", GALLERY_2), ("probe_mixed", PROBES)):
        pictures = [f"{t},{part[t][0]},img/{f},1,2,3,4\n" for f, t, _ in rows() if t in part]
        head = "TEMPLATE_ID,SUBJECT_ID,FILENAME,FACE_X,FACE_Y,FACE_WIDTH,FACE_HEIGHT\n"
        (src / f"meta/ijbc_1N_{name}.csv").write_text(head + "".join(pictures))
    return src


@pytest.fixture(scope="module")
def store(official, tmp_path_factory):
    dst = tmp_path_factory.mktemp("store") / "ijbc"
    assert prepare.main(["ijb", f"--src={official}", f"--dst={dst}", "--workers=1"]) == 0
    return dst


@pytest.fixture
def changed(official, tmp_path):
    src = tmp_path / "IJBC"
    shutil.copytree(official, src)
    return src


def embed(faces: np.ndarray) -> np.ndarray:
    """Return 24 numbers of each face: a fixed random projection, without jax."""
    projection = np.random.default_rng(0).normal(size=(112 * 112 * 3 // 64, 24))
    values = faces.reshape(len(faces), -1, 64)[:, :, 0].astype(np.float32) / 255 - 0.5
    return (values @ projection).astype(np.float32)


@pytest.fixture
def model(monkeypatch):
    """Have every directory hold the model above."""
    network = SimpleNamespace(embed=embed, encoder=SimpleNamespace(yes_no=()), run=None, batch_size=4)
    monkeypatch.setattr(api, "open_directory", lambda path: (network, {}))
    return "model"


# ---- the store


def test_the_store_has_the_pictures_aligned_by_their_points(official, store, capsys):
    opened, protocol = stored.read_templates(store)
    assert opened.sources == [file for file, _, _ in rows()]
    assert protocol.template.tolist() == [template for _, template, _ in rows()]
    assert protocol.medium.tolist() == [medium for _, _, medium in rows()]
    assert protocol.detection == pytest.approx([score_of(int(f.split(".")[0])) for f, _, _ in rows()])
    assert opened.identities[opened.labels[0]] == "subject 11"
    photograph = np.asarray(Image.open(official / "loose_crop/5.jpg"))
    expected = images.decode(images.encode(geometry.warp(photograph, np.round(points_of(5), 3))), "")
    assert np.array_equal(opened.image(opened.sources.index("5.jpg")), expected)
    counts = {key: opened.manifest["templates"][key] for key in ("templates", "media", "pairs", "genuine", "probes")}
    assert counts == {"templates": 9, "media": 12, "pairs": 20, "genuine": 5, "probes": 5}
    assert prepare.main(["ijb", f"--src={official}", f"--dst={store}2", "--workers=1"]) == 0
    out = capsys.readouterr().out
    assert "IJBC, 17 pictures of 9 templates and 12 media" in out
    assert "17 pictures read = 17 written + 0 dropped" in out
    assert "1:1: 20 pairs of templates, 5 genuine" in out
    assert "1:N: 5 probes, 2 and 2 templates in the galleries" in out


def test_dropped_pictures_are_counted(changed, tmp_path, capsys):
    (changed / "loose_crop/2.jpg").unlink()
    (changed / "loose_crop/12.jpg").write_bytes(b"no picture")
    fails(capsys, changed, "2.jpg: missing; supply it, or leave it out with --policy=drop")
    arguments = ["ijb", f"--src={changed}", f"--dst={tmp_path / 's'}", "--workers=1", "--policy=drop"]
    assert prepare.main(arguments) == 0
    out = capsys.readouterr().out
    assert "17 pictures read = 15 written + 2 dropped" in out
    assert "dropped: 1 missing, 1 cannot be read as an image; the first: 2.jpg: missing" in out
    opened, protocol = stored.read_templates(tmp_path / "s")
    assert len(opened) == len(protocol.template) == 15


def test_pictures_are_aligned_by_as_many_processes(official, tmp_path, monkeypatch):
    counts = []
    monkeypatch.setattr(ijb_lists.alignment, "Aligner", lambda *_, workers, **__: counts.append(workers) or stop())
    with pytest.raises(KeyboardInterrupt):
        prepare.main(["ijb", f"--src={official}", f"--dst={tmp_path / 's'}", "--workers=3"])
    assert counts == [3]


def stop():
    raise KeyboardInterrupt


def test_ijbb_has_its_own_names(changed, tmp_path):
    for file in (changed / "meta").iterdir():
        new = file.name.replace("ijbc", "ijbb").replace("G1", "S1").replace("G2", "S2")
        file.rename(file.with_name(new))
    assert prepare.main(["ijb", f"--src={changed}", f"--dst={tmp_path / 's'}", "--workers=1"]) == 0
    assert stored.read_templates(tmp_path / "s")[0].manifest["templates"]["set"] == "ijbb"


def fails(capsys, src, message: str) -> None:
    """Assert that preparation exits with 2, prints one line with ``message``, and leaves nothing."""
    code = prepare.main(["ijb", f"--src={src}", f"--dst={src.parent / 'none'}", "--workers=1"])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (src.parent / "none").exists()


def replace(src, file: str, old: str, new: str) -> None:
    path = src / "meta" / f"ijbc_{file}"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("template_pair_label.txt", "1 10 1\n", "1 77 1\n", "template 77 is unknown: no picture of it is listed"),
        ("template_pair_label.txt", "1 10 1\n", "1 10 2\n", ":1: expected 'template template label', got [1, 10, 2]"),
        ("template_pair_label.txt", "1 10 1\n", "1 -1 0\n", ":1: expected 'template template label', got [1, -1, 0]"),
        ("template_pair_label.txt", "1 10 1\n", "1 x 1\n", "expected 'template template label' in every line"),
        ("1N_probe_mixed.csv", "10,11,", "66,11,", "template 66 is unknown"),
        ("1N_probe_mixed.csv", "10,11,", "10,11.5,", ":2: expected TEMPLATE_ID,SUBJECT_ID"),
        ("1N_gallery_G2.csv", "3,13,", "1,11,", "template 1 is in both galleries of one set of probes"),
        ("1N_gallery_G1.csv", "2,12,", "10,11,", "template 10 is a probe and in gallery 1, where it would find itself"),
        ("1N_gallery_G1.csv", "1,11,", "1,12,", "template 1 is of subject 11, and above of another"),
        ("face_tid_mid.txt", "2.jpg 1", "1.jpg 1", ":2: 1.jpg a second time"),
        ("face_tid_mid.txt", "2.jpg 1", "99.jpg 1", "99.jpg has no row in ijbc_name_5pts_score.txt"),
        ("face_tid_mid.txt", "2.jpg 1", "../2.jpg 1", "'../2.jpg' is no path below loose_crop"),
        ("face_tid_mid.txt", "2.jpg 1", "2.jpg one", ":2: expected 'picture template medium'"),
        ("name_5pts_score.txt", "1.jpg ", "1.jpg 7 ", ":1: expected a picture, five points x y and a score"),
        ("name_5pts_score.txt", " 0.525", " nan", ":1: expected a picture, five points x y and a score"),
    ],
)
def test_mistakes_in_the_lists(changed, capsys, file, old, new, message):
    replace(changed, file, old, new)
    fails(capsys, changed, message)


def test_the_largest_number_of_a_template_or_medium(changed):
    replace(changed, "face_tid_mid.txt", "2.jpg 1 101", f"2.jpg 1 {2**31 - 1}")
    assert ijb_lists.read(changed).templates.medium.max() == 2**31 - 1
    replace(changed, "face_tid_mid.txt", str(2**31 - 1), str(2**31))
    with pytest.raises(ValueError, match=":2: expected 'picture template medium'"):
        ijb_lists.read(changed)


def test_flags_and_their_defaults():
    commands = argparse.ArgumentParser().add_subparsers()
    ijb_lists.add_command(commands)
    parse = commands.choices["ijb"].parse_args
    options = parse(["--src=a", "--dst=b"])
    assert (options.src, options.dst, options.policy) == (Path("a"), Path("b"), "fail")
    assert options.workers == (os.cpu_count() or 1)
    for lacking in ("--dst=b", "--src=a"):
        with pytest.raises(SystemExit):
            parse([lacking])
    with pytest.raises(SystemExit):
        parse(["--src=a", "--dst=b", "--work=3"])


def test_missing_lists_and_templates_without_pictures(changed, tmp_path, capsys):
    (changed / "loose_crop/5.jpg").unlink()
    code = prepare.main(["ijb", f"--src={changed}", f"--dst={tmp_path / 's'}", "--workers=1", "--policy=drop"])
    assert code == 2
    assert "template 2 is left without pictures (1 such)" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
    (changed / "meta/ijbc_1N_gallery_G2.csv").unlink()
    fails(capsys, changed, "ijbc_1N_gallery_G2.csv: no such file, but other 1:N lists are here")
    (changed / "meta/ijbc_template_pair_label.txt").unlink()
    fails(capsys, changed, "ijbc_template_pair_label.txt: missing, empty or larger")
    (changed / "meta/ijbc_face_tid_mid.txt").unlink()
    fails(capsys, changed, "neither ijbb_face_tid_mid.txt nor ijbc_face_tid_mid.txt is here")


def test_a_store_that_was_changed_is_refused(store, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    (copy / "templates.npz").write_bytes(b"x")
    assert ijb.main([f"--data={copy}", "--model=nowhere"]) == 2
    assert "templates.npz: missing or changed since writing" in capsys.readouterr().err
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["templates"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert ijb.main([f"--data={copy}", "--model=nowhere"]) == 2
    assert "this store has no templates; python -m fvjax.data.prepare ijb makes one" in capsys.readouterr().err


def some_templates(**changes) -> stored.Templates:
    """Return two templates of three pictures, the first in gallery 1, the second a probe."""
    columns = {"template": [1, 1, 2], "medium": [5, 6, 5], "detection": [0.5, 0.6, 0.7]}
    columns |= {"pair_a": [1], "pair_b": [2], "pair_same": [1]}
    columns |= {"gallery_1": [1], "gallery_1_subject": [7], "gallery_2": [], "gallery_2_subject": []}
    columns |= {"probe": [2], "probe_subject": [7]} | changes
    return stored.Templates(**{name: np.array(values) for name, values in columns.items()})


def test_a_single_probe_is_a_search():
    one = some_templates()
    assert (one.has_search, one.subjects) == (True, {1: 7, 2: 7})
    assert not some_templates(probe=[], probe_subject=[]).has_search
    assert one.of_pictures(np.array([True, False, True])).medium.tolist() == [5, 5]
    assert stored.Templates.__hash__ is not None  # Python gives a hash to frozen dataclasses only


def test_no_array_of_templates_is_larger_than_a_gibibyte(store, monkeypatch):
    most = []
    parse = stored.parse_arrays
    monkeypatch.setattr(stored, "parse_arrays", lambda *given: most.append(given[2]) or parse(*given))
    stored.read_templates(store)
    assert most == [2**30]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"medium": [5, 6]}, r"the columns of the pictures have different lengths \(3, 3, 2, 3\)"),
        ({"pair_same": []}, "the columns of the pairs have different lengths"),
        ({"gallery_1_subject": []}, "the columns of the gallery 1 have different lengths"),
        ({"gallery_2_subject": [7]}, "the columns of the gallery 2 have different lengths"),
        ({"probe_subject": [7, 7]}, "the columns of the probes have different lengths"),
        ({"detection": [0.5, np.inf, 0.7]}, "a score of the detector is not finite"),
        ({"pair_a": [3]}, "template 3 of pair_a has no picture"),
        ({"pair_b": [3]}, "template 3 of pair_b has no picture"),
        ({"gallery_1": [3]}, "template 3 of gallery_1 has no picture"),
        ({"probe": [3]}, "template 3 of probe has no picture"),
        ({"gallery_2": [1], "gallery_2_subject": [7]}, r"template 1 is in both galleries .* \(1 such templates\)"),
        ({"probe": [1]}, r"template 1 is a probe and in gallery 1, .* \(1 such templates\)"),
        ({"gallery_2": [2], "gallery_2_subject": [7]}, "template 2 is a probe and in gallery 2"),
    ],
)
def test_templates_that_do_not_agree_with_each_other(changes, message):
    stored.check(some_templates(), 3, "x")
    with pytest.raises(ValueError, match=f"^x: {message}"):
        stored.check(some_templates(**changes), 3, "x")


# ---- pooling and figures


def slow_template(embeddings: dict[str, np.ndarray], weights: dict[str, float], media: list[list[str]]) -> np.ndarray:
    """Pool one template as insightface's image2template_feature does, picture by picture."""
    total = np.zeros(24)
    for medium in media:
        for file in medium:
            total += weights[file] * embeddings[file].astype(float) / len(medium)
    return total / np.linalg.norm(total)


def slow_templates(store, weighted: bool) -> dict[int, np.ndarray]:
    opened, _ = stored.read_templates(store)
    vectors = dict(zip(opened.sources, embed(opened.images(range(len(opened))))))
    weights = {file: score_of(int(file.split(".")[0])) if weighted else 1.0 for file in opened.sources}
    return {template: slow_template(vectors, weights, media) for template, (_, media) in EVERYBODY.items()}


@pytest.mark.parametrize("weighted", [True, False])
def test_figures_equal_those_of_a_straightforward_implementation(store, model, weighted):
    slow = slow_templates(store, weighted)
    result = ijb.evaluate(store, model, weighted=weighted)
    scores = np.array([slow[a] @ slow[b] for a, b, _ in PAIRS])
    same = np.array([bool(label) for _, _, label in PAIRS])
    allowed = int(0.1 * (~same).sum())
    limit = np.sort(scores[~same])[::-1][allowed]  # the highest score that is not accepted any more
    figure = result["1:1"]["tar@far=1e-1"]
    assert figure["value"] == np.mean(scores[same] > limit)
    assert figure["threshold"] == pytest.approx(limit, abs=1e-6)
    assert (figure["impostors_above"], figure["impostors"], figure["needed"]) == (1, 15, 10)
    few = result["1:1"]["tar@far=1e-6"]
    assert (few["value"], few["threshold"], few["impostors"], few["needed"]) == (None, None, 15, 1_000_000)
    ranks = []
    for gallery, name in ((GALLERY_1, "gallery_1"), (GALLERY_2, "gallery_2")):
        mated = [p for p in PROBES if PROBES[p][0] in {subject for subject, _ in gallery.values()}]
        hits = 0
        for probe in mated:
            best = max(gallery, key=lambda entry: slow[entry] @ slow[probe])
            hits += gallery[best][0] == PROBES[probe][0]
        assert result["1:N"][name]["mated"] == len(mated)
        assert result["1:N"][name]["rank-1"]["hits"] == hits
        ranks.append(hits / len(mated))
    assert result["1:N"]["mean"]["rank-1"] == pytest.approx(np.mean(ranks))
    assert result["1:N"]["mean"]["fnir@fpir=0.01"] is None


def test_pooling_by_hand():
    # Template 7 has medium 1 with two pictures and medium 2 with one; template 3 has another medium 1.
    embeddings = np.array([[4, 0], [0, 2], [0, 3], [0, -5]], np.float32)
    known, pooled = templates.pool(embeddings, [7, 7, 7, 3], [1, 1, 2, 1])
    assert known.tolist() == [3, 7]
    # (4, 0) and (0, 2) have the mean (2, 1); with (0, 3) that is (2, 4), of length sqrt(20).
    assert pooled == pytest.approx(np.array([[0, -1], [2 / 20**0.5, 4 / 20**0.5]]), abs=1e-6)
    # Weights 0.5 and 1: (2, 0) and (0, 2) have the mean (1, 1); with 0 x (0, 3) that is (1, 1).
    _, pooled = templates.pool(embeddings, [7, 7, 7, 3], [1, 1, 2, 1], [0.5, 1, 0, 1])
    assert pooled[1] == pytest.approx([0.5**0.5, 0.5**0.5], abs=1e-6)
    with pytest.raises(ValueError, match=r"template 7 is zero or not finite \(templates affected: 1\)"):
        templates.pool(np.array([[1, 0], [-1, 0], [1, 1]], np.float32), [7, 7, 8], [1, 1, 1])


def test_pooled_templates_equal_the_slow_ones(store):
    opened, protocol = stored.read_templates(store)
    embeddings = embed(opened.images(range(len(opened))))
    for weighted in (True, False):
        weights = protocol.detection if weighted else None
        known, pooled = templates.pool(embeddings, protocol.template, protocol.medium, weights)
        slow = slow_templates(store, weighted)
        assert known.tolist() == sorted(slow)
        assert pooled == pytest.approx(np.stack([slow[template] for template in sorted(slow)]), abs=1e-6)


def test_many_pairs_and_probes_are_compared_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    pooled = rng.normal(size=(30, 8)).astype(np.float32)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    a, b = rng.integers(0, 30, (2, 500))
    people = rng.integers(0, 9, 30)
    whole = templates.pair_scores(pooled, a, b), templates.search(pooled, pooled[:20], people, people[:20])
    monkeypatch.setattr(templates, "CHUNK", 64)
    parts = templates.pair_scores(pooled, a, b), templates.search(pooled, pooled[:20], people, people[:20])
    assert parts[0] == pytest.approx(whole[0], abs=1e-7)
    assert parts[1].mate == pytest.approx(whole[1].mate, abs=1e-6, nan_ok=True)
    assert (parts[1].mated == whole[1].mated).all()


def test_pairs_of_one_kind_cannot_be_evaluated():
    with pytest.raises(ValueError, match="2 scores for 2 genuine and 0 impostor pairs"):
        templates.verification(np.array([0.1, 0.2]), [1, 1])
    with pytest.raises(ValueError, match="not finite"):
        templates.verification(np.array([0.1, np.nan]), [1, 0])


# ---- the command


def test_the_command(store, model, tmp_path, capsys):
    assert ijb.main([f"--data={store}", f"--model={model}", f"--json={tmp_path / 'r.json'}"]) == 0
    out = capsys.readouterr().out
    assert "17 pictures of 9 templates, weighted by the detector's score" in out
    assert "1:1, 5 genuine and 15 impostor pairs of templates" in out
    assert "TAR at FAR 1e-4: not measured: 15 impostor pairs, 10,000 needed" in out
    assert "1:N, gallery 1 of 2 templates" in out
    assert "FNIR at FPIR 0.01: not measured, 2 probes of people who are not in the gallery, 100 needed" in out
    written = json.loads((tmp_path / "r.json").read_text())
    assert written == ijb.evaluate(store, model)
    assert ijb.main([f"--data={store}", f"--model={model}", "--unweighted"]) == 0
    assert "not weighted by the detector's score" in capsys.readouterr().out
    assert ijb.evaluate(store, model, weighted=False)["1:1"] != written["1:1"]
    with pytest.raises(SystemExit, match="2"):
        ijb.main([f"--model={model}"])
    assert "the following arguments are required: --data" in capsys.readouterr().err


def test_without_lists_of_galleries_there_is_no_search(changed, model, tmp_path, capsys):
    for file in (changed / "meta").glob("*1N*"):
        file.unlink()
    assert prepare.main(["ijb", f"--src={changed}", f"--dst={tmp_path / 's'}", "--workers=1"]) == 0
    assert "1:N: no lists of galleries and probes are there" in capsys.readouterr().out
    assert ijb.evaluate(tmp_path / "s", model)["1:N"] is None
    assert ijb.main([f"--data={tmp_path / 's'}", f"--model={model}"]) == 0
    assert "1:N: the store has no lists of galleries and probes" in capsys.readouterr().out


def test_short_embeddings_count_and_those_of_length_zero_do_not():
    """The scores of a detector shorten sums of embeddings, which are only broken if nothing is left of them."""
    embeddings = np.array([[1e-3, 0], [0, 1e-4], [3e-2, 4e-2]], np.float32)
    known, pooled = templates.pool(embeddings, [7, 3, 3], [1, 1, 2])
    assert known.tolist() == [3, 7]
    assert pooled[1].tolist() == [1, 0]
    assert np.linalg.norm(pooled, axis=1) == pytest.approx([1, 1])
    for broken in (0.0, np.nan, np.inf):
        embeddings[0] = broken
        with pytest.raises(ValueError, match=r"the embedding of template 7 is zero or not finite \(.*: 1\)"):
            templates.pool(embeddings, [7, 3, 3], [1, 1, 2])


def test_an_impostor_pair_just_above_the_rejected_one_is_counted():
    """The threshold is the next float32, so that a score one step above the highest rejected one is accepted."""
    impostor = np.linspace(-0.5, 0.2, 9, dtype=np.float32)
    rejected, higher = np.float32(0.3), np.nextafter(np.float32(0.3), np.float32(1))
    for genuine, accepted in ((0.9, 1.0), (higher, 1.0), (rejected, 0.0)):
        scores = np.r_[impostor, [rejected] * 9, higher, genuine].astype(np.float32)
        figure = templates.verification(scores, np.arange(20) == 19)["tar@far=1e-1"]
        assert (figure["impostors_above"], figure["impostors"], figure["value"]) == (1, 19, accepted)
        assert figure["threshold"] == float(higher)
