"""Draw two compared pictures as a PNG: faces, points, the crops that the model saw, and the verdict."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from fvjax.data.alignment.faces import Picture

SIDE = 900  # pixels: a larger picture is reduced to this before it is drawn
COMPARED, OTHER = "#00c853", "#ffab00"  # green and amber: both are seen on skin, hair and walls


def draw(pictures: Sequence[Picture], compared: Sequence[int], caption: Sequence[str]) -> bytes:
    """Draw two pictures side by side, above the two crops that were compared.

    Args:
        pictures: both pictures.
        compared: the number of the face of each that the score is of.
        caption: the lines about the verdict; the first one is the heading.
    Returns:
        a PNG file.
    """
    figure = Figure(figsize=(10, 8.5), dpi=110, layout="constrained")
    rows = figure.subplots(2, 2, height_ratios=(3, 1))
    for column, (picture, number) in enumerate(zip(pictures, compared)):
        _draw_picture(rows[0, column], picture, number)
        _draw_crop(rows[1, column], picture, number)
    heading, *rest = caption
    # Names of files may hold dollar signs, which are no formulas here.
    figure.suptitle(heading, fontsize=13, fontweight="bold", parse_math=False)
    lines = [part for line in rest for part in textwrap.wrap(line, 130)]
    figure.supxlabel("\n".join(lines), fontsize=8.5, color="0.25", parse_math=False)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()


def _draw_picture(axes: Axes, picture: Picture, compared: int) -> None:
    """Draw a picture with the boxes and points of its faces; the compared one stands out."""
    height, width = picture.pixels.shape[:2]
    image = Image.fromarray(picture.pixels)
    image.thumbnail((SIDE, SIDE))
    # Pixel centres are integers in points, and edges of pixels in boxes.
    axes.imshow(np.asarray(image), extent=(0, width, height, 0))
    for number, (box, points) in enumerate(zip(picture.faces.boxes, picture.faces.points)):
        colour, line = (COMPARED, 2.0) if number == compared else (OTHER, 1.2)
        left, top, right, bottom = box
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=colour, linewidth=line))
        axes.scatter(points[:, 0] + 0.5, points[:, 1] + 0.5, s=14, color=colour, edgecolors="black", linewidths=0.5)
        if not picture.is_crop:
            label = f"{number + 1}: {picture.faces.scores[number]:.2f}"
            axes.text(left, top, label, fontsize=8, va="bottom", backgroundcolor=(0, 0, 0, 0.6), color="white")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    count = "an aligned crop" if picture.is_crop else f"{len(picture.faces.boxes)} found"
    axes.set_title(f"{_shorten(picture.name)}\n{picture.size} pixels, {count}", fontsize=9, parse_math=False)


def _draw_crop(axes: Axes, picture: Picture, number: int) -> None:
    axes.imshow(picture.faces.crops[number])
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel("the model saw this" if picture.is_crop else f"face {number + 1}, as the model saw it", fontsize=8)


def _shorten(name: str, length: int = 60) -> str:
    return name if len(name) <= length else f"…{name[1 - length :]}"
