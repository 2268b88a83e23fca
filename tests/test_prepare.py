"""Test the preparation of folders, LFW and CFP: small synthetic sources for every error, real faces for the counts."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fvjax.data import images, prepare, stores
from fvjax.data.readers import benchmark_lists
from tests.test_images import file_bytes, smooth_face


def put(path, seed=0, size=112):
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if path.suffix == ".png" else "JPEG"
    path.write_bytes(file_bytes(Image.fromarray(smooth_face(seed, size)), kind))


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = prepare.main([str(x) for x in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def fails(capsys, dst, message, *arguments):
    """Assert that the command exits with 2, prints one line with ``message``, and leaves nothing."""
    before = sorted(dst.parent.iterdir())
    code, out, err = run(capsys, *arguments, f"--dst={dst}")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out, len(errors)) == (2, "", 1)
    assert message in errors[0]
    assert err.rstrip().endswith(errors[0])
    assert sorted(dst.parent.iterdir()) == before


# ---- folder


@pytest.fixture
def people(tmp_path):
    src = tmp_path / "people"
    for i, name in enumerate(["bob/1.jpg", "bob/deep/er/2.png", "amy/b.jpg", "amy/a.JPG", "cat/1.jpg"]):
        put(src / name, i)
    return src


def test_folder(people, tmp_path, capsys):
    code, out, _ = run(capsys, "folder", f"--src={people}", f"--dst={tmp_path / 's'}")
    assert code == 0
    assert "5 images of 3 identities, split 'train'" in out
    assert "1 identities have a single image" in out
    s = stores.Store(tmp_path / "s")
    assert s.identities == ["amy", "bob", "cat"]
    assert s.sources == ["amy/a.JPG", "amy/b.jpg", "bob/1.jpg", "bob/deep/er/2.png", "cat/1.jpg"]
    assert s.labels.tolist() == [0, 0, 1, 1, 2]
    assert s.jpeg(2) == (people / "bob/1.jpg").read_bytes(), "a fitting JPEG must be kept as it is"
    assert np.abs(s.image(3).astype(int) - smooth_face(1)).mean() < 1


def test_folder_twice_gives_the_same_data_hash(people, tmp_path, capsys):
    hashes = set()
    for name in ("s", "t"):
        assert run(capsys, "folder", f"--src={people}", f"--dst={tmp_path / name}")[0] == 0
        hashes.add(stores.Store(tmp_path / name).data_hash)
    assert len(hashes) == 1


def test_folder_lists_what_it_leaves_out(people, tmp_path, capsys):
    (people / "amy/notes.txt").write_text("x")
    (people / "cat/broken.jpg").write_bytes((people / "cat/1.jpg").read_bytes()[:500])
    (people / "cat/no.png").write_bytes(b"")
    code, out, _ = run(capsys, "folder", f"--src={people}", f"--dst={tmp_path / 's'}")
    assert code == 0
    assert "3 files rejected, listed in manifest.json; first: amy/notes.txt: not a picture: its suffix is" in out
    assert "by reason: 2 cannot be read as an image, 1 not a picture" in out
    rejected = stores.Store(tmp_path / "s").manifest["rejected"]
    assert [r["file"] for r in rejected] == ["amy/notes.txt", "cat/broken.jpg", "cat/no.png"]
    assert "truncated" in rejected[1]["reason"].lower()


def test_folder_with_a_name_that_is_not_utf8(people, tmp_path, capsys):
    shutil.copy(people / "bob/1.jpg", os.fsencode(people / "bob") + b"/\xff.jpg")
    assert run(capsys, "folder", f"--src={people}", f"--dst={tmp_path / 's'}")[0] == 0
    (rejected,) = stores.Store(tmp_path / "s").manifest["rejected"]
    assert rejected["file"] == "bob/\\udcff.jpg"


def test_folder_exclude_and_limit(people, tmp_path, capsys):
    (tmp_path / "leave.tsv").write_text("# id\tname\namy\tAmy A.\n\n")
    common = "folder", f"--src={people}"
    assert run(capsys, *common, f"--dst={tmp_path / 's'}", f"--exclude={tmp_path / 'leave.tsv'}")[0] == 0
    assert stores.Store(tmp_path / "s").identities == ["bob", "cat"]
    assert run(capsys, *common, f"--dst={tmp_path / 't'}", "--limit=2")[0] == 0
    assert stores.Store(tmp_path / "t").identities == ["amy", "bob"]


@pytest.mark.parametrize(("excluded", "kept"), [("amy", ["bob"]), ("cat", ["amy"])])
def test_folder_limit_counts_only_what_is_not_excluded(people, tmp_path, capsys, excluded, kept):
    """The limit is applied last, so a name that lies beyond it may be excluded as well."""
    (tmp_path / "leave.tsv").write_text(f"{excluded}\n")
    flags = f"--exclude={tmp_path / 'leave.tsv'}", "--limit=1"
    assert run(capsys, "folder", f"--src={people}", f"--dst={tmp_path / 's'}", *flags)[0] == 0
    assert stores.Store(tmp_path / "s").identities == kept


def test_folder_resize(people, tmp_path, capsys):
    put(people / "cat/2.jpg", 9, 224)
    assert run(capsys, "folder", f"--src={people}", f"--dst={tmp_path / 's'}", "--resize")[0] == 0
    assert stores.Store(tmp_path / "s").image(5).shape == (112, 112, 3)


def test_folder_mistakes(people, tmp_path, capsys):
    dst = tmp_path / "out" / "s"
    dst.parent.mkdir()
    common = "folder", f"--src={people}"
    fails(capsys, dst, "nowhere: no such folder", "folder", f"--src={tmp_path / 'nowhere'}")
    fails(capsys, dst, "no such file", *common, f"--exclude={tmp_path / 'none.tsv'}")
    (tmp_path / "leave.tsv").write_text("amy\nzoe\n")
    fails(capsys, dst, "'zoe' (and 0 more) is no folder of", *common, f"--exclude={tmp_path / 'leave.tsv'}")
    (tmp_path / "leave.tsv").write_text("# nothing\n")
    fails(capsys, dst, "leave.tsv: empty", *common, f"--exclude={tmp_path / 'leave.tsv'}")
    (tmp_path / "leave.tsv").write_bytes(b"\xff\xfe\x00")
    fails(capsys, dst, "not a text file", *common, f"--exclude={tmp_path / 'leave.tsv'}")
    fails(capsys, dst, "--limit=0", *common, "--limit=0")
    fails(capsys, dst, "not one usable image", "folder", f"--src={people / 'cat'}")
    put(people / "cat/2.jpg", 9, 224)
    fails(capsys, dst, "cat/2.jpg: 224x224, expected 112x112; align it, or prepare with --resize", *common)
    dst.mkdir()
    fails(capsys, dst, "s: exists already", *common)


def test_unknown_flags_and_commands_exit_with_2(capsys):
    for arguments in (["folder", "--src=a", "--dst=b", "--excl=c"], ["recordio"], [], ["lfw", "--src=a", "--dst=b"]):
        with pytest.raises(SystemExit) as exit_:
            prepare.main(arguments)
        assert exit_.value.code == 2


def test_the_command_line_itself(people, tmp_path):
    command = [sys.executable, "-m", "fvjax.data.prepare", "folder", f"--src={people}", f"--dst={tmp_path / 's'}"]
    done = [subprocess.run(command, capture_output=True, text=True, timeout=120) for _ in range(2)]
    assert [d.returncode for d in done] == [0, 2]
    assert "5 images of 3 identities" in done[0].stdout
    assert done[1].stderr.strip().splitlines() == [
        f"error: {tmp_path / 's'}: exists already; stores are never overwritten, remove it or choose another --dst"
    ]


# ---- lfw

LFW = "2\t1\nAnn_A\t1\t2\nAnn_A\t1\tBob_B\t1\nCid_C\t1\t2\nBob_B\t1\tCid_C\t2\n"


@pytest.fixture
def lfw(tmp_path):
    for i, name in enumerate(["Ann_A/Ann_A_0001", "Ann_A/Ann_A_0002", "Bob_B/Bob_B_0001"]):
        put(tmp_path / "lfw" / f"{name}.jpg", i)
    for i in (1, 2, 3):  # the third is in no pair
        put(tmp_path / "lfw" / f"Cid_C/Cid_C_000{i}.jpg", 3 + i)
    (tmp_path / "pairs.txt").write_text(LFW)
    return "lfw", f"--src={tmp_path / 'lfw'}", f"--pairs={tmp_path / 'pairs.txt'}"


def test_lfw(lfw, tmp_path, capsys):
    code, out, _ = run(capsys, *lfw, f"--dst={tmp_path / 's'}")
    assert code == 0
    assert "benchmark lfw: 4 pairs (2 genuine, 2 impostor) in 2 folds; 0 images not acquired, 0 pairs dropped" in out
    s = stores.Store(tmp_path / "s", "test")
    assert len(s) == 5
    pairs = stores.read_pairs(tmp_path / "s", "lfw")
    assert [(s.sources[a][6:-4], s.sources[b][6:-4]) for a, b in zip(pairs.a, pairs.b)] == [
        ("Ann_A_0001", "Ann_A_0002"),
        ("Ann_A_0001", "Bob_B_0001"),
        ("Cid_C_0001", "Cid_C_0002"),
        ("Bob_B_0001", "Cid_C_0002"),
    ]
    assert pairs.same.tolist() == [True, False, True, False]
    assert pairs.fold.tolist() == [0, 0, 1, 1]
    assert [s.identities[i] for i in pairs.identity_b] == ["Ann_A", "Bob_B", "Cid_C", "Cid_C"]


def test_lfw_missing_and_broken_images(lfw, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    dst = tmp_path / "out" / "s"
    missing = tmp_path / "lfw/Ann_A/Ann_A_0002.jpg"
    missing.unlink()
    fails(capsys, dst, "Ann_A_0002.jpg: missing, and 0 more of the 5 images", *lfw)
    fails(capsys, dst, "--policy=drop", *lfw, "--policy=fail")
    fails(capsys, dst, "benchmark lfw: fold 1 of 2 has no genuine pairs", *lfw, "--policy=drop")
    one_fold = "1\t2\nAnn_A\t1\t2\nCid_C\t1\t2\nAnn_A\t1\tBob_B\t1\nBob_B\t1\tCid_C\t2\n"
    (tmp_path / "pairs.txt").write_text(one_fold)
    code, out, _ = run(capsys, *lfw, f"--dst={dst}", "--policy=drop")
    assert code == 0
    assert "3 pairs (1 genuine, 2 impostor) in 1 folds; 1 images not acquired, 1 pairs dropped (policy drop)" in out
    benchmark = stores.Store(dst, "test").manifest["benchmarks"]["lfw"]
    assert benchmark["fold_sizes"] == [3]
    assert (benchmark["policy"], benchmark["failure_to_acquire"], benchmark["pairs_dropped"]) == ("drop", 1, 1)

    put(missing)
    missing.write_bytes(missing.read_bytes()[:500])
    fails(capsys, dst.with_name("t"), "Ann_A/Ann_A_0002.jpg: cannot be read as an image", *lfw)
    assert run(capsys, *lfw, f"--dst={dst.with_name('t')}", "--policy=drop")[0] == 0
    manifest = stores.Store(dst.with_name("t"), "test").manifest
    assert (manifest["counts"]["rejected"], manifest["benchmarks"]["lfw"]["failure_to_acquire"]) == (1, 1)

    (tmp_path / "lfw/Bob_B/Bob_B_0001.jpg").unlink()
    missing.unlink()
    (tmp_path / "pairs.txt").write_text(LFW)
    fails(capsys, dst.with_name("u"), "no pair of fold 1 of lfw is left", *lfw, "--policy=drop")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "pairs.txt: empty"),
        ("ten 1\n", "pairs.txt:1: expected 'folds pairs'"),
        (LFW.replace("2\t1\n", "10\t300\n", 1), "pairs.txt: 4 pairs, but its first line promises 2 x 10 x 300"),
        (LFW.replace("Ann_A\t1\t2", "Ann_A\t1\tx"), "pairs.txt:2: expected a pair of the kind same: 'name i j'"),
        (LFW.replace("Ann_A\t1\t2", "Ann_A\t1\tBob_B\t1"), "pairs.txt:2: expected a pair of the kind same"),
        (LFW.replace("Bob_B\t1\tC", "Bob_B\t1\t2\tC"), "pairs.txt:5: expected a pair of the kind different"),
        (
            LFW.replace("Ann_A\t1\tBob_B", "Ann_A\t1\tAnn_A"),
            "pairs.txt:3: 'Ann_A\\t1\\tAnn_A\\t1' is among the different",
        ),
    ],
)
def test_lfw_bad_protocols(lfw, tmp_path, capsys, text, message):
    (tmp_path / "pairs.txt").write_text(text)
    (tmp_path / "out").mkdir()
    fails(capsys, tmp_path / "out" / "s", message, *lfw)


def test_lfw_development_pairs_are_one_fold(tmp_path):
    (tmp_path / "pairsDevTest.txt").write_text("1\nAnn_A\t1\t2\nAnn_A\t1\tBob_B\t1\n")
    assert [p.fold for p in benchmark_lists.read_lfw(tmp_path / "pairsDevTest.txt")] == [0, 0]


# ---- cfp


@pytest.fixture
def cfp(tmp_path):
    """Return two people with two frontal and two profile images each, in one fold."""
    lists = {"F": "frontal", "P": "profile"}
    for letter, view in lists.items():
        files = [f"{who}/{view}/{i:02d}.jpg" for who in ("001", "002") for i in (1, 2)]
        for i, file in enumerate(files):
            put(tmp_path / "cfp" / file, i + 10 * (letter == "P"))
        (tmp_path / "protocol").mkdir(exist_ok=True)
        text = "".join(f"{i} ../Data/Images/{file}\n" for i, file in enumerate(files, 1))
        (tmp_path / "protocol" / f"Pair_list_{letter}.txt").write_text(text)
    for kind, same, diff in (("FF", "1,2\n", "1,3\n"), ("FP", "2,1\n", "4,2")):
        split = tmp_path / "protocol" / "Split" / kind / "01"
        split.mkdir(parents=True)
        (split / "same.txt").write_text(same)
        (split / "diff.txt").write_text(diff)
    return "cfp", f"--src={tmp_path / 'cfp'}", f"--protocol={tmp_path / 'protocol'}"


def test_cfp(cfp, tmp_path, capsys):
    assert run(capsys, *cfp, f"--dst={tmp_path / 's'}")[0] == 0
    s = stores.Store(tmp_path / "s", "test")
    assert len(s) == 6, "two of the eight images are in no pair"
    got = {}
    for name in ("ff", "fp"):
        pairs = stores.read_pairs(s.path, name)
        got[name] = [(s.sources[a], s.sources[b], same) for a, b, same in zip(pairs.a, pairs.b, pairs.same.tolist())]
    assert got == {
        "ff": [
            ("001/frontal/01.jpg", "001/frontal/02.jpg", True),
            ("001/frontal/01.jpg", "002/frontal/01.jpg", False),
        ],
        "fp": [
            ("001/frontal/02.jpg", "001/profile/01.jpg", True),
            ("002/frontal/02.jpg", "001/profile/02.jpg", False),
        ],
    }


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("Pair_list_F.txt", "1 nothing\n", "Pair_list_F.txt:1: expected 'index …/ID/view/NN.jpg', got '1 nothing'"),
        ("Pair_list_P.txt", None, "Pair_list_P.txt: no such file"),
        ("Split/FF/01/same.txt", "1,9\n", "FF/01/same.txt:1: expected two indices of the pair lists, got '1,9'"),
        ("Split/FF/01/same.txt", "1\n", "expected two indices"),
        ("Split/FF/01/same.txt", "1,2\n1,3\n", "same.txt:2: '1,3' are identities 001 and 002, in same.txt"),
        ("Split/FP/01/diff.txt", "1,1\n", "'1,1' are identities 001 and 001, in diff.txt"),
        ("Split/FP/01/diff.txt", None, "FP/01/diff.txt: no such file"),
    ],
)
def test_cfp_bad_protocols(cfp, tmp_path, capsys, file, text, message):
    (tmp_path / "out").mkdir()
    path = tmp_path / "protocol" / file
    path.unlink() if text is None else path.write_text(text)
    fails(capsys, tmp_path / "out" / "s", message, *cfp)


def test_cfp_without_folds(cfp, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    shutil.rmtree(tmp_path / "protocol/Split/FP/01")
    fails(capsys, tmp_path / "out" / "s", "Split/FP: no folds here", *cfp)
    shutil.rmtree(tmp_path / "protocol/Split/FP")
    fails(capsys, tmp_path / "out" / "s", "Split/FP: no such folder", *cfp)


# ---- the real faces


def test_real_lfw(real_data, tmp_path, capsys):
    protocol = real_data / "faces/protocol"
    arguments = f"--src={real_data / 'faces/lfw112_pairs'}", f"--pairs={protocol / 'lfw_pairs.txt'}"
    assert run(capsys, "lfw", *arguments, f"--dst={tmp_path / 's'}")[0] == 0
    s = stores.Store(tmp_path / "s", "test")
    assert s.manifest["counts"] == {"images": 7701, "identities": 4281, "rejected": 0}
    benchmark = s.manifest["benchmarks"]["lfw"]
    assert (benchmark["genuine"], benchmark["impostor"], benchmark["fold_sizes"]) == (3000, 3000, [600] * 10)
    # An independent list of the same pairs: fold and label of each, in pairs.txt order.
    reference = np.loadtxt(protocol / "lfw_reference_scores.tsv")
    pairs = stores.read_pairs(s.path, "lfw")
    assert np.array_equal(pairs.fold + 1, reference[:, 0])
    assert np.array_equal(pairs.same, reference[:, 1] == 1)


def test_real_cfp_protocols_and_training_identities(real_data, tmp_path, capsys):
    faces = real_data / "faces"
    for kind in ("FF", "FP"):
        pairs = benchmark_lists.read_cfp(faces / "protocol/cfp", kind)
        same = np.array([p.identity_a == p.identity_b for p in pairs])
        assert np.array_equal(np.bincount([p.fold for p in pairs]), [700] * 10)
        assert same.reshape(10, 2, 350).sum(axis=2).tolist() == [[350, 0]] * 10
        assert {(p.a.split("/")[1], p.b.split("/")[1]) for p in pairs} == {
            ("frontal", "frontal" if kind == "FF" else "profile")
        }
    exclude = faces / "protocol/cfp_lfw_name_overlap.tsv"
    arguments = f"--src={faces / 'cfp112'}", f"--exclude={exclude}", f"--dst={tmp_path / 's'}"
    assert run(capsys, "folder", *arguments)[0] == 0
    manifest = json.loads((tmp_path / "s/manifest.json").read_text())
    # The published set has 18 pictures of these people twice, 28 altogether.
    assert manifest["counts"] == {"images": 4518, "identities": 324, "rejected": 18}
    assert manifest["rejected_by_reason"] == {"copy": 18}
    assert images.decode(stores.Store(tmp_path / "s").jpeg(0), "x").shape == (112, 112, 3)
