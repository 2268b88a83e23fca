"""Test that damage does not affect other records, and that the order of a directory listing does not matter.

After a damaged record, every other record keeps its own picture, identity, name and number. Every picture here is
different, so that a record is recognised by its contents. The damage is at the start, in the middle and at the end,
alone and with neighbours, in every kind of source from which stores are made.
"""

import ast
import json
import os
import pickle
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from fvjax import verify
from fvjax.data import images, stores
from fvjax.data.alignment import geometry
from fvjax.data.stores import shards
from tests.test_images import file_bytes, smooth_face
from tests.test_prepare import cfp, fails, put, run  # noqa: F401 (cfp is a fixture)
from tests.test_recordio import convert, files, interrupted, pack, write_rec
from tests.test_tfds_source import IMAGE, dataset

JPEGS = [images.encode(smooth_face(i), 60) for i in range(12)]
BROKEN = JPEGS[0][:400]
# the indices of the broken ones among twelve items; a shard has four items
WHICH = {
    "the first": {0},
    "the first of a shard": {4},
    "in the middle": {5},
    "the last of a shard": {7},
    "the last": {11},
    "neighbours": {1, 2},
    "across shards": {3, 4},
    "in every shard": {0, 6, 11},
    "a whole shard": {4, 5, 6, 7},
    "all but one": set(range(12)) - {9},
}


def holds(made: stores.Store, expected: list[tuple[bytes, str, str]]) -> None:
    """Assert that the store has exactly these (picture, identity, source), in its index, its records and its counts."""
    assert len(made) == len(expected)
    found = [made.record(i) for i in range(len(made))]
    assert [made.jpeg(i) for i in range(len(made))] == [picture for picture, _, _ in expected]
    names = [name for _, name, _ in expected]
    assert [made.identities[label] for label in made.labels] == names
    assert [made.identities[record["identity"]] for record in found] == names, "by the record itself"
    sources = [source for _, _, source in expected]
    assert made.sources == sources
    assert [record["source"].decode() for record in found] == sources
    times = Counter(names)
    counts = made.manifest["counts"]
    assert (counts["images"], counts["identities"]) == (len(expected), len(times))
    assert made.manifest["single_image_identities"] == sum(n == 1 for n in times.values())
    assert counts["rejected"] == len(made.manifest["rejected"])


# ---- RecordIO

OWNERS = [7, 3, 3, 9, 7, 1, 1, 9, 5, 3, 7, 5]


def harmed(folder: Path, which: set[int], kind: str) -> None:
    """Write a .rec of the twelve pictures, some of them damaged in the given way."""
    owners: list[float] = [0.5 if kind == "label" and i in which else float(n) for i, n in enumerate(OWNERS)]
    pictures = [BROKEN if kind == "picture" and i in which else jpeg for i, jpeg in enumerate(JPEGS)]
    starts = write_rec(folder, [(i, pack(*record, i)) for i, record in enumerate(zip(owners, pictures))])
    if kind == "frame":
        data = bytearray((folder / "train.rec").read_bytes())
        for i in which:
            data[starts[i]] ^= 1  # of the magic number
        (folder / "train.rec").write_bytes(data)
        (folder / "train.idx").unlink()  # the .idx would list every lost record separately


@pytest.mark.parametrize("kind", ["picture", "frame", "label"])
@pytest.mark.parametrize("which", WHICH)
def test_records_of_a_rec_keep_what_is_theirs(tmp_path, capsys, monkeypatch, which, kind):
    monkeypatch.setattr(shards, "SHARD_RECORDS", 4)
    harmed(tmp_path / "src", WHICH[which], kind)
    made = convert(capsys, tmp_path / "src", tmp_path / "s", "--val=0")
    left = [i for i in range(12) if i not in WHICH[which]]
    numbers = {i: i for i in left}
    if kind == "frame":  # damaged neighbours form one stretch of damage, with one number
        gone = sorted(WHICH[which])
        numbers = {i: i - sum(1 for n in gone if n < i and n - 1 in gone) for i in left}
    holds(made, [(JPEGS[i], str(OWNERS[i]), f"train.rec#{numbers[i]}") for i in left])
    rejected = made.manifest["rejected"]
    assert len(rejected) == (12 - len(left) if kind != "frame" else len([n for n in gone if n - 1 not in gone]))
    assert [r["record"] for r in rejected] == sorted({r["record"] for r in rejected}), "in their order, each once"
    assert not {r["record"] for r in rejected} & set(numbers.values())
    assert made.manifest["recordio"]["read"] == len(left) + len(rejected)


@pytest.mark.parametrize("which", ["the first", "across shards", "in every shard"])
def test_training_and_validation_keep_theirs(tmp_path, capsys, monkeypatch, which):
    """Together, the two stores have all undamaged records with the same identity numbers, and each rejection once."""
    monkeypatch.setattr(shards, "SHARD_RECORDS", 2)
    harmed(tmp_path / "src", WHICH[which], "picture")
    made = convert(capsys, tmp_path / "src", tmp_path / "s", "--val=0.5", "--seed=1")
    both = [made]
    if (tmp_path / "s/val").is_dir():
        both.append(stores.Store(tmp_path / "s/val", "val"))
    left = sorted(set(range(12)) - WHICH[which])
    numbers = [[int(source.partition("#")[2]) for source in one.sources] for one in both]
    assert sorted(n for some in numbers for n in some) == left
    for one, some in zip(both, numbers):
        holds(one, [(JPEGS[i], str(OWNERS[i]), f"train.rec#{i}") for i in some])
        assert one.identities == ["1", "3", "5", "7", "9"]
    rejected = [r["record"] for one in both for r in one.manifest["rejected"]]
    assert sorted(rejected) == sorted(WHICH[which])


def test_what_a_killed_conversion_rejected_stays_rejected(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_RECORDS", 4)
    harmed(tmp_path / "src", {1, 6, 8}, "picture")
    convert(capsys, tmp_path / "src", tmp_path / "undisturbed")
    for finished in (1, 2):
        interrupted(tmp_path, capsys, monkeypatch, finished)
        made = convert(capsys, tmp_path / "src", tmp_path / "s")
        holds(made, [(JPEGS[i], str(OWNERS[i]), f"train.rec#{i}") for i in (int(x[10:]) for x in made.sources)])
        assert files(tmp_path / "s") == files(tmp_path / "undisturbed")
        shutil.rmtree(tmp_path / "s")


# ---- folders

NAMES = [f"{who}/{i:02d}.jpg" for i, who in enumerate(sorted(f"id{n}" for n in OWNERS))]
SPOILED = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:400]),
    "empty": lambda path: path.write_bytes(b""),
    "no picture": lambda path: path.rename(path.with_suffix(".txt")),
    "a broken link": lambda path: (path.unlink(), path.symlink_to("nowhere.jpg")),
}


def folder(root: Path, which: set[int], spoil) -> Path:
    for i, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(JPEGS[i])
        if i in which:
            spoil(root / name)
    return root


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("kind", SPOILED)
def test_files_of_a_folder_keep_what_is_theirs(tmp_path, capsys, which, kind):
    src = folder(tmp_path / "src", WHICH[which], SPOILED[kind])
    code, out, _ = run(capsys, "folder", f"--src={src}", f"--dst={tmp_path / 's'}")
    assert code == 0
    assert f"{len(WHICH[which])} files rejected" in out
    made = stores.Store(tmp_path / "s")
    holds(made, [(JPEGS[i], n[:3], n) for i, n in enumerate(NAMES) if i not in WHICH[which]])
    gone = [NAMES[i].replace(".jpg", ".txt" if kind == "no picture" else ".jpg") for i in sorted(WHICH[which])]
    assert [r["file"] for r in made.manifest["rejected"]] == gone
    assert sum(made.manifest["rejected_by_reason"].values()) == len(gone)
    (tmp_path / "out").mkdir()
    fails(capsys, tmp_path / "out/s", gone[0], "folder", f"--src={src}", "--policy=fail")


# ---- photographs that are aligned


def five(i: int) -> np.ndarray:
    return geometry.TEMPLATE * (0.8 + 0.02 * i) + [10 + i, 20 - i]


@pytest.mark.parametrize("policy", ["drop", "fallback"])
@pytest.mark.parametrize("which", ["the first", "in the middle", "the last", "neighbours", "in every shard"])
def test_crops_are_of_their_own_photographs(tmp_path, capsys, which, policy):
    """Some photographs are broken and some have no face; landmarks are given, so no detector is needed."""
    broken = WHICH[which]
    faceless = {(i + 3) % 12 for i in broken}
    src, wanted, lines = tmp_path / "src", [], []
    for i, name in enumerate(NAMES):
        picture = smooth_face(i, 140)
        data = file_bytes(Image.fromarray(picture), "PNG")
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_bytes(data[:300] if i in broken else data)
        if i not in faceless:
            lines.append(name + "".join(f"\t{v}" for v in five(i).ravel()))
        crop = geometry.centre(picture) if i in faceless else geometry.warp(picture, five(i))
        if i not in broken and (i not in faceless or policy == "fallback"):
            wanted.append((images.encode(crop), name[:3], name))
    (tmp_path / "points.tsv").write_text("\n".join(lines))
    flags = f"--landmarks={tmp_path / 'points.tsv'}", f"--policy={policy}", "--workers=1"
    code, _, err = run(capsys, "folder", f"--src={src}", f"--dst={tmp_path / 's'}", *flags)
    assert (code, err) == (0, "")
    made = stores.Store(tmp_path / "s")
    holds(made, wanted)
    alone = faceless - broken
    gone = broken | (alone if policy == "drop" else set())
    assert [r["file"] for r in made.manifest["rejected"]] == [NAMES[i] for i in sorted(gone)]
    report = made.manifest["alignment"]
    assert (report["images"], report["unreadable"], report["no_points"]) == (12, len(broken), len(alone))
    assert report["aligned"] == 12 - len(broken) - len(alone)
    assert report["no_points_files"] == [NAMES[i] for i in sorted(alone)]
    assert report["several_faces"] is None


# ---- benchmarks: a pair shows the images that its protocol names

GENUINE = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)]
IMPOSTOR = [(0, 3), (2, 5), (4, 7), (6, 9), (8, 11), (10, 1)]


def shows(made: stores.Store, name: str, expected: list[tuple[int, int, bool, int]], pictures=JPEGS) -> None:
    pairs = stores.read_pairs(made.path, name)
    found = zip(pairs.a, pairs.b, pairs.same.tolist(), pairs.fold.tolist())
    number = {jpeg: i for i, jpeg in enumerate(pictures)}
    assert [(number[made.jpeg(a)], number[made.jpeg(b)], same, fold) for a, b, same, fold in found] == expected
    benchmark = made.manifest["benchmarks"][name]
    assert benchmark["pairs"] == len(expected)
    assert benchmark["genuine"] == sum(same for _, _, same, _ in expected)
    assert benchmark["impostor"] == sum(not same for _, _, same, _ in expected)


def protocol(folds: int) -> list[tuple[int, int, bool, int]]:
    each = len(GENUINE) // folds
    return [
        (*pair, kind is GENUINE, fold)
        for fold in range(folds)
        for kind in (GENUINE, IMPOSTOR)
        for pair in kind[fold * each : (fold + 1) * each]
    ]


@pytest.mark.parametrize("which", ["the first", "in the middle", "the last", "neighbours", "in every shard"])
@pytest.mark.parametrize("kind", ["cut short", "missing"])
def test_pairs_of_lfw_show_what_they_name(tmp_path, capsys, which, kind):
    people = "Ann", "Bob", "Cid", "Dan", "Eve", "Fay"
    for i, jpeg in enumerate(JPEGS):
        file = tmp_path / "lfw" / people[i // 2] / f"{people[i // 2]}_{i % 2 + 1:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if i not in WHICH[which] or kind == "cut short":
            file.write_bytes(BROKEN if i in WHICH[which] else jpeg)
    lines = ["2\t3"]
    for a, b, same, _ in protocol(2):
        second = f"{b % 2 + 1}" if same else f"{people[b // 2]}\t{b % 2 + 1}"
        lines.append(f"{people[a // 2]}\t{a % 2 + 1}\t{second}")
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    command = "lfw", f"--src={tmp_path / 'lfw'}", f"--pairs={tmp_path / 'pairs.txt'}", "--policy=drop"
    assert run(capsys, *command, f"--dst={tmp_path / 's'}")[0] == 0
    made, gone = stores.Store(tmp_path / "s", "test"), WHICH[which]
    holds(
        made,
        [
            (jpeg, people[i // 2], f"{people[i // 2]}/{people[i // 2]}_{i % 2 + 1:04d}.jpg")
            for i, jpeg in enumerate(JPEGS)
            if i not in gone
        ],
    )
    left = [pair for pair in protocol(2) if not gone & set(pair[:2])]
    shows(made, "lfw", left)
    benchmark = made.manifest["benchmarks"]["lfw"]
    assert (benchmark["failure_to_acquire"], benchmark["pairs_dropped"]) == (len(gone), 12 - len(left))
    assert benchmark["fold_sizes"] == [sum(pair[3] == fold for pair in left) for fold in (0, 1)]


def test_what_one_of_two_benchmarks_lacks_is_counted_there_alone(cfp, tmp_path, capsys):  # noqa: F811
    """A missing profile image belongs to no frontal pair."""
    split = tmp_path / "protocol/Split/FP/01"
    (split / "same.txt").write_text("2,1\n1,2\n3,3\n")  # 001, 001, 002
    (tmp_path / "cfp/001/profile/02.jpg").unlink()  # of one genuine pair and of the impostor pair
    (split / "diff.txt").write_text("4,2\n4,1\n")
    assert run(capsys, *cfp, f"--dst={tmp_path / 's'}", "--policy=drop")[0] == 0
    made = stores.Store(tmp_path / "s", "test")
    benchmarks = made.manifest["benchmarks"]
    keys = "failure_to_acquire", "pairs_dropped", "pairs", "genuine", "impostor"
    assert [benchmarks["ff"][key] for key in keys] == [0, 0, 2, 1, 1]
    assert [benchmarks["fp"][key] for key in keys] == [1, 2, 3, 2, 1]
    pairs = stores.read_pairs(made.path, "fp")
    assert [(made.sources[a], made.sources[b]) for a, b in zip(pairs.a, pairs.b)] == [
        ("001/frontal/02.jpg", "001/profile/01.jpg"),
        ("002/frontal/01.jpg", "002/profile/01.jpg"),
        ("002/frontal/02.jpg", "001/profile/01.jpg"),
    ]
    for i, source in enumerate(made.sources):
        assert made.jpeg(i) == (tmp_path / "cfp" / source).read_bytes()


@pytest.mark.parametrize("which", ["the first", "in the middle", "the last", "neighbours", "in every shard"])
def test_pairs_of_a_bin_show_what_stands_there(tmp_path, capsys, which):
    gone = WHICH[which]
    pictures = [BROKEN + bytes([i]) if i in gone else jpeg for i, jpeg in enumerate(JPEGS)]
    entries = [pictures[i] for pair in protocol(2) for i in pair[:2]]
    same = [pair[2] for pair in protocol(2)]
    (tmp_path / "x.bin").write_bytes(pickle.dumps((entries, same), 4))
    command = "bin", f"--src={tmp_path / 'x.bin'}", "--name=x", "--folds=2", "--policy=drop"
    assert run(capsys, *command, f"--dst={tmp_path / 's'}")[0] == 0
    made = stores.Store(tmp_path / "s", "test")
    firsts = {i: entries.index(pictures[i]) for i in range(12)}  # a picture's source is its first occurrence
    order = sorted((i for i in range(12) if i not in gone), key=firsts.get)
    # an identity is numbered by the first of the pictures that its genuine pairs connect, without counting repetitions
    rank = {i: n for n, i in enumerate(sorted(range(12), key=firsts.get))}
    holds(
        made,
        [(JPEGS[i], f"derived {min(rank[i], rank[i ^ 1]):06d}", f"x.bin#{firsts[i]}") for i in order],
    )
    left = [pair for pair in protocol(2) if not gone & set(pair[:2])]
    shows(made, "x", left)
    benchmark = made.manifest["benchmarks"]["x"]
    assert (benchmark["failure_to_acquire"], benchmark["pairs_dropped"]) == (len(gone), 12 - len(left))
    assert (benchmark["images_read"], benchmark["images_repeated"]) == (24, 12 - len(gone))
    times = [i for i, entry in enumerate(entries) if entry.startswith(BROKEN) and entry not in JPEGS]
    assert [r["file"] for r in made.manifest["rejected"]] == [f"x.bin#{i}" for i in times], "each time it is named"
    assert benchmark["genuine_by_fold"] == [sum(p[2] and p[3] == fold for p in left) for fold in (0, 1)]


# ---- TFDS


@pytest.mark.parametrize("which", ["the first", "in the middle", "the last", "neighbours", "in every shard"])
def test_records_of_tfds_keep_what_is_theirs(tmp_path, capsys, which):
    for i, jpeg in enumerate(JPEGS):
        (tmp_path / f"{i}.jpg").write_bytes(BROKEN if i in WHICH[which] else jpeg)
    rows = [{"image": tmp_path / f"{i}.jpg", "who": f"id{owner}"} for i, owner in enumerate(OWNERS)]
    src = dataset(tmp_path / "d", {"image": IMAGE, "who": tfds.features.Text()}, rows)
    assert run(capsys, "folder", src, f"--dst={tmp_path / 's'}")[0] == 0
    made = stores.Store(tmp_path / "s")
    order = sorted(range(12), key=lambda i: (OWNERS[i], i))
    left = [i for i in order if i not in WHICH[which]]
    holds(made, [(JPEGS[i], f"id{OWNERS[i]}", f"train#{i}") for i in left])
    gone = [i for i in order if i in WHICH[which]]
    assert [r["file"] for r in made.manifest["rejected"]] == [f"train#{i}" for i in gone]


# ---- the order in which a file system lists things


class Listing:
    """The result of os.scandir: an iterator that can be closed."""

    def __init__(self, entries: list):
        self._entries = iter(entries)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._entries)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def close(self):
        pass


@pytest.fixture(params=["as it is", "backwards", "shuffled"])
def listed(request, monkeypatch):
    """Return the parameter's name, with every directory listing in another order."""

    def mixed(entries, key):
        entries = sorted(entries, key=key)
        if request.param == "backwards":
            entries.reverse()
        elif request.param == "shuffled":
            random.Random(len(entries)).shuffle(entries)
        return entries

    scandir, listdir, iterdir, glob, rglob = os.scandir, os.listdir, Path.iterdir, Path.glob, Path.rglob
    if request.param != "as it is":
        monkeypatch.setattr(os, "scandir", lambda *a: Listing(mixed(scandir(*a), lambda entry: entry.name)))
        monkeypatch.setattr(os, "listdir", lambda *a: mixed(listdir(*a), str))
        monkeypatch.setattr(Path, "iterdir", lambda p: iter(mixed(iterdir(p), str)))
        monkeypatch.setattr(Path, "glob", lambda p, x: iter(mixed(glob(p, x), str)))
        monkeypatch.setattr(Path, "rglob", lambda p, x: iter(mixed(rglob(p, x), str)))
    return request.param


def test_a_folder_is_the_same_store_however_it_is_listed(tmp_path, capsys, listed):
    names = [f"{who}/{sub}{i}.jpg" for who in "bac" for sub in ("", "y/", "x/", "x/z/", "x-/") for i in (2, 1)]
    for i, name in enumerate(names):
        put(tmp_path / "src" / name, i)
    assert run(capsys, "folder", f"--src={tmp_path / 'src'}", f"--dst={tmp_path / 's'}", "--limit=2")[0] == 0
    made = stores.Store(tmp_path / "s")
    assert made.identities == ["a", "b"]
    folders = ("", "x/", "x-/", "x/z/", "y/")  # sorted by the whole path, in which "-" comes before "/"
    assert made.sources == [f"{who}/{sub}{i}.jpg" for who in "ab" for sub in folders for i in (1, 2)]
    assert all(made.jpeg(i) == (tmp_path / "src" / source).read_bytes() for i, source in enumerate(made.sources))


def test_folds_of_cfp_are_numbered_by_their_names(cfp, tmp_path, capsys, listed):  # noqa: F811
    for fold, same, diff in (("02", "3,4\n", "2,3\n"), ("10", "1,2\n", "1,4\n")):
        folder = tmp_path / "protocol/Split/FF" / fold
        folder.mkdir()
        (folder / "same.txt").write_text(same)
        (folder / "diff.txt").write_text(diff)
    assert run(capsys, *cfp, f"--dst={tmp_path / 's'}")[0] == 0
    made = stores.Store(tmp_path / "s", "test")
    pairs = stores.read_pairs(made.path, "ff")
    short = [f"{source[:3]}{source[-6:-4]}" for source in made.sources]
    found = [f"{short[a]} {short[b]}" for a, b in zip(pairs.a, pairs.b)]
    assert found == ["00101 00102", "00101 00201", "00201 00202", "00102 00201", "00101 00102", "00101 00202"]
    assert pairs.fold.tolist() == [0, 0, 1, 1, 2, 2]


def test_versions_and_rows_are_told_in_order(tmp_path, capsys, monkeypatch, listed):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    (tmp_path / "0.jpg").write_bytes(JPEGS[0])
    rows = [{"image": tmp_path / "0.jpg", "label": "Ann"}]
    for version in ("0.1.2", "0.1.0", "0.1.1"):
        dataset(tmp_path / "tfds/mine" / version, {"image": IMAGE, "label": tfds.features.Text()}, rows)
    (tmp_path / "out").mkdir()
    told = "choose one of tfds:mine:0.1.0, tfds:mine:0.1.1, tfds:mine:0.1.2"
    fails(capsys, tmp_path / "out/s", told, "folder", "--src=tfds:mine")
    put(tmp_path / "a.jpg")
    for row in ("vit", "mllm", "resnet"):
        (tmp_path / "run" / row).mkdir(parents=True)
        (tmp_path / "run" / row / "config.json").write_text(json.dumps({"trainable": []}))
    face = str(tmp_path / "a.jpg")
    assert verify.main([face, face, f"--model={tmp_path / 'run'}"]) == 2
    paths = ", ".join(str(tmp_path / "run" / row) for row in ("mllm", "resnet", "vit"))
    assert f"holds several runs; give one of them: {paths}" in capsys.readouterr().err


def test_a_conversion_goes_on_however_its_folder_is_listed(tmp_path, capsys, monkeypatch, listed):
    monkeypatch.setattr(shards, "SHARD_RECORDS", 3)
    harmed(tmp_path / "src", {4}, "picture")
    convert(capsys, tmp_path / "src", tmp_path / "undisturbed")
    interrupted(tmp_path, capsys, monkeypatch, 2)
    convert(capsys, tmp_path / "src", tmp_path / "s")
    assert files(tmp_path / "s") == files(tmp_path / "undisturbed")


LISTS = {"iterdir", "glob", "rglob", "scandir", "listdir", "walk"}
ORDERS = {"sorted", "any", "max", "len", "set"}
# calls whose order does not matter, or that are sorted later
IN_ANY_ORDER = (
    'self.path.glob("*.orbax-checkpoint-tmp")',  # each is removed
    "self.path.iterdir()",  # step numbers, of which the largest or a given one is used
    '(work / "done").glob("*.tmp")',  # each is removed
    "os.scandir(self._root / folder)",  # sorted in the next line
    "os.walk(path)",  # what is found is returned sorted
)


def test_whatever_lists_a_folder_puts_it_in_order():
    """Every call in the code that lists a folder must sort the result or be listed above."""
    root, unordered = Path(__file__).resolve().parents[1], []
    for folder in ("fvjax", "weights_convert", "launch"):
        for file in sorted((root / folder).rglob("*.py")):
            text = file.read_text()
            above = {child: node for node in ast.walk(ast.parse(text)) for child in ast.iter_child_nodes(node)}
            for node in above:
                if not (
                    isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LISTS
                ):
                    continue
                calls, up = [], above.get(node)
                while up is not None and not isinstance(up, ast.stmt):
                    calls += [ast.unparse(up.func)] if isinstance(up, ast.Call) else []
                    up = above.get(up)
                told = ast.get_source_segment(text, node)
                if not ORDERS & set(calls) and told not in IN_ANY_ORDER:
                    unordered.append(f"{file.relative_to(root)}:{node.lineno}: {told}")
    assert unordered == []
