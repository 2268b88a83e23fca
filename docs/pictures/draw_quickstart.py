"""Draw README's picture of a finished quickstart: `python docs/pictures/draw_quickstart.py runs/quickstart FILE.png`.

On the left are two people of the test set in two shots each, on the right the accuracy of every row with its interval.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fvjax.data import synthetic

PEOPLE, SHOTS, DIFFICULTY = (203, 211), (0, 3), 2.0  # of the quickstart's test identities, which are 200 to 319
BASELINES = {"raw pixels, cosine": "raw pixels", "colour histogram, cosine": "colour histogram"}
ROWS = {
    "resnet": "a small ResNet, trained from scratch",
    "vit_frozen": "a tiny InternViT, frozen",
    "vit_lora": "the same with rank-8 LoRA",
}


def accuracies(folder: Path) -> dict[str, tuple[float, list[float]]]:
    """Return label -> (accuracy at the best threshold, its 95% interval) in per cent, from every row's results.json."""
    found = {}
    for row, label in ROWS.items():
        results = json.loads((folder / row / "results.json").read_text())
        entries = {label: results["benchmarks"]}
        entries = {BASELINES[name]: entry for name, entry in results.get("baselines", {}).items()} | entries
        for name, benchmarks in entries.items():
            figure = benchmarks["synthetic"]["accuracy@best_threshold"]
            found[name] = 100 * figure["mean"], [100 * bound for bound in figure["ci95"]]
    order = [*BASELINES.values(), *ROWS.values()]
    return {name: found[name] for name in order if name in found}


def draw(folder: Path) -> Figure:
    figure = Figure(figsize=(9, 2.9), dpi=100, layout="constrained")
    faces, bars = figure.subfigures(1, 2, width_ratios=(1, 2.1))
    for axes, (person, shot) in zip(faces.subplots(2, 2).flat, [(p, s) for p in PEOPLE for s in SHOTS]):
        axes.imshow(synthetic.face(person, shot, 0, DIFFICULTY))
        axes.axis("off")
    faces.suptitle("each row one person", fontsize=9)
    axes = bars.subplots()
    for place, (name, (value, (low, high))) in enumerate(reversed(accuracies(folder).items())):
        axes.barh(place, value - 50, left=50, color="#4477aa" if "LoRA" in name or "ResNet" in name else "#bbbbbb")
        axes.plot((low, high), (place, place), color="black", linewidth=1.2)
        axes.text(max(value, high) + 0.7, place, f"{value:.1f}", va="center", fontsize=9)
        axes.text(49.3, place, name, va="center", ha="right", fontsize=9)
    axes.set(xlim=(50, 101), yticks=[], xlabel="10-fold accuracy in %, 95% interval")
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


if __name__ == "__main__":
    FigureCanvasAgg(draw(Path(sys.argv[1]))).print_png(sys.argv[2])
