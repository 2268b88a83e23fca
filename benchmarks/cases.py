"""Define the training steps that step_time.py measures: sizes, weights, a batch and fvjax's step.

The PyTorch twins of these steps are in twins.py. The cases:

    small_real          the network of configs/small_real.py
    resnet50            IResNet-50
    internvit           InternViT-300M, frozen, with mean-pooled patch tokens and rank-8 adapters on both MLP layers
    mllm_SIZE           an InternVL2 at 448 pixels with rank-8 adapters on the MLPs of tower and decoder, as a siamese
                        embedding by visual_mean
    pair_SIZE           the same model, answering Yes or No, with a loss over the whole vocabulary

SIZE is tiny (the golden set's model), 100m (about 100 million parameters) or 2b (InternVL2-2B).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fvjax.models import presets
from tests.reference import recipe

if TYPE_CHECKING:  # at run time jax is imported late, after the platform has been chosen
    import jax
    from jax.sharding import Mesh

    from fvjax.config import Config
    from fvjax.training.state import TrainState
    from fvjax.training.step import Recipe

BATCH = {  # case -> images per step on a CPU, on a GPU; pair_… has half as many pairs
    "small_real": (128, 1024), "resnet50": (32, 512), "internvit": (2, 32), "mllm_tiny": (8, 64), "pair_tiny": (8, 64),
    "mllm_100m": (4, 64), "pair_100m": (4, 64), "mllm_2b": (2, 32), "pair_2b": (2, 32),
}  # fmt: skip
STEPS = {  # case -> warm-up steps, measured steps, on a CPU
    "small_real": (5, 6), "resnet50": (2, 3), "internvit": (1, 2), "mllm_tiny": (3, 7), "pair_tiny": (3, 7),
    "mllm_100m": (5, 4), "pair_100m": (5, 4), "mllm_2b": (1, 2), "pair_2b": (1, 2),
}  # fmt: skip
ON_GPU = (3, 10)  # warm-up steps, measured steps
IRESNET = {
    "small_real": ((2, 2, 2, 2), (16, 32, 64, 128), 256),
    "resnet50": tuple(presets.iresnet50()[key] for key in ("layers", "widths", "num_features")),
}
TINY = json.loads((recipe.GOLDEN / "internvl_tiny/config.json").read_text())
INTERNVIT = {
    "architectures": ["InternVisionModel"], "image_size": 448, "patch_size": 14, "hidden_size": 1024,
    "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096, "qkv_bias": True,
    "qk_normalization": False, "norm_type": "layer_norm", "layer_norm_eps": 1e-6, "hidden_act": "gelu",
    "drop_path_rate": 0.0,
}  # fmt: skip
VISION, LLM = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"), "llm_config"
INTERNVL = {
    "tiny": TINY,
    "100m": TINY | {
        "vision_config": TINY["vision_config"] | dict(zip(VISION, (512, 8, 8, 2048))),
        "llm_config": TINY["llm_config"] | dict(zip(VISION, (768, 8, 12, 3072)))
        | {"num_key_value_heads": 4, "vocab_size": 8000},
    },
    "2b": TINY | {
        "vision_config": TINY["vision_config"] | dict(zip(VISION, (1024, 24, 16, 4096))),
        "llm_config": TINY["llm_config"] | dict(zip(VISION, (2048, 24, 16, 8192)))
        | {"num_key_value_heads": 8, "vocab_size": 92553},
    },
}  # fmt: skip
QUESTION, YES_NO = tuple(range(20, 34)), (40, 50)  # the real question has the same number of ids
RATE, CLIP, MOMENTUM, DECAY = 0.01, 5.0, 0.9, 5e-4  # settings of SGD, equal for fvjax and the twins


def config_json(case: str) -> dict:
    """Return the contents of the checkpoint's config.json."""
    if case in IRESNET:
        layers, widths, features = IRESNET[case]
        return {"architectures": ["IResNet"], "layers": layers, "widths": widths, "num_features": features}
    return INTERNVIT if case == "internvit" else INTERNVL[case.partition("_")[2]]


def faces(batch: int) -> np.ndarray:
    """Return a batch of random pixels, uint8 [batch,112,112,3]."""
    return np.random.default_rng(0).integers(0, 256, (batch, 112, 112, 3), np.uint8)


def answers(batch: int) -> np.ndarray:
    """Return the labels of the pairs of a pair_… case, int32 [batch / 2]: 1 for genuine, 0 for impostor."""
    return np.arange(batch // 2, dtype=np.int32) % 2


def our_config(case: str, batch: int, weights: Path | None) -> Any:
    """Return the config of a case, as a config file would: a ConfigDict.

    Args:
        weights: the checkpoint's folder. None selects random weights of the same shapes.
    """
    from fvjax.config import base as defaults
    from weights_convert import internvl

    c = defaults()
    c.init_from, c.batch_size, c.data.flip = str(weights or ""), batch, False
    c.epochs = 100  # so many that the learning rate stays that of the twin
    c.optimizer.update({"lr": RATE, "clip": CLIP, "momentum": MOMENTUM, "weight_decay": DECAY})
    if case in IRESNET:
        layers, widths, features = IRESNET[case]
        c.model.iresnet.update({"layers": layers, "widths": widths, "num_features": features})
        c.trainable = (("params/features/scale", "frozen"), (".*", "backbone"))
        return c
    c.lora.update({"rank": 8, "alpha": 8.0})
    c.trainable = (("lora/.*", "adapter"), (".*", "frozen"))
    if case == "internvit":
        c.model.kind, c.model.pooling = "vision_transformer", "mean"
        c.lora.update({"targets": ("blocks/mlp/fc1", "blocks/mlp/fc2"), "count": 48})
        return c
    given = internvl.model_config(config_json(case), case)
    for section, part in (("vision_transformer", given["vision"]), ("decoder", given["decoder"])):
        c.model[section].update({key: part[key] for key in c.model[section] if key in part})
    c.model.kind = "vlm"
    c.lora.count = 2 * given["vision"]["depth"] + 3 * given["decoder"]["depth"]
    c.lora.targets = ("vision/blocks/mlp/fc[12]", "decoder/blocks/mlp/(gate|up|down)")
    if case.startswith("mllm"):
        c.model.pooling = "visual_mean"
    else:
        c.task = "pair_answer"
        c.prompt.update({"ids": QUESTION, "yes_no_ids": YES_NO})
    return c


class Run(NamedTuple):
    """A run before its first step, on all devices."""

    config: Config
    mesh: Mesh
    recipe: Recipe
    state: TrainState
    frozen: dict[str, Any]

    def variables(self, state: TrainState, frozen: dict[str, Any]) -> dict[str, Any]:
        """Return the variables that the network is applied to."""
        return self.recipe.model.variables(state.trainable, state.stats, frozen)


def started(c: Any, workdir: Path = Path(), reference: bool = False) -> Run:
    """Open the model of a ConfigDict and initialise its training state.

    Args:
        reference: use the network as it is written, see fvjax.training.model.open_model.
    """
    from fvjax import tasks
    from fvjax.config import typed
    from fvjax.parallel import sharding
    from fvjax.training.model import open_model
    from fvjax.training.state import make_learner, start_state
    from fvjax.training.step import Recipe

    config = typed(c)
    mesh = sharding.make_mesh(vars(config.mesh))
    task = tasks.get(config.task)(config, workdir)
    model = open_model(config, task, mesh, reference=reference)
    learner = make_learner(config.optimizer, model.groups, epochs=config.epochs, steps_per_epoch=1000)
    recipe = Recipe(model, task, learner, config.accumulation, config.compat.last_micro_batch)
    return Run(config, mesh, recipe, start_state(learner, model, mesh), model.read_frozen())


def our_steps(c: Any, reference: bool = False) -> Iterator[dict[str, float]]:
    """Run training steps on one batch, over and over, and yield the loss and gradient norm of each step.

    Args:
        reference: use the convolutions as they are written, not the variants that a CPU runs fastest.
    """
    import jax

    from fvjax.parallel import sharding
    from fvjax.training.step import train_step

    pairs = c.batch_size // 2
    _, mesh, recipe, state, frozen = started(c, reference=reference)
    where = jax.tree.map(lambda x: x.sharding, state)
    index = np.arange(pairs, dtype=np.int32)
    labels = answers(c.batch_size) if c.task == "pair_answer" else index
    images = faces(c.batch_size).reshape(pairs, 2, 112, 112, 3)
    batch = sharding.batch({"images": images, "labels": labels, "index": index}, mesh)
    step = jax.jit(partial(train_step, recipe), donate_argnums=0, out_shardings=(where, None))
    while True:
        state, values = step(state, frozen, batch)
        yield {key: float(values[key]) for key in ("loss", "grad_norm")}


def our_flops(c: Any) -> tuple[int, int]:
    """Return the FLOPs of a step: of the model, without recomputation, and of the step as it is compiled here."""
    from fvjax.config import typed
    from fvjax.parallel import sharding
    from fvjax.planning import flops, programs

    mesh = sharding.one_device()
    written, actual = (programs.Planner(typed(c), mesh).program(reference=reference) for reference in (True, False))
    return flops.count(written.step, *written.arguments), flops.count(actual.step, *actual.arguments)


def our_embeddings(c: Any) -> np.ndarray:
    """Return the outputs for the batch before training: unit embeddings [N,D], or log P of Yes and No [P,2]."""
    import jax
    import jax.numpy as jnp

    from fvjax.parallel import sharding

    run = started(c)
    encoder = run.recipe.model.encoder

    @jax.jit
    def outputs(state: TrainState, frozen: dict[str, Any], images: jax.Array) -> jax.Array:
        variables = run.variables(state, frozen)
        if run.config.task == "pair_answer":
            logits = encoder.answer(variables, images[::2], images[1::2], encoder.yes_no)
            return jax.nn.log_softmax(logits.astype(jnp.float32))
        x = encoder(variables, images)[0]
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    return np.asarray(outputs(run.state, run.frozen, sharding.batch({"x": faces(c.batch_size)}, run.mesh)["x"]))


def cpu_devices(batch: int) -> int:
    """Return the number of CPU devices, as fvjax.main chooses it: one per core if the pairs can be divided."""
    cores = len(os.sched_getaffinity(0))
    return 1 if batch // 2 % cores else cores
