"""Count the model FLOPs of InternVL2-2B with adapters: all that the reference computes, and what fvjax computes.

    python benchmarks/flops.py [--pairs=FILE | --store=DIR]

Both are traced at full size and counted by the same `fvjax.planning.flops.count`; nothing is computed. Loops are
counted once per iteration, remat is off, and accumulation is 1.

Naive, as in the reference: The tower and the projector run for each image. The decoder runs over [BOS] + visual
tokens + text, with every layer at every position. The head computes the logits of all 92,553 words at every position.
Nothing is shared between pairs. The training step differentiates with respect to every parameter, as autograd does if
nothing is frozen; this costs the forward pass twice again, except for the head of scenario 2, whose logits are not
used. A second line differentiates with respect to the adapters only, as peft does.

Actual, as in fvjax: These are the functions that training and evaluation call (`training.step.gradients`, `Encoder`,
`AnswerEvaluator`). They leave out the text after the image for visual_mean, the logits of embeddings, the logits before
the last position, the last layer's queries and MLP before the last position, and the gradients of frozen weights. The
schedule of the evaluation is that of `verification.answers`, including the padding of its batches: each image passes
through the tower once, and the decoder runs once for each first image of a batch of pairs.

Both counts include the masked half of the decoder's attention (most of which attention=by_head does leave out) and
the state of BOS, which is the same for all images (one token of 257, or of 527). Together these are 1% of a forward
pass, and leaving them out would need block-wise attention with its own mask. Everything else in a pair's forward pass
affects its answer.

--pairs (LFW's pairs.txt) or --store (a prepared store with the benchmark "lfw") adds the counts of the evaluation.
"""

import argparse
import importlib
import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from fvjax import tasks
from fvjax.config import Config, typed
from fvjax.data import stores
from fvjax.data.readers import benchmark_lists
from fvjax.evals import verification
from fvjax.losses import contrastive, pair_answer
from fvjax.models import vlm
from fvjax.models.encoder import Encoder
from fvjax.parallel import sharding
from fvjax.planning import flops
from fvjax.training import optimizer
from fvjax.training.model import RunModel, open_model
from fvjax.training.state import TrainState, make_learner
from fvjax.training.step import Recipe, gradients

IDS = Path(__file__).parent.parent / "tests/golden/internlm2_tokenizer.json"  # token ids of both prompts


def naive(encoder: Encoder, variables: dict, faces: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Run the model as the reference does, on pairs of faces uint8 [P,2,112,112,3].

    Returns:
        The embeddings [2P, D] or the answers' logits [P, vocab], and the logits of all positions. The answers are
        taken from these logits; the embeddings do not use them.
    """

    def run(net: vlm.VLM, pixels):
        visual = net.visual(pixels)
        if not encoder.pooling:  # concatenate the two images of a pair
            visual = visual.reshape(-1, 2 * visual.shape[1], visual.shape[2])
        states = net.decoder(net.sequence(visual, encoder.prompt))
        logits = net.decoder.logits(states)
        pooled = vlm.pool_states(states, encoder.pooling, visual.shape[1]) if encoder.pooling else logits[:, -1]
        return pooled, logits

    pixels = encoder.pixels(faces.reshape(-1, *faces.shape[2:]))
    return encoder.net.apply(variables, pixels, method=run)  # type: ignore[return-value]


def naive_gradients(config: Config, model: RunModel, trainable: dict, frozen: dict, batch: dict) -> Any:
    """Return ((loss, logits of all positions), gradient of `trainable`) for a batch as in training.step.gradients."""
    encoder = model.encoder

    def loss(trainable):
        found, logits = naive(encoder, model.variables(trainable, {}, frozen), batch["images"])
        if config.task == "pair_answer":
            losses = pair_answer.losses(found, batch["labels"], encoder.yes_no, config.loss.pair_loss)
            return losses.mean(), logits
        return contrastive.loss(found, batch["labels"], config.loss.temperature), logits

    return jax.value_and_grad(loss, has_aux=True)(trainable)


def actual(encoder: Encoder, variables: dict, faces: jax.Array) -> jax.Array:
    """Return the same embeddings as fvjax computes them, or the answers' logits [P, 2] of Yes and No."""
    if encoder.pooling:
        return encoder(variables, faces.reshape(-1, *faces.shape[2:]))[0]
    return encoder.answer(variables, faces[:, 0], faces[:, 1], encoder.yes_no)


def full_size(name: str) -> tuple[Config, Recipe, dict]:
    """Return configs/NAME.py, its step and the shapes of its variables, without reading the config's files."""
    file = importlib.import_module(f"configs.{name}").get_config()
    ids = json.loads(IDS.read_text())["encode"][file.prompt.text]
    file.prompt.update({"ids": tuple(ids), "text": "", "yes_no_ids": (9583, 2917)})
    file.accumulation, file.batch_size, file.init_from = 1, 2, ""
    config = typed(file)
    task = tasks.get(config.task)(config, Path())
    model = open_model(config, task, sharding.one_device(), reference=True)
    learner = make_learner(config.optimizer, model.groups, epochs=config.epochs, steps_per_epoch=1)
    return config, Recipe(model, task, learner), jax.eval_shape(model.init, model.key)


def of_a_pair(config: Config, recipe: Recipe, variables: dict) -> dict[str, tuple[int, int]]:
    """Return {what: (naive, actual)} FLOPs of two images, separately (scenario 2) or as one pair (scenario 3)."""
    model, batch = recipe.model, recipe.task.batch_shapes(1)
    trainable, frozen, _ = optimizer.split(variables, config.trainable)
    state = TrainState({}, {}, jax.ShapeDtypeStruct((), jnp.int32), trainable)
    apply = lambda fn, variables, faces: fn(model.encoder, model.variables(variables, {}, {}), faces)  # noqa: E731
    forward = [flops.count(partial(apply, fn), variables, batch["images"]) for fn in (naive, actual)]
    step = flops.count(partial(gradients, recipe), state, frozen, batch)
    by = partial(flops.count, partial(naive_gradients, config, model))
    return {
        "forward pass": (forward[0], forward[1]),
        "training step": (by(variables, {}, batch), step),
        "training step, adapters only": (by(trainable, frozen, batch), step),
    }


def evaluation(config: Config, recipe: Recipe, variables: dict, pairs: Any) -> tuple[int, int]:
    """Return (naive, actual) FLOPs of P(Yes) of all pairs (image numbers a, b), on one device, as AnswerEvaluator's."""
    encoder: Encoder = recipe.model.encoder
    net, size, dtype = encoder.net, config.eval.batch_size, jnp.dtype(config.dtype)
    variables = jax.eval_shape(lambda variables: recipe.model.variables(variables, {}, {}), variables)
    faces = jax.ShapeDtypeStruct((1, 2, 112, 112, 3), jnp.uint8)
    visual = jax.ShapeDtypeStruct((1, net.image_tokens, net.decoder.width), dtype)  # type: ignore[attr-defined]
    kept = jax.eval_shape(encoder.prefix, variables, visual)
    of_image = flops.count(lambda variables, faces: encoder.visual(variables, faces[:, 0]), variables, faces)
    of_first = flops.count(encoder.prefix, variables, visual)
    of_pair = flops.count(partial(encoder.answer_after, rows=encoder.yes_no), variables, kept, visual)
    rows = {"first": 0, "pair": 0}

    def prefix(firsts):
        rows["first"] += len(firsts)

    def after(kept, whose, seconds):
        rows["pair"] += len(seconds)
        return np.zeros(len(seconds))

    images = np.union1d(pairs.a, pairs.b)
    nothing = np.empty((images.max() + 1, 0))  # the schedule only needs the number of rows
    verification.answers(prefix, after, nothing, pairs, batch_size=size, multiple=-(-size // 8))
    ours = -(-len(images) // size) * size * of_image + rows["first"] * of_first + rows["pair"] * of_pair
    return len(pairs.a) * flops.count(partial(naive, encoder), variables, faces), ours


def named(file: Path) -> SimpleNamespace:
    """Return the image numbers a, b of each pair of LFW's pairs.txt."""
    files = [(pair.a, pair.b) for pair in benchmark_lists.read_lfw(file)]
    numbers = np.unique(files, return_inverse=True)[1].reshape(-1, 2)
    return SimpleNamespace(a=numbers[:, 0], b=numbers[:, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--pairs", type=Path, help="LFW's pairs.txt")
    given.add_argument("--store", type=Path, help='a face store with the benchmark "lfw"')
    options = parser.parse_args()
    table = Table("", "naive, GFLOP", "actual, GFLOP", "times fewer")

    def row(what: str, counts: tuple[int, int], per: int = 1) -> None:
        table.add_row(what, *(f"{count / per / 1e9:,.0f}" for count in counts), f"{counts[0] / counts[1]:.3f}")

    for name, unit, per in (("mllm_lora", "an image", 2), ("pair_lora", "a pair", 1)):
        for what, counts in of_a_pair(*full_size(name)).items():
            row(f"{name}, {unit}: {what}", counts, per)
    if options.pairs or options.store:
        pairs = named(options.pairs) if options.pairs else stores.read_pairs(options.store, "lfw")
        row(f"pair_lora, LFW's {len(pairs.a):,} pairs: evaluation", evaluation(*full_size("pair_lora"), pairs))
    Console().print(table)
    if not (options.pairs or options.store):
        print("The FLOPs of an evaluation depend on the images that its pairs share: add --pairs=FILE or --store=DIR.")


if __name__ == "__main__":
    main()
