"""Test RecordIO files: written here in insightface's layout, damaged in every way, converted, killed, compared."""

import contextlib
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import textwrap
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.progress import Progress

from fvjax.data import images, stores, synthetic
from fvjax.data.readers.recordio import companions, conversion, records, scanner, shard_jobs
from fvjax.data.readers.recordio.records import MARK
from fvjax.data.stores import shards
from tests.test_bad_input import Commands, small
from tests.test_images import file_bytes, smooth_face
from tests.test_main import saved
from tests.test_prepare import fails, run

FACES = [images.encode(smooth_face(i), 60) for i in range(12)]
HEAD = 8 + 24  # bytes before the labels or the image of a record


def pack(label, image=b"", key=0) -> bytes:
    """Return IRHeader, labels and image. A single number is a label in the header; a list follows the header."""
    many = isinstance(label, list)
    labels = struct.pack(f"<{len(label)}f", *label) if many else b""
    return struct.pack("<IfQQ", len(label) if many else 0, 0 if many else label, key, 0) + labels + image


def frame(payload: bytes) -> bytes:
    """Return a record as dmlc-core's writer stores it: cut where the magic number occurs at a multiple of four."""
    at = [i for i in range(0, len(payload) - 3, 4) if payload[i : i + 4] == MARK]
    pieces = [payload[a:b] for a, b in zip([0, *(i + 4 for i in at)], [*at, len(payload)])]
    kinds = [1, *[2] * (len(at) - 1), 3] if at else [0]
    return b"".join(
        MARK + struct.pack("<I", kind << 29 | len(piece)) + piece + bytes(-len(piece) % 4)
        for kind, piece in zip(kinds, pieces)
    )


def write_rec(folder: Path, records: list[tuple[int, bytes]]) -> list[int]:
    """Write train.rec and train.idx of (key, payload). Returns the first byte of each record."""
    folder.mkdir(parents=True, exist_ok=True)
    starts, out = [], bytearray()
    for _, payload in records:
        starts.append(len(out))
        out += frame(payload)
    (folder / "train.rec").write_bytes(out)
    (folder / "train.idx").write_text("".join(f"{key}\t{at}\n" for (key, _), at in zip(records, starts)))
    return starts


def insightface(people: list[list[bytes]], first: int = 1) -> list[tuple[int, bytes]]:
    """Return images from key ``first`` on, a header per identity, and key 0's header, which insightface writes last."""
    records, ranges, key = [], [], first
    for label, faces in enumerate(people):
        ranges.append([float(key), float(key + len(faces))])
        for face in faces:
            records.append((key, pack(float(label), face, key)))
            key += 1
    records += [(key + i, pack(pair, b"", key + i)) for i, pair in enumerate(ranges)]
    return [*records, (0, pack([float(key), float(key + len(people))]))]


PEOPLE = [FACES[:5], FACES[5:6], FACES[6:12]]


def write_people(folder: Path, people=PEOPLE) -> list[int]:
    starts = write_rec(folder, insightface(people))
    (folder / "property").write_text(f"{len(people)},112,112\n")
    return starts


def convert(capsys, src, dst, *options) -> stores.Store:
    code, out, err = run(capsys, "recordio", f"--src={src}", f"--dst={dst}", "--workers=1", *options)
    assert (code, err) == (0, ""), err
    made = stores.Store(dst)
    counts = made.manifest["recordio"]
    val = [stores.Store(dst / "val", "val")] if (dst / "val").is_dir() else []
    assert sum(map(len, [made, *val])) == counts["written"]
    assert sum(len(s.manifest["rejected"]) for s in [made, *val]) == counts["rejected"]
    assert counts["written"] + counts["rejected"] == counts["read"]
    assert f"{counts['read']} records read = {counts['written']} written + {counts['rejected']} rejected" in out
    return made


def refuses(capsys, tmp_path, message, *options):
    """Assert that a conversion of tmp_path/src fails and leaves nothing."""
    (tmp_path / "out").mkdir(exist_ok=True)
    dst = tmp_path / "out" / "s"
    fails(capsys, dst, message, "recordio", f"--src={tmp_path / 'src'}", "--workers=1", *options)


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def content(s: stores.Store) -> list[tuple[bytes, str]]:
    return [(s.jpeg(i), s.identities[s.labels[i]]) for i in range(len(s))]


# ---- records, labels and images that are read


def test_insightfaces_layout(tmp_path, capsys):
    write_people(tmp_path / "src")
    s = convert(capsys, tmp_path / "src", tmp_path / "s", "--val=0")
    assert content(s) == [(face, str(i)) for i, faces in enumerate(PEOPLE) for face in faces]
    assert s.sources == [f"train.rec#{i}" for i in range(12)]
    assert s.manifest["recordio"] | {"read": 12, "written": 12, "rejected": 0, "headers": 4} == s.manifest["recordio"]
    assert not (tmp_path / "s" / "val").exists()
    assert {x.name for x in tmp_path.iterdir()} == {"src", "s"}


@pytest.mark.parametrize("name", ["train.idx", "property"])
def test_the_rec_alone_is_enough(tmp_path, capsys, name):
    write_people(tmp_path / "src")
    convert(capsys, tmp_path / "src", tmp_path / "s")
    (tmp_path / "src" / name).unlink()
    convert(capsys, tmp_path / "src" / "train.rec", tmp_path / "t")
    assert files(tmp_path / "s") == files(tmp_path / "t")


def test_the_sample(real_data, tmp_path, capsys):
    """Read im2rec's own output, in shuffled order. The pixels are those of its two-line reader."""
    src = real_data / "faces/format-samples"
    s = convert(capsys, src, tmp_path / "s", "--val=0")
    data, at, want = (src / "train.rec").read_bytes(), 0, []
    while at < len(data):
        n = struct.unpack_from("<I", data, at + 4)[0]
        want.append((data[at + HEAD : at + 8 + n], f"{struct.unpack_from('<f', data, at + 12)[0]:g}"))
        at += 8 + n + -n % 4
    assert len(want) == 8
    assert content(s) == want
    shutil.copy(src / "train.rec", tmp_path)
    assert content(convert(capsys, tmp_path / "train.rec", tmp_path / "t", "--val=0")) == want


def with_marks(jpeg: bytes, marks: int) -> bytes:
    """Return a JPEG with a comment that contains the magic number at multiples of four of its record."""
    before = -(24 + 2 + 4) % 4
    comment = bytes(before) + MARK * marks
    return jpeg[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment + jpeg[2:]


@pytest.mark.parametrize("marks", [1, 2, 5])
def test_records_of_several_parts(tmp_path, capsys, marks):
    face = with_marks(FACES[0], marks)
    starts = write_rec(tmp_path / "src", [(1, pack(0.0, face, 1)), (2, pack(1.0, FACES[1], 2))])
    data = (tmp_path / "src/train.rec").read_bytes()
    assert data.count(MARK) == marks + 2
    assert [data[at + 7] >> 5 for at in starts] == [1, 0]
    assert content(convert(capsys, tmp_path / "src", tmp_path / "s")) == [(face, "0"), (FACES[1], "1")]


def test_labels_of_every_kind(tmp_path, capsys):
    labels = [7.0, [3.0], [3.0, 1.0], [16777215.0] + [0.5] * 9, 0.5, [0.25, 3.0], float("nan"), -1.0, 16777216.0, -0.0]
    starts = write_rec(tmp_path / "src", [(i, pack(label, FACES[i], i)) for i, label in enumerate(labels)])
    s = convert(capsys, tmp_path / "src", tmp_path / "s")
    assert content(s) == [(FACES[i], name) for i, name in ((0, "7"), (1, "3"), (2, "3"), (3, "16777215"), (9, "0"))]
    assert s.identities == ["0", "3", "7", "16777215"]
    rejected = s.manifest["rejected"]
    assert [(r["record"], r["offset"]) for r in rejected] == [(i, starts[i]) for i in (4, 5, 6, 7, 8)]
    assert rejected[0]["reason"] == (
        f"train.rec record 4 at byte {starts[4]}: label 0.5 is no identity, which is an integer from 0 to 16777215"
    )


def test_images_of_every_kind(tmp_path, capsys):
    picture = images.Image.fromarray(smooth_face(3))
    png = file_bytes(picture, "PNG")
    bad = [FACES[0][:500], b"no image", b"", FACES[1][:-200], png[:300]]
    starts = write_rec(tmp_path / "src", [(i, pack(0.0, data, i)) for i, data in enumerate([FACES[2], *bad, png])])
    s = convert(capsys, tmp_path / "src", tmp_path / "s")
    assert s.sources == ["train.rec#0", "train.rec#6"]
    assert np.abs(s.image(1).astype(int) - smooth_face(3)).mean() < 1
    assert [(r["record"], r["offset"]) for r in s.manifest["rejected"]] == [(i, starts[i]) for i in (1, 2, 3, 4, 5)]
    assert all(f"train.rec record {r['record']} at byte {r['offset']}: " in r["reason"] for r in s.manifest["rejected"])
    assert "there is no image in it" in s.manifest["rejected"][2]["reason"]


def test_other_sizes(tmp_path, capsys):
    big = images.simplejpeg.encode_jpeg(smooth_face(0, 224))
    starts = write_rec(tmp_path / "src", [(0, pack(0.0, FACES[0])), (1, pack(0.0, big))])
    message = f"train.rec record 1 at byte {starts[1]}: 224x224, expected 112x112; align it, or prepare with --resize"
    refuses(capsys, tmp_path, message)
    assert convert(capsys, tmp_path / "src", tmp_path / "s", "--resize").image(1).shape == (112, 112, 3)


# ---- damage


DAMAGE = {
    # change of the record at [a, b) of a .rec, number of lost records, reason
    "truncated": (lambda d, a, b: d[: b - 50], 1, "but only .* follow: truncated or damaged"),
    "cut in its head": (lambda d, a, b: d[: a + 5], 1, "only 5 bytes up to the next record or the end: truncated"),
    "magic number": (
        lambda d, a, b: d[:a] + b"\0" + d[a + 1 :],
        1,
        "belong to no record|no magic number at its byte 0",
    ),
    "too long": (lambda d, a, b: d[: a + 4] + struct.pack("<I", b - a) + d[a + 8 :], 1, "its length is"),
    "huge": (lambda d, a, b: d[: a + 4] + struct.pack("<I", (1 << 29) - 1) + d[a + 8 :], 1, "more than any face"),
    "kind": (lambda d, a, b: d[: a + 7] + bytes([0xE0]) + d[a + 8 :], 1, "a part of kind 7 at the start"),
    "last part": (
        lambda d, a, b: d[: a + 7] + bytes([0x60]) + d[a + 8 :],
        1,
        "belong to no record|kind 3 at the start",
    ),
    "labels": (lambda d, a, b: d[: a + 8] + b"\xff\xff\xff\xff" + d[a + 12 :], 1, "promises 4294967295 labels, has"),
    "zeros": (lambda d, a, b: d[:a] + bytes(b - a) + d[b:], 1, "belong to no record|no magic number at its byte 0"),
    "missing": (lambda d, a, b: d[: a + 40] + d[b:], 1, "but only 40 follow"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("idx", [True, False])
@pytest.mark.parametrize("which", [0, 2, 5])
def test_damage_is_located_and_the_rest_is_read(tmp_path, capsys, kind, idx, which):
    change, lost, why = DAMAGE[kind]
    starts = write_rec(tmp_path / "src", [(i, pack(float(i % 2), FACES[i], i)) for i in range(6)])
    rec = tmp_path / "src/train.rec"
    data = rec.read_bytes()
    rec.write_bytes(change(data, starts[which], [*starts, len(data)][which + 1]))
    ends = kind in ("truncated", "cut in its head")
    if not idx or kind == "missing":  # after removed bytes, no record is where the .idx says
        (tmp_path / "src/train.idx").unlink()
    elif ends:  # only the .idx lists the records after the end
        lost = 6 - which
    left = range(which) if ends else [i for i in range(6) if i != which]
    if not left:
        refuses(
            capsys, tmp_path, f"train.rec: not one image; the first rejected: train.rec record 0 at byte {starts[0]}"
        )
        return
    s = convert(capsys, tmp_path / "src", tmp_path / "s", "--val=0")
    assert [jpeg for jpeg, _ in content(s)] == [FACES[i] for i in left]
    rejected = s.manifest["rejected"]
    assert len(rejected) == lost
    assert (rejected[0]["file"], rejected[0]["record"], rejected[0]["offset"]) == (str(rec), which, starts[which])
    assert re.search(why, rejected[0]["reason"]), rejected[0]["reason"]


def test_a_record_of_several_parts_that_ends_early(tmp_path, capsys):
    face = with_marks(FACES[0], 2)
    starts = write_rec(tmp_path / "src", [(0, pack(0.0, face)), (1, pack(0.0, FACES[1], 1)), (2, pack(0.0, face, 2))])
    rec = tmp_path / "src/train.rec"
    data = rec.read_bytes()
    rec.write_bytes(data[: starts[1] - 200] + data[starts[1] :])
    (tmp_path / "src/train.idx").unlink()
    s = convert(capsys, tmp_path / "src", tmp_path / "s")
    assert [jpeg for jpeg, _ in content(s)] == [FACES[1], face]
    (rejected,) = s.manifest["rejected"]
    assert (rejected["record"], rejected["offset"]) == (0, 0)


def test_a_file_of_something_else(tmp_path, capsys, monkeypatch):
    (tmp_path / "src").mkdir()
    refuses(capsys, tmp_path, "src/train.rec: no such file; --src is a .rec or the folder with train.rec")
    rec = tmp_path / "src/train.rec"
    rec.write_bytes(b"")
    refuses(capsys, tmp_path, "train.rec: not one image")
    rec.write_bytes(bytes(range(256)) * 40)
    refuses(
        capsys, tmp_path, "the first rejected: train.rec record 0 at byte 0: no magic number at its byte 0: damaged"
    )
    write_rec(tmp_path / "src", insightface(PEOPLE)[12:])
    refuses(capsys, tmp_path, "train.rec: not one image")
    write_rec(tmp_path / "src", [(i, pack(0.0, b"no image")) for i in range(5)])
    refuses(capsys, tmp_path, "not one usable image; the first rejected: train.rec record 0 at byte 0: cannot be read")
    write_rec(tmp_path / "src", [(i, pack(0.5, b"x")) for i in range(5)])
    monkeypatch.setattr(scanner, "MAX_REJECTED", 4)
    refuses(
        capsys, tmp_path, "train.rec: no RecordIO file of faces: more than 4 records are rejected, the first: train"
    )


# ---- files beside the .rec, and header records


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text, at: text.replace(f"\t{at}\n", f"\t{at + 4}\n"),
            r"train.idx: no line for the record at byte {at} ",
        ),
        (
            lambda text, at: text.replace(f"3\t{at}\n", ""),
            r"train.idx: no line for the record at byte {at} of train.rec",
        ),
        (
            lambda text, at: text + f"77\t{at + 4}\n",
            r"train.idx:17: no record of train.rec starts at byte {after}; remove",
        ),
        (lambda text, at: text + f"77\t-{at}\n", r"train.idx:17: no record of train.rec starts at byte -{at}; remove"),
        (lambda text, at: text + f"77\t{at}\n", r"train.idx: offset {at} comes twice; remove it"),
        (lambda text, at: text.replace(f"3\t{at}", f"2\t{at}"), r"train.idx: key 2 comes twice; remove it"),
        (lambda text, at: text.replace(f"3\t{at}", f"3\t{at}\t9"), r"train.idx:3: expected 'key<TAB>offset', got '3"),
        (lambda text, at: "\n" + text + f"\n77\t{at + 4}\n", r"train.idx:19: no record of train.rec starts at byte"),
        (lambda text, at: text + "x\t1\n", r"train.idx:17: expected 'key<TAB>offset', got 'x"),
        (lambda text, at: text + f"1\t{2**70}\n", r"train.idx:17: expected 'key<TAB>offset', got '1"),
        (lambda text, at: "", r"train.idx: no line for the record at byte 0 of train.rec"),
        (lambda text, at: "9" * 10_000_000, r"train.idx:1: expected 'key<TAB>offset', got '9999"),
    ],
)
def test_an_idx_that_does_not_fit(tmp_path, capsys, change, message):
    at = write_people(tmp_path / "src")[2]
    file = tmp_path / "src/train.idx"
    text = change(file.read_text(), at)
    assert text != file.read_text()
    file.write_text(text)
    refuses(capsys, tmp_path, message.format(at=at, after=at + 4))
    file.unlink()
    convert(capsys, tmp_path / "src", tmp_path / "s")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4,112,112\n", "src/property: says 4 identities, the records have 3; correct or remove it"),
        ("2,112,112", "src/property: says 2 identities, the records have 3"),
        ("3,112,96\n", "src/property: says 112x96, faces are 112x112; prepare with --resize"),
        ("3,112\n", "src/property: expected 'identities,112,112', got '3,112"),
        ("", "src/property: expected 'identities,112,112', got ''"),
        ("x" * 10_000, "src/property: expected 'identities,112,112', got 'xxx"),
    ],
)
def test_a_property_that_does_not_fit(tmp_path, capsys, text, message):
    write_people(tmp_path / "src")
    (tmp_path / "src/property").write_text(text)
    refuses(capsys, tmp_path, message)


def test_a_list_that_does_not_fit(tmp_path, capsys):
    starts = write_people(tmp_path / "src")
    lines = [f"{key}\t{label}\ta/{key}.jpg\n" for key, label in enumerate([0] * 5 + [1] + [2] * 6, 1)]
    file = tmp_path / "src/train.lst"
    file.write_text("".join(lines) + "99\t7.5\tnot/packed.jpg\n")
    convert(capsys, tmp_path / "src", tmp_path / "s")
    file.write_text("".join([*lines[:5], "6\t2\ta\n", *lines[6:]]))
    where = f"train.rec record 5 at byte {starts[5]}"
    refuses(capsys, tmp_path, f"src/train.lst:6: label 2 of key 6, but 1 in {where}")
    file.write_text("/home/me/1.jpg 1 0\n")
    refuses(capsys, tmp_path, "src/train.lst:1: expected im2rec's 'key<TAB>label<TAB>path' or face2rec2's")


LABELS = [0] * 5 + [1] + [2] * 6  # of PEOPLE by key, from 1
FACE2REC2 = {
    "aligned": [f"1\t/home/me/{label}/{i}.jpg\t{label}\n" for i, label in enumerate(LABELS)],
    "landmarks": [f"0\ta b.jpg\t{label}\t1\t2\t3\t4" + 10 * "\t5" + "\n" for label in LABELS],
    "some not packed": [f"{row}\tx\t{n}\n" for n in (0, 1, 2) for row in "010" for _ in range((5, 1, 6)[n])],
}


@pytest.mark.parametrize("kind", FACE2REC2)
def test_face2rec2s_list_is_read(tmp_path, capsys, kind):
    """Its lines are aligned, path, label; those without alignment and landmarks were not packed and have no key."""
    starts = write_people(tmp_path / "src")
    file = tmp_path / "src/train.lst"
    file.write_text("".join(FACE2REC2[kind]))
    s = convert(capsys, tmp_path / "src", tmp_path / "s", "--val=0")
    assert len(s) == 12
    file.write_text("".join(FACE2REC2[kind]).replace("\t1\n", "\t2\n").replace("\t1\t1\t2", "\t2\t1\t2"))
    refuses(capsys, tmp_path, f"label 2 of key 6, but 1 in train.rec record 5 at byte {starts[5]}; remove the list")


BLANKS = {
    "im2rec": [f"{key} {label}.000000  a b/{key}.jpg\n" for key, label in enumerate(LABELS, 1)],
    "aligned": [line.replace("\t", " ") for line in FACE2REC2["aligned"]],
    "landmarks": [line.replace("a b", "ab").replace("\t", "  ") for line in FACE2REC2["landmarks"]],
    "some not packed": [line.replace("\t", " ") for line in FACE2REC2["some not packed"]],
}


@pytest.mark.parametrize("kind", BLANKS)
def test_a_list_with_blanks_for_tabs_is_read(tmp_path, kind):
    write_people(tmp_path / "src")
    file, rec = tmp_path / "src/train.lst", tmp_path / "src/train.rec"
    file.write_text("".join(BLANKS[kind]))
    assert companions.read(rec, False, lambda n: None)[0].label.tolist() == LABELS
    labels = companions._read_lst(file)[2]
    assert labels.tolist() == LABELS, "every line is compared with its record"


def test_blanks_within_a_path_of_face2rec2s_list_are_an_error(tmp_path):
    write_people(tmp_path / "src")
    (tmp_path / "src/train.lst").write_text("1 my faces/1.jpg 0\n")
    with pytest.raises(ValueError, match=r"src/train.lst:1: expected im2rec's 'key<TAB>label<TAB>path' or"):
        companions.read(tmp_path / "src/train.rec", False, lambda n: None)


def marked(text: str) -> str:
    return "\ufeff" + text


SPELLINGS = {
    "blank last line": lambda text: text + "\n",
    "blank lines": lambda text: "\n" + text.replace("\n", "\n \n"),
    "carriage returns": lambda text: text.replace("\n", "\r\n"),
    "byte-order mark": marked,
    "no last line end": lambda text: text.rstrip("\n"),
    "reversed": lambda text: "".join(reversed(text.splitlines(keepends=True))),
}


@pytest.mark.parametrize("name", ["train.idx", "train.lst", "property"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_files_beside_the_rec_as_people_save_them(tmp_path, spelling, name):
    write_people(tmp_path / "src")
    lines = "".join(f"{key}\t{label}\ta b/{key}.jpg\n" for key, label in enumerate(LABELS, 1))
    (tmp_path / "src/train.lst").write_text(lines)
    file = tmp_path / "src" / name
    file.write_text(SPELLINGS[spelling](file.read_text()), encoding="utf-8")
    faces, headers, rejected = companions.read(tmp_path / "src/train.rec", False, lambda n: None)
    assert (faces.label.tolist(), faces.key.tolist()) == (LABELS, list(range(1, 13)))
    assert ([h.key for h in headers], rejected) == ([13, 14, 15, 0], [])


@pytest.mark.parametrize("text", ["3 112 112", "3, 112, 112", "3\n112\n112\n", "3\t112\t112"])
def test_a_property_by_hand(tmp_path, text):
    write_people(tmp_path / "src")
    (tmp_path / "src/property").write_text(text)
    assert len(companions.read(tmp_path / "src/train.rec", False, lambda n: None)[0].label) == 12


def test_an_idx_with_blanks(tmp_path):
    write_people(tmp_path / "src")
    file = tmp_path / "src/train.idx"
    file.write_text(file.read_text().replace("\t", "  "))
    assert companions.read(tmp_path / "src/train.rec", False, lambda n: None)[0].key.tolist() == list(range(1, 13))


# Glint360K has 17,091,657 images: a header's numbers are float32, so keys above 2^24 are rounded to even ones
LARGE = [2**24 - 8, 2**24 - 3, 2**24 - 2, 2**24, 16_880_353, 17_091_646, 2**25 - 5, 2**26 + 1]


@pytest.mark.parametrize("first", LARGE)
@pytest.mark.parametrize("idx", [True, False])
def test_keys_that_headers_round(tmp_path, first, idx):
    starts = write_rec(tmp_path / "src", insightface(PEOPLE, first))
    if not idx:
        (tmp_path / "src/train.idx").unlink()
    faces, headers, rejected = companions.read(tmp_path / "src/train.rec", False, lambda n: None)
    assert (faces.label.tolist(), faces.key.tolist()) == (LABELS, [first + i for i in range(12)])
    assert (faces.offset.tolist(), len(headers), rejected) == (starts[:12], 4, [])


LARGE_FAULTS = {
    "label": (2, lambda key: pack(1.0, FACES[2], key), "are one identity, but"),
    "beyond": (14, lambda key: pack([float(key - 8), float(key + 8)]), "are one identity, but 4 of them are images"),
    "shorter": (14, lambda key: pack([float(key - 8), float(key - 6)]), "is in the headers of 0 identities, not of"),
    "more": (15, lambda key: pack([16_880_365.0, 16_880_375.0]), "- 1 are identities, but there are 3"),
}


@pytest.mark.parametrize("kind", LARGE_FAULTS)
def test_rounded_headers_are_still_compared_with_the_labels(tmp_path, kind):
    """What the rounding leaves certain is checked as for small keys."""
    which, change, message = LARGE_FAULTS[kind]
    records = insightface(PEOPLE, 16_880_353)
    records[which] = records[which][0], change(records[which][0])
    write_rec(tmp_path / "src", records)
    with pytest.raises(ValueError, match=message):
        companions.read(tmp_path / "src/train.rec", False, lambda n: None)


@pytest.mark.parametrize(
    ("number", "lowest", "highest"),
    [
        *[(5, 5, 5), (2**24, 2**24, 2**24 + 1), (2**24 + 2, 2**24 + 2, 2**24 + 2), (2**24 + 4, 2**24 + 3, 2**24 + 5)],
        *[(2**25 + 4, 2**25 + 3, 2**25 + 5), (2**25 + 8, 2**25 + 6, 2**25 + 10)],
    ],
)
def test_which_keys_a_float32_may_mean(number, lowest, highest):
    low, high = companions._rounded_to(float(number))
    assert (low, high) == (lowest, highest)
    assert {float(np.float32(n)) for n in range(low, high + 1)} == {float(number)}
    assert number < 2**24 or np.float32(low - 1) != number != np.float32(high + 1)


HEADERS = {
    # PEOPLE have the keys 1-5, 6, 7-12, and headers 13-15. Fault of a header -> the error
    "shorter": ({13: [1.0, 5.0]}, "record 4 at byte {4}: key 5 is in the headers of 0 identities, not of one"),
    "shifted": (
        {13: [1.0, 7.0]},
        "record 12 at byte {12}: says keys 1 to 7 - 1 are one identity, but 1 has label 0 and 6",
    ),
    "twice": (
        {14: [7.0, 13.0]},
        "record 14 at byte {14}: says keys 7 to 13 - 1 are one identity, but others of label 2",
    ),
    "overlap": ({14: [5.0, 6.0]}, "but others of label 0 are in another header's"),
    "beyond": ({15: [7.0, 20.0]}, "says keys 7 to 20 - 1 are one identity, but 6 of them are images"),
    "negative": ({15: [-7.0, 13.0]}, "record 14 at byte {14}: its header has keys -7 to 13; these are no keys"),
    "not a number": ({15: [float("nan"), 13.0]}, "its header has keys nan to 13; these are no keys"),
    "backwards": ({15: [13.0, 7.0]}, "its header has keys 13 to 7; these are no keys"),
    "first": ({0: [13.0, 15.0]}, "record 15 at byte {15}: says keys 13 to 15 - 1 are identities, but there are 3"),
    "more": ({0: [13.0, 17.0]}, "record 15 at byte {15}: says keys 13 to 17 - 1 are identities, but there are 3"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_disagree_with_the_labels(tmp_path, capsys, kind):
    change, message = HEADERS[kind]
    records = [(key, pack(change[key]) if key in change else payload) for key, payload in insightface(PEOPLE)]
    assert records != insightface(PEOPLE)
    starts = write_rec(tmp_path / "src", records)
    refuses(capsys, tmp_path, message.format(*starts))


def test_headers_without_keys(tmp_path, capsys):
    """A megabyte of such headers must not take minutes, as comparing each with each would."""
    starts = write_rec(tmp_path / "src", [(i, pack([1.0, 2.0])) for i in range(25_000)] + [(0, pack(0.0, FACES[0]))])
    (tmp_path / "src/train.idx").unlink()
    start = time.process_time()
    refuses(
        capsys, tmp_path, f"train.rec record 1 at byte {starts[1]}: a second header of key 0, the first is train.rec"
    )
    assert time.process_time() - start < 3


def test_a_label_that_disagrees_with_its_header(tmp_path, capsys):
    records = [(key, pack(1.0, FACES[2], 3) if key == 3 else payload) for key, payload in insightface(PEOPLE)]
    starts = write_rec(tmp_path / "src", records)
    message = f"record 12 at byte {starts[12]}: says keys 1 to 6 - 1 are one identity, but 1 has label 0 and 3 label 1"
    refuses(capsys, tmp_path, f"train.rec {message}")


def test_damaged_files_may_lack_what_headers_name(tmp_path, capsys):
    for which in (2, 12, 15):  # an image, an identity's header, the first header
        starts = write_people(tmp_path / "src")
        data = bytearray((tmp_path / "src/train.rec").read_bytes())
        data[starts[which]] = 0
        (tmp_path / "src/train.rec").write_bytes(data)
        (tmp_path / "src/train.idx").unlink()
        s = convert(capsys, tmp_path / "src", tmp_path / f"{which}", "--val=0")
        assert (s.manifest["recordio"]["written"], s.manifest["recordio"]["rejected"]) == (12 - (which == 2), 1)


# ---- which images go where


def test_select():
    labels = np.repeat([4, 9, 2, 7, 5], [10, 3, 10, 25, 1])
    names, index, is_val = conversion.select(labels, None, 0.2, 0)
    assert names.tolist() == [2, 4, 5, 7, 9]
    assert np.array_equal(names[index], labels)
    assert [int(is_val[labels == name].sum()) for name in names] == [2, 2, 0, 5, 0]
    assert conversion.select(labels, 2, 0.2, 0)[0].tolist() == [2, 7], "4 and 2 have ten images each: the lower label"
    few, index_few, is_val_few = conversion.select(labels, 3, 0.2, 0)
    assert few.tolist() == [2, 4, 7]
    assert np.array_equal(index_few < 0, np.isin(labels, [5, 9]))
    assert np.array_equal(is_val_few, is_val), "what validates must not depend on who else is there"
    draws = [conversion.select(labels, None, 0.2, seed)[2] for seed in range(200)]
    assert np.array_equal(draws[0], is_val)
    share = np.mean(draws, 0)[labels == 4]
    assert np.abs(share - 0.2).max() < 0.12, "every image is drawn alike"  # 200 draws: standard deviation 0.03
    assert not conversion.select(labels, None, 0.0, 0)[2].any()


def test_training_and_validation_stores(tmp_path, capsys):
    write_people(tmp_path / "src")
    s = convert(capsys, tmp_path / "src", tmp_path / "s", "--top=2", "--val=0.4", "--seed=3")
    val = stores.Store(tmp_path / "s/val", "val")
    assert s.identities == val.identities == ["0", "2"]
    assert (np.bincount(s.labels).tolist(), np.bincount(val.labels).tolist()) == ([3, 4], [2, 2])
    both = content(s) + content(val)
    assert sorted(both) == sorted((face, str(i)) for i in (0, 2) for face in PEOPLE[i])
    assert s.manifest["recordio"]["left_out"] == 1
    assert s.manifest["recordio"] == val.manifest["recordio"]
    other = convert(capsys, tmp_path / "src", tmp_path / "t", "--top=2", "--val=0.4", "--seed=4")
    assert other.sources != s.sources
    for path, split in ((s.path, "train"), (val.path, "val")):
        source = tfds.builder_from_directory(path).as_data_source(split)
        assert [source[i]["source"].decode() for i in range(len(source))] == stores.Store(path, split).sources


@pytest.mark.parametrize("option", ["--top=4", "--top=0", "--val=1", "--val=-0.1", "--seed=-1", "--workers=0"])
def test_options_out_of_range(tmp_path, capsys, option):
    write_people(tmp_path / "src")
    refuses(capsys, tmp_path, option, option)


# ---- shards, workers, interruptions


def test_shards_and_workers_do_not_change_the_records(tmp_path, capsys, monkeypatch):
    """Three shards by one or two processes have the same bytes; one shard has the same records and data_hash."""
    write_people(tmp_path / "src")
    whole = convert(capsys, tmp_path / "src", tmp_path / "whole")
    monkeypatch.setattr(shards, "SHARD_RECORDS", 4)
    s = convert(capsys, tmp_path / "src", tmp_path / "s")
    convert(capsys, tmp_path / "src", tmp_path / "t", "--workers=2")
    assert files(tmp_path / "s") == files(tmp_path / "t")
    assert [x["records"] for x in s.manifest["shards"]] == [4, 4, 2]
    assert (content(s), s.data_hash) == (content(whole), whole.data_hash)
    with stores.Writer(tmp_path / "w", split="train", sources=[]) as writer:
        for (jpeg, name), source in zip(content(s), s.sources):
            writer.add(jpeg, name, source)
    assert stores.Store(tmp_path / "w").data_hash == s.data_hash, "the other way to write a store"


def test_a_shard_of_which_nothing_is_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_RECORDS", 2)
    faces = [FACES[0], FACES[1], b"x", b"y", FACES[2]]
    write_rec(tmp_path / "src", [(i, pack(0.0, face)) for i, face in enumerate(faces)])
    s = convert(capsys, tmp_path / "src", tmp_path / "s", "--val=0")
    assert [x["records"] for x in s.manifest["shards"]] == [2, 0, 1]
    assert [s.jpeg(i) for i in range(3)] == FACES[:3]
    assert len(tfds.builder_from_directory(s.path).as_data_source("train")) == 3


def interrupted(tmp_path, capsys, monkeypatch, finished: int) -> Path:
    """Return the working folder of a conversion that ended after the given number of shards."""
    write = shard_jobs.write_shard

    def then(job):
        if len(list(job.done.parent.glob("*.json"))) == finished:
            raise KeyboardInterrupt
        return write(job)

    with monkeypatch.context() as patch:
        patch.setattr(shard_jobs, "write_shard", then)
        with pytest.raises(KeyboardInterrupt):
            run(capsys, "recordio", f"--src={tmp_path / 'src'}", f"--dst={tmp_path / 's'}", "--workers=1")
    return tmp_path / ".s.partial"


def test_finished_shards_are_kept_and_spoiled_ones_written_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_RECORDS", 3)
    write_people(tmp_path / "src")
    convert(capsys, tmp_path / "src", tmp_path / "undisturbed")
    work = interrupted(tmp_path, capsys, monkeypatch, 3)
    (work / "done/train-00002.123.tmp").write_bytes(b"half a shard")
    written = sorted((work / "store").rglob("faces-*"))
    assert len(written) == 3
    written[1].write_bytes(written[1].read_bytes()[:-1])
    inodes = [shard.stat().st_ino for shard in written]
    convert(capsys, tmp_path / "src", tmp_path / "s")
    assert files(tmp_path / "s") == files(tmp_path / "undisturbed")
    after = [(tmp_path / "s" / shard.relative_to(work / "store")).stat().st_ino for shard in written]
    assert [a == b for a, b in zip(inodes, after)] == [True, False, True]
    assert not work.exists()


def test_what_is_kept_is_of_the_same_source_and_options(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_RECORDS", 3)
    write_people(tmp_path / "src")
    work = interrupted(tmp_path, capsys, monkeypatch, 1)
    command = "recordio", f"--src={tmp_path / 'src'}", "--workers=1"
    message = f"{work}: left by a conversion of another source, other options"
    for option in ("--seed=1", "--val=0.3", "--top=2", "--resize"):
        fails(capsys, tmp_path / "s", message, *command, option)
    os.utime(tmp_path / "src/train.rec", (1, 1))
    fails(capsys, tmp_path / "s", message, *command)
    assert list((work / "done").glob("*.json"))


def test_two_at_once(tmp_path, capsys, monkeypatch):
    write_people(tmp_path / "src")
    write, seen = shard_jobs.write_shard, []

    def meanwhile(job):
        if not seen:
            seen.append(run(capsys, "recordio", f"--src={tmp_path / 'src'}", f"--dst={tmp_path / 's'}", "--workers=1"))
        return write(job)

    monkeypatch.setattr(shard_jobs, "write_shard", meanwhile)
    convert(capsys, tmp_path / "src", tmp_path / "s")
    assert seen[0][0] == 2
    assert f"{tmp_path}/.s.partial: another process is at work there" in seen[0][2]


def test_a_file_that_changes_meanwhile(tmp_path, capsys, monkeypatch):
    write_people(tmp_path / "src")
    real = conversion.run_jobs

    def then(jobs, workers):
        os.truncate(tmp_path / "src/train.rec", 4000)
        return real(jobs, workers)

    monkeypatch.setattr(conversion, "run_jobs", then)
    refuses(capsys, tmp_path, "train.rec: changed while it was read: train.rec record")


KILLED = """
    import os, signal, sys, threading, time
    from fvjax.data import prepare
    from fvjax.data.stores import shards
    if __name__ == "__main__":
        shards.SHARD_RECORDS = 40
        src, dst, workers, moment = sys.argv[1:]
        if moment != "never":
            threading.Timer(float(moment), lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        start = time.perf_counter()
        code = prepare.main(["recordio", f"--src={src}", f"--dst={dst}", f"--workers={workers}"])
        print(time.perf_counter() - start, flush=True)
        os._exit(code)
"""


def killed(tmp_path: Path, times: int, workers: int, capsys, monkeypatch) -> tuple[int, int]:
    """Kill a conversion of 900 records at random moments, and rerun it each time.

    Return the number of kills, and how many finished shards the reruns found.
    """
    src, script = tmp_path / "src", tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    write_rec(src, insightface([FACES[:6] * 50, FACES[6:] * 100]))

    def start(dst, moment):
        command = [sys.executable, str(script), str(src), str(dst), str(workers), str(moment)]
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        # returns when the last worker has closed its end of the pipes
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=False)

    undisturbed = start(tmp_path / "undisturbed", "never")
    assert undisturbed.returncode == 0, undisturbed.stderr
    seconds, want = float(undisturbed.stdout.splitlines()[-1]), files(tmp_path / "undisturbed")
    assert sum("array_record" in name for name in want) == 23
    monkeypatch.setattr(shards, "SHARD_RECORDS", 40)
    moments, hit, kept = random.Random(workers), 0, 0
    for i in range(5 * times):  # a run that ends before it is killed does not count
        if hit == times:
            break
        dst, work = tmp_path / f"{i}", tmp_path / f".{i}.partial"
        done = start(dst, moments.uniform(0, seconds))
        assert done.returncode in (-9, 0), done.stderr
        if done.returncode == 0:
            seconds = min(seconds, float(done.stdout.splitlines()[-1]))
            continue
        hit += 1
        if not dst.exists():
            finished = [
                re.sub(r"(.*)-(\d+)\.json", r"faces-\1.array_record-\2-", f.name) for f in work.glob("done/*.json")
            ]
            before = {f: f.stat().st_ino for name in finished for f in work.rglob(f"{name}*")}
            assert len(before) == len(finished)
            kept += len(finished)
            convert(capsys, src, dst)
            assert not work.exists()
            for file, inode in before.items():
                assert (dst / file.relative_to(work / "store")).stat().st_ino == inode, "it was written again"
        assert files(dst) == want, f"moment {i}"
    return hit, kept


def test_killed_at_random_moments(tmp_path, capsys, monkeypatch):
    hit, _ = killed(tmp_path, 4, 1, capsys, monkeypatch)
    assert hit == 4


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_twenty_random_moments(tmp_path, capsys, monkeypatch, workers):
    hit, kept = killed(tmp_path, 20, workers, capsys, monkeypatch)
    print(f"{workers} workers: killed {hit} times, {kept} finished shards found and kept")
    assert hit == 20
    assert kept


# ---- a .rec gives the same store as a folder of the same crops


@pytest.mark.parametrize("faces", ["synthetic", "real"])
def test_trains_to_the_same_bits_as_a_folder(tmp_path, capsys, monkeypatch, request, faces):
    if faces == "real":
        src, batch = request.getfixturevalue("real_data") / "faces/cfp112", 700
    else:
        src, batch = tmp_path / "crops", 12
        for i in range(60):
            file = src / f"{i % 12:03d}/shot/{i // 12}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(images.encode(synthetic.face(i % 12, i // 12, 0)))
    assert run(capsys, "folder", f"--src={src}", f"--dst={tmp_path / 'folder'}")[0] == 0
    folder = stores.Store(tmp_path / "folder")
    assert len(folder) == (6972 if faces == "real" else 60), "28 of the 7,000 are copies"
    people = [[] for _ in folder.identities]
    for label, source in zip(folder.labels, folder.sources):
        people[label].append((src / source).read_bytes())
    write_people(tmp_path / "rec", people)
    packed = convert(capsys, tmp_path / "rec", tmp_path / "recordio", "--val=0")
    assert np.array_equal(packed.labels, folder.labels)
    assert all(packed.jpeg(i) == folder.jpeg(i) for i in range(len(folder)))
    states = []
    for path in (packed.path, folder.path):
        config = small(path, batch_size=batch, epochs=1, **{"checkpoint.every_steps": 100})
        assert Commands(monkeypatch, capsys).main(config, tmp_path / f"run-{path.name}") == 0, capsys.readouterr().err
        states.append(saved(tmp_path / f"run-{path.name}"))
    (steps, ours), (other_steps, theirs) = states
    assert steps == other_steps
    assert steps >= 3
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


# ---- arbitrary bytes

CASES = int(os.environ.get("FVJAX_FUZZ_CASES", 300))
WORDS = [0, 1, 2, 24, 28, 1 << 16, (1 << 29) - 1, 1 << 29, 2 << 29, 3 << 29, 7 << 29, 0xFFFFFFFF, 0x7FC00000]


@st.composite
def written_all_kinds(draw) -> tuple[bytes, str | None]:
    """Draw a .rec, with or without an .idx, and change some of its words, bytes and pieces."""
    odd = st.sampled_from([0.0, 1.0, 2.5, [1.0, 0.0], [0.0], [], [1.0] * 9])
    faces = st.sampled_from([FACES[0], FACES[1][:700], with_marks(FACES[2], 2), b"", b"x", MARK, MARK * 3 + b"yz"])
    people = draw(st.lists(st.lists(st.sampled_from(FACES), min_size=1, max_size=3), max_size=3))
    entries = [(key + 50, pack(draw(odd), draw(faces), key)) for key in range(draw(st.integers(0, 4)))]
    entries = draw(st.sampled_from([entries, insightface(people), insightface(people) + entries]))
    starts, data = [], b""
    for _, payload in entries:
        starts.append(len(data))
        data += frame(payload)
    idx = [f"{key}\t{at}\n" for (key, _), at in zip(entries, starts)]
    data = bytearray(data)
    for _ in range(draw(st.integers(0, 3))):
        anywhere = st.integers(0, len(data))
        place = draw(st.sampled_from(starts) if starts and draw(st.booleans()) else anywhere) // 4 * 4
        kind = draw(st.sampled_from(["word", "byte", "cut", "out", "in", "again"]))
        if kind == "word":
            place += 4 * draw(st.integers(0, 8))
            word = draw(st.sampled_from([*WORDS, records.MAGIC, len(data)]) | st.integers(0, 2**32 - 1))
            data[place : place + 4] = struct.pack("<I", word)
        elif kind == "byte":
            place = draw(anywhere)
            data[place : place + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "cut":
            del data[draw(anywhere) :]
        elif kind == "out":
            del data[place : place + draw(st.sampled_from([1, 4, 32, 400, 4000]))]
        elif kind == "in":
            data[place:place] = draw(st.sampled_from([MARK, MARK * 9, b"\0" * 64, bytes(3)]))
        else:
            data[place:place] = data[place : place + draw(st.sampled_from([4, 8, 40, 3000]))]
    if draw(st.integers(0, 2)):
        return bytes(data), None
    if idx and draw(st.booleans()):
        at = draw(st.integers(0, len(idx) - 1))
        idx[at] = draw(st.sampled_from(["", "a\tb\n", "1\t2\t3\n", "1\t0\n", f"9\t{2**62}\n", "\n", idx[-1] * 2]))
    return bytes(data), "".join(idx)


def everything_is_in_one_of_them(rec: Path, found, headers, rejected) -> None:
    """Assert that images, headers and rejected parts cover the file without gaps and are numbered in order."""
    data = rec.read_bytes()
    places = [(int(n), int(a), int(a + size)) for n, a, size in zip(found.number, found.offset, found.size)]
    places += [(h.number, h.offset, h.offset + records.parse(data[h.offset :])[3]) for h in headers]
    places = sorted(places + [(r.record, r.offset, r.end) for r in rejected if r.file == str(rec)])
    assert [n for n, *_ in places] == list(range(len(places)))
    assert [0, *(end for *_, end in places)] == [*(start for _, start, _ in places), len(data)]


def test_anything_is_read_or_refused(tmp_path_factory):
    """No input causes a crash, a second of computation or 256 MB, and every byte and record is accounted for."""
    folder = tmp_path_factory.mktemp("fuzz")
    rec, seen = folder / "train.rec", {"cases": 0, "converted": 0, "rejected": 0}

    @settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(written_all_kinds(), st.sampled_from([40, 256, scanner.BLOCK]))
    def check(pair, block):
        data, idx = pair
        rec.write_bytes(data)
        (folder / "train.idx").unlink(missing_ok=True)
        if idx is not None:
            (folder / "train.idx").write_text(idx)
        shutil.rmtree(folder / "s", ignore_errors=True)
        tracemalloc.reset_peak()
        start, before = time.process_time(), tracemalloc.get_traced_memory()[0]
        scanned = scanner.scan(rec, lambda n: None)
        everything_is_in_one_of_them(rec, *scanned)
        made = None
        with contextlib.suppress(ValueError), Progress(disable=True) as bar:
            made = conversion.convert(folder, folder / "s", top=None, val=0, seed=0, workers=1, resize=False, bar=bar)
        assert time.process_time() - start < 1
        assert tracemalloc.get_traced_memory()[1] - before < 256 << 20
        seen["cases"] += 1
        assert (folder / "s").exists() == (made is not None)
        assert not (folder / ".s.partial").exists()
        if made is not None:
            counts, rejected = made.manifest["recordio"], made.manifest["rejected"]
            assert len(made) + len(rejected) == counts["read"]
            assert len(scanned[0].number) + len(scanned[2]) <= counts["read"]  # more if the .idx lists lost records
            assert all(r["record"] >= 0 and r["offset"] >= 0 and r["reason"] for r in rejected)
            made.images(range(len(made)))
            seen["converted"] += 1
            seen["rejected"] += len(rejected)
        # the borders of the blocks that are read make no difference
        whole, scanner.BLOCK = scanner.BLOCK, block
        try:
            again = scanner.scan(rec, lambda n: None)
        finally:
            scanner.BLOCK = whole
        assert all(np.array_equal(a, b) for a, b in zip(scanned[0], again[0]))
        assert repr(scanned[1:]) == repr(again[1:])

    tracemalloc.start()
    try:
        check()
    finally:
        tracemalloc.stop()
    print(seen)
    assert 0.1 < seen["converted"] / seen["cases"] < 0.9
    assert seen["rejected"]
