"""Rebuild the checkpoints of the golden sets of LLaVA, LanguageBind and CLIP from their keys and shapes."""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.reference.recipe import GOLDEN, weight

WORDS = ("model.embed_tokens.weight", "lm_head.weight")
TOWERS = ("image_tower", "video_tower")


def tensors(name: str, vocab: int = 0) -> dict[str, np.ndarray]:
    """Return the weights of a golden set such as "facellava_tiny/simple", by the original's keys.

    vocab: another number of words than the golden set's.
    """
    shapes = json.loads((GOLDEN / name / "shapes.json").read_text())
    words = {key: [vocab, *shapes[key][1:]] for key in WORDS if vocab and key in shapes}
    return {key: _tensor(key, tuple(shape)) for key, shape in {**shapes, **words}.items()}


def _tensor(key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key.endswith("inv_freq"):  # LLaMA's frequencies with theta 10000, which old checkpoints hold
        (count,) = shape
        return (1.0 / 10000 ** (np.arange(count, dtype=np.float32) / count)).astype(np.float32)
    if "position_embedding" in key:
        rng = np.random.default_rng([7, zlib.crc32(key.encode())])
        return np.float32(0.02) * rng.standard_normal(shape).astype(np.float32)
    return np.asarray(weight(7, key, shape))


def write(name: str, dst: Path, vocab: int = 0) -> Path:
    """Write the checkpoint of a golden set to dst / name, with the towers' configurations beside it."""
    directory = dst / name
    directory.mkdir(parents=True)
    save_file(tensors(name, vocab), directory / "model.safetensors")
    config = json.loads((GOLDEN / name / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | ({"vocab_size": vocab} if vocab else {})))
    for tower in TOWERS:
        source = (GOLDEN / name).parent / tower
        if source.is_dir():
            shutil.copytree(source, directory.parent / tower, dirs_exist_ok=True)
    return directory
