"""Test pictures as cameras and editors write them: bytes behind the picture, many scans, odd modes, broken metadata."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fvjax import errors
from fvjax.data import images, picture_bytes, prepare, stores
from tests.test_images import file_bytes, smooth_face
from tests.test_recordio import frame, pack

FACE = Image.fromarray(smooth_face(3))
PIXELS = smooth_face(3).astype(int)
JPEG_OPTIONS = {"quality": 95, "subsampling": 0}
JPEG = file_bytes(FACE, "JPEG", **JPEG_OPTIONS)
VIDEO = bytes(8) + b"ftypmp42" + b"\xff\xda\xff\xd9\xff\xd8" * 400
TURNED = Image.Exif()
TURNED[0x0112] = 3


def encode(kind, image=FACE, **options):
    usual = {"JPEG": JPEG_OPTIONS, "MPO": JPEG_OPTIONS, "WEBP": {"lossless": True}}
    return file_bytes(image, kind, **(usual.get(kind, {}) | options))


def assert_shows(data, expected=PIXELS):
    """Assert that every reader of image files sees the picture."""
    assert np.abs(images.photograph(data, "x").astype(int) - expected).mean() < 1
    assert np.abs(images.decode(images.to_jpeg(data, "x"), "x").astype(int) - expected).mean() < 1


# ---- bytes behind the picture


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_bytes_behind_the_picture_are_not_stored(kind):
    data = encode(kind)
    assert picture_bytes.trim(data) is data
    assert picture_bytes.trim(data + VIDEO) == data
    assert images.to_jpeg(data + VIDEO, "x") == images.to_jpeg(data, "x")
    assert_shows(data + VIDEO)


def test_bytes_behind_the_picture_are_not_scanned(monkeypatch):
    monkeypatch.setattr(images, "MAX_WORK", 20 * 112 * 112)
    assert images.to_jpeg(JPEG + VIDEO, "x") == JPEG
    assert np.abs(images.decode(JPEG + VIDEO, "x").astype(int) - PIXELS).mean() < 1
    thumbnail = JPEG[:2] + b"\xff\xe2" + struct.pack(">H", 2 + len(VIDEO)) + VIDEO + JPEG[2:]
    assert picture_bytes.jpeg_scans(thumbnail) == 1
    assert_shows(thumbnail)


def test_a_preview_within_a_picture_does_not_end_it():
    data = JPEG[:2] + b"\xff\xe2" + struct.pack(">H", 2 + len(JPEG)) + JPEG + JPEG[2:]
    assert picture_bytes.trim(data + VIDEO) == data
    assert_shows(data + VIDEO)


def test_a_second_picture_behind_the_first_is_not_stored():
    data = encode("MPO", save_all=True, append_images=[Image.fromarray(smooth_face(9))])
    assert picture_bytes.trim(data).endswith(b"\xff\xd9")
    assert len(picture_bytes.trim(data)) < 0.6 * len(data)
    assert_shows(data)
    assert picture_bytes.media_type(data) == "image/jpeg", "Pillow says MPO, which no endpoint knows"


def test_the_end_of_other_and_damaged_files_is_not_guessed():
    for data in (
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff",
        JPEG[:300],
        encode("PNG")[:99],
        encode("BMP"),
        b"RIFF1234WEBP",
        b"x",
    ):
        assert picture_bytes.trim(data) == data
        assert picture_bytes.without_metadata(data, False)[:2] == data[:2]
    with pytest.raises(ValueError, match="neither JPEG, PNG nor WebP"):
        picture_bytes.media_type(encode("BMP"))


def test_segments_without_end_take_little_time():
    """Marks whose length leads nowhere: only so many are followed, and then every mark counts."""
    data = b"\xff\xd8" + b"\xff\xe0\x00\x02" * 200_000 + b"\xff\xda" * 3
    assert picture_bytes.jpeg_scans(data) == 3
    assert picture_bytes.trim(data) == data
    fill = b"\xff\xd8" + b"\xff" * 1_000_000 + b"\x00"
    assert picture_bytes.trim(fill) == fill


# ---- many scans


@pytest.mark.parametrize(("mode", "scans"), [("L", 6), ("RGB", 10), ("CMYK", 18)])
def test_progressive_photographs_up_to_the_stated_size(mode, scans):
    data = encode("JPEG", FACE.convert(mode), progressive=True)
    assert picture_bytes.jpeg_scans(data) == data.count(b"\xff\xda") == scans
    images._check_scans(data, 8192, 8192, "x")
    assert images.MAX_PHOTOGRAPH == 8192 * 8192
    with pytest.raises(images.TooManyScans, match=f"x: refused, a JPEG of 8192x{30 * 8192} in {scans} scans"):
        images._check_scans(data, 8192, 30 * 8192, "x")


def test_a_progressive_photograph_of_24_scans_at_the_limit_is_refused():
    data = encode("JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    with pytest.raises(images.TooManyScans, match="in 24 scans"):
        images._check_scans(data[:-2] + 14 * data[at:-2] + data[-2:], 8192, 8192, "x")


# ---- modes


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_every_8_bit_mode_is_read(mode, kind):
    image = FACE.quantize(64) if mode == "P" else FACE.convert(mode, dither=Image.Dither.NONE)
    if (mode, kind) == ("LA", "BMP"):
        pytest.skip("BMP has no such mode")
    assert_shows(encode(kind, image), np.asarray(image.convert("RGB")).astype(int))


def test_a_palette_with_transparency_prints_no_warning(recwarn):
    image = FACE.quantize(64)
    assert_shows(encode("PNG", image, transparency=bytes(range(64))), np.asarray(image.convert("RGB")).astype(int))
    assert not list(recwarn)


# ---- broken metadata


def png_with(name: bytes, content: bytes, crc: int | None = None, **options) -> bytes:
    """Return a PNG with one more chunk behind its header."""
    data = encode("PNG", **options)
    crc = zlib.crc32(name + content) if crc is None else crc
    return data[:33] + struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc) + data[33:]


def bomb() -> bytes:
    return b"Comment\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1))


def jpeg_with(marker: int, content: bytes, **options) -> bytes:
    data = encode("JPEG", **options)
    return data[:2] + struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content + data[2:]


def webp_with(name: bytes, content: bytes, size: int | None = None, **options) -> bytes:
    data = encode("WEBP", **options) + name + struct.pack("<I", len(content) if size is None else size) + content
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


BROKEN = {
    "png, checksum of a text": lambda **o: png_with(b"tEXt", b"Comment\0x", crc=1, **o),
    "png, checksum of a profile": lambda **o: png_with(b"iCCP", b"x\0\0nonsense", crc=1, **o),
    "png, profile": lambda **o: png_with(b"iCCP", b"x\0\0nonsense", **o),
    "png, a text that explodes": lambda **o: png_with(b"zTXt", bomb(), **o),
    "png, time": lambda **o: png_with(b"tIME", b"", crc=2, **o),
    "jpeg, profile": lambda **o: jpeg_with(0xE2, b"ICC_PROFILE\0\1\2x", **o),
    "jpeg, pictures of phones": lambda **o: jpeg_with(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff", **o),
    "jpeg, Photoshop": lambda **o: jpeg_with(0xED, b"Photoshop 3.0\x008BIM\x04", **o),
    "jpeg, comment": lambda **o: jpeg_with(0xFE, b"\xff\xfe", **o),
    "webp, cut XMP": lambda **o: webp_with(b"XMP ", b"<x", size=1000, **o),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_metadata_do_not_cost_the_picture(case):
    assert_shows(BROKEN[case]())


@pytest.mark.parametrize("case", BROKEN)
def test_a_picture_with_broken_metadata_is_still_turned(case):
    expected = np.asarray(FACE.rotate(180)).astype(int)
    assert_shows(BROKEN[case](exif=TURNED), expected)


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0", b"x"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_exif_that_cannot_be_read_turns_nothing(kind, exif):
    assert_shows(encode(kind, exif=exif))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_metadata_are_removed_and_the_picture_stays(kind):
    exif = TURNED.tobytes()
    data = encode(kind, exif=exif, icc_profile=b"profile" * 9)
    assert Image.open(io.BytesIO(data)).info["icc_profile"]
    for keep in (True, False):
        bare = picture_bytes.without_metadata(data, keep)
        image = Image.open(io.BytesIO(bare))
        assert "icc_profile" not in image.info
        assert image.getexif().get(0x0112) == (3 if keep else None)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_half_a_picture_is_still_refused(kind):
    data = encode(kind, exif=TURNED)
    with pytest.raises(ValueError, match="x: cannot be read as an image"):
        images.photograph(data[: len(data) // 2], "x")


def test_transparency_survives_the_removal_of_metadata():
    data = picture_bytes.without_metadata(encode("PNG", FACE.convert("P"), transparency=3), False)
    assert Image.open(io.BytesIO(data)).info["transparency"] == 3


# ---- texts of errors


def test_errors_have_no_memory_addresses():
    for data in (b"GIF89a", b"", b"\x89PNG", JPEG[:40]):
        for read in (images.photograph, images.to_jpeg, images.decode):
            with pytest.raises(ValueError, match="x: ") as error:
                read(data, "x")
            assert "0x" not in str(error.value)
    assert errors.without_addresses("<_io.BytesIO object at 0x7f3aC0>, 0x10") == "<_io.BytesIO object>, 0x10"
    assert errors.line(ValueError("<X at 0x12ab>")) == "<X>"


def test_two_equal_conversions_give_equal_manifests(tmp_path, capsys):
    src = tmp_path / "src"
    (src / "folder/ann").mkdir(parents=True)
    records = [frame(pack(i % 2, images.encode(smooth_face(i)) if i != 4 else b"GIF89a", i)) for i in range(6)]
    (src / "train.rec").write_bytes(b"".join(records))
    (src / "folder/ann/1.jpg").write_bytes(JPEG)
    (src / "folder/ann/2.jpg").write_bytes(b"GIF89a")
    for command, source in (("recordio", src), ("folder", src / "folder")):
        made = [tmp_path / f"{command}{i}" for i in range(2)]
        workers = ["--workers=1"]
        for dst in made:
            assert prepare.main([command, f"--src={source}", f"--dst={dst}", *workers]) == 0
        one, other = ((dst / "manifest.json").read_bytes() for dst in made)
        assert one == other
        assert b"0x" not in one
        kinds = stores.Store(made[0]).manifest["rejected_by_reason"]
        assert kinds == {"cannot be read as an image": 1}
    assert "by reason: 1 cannot be read as an image" in capsys.readouterr().out
