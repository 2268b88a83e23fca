"""Test tiles against InternVL's published code (golden), and pictures that are extreme, broken or of rare kinds."""

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fvjax.data import images, tiling
from tests.test_images import file_bytes, png_that_claims, smooth_face

GOLDEN = Path(__file__).parent / "golden"
TILING = json.loads((GOLDEN / "internvl3_tiling.json").read_text())
CASES = [(entry, case) for entry in TILING["sizes"] for case in entry["cases"]]
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def test_grids_and_counts_are_the_published_ones():
    assert len(CASES) == 186
    for entry, case in CASES:
        width, height, limit = entry["width"], entry["height"], case["max_num"]
        assert tiling.grid(width, height, limit) == (case["cols"], case["rows"]), (width, height, limit)
        assert tiling.count(width, height, limit) == case["tiles_with_thumbnail"], (width, height, limit)


def test_a_square_picture_is_one_tile_below_634_pixels():
    assert [tiling.count(side, side, 12) for side in (633, 634)] == [1, 5]


def test_fewest_tiles():
    assert tiling.grid(600, 600, 12) == (1, 1)
    assert tiling.grid(600, 600, 12, min_tiles=2) == (2, 2)
    assert tiling.grid(400, 210, 12, min_tiles=3) == (4, 2)


def normalised(tiles: np.ndarray) -> np.ndarray:
    """Return tiles as the vision tower sees them: float32 [k, 3, size, size]."""
    return ((tiles.astype(np.float32) / 255 - MEAN) / STD).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("entry", TILING["pictures"], ids=lambda entry: entry["file"])
def test_pixels_are_the_published_ones(entry):
    file = GOLDEN / "internvl3_tiling" / entry["file"]
    picture = tiling.decode_picture(file.read_bytes(), entry["file"])
    assert picture.size == (entry["width"], entry["height"])
    tiles = tiling.tiles(picture, entry["max_num"])
    assert tiles.shape == (entry["tiles"], 448, 448, 3)
    assert tiles.dtype == np.uint8
    np.testing.assert_array_equal(tiles, tiling.tiles(np.asarray(picture), entry["max_num"]))
    golden = np.load(GOLDEN / "internvl3_tiling" / "pixels.npz")
    name = file.stem
    pixels = normalised(tiles)
    np.testing.assert_allclose(pixels[:, :, ::7, ::7], golden[f"{name}_tiles_every7"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(pixels.mean((2, 3), dtype=np.float64), golden[f"{name}_mean"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(pixels.std((2, 3), dtype=np.float64), golden[f"{name}_std"], rtol=0, atol=2e-6)
    tensor_path = golden[f"{name}_hf_tensor_path_every7"]
    np.testing.assert_allclose(pixels[:, :, ::7, ::7], tensor_path, rtol=0, atol=0.04)


def test_tiles_are_row_by_row_and_the_thumbnail_is_last():
    picture = np.zeros((16, 24, 3), np.uint8)
    colours = np.arange(6).reshape(2, 3) * 40
    picture[..., 0] = np.kron(colours, np.ones((8, 8), int))
    tiles = tiling.tiles(picture, 6, size=8)
    assert tiles.shape == (7, 8, 8, 3)
    assert [tile[4, 4, 0] for tile in tiles[:6]] == [0, 40, 80, 120, 160, 200]
    assert (tiles[..., 1:] == 0).all()
    assert tiles[6][1, 1, 0] < 20
    assert tiles[6][6, 6, 0] > 180


def test_how_many_tiles_each_of_several_pictures_may_have():
    limits = {rule: [tiling.max_tiles_for(n, 12, rule) for n in (0, 1, 2, 5, 12, 100)] for rule in tiling.RULES}
    assert limits == {
        "each": [12] * 6,
        "internvl_chat": [12, 12, 6, 2, 1, 1],
        "vlmevalkit": [12, 12, 12, 12, 5, 1],
    }
    assert [tiling.max_tiles_for(n, 6, "vlmevalkit") for n in (0, 10, 11, 64, 65)] == [6, 6, 5, 1, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiling.max_tiles_for(2, 12, "fair"), "unknown rule 'fair'.*each, internvl_chat, vlmevalkit"),
        (lambda: tiling.max_tiles_for(-1, 12, "each"), "-1 pictures"),
        (lambda: tiling.grid(0, 5, 12), "a picture of 0x5"),
        (lambda: tiling.grid(5, 5, 12, size=0), "tiles of 0 pixels"),
        (lambda: tiling.count(5, 5, 0), "1 to 0 tiles a picture; expected numbers from 1 to 256"),
        (lambda: tiling.count(5, 5, 257), "1 to 257 tiles"),
        (lambda: tiling.grid(5, 5, 2, min_tiles=3), "3 to 2 tiles"),
        (lambda: tiling.tiles(np.zeros((4, 4, 4), np.uint8), 6), r"uint8 \[H, W, 3\], got uint8 \[4, 4, 4\]"),
        (lambda: tiling.tiles(np.zeros((4, 0, 3), np.uint8), 6), r"got uint8 \[4, 0, 3\]"),
        (lambda: tiling.tiles(np.zeros((4, 4, 3), np.float32), 6), "got float32"),
        (lambda: tiling.tiles(Image.new("L", (4, 4)), 6), "expected a picture in RGB, got mode L"),
        (lambda: tiling.tiles(np.zeros((1, 65_536, 3), np.uint8), 6), "65536x1 pixels, refused"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_extreme_pictures_cost_no_more_than_others():
    before = time.process_time()
    for width, height, shape in ((65_535, 1, (13, 448)), (1, 65_535, (13, 448)), (1, 1, (1, 448))):
        assert tiling.tiles(np.full((height, width, 3), 9, np.uint8), 12).shape[:2] == shape
    assert tiling.grid(10**9, 1, 256) == (256, 1)
    assert time.process_time() - before < 5


# ---- decoding


def decoded(data: bytes) -> np.ndarray:
    picture = tiling.decode_picture(data, "x")
    assert picture.mode == "RGB"
    return np.asarray(picture)


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {"quality": 95, "subsampling": 0}), ("PNG", {}), ("WEBP", {"lossless": True})]
)
def test_formats(kind, options):
    picture = smooth_face(0, 140)[:, :70]
    assert np.abs(decoded(file_bytes(Image.fromarray(picture), kind, **options)).astype(int) - picture).mean() < 1


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "PPM"])
def test_other_formats_are_refused(kind):
    with pytest.raises(ValueError, match=r"^a/b\.x: cannot be read as an image"):
        tiling.decode_picture(file_bytes(Image.fromarray(smooth_face(0)), kind), "a/b.x")


def test_rotated_cmyk_alpha_palette_and_animation():
    face = Image.fromarray(smooth_face(2, 140)).crop((0, 0, 140, 70))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    upright = decoded(file_bytes(face, "JPEG", quality=95, subsampling=0, exif=exif))
    assert upright.shape == (140, 70, 3)
    assert np.abs(upright.astype(int) - np.asarray(face.rotate(-90, expand=True))).mean() < 2
    cmyk = decoded(file_bytes(face.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.astype(int) - np.asarray(face)).mean() < 2
    transparent = face.convert("RGBA")
    transparent.putalpha(0)
    np.testing.assert_array_equal(decoded(file_bytes(transparent, "PNG")), np.asarray(face))
    assert decoded(file_bytes(face.convert("P"), "PNG")).shape == (70, 140, 3)
    assert (np.ptp(decoded(file_bytes(face.convert("L"), "PNG")), axis=2) == 0).all()
    other = Image.fromarray(smooth_face(3, 140)).crop((0, 0, 140, 70))
    film = file_bytes(face, "WEBP", save_all=True, append_images=[other], lossless=True)
    np.testing.assert_array_equal(decoded(film), np.asarray(face))


def test_sixteen_bit_grey_truncated_and_nonsense_are_refused():
    deep = file_bytes(Image.fromarray(np.arange(112 * 112, dtype=np.uint16).reshape(112, 112)), "PNG")
    jpeg = file_bytes(Image.fromarray(smooth_face(0)), "JPEG")
    for data, message in ((deep, "no plain 8-bit RGB form"), (jpeg[:-300], "truncated"), (b"", ""), (b"\0" * 99, "")):
        with pytest.raises(ValueError, match=f"^a/b.png: cannot be read as an image.*{message}"):
            tiling.decode_picture(data, "a/b.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (65_536, 1), (1, 65_536)])
def test_a_huge_picture_is_refused_from_its_header(width, height, monkeypatch):
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=f"^x: .*{width}x{height} pixels in the header, refused"):
        tiling.decode_picture(png_that_claims(width, height), "x")


def test_as_many_pixels_as_allowed(monkeypatch):
    data = io.BytesIO()
    Image.new("RGB", (20, 10)).save(data, "PNG")
    monkeypatch.setattr(images, "MAX_PHOTOGRAPH", 200)
    monkeypatch.setattr(images, "MAX_SIDE", 20)
    assert decoded(data.getvalue()).shape == (10, 20, 3)
    for name, limit in (("MAX_PHOTOGRAPH", 199), ("MAX_SIDE", 19)):
        with monkeypatch.context() as patch:
            patch.setattr(images, name, limit)
            with pytest.raises(ValueError, match="20x10 pixels in the header, refused"):
                decoded(data.getvalue())
