"""What an earlier run has trained, for a later one to begin with (`config.init_from` is its work directory)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fvjax import saved_config, trees
from fvjax.config import Config, typed
from fvjax.parallel import sharding
from fvjax.training.checkpoint import Checkpoints


def is_run(path: str | Path) -> bool:
    """Return whether a directory's config.json is that of a training run."""
    file = Path(path) / "config.json"
    try:
        return file.is_file() and "trainable" in json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False


def read_config(workdir: Path) -> Config:
    """Read config.json of a run. Raises ValueError if this version does not understand it, or it trained nothing."""
    config = typed(saved_config.read(workdir / "config.json"))
    if not config.trains:
        raise ValueError(f"{workdir} trains nothing; begin with its config.init_from instead")
    if config.lora.rank:
        raise ValueError(f"{workdir} trained adapters; merge them first (python -m fvjax.export --merged)")
    return config


def read_trained(workdir: Path, config: Config) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the best or newest checkpoint of a run -> (what it trained, by name; facts such as its base's hash).

    Raises ValueError: there is no checkpoint, or it is damaged.
    """
    checkpoints, step = _open(workdir, config)
    placed = sharding.replicated(sharding.one_device())
    stored = trees.flatten(checkpoints.manager.item_metadata(step)["state"]["trainable"])
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed) for name, x in stored.items()}
    state = checkpoints.restore(step, {"trainable": trees.unflatten(shapes), "stats": {}}, {})
    meta = checkpoints.meta(step)
    checkpoints.close()
    return {name: np.asarray(x) for name, x in trees.flatten(state["trainable"]).items()}, meta


def fingerprint(workdir: str | Path) -> str:
    """Return a hash of a run's base and of what it has trained, without reading the arrays."""
    config = read_config(Path(workdir))
    checkpoints, step = _open(Path(workdir), config)
    meta = checkpoints.meta(step)
    checkpoints.close()
    facts = [meta["base_hash"], meta["hashes"]["trainable"]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _open(workdir: Path, config: Config) -> tuple[Checkpoints, int]:
    """Open the checkpoints of a run -> (them, the best or newest step)."""
    nothing = ValueError(f"{workdir} has no checkpoint yet, so there is nothing trained to begin with")
    if not (workdir / "checkpoints").is_dir():
        raise nothing
    checkpoints = Checkpoints(workdir, config.checkpoint, read_only=True)
    step = checkpoints.best()
    if step is None:
        raise nothing
    return checkpoints, step
