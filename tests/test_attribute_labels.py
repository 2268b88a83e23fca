"""Test the readers of attribute label files against tests/golden/face_label_formats, and the stores made of them."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from fvjax.data import attributes, loose_crops, prepare, stores
from fvjax.data.alignment import faces, geometry
from fvjax.data.alignment.detectors import Face
from fvjax.data.attributes import Attributes
from fvjax.data.readers import attribute_stores, celeba, expressions, fairface, label_files, maad, utkface
from tests.test_images import file_bytes, smooth_face
from tests.test_prepare import fails, run
from tests.test_tfds_source import IMAGE, dataset

GOLDEN = Path("tests/golden/face_label_formats")
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())["files"]


def put(folder, names, size=(20, 16)):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(smooth_face(i, 32)).resize(size)
        (folder / name).write_bytes(file_bytes(picture, "JPEG"))
    return folder


# ---- parses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["list_attr_celeba.txt", "list_attr_celeba_crlf_wrong_count.txt", "list_attr_celeba.csv"]
)
def test_celeba_attributes(name):
    expected, first = EXPECTED[f"celeba/{name}"], EXPECTED["celeba/list_attr_celeba.txt"]
    labels = celeba.read_attributes(GOLDEN / "celeba" / name)
    assert labels.names == tuple(first["attributes"]) == celeba.NAMES
    assert {file: list(np.frombuffer(row, np.int8)) for file, row in labels.rows.items()} == first["rows"]
    assert labels.declared == expected.get("declared_rows")


def test_celeba_splits_and_people():
    for name in ("list_eval_partition.txt", "list_eval_partition.csv"):
        assert celeba.read_partition(GOLDEN / "celeba" / name) == EXPECTED[f"celeba/{name}"]["splits"]
    name = "celeba/identity_CelebA.txt"
    assert celeba.read_identities(GOLDEN / name) == EXPECTED[name]["identities"]


def test_maad():
    expected = EXPECTED["maad/MAAD-Face.csv"]
    names, rows = maad.read_rows(GOLDEN / "maad/MAAD-Face.csv")
    assert names == tuple(expected["attributes"]) == maad.NAMES
    parsed = {
        row.file: {"identity": row.identity, "values": list(np.frombuffer(row.labels, np.int8))} for _, row in rows
    }
    assert parsed == expected["rows"]
    assert sum(row["values"].count(0) for row in parsed.values()) == expected["unlabelled"]


def test_utkface_names():
    for name, expected in EXPECTED["utkface/names.txt"]["names"].items():
        if "error" in expected:
            with pytest.raises(ValueError, match="malformed name: "):
                utkface.parse_name(name)
        else:
            wanted = {key: expected[key] for key in ("age", "gender", "race", "time")}
            assert utkface.parse_name(name)._asdict() == wanted
    ages = {0: "0-2", 2: "0-2", 3: "3-9", 9: "3-9", 10: "10-19", 69: "60-69", 70: "more than 70", 116: "more than 70"}
    assert {age: utkface.age_group(age) for age in ages} == ages


def test_expw():
    expected = EXPECTED["expw/label.lst"]
    rows = expressions.read_expw(GOLDEN / "expw/label.lst")
    assert [{**face._asdict(), "name": face.name} for face in rows] == expected["rows"]
    assert list(expressions.EXPW_LABELS) == expected["labels"]
    left, top, right, bottom = expressions.expw(GOLDEN / "expw/label.lst", 1).pictures[0].box
    assert (left, top, right, bottom) == (83, 195, 256, 368)


def test_rafdb():
    expected = EXPECTED["rafdb/list_patition_label.txt"]
    assert expected["labels"] == expressions.RAFDB_LABELS
    labels = expressions.read_rafdb(GOLDEN / "rafdb/list_patition_label.txt")
    assert labels == {name: row["name"] for name, row in expected["rows"].items()}
    pictures = expressions.rafdb(GOLDEN / "rafdb/list_patition_label.txt", 0, 1).pictures
    assert [(p.file, p.split) for p in pictures] == [
        (row["aligned"], row["split"]) for row in expected["rows"].values()
    ]


def test_fairface():
    expected = EXPECTED["fairface/fairface_label_val.csv"]
    rows = fairface.read_labels(Path("tests/golden/fairface_labels/fairface_label_val.csv"))
    assert {row.file: (row.age, row.gender, row.race) for row in rows} == {
        file: (row["age"], row["gender"], row["race"]) for file, row in expected["rows"].items()
    }
    for name in ("a", "b"):
        with pytest.raises(ValueError, match=r"line 2: the age '.*' was 3-9 before a spreadsheet made a date of it"):
            fairface.read_labels(Path(f"tests/golden/fairface_labels/fairface_label_val_spreadsheet_{name}.csv"))


# ---- what is refused -------------------------------------------------------------------------------------------------

HEADER = " ".join(celeba.NAMES)
ROW = "1.jpg" + " 1" * 40
MAAD = ",".join(("Filename", "Identity", *maad.NAMES))
REFUSED = [
    (celeba.read_attributes, f"{HEADER}\n{ROW[:-2]}\n", "line 2: 39 values for 40 attributes"),
    (celeba.read_attributes, f"{HEADER}\n{ROW[:-1]}0\n", "line 2: the value '0'"),
    (celeba.read_attributes, f"{HEADER}\n{ROW}\n{ROW}\n", "line 3: '1.jpg' is listed twice"),
    (celeba.read_attributes, f"{HEADER.replace('Bald', 'Bold')}\n{ROW}\n", "unknown attribute 'Bold'"),
    (celeba.read_attributes, f"{HEADER.replace('Bald', 'Bangs')}\n{ROW}\n", "'Bangs' occurs twice"),
    (celeba.read_attributes, f"{HEADER.replace('Bald ', '')}\n{ROW}\n", "line 1: the attribute 'Bald' is missing"),
    (celeba.read_attributes, f"{ROW}\n", "line 1: no header"),
    (celeba.read_attributes, "10\n", "no picture is listed"),
    (celeba.read_attributes, HEADER.encode("utf-16-le"), "unknown attribute"),
    (celeba.read_attributes, f"{HEADER}\n{ROW}\n".encode() + b"\xe9.jpg", "not in UTF-8"),
    (celeba.read_attributes, "x" * (1 << 17), "line 1: more than 65536 characters"),
    (celeba.read_partition, "1.jpg 3\n", "line 1: the split '3'"),
    (celeba.read_partition, "1.jpg 0\n1.jpg 1\n", "line 2: '1.jpg' is listed twice"),
    (celeba.read_identities, "1.jpg bob\n", "line 1: the person 'bob'"),
    (celeba.read_identities, "1.jpg\n", "line 1: 1 values"),
    (maad.read_rows, "a,b\n", "expected the columns Filename, Identity"),
    (maad.read_rows, f"{MAAD},Bald\n", "'Bald' occurs twice"),
    (maad.read_rows, f"{MAAD}\na.jpg,2{',1' * 46}\n", "line 2: 48 values, but the header has 49"),
    (maad.read_rows, f"{MAAD}\na.jpg,2{',1' * 46},2\n", "line 2: the value '2'"),
    (maad.read_rows, f"{MAAD}\na.jpg,x{',1' * 47}\n", "line 2: the person 'x'"),
    (expressions.read_expw, "a.jpg 0 10 20 5 40 1.0 3\n", "the order is top, left, right, bottom"),
    (expressions.read_expw, "a.jpg 0 10 20 50 40 1.0 7\n", "the label '7'"),
    (expressions.read_expw, "a.jpg 0 10 20 50 40 high 3\n", "the confidence 'high'"),
    (expressions.read_expw, "a.jpg 0 -1 20 50 40 1 3\n", "'-1' is no number of pixels"),
    (expressions.read_expw, "a.jpg 0 10 20 50 40 3\n", "7 values"),
    (expressions.read_rafdb, "train_1.jpg 0\n", "the label '0'"),
    (expressions.read_rafdb, "val_1.jpg 1\n", "expected a line such as"),
    (expressions.read_rafdb, "\n", "no picture is listed"),
]


def consume(result):
    """Read what a reader may leave for later: MAAD's rows come one by one."""
    list(result[1])


@pytest.mark.parametrize(("read", "text", "message"), REFUSED)
def test_refused_label_files(tmp_path, read, text, message):
    file = tmp_path / "labels.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as error:
        consume(read(file))
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (celeba.read_attributes, "celeba/list_attr_celeba.txt"),
        (celeba.read_partition, "celeba/list_eval_partition.csv"),
        (maad.read_rows, "maad/MAAD-Face.csv"),
        (expressions.read_expw, "expw/label.lst"),
        (expressions.read_rafdb, "rafdb/list_patition_label.txt"),
    ],
)
def test_damaged_files_are_read_or_refused(tmp_path, read, name):
    """Whatever bytes are changed, the file is read or refused with one line that names it."""
    whole, rng, file = (GOLDEN / name).read_bytes(), np.random.default_rng(0), tmp_path / "damaged.csv"
    refusals = []
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 4):
            data[place : place + int(rng.integers(0, 3))] = rng.bytes(int(rng.integers(0, 3)))
        file.write_bytes(data)
        try:
            consume((None, read(file)) if read is not maad.read_rows else read(file))
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 10
    assert all(text.startswith(str(file)) and "\n" not in text for text in refusals)


def test_a_pickle_is_not_read(tmp_path):
    with pytest.raises(ValueError, match="a pickle can run code"):
        maad.read_rows(tmp_path / "MAAD-Face.pkl")


def test_maad_in_utf16_and_as_decimals(tmp_path):
    (tmp_path / "m.csv").write_text(f"{MAAD}\na.jpg,2{',1.0,-1.0' * 23},0.0\n", encoding="utf-16")
    ((_, row),) = maad.read_rows(tmp_path / "m.csv")[1]
    assert list(np.frombuffer(row.labels, np.int8)) == [1, -1] * 23 + [0]


# ---- splits ----------------------------------------------------------------------------------------------------------


def maad_file(path, people):
    rows = [f"n{person:06d}/{i:04d}.jpg,{person}{',1' * 46},0" for i, person in enumerate(people)]
    path.write_text("\n".join([MAAD, *rows]) + "\n")
    return path


def test_maad_test_set_begins_where_the_people_begin_again(tmp_path):
    labels = maad.read(maad_file(tmp_path / "m.csv", [2, 2, 5, 1, 3, 3]), 0, 1)
    assert [picture.split for picture in labels.pictures] == ["train"] * 3 + ["test"] * 3
    with pytest.raises(ValueError, match="line 6: the people are in another order"):
        maad.read(maad_file(tmp_path / "m.csv", [2, 5, 1, 3, 2]), 0, 1)


def test_rows_without_any_label_are_left_out(tmp_path):
    (tmp_path / "m.csv").write_text(f"{MAAD}\na.jpg,2{',0' * 47}\nb.jpg,2{',1' * 47}\n")
    labels = maad.read(tmp_path / "m.csv", 0, 1)
    assert [picture.file for picture in labels.pictures] == ["b.jpg"]
    assert [entry.reason for entry in labels.left_out] == ["no label: all 47 attributes are undefined"]


def test_shares_and_parts_depend_on_the_name_alone():
    names = [f"{i}.jpg" for i in range(4000)]
    small, large = ({n for n in names if label_files.is_chosen(n, share)} for share in (0.1, 0.3))
    assert small < large
    assert len(small) == pytest.approx(400, abs=60)
    parts = [label_files.part(name, 0.1, 0.2) for name in names]
    assert parts.count("val") == pytest.approx(400, abs=60)
    assert parts.count("test") == pytest.approx(800, abs=80)
    with pytest.raises(ValueError, match="--share=0: expected a share"):
        label_files.check_share("--share", 0)


# ---- stores ----------------------------------------------------------------------------------------------------------


def prepare_celeba(tmp_path, capsys, *flags, names=None):
    src = put(tmp_path / "pictures", EXPECTED["celeba/identity_CelebA.txt"]["identities"] if names is None else names)
    files = (
        f"--labels={GOLDEN}/celeba/list_attr_celeba_crlf_wrong_count.txt",
        f"--partition={GOLDEN}/celeba/list_eval_partition.txt",
    )
    return run(capsys, "celeba", f"--src={src}", f"--dst={tmp_path / 's'}", *files, "--size=24", *flags)


def test_celeba_store(tmp_path, capsys):
    people = f"--identities={GOLDEN}/celeba/identity_CelebA.txt"
    code, out, err = prepare_celeba(tmp_path, capsys, people)
    assert (code, err) == (0, "")
    assert "line 1 claims 202599 pictures, 10 are listed" in out
    train, val, test = (
        stores.Store(tmp_path / "s" / part, name) for part, name in (("", "train"), ("val", "val"), ("test", "test"))
    )
    assert (len(train), len(val), len(test)) == (6, 2, 2)
    assert train.image(0).shape == (24, 24, 3)
    assert train.identities[:2] == ["4122", "3209"]
    columns = attributes.of(train)
    assert columns == Attributes(celeba.NAMES, {}, "celeba", True)
    rows = EXPECTED["celeba/list_attr_celeba.txt"]["rows"]
    assert attributes.labels(val).tolist() == [rows["000007.jpg"], rows["000008.jpg"]]
    assert attributes.labels(train, [2]).tolist() == [rows["000003.jpg"]]
    assert "without a single positive picture" in out  # ten rows cannot have all 40
    assert val.sources == ["000007.jpg", "000008.jpg"]


def test_labels_of_pictures_that_are_not_there(tmp_path, capsys):
    code, out, _ = prepare_celeba(tmp_path, capsys, names=["000001.jpg", "000009.jpg"])
    assert code == 0
    assert "8 left out (8 missing picture), listed in manifest.json" in out
    assert "no picture of the split 'val' is usable" in out
    assert "nobody says who they are of" in out
    assert len(stores.Store(tmp_path / "s/test", "test")) == 1
    assert not (tmp_path / "s/val").exists()
    shutil.rmtree(tmp_path / "s")
    fails_here = "000002.jpg: missing picture: '000002.jpg'; supply it, or leave it out with --policy=drop"
    code, out, err = prepare_celeba(tmp_path, capsys, "--policy=fail", names=["000001.jpg"])
    assert (code, out) == (2, "")
    assert fails_here in err
    assert not (tmp_path / "s").exists()


def test_utkface_store(tmp_path, capsys):
    expected = EXPECTED["utkface/names.txt"]["names"]
    src = put(tmp_path / "pictures", [name for name in expected if not name.startswith(".")])
    code, _out, err = run(capsys, "utkface", f"--src={src}", f"--dst={tmp_path / 's'}", "--size=24")
    assert (code, err) == (0, "")
    s = stores.Store(tmp_path / "s")
    good = [name for name, entry in expected.items() if "error" not in entry]
    written = sum(s.manifest["labels"]["splits"].values())
    assert written == len(good)
    assert s.manifest["rejected_by_reason"]["malformed name"] == len(expected) - len(good) - 1  # without .DS_Store
    row = attributes.labels(s)[0]
    name = utkface.parse_name(s.sources[0])
    assert [utkface.ATTRIBUTES.names[i] for i in np.flatnonzero(row == 1)] == [
        utkface.age_group(name.age),
        name.gender.capitalize(),
        name.race,
    ]
    assert attributes.of(s).group_columns["gender"] == (9, 10)


def test_expw_crops_the_boxes(tmp_path, capsys):
    picture = np.zeros((500, 900, 3), np.uint8)
    picture[105:466, 336:697] = 255  # the second face of this photograph
    (tmp_path / "pictures").mkdir()
    Image.fromarray(picture).save(tmp_path / "pictures/angry_clerk_12.png")
    command = "expw", f"--src={tmp_path / 'pictures'}", f"--labels={GOLDEN}/expw/label.lst", "--size=30"
    assert run(capsys, *command, "--margin=0", f"--dst={tmp_path / 's'}")[0] == 0
    split = label_files.part("angry_clerk_12.jpg", 0.1, 0.1)
    s = stores.Store(tmp_path / "s", split)
    assert s.sources == ["angry_clerk_12.jpg#0", "angry_clerk_12.jpg#1"]
    assert s.image(1).min() > 250
    assert s.image(0).max() < 5
    assert attributes.labels(s)[:, :2].tolist() == [[1, -1], [-1, 1]]
    assert run(capsys, *command, f"--dst={tmp_path / 't'}")[0] == 0
    assert stores.Store(tmp_path / "t", split).image(1)[:28, 0].max() < 5  # with its margin by default


def test_fairface_store(tmp_path, capsys):
    csv = "tests/golden/fairface_labels/fairface_label_val.csv"
    src = put(tmp_path / "pictures", [f"val/{i}.jpg" for i in range(1, 11)])
    assert run(capsys, "fairface", f"--src={src}", f"--labels={csv}", f"--dst={tmp_path / 's'}", "--size=24")[0] == 0
    s = stores.Store(tmp_path / "s", "test")
    assert len(s) == 10
    columns, row = attributes.of(s), attributes.labels(s)[0]
    assert [columns.names[i] for i in np.flatnonzero(row == 1)] == ["3-9", "Male", "Middle Eastern"]
    assert (row == -1).sum() == 15
    by_names = "fairface", f"--src={src}", f"--labels={csv}", "--split=names", "--size=24"
    assert run(capsys, *by_names, f"--dst={tmp_path / 't'}")[0] == 0
    assert len(stores.Store(tmp_path / "t")) == sum(
        label_files.part(f"val/{i}.jpg", 0.1, 0.1) == "train" for i in range(1, 11)
    )
    fails(capsys, tmp_path / "u", "is listed in another file too", "fairface", f"--src={src}", "--labels", csv, csv)
    mangled = csv.replace("val.csv", "val_spreadsheet_a.csv")
    fails(capsys, tmp_path / "u", "--repair-ages reads", "fairface", f"--src={src}", f"--labels={mangled}")
    repaired = (
        "fairface",
        f"--src={src}",
        f"--labels={mangled}",
        "--repair-ages",
        "--size=24",
        f"--dst={tmp_path / 'u'}",
    )
    assert run(capsys, *repaired)[0] == 0


def test_rafdb_and_maad_stores(tmp_path, capsys):
    src = put(tmp_path / "raf", ["train_00001_aligned.jpg", "test_0001_aligned.jpg"])
    labels = GOLDEN / "rafdb/list_patition_label.txt"
    assert (
        run(capsys, "rafdb", f"--src={src}", f"--labels={labels}", f"--dst={tmp_path / 's'}", "--val=0", "--size=24")[0]
        == 0
    )
    assert attributes.labels(stores.Store(tmp_path / "s")).tolist() == [[1, -1, -1, -1, -1, -1, -1]]  # Anger
    src = put(tmp_path / "vgg", ["train/n000002/0001_01.jpg", "n000003/0001_01.jpg"])
    labels = GOLDEN / "maad/MAAD-Face.csv"
    code, out, _ = run(
        capsys, "maad", f"--src={src}", f"--labels={labels}", f"--dst={tmp_path / 't'}", "--val=0", "--size=24"
    )
    assert code == 0
    assert "there is no test set in it" in out
    s = stores.Store(tmp_path / "t")
    assert s.identities == ["2", "3"]
    assert attributes.labels(s)[0].tolist() == EXPECTED["maad/MAAD-Face.csv"]["rows"]["n000002/0001_01.jpg"]["values"]


def test_a_share_of_the_pictures(tmp_path, capsys):
    assert prepare_celeba(tmp_path, capsys, "--share=0.5")[0] == 0
    chosen = {name for name in EXPECTED["celeba/identity_CelebA.txt"]["identities"] if label_files.is_chosen(name, 0.5)}
    s = stores.Store(tmp_path / "s")
    assert sum(s.manifest["labels"]["splits"].values()) == len(chosen)
    assert set(s.sources) <= chosen


def test_a_margin_around_the_picture(tmp_path, capsys):
    assert prepare_celeba(tmp_path, capsys, "--margin=0.5")[0] == 0
    assert np.abs(stores.Store(tmp_path / "s").image(0)[:5].astype(int) - loose_crops.BACKGROUND).max() < 16


def test_surroundings_of_the_face_that_a_detector_finds(tmp_path, capsys, monkeypatch):
    pytest.importorskip("cv2")
    face = Face(geometry.TEMPLATE / 10 + 2, np.array([2, 2, 14, 14]), 0.9)
    monkeypatch.setattr(faces, "_detector", lambda name: lambda picture: [face] if picture[0, 0, 0] % 2 else [])
    (tmp_path / "pictures").mkdir()
    for name, shade in (("000001.jpg", 101), ("000002.jpg", 100)):
        Image.new("RGB", (40, 30), (shade,) * 3).save(tmp_path / "pictures" / name, "PNG")
    code, out, _ = prepare_celeba(tmp_path, capsys, "--align=scrfd", names=[])
    assert code == 0
    assert "1 no face found" in out
    s = stores.Store(tmp_path / "s")
    assert s.sources == ["000001.jpg"]
    assert s.manifest["crop"] == {"size": 24, "margin": 0.0, "align": "scrfd"}
    image = s.image(0).astype(int)
    np.testing.assert_allclose(image[12:, 12:], 101, atol=8)
    np.testing.assert_allclose(image[:4, :4], np.broadcast_to(loose_crops.BACKGROUND, (4, 4, 3)), atol=12)


def test_a_detector_that_is_not_installed(tmp_path, capsys, monkeypatch):
    def missing(name):
        raise ValueError(f"{name} is not installed")

    monkeypatch.setattr(faces, "_detector", missing)
    code, out, err = prepare_celeba(tmp_path, capsys, "--align")
    assert (code, out) == (2, "")
    assert err.endswith("mtcnn is not installed\n")


@pytest.mark.parametrize("name", ["maad", "rafdb", "fairface", "utkface", "expw", "attributes"])
def test_options_of_every_data_set(tmp_path, monkeypatch, name):
    """Every command hands size, margin, share and policy on; their effects are tested with CelebA."""
    parser = prepare._parser(src_required=True)
    flags = ["--labels=x"] * (name not in ("utkface", "attributes"))
    align = [] if name == "expw" else ["--align"]
    given = parser.parse_args(
        [name, "--src=a", "--dst=b", *flags, "--size=7", "--margin=0.25", "--share=0.5", "--policy=fail", *align]
    )
    options = {key: value for key, value in vars(given).items() if key not in ("command", "run", "summary")}
    written, readers = {}, {"maad": maad, "utkface": utkface}
    labelled = label_files.LabelSet(Attributes(("a",)), [])

    def read(*arguments, **named):
        written["share"] = named.get("share", arguments[-1] if arguments else None)
        return labelled

    monkeypatch.setattr(attribute_stores, "write", lambda *_, **crop: written.update(crop))
    for module, function in (
        *((module, "read") for module in readers.values()),
        (expressions, "expw"),
        (expressions, "rafdb"),
        (attribute_stores, "read_fairface"),
        (attribute_stores, "_read_tfds"),
    ):
        monkeypatch.setattr(module, function, read)
    monkeypatch.setattr(attribute_stores, "PictureFolder", lambda _: SimpleNamespace(read=None))
    monkeypatch.setattr(attribute_stores, "split_names", lambda _: ["train"])
    monkeypatch.setattr(attribute_stores, "Source", lambda *_: None)
    if name == "attributes":
        options["src"] = Path("tfds:x")
    given.run(options.pop("src"), options.pop("dst"), **options)
    expected = {"share": 0.5, "size": 7, "margin": 0.25, "policy": "fail"}
    assert written == (expected if name == "expw" else {**expected, "align": "mtcnn"})


def test_nested_features_of_a_tfds_dataset(tmp_path, capsys):
    put(tmp_path, ["0.jpg", "1.jpg"])
    features = {
        "image": IMAGE,
        "attributes": tfds.features.FeaturesDict({"Bald": np.bool_, "Young": np.bool_}),
        "identity": tfds.features.FeaturesDict({"Identity_No": tfds.features.Text()}),
        "landmarks": tfds.features.FeaturesDict({"nose_x": np.int64}),
    }
    rows = [
        {
            "image": tmp_path / f"{i}.jpg",
            "attributes": {"Bald": i == 0, "Young": True},
            "identity": {"Identity_No": f"p{i}"},
            "landmarks": {"nose_x": 3},
        }
        for i in range(2)
    ]
    src = dataset(tmp_path / "d", features, rows)
    command = "attributes", src, "--size=24"
    fails(capsys, tmp_path / "s", "--identity-feature is needed; its identities: identity/Identity_No", *command)
    command = *command, "--identity-feature=identity/Identity_No"
    fails(capsys, tmp_path / "s", "features with booleans: attributes", *command, "--attribute-feature=labels")
    assert run(capsys, *command, f"--dst={tmp_path / 's'}")[0] == 0
    s = stores.Store(tmp_path / "s")
    assert attributes.of(s).names == ("Bald", "Young")
    assert attributes.labels(s).tolist() == [[1, 1], [-1, 1]]
    assert s.identities == ["p0", "p1"]


def test_options_out_of_range(tmp_path, capsys):
    src = put(tmp_path / "p", ["train_00001_aligned.jpg"])
    command = "rafdb", f"--src={src}", f"--labels={GOLDEN}/rafdb/list_patition_label.txt"
    fails(capsys, tmp_path / "s", "--size=0", *command, "--size=0")
    fails(capsys, tmp_path / "s", "--margin=-1.0", *command, "--margin=-1")
    fails(capsys, tmp_path / "s", "--val=1.0", *command, "--val=1")
    fails(capsys, tmp_path / "s", "--share=2.0", *command, "--share=2")


# ---- columns ---------------------------------------------------------------------------------------------------------


def test_a_store_without_labels(tmp_path):
    jpeg = file_bytes(Image.fromarray(smooth_face(0, 112)), "JPEG")
    s = stores.write(tmp_path / "s", [(jpeg, "bob", "1.jpg")], split="train", sources=["x"])
    with pytest.raises(ValueError, match="it has no attribute labels"):
        attributes.labels(s)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), "none: expected names"),
        ((("a", "a"),), "each another one"),
        ((("a", "b"), {"g": ("a", "c")}), "its class 'c' is no attribute"),
        ((("a", "b"), {"g": ("a",)}), "at least two classes"),
    ],
)
def test_malformed_columns(arguments, message):
    with pytest.raises(ValueError, match=message):
        Attributes(*arguments)


def test_columns_of_several_stores():
    one, other = Attributes(("a", "b")), Attributes(("c", "b"))
    names = attributes.union([one, other])
    assert names == ("a", "b", "c")
    assert attributes.spread(np.array([[1, -1]], np.int8), other.names, names).tolist() == [[0, -1, 1]]


# ---- crops -----------------------------------------------------------------------------------------------------------


def test_a_square_keeps_all_of_the_picture():
    picture = np.full((40, 20, 3), 9, np.uint8)
    crop = loose_crops.square(picture, 40)
    assert (crop[:, 10:30] == 9).all()
    assert (crop[:, :10] == loose_crops.BACKGROUND).all()
    np.testing.assert_array_equal(loose_crops.square(picture, 40, (0, 10, 20, 30)), np.full((40, 40, 3), 9))


def test_a_margin_reaches_beyond_the_picture():
    picture = np.full((20, 20, 3), 9, np.uint8)
    crop = loose_crops.square(picture, 40, (0, 0, 20, 20), margin=0.5)
    assert (crop[10:30, 10:30] == 9).all()
    assert (crop[0] == loose_crops.BACKGROUND).all()
    with pytest.raises(ValueError, match="no part of a picture of 20x20"):
        loose_crops.square(picture, 40, (30, 0, 50, 20))
    with pytest.raises(ValueError, match="a margin of -1"):
        loose_crops.square(picture, 40, margin=-1)


def test_surroundings_of_a_face_have_its_aligned_crop_in_the_middle():
    pytest.importorskip("cv2")
    picture = np.asarray(Image.fromarray(smooth_face(1, 112)).resize((300, 300)))
    points = geometry.TEMPLATE + 94  # the aligned crop lies at (94, 94)
    crop = loose_crops.around(picture, points, 224)
    assert crop.shape == (224, 224, 3)
    np.testing.assert_allclose(crop[56:168, 56:168].astype(int), picture[94:206, 94:206], atol=2)
