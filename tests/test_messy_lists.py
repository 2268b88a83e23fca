"""Test lists as people have them: tabs or blanks, marks, ends of lines, names in other forms, other suffixes."""

import json
import pickle
import unicodedata

import numpy as np
import pytest

from fvjax.config import base, benchmark, typed
from fvjax.data import images, stores
from fvjax.data.alignment import landmarks
from fvjax.data.alignment.geometry import TEMPLATE
from fvjax.data.readers import benchmark_lists, facexbench, fairface, files
from fvjax.data.readers.conversations import PictureFolder
from fvjax.data.readers.files import FileNames
from fvjax.evals import baselines
from fvjax.tasks.benchmarks import Benchmarks, CosineScore
from tests.test_facexbench_reader import content, question
from tests.test_images import smooth_face
from tests.test_messy_folders import NFC, NFD, put
from tests.test_prepare import fails, run

PEOPLE = ("Ann_A", "Bob_B", "Cem_C", "Eva_E")
PAIRS = "2\t1\nAnn_A\t1\t2\nAnn_A\t1\tBob_B\t1\nCem_C\t1\t2\nCem_C\t1\tEva_E\t2\n"
POINTS = "\t".join(f"{x:.4f}" for x in TEMPLATE.ravel())


def put_people(src, people=PEOPLE, suffix="jpg", kind="JPEG"):
    for k, who in enumerate(people):
        for i in (1, 2):
            put(src / f"{who}/{who}_{i:04d}.{suffix}", 10 * k + i, kind)
    return src


@pytest.fixture
def lfw(tmp_path, capsys):
    """Return a function that converts LFW's pairs over ``src`` and returns the store and what was printed."""

    def convert(pairs, *flags):
        number = len(list(tmp_path.iterdir()))
        list_, dst = tmp_path / f"pairs{number}.txt", tmp_path / f"s{number}"
        list_.write_bytes(pairs if isinstance(pairs, bytes) else pairs.encode())
        code, out, err = run(capsys, "lfw", f"--src={tmp_path / 'src'}", f"--pairs={list_}", f"--dst={dst}", *flags)
        assert code == 0, err
        return stores.Store(dst, "test"), out

    return convert


# ---- the text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_and_ends_of_lines(tmp_path, encoding, end):
    file = tmp_path / "list.txt"
    file.write_bytes(end.join(["# comment", "", "Zoë\u2028\x85 X", "b\tc", " ", ""]).encode(encoding))
    assert files.read_lines(file) == [(3, "Zoë\u2028\x85 X"), (4, "b\tc")]


def test_text_that_is_none(tmp_path, monkeypatch):
    file = tmp_path / "list.txt"
    for data, message in ((b"\xff\xfe\0", "list.txt: not a text file"), (b"a\n\xe9", r"UTF-8 \(.* at byte 2\)")):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            files.read_lines(file)
    monkeypatch.setattr(files, "MAX_LIST_BYTES", 2)
    with pytest.raises(ValueError, match=r"list.txt: 3 bytes, at most 2; is it a list\?"):
        files.read_lines(file)


# ---- LFW's pairs


@pytest.mark.parametrize("separator", ["\t", " ", "\t "])
def test_names_with_blanks(tmp_path, lfw, separator):
    people = ("Ann Lee", "Bob van Ray", "Cem Öz", "Eva Mü")
    put_people(tmp_path / "src", people)
    text = PAIRS
    for old, new in zip(PEOPLE, people):
        text = text.replace(old, new)
    store, _ = lfw(text.replace("\t", separator))
    assert store.identities == list(people)
    pairs = stores.read_pairs(store.path, "lfw")
    assert [store.sources[i] for i in pairs.b][:2] == ["Ann Lee/Ann Lee_0002.jpg", "Bob van Ray/Bob van Ray_0001.jpg"]


def test_numbers_in_names_need_tabs(tmp_path):
    (tmp_path / "pairs.txt").write_text("1\nAgent 47\t1\t2\nAgent 47\t1\tB 2\t3\n")
    assert [pair.a for pair in benchmark_lists.read_lfw(tmp_path / "pairs.txt")] == ["Agent 47/Agent 47_0001.jpg"] * 2
    for line in ("Agent 47 1 2", "Agent 1", "1 2", "Agent 1 2 x"):
        (tmp_path / "pairs.txt").write_text(f"1\n{line}\nAgent 1 B 2\n")
        with pytest.raises(ValueError, match=r"pairs.txt:2: expected a pair of the kind same: .* tabs must separate"):
            benchmark_lists.read_lfw(tmp_path / "pairs.txt")


def test_marks_do_not_matter_to_lfw(tmp_path, lfw):
    put_people(tmp_path / "src")
    hashes = {lfw(PAIRS)[0].data_hash}
    windows = PAIRS.replace("\n", "\r\n") + "\r\n"
    hashes |= {lfw(windows.encode(encoding))[0].data_hash for encoding in ("utf-8-sig", "utf-16")}
    assert len(hashes) == 1


@pytest.mark.parametrize(("suffix", "kind"), [("png", "PNG"), ("JPG", "JPEG"), ("jpeg", "JPEG"), ("Webp", "WEBP")])
def test_a_file_that_is_there_is_never_missing(tmp_path, lfw, suffix, kind):
    put_people(tmp_path / "src", suffix=suffix, kind=kind)
    for policy in ("fail", "drop"):
        store, out = lfw(PAIRS, f"--policy={policy}")
        assert len(store) == 6
        assert store.sources[0] == f"Ann_A/Ann_A_0001.{suffix}"
        assert "0 images not acquired, 0 pairs dropped" in out


@pytest.mark.parametrize(("listed", "on_disk"), [(NFC, NFD), (NFD, NFC)])
def test_lists_and_folders_in_different_forms(tmp_path, lfw, listed, on_disk):
    put_people(tmp_path / "src", (on_disk, *PEOPLE[1:]))
    store, _ = lfw(PAIRS.replace("Ann_A", listed))
    assert store.identities[-1] == NFC
    assert store.manifest["counts"]["images"] == 6


def test_a_name_that_could_mean_two_files_is_an_error(tmp_path, capsys):
    put_people(tmp_path / "src", suffix="png", kind="PNG")
    put(tmp_path / "src/Ann_A/Ann_A_0001.webp", 5, "WEBP")
    (tmp_path / "pairs.txt").write_text(PAIRS)
    (tmp_path / "out").mkdir()
    message = "'Ann_A/Ann_A_0001.png' or 'Ann_A/Ann_A_0001.webp' could be meant; rename or remove one of them"
    arguments = f"--src={tmp_path / 'src'}", f"--pairs={tmp_path / 'pairs.txt'}", "--policy=drop"
    fails(capsys, tmp_path / "out/s", message, "lfw", *arguments)


def test_names_are_found_below_the_root_only(tmp_path):
    put(tmp_path / "root/a/1.PNG", 1, "PNG")
    put(tmp_path / "root/a/2.jpg", 2)
    put(tmp_path / "root/a/2.png", 2, "PNG")
    put(tmp_path / "secret.png", 3, "PNG")
    find = FileNames(tmp_path / "root").find
    assert [find(name) for name in ("a/1.jpg", r"a\1.PNG", "./a//1", "a/2.png", "a/3.jpg", "b/1.jpg", "a")] == [
        *("a/1.PNG", "a/1.PNG", None, "a/2.png", None, None, None),
    ]
    for name in ("../secret.png", "a/../../secret.jpg", r"..\secret.png", str(tmp_path / "secret.png"), ""):
        assert find(name) is None


def test_pairs_that_say_nothing_new_are_counted_and_named(tmp_path, lfw):
    src = put_people(tmp_path / "src")
    (src / "Eva_E/Eva_E_0001.jpg").write_bytes((src / "Eva_E/Eva_E_0002.jpg").read_bytes())
    text = "1\t5\nAnn_A\t1\t1\nAnn_A\t1\t2\nAnn_A\t2\t1\nEva_E\t1\t2\nBob_B\t1\t2\n" + "".join(
        f"{a}\t1\tBob_B\t{i}\n" for a, i in (("Ann_A", 1), ("Cem_C", 1), ("Ann_A", 1), ("Ann_A", 2), ("Eva_E", 1))
    )
    store, out = lfw(text)
    entry = store.manifest["benchmarks"]["lfw"]
    ann, bob, eva = (f"{who}/{who}_000" for who in ("Ann_A", "Bob_B", "Eva_E"))
    assert entry["self_pairs"] == [[f"{ann}1.jpg", f"{ann}1.jpg"], [f"{eva}1.jpg", f"{eva}2.jpg"]]
    assert entry["repeated_pairs"] == [[f"{ann}2.jpg", f"{ann}1.jpg"], [f"{ann}1.jpg", f"{bob}1.jpg"]]
    assert entry["pairs"] == 10
    assert (
        f"2 pairs of one picture with itself or a copy of it, kept and listed in manifest.json; the first: {ann}" in out
    )
    assert f"2 pairs a second time, kept and listed in manifest.json; the first: {ann}2.jpg, {ann}1.jpg" in out
    entry = lfw(PAIRS)[0].manifest["benchmarks"]["lfw"]
    assert (entry["self_pairs"], entry["repeated_pairs"]) == ([], [])


def test_odd_pairs_of_a_bin_are_counted_and_named(tmp_path, capsys):
    order, same = [0, 0, 1, 2, 2, 1, 3, 4], [True, False, False, False]
    data = [images.encode(smooth_face(i)) for i in order], same
    (tmp_path / "x.bin").write_bytes(pickle.dumps(data, 4))
    flags = f"--src={tmp_path / 'x.bin'}", f"--dst={tmp_path / 's'}", "--name=mine", "--folds=1"
    code, out, _ = run(capsys, "bin", *flags)
    entry = stores.Store(tmp_path / "s", "test").manifest["benchmarks"]["mine"]
    assert (code, entry["self_pairs"], entry["repeated_pairs"]) == (
        0,
        [["x.bin#0", "x.bin#0"]],
        [["x.bin#3", "x.bin#2"]],
    )
    assert "1 pairs a second time" in out


# ---- CFP's lists


def test_cfps_lists(tmp_path, capsys):
    for letter, view in {"F": "frontal", "P": "profile"}.items():
        names = [f"{who}/{view}/{i:02d}" for who in ("Ann Lee", "002") for i in (1, 2)]
        for i, name in enumerate(names):
            put(tmp_path / f"src/{name}.png", i + 10 * (letter == "P"), "PNG")
        text = "".join(f"{i}\t..\\Data\\Images\\{name}.jpg\r\n" for i, name in enumerate(names, 1)).replace("/", "\\")
        (tmp_path / "protocol").mkdir(exist_ok=True)
        (tmp_path / f"protocol/Pair_list_{letter}.txt").write_text(text, "utf-8-sig", newline="")
    for kind in ("FF", "FP"):
        split = tmp_path / f"protocol/Split/{kind}/01"
        split.mkdir(parents=True)
        (split / "same.txt").write_text("1, 2\r\n\r\n", "utf-16", newline="")
        (split / "diff.txt").write_text("1\t3 \n")
        (split.parent / ".ipynb_checkpoints").mkdir()
    arguments = f"--src={tmp_path / 'src'}", f"--protocol={tmp_path / 'protocol'}", f"--dst={tmp_path / 's'}"
    assert run(capsys, "cfp", *arguments)[0] == 0
    store = stores.Store(tmp_path / "s", "test")
    assert store.identities == ["002", "Ann Lee"]
    assert stores.read_pairs(store.path, "fp").same.tolist() == [True, False]
    with (tmp_path / "protocol/Pair_list_F.txt").open("a") as file:
        file.write("4 x/frontal/1.jpg\n")
    with pytest.raises(ValueError, match=r"Pair_list_F.txt:5: the index 4 a second time"):
        benchmark_lists.read_cfp(tmp_path / "protocol", "FF")


# ---- landmarks


NAMES = [f"{who}/{who}_{i:04d}.jpg" for who in PEOPLE for i in (1, 2)]
ROWS = "".join(f"{name}\t{POINTS}\n" for name in NAMES)
FORMS = {
    "as it is": ROWS,
    "mark and CR LF": ("\ufeff" + ROWS.replace("\n", "\r\n")),
    "backslashes": ROWS.replace("/", "\\"),
    "./ before": ROWS.replace("Ann_A/", "./Ann_A/"),
    "blanks": ROWS.replace("\t", "  "),
    "another suffix": ROWS.replace(".jpg", ".PNG"),
    "blank last lines": ROWS + "\n \n",
}


@pytest.fixture
def align(tmp_path, capsys):
    """Return a function that aligns the folder ``src`` by a list of points."""

    def align(text, *flags):
        number = len(list(tmp_path.iterdir()))
        (tmp_path / "points.tsv").write_text(text, newline="")
        arguments = f"--src={tmp_path / 'src'}", f"--landmarks={tmp_path / 'points.tsv'}", "--workers=1"
        code, out, err = run(capsys, "folder", *arguments, f"--dst={tmp_path / f's{number}'}", *flags)
        return (stores.Store(tmp_path / f"s{number}").manifest if code == 0 else err), out

    return align


@pytest.mark.parametrize("form", FORMS)
def test_points_find_their_pictures(tmp_path, align, form):
    put_people(tmp_path / "src")
    manifest, out = align(FORMS[form])
    expected = {"images": 8, "aligned": 8, "no_face": 0, "no_points": 0, "unreadable": 0, "rows_without_picture": 0}
    assert manifest["alignment"].items() >= expected.items()
    assert "8 of 8 photographs aligned (points.tsv" in out
    assert "0 rows of the list name no picture here; 0 without points (policy drop)" in out


@pytest.mark.parametrize(("listed", "on_disk"), [(NFC, NFD), (NFD, NFC)])
def test_points_find_pictures_in_another_form(tmp_path, align, listed, on_disk):
    put_people(tmp_path / "src", (on_disk, "Bob_B"))
    text = "".join(f"{who}/{who}_{i:04d}.jpg\t{POINTS}\n" for who in (listed, "Bob_B") for i in (1, 2))
    assert align(text)[0]["alignment"]["aligned"] == 4


def test_a_row_that_matches_nothing_is_said_to_match_nothing(tmp_path, align):
    put_people(tmp_path / "src")
    manifest, out = align(ROWS.replace("Bob_B_0001.jpg", "Bob_B_1.jpg") + f"Zoe/1.jpg\t{POINTS}\n")
    reason = "no points: no row of points.tsv names it"
    assert manifest["rejected"] == [{"file": "Bob_B/Bob_B_0001.jpg", "reason": reason}]
    assert manifest["rejected_by_reason"] == {"no points": 1}
    expected = {"aligned": 7, "no_face": 0, "no_points": 1, "rows_without_picture": 2}
    assert manifest["alignment"].items() >= expected.items()
    assert manifest["alignment"]["no_points_files"] == ["Bob_B/Bob_B_0001.jpg"]
    assert "2 rows of the list name no picture here; 1 without points" in out
    assert "face found" not in json.dumps(manifest)

    error, _ = align(ROWS.replace("Bob_B_0001", "Bob_B_1"), "--policy=fail")
    assert "Bob_B/Bob_B_0001.jpg: no points: no row of points.tsv names it" in error
    manifest, _ = align(ROWS.replace("Bob_B_0001", "Bob_B_1"), "--policy=fallback")
    assert (manifest["counts"]["images"], manifest["alignment"]["no_points"]) == (8, 1)
    error, _ = align(ROWS.replace("_A", "_X").replace("_B", "_X").replace("_C", "_X").replace("_E", "_X"))
    assert "points.tsv: names none of the 8 pictures of" in error
    assert "it has 'Ann_X/Ann_X_0001.jpg', expected names such as 'Ann_A/Ann_A_0001.jpg'" in error


def test_suffixes_that_could_be_meant_twice_match_nothing():
    points = {name: np.zeros(2) for name in ("a/1.jpg", "b/1.jpg", "b/1.png", "c/1.jpg")}
    matched = landmarks.match_landmarks(points, ["a/1.png", "a/1.webp", "b/1.bmp", "b/1.png", "c/1.bmp"])
    assert sorted(matched) == ["b/1.png", "c/1.bmp"]


# ---- labels, conversations and questions


LABELS = "file,age,gender,race,service_test\nval/1.jpg,3-9,Male,East Asian,False\nval/2.jpg,20-29,Female,White,True\n"


@pytest.mark.parametrize(
    "text",
    [
        LABELS.replace(",", ";").encode(),
        LABELS.replace(",", "\t").encode("utf-16"),
        LABELS.replace(",", " , ").replace("\n", "\r\n").encode("utf-8-sig") + b"\r\n\r\n",
    ],
    ids=["semicolons", "tabs", "blanks"],
)
def test_label_files_of_spreadsheets(tmp_path, text):
    (tmp_path / "labels.csv").write_bytes(text)
    assert fairface.read_labels(tmp_path / "labels.csv") == [
        fairface.Label("val/1.jpg", "3-9", "Male", "East Asian"),
        fairface.Label("val/2.jpg", "20-29", "Female", "White"),
    ]


def test_a_label_for_the_same_picture_in_another_form(tmp_path):
    (tmp_path / "labels.csv").write_text(LABELS.replace("val/1", f"{NFC}/1").replace("val/2", f".\\{NFD}\\1"))
    with pytest.raises(ValueError, match=r"line 3: .* is listed twice"):
        fairface.read_labels(tmp_path / "labels.csv")


def test_pictures_of_conversations_are_found_in_any_form(tmp_path):
    picture = put(tmp_path / f"root/{NFD}/1.JPG", 1).read_bytes()
    (tmp_path / f"root/{NFD}/2.jpg").write_bytes(picture + b"a video behind it")
    put(tmp_path / "root/two/1.png", 2, "PNG")
    put(tmp_path / "root/two/1.bmp", 3, "BMP")
    put(tmp_path / "secret.jpg", 4)
    folder = PictureFolder(tmp_path / "root")
    for name in (f"{NFD}/1.JPG", f"{NFC}/1.jpg", f"{NFC}\\1.jpeg", f"{NFC}/2.jpg"):
        assert folder.read(name) == picture
    for name, message in (
        ("two/1.jpg", "ambiguous picture: two/1.jpg: 'two/1.bmp' or 'two/1.png' could be meant"),
        ("two/2.jpg", "missing picture: 'two/2.jpg'"),
        (r"..\secret.jpg", "missing picture"),
        ("../secret.jpg", "picture outside the folder"),
    ):
        with pytest.raises(ValueError, match=message):
            folder.read(name)


def test_pictures_of_questions_are_found_in_any_form(tmp_path):
    put(tmp_path / f"benchmark/{NFD}/1.PNG", 1, "PNG")
    entries = {"0": question(image_paths=[f"{NFC}/1.png"]), "1": question(image_paths=["images/2.png"])}
    (tmp_path / "benchmark/x.json").write_text("\ufeff" + json.dumps(content(entries)))
    (tmp_path / "benchmark/._x.json").write_bytes(b"\0\5\x16\7")
    read = facexbench.read(tmp_path)
    assert [q.pictures for q in read.questions] == [(tmp_path / f"benchmark/{NFD}/1.PNG",)]
    assert read.rejected_by_reason == {"missing picture": 1}


# ---- training against benchmark


@pytest.mark.parametrize("stored", [NFC, NFD])
def test_names_of_training_and_benchmark_are_compared_in_one_form(tmp_path, stored):
    people = enumerate((stored, stored, "Bob", "Bob"))  # stores of earlier versions have names as the folders had them
    records = [(images.encode(smooth_face(i)), who, f"{i}.jpg") for i, who in people]
    with stores.Writer(tmp_path / "s", split="test", sources=[]) as writer:
        for record in records:
            writer.add(*record)
        a, b, same = np.array([[0, 1, 1], [0, 2, 0], [2, 3, 1], [1, 3, 0]]).T
        label = np.array([0, 0, 1, 1])
        writer.add_pairs("lfw", stores.Pairs(a, b, same == 1, np.array([0, 0, 1, 1]), label[a], label[b]))
    config = base()
    config.eval.bootstrap, config.data.names = 0, "here"
    config.eval.benchmarks["mac"] = benchmark(str(tmp_path / "s"), "lfw", names="here")
    c = typed(config)
    evaluated = Benchmarks(c.eval, c.data, c.seed, tmp_path)
    score = CosineScore(c.eval, baselines.pixel)
    for seen, expected in ((NFD, 1), (f"{NFC} ", 1), (unicodedata.normalize("NFD", "José_Muller"), 0)):
        entries, _ = evaluated.run(score, seen={seen}, title="")
        assert entries["mac"]["identities_seen_in_training"] == expected
