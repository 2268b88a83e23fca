"""Test images at their limits: the allowed number of pixels and scans, and one more; which bytes are kept."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from fvjax.data import images


def picture(width: int, height: int) -> Image.Image:
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
    return Image.fromarray(np.stack(np.broadcast_arrays(across, down[:, None], 128.0), -1).astype(np.uint8))


def file_bytes(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


FACE = picture(112, 112)
READERS = {
    "decode": lambda data: images.decode(data, "x"),
    "check": lambda data: images.check(data, "x"),
    "to_jpeg": lambda data: images.to_jpeg(data, "x"),
    "photograph": lambda data: images.photograph(data, "x"),
}


def test_the_limits_are_what_the_comments_say():
    assert images.SIZE == 112
    assert images.MAX_PIXELS == 4096**2
    assert images.MAX_WORK == 20 * 8192**2  # 20 scans of the largest photograph
    assert images.MAX_PHOTOGRAPH * 3 == 192 * 2**20  # 200 MB decoded


@pytest.mark.parametrize("reader", READERS)
def test_as_many_scans_as_allowed_and_one_more(reader, monkeypatch):
    jpeg = file_bytes(FACE, progressive=True)
    scans = jpeg.count(b"\xff\xda")
    assert scans > 3
    monkeypatch.setattr(images, "MAX_WORK", scans * 112 * 112)
    READERS[reader](jpeg)
    monkeypatch.setattr(images, "MAX_WORK", scans * 112 * 112 - 1)
    with pytest.raises(ValueError, match=f"a JPEG of 112x112 in {scans} scans"):
        READERS[reader](jpeg)


def test_only_a_jpeg_has_scans(monkeypatch):
    monkeypatch.setattr(images, "MAX_WORK", 1)
    images._check_scans(b"\x89PNG" + b"\xff\xda" * 99, 112, 112, "x")
    with pytest.raises(ValueError, match="in 1 scans"):
        images._check_scans(b"\xff\xd8\xff\xda", 112, 112, "x")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_as_many_pixels_as_allowed_and_one_more(kind, monkeypatch):
    data = file_bytes(FACE, kind)
    monkeypatch.setattr(images, "MAX_PIXELS", 112 * 112)
    images.to_jpeg(data, "x")
    monkeypatch.setattr(images, "MAX_PIXELS", 112 * 112 - 1)
    with pytest.raises(images.WrongSize, match="112x112 pixels in the header, refused"):
        images.to_jpeg(data, "x")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_photograph_of_any_shape_up_to_its_limit(kind, monkeypatch):
    data = file_bytes(picture(90, 50), kind)
    monkeypatch.setattr(images, "MAX_PHOTOGRAPH", 90 * 50)
    got = images.photograph(data, "x")
    assert (got.shape, got.dtype) == ((50, 90, 3), np.uint8)
    assert got.flags.writeable
    assert np.abs(got.astype(int) - np.asarray(picture(90, 50))).mean() < 2
    monkeypatch.setattr(images, "MAX_PHOTOGRAPH", 90 * 50 - 1)
    with pytest.raises(ValueError, match=r"x: cannot be read as an image \(90x50 pixels in the header, refused"):
        images.photograph(data, "x")


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_exif_turns_photographs_and_faces_alike(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = file_bytes(FACE, exif=exif, quality=95)
    expected = np.rot90(np.asarray(FACE), {1: 0, 3: 2, 6: 3, 8: 1}[turn]).astype(int)
    assert np.abs(images.photograph(data, "x").astype(int) - expected).mean() < 2
    kept = images.to_jpeg(data, "x")
    assert np.abs(images.decode(kept, "x").astype(int) - expected).mean() < 2
    assert (kept == data) == (turn == 1)
    assert (b"Exif" in kept) == (turn == 1), "what has been turned must not be turned again"


def test_which_jpegs_are_kept_byte_for_byte():
    """Grey and RGB JPEGs of the right size are kept; CMYK and other sizes are encoded again."""
    for mode, kept in (("L", True), ("RGB", True), ("CMYK", False)):
        data = file_bytes(FACE.convert(mode), quality=95)
        assert (images.to_jpeg(data, "x") == data) == kept, mode
    larger = file_bytes(picture(224, 224), quality=95)
    got = images.to_jpeg(larger, "x", resize=True)
    assert simplejpeg.decode_jpeg_header(got)[:2] == (112, 112)
    assert np.abs(images.decode(got, "x").astype(int) - np.asarray(FACE)).max() < 12
    for size in ((112, 224), (224, 112)):
        with pytest.raises(images.WrongSize, match=f"x: {size[0]}x{size[1]} is not square"):
            images.to_jpeg(file_bytes(picture(*size)), "x", resize=True)
        with pytest.raises(images.WrongSize, match=f"x: {size[0]}x{size[1]}, expected 112x112"):
            images.decode(file_bytes(picture(*size)), "x")


def test_faces_are_encoded_without_loss_of_colour_resolution():
    data = images.encode(np.asarray(FACE))
    assert simplejpeg.decode_jpeg_header(data) == (112, 112, "YCbCr", "444")
    assert data == images.encode(np.asarray(FACE), quality=95) != images.encode(np.asarray(FACE), quality=94)
    red = np.zeros((112, 112, 3), np.uint8)
    red[:, ::2, 0] = 255  # lines of one pixel
    assert np.abs(images.decode(images.encode(red), "x").astype(int) - red).mean() < 4
    for wrong in (red[:111], red[..., :2], red.astype(np.int16), red[:, :, 0]):
        with pytest.raises(ValueError, match=r"expected an image uint8 \[112,112,3\], got"):
            images.encode(wrong)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_decoding_into_an_array_fills_that_array(mode):
    data, out = file_bytes(FACE.convert(mode), quality=95), np.full((112, 112, 3), 7, np.uint8)
    got = images.decode(data, "x", out)
    assert np.shares_memory(got, out)
    np.testing.assert_array_equal(out, images.decode(data, "x"))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pillow_too_fills_the_array_that_it_is_given(mode):
    """simplejpeg refuses stray bytes before the end marker; Pillow decodes the file, to an array of its own."""
    jpeg, out = file_bytes(FACE.convert(mode), quality=95), np.full((112, 112, 3), 7, np.uint8)
    data = jpeg[:-2] + b"stray" + jpeg[-2:]
    with pytest.raises(ValueError, match="extraneous bytes before marker 0xd9"):
        simplejpeg.decode_jpeg(data)
    got = images.decode(data, "x", out)
    assert np.shares_memory(got, out)
    np.testing.assert_array_equal(out, images.decode(data, "x"))


def test_a_check_raises_what_decoding_raises():
    good = file_bytes(FACE)
    assert images.check(good, "x") is None
    assert images.check(file_bytes(FACE.convert("CMYK")), "x") is None
    with pytest.raises(images.WrongSize, match="x: 224x224, expected 112x112"):
        images.check(file_bytes(picture(224, 224)), "x")
    with pytest.raises(ValueError, match="x: cannot be read as an image"):
        images.check(good[: len(good) // 2], "x")
    with pytest.raises(ValueError, match=r"x: not a JPEG \(.*, 3 bytes\)"):
        images.check(b"abc", "x")


def test_sixteen_bits_are_refused_as_they_have_no_eight():
    deep = Image.fromarray(np.full((112, 112), 40_000, np.uint16))
    for read in (READERS["to_jpeg"], READERS["photograph"]):
        with pytest.raises(ValueError, match=r"mode I;16.* has no plain 8-bit RGB form"):
            read(file_bytes(deep, "PNG"))


def test_exif_that_says_nothing_of_orientation_keeps_the_bytes():
    exif = Image.Exif()
    exif[0x010F] = "maker"
    data = file_bytes(FACE, exif=exif)
    assert b"Exif\0\0" in data
    assert images.to_jpeg(data, "x") == data
