"""Decoding and re-encoding: which bytes are kept, which images are refused, and what the errors name."""

import io
import os
import struct
import time
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fvjax.data import images


def smooth_face(seed: int, size: int = 112) -> np.ndarray:
    """Make a picture of coloured blocks, which JPEG leaves almost unchanged, unlike noise."""
    blocks = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((size // 7, size // 7, 1), np.uint8))


def file_bytes(picture: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 999)),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data


@pytest.mark.parametrize("read", [lambda jpeg: images.decode(jpeg, "x"), lambda jpeg: images.to_jpeg(jpeg, "x", True)])
def test_a_jpeg_of_thousands_of_scans_is_refused(read):
    """A scan of ten bytes costs a pass over the whole picture, so 2 MB of scans would take seconds."""
    jpeg = file_bytes(Image.fromarray(smooth_face(0)), "JPEG", progressive=True)
    assert np.abs(images.decode(jpeg, "x").astype(int) - smooth_face(0)).mean() < 8
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    before = time.process_time()
    with pytest.raises(ValueError, match=r"refused, a JPEG of 112x112 in \d+ scans"):
        read(jpeg[:-2] + scan * 200_000 + jpeg[-2:])
    assert time.process_time() - before < 1


def test_only_the_formats_of_the_suffixes_are_opened():
    """Pillow would open dozens more formats, and pass some to other programs."""
    for kind in ("TIFF", "GIF", "PPM", "EPS"):
        data = file_bytes(Image.fromarray(smooth_face(0)), kind)
        with pytest.raises(ValueError, match="cannot be read as an image"):
            images.to_jpeg(data, "x")


def test_encode_then_decode_is_close():
    face = smooth_face(0)
    back = images.decode(images.encode(face), "x")
    assert back.dtype == np.uint8
    assert np.abs(back.astype(int) - face).mean() < 1


def test_decode_is_rgb_not_bgr():
    red = np.zeros((112, 112, 3), np.uint8)
    red[..., 0] = 255
    assert images.decode(images.encode(red), "x")[50, 50].tolist() == pytest.approx([255, 0, 0], abs=3)


def test_grey_is_repeated_and_cmyk_goes_through_pillow():
    grey = Image.fromarray(smooth_face(1)).convert("L")
    assert (np.ptp(images.decode(file_bytes(grey, "JPEG"), "x"), axis=2) == 0).all()
    cmyk = images.decode(file_bytes(Image.fromarray(smooth_face(1)).convert("CMYK"), "JPEG", quality=95), "x")
    assert np.abs(cmyk.astype(int) - smooth_face(1)).mean() < 3


def test_pillow_decodes_the_same_faces(monkeypatch):
    jpeg = images.encode(smooth_face(2))
    fast = images.decode(jpeg, "x")
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: (_ for _ in ()).throw(ValueError("refused")))
    assert np.abs(images.decode(jpeg, "x").astype(int) - fast).max() <= 2  # two versions of libjpeg round differently


JPEG = images.encode(smooth_face(3))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a JPEG"),
        (b"\xff\xd8 and nothing more", "not a JPEG"),
        (file_bytes(Image.fromarray(smooth_face(0)), "PNG"), "not a JPEG"),
        (JPEG[: len(JPEG) // 2], "cannot be read as an image"),
        (images.simplejpeg.encode_jpeg(smooth_face(0, 224)), "224x224, expected 112x112"),
    ],
)
def test_decode_names_what_it_refuses(data, message):
    with pytest.raises(ValueError, match=f"^store record 17: .*{message}"):
        images.decode(data, "store record 17")


def test_a_huge_image_is_refused_from_its_header():
    start = JPEG.index(b"\xff\xc0") + 5  # height and width in the frame header
    jpeg = JPEG[:start] + struct.pack(">HH", 8000, 8000) + JPEG[start + 4 :]
    with pytest.raises(images.WrongSize, match="8000x8000 pixels in the header, refused"):
        images.decode(jpeg, "x")
    for data in (jpeg, png_that_claims(8000, 8000)):
        with pytest.raises(images.WrongSize, match="8000x8000 pixels in the header, refused"):
            images.to_jpeg(data, "x", resize=True)
    with pytest.raises(ValueError, match="decompression bomb"):  # Pillow's own limit comes first here
        images.to_jpeg(png_that_claims(60000, 60000), "x", resize=True)


def test_a_jpeg_of_the_right_size_is_kept_byte_for_byte():
    jpeg = simplejpeg.encode_jpeg(smooth_face(0), quality=60)
    assert images.to_jpeg(jpeg, "x") == jpeg


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_other_formats_are_reencoded(kind, mode):
    picture = Image.fromarray(smooth_face(4))
    picture = picture.quantize(64) if mode == "P" else picture.convert(mode)
    want = np.asarray(picture.convert("RGB")).astype(int)
    options = {"lossless": True} if kind == "WEBP" else {}
    got = images.decode(images.to_jpeg(file_bytes(picture, kind, **options), "x"), "x")
    assert np.abs(got - want).mean() < 1


def test_other_sizes_need_resize_and_must_be_square():
    big = file_bytes(Image.fromarray(smooth_face(5, 224)), "PNG")
    with pytest.raises(images.WrongSize, match=r"a\.png: 224x224, expected 112x112; .*--resize"):
        images.to_jpeg(big, "a.png")
    got = images.decode(images.to_jpeg(big, "a.png", resize=True), "x").astype(int)
    assert np.abs(got - smooth_face(5)).mean() < 6  # block borders blur
    wide = file_bytes(Image.fromarray(smooth_face(5, 224)[:, :112]), "PNG")
    with pytest.raises(images.WrongSize, match="112x224 is not square"):
        images.to_jpeg(wide, "a.png", resize=True)


@pytest.mark.parametrize("data", [b"", b"text", file_bytes(Image.new("I;16", (112, 112)), "PNG"), JPEG[:400]])
def test_to_jpeg_names_what_it_cannot_read(data):
    with pytest.raises(ValueError, match=r"^dir/a\.png: cannot be read as an image"):
        images.to_jpeg(data, "dir/a.png")


@pytest.mark.parametrize("bad", [np.zeros((112, 112, 3), np.float32), np.zeros((112, 112), np.uint8)])
def test_encode_takes_faces_only(bad):
    with pytest.raises(ValueError, match="expected an image uint8"):
        images.encode(bad)


KINDS = [
    JPEG,
    simplejpeg.encode_jpeg(smooth_face(6), quality=60, colorsubsampling="420"),
    file_bytes(Image.fromarray(smooth_face(7)), "JPEG", progressive=True),
    file_bytes(Image.fromarray(smooth_face(8)).convert("L"), "JPEG"),
    file_bytes(Image.fromarray(smooth_face(9)).convert("CMYK"), "JPEG"),
]


def verdict(function, jpeg: bytes) -> str:
    try:
        function(jpeg, "x")
    except ValueError as error:
        return str(error)
    return "good"


@settings(max_examples=int(os.environ.get("FVJAX_FUZZ_CASES", 300)), deadline=None, database=None)
@given(
    st.sampled_from(KINDS), st.floats(0, 1), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4)
)
def test_check_refuses_what_decode_refuses(jpeg, length, changes):
    """The errors are the same for files that are whole, cut off anywhere, or have changed bytes."""
    data = bytearray(jpeg)
    for place, byte in changes:
        data[int(place * len(data))] = byte
    data = bytes(data[: round(length * len(data))] if length < 0.9 else data)
    assert verdict(images.check, data) == verdict(images.decode, data)
