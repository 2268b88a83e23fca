"""Test readers of foreign files at their edges: the last byte, the largest number, the first and last of a range."""

import hashlib
import io
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from fvjax.data import stores
from fvjax.data.readers import benchmark_lists, benchmarks, folders, insightface_bin, plain_pickle
from fvjax.data.readers.recordio import companions, conversion, records, scanner
from fvjax.data.stores import manifest, protocol, shards
from tests.test_recordio import FACES, pack, write_rec

# ---- RecordIO


def part(data: bytes, kind: int = 0) -> bytes:
    return struct.pack("<II", records.MAGIC, kind << 29 | len(data)) + data + b"\0" * (-len(data) % 4)


def payload(image: bytes, flag: int = 0, label: float = 5.0, labels=(), id_: int = 9) -> bytes:
    return struct.pack("<IfQQ", flag, label, id_, 0) + np.array(labels, "<f4").tobytes() + image


def test_a_record_is_taken_apart():
    for image in (b"", b"x", b"xyz", b"wxyz"):
        for after in (b"", b"more"):
            labels, id_, got, taken = records.parse(part(payload(image)) + after)
            assert (labels.tolist(), id_, got) == ([5.0], 9, image)
            assert taken == 8 + (24 + len(image) + 3) // 4 * 4
    labels, _, got, _ = records.parse(part(payload(b"xyz", 3, 0.0, [7, 8, 9])))
    assert (labels.tolist(), got) == ([7, 8, 9], b"xyz")


def test_parts_are_joined_by_the_number_that_was_left_out():
    whole = payload(b"image")
    data = part(whole[:8], 1) + part(whole[8:12], 2) + part(whole[12:], 3)
    joined = records.MARK.join([whole[:8], whole[8:12], whole[12:]])
    _, _, image, taken = records.parse(data + b"behind")
    assert image == joined[24:]
    assert taken == len(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "only 0 bytes up to the next record"),
        (part(payload(b"x"))[:7], "only 7 bytes up to the next record"),
        (part(payload(b"x"))[:8], "its length is 36 bytes, but only 8 follow"),
        (part(payload(b"x"))[:-1], "its length is 36 bytes, but only 35 follow"),
        (b"abcd" + part(payload(b"x"))[4:], "no magic number at its byte 0"),
        (part(payload(b"x"), 1) + b"abcdefgh", "no magic number at its byte 36"),
        (part(payload(b"x"), 1), "only 36 bytes up to the next"),
        (part(payload(b"x"), 2), "a part of kind 2 at the start of a record"),
        (part(payload(b"x"), 3), "a part of kind 3 at the start of a record"),
        (part(payload(b"x"), 4), "a part of kind 4 at the start of a record"),
        (part(payload(b"x"), 1) + part(b"y", 0), "a part of kind 0 within a record"),
        (part(payload(b"x"), 1) + part(b"y", 1), "a part of kind 1 within a record"),
        (part(payload(b"x")[:23]), "23 bytes, too few for its header of 24"),
        (part(payload(b"", 2, labels=[1])), "promises 2 labels, has room for 1"),
        (part(payload(b"abc", 1)), "promises 1 labels, has room for 0"),
    ],
)
def test_what_is_no_record_is_said(data, message):
    with pytest.raises(ValueError, match=message):
        records.parse(data)


def test_as_many_bytes_as_a_record_may_have_and_four_more(monkeypatch):
    data = part(payload(b"abcd" * 3))
    monkeypatch.setattr(records, "MAX_RECORD", len(data))
    assert records.parse(data)[3] == len(data)
    monkeypatch.setattr(records, "MAX_RECORD", len(data) - 4)
    with pytest.raises(ValueError, match=f"its length is {len(data)} bytes, more than any face"):
        records.parse(data)


def test_identities_are_integers_below_those_that_float32_leaves_out():
    assert records.MAX_LABEL == 2**24 == int(np.float32(2**24 + 1))
    for good in (0, 1, 2**24 - 1):
        assert records.identity(np.array([good, 7.5], np.float32)) == good
    for bad in (-1, 0.5, 2**24, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"is no identity, which is an integer from 0 to 16777215"):
            records.identity(np.array([bad], np.float32))


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 1 << 22])
def test_the_size_of_a_block_changes_nothing(block, tmp_path, monkeypatch):
    """Records lie across the border of two blocks or in a dozen, with damage between and labels behind the border."""
    records = [(i, pack(float(i % 3), FACES[i % 12], i)) for i in range(5)]
    records.insert(2, (7, pack([3.0, 9.0], b"", 7)))
    write_rec(tmp_path, records)
    rec = tmp_path / "train.rec"
    rec.write_bytes(b"junk" + rec.read_bytes() + b"behind it all")
    monkeypatch.setattr(scanner, "BLOCK", 1 << 22)
    bytes_read = []
    want, headers, rejected = scanner.scan(rec, bytes_read.append)
    assert bytes_read == [rec.stat().st_size]
    if block < 7:  # this many blocks take long
        rec.write_bytes(rec.read_bytes()[: int(want.offset[1] + 40)])
        want, headers, rejected = scanner.scan(rec, lambda n: None)
    monkeypatch.setattr(scanner, "BLOCK", block)
    bytes_read.clear()
    got, headers_too, rejected_too = scanner.scan(rec, bytes_read.append)
    assert sum(bytes_read) == rec.stat().st_size
    for column, same in zip(got, want):
        np.testing.assert_array_equal(column, same)
    assert [h[:3] for h in headers_too] == [h[:3] for h in headers]
    assert rejected_too == rejected
    assert rejected[0][1:4] == (0, 0, 4)
    assert (want.number[0], want.offset[0]) == (1, 4)


def test_validation_takes_the_floor_of_a_part():
    """0.29 of 100 is 29, although 100 * 0.29 is slightly less in floating point. Nothing is taken of a single image."""
    for n, val, expected in ((100, 0.29, 29), (10, 0.3, 3), (9, 0.3, 2), (1, 0.99, 0), (2, 0.5, 1), (5, 0.0, 0)):
        names, index, is_val = conversion.select(np.full(n, 4), None, val, 0)
        assert (names.tolist(), set(index.tolist()), int(is_val.sum())) == ([4], {0}, expected)


def test_how_many_identities_a_property_may_promise(tmp_path):
    file = tmp_path / "property"
    file.write_text("5,112,112")
    companions.check_property(file, 5, False, False)
    companions.check_property(file, 4, True, False)
    for identities, damaged in ((4, False), (6, False), (6, True)):
        with pytest.raises(ValueError, match=f"says 5 identities, the records have {identities}"):
            companions.check_property(file, identities, damaged, False)
    for text in ("5,112,224", "5,224,112"):
        file.write_text(text)
        companions.check_property(file, 5, False, True)
        with pytest.raises(ValueError, match=r"says \d+x\d+, faces are 112x112; prepare with --resize"):
            companions.check_property(file, 5, False, False)


# ---- insightface's .bin


def test_known_benchmarks_and_their_folds():
    assert insightface_bin.PAIRS == {
        **{"lfw": 6000, "cfp_ff": 7000, "cfp_fp": 7000},
        **{"agedb_30": 6000, "calfw": 6000, "cplfw": 6000},
    }
    for name, pairs in insightface_bin.PAIRS.items():
        for folds in (None, 10):
            told, fold = insightface_bin.protocol(Path(f"{name}.bin"), pairs, None, folds)
            assert (told, np.bincount(fold).tolist()) == (name, [pairs // 10] * 10)
        assert insightface_bin.protocol(Path("x.bin"), pairs, name, None)[0] == name
        with pytest.raises(ValueError, match=f"has {pairs - 1} pairs, but {name} has {pairs}"):
            insightface_bin.protocol(Path(f"{name}.bin"), pairs - 1, None, None)
        with pytest.raises(ValueError, match=f"--folds=5: {name} is evaluated in 10 folds"):
            insightface_bin.protocol(Path(f"{name}.bin"), pairs, None, 5)


def test_folds_from_one_to_as_many_as_pairs():
    file = Path("mine.bin")
    assert insightface_bin.protocol(file, 5, "x", 5)[1].tolist() == [0, 1, 2, 3, 4]
    assert insightface_bin.protocol(file, 5, "x", 2)[1].tolist() == [0, 0, 0, 1, 1]
    for folds in (6, 0, -1):
        with pytest.raises(ValueError, match=f"--folds={folds}: choose 1 … 5, the number of pairs"):
            insightface_bin.protocol(file, 5, "x", folds)
    for name, folds in (("x", None), (None, 2), (None, None)):
        with pytest.raises(ValueError, match=r"mine\.bin: 5 pairs, none of lfw \(6000 pairs\)"):
            insightface_bin.protocol(file, 5, name, folds)


def test_people_are_what_genuine_pairs_connect():
    chain = np.array([[4, 5], [1, 2], [5, 2], [7, 7], [3, 6]])
    assert insightface_bin.derive_identities(8, chain).tolist() == [0, 1, 1, 3, 1, 1, 3, 7]
    assert insightface_bin.derive_identities(8, chain[::-1, ::-1]).tolist() == [0, 1, 1, 3, 1, 1, 3, 7]
    assert insightface_bin.derive_identities(3, np.zeros((0, 2), int)).tolist() == [0, 1, 2]
    long = np.stack([np.arange(99, 0, -1), np.arange(98, -1, -1)], 1)
    assert not insightface_bin.derive_identities(100, long).any()


@pytest.mark.parametrize("shape", [(4,), (4, 1), (2, 2), (1, 1, 1, 4), ()])
def test_arrays_of_up_to_four_dimensions_that_fit_their_bytes(shape):
    blob, kind = plain_pickle.Blob(bytes(4), 7), plain_pickle.Dtype(np.dtype("i4" if shape == () else "u1"))
    for order in "CF":
        made = plain_pickle.Array().fill(blob, kind, shape, order)
        assert (made.blob, made.dtype, made.shape, made.order) == (blob, kind.value, shape, order)
    for wrong in ((*shape, 2), (*shape, 0), (-1, -4), (True, 4), (1.0, 4), (1, 1, 1, 1, 4), [4], 4):
        with pytest.raises(ValueError, match="an array whose shape does not fit its 4 bytes is refused"):
            plain_pickle.Array().fill(blob, kind, wrong, "C")
    with pytest.raises(ValueError, match="does not fit its 4 bytes"):
        plain_pickle.Array().fill(blob, kind, shape, "A")


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_fold_of_which_nothing_is_left_is_named_also_the_last(lost, tmp_path):
    faces = [b"broken" if i // 4 == lost else FACES[i] for i in range(12)]
    (tmp_path / "mine.bin").write_bytes(pickle.dumps((faces, [True, False] * 3), protocol=4))
    options = {"name": "mine", "folds": 3, "policy": "drop", "resize": False}
    with pytest.raises(ValueError, match=f"no pair of fold {lost + 1} is left"):
        insightface_bin.convert(tmp_path / "mine.bin", tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()

    for i, face in enumerate(faces):  # the same as files: 0 and 1 of a fold are one person, 2 and 3 two others
        fold, k = divmod(i, 4)
        name = f"{'aabc'[k]}{fold}"
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{name}_000{1 + (k == 1)}.jpg").write_bytes(face)
    protocol = "".join(f"a{fold} 1 2\nb{fold} 1 c{fold} 1\n" for fold in range(3))
    (tmp_path / "pairs.txt").write_text(f"3 1\n{protocol}")
    with pytest.raises(ValueError, match=f"no pair of fold {lost + 1} of lfw is left; supply images"):
        benchmarks.lfw(tmp_path, tmp_path / "t", pairs=tmp_path / "pairs.txt", policy="drop", resize=False)


def test_a_small_file_has_few_instructions():
    """The limit is 10,000 instructions and one more per 16 bytes. More would take time without giving data."""
    marks = b"(" * 20_000 + b"."
    with pytest.raises(ValueError, match="more than 11250 instructions in a file of 20001 bytes"):
        plain_pickle.load(io.BytesIO(marks), len(marks))


# ---- protocols in text


def test_lfws_folds_and_numbers(tmp_path):
    file = tmp_path / "pairs.txt"
    file.write_text("2\t1\n# a comment\nann 1 2\n\nann 3 bob 10\nbob 1 12345\nbob 2 zoe 4\n")
    assert benchmark_lists.read_lfw(file) == [
        ("ann/ann_0001.jpg", "ann/ann_0002.jpg", "ann", "ann", 0),
        ("ann/ann_0003.jpg", "bob/bob_0010.jpg", "ann", "bob", 0),
        ("bob/bob_0001.jpg", "bob/bob_12345.jpg", "bob", "bob", 1),
        ("bob/bob_0002.jpg", "zoe/zoe_0004.jpg", "bob", "zoe", 1),
    ]
    file.write_text("1\nann 1 2\nann 3 bob 10\n")  # the development sets have one fold and do not state it
    assert [pair.fold for pair in benchmark_lists.read_lfw(file)] == [0, 0]
    for text, message in (
        ("0\t1\n", ":1: expected 'folds pairs'"),
        ("1\t0\n", ":1: expected 'folds pairs'"),
        ("1 2 3\n", ":1: expected 'folds pairs'"),
        ("1 1\nann 1 2\n", "1 pairs, but its first line promises 2 x 1 x 1"),
        ("1 1\n\nann 1 2 3\nann 1 bob 2\n", ":3: expected a pair of the kind same: 'name i j'"),
        ("1 1\nann 1 2\nann 1 2\n", ":3: expected a pair of the kind different: 'name i name j'"),
        ("1 1\nann 1 x\nann 1 bob 2\n", ":2: expected a pair of the kind same"),
        ("1 1\nann -1 2\nann 1 bob 2\n", ":2: expected a pair of the kind same"),
        ("1 1\nann 1 2\nann 1 ann 2\n", ":3: 'ann 1 ann 2' is among the different pairs of its fold"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            benchmark_lists.read_lfw(file)


def test_several_pairs_of_a_fold(tmp_path):
    file = tmp_path / "pairs.txt"
    file.write_text("2 2\n" + "ann 1 2\nbob 1 2\nann 1 bob 1\nann 2 bob 2\n" * 2)
    assert [(pair.identity_a, pair.identity_b, pair.fold) for pair in benchmark_lists.read_lfw(file)] == [
        (a, b, fold) for fold in (0, 1) for a, b in (("ann", "ann"), ("bob", "bob"), ("ann", "bob"), ("ann", "bob"))
    ]


def test_a_folder_follows_links_and_has_no_features(tmp_path):
    options = {"exclude": None, "limit": None, "resize": False, "policy": "drop"}
    (tmp_path / "elsewhere/deeper").mkdir(parents=True)
    (tmp_path / "elsewhere/deeper/1.jpg").write_bytes(FACES[0])
    (tmp_path / "src/ann").mkdir(parents=True)
    (tmp_path / "src/ann/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    made = folders.folder(tmp_path / "src", tmp_path / "s", **options)
    assert (made.sources, made.identities) == (["ann/link/deeper/1.jpg"], ["ann"])
    for name in ("split", "image_feature", "identity_feature"):
        with pytest.raises(ValueError, match="--split, --image-feature and --identity-feature are of tfds:NAME"):
            folders.folder(tmp_path / "src", tmp_path / "t", **options, **{name: "x"})


def test_an_identity_may_be_a_link_to_a_folder(tmp_path):
    for i, folder in enumerate(("elsewhere/bob", "src/ann")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.jpg").write_bytes(FACES[i])
    (tmp_path / "src/bob").symlink_to(tmp_path / "elsewhere/bob", target_is_directory=True)
    options = {"exclude": None, "limit": None, "resize": False, "policy": "drop"}
    made = folders.folder(tmp_path / "src", tmp_path / "s", **options)
    assert (made.sources, made.identities) == (["ann/1.jpg", "bob/1.jpg"], ["ann", "bob"])


# ---- stores


PAIRS = {
    "a": [0, 1, 2, 0],
    "b": [1, 2, 3, 1],
    "same": [True, False, True, True],
    "fold": [0, 0, 1, 1],
    "identity_a": [0, 0, 1, 0],
    "identity_b": [0, 1, 1, 0],
}


def pairs_with(**changes) -> stores.Pairs:
    return stores.Pairs(**{name: np.array(column) for name, column in (PAIRS | changes).items()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": [0, 1, 2, -1]}, "record numbers run from 0 to 3"),
        ({"b": [1, 2, 4, 1]}, "record numbers run from 0 to 3"),
        ({"a": [4, 1, 2, 0]}, "record numbers run from 0 to 3"),
        ({"b": [-1, 2, 3, 1]}, "record numbers run from 0 to 3"),
        ({"fold": [1, 1, 2, 2]}, "folds must be 0, 0, …, 1, 1, … in order"),
        ({"fold": [0, 0, 2, 2]}, "folds must be 0, 0, …, 1, 1, … in order"),
        ({"fold": [0, 1, 0, 1]}, "folds must be 0, 0, …, 1, 1, … in order"),
        ({"identity_a": [0, 0, 1, 1]}, "must be the store's labels of a and b"),
        ({"identity_b": [0, 1, 1, 1]}, "must be the store's labels of a and b"),
        ({"same": [True, False, True, False]}, "pair 3 has same=False, but its records 0 and 1 have"),
        ({"same": [True, True, True, False]}, "pair 1 has same=True, but its records 1 and 2 have"),
        ({"fold": [0, 0, 1]}, "one common length above zero"),
        ({name: np.zeros(0, int) for name in PAIRS}, "one common length above zero"),
    ],
)
def test_pairs_must_be_of_the_store(changes, message):
    labels = np.array([0, 0, 1, 1])
    protocol.check_pairs(pairs_with(), labels, "x")
    with pytest.raises(ValueError, match=f"^x: .*{message}"):
        protocol.check_pairs(pairs_with(**changes), labels, "x")


def test_what_a_manifest_may_say_of_a_shard():
    good = {"file": "faces", "records": 0, "bytes": 1}
    assert manifest._is_shard(good)
    for change in ({"records": -1}, {"bytes": 0}, {"file": "a/b"}, {"file": 3}, {"records": None}, {"bytes": 1.5}):
        assert not manifest._is_shard(good | change), change
    assert not manifest._is_shard([good])
    assert shards.shard_names("val", 2) == [
        "faces-val.array_record-00000-of-00002",
        "faces-val.array_record-00001-of-00002",
    ]


JPEG = FACES[0]
BAD_ROWS = {
    "none": "",
    "blank": "\n\n",
    "a number beyond int64": "0,1,1,0\n0,99999999999999999999,1,0\n",
    "no such record": "0,9,1,0\n",
    "three columns": "0,1,1\n",
    "no number": "0,x,1,0\n",
}


@pytest.fixture(scope="module")
def two_faces(tmp_path_factory):
    """Write a store of two faces into folders that do not exist yet."""
    dst = tmp_path_factory.mktemp("stores") / "some" / "where"
    return stores.write(dst, [(JPEG, "ann", "1"), (JPEG, "ann", "2")], split="test", sources=[])


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_of_a_benchmark_that_are_none(case, two_faces):
    data = f"a,b,same,fold\n{BAD_ROWS[case]}".encode()
    entries = manifest.read_manifest(two_faces.path)
    entries["benchmarks"]["x"] = {"hash": hashlib.sha256(data).hexdigest()}  # valid, as its author would write it
    manifest.write_manifest(two_faces.path, entries)
    (two_faces.path / "pairs_x.csv").write_bytes(data)
    with pytest.raises(ValueError, match=r"pairs_x\.csv: not rows of a,b,same,fold \(.*\); prepare the store again"):
        stores.read_pairs(two_faces.path, "x")


def test_a_shard_holds_a_hundred_thousand_records(two_faces):
    """Another number would change the names and sizes of files, which a conversion compares before it continues."""
    assert shards.SHARD_RECORDS == 100_000
    assert [shard["file"] for shard in two_faces.manifest["shards"]] == shards.shard_names("test", 1)


def tiny(folder: Path, records: list[tuple[int, bytes]]) -> tuple[Path, list[int]]:
    """Write a train.rec of records that are never decoded, with its .idx, and return where the records start."""
    return folder / "train.rec", write_rec(folder, records)


@pytest.mark.parametrize("block", [16, 32, 40, 1 << 22])
def test_blocks_that_hold_several_records(block, tmp_path, monkeypatch):
    rec, starts = tiny(tmp_path, [(i, pack(float(i), b"x" * (i % 5 + 1), i)) for i in range(20)])
    monkeypatch.setattr(scanner, "BLOCK", block)
    found, headers, rejected = scanner.scan(rec, lambda n: None)
    assert found.offset.tolist() == starts
    assert found.label.tolist() == found.key.tolist() == found.number.tolist() == list(range(20))
    assert np.append(found.offset, rec.stat().st_size)[1:].tolist() == (found.offset + found.size).tolist()
    assert (headers, rejected) == ([], [])


@pytest.mark.parametrize("block", [16, 32, 1 << 22])
def test_bytes_of_no_record_have_a_number_of_their_own_in_whatever_block(block, tmp_path, monkeypatch):
    rec, starts = tiny(tmp_path, [(i, pack(float(i), b"xyz", i)) for i in range(10)])
    data = rec.read_bytes()
    rec.write_bytes(data[: starts[3]] + b"?" * 8 + data[starts[3] : starts[7]] + b"!" * 4 + data[starts[7] :])
    monkeypatch.setattr(scanner, "BLOCK", block)
    found, _, rejected = scanner.scan(rec, lambda n: None)
    assert found.number.tolist() == [0, 1, 2, 4, 5, 6, 7, 9, 10, 11]
    assert [(r.record, r.offset, r.end) for r in rejected] == [
        (3, starts[3], starts[3] + 8),
        (8, starts[7] + 8, starts[7] + 12),
    ]


def test_a_line_of_the_idx_that_leads_into_damage_is_named(tmp_path):
    """The error has the line's number in the .idx, counted from 1 as in an editor."""
    rec, starts = tiny(tmp_path, [(10 + i, pack(1.0, b"abc", i)) for i in range(5)])
    data = bytearray(rec.read_bytes())
    for start in starts[1:3]:  # the damage starts with the second record and hides the start of the third
        data[start : start + 4] = b"????"
    rec.write_bytes(data)
    found, _, rejected = companions.read(rec, False, lambda n: None)
    assert found.key.tolist() == [10, 13, 14]
    lost = [one for one in rejected if one.file.endswith(".idx")]
    assert [(one.record, one.offset, one.end) for one in lost] == [(3, starts[2], starts[2])]
    assert lost[0].reason == f"train.idx:3: key 12 should be at byte {starts[2]} of train.rec, behind damage"
    rec.write_bytes(rec.read_bytes()[: starts[4]])
    reasons = [one.reason for one in companions.read(rec, False, lambda n: None)[2] if one.file.endswith(".idx")]
    assert (
        reasons[1]
        == f"train.idx:5: key 14 should be at byte {starts[4]} of train.rec, behind its end at byte {starts[4]}"
    )


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([1.0, 2.5], "keys 1 to 2.5"),
        ([0.5, 2.0], "keys 0.5 to 2"),
        ([-1.0, 2.0], "keys -1 to 2"),
        ([3.0, 2.0], "keys 3 to 2"),
        ([0.0, 2.0**53], "keys 0 to 9.0072e+15"),
    ],
)
def test_what_a_header_may_not_say(labels, told, tmp_path):
    rec, starts = tiny(tmp_path, [(1, pack(0.0, b"abc", 1)), (9, pack(labels, b"", 9))])
    message = f"train.rec record 1 at byte {starts[1]}: its header has {told}; these are no keys"
    with pytest.raises(ValueError, match=re.escape(message)):
        companions.read(rec, False, lambda n: None)


def test_headers_that_agree_and_one_key_more_or_less(tmp_path):
    """Keys 1 and 2 are one person, 3 is another. Keys 4 and 5 say so, and key 0 says which keys these are."""

    def read(first=(1.0, 3.0), second=(3.0, 4.0), people=(4.0, 6.0)):
        images = [(key, pack(label, b"abc", key)) for key, label in ((1, 7.0), (2, 7.0), (3, 8.0))]
        told = [(4, pack(list(first), b"", 4)), (5, pack(list(second), b"", 5)), (0, pack(list(people)))]
        return companions.read(tiny(tmp_path, images + told)[0], False, lambda n: None)

    found, headers, rejected = read()
    assert (found.label.tolist(), [h.key for h in headers], rejected) == ([7, 7, 8], [4, 5, 0], [])
    for wrong, message in (
        ({"people": (4.0, 7.0)}, "says keys 4 to 7 - 1 are identities, but there are 2"),
        ({"people": (4.0, 5.0)}, "says keys 4 to 5 - 1 are identities, but there are 2"),
        ({"people": (5.0, 7.0)}, "says keys 5 to 7 - 1 are identities, but there are 2"),
        ({"first": (1.0, 4.0)}, "are one identity, but key 1 has label 7|but 1 has label 7 and 3 label 8"),
        ({"first": (1.0, 2.0)}, "key 2 is in the headers of 0 identities, not of one"),
        ({"second": (2.0, 4.0)}, "are one identity, but 2 has label 7 and 3 label 8"),
        ({"second": (3.0, 5.0)}, "says keys 3 to 5 - 1 are one identity, but 1 of them are images"),
        ({"first": (1.0, 2.0), "second": (2.0, 3.0)}, "others of label 7 are in another header's"),
        ({"second": (4.0, 4.0)}, "key 3 is in the headers of 0 identities, not of one"),
    ):
        with pytest.raises(ValueError, match=message):
            read(**wrong)
