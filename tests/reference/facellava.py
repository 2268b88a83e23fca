"""Rebuild the checkpoints of the golden sets of LLaVA, LanguageBind and CLIP from their keys and shapes."""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.reference.recipe import GOLDEN, weight

TOWERS = ("image_tower", "video_tower")


def tensors(name: str) -> dict[str, np.ndarray]:
    """Return the weights of a golden set such as "facellava_tiny/simple", by the original's keys."""
    shapes = json.loads((GOLDEN / name / "shapes.json").read_text())
    return {key: _tensor(key, tuple(shape)) for key, shape in shapes.items()}


def _tensor(key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key.endswith("inv_freq"):  # LLaMA's frequencies with theta 10000, which old checkpoints hold
        (count,) = shape
        return (1.0 / 10000 ** (np.arange(count, dtype=np.float32) / count)).astype(np.float32)
    if "position_embedding" in key:
        rng = np.random.default_rng([7, zlib.crc32(key.encode())])
        return np.float32(0.02) * rng.standard_normal(shape).astype(np.float32)
    return np.asarray(weight(7, key, shape))


def write(name: str, dst: Path) -> Path:
    """Write the checkpoint of a golden set to dst / name, with the towers' configurations beside it."""
    directory = dst / name
    directory.mkdir(parents=True)
    save_file(tensors(name), directory / "model.safetensors")
    shutil.copyfile(GOLDEN / name / "config.json", directory / "config.json")
    for tower in TOWERS:
        source = (GOLDEN / name).parent / tower
        if source.is_dir():
            shutil.copytree(source, directory.parent / tower, dirs_exist_ok=True)
    return directory
