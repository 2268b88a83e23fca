"""Test RecordIO files at their edges: the longest record, labels that look like others, kinds of rejections."""

import struct

import pytest

from fvjax.data.readers.recordio import records, scanner
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
