"""Test limits, counts and units of the data: a value at the limit is accepted, one more is not; KiB are not MB."""

import hashlib
import io
import json
import math
import pickle
import pickletools
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fvjax import tasks
from fvjax.config import base, typed
from fvjax.data import images, pairs, pipeline, prepare, stores, synthetic
from fvjax.data.alignment import aligner, detectors, geometry, landmarks
from fvjax.data.readers import files, insightface_bin, plain_pickle
from fvjax.data.readers.recordio import conversion, records, scanner
from fvjax.data.stores import shards
from launch import stage
from tests.test_after_damage import JPEGS, OWNERS, holds
from tests.test_images import file_bytes, png_that_claims, smooth_face
from tests.test_prepare import fails, put, run
from tests.test_recordio import convert, pack, write_rec

RECORDS = [(jpeg, f"id{owner}", f"{i}.jpg") for i, (jpeg, owner) in enumerate(zip(JPEGS, OWNERS))]


def make(path: Path, records=RECORDS, split="train") -> stores.Store:
    return stores.write(path, records, split=split, sources=["here"])


# ---- memory for decoded faces

MEMINFO = """MemTotal:       99999999 kB
MemFree:               1 kB
MemAvailable:   {available} kB
Buffers:        99999999 kB
"""


def says(monkeypatch, text: str | OSError) -> None:
    """Set the contents of the file /proc/meminfo."""
    real = Path.read_text

    def read(path, *args, **options):
        if str(path) != "/proc/meminfo":
            return real(path, *args, **options)
        if isinstance(text, OSError):
            raise text
        return text

    monkeypatch.setattr(Path, "read_text", read)


def decoded(s) -> np.ndarray:
    return pipeline.decode_all(s, threads=1, track=lambda what, n: what)


def test_memory_is_told_in_kibibytes(tmp_path, monkeypatch):
    """Eight faces are 294 KiB: this much is enough, and one KiB less is not."""
    s = make(tmp_path / "s", RECORDS[:8])
    assert 8 * 112 * 112 * 3 == 294 * 1024
    says(monkeypatch, MEMINFO.format(available=294))
    assert pipeline.available_memory() == 294 * 1024
    assert decoded(s).shape == (8, 112, 112, 3)
    says(monkeypatch, MEMINFO.format(available=293))
    with pytest.raises(ValueError, match=r"s: 8 decoded images need .* set config\.data\.cache=none"):
        decoded(s)


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\nMemFree: 1 kB\n", FileNotFoundError("/proc/meminfo")])
def test_where_the_system_says_nothing_about_memory_there_is_no_limit(tmp_path, monkeypatch, text):
    says(monkeypatch, text)
    assert pipeline.available_memory() == math.inf
    assert len(decoded(make(tmp_path / "s"))) == 12


def test_faces_that_do_not_fit_are_told_in_gibibytes(monkeypatch):
    class Large:
        path, image_size = Path("many"), (112, 112)

        def __len__(self):
            return 100_000

    says(monkeypatch, MEMINFO.format(available=3 << 19))  # 1.5 GiB
    with pytest.raises(ValueError, match=r"many: 100,000 decoded images need 3\.5 GiB, 1\.5 GiB are free"):
        decoded(Large())


@pytest.mark.parametrize("n", [255, 256, 257, 300])
def test_all_faces_are_decoded_each_into_its_place(tmp_path, n):
    """They are decoded in batches of 256, the last of which is padded."""
    s = make(tmp_path / "s", [(JPEGS[i % 12], f"{i % 5}", f"{i}.jpg") for i in range(n)])
    seen = []

    def track(batches, count):
        for batch in batches:
            seen.append(count)
            yield batch

    faces = pipeline.decode_all(s, threads=2, track=track)
    want = [images.decode(jpeg, "x") for jpeg in JPEGS]
    assert len(faces) == n
    assert all(np.array_equal(face, want[i % 12]) for i, face in enumerate(faces))
    assert seen == [-(-n // 256)] * -(-n // 256)


# ---- pictures


def refused_above(monkeypatch, name: str, size: int, read, message: str) -> None:
    monkeypatch.setattr(images, name, size)
    read()
    monkeypatch.setattr(images, name, size - 1)
    with pytest.raises(ValueError, match=message):
        read()


def test_the_largest_pictures_allowed_are_read(monkeypatch):
    png = file_bytes(Image.fromarray(smooth_face(0, 224)), "PNG")
    jpeg = file_bytes(Image.fromarray(smooth_face(0, 224)), "JPEG")
    for data in (png, jpeg):
        refused_above(monkeypatch, "MAX_PIXELS", 224 * 224, lambda d=data: images.to_jpeg(d, "x", True), "x: 224x224")
    refused_above(monkeypatch, "MAX_PIXELS", 112 * 112, lambda: images.decode(JPEGS[0], "x"), "x: 112x112 pixels in")
    photo = file_bytes(Image.fromarray(smooth_face(0, 224)[:100]), "PNG")
    refused_above(monkeypatch, "MAX_PHOTOGRAPH", 224 * 100, lambda: images.photograph(photo, "x"), "224x100 pixels")


def test_the_most_work_allowed_is_done(monkeypatch):
    progressive = file_bytes(Image.fromarray(smooth_face(0)), "JPEG", progressive=True)
    scans = progressive.count(b"\xff\xda")
    assert scans > 3
    for read in (images.decode, images.check, images.photograph, images.to_jpeg):
        work = scans * 112 * 112
        refused_above(monkeypatch, "MAX_WORK", work, lambda r=read: r(progressive, "x"), f"112x112 in {scans} scans")
        monkeypatch.undo()
    assert (images.MAX_PIXELS, images.MAX_PHOTOGRAPH) == (2**24, 2**26)
    with pytest.raises(ValueError, match="4097x4096 pixels in the header, refused"):
        images.to_jpeg(png_that_claims(4097, 4096), "x", True)
    with pytest.raises(ValueError, match="8193x8192 pixels in the header, refused"):
        images.photograph(png_that_claims(8193, 8192), "x")


# ---- RecordIO and .bin


def test_the_longest_record_allowed_is_read(tmp_path, capsys, monkeypatch):
    starts = write_rec(tmp_path / "src", [(i, pack(float(i), jpeg, i)) for i, jpeg in enumerate(JPEGS)])
    size = (tmp_path / "src/train.rec").stat().st_size
    sizes = np.diff([*starts, size])
    longest = int(sizes.max())
    gone = set(np.flatnonzero(sizes == longest).tolist())
    assert 0 < len(gone) < 12
    monkeypatch.setattr(records, "MAX_RECORD", longest)
    made = convert(capsys, tmp_path / "src", tmp_path / "s", "--val=0")
    holds(made, [(jpeg, f"{i}", f"train.rec#{i}") for i, jpeg in enumerate(JPEGS)])
    monkeypatch.setattr(records, "MAX_RECORD", longest - 4)
    made = convert(capsys, tmp_path / "src", tmp_path / "t", "--val=0")
    holds(made, [(jpeg, f"{i}", f"train.rec#{i}") for i, jpeg in enumerate(JPEGS) if i not in gone])
    assert (
        f"its length is {longest} bytes, more than any face has ({longest - 4})"
        in made.manifest["rejected"][0]["reason"]
    )


def test_as_many_records_as_allowed_are_rejected(tmp_path, capsys, monkeypatch):
    records = [(i, pack(0.5 if i < 4 else 1.0, jpeg, i)) for i, jpeg in enumerate(JPEGS)]
    write_rec(tmp_path / "src", records)
    monkeypatch.setattr(scanner, "MAX_REJECTED", 4)
    assert len(convert(capsys, tmp_path / "src", tmp_path / "s", "--val=0")) == 8
    monkeypatch.setattr(scanner, "MAX_REJECTED", 3)
    (tmp_path / "out").mkdir()
    message = "more than 3 records are rejected"
    fails(capsys, tmp_path / "out/s", message, "recordio", f"--src={tmp_path / 'src'}", "--workers=1")


@pytest.mark.parametrize("image", [b"", b"x"])
def test_a_record_that_is_all_header_has_no_image(tmp_path, image):
    """With one byte more the record has an image, if a bad one; this shows only when it is decoded."""
    write_rec(tmp_path / "src", [(0, pack(1.0, image)), (1, pack([1.0], image, 1))])
    found, headers, rejected = scanner.scan(tmp_path / "src/train.rec", lambda n: None)
    assert (len(found.label), len(headers)) == (2 if image else 0, 0)
    assert ["there is no image in it" in r.reason for r in rejected] == ([] if image else [True, True])


@pytest.mark.parametrize("n", [3, 4, 5, 8, 9])
@pytest.mark.parametrize("way", ["written", "recordio"])
def test_full_shards_are_followed_by_another_only_for_more_records(tmp_path, capsys, monkeypatch, n, way):
    monkeypatch.setattr(shards, "SHARD_RECORDS", 4)
    if way == "written":
        made = make(tmp_path / "s", RECORDS[:n])
        holds(made, RECORDS[:n])
    else:
        write_rec(tmp_path / "src", [(i, pack(float(OWNERS[i]), JPEGS[i], i)) for i in range(n)])
        made = convert(capsys, tmp_path / "src", tmp_path / "s", "--val=0")
        holds(made, [(JPEGS[i], str(OWNERS[i]), f"train.rec#{i}") for i in range(n)])
    lengths = [min(4, n - i) for i in range(0, n, 4)]
    assert [shard["records"] for shard in made.manifest["shards"]] == lengths
    for shard in made.manifest["shards"]:
        assert shard["bytes"] == (made.path / shard["file"]).stat().st_size
    (info,) = json.loads((made.path / "dataset_info.json").read_text())["splits"]
    assert [int(length) for length in info["shardLengths"]] == lengths
    # a limit on the records' bytes (a picture and some names), not on the files, which pad them
    pictures = sum(len(made.jpeg(i)) for i in range(n))
    assert pictures < int(info["numBytes"]) < pictures + 150 * n


@pytest.mark.parametrize(
    ("n", "val", "share"),
    [(10, 0.3, 3), (100, 0.29, 29), (5, 0.2, 1), (4, 0.2, 0), (9, 0.999, 8), (1, 0.5, 0), (2, 0.5, 1), (7, 0.0, 0)],
)
def test_validation_gets_the_share_that_was_asked_for(n, val, share):
    """In floating point, 0.29 x 100 is slightly less than 29."""
    assert conversion.select(np.zeros(n, np.int64), None, val, 0)[2].sum() == share


def test_all_identities_may_be_the_top_ones(tmp_path, capsys):
    write_rec(tmp_path / "src", [(i, pack(float(OWNERS[i]), JPEGS[i], i)) for i in range(12)])
    made = convert(capsys, tmp_path / "src", tmp_path / "s", "--val=0", "--top=5")
    assert made.identities == ["1", "3", "5", "7", "9"]
    assert made.manifest["recordio"]["left_out"] == 0
    one = convert(capsys, tmp_path / "src", tmp_path / "t", "--val=0", "--top=1")
    assert (one.identities, len(one), one.manifest["recordio"]["left_out"]) == (["3"], 3, 9)
    (tmp_path / "out").mkdir()
    command = "recordio", f"--src={tmp_path / 'src'}", "--workers=1", "--top=6"
    fails(capsys, tmp_path / "out/s", "--top=6: ", *command)


def test_the_largest_image_and_the_most_instructions_of_a_bin_are_read(monkeypatch):
    data = pickle.dumps(([JPEGS[0], JPEGS[1]], [True]), 4)
    longest = max(len(JPEGS[0]), len(JPEGS[1]))

    def read():
        return plain_pickle.load(io.BytesIO(data), len(data))

    monkeypatch.setattr(plain_pickle, "MAX_ITEM", longest)
    read()
    monkeypatch.setattr(plain_pickle, "MAX_ITEM", longest - 1)
    with pytest.raises(ValueError, match=f"an item of {longest} bytes, and no image has more than {longest - 1}"):
        read()
    monkeypatch.undo()
    count = len(list(pickletools.genops(data)))
    monkeypatch.setattr(plain_pickle, "MAX_INSTRUCTIONS", count - 1)
    read()
    monkeypatch.setattr(plain_pickle, "MAX_INSTRUCTIONS", count - 2)
    with pytest.raises(ValueError, match=f"more than {count - 2} instructions in a file of {len(data)} bytes"):
        read()


@pytest.mark.parametrize(("folds", "fits"), [(0, False), (1, True), (2, True), (4, True), (5, False)])
def test_a_bin_has_a_fold_at_least_and_a_pair_in_each(tmp_path, folds, fits):
    if not fits:
        with pytest.raises(ValueError, match=f"--folds={folds}: choose 1 … 4, the number of pairs"):
            insightface_bin.protocol(tmp_path / "x.bin", 4, "x", folds)
    else:
        _, fold = insightface_bin.protocol(tmp_path / "x.bin", 4, "x", folds)
        assert np.bincount(fold).tolist() == [4 // folds] * folds


# ---- stores


def forged(made: stores.Store, change) -> Path:
    """Return the store with another index and a manifest that matches it."""
    with np.load(made.path / "index.npz") as arrays:
        parts = dict(arrays)
    change(parts)
    np.savez_compressed(made.path / "index.npz", **parts)
    manifest = json.loads((made.path / "manifest.json").read_text())
    manifest["index_hash"] = hashlib.sha256((made.path / "index.npz").read_bytes()).hexdigest()
    (made.path / "manifest.json").write_text(json.dumps(manifest))
    return made.path


@pytest.mark.parametrize(("label", "fits"), [(-1, False), (0, True), (4, True), (5, False)])
def test_labels_are_numbers_of_identities(tmp_path, label, fits):
    made = make(tmp_path / "s")
    assert len(made.identities) == 5
    path = forged(made, lambda parts: parts["labels"].__setitem__(3, label))
    if fits:
        assert stores.Store(path).labels[3] == label
    else:
        with pytest.raises(ValueError, match=r"index\.npz and manifest\.json disagree"):
            stores.Store(path)


@pytest.mark.parametrize("n", [11, 13])
def test_an_index_of_more_or_fewer_records_than_the_shards_is_refused(tmp_path, n):
    made = make(tmp_path / "s")
    path = forged(made, lambda parts: parts.update(labels=np.resize(parts["labels"], n)))
    with pytest.raises(ValueError, match=r"index\.npz and manifest\.json disagree"):
        stores.Store(path)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_shard_of_another_size_is_refused(tmp_path, change):
    made = make(tmp_path / "s")
    file = made.path / made.manifest["shards"][0]["file"]
    data = file.read_bytes()
    file.write_bytes(data[:change] if change < 0 else data + b"\0")
    with pytest.raises(ValueError, match=f"missing or not {len(data)} bytes as written"):
        stores.Store(made.path)


@pytest.mark.parametrize(
    ("owners", "identities", "single"),
    [("aaaa", 1, 0), ("aabb", 2, 0), ("abcc", 3, 2), ("abcd", 4, 4), ("abab", 2, 0), ("aaab", 2, 1), ("a", 1, 1)],
)
def test_identities_with_a_single_image_are_counted_and_told(tmp_path, capsys, owners, identities, single):
    for i, owner in enumerate(owners):
        put(tmp_path / "src" / owner / f"{i}.jpg", i)
    code, out, _ = run(capsys, "folder", f"--src={tmp_path / 'src'}", f"--dst={tmp_path / 's'}")
    assert code == 0
    assert f"{len(owners)} images of {identities} identities" in out
    assert f"  {single} identities have a single image" in out
    manifest = stores.Store(tmp_path / "s").manifest
    assert manifest["single_image_identities"] == single
    assert manifest["counts"] == {"images": len(owners), "identities": identities, "rejected": 0}


def test_identities_whose_images_all_went_elsewhere_are_counted_as_none(tmp_path, capsys):
    """One of three identities has only broken pictures: it keeps its number but is not an identity with one image."""
    pictures = [JPEGS[0], JPEGS[1], b"x", b"y", JPEGS[4]]
    write_rec(tmp_path / "src", [(i, pack(float(i // 2), picture, i)) for i, picture in enumerate(pictures)])
    assert run(capsys, "recordio", f"--src={tmp_path / 'src'}", f"--dst={tmp_path / 's'}", "--workers=1")[0] == 0
    made = stores.Store(tmp_path / "s")
    assert made.identities == ["0", "1", "2"]
    assert made.labels.tolist() == [0, 0, 2]
    assert made.manifest["counts"] == {"images": 3, "identities": 2, "rejected": 2}
    assert made.manifest["single_image_identities"] == 1
    summary = prepare.summary(made)
    assert "3 images of 2 identities" in summary
    assert "1 identities have a single image" in summary
    assert "5 records read = 3 written + 2 rejected; apart from these 0 headers, 0 left out" in summary


@pytest.mark.parametrize(("limit", "identities"), [(1, ["a"]), (2, ["a", "b"]), (3, ["a", "b"])])
def test_a_limit_is_of_identities(tmp_path, capsys, limit, identities):
    for i, name in enumerate(("a/1.jpg", "a/2.jpg", "b/1.jpg")):
        put(tmp_path / "src" / name, i)
    command = "folder", f"--src={tmp_path / 'src'}", f"--dst={tmp_path / 's'}", f"--limit={limit}"
    assert run(capsys, *command)[0] == 0
    assert stores.Store(tmp_path / "s").identities == identities


# ---- pairs


def test_as_many_pairs_as_there_are_are_drawn_and_no_more():
    """Ten folds of two people with two pictures each have two genuine and four impostor pairs per fold."""
    labels = np.repeat(np.arange(20), 2)
    found = synthetic.verification_pairs(labels, 40, 0)
    assert (found.same.sum(), len(found.a)) == (20, 40)
    with pytest.raises(ValueError, match="not enough for 3 genuine pairs"):
        synthetic.verification_pairs(labels, 60, 0)
    for difficulty in (0, 3):
        assert synthetic.shot_attributes(0, 0, 0, difficulty)["yaw"] == pytest.approx(
            difficulty * synthetic.shot_attributes(0, 0, 0, 1)["yaw"]
        )
    for difficulty in (-1e-9, 3 + 1e-9):
        with pytest.raises(ValueError, match="expected 0"):
            synthetic.shot_attributes(0, 0, 0, difficulty)


def test_a_batch_may_hold_every_identity_and_an_epoch_be_one_batch():
    labels = np.array([0, 0, 1, 1, 1, 2])
    plan = pairs.PairPlan(labels, 2, 0)
    assert (plan.eligible, plan.single, plan.steps_per_epoch) == (2, 1, 1)
    assert sorted(plan.examples(np.arange(2))["labels"]) == [0, 1]
    answers = pairs.GenuineImpostorPlan(labels, 7, 7, 0)
    assert answers.steps_per_epoch == 1
    assert answers.examples(np.arange(7))["labels"].sum() == 3, "the odd one is an impostor pair"
    more = pairs.GenuineImpostorPlan(labels, 3, 8, 0)
    assert more.steps_per_epoch == 2, "two full batches, the rest is not drawn"


# ---- photographs


class Detector:
    """A detector that finds as many faces as the photograph's first pixel says, and records the photograph's size."""

    def __init__(self):
        self.shown = []

    def __call__(self, photograph):
        self.shown.append(photograph.shape[:2])
        count = int(photograph[0, 0, 0])
        faces = [geometry.TEMPLATE * 0.5 + [5 + 40 * i, 9] for i in range(count)]
        return [detectors.Face(p, np.concatenate([p.min(0), p.max(0)]), 0.9) for p in faces]


@pytest.fixture
def detector(monkeypatch) -> Detector:
    found = Detector()
    monkeypatch.setattr(aligner, "detector", lambda name: (found, f"{name} 1.0"))
    return found


def photographs(folder: Path, faces: list[int]) -> list[str]:
    folder.mkdir()
    for i, count in enumerate(faces):
        picture = smooth_face(i, 140)
        picture[0, 0] = count
        (folder / f"{i}.png").write_bytes(file_bytes(Image.fromarray(picture), "PNG"))
    return [f"{i}.png" for i in range(len(faces))]


def test_photographs_are_counted_once_by_what_became_of_them(tmp_path, detector):
    """ "Several faces" means two or more; the photograph counts once however many there are."""
    names = photographs(tmp_path / "src", [1, 0, 2, 3, 1, 0, 1])
    (tmp_path / "src" / names[4]).write_bytes(b"x")
    made = aligner.Aligner("made", None, policy="fallback", workers=1)
    crops = list(made.run(tmp_path / "src", names))
    assert [crop.faces for crop in crops] == [1, 0, 2, 3, None, 0, 1]
    report = made.report()
    keys = "images", "aligned", "several_faces", "no_face", "unreadable"
    assert [report[key] for key in keys] == [7, 4, 2, 2, 1]
    assert report["no_face_files"] == ["1.png", "5.png"]
    assert report["by"] == "made 1.0"
    for name, crop in zip(names, crops):
        if crop.faces:
            photograph = images.photograph((tmp_path / "src" / name).read_bytes(), name)
            points = [geometry.TEMPLATE * 0.5 + [5 + 40 * i, 9] for i in range(crop.faces)]
            middle = [np.abs((p.min(0) + p.max(0)) / 2 - 70) for p in points]
            nearest = points[int(np.argmin([np.hypot(*m) for m in middle]))]
            assert crop.jpeg == images.encode(geometry.warp(photograph, nearest))


@pytest.mark.parametrize(("size", "shown"), [((640, 480), (480, 640)), ((641, 320), (319, 640)), ((50, 30), (30, 50))])
def test_only_photographs_beyond_the_detectors_size_are_scaled_down(size, shown):
    detect = Detector()
    detectors.find(detect, np.ones((*size[::-1], 3), np.uint8))
    assert np.abs(np.subtract(detect.shown[0], shown)).max() <= 1
    assert max(detect.shown[0]) <= 640
    if max(size) <= 640:
        assert detect.shown == [shown]


def test_half_of_the_points_may_look_mirrored(tmp_path):
    """Faces in profile may look mirrored. If more than half do, the order of the columns is wrong."""
    good = geometry.TEMPLATE + 10
    swapped = good[[1, 0, 2, 4, 3]]

    def read(*faces):
        text = "".join(f"{i}.jpg" + "".join(f"\t{v}" for v in p.ravel()) + "\n" for i, p in enumerate(faces))
        (tmp_path / "p.tsv").write_text(text)
        return landmarks.read_landmarks(tmp_path / "p.tsv", files.read_lines(tmp_path / "p.tsv"))

    assert len(read(good, swapped)) == 2
    with pytest.raises(ValueError, match="mirrored order"):
        read(good, swapped, swapped)
    with pytest.raises(ValueError, match="mirrored order"):
        read(swapped)


@pytest.mark.parametrize(("workers", "fits"), [(0, False), (1, True)])
def test_one_worker_is_needed(detector, workers, fits):
    if fits:
        aligner.Aligner("made", None, policy="drop", workers=workers)
    else:
        with pytest.raises(ValueError, match="--workers=0: at least one is needed"):
            aligner.Aligner("made", None, policy="drop", workers=workers)


# ---- copies on a node's own disk


def test_a_copy_of_what_a_store_was_before_is_refused(tmp_path):
    """A store's path does not determine its contents."""
    made = make(tmp_path / "data/s", split="test")
    copied = stage.copy(made.path, "test", tmp_path / "node")
    assert stage.copy(made.path, "test", tmp_path / "node") == copied
    assert stores.Store(copied, "test").data_hash == made.data_hash
    a, b, fold = np.array([0, 1]), np.array([1, 2]), np.array([0, 1])
    labels = made.labels
    stores.write_pairs(made.path, "mine", stores.Pairs(a, b, labels[a] == labels[b], fold, labels[a], labels[b]))
    message = f"{copied}: copied from {made.path} before that store changed; remove the copy"
    with pytest.raises(ValueError, match=message):
        stage.copy(made.path, "test", tmp_path / "node")
    shutil.rmtree(copied)
    assert stores.read_pairs(stage.copy(made.path, "test", tmp_path / "node"), "mine").fold_sizes == [1, 1]
    shutil.rmtree(made.path)
    make(tmp_path / "data/s", RECORDS[:-1], split="test")
    with pytest.raises(ValueError, match=message):
        stage.copy(made.path, "test", tmp_path / "node")


def test_a_copy_of_another_store_of_the_same_size_is_refused(tmp_path):
    """The manifests differ in their hashes alone, which are of one length."""
    made = make(tmp_path / "data/s", split="test")
    copied = stage.copy(made.path, "test", tmp_path / "node")
    shutil.rmtree(made.path)
    make(made.path, [(jpeg, identity, file.replace("jpg", "png")) for jpeg, identity, file in RECORDS], split="test")
    sizes = {(path / "manifest.json").stat().st_size for path in (made.path, copied)}
    assert len(sizes) == 1
    with pytest.raises(ValueError, match=f"{copied}: copied from {made.path} before that store changed"):
        stage.copy(made.path, "test", tmp_path / "node")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_any_split_can_be_trained_on(tmp_path, split):
    """Both the run and the program that copies stores to a node accept any split."""
    config = base()
    config.data.train, config.data.split, config.epochs, config.batch_size = str(tmp_path / "s"), split, 1, 4
    made = make(tmp_path / "s", split=split)

    def open_data(config):
        task = tasks.get(config.task)(typed(config), tmp_path)
        opened = task.open_store()
        assert opened
        return opened, task.examples(opened).plan

    opened, plan = open_data(config)
    assert (opened.split, opened.data_hash, len(plan.labels)) == (split, made.data_hash, 12)
    assert stage.stores(config) == {"data.train": (made.path, split)}
    config.data.split = {"train": "val", "val": "test", "test": "train"}[split]
    with pytest.raises(ValueError, match=f"its split is '{split}', but '{config.data.split}' was requested"):
        open_data(config)
    config.epochs = 0
    assert stage.stores(config) == {}, "nothing is trained, so nothing of it is read"


def test_a_word_of_a_record_is_four_bytes(tmp_path):
    """A picture of any length is padded with zeros to the next multiple of four; they do not belong to it."""
    for extra in range(5):
        data = JPEGS[0] + bytes(extra)
        write_rec(tmp_path / f"{extra}", [(0, pack(1.0, data)), (1, pack(2.0, JPEGS[1], 1))])
        raw = (tmp_path / f"{extra}/train.rec").read_bytes()
        _, _, image, taken = records.parse(raw)
        assert (image, taken % 4) == (data, 0)
        assert struct.unpack_from("<I", raw, taken)[0] == records.MAGIC
