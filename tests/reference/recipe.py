"""Make weights that are a function of (seed, key, shape), so that any model can be rebuilt without a download."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent.parent / "golden"


def weight(seed: int, key: str, shape) -> np.ndarray:
    """Return one tensor in torch's layout. The scales keep activations of order one through deep networks."""
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    z = rng.standard_normal(shape).astype(np.float32)
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros((), np.int64)
    if leaf == "running_var":
        return np.exp(np.float32(0.1) * z)
    if leaf == "running_mean":
        return np.float32(0.1) * z
    if leaf in ("ls1", "ls2"):
        return np.float32(0.1) * (1 + np.float32(0.1) * z)
    if "prelu" in key:
        return np.float32(0.25) + np.float32(0.05) * z
    if leaf == "weight" and len(shape) == 1:
        return 1 + np.float32(0.1) * z
    if leaf == "bias" or leaf in ("class_embedding", "position_embedding") or "tok_embeddings" in key:
        return np.float32(0.02) * z
    return (z / np.float32(math.sqrt(math.prod(shape[1:])))).astype(np.float32)


def write_checkpoint(dst: Path, config: dict, shapes: dict, seed: int = 7, dtype=np.float32) -> Path:
    """Write a Hugging Face style directory with the recipe's weights, rounded to ``dtype``."""
    dst.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for key, shape in shapes.items():
        value = weight(seed, key, shape)
        tensors[key] = value.astype(dtype) if value.dtype == np.float32 else value
    save_file(tensors, dst / "model.safetensors")
    (dst / "config.json").write_text(json.dumps(config))
    return dst
