"""Test `prepare pairs`: lists of pairs of one's own, what is read, and what every mistake in them is said to be."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from fvjax.config import base, benchmark, typed
from fvjax.data import prepare, stores
from fvjax.data.alignment import flags, geometry
from fvjax.data.readers import benchmark_lists, pair_list
from fvjax.evals import baselines, folds
from fvjax.tasks.benchmarks import Benchmarks, CosineScore
from tests.test_messy_folders import NFC, NFD, put
from tests.test_prepare import fails, lfw, run  # noqa: F401
from tests.test_prepare import put as put_of_size

PICTURES = ("ann/1.jpg", "ann/2 (1).PNG", "Bob, Jr.jpg", "cem.JPEG", f"{NFD}.jpg", "eva.webp")
# Without folds and identities: Ann is the person of two pictures, Eva's picture is in no genuine pair.
LIST = """a,b,same
ann/1.jpg,ann/2 (1).png,1
cem.jpg,"Bob, Jr.jpg",Yes
ann/1.jpg,cem.jpg,0
eva.jpg,ann/2 (1).png,false
"""
KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


@pytest.fixture
def src(tmp_path) -> Path:
    for number, name in enumerate(PICTURES):
        put(tmp_path / "src" / name, number, KINDS[Path(name).suffix.lower()])
    return tmp_path / "src"


@pytest.fixture
def convert(src, tmp_path, capsys):
    """Return a function that converts a list and returns the store and what was printed."""

    def call(text: str | bytes, *more: str):
        number = len(list(tmp_path.glob("mine*")))
        file, dst = tmp_path / f"mine{number}.csv", tmp_path / f"store{number}"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        code, out, err = run(capsys, "pairs", f"--src={src}", f"--pairs={file}", f"--dst={dst}", *more)
        assert code == 0, err
        return stores.Store(dst, "test"), out

    return call


@pytest.fixture
def refused(src, tmp_path, capsys):
    """Return a function that asserts that a list is refused with a message that begins with its name and a line."""

    def call(text: str, message: str, *more: str):
        (tmp_path / "out").mkdir(exist_ok=True)
        file = tmp_path / "mine.csv"
        file.write_text(text)
        fails(capsys, tmp_path / "out/s", f"error: {file}{message}", "pairs", f"--src={src}", f"--pairs={file}", *more)

    return call


def ends_of(store: stores.Store, name: str) -> list[tuple[str, str, bool, int]]:
    pairs = stores.read_pairs(store.path, name)
    files = [[store.sources[i] for i in column.tolist()] for column in (pairs.a, pairs.b)]
    return list(zip(*files, pairs.same.tolist(), pairs.fold.tolist(), strict=True))


# ---- what is read


def test_the_store(convert):
    store, out = convert(LIST, "--name=mine")
    assert ends_of(store, "mine") == [
        ("ann/1.jpg", "ann/2 (1).PNG", True, 0),
        ("cem.JPEG", "Bob, Jr.jpg", True, 0),
        ("ann/1.jpg", "cem.JPEG", False, 0),
        ("eva.webp", "ann/2 (1).PNG", False, 0),
    ]
    entry = store.manifest["benchmarks"]["mine"]
    assert (entry["pairs"], entry["genuine"], entry["impostor"]) == (4, 2, 2)
    assert (entry["identities"], entry["fold_labels"]) == ("derived from genuine pairs", None)
    assert len(store.identities) == 3
    assert store.split == "test"
    assert "benchmark mine: 4 pairs (2 genuine, 2 impostor) in 1 folds" in out
    assert "one fold: thresholds are chosen on the pairs that they are judged on, so accuracies flatter" in out
    assert "identities are derived from genuine pairs, as the list names nobody: intervals are on the narrow" in out
    assert "not as many" not in out


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_spreadsheets(convert, separator, encoding):
    text = LIST.replace('"Bob, Jr.jpg"', "Bob").replace(",", f"{separator} ").replace("Bob", '"Bob, Jr.jpg"')
    lines = ["", *text.splitlines()[:2], "", *text.splitlines()[2:], 2 * separator, " "]
    store, _ = convert("\r\n".join(lines).replace("a", "A ", 1).encode(encoding), "--name=mine")
    plain, _ = convert(LIST, "--name=mine")
    assert store.data_hash == plain.data_hash
    assert ends_of(store, "mine") == ends_of(plain, "mine")


def test_folds_are_numbered_as_they_come_and_put_in_order(convert):
    rows = ["ann/1.jpg,ann/2 (1).png,1,z", "ann/1.jpg,cem.jpg,0,a", "cem.jpg,eva.jpg,1,a", "ann/1.jpg,eva.jpg,0,z"]
    store, out = convert("\n".join(["a,b,same,fold", *rows]), "--name=mine")
    assert [(a, fold) for a, _, _, fold in ends_of(store, "mine")] == [
        *(("ann/1.jpg", 0), ("ann/1.jpg", 0), ("ann/1.jpg", 1), ("cem.JPEG", 1)),
    ]
    assert store.manifest["benchmarks"]["mine"]["fold_labels"] == ["z", "a"]
    assert "one fold" not in out


def test_identities_that_the_list_names(convert):
    text = (
        "same,identity_a,identity_b,b,a\n1,Ann, Ann ,ann/2 (1).png,ann/1.jpg\n0,Ann,Cem,cem.jpg,ann/1.jpg\n"
        "0,Cem,Eva,eva.jpg,cem.jpg\n"
    )
    store, out = convert(text, "--name=mine")
    assert sorted(store.identities) == ["Ann", "Cem", "Eva"]
    assert store.manifest["benchmarks"]["mine"]["identities"] == "named"
    assert "derived" not in out
    assert "genuine and impostor pairs are not as many: an accuracy depends on how they are mixed" in out
    assert ends_of(store, "mine")[0] == ("ann/1.jpg", "ann/2 (1).PNG", True, 0)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_another_form(convert, form):
    name = unicodedata.normalize(form, NFC)
    store, _ = convert(f"a,b,same\n{name}.jpeg,./{name}.jpg,1\nann\\1.jpg,{name}.jpg,0\n", "--name=mine")
    assert len(store) == 2
    assert store.manifest["benchmarks"]["mine"]["self_pairs"] == [[f"{NFD}.jpg", f"{NFD}.jpg"]]


def test_pairs_that_say_nothing_new_are_counted(convert):
    store, out = convert(f"{LIST}ann/2 (1).png,./ann/1.jpg,1\n", "--name=mine")
    assert store.manifest["benchmarks"]["mine"]["repeated_pairs"] == [["ann/2 (1).PNG", "ann/1.jpg"]]
    assert "1 pairs a second time, kept and listed in manifest.json" in out


def test_the_name_is_the_lists(convert):
    store, _ = convert(LIST)
    assert list(store.manifest["benchmarks"]) == ["mine0"]


def test_a_list_of_ones_own_is_evaluated_as_one_fold(convert, tmp_path):
    store, _ = convert(LIST, "--name=mine")
    config = base()
    config.eval.bootstrap = 50
    config.eval.benchmarks["mine"] = benchmark(str(store.path), "mine")
    c = typed(config)
    entries, _ = Benchmarks(c.eval, c.data, c.seed, tmp_path).run(
        CosineScore(c.eval, baselines.pixel), seen=set(), title=""
    )
    entry = entries["mine"]
    assert (entry["n_folds"], entry["thresholds"]) == (1, folds.ONE_FOLD)
    assert entry["identities"] == "derived from genuine pairs"
    assert "vertex bootstrap" in entry["intervals"]


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": no pair is listed"),
        ("a,b,same\n", ": no pair is listed; expected lines such as"),
        ("a,b\n", ":1: no column 'same'; the header must have a, b, same, and may have fold"),
        ("ann/1.jpg,cem.jpg,1\n", ":1: no column 'a'"),
        ("a,b,same,score\n", ":1: unknown column 'score', remove it"),
        ("a,b,same,b\n", ":1: the column 'b' is there twice"),
        ("a,b,same,identity_b\n", ":1: of identity_a and identity_b there is one"),
        ("a,b,same\n\nx.jpg,y.jpg\n", ":3: 2 values, but the header has 3 columns; put names that hold the separator"),
        ("a,b,same\nx.jpg,,1\n", ":2: no value for b"),
        ("a,b,same,fold\nx.jpg,y.jpg,1,\n", ":2: no value for fold"),
        ("a,b,same\nx.jpg,y.jpg,same\n", ":2: same is 'same', expected one of 1, true, yes, 0, false, no"),
        ("a,b,same\nx.jpg,../y.jpg,1\n", ":2: '../y.jpg' must be relative to --src and not lead out of it"),
        ("a,b,same\n/etc/x.jpg,y.jpg,1\n", ":2: '/etc/x.jpg' must be relative to --src"),
        ('a,b,same\n"x.jpg"z,y.jpg,1\n', ":2: not CSV ("),
        (
            "a,b,same,identity_a,identity_b\ncem.jpg,eva.jpg,1,Cem,Eva\n",
            ":2: labelled the same person, but the identities are 'Cem' and 'Eva'; correct one",
        ),
        (
            "a,b,same,identity_a,identity_b\ncem.jpg,eva.jpg,0,Cem,Cem\n",
            ":2: labelled different persons, but the identities are 'Cem' and 'Cem'",
        ),
        (
            "a,b,same,identity_a,identity_b\ncem.jpg,eva.jpg,0,Cem,Eva\neva.jpg,ann/1.jpg,0,Ann,Cem\n",
            ":3: eva.webp shows 'Ann' here and 'Eva' in line 2",
        ),
        (f"{LIST}./cem.jpg,ann/1.JPG,1\n", ":6: cem.JPEG and ann/1.jpg are labelled same=1 here and same=0 in line 4"),
        ("a,b,same\ncem.jpg,./cem.jpg,no\n", ":2: cem.JPEG and itself are labelled same=0"),
        ("a,b,same\nann/1.jpg,ann/2 (1).png,1\n", ": the list has no pairs of different persons (same=0)"),
        ("a,b,same\nann/1.jpg,cem.jpg,0\n", ": the list has no pairs of one person (same=1)"),
        (
            "a,b,same,fold\nann/1.jpg,cem.jpg,0,A\nann/1.jpg,ann/2 (1).png,1,A\neva.jpg,cem.jpg,1,B\n",
            ": the fold 'B' has no pairs of different persons",
        ),
    ],
)
def test_mistakes_are_named_by_line(refused, text, message):
    refused(text, message)


def test_a_benchmark_has_a_plain_name(refused, tmp_path, src, capsys):
    (tmp_path / "my-list.csv").write_text(LIST)
    (tmp_path / "out").mkdir()
    arguments = f"--src={src}", f"--pairs={tmp_path / 'my-list.csv'}"
    fails(capsys, tmp_path / "out/s", "--name=my-list: a benchmark's name has letters, digits and", "pairs", *arguments)


def test_a_name_that_could_mean_two_files(refused, src):
    put(src / "eva.png", 9, "PNG")
    refused(LIST, ":5: eva.jpg: 'eva.png' or 'eva.webp' could be meant; rename or remove one of them")


def test_pairs_that_others_contradict(refused, convert):
    """Three pictures of one person by two lines, and a third line that says otherwise."""
    text = LIST + f"ann/2 (1).png,{NFC}.jpg,1\neva.jpg,cem.jpg,0\n{NFC}.jpg,ann/1.jpg,0\n"
    message = f":8: {NFD}.jpg and ann/1.jpg are labelled same=0, but are one person by the genuine pairs of lines 2, 6"
    refused(text, message)
    store, out = convert(text, "--policy=drop", "--name=mine")
    entry = store.manifest["benchmarks"]["mine"]
    assert (entry["contradictory_pairs"], entry["pairs"], entry["pairs_dropped"]) == ([8], 6, 1)
    assert "1 contradictory pairs left out" in out


def test_the_first_of_several_contradictions_is_named():
    text = "a,b,same\ncem.jpg,eva.jpg,1\neva.jpg,cem.jpg,0\ncem.jpg,eva.jpg,0\n"
    rows = [pair_list.Row(number, *row.split(",")[:2], row[-1] == "1") for number, row in enumerate(text.split(), 1)]
    message = r"x:3: eva\.jpg and cem\.jpg are labelled same=0, .* of lines 2 \(and 1 more such lines\)"
    with pytest.raises(ValueError, match=message):
        pair_list.derived(Path("x"), rows[1:], "fail")
    kept, left_out = pair_list.derived(Path("x"), rows[1:], "drop")
    assert ([row.line for row in kept], left_out) == ([2], [3, 4])
    assert hash(rows[1]) == hash(pair_list.Row(2, "cem.jpg", "eva.jpg", True))


def test_missing_pictures(refused, convert, src):
    text = f"{LIST}ann/9.jpg,ann/1.jpg,1\nann/8.jpg,eva.jpg,0\n"
    refused(text, f":6: {src / 'ann/9.jpg'} is missing, and 1 more of the 7 pictures that the list names; supply them")
    store, out = convert(text, "--policy=drop", "--name=mine")
    entry = store.manifest["benchmarks"]["mine"]
    assert (entry["pairs"], entry["pairs_dropped"], entry["failure_to_acquire"]) == (4, 2, 2)
    assert "2 images not acquired, 2 pairs dropped (policy drop)" in out
    assert json.dumps(store.manifest["rejected"]).count("missing") == 2


# ---- pictures of other sizes


def test_sizes_and_photographs(src, tmp_path, capsys):
    names = ("ann/1.jpg", "ann/2 (1).png", "cem.jpg")
    for number, name in enumerate(names):
        put_of_size(tmp_path / "large" / name, number, 224)
    (tmp_path / "mine.csv").write_text("a,b,same\nann/1.jpg,ann/2 (1).png,1\nann/1.jpg,cem.jpg,0\n")
    given = "pairs", f"--src={tmp_path / 'large'}", f"--pairs={tmp_path / 'mine.csv'}"
    (tmp_path / "out").mkdir()
    fails(capsys, tmp_path / "out/s", "224x224, expected 112x112; align it, or prepare with --resize", *given)
    assert run(capsys, *given, f"--dst={tmp_path / 'resized'}", "--resize")[0] == 0
    points = "\t".join(str(2 * x + 0.5) for x in geometry.TEMPLATE.ravel())
    (tmp_path / "points.tsv").write_text("".join(f"{name}\t{points}\n" for name in names))
    more = f"--landmarks={tmp_path / 'points.tsv'}", "--workers=1"
    assert run(capsys, *given, f"--dst={tmp_path / 'aligned'}", *more)[0] == 0
    resized, aligned = (stores.Store(tmp_path / name, "test") for name in ("resized", "aligned"))
    assert aligned.manifest["alignment"]["aligned"] == 3
    difference = resized.images(range(3)).astype(int) - aligned.images(range(3))
    assert np.abs(difference).mean() < 5


def test_flags_reach_the_conversion(src, tmp_path, monkeypatch, capsys):
    told = {}

    def record(src: Path, dst: Path, **options):
        """Convert nothing."""
        told.update(options, src=src, dst=dst)
        raise ValueError("stop")

    monkeypatch.setattr(pair_list, "pairs", record)
    monkeypatch.setattr(flags, "Aligner", lambda name, known, **options: (name, known, options))
    flags_given = "--align=scrfd", "--workers=3", "--policy=fallback"
    assert prepare.main(["pairs", f"--src={src}", "--pairs=x.csv", f"--dst={tmp_path / 's'}", *flags_given]) == 2
    assert told["aligner"] == ("scrfd", None, {"policy": "fallback", "workers": 3})
    assert (told["pairs"], told["name"], told["resize"]) == (Path("x.csv"), None, False)


def test_lfw_as_a_list_of_ones_own_is_the_same_benchmark(request, tmp_path, capsys):
    command, src, pairs = request.getfixturevalue("lfw")
    assert run(capsys, command, src, pairs, f"--dst={tmp_path / 'official'}")[0] == 0
    rows = benchmark_lists.read_lfw(Path(pairs.partition("=")[2]))
    lines = [
        f"{row.a},{row.b},{int(row.identity_a == row.identity_b)},{row.fold},{row.identity_a},{row.identity_b}"
        for row in rows
    ]
    (tmp_path / "mine.csv").write_text("\n".join(["a,b,same,fold,identity_a,identity_b", *lines]))
    assert run(capsys, "pairs", src, f"--pairs={tmp_path / 'mine.csv'}", f"--dst={tmp_path / 'own'}")[0] == 0
    official, own = (stores.Store(tmp_path / name, "test") for name in ("official", "own"))
    assert own.data_hash == official.data_hash
    entries = own.manifest["benchmarks"]["mine"], official.manifest["benchmarks"]["lfw"]
    assert {key: entries[0][key] for key in entries[1]} == entries[1]
