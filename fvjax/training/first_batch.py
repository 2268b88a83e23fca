"""A picture of a run's first batch: what the model sees, after augmentation, with labels.

The file shows training data, so it stays in the run's own folder unless the config says otherwise.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fvjax import files
from fvjax.tasks.task import Batch, Shown
from fvjax.training.metrics import Writer

NAME = "first_batch"
ACROSS = 4  # pictures side by side
GAP, CAPTION = 6, 16  # pixels: between examples, and for the line below an example
PAPER, INK = (255, 255, 255), (0, 0, 0)


def drawn(
    batches: Iterable[Batch],
    pictures: Callable[[Mapping[str, NDArray], int], Sequence[Shown]],
    writer: Writer,
    step: int,
) -> Iterator[Batch]:
    """Pass batches on; draw config.log.pictures of the first one into WORKDIR/first_batch.png.

    A run that resumes keeps its file.

    Args:
        pictures: as `Task.pictures`. writer: names the folder and tells TensorBoard. step: of the first batch.
    """
    batches, file = iter(batches), writer.workdir / f"{NAME}.png"
    wanted = writer.config.pictures if writer.active and not file.exists() else 0
    for first in batches:
        if wanted and (shown := pictures(first_rows(first, wanted), wanted)):
            pixels = grid(shown)
            files.replace_file(file, png(pixels))
            writer.picture(step, NAME, pixels)
        yield first
        break
    yield from batches


def first_rows(batch: Batch, count: int) -> dict[str, NDArray]:
    """Return the first rows of a batch that this process has, at most `count`, on the host."""

    def first(array: jax.Array) -> NDArray:
        shard = min(array.addressable_shards, key=lambda each: each.index[0].start or 0)
        return np.asarray(shard.data[:count])

    return {name: first(array) for name, array in batch.items()}


def grid(shown: Sequence[Shown]) -> NDArray:
    """Draw examples at their own size, the pictures of one side by side above its caption: uint8 [H, W, 3]."""
    most = max(len(each.pictures) for each in shown)
    height, width = shown[0].pictures[0].shape[:2]
    columns = max(1, ACROSS // most)
    cell = most * width + GAP, height + CAPTION + GAP
    rows = -(-len(shown) // columns)
    image = Image.new("RGB", (min(columns, len(shown)) * cell[0] + GAP, rows * cell[1] + GAP), PAPER)
    for number, each in enumerate(shown):
        row, column = divmod(number, columns)
        left, top = column * cell[0] + GAP, row * cell[1] + GAP
        for place, picture in enumerate(each.pictures):
            image.paste(Image.fromarray(picture), (left + place * width, top))
        _write(image, each.caption, left, top + height, most * width)
    return np.asarray(image)


def png(pixels: NDArray) -> bytes:
    """Return a picture uint8 [H, W, 3] as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _write(image: Image.Image, text: str, left: int, top: int, width: int) -> None:
    """Write a line into a picture, cut to `width` pixels."""
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(CAPTION - 5)
    if draw.textlength(text, font) > width:
        while text and draw.textlength(f"{text}…", font) > width:
            text = text[:-1]
        text = f"{text}…"
    draw.text((left, top), text, fill=INK, font=font)
