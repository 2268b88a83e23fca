"""Test RecordIO files at their edges: the longest record, labels that look like others, kinds of rejections."""

import struct

import numpy as np
import pytest

from fvjax.data.readers.recordio import companions, records, scanner
from tests.test_recordio import pack, write_rec


def test_an_image_that_starts_like_a_label_is_no_label(tmp_path):
    """A record's label is in its header, and in the words behind it only if the header counts them."""
    image = struct.pack("<f", 3.0) + b"xyz"
    write_rec(tmp_path, [(0, pack(5.0, image)), (1, pack(0.0, image)), (2, pack([7.0, 8.0, 9.0], image))])
    found, headers, rejected = scanner.scan(tmp_path / "train.rec", lambda n: None)
    assert found.label.tolist() == [5, 0, 7]
    assert (headers, rejected) == ([], [])


def test_the_longest_record_has_sixteen_mebibytes():
    """Another limit would reject records that were read before, or reserve memory for a damaged length."""
    for size, message in ((16 * 2**20, "but only 8 follow"), (16 * 2**20 + 4, "more than any face")):
        with pytest.raises(ValueError, match=f"its length is {size} bytes, {message}"):
            records.parse(records.HEAD.pack(records.MAGIC, size - records.HEAD.size))


@pytest.mark.parametrize(
    ("file", "reason", "kind"),
    [
        ("a/train.idx", "train.idx:5: key 14 should be at byte 9", "line of the .idx without a record"),
        ("a/train.rec", "train.rec record 3: 8 bytes that belong to no record: damaged", "damaged"),
        ("a/train.rec", "train.rec record 3: 24x24, expected 112x112: resize it", "24x24"),
        ("a/train.rec", "train.rec record 3: cannot be read (no JPEG, PNG): x", "cannot be read"),
    ],
)
def test_the_kind_of_a_rejection_is_what_stands_before_the_details(file, reason, kind):
    assert records.Rejected(file, 3, 0, 8, reason).kind == kind


def test_integers_that_one_float32_stands_for():
    """Header records have keys as float32, of which the larger ones stand for several integers each."""
    for center in (2**23, 2**24, 2**25, 2**26 + 16):
        integers = np.arange(center - 20, center + 21)
        rounded = integers.astype(np.float32).astype(np.int64)
        for number in range(center - 10, center + 11):
            if number in rounded:
                same = integers[rounded == number]
                assert companions._rounded_to(float(number)) == (same[0], same[-1]), number


def test_an_idx_may_list_every_record_and_only_those(tmp_path, monkeypatch):
    """The lines of images, of headers and of rejected records count; MAX_REJECTED more may point into damage."""
    monkeypatch.setattr(companions, "MAX_REJECTED", 0)
    people = [(number, pack(float(number > 2), b"abc", number)) for number in (1, 2, 3)]
    headers = [(4, pack([1.0, 3.0], b"", 4)), (5, pack([3.0, 4.0], b"", 5)), (0, pack([4.0, 6.0]))]
    write_rec(tmp_path, [*people, *headers, (6, pack(0.5, b"x", 6))])
    rec, idx = tmp_path / "train.rec", tmp_path / "train.idx"
    found, headers_read, rejected = companions.read(rec, False, lambda n: None)
    assert (found.key.tolist(), len(headers_read), len(rejected)) == ([1, 2, 3], 3, 1)
    idx.write_text(f"{idx.read_text()}7\t{rec.stat().st_size}\n")
    with pytest.raises(ValueError, match=r"more lines than train\.rec has records"):
        companions.read(rec, False, lambda n: None)


def test_lines_of_face2rec2_have_three_cells_and_start_with_one_or_zero():
    for cells in (["1", "a.jpg", "3"], ["0", "a.jpg", "3", "9"]):
        assert companions._is_face2rec2(cells)
    for cells in (["5", "a.jpg", "3"], ["1", "a.jpg"], ["x", "a.jpg"], ["1", "2", "a.jpg"]):
        assert not companions._is_face2rec2(cells)
