"""Test RecordIO files at their edges: the longest record, labels that look like others, kinds of rejections."""

import hashlib
import json
import struct

import numpy as np
import pytest
from simplejpeg import encode_jpeg

from fvjax.data.readers.recordio import companions, records, scanner, shard_jobs
from fvjax.data.stores import shards
from tests.test_recordio import FACES, pack, write_rec


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


# ---- one shard


@pytest.fixture
def job(tmp_path) -> shard_jobs.Job:
    """Return the job of a shard of three records, of which the second is no picture."""
    images = [FACES[0], b"no picture", FACES[1]]
    starts = np.array(write_rec(tmp_path, [(i, pack(float(i), image, i)) for i, image in enumerate(images)]))
    rec = tmp_path / "train.rec"
    sizes = np.diff([*starts, rec.stat().st_size]).astype(np.int32)
    columns = np.array([7, 8, 9]), starts, sizes, np.array([40, 41, 42], np.int32), np.array([0, 1, 2])
    return shard_jobs.Job(tmp_path / "store", rec, *columns, tmp_path / "shard", tmp_path / "0.done", resize=False)


def test_where_a_rejected_record_lies(job):
    start = int(job.offsets[1])
    assert job.rejected(1, "x") == records.Rejected(str(job.rec), 8, start, start + int(job.sizes[1]), "x")
    assert job.source(8) == "train.rec#8"


def test_a_shard_is_written_once_and_again_if_it_was_changed(job):
    assert shard_jobs.write_shard(job) == 3
    done = json.loads(job.done.read_text())
    assert (done["records"], [number for number, _ in done["rejected"]]) == (2, [1])
    assert "record 8" in done["rejected"][0][1]
    assert done["sha256"] == hashlib.sha256(job.file.read_bytes()).hexdigest()
    expected = [shards.record_digest(FACES[i], str(40 + 2 * i), f"train.rec#{7 + 2 * i}") for i in (0, 1)]
    assert job.done.with_suffix(".digests").read_bytes() == b"".join(expected)
    assert sorted(path.name for path in job.done.parent.iterdir() if path.suffix == ".tmp") == []
    written = job.file.stat().st_ino
    assert list(shard_jobs.run_jobs([job], 5)) == [3]
    assert job.file.stat().st_ino == written, "a finished shard is left alone"
    job.file.write_bytes(b"damaged")
    assert list(shard_jobs.run_jobs([job], 1)) == [3]
    assert hashlib.sha256(job.file.read_bytes()).hexdigest() == done["sha256"]


def test_a_record_that_changed_and_one_of_another_size_stop_a_shard(job):
    for other in (job._replace(offsets=job.offsets + 4), job._replace(sizes=job.sizes - 8)):
        with pytest.raises(ValueError, match=r"train\.rec: changed while it was read: .*record 7 at byte"):
            shard_jobs.write_shard(other)
    (folder := job.rec.parent / "large").mkdir()
    write_rec(folder, [(0, pack(0.0, encode_jpeg(np.zeros((24, 24, 3), np.uint8))))])
    size = (folder / "train.rec").stat().st_size
    one = job._replace(rec=folder / "train.rec", offsets=np.array([0]), sizes=np.array([size], np.int32))
    with pytest.raises(ValueError, match=r"large/train\.rec: .*24x24, expected 112x112"):
        shard_jobs.write_shard(one)
    assert not job.file.exists()
    assert not job.done.exists()
    assert shard_jobs.write_shard(one._replace(resize=True)) == 3
