"""Pictures of any size cut into square tiles for the vision tower, as InternVL does (dynamic_preprocess).

A picture is resized, without keeping its aspect ratio, to a grid of tiles of 448x448 pixels; the grid is the one whose
aspect ratio comes nearest. If there is more than one tile, the whole picture follows as one more tile, the thumbnail.
internvl_chat, VLMEvalKit and transformers agree on this.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from fvjax.data import images

TILE_SIZE = 448  # pixels, of InternVL's towers
FORMATS = ("JPEG", "PNG", "WEBP")
MAX_TILES = 256  # 154 MB of pixels at 448x448
RULES = ("each", "internvl_chat", "vlmevalkit")
VLMEVALKIT_BUDGET = 64  # tiles of all pictures of one question together


def decode_picture(data: bytes, location: str) -> Image.Image:
    """Decode a JPEG, PNG or WebP file to a Pillow image in RGB, rotated upright as EXIF says.

    Of an animation this is the first frame. CMYK, grey, palette and alpha are converted (alpha is dropped).

    Args:
        data: the file's bytes.
        location: the file's or record's name, for errors.
    Raises:
        ValueError: not such an image, broken, 16-bit grey, of more than images.MAX_PHOTOGRAPH pixels, or with a side
            above images.MAX_SIDE. The message begins with the location.
    """
    return images.open_photograph(data, location, FORMATS)


def max_tiles_for(pictures: int, max_tiles: int, rule: str) -> int:
    """Return the most tiles that one picture may have, the thumbnail apart, if a prompt has so many pictures.

    Args:
        pictures: how many the prompt has; 0 counts as one.
        max_tiles: the most that a single picture may have.
        rule: "each" gives every picture ``max_tiles`` (transformers); "internvl_chat" divides ``max_tiles`` among them;
            "vlmevalkit" divides 64 tiles among them.
    Raises:
        ValueError: an unknown rule, a negative number of pictures, or ``max_tiles`` outside 1 … MAX_TILES.
    """
    _check_limits(1, max_tiles)
    if pictures < 0:
        raise ValueError(f"{pictures} pictures, expected 0 or more")
    if rule == "each":
        return max_tiles
    if rule == "internvl_chat":
        return max(1, max_tiles // max(1, pictures))
    if rule == "vlmevalkit":
        return max(1, min(max_tiles, VLMEVALKIT_BUDGET // max(1, pictures)))
    raise ValueError(f"unknown rule {rule!r} for the tiles of several pictures; choose one of {', '.join(RULES)}")


def grid(width: int, height: int, max_tiles: int, *, min_tiles: int = 1, size: int = TILE_SIZE) -> tuple[int, int]:
    """Return (columns, rows) of the grid for a picture.

    The grid's aspect ratio is the nearest to the picture's. Of grids that are equally near, the largest wins for which
    the picture has more than half of the grid's pixels.

    Args:
        width, height: of the picture, in pixels.
        max_tiles, min_tiles: bounds of columns * rows.
        size: side of a tile in pixels.
    Raises:
        ValueError: a width, height or size below 1, or bounds outside 1 … MAX_TILES.
    """
    if min(width, height, size) < 1:
        raise ValueError(f"a picture of {width}x{height} in tiles of {size} pixels; expected sizes of 1 or more")
    _check_limits(min_tiles, max_tiles)
    best, nearest = (1, 1), float("inf")
    for columns, rows in _grids(min_tiles, max_tiles):
        distance = abs(width / height - columns / rows)
        is_large_enough = width * height > 0.5 * size * size * columns * rows
        if distance < nearest or (distance == nearest and is_large_enough):
            best, nearest = (columns, rows), distance
    return best


def count(width: int, height: int, max_tiles: int, size: int = TILE_SIZE) -> int:
    """Return how many tiles :func:`tiles` makes of a picture, the thumbnail included. Errors as for :func:`grid`."""
    columns, rows = grid(width, height, max_tiles, size=size)
    return _with_thumbnail(columns * rows)


def tiles(picture: Image.Image | np.ndarray, max_tiles: int, size: int = TILE_SIZE) -> np.ndarray:
    """Resize a picture (Pillow's bicubic) and cut it into tiles.

    Args:
        picture: a Pillow image in RGB, or uint8 [H, W, 3] RGB.
        max_tiles: the most tiles, the thumbnail apart.
        size: side of a tile in pixels.
    Returns:
        uint8 [k, size, size, 3] RGB, row by row from the top left; the thumbnail last if there is more than one tile.
    Raises:
        ValueError: not such a picture, a side above images.MAX_SIDE, or errors of :func:`grid`.
    """
    image = _as_rgb(picture)
    columns, rows = grid(*image.size, max_tiles, size=size)
    resized = np.asarray(image.resize((columns * size, rows * size), Image.Resampling.BICUBIC))
    cut = resized.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(rows * columns, size, size, 3)
    out = np.empty((_with_thumbnail(columns * rows), size, size, 3), np.uint8)
    out[: len(cut)] = cut
    if len(out) > len(cut):
        out[-1] = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    return out


def _with_thumbnail(tiles: int) -> int:
    return tiles + 1 if tiles > 1 else tiles


def _as_rgb(picture: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise ValueError(f"expected a picture uint8 [H, W, 3], got {picture.dtype} {list(picture.shape)}")
        picture = Image.fromarray(picture)
    elif picture.mode != "RGB":
        raise ValueError(f"expected a picture in RGB, got mode {picture.mode}; convert it first")
    if max(picture.size) > images.MAX_SIDE:
        raise ValueError(f"a picture of {picture.width}x{picture.height} pixels, refused; scale it down")
    return picture


def _check_limits(min_tiles: int, max_tiles: int) -> None:
    if not 1 <= min_tiles <= max_tiles <= MAX_TILES:
        raise ValueError(f"{min_tiles} to {max_tiles} tiles a picture; expected numbers from 1 to {MAX_TILES}")


@functools.lru_cache
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Return all grids (columns, rows) of so many tiles, ordered by their number of tiles."""
    sides = range(1, max_tiles + 1)
    fitting = [(c, r) for c in sides for r in sides if min_tiles <= c * r <= max_tiles]
    return tuple(sorted(fitting, key=lambda grid: grid[0] * grid[1]))
