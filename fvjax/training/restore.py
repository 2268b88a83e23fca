"""What a finished or running experiment has trained so far, on one device and without its optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from fvjax import shipped, tasks
from fvjax.config import Config
from fvjax.parallel import sharding
from fvjax.training.checkpoint import Checkpoints, without_head
from fvjax.training.model import RunModel, open_model, pretrained_hash, prompt_facts


@dataclass(frozen=True)
class Restored:
    """A run's model with what it trained.

    Attributes:
        trainable, stats: see :class:`fvjax.training.state.TrainState`.
        step: 0 of a run that trains nothing. base_hash: of the pretrained files, "" without any.
    """

    model: RunModel
    trainable: Any
    stats: Any
    step: int
    base_hash: str

    def variables(self) -> dict[str, Any]:
        """Return what the network is applied to; this reads the frozen parameters."""
        return self.model.variables(self.trainable, self.stats, self.model.read_frozen())


def restore(config: Config, workdir: Path) -> Restored:
    """Read the best or newest checkpoint of a run; the work directory is only read.

    Parameters of the task's own are left out if predictions do without them (:attr:`Task.head_predicts`).

    Raises ValueError: no checkpoint yet; the base is missing, or not the one that was trained on.
    """
    check_pretrained(config.pretrained, dict(config.prepare), workdir)
    mesh = sharding.one_device()
    task = tasks.get(config.task)
    if not task.head_predicts:
        config = config.replace({"head.classes": 1})  # its head is left out below, and the training data may be gone
    model = open_model(config, task(config, workdir), mesh)
    base_hash = pretrained_hash(config.init_from, config.init_parts, config.base_kernels)

    def initial(key):
        first = model.initial(key)
        return first if task.head_predicts else {part: without_head(tree) for part, tree in first.items()}

    shapes = jax.eval_shape(initial, model.key)
    shardings = model.state_shardings(shapes, mesh)
    if not config.trains:
        state = model.start(jax.jit(initial, out_shardings=shardings)(model.key))
        return Restored(model, state["trainable"], state["stats"], 0, base_hash)
    nothing = ValueError(f"{workdir} has no checkpoint yet, so there is nothing trained to use")
    if not (workdir / "checkpoints").is_dir():
        raise nothing
    checkpoints = Checkpoints(workdir, config.checkpoint, read_only=True)
    step = checkpoints.best()
    if step is None:
        raise nothing
    check_facts(checkpoints.meta(step), base_hash, prompt_facts(model.encoder), workdir, config.pretrained)
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    state = checkpoints.restore(step, target, {}, head=task.head_predicts)
    checkpoints.close()
    return Restored(model, state["trainable"], state["stats"], step, base_hash)


def check_pretrained(pretrained: dict[str, str], remedies: dict[str, str], workdir: Path) -> None:
    """Raise ValueError if a directory of pretrained weights (by config key) does not exist."""
    for key, path in pretrained.items():
        if path and not Path(shipped.weights(path)).is_dir():
            problem = f"{path} is not there (seen from where the run was started). {remedies.get(key, '')}"
            raise ValueError(f"{workdir}/config.json: {key}: {problem}".rstrip())


def check_facts(
    saved: dict[str, Any], base_hash: str, prompt: dict[str, Any], workdir: Path, pretrained: dict[str, str]
) -> None:
    """Raise ValueError if a checkpoint was trained on another base, or with other token ids, than there are now."""
    if saved["base_hash"] != base_hash:
        base = pretrained["init_from"] or {key.partition(".")[2]: path for key, path in pretrained.items() if path}
        raise ValueError(
            f"{workdir} was trained on another base than {base} is now (hash {saved['base_hash'][:8]} there, "
            f"{base_hash[:8]} now); put that base back"
        )
    for key, ids in prompt.items():
        if saved.get(key, ids) != ids:  # checkpoints of earlier versions do not have them
            problem = f"was trained with {key} {saved[key]}, its tokenizer now gives {ids}"
            raise ValueError(f"{workdir} {problem}; put the tokenizer's files back")
