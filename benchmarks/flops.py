"""Model FLOPs of InternVL2-2B with adapters: all that the reference computes, and what fvjax computes of it.

    python benchmarks/flops.py [--pairs=FILE | --store=DIR]

Both sides are traced at full size and counted by the same `fvjax.planning.flops.count`; nothing is computed. Loops are
multiplied out, remat is off, accumulation is 1.

Naive: tower and projector for each image, the decoder over [BOS] + visual tokens + text with every layer at every
position, and the head's logits of all 92,553 words at every position, every pair from scratch. Its training step
differentiates by every parameter, as autograd does where nothing is frozen (twice its forward pass again, but for the
head of scenario 2, whose logits nothing uses); a second line has it differentiate by the adapters only, as peft does.
Actual: the functions that training and evaluation call (`train.gradients`, `Encoder`, `predict`), with what they leave
out: the text after the image for visual_mean, logits of embeddings, logits before the last position, the last layer's
queries and MLP before it, frozen weights' gradients. The evaluation's schedule is `verification.answers`' own, what
pads its batches included: each image through the tower once, the decoder once for each first image of a batch of
pairs.

Not left out of the count: the masked half of the decoder's attention (most of which attention=by_head does leave out),
and the state of BOS, which is the same for all images (one token of 257, or of 527). Together they are 1% of a forward
pass, and both need attention by blocks with a mask of their own. A pair's forward pass has nothing else that its answer
does not depend on.

--pairs: LFW's pairs.txt, for the figures of the evaluation; or --store: a prepared store with benchmark "lfw".
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

from fvjax.config import Config
from fvjax.data import stores
from fvjax.data.readers import benchmark_lists
from fvjax.evals import verification
from fvjax.losses import contrastive, pair_answer
from fvjax.models import vlm
from fvjax.models.encoder import Encoder
from fvjax.planning import flops
from fvjax.training import loop, optimizer, train_state

IDS = Path(__file__).parent.parent / "tests/golden/internlm2_tokenizer.json"  # of both prompts


def naive(encoder: Encoder, variables: dict, faces: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As the reference does it, on pairs of faces uint8 [P,2,112,112,3].

    Returns:
        embeddings [2P, D], or the answers' logits [P, vocab]; and the logits of all positions, of which they are or
        are not made.
    """

    def run(net: vlm.VLM, pixels):
        visual = net.visual(pixels)
        if not encoder.pooling:  # both images of a pair after each other
            visual = visual.reshape(-1, 2 * visual.shape[1], visual.shape[2])
        states = net.decoder(net.sequence(visual, encoder.prompt))
        logits = net.decoder.logits(states)
        pooled = vlm.pool_states(states, encoder.pooling, visual.shape[1]) if encoder.pooling else logits[:, -1]
        return pooled, logits

    pixels = encoder.pixels(faces.reshape(-1, *faces.shape[2:]))
    return encoder.net.apply(variables, pixels, method=run)  # type: ignore[return-value]


def naive_gradients(config: Config, encoder: Encoder, trainable: dict, frozen: dict, batch: dict) -> Any:
    """((loss, logits of all positions), the gradient by `trainable`); `batch` as in train.gradients."""

    def loss(trainable):
        found, logits = naive(encoder, train_state.variables_of(config, trainable, frozen), batch["images"])
        if config.task == "pair_answer":
            return pair_answer.loss(found, batch["labels"], encoder.yes_no, config.loss.pair_loss), logits
        return contrastive.loss(found, batch["labels"], config.loss.temperature), logits

    return jax.value_and_grad(loss, has_aux=True)(trainable)


def actual(encoder: Encoder, variables: dict, faces: jax.Array) -> jax.Array:
    """The same embeddings as ours, or the answers' logits [P, 2] of Yes and No."""
    if encoder.pooling:
        return encoder(variables, faces.reshape(-1, *faces.shape[2:]))[0]
    return encoder.answer(variables, faces[:, 0], faces[:, 1], encoder.yes_no)


def full_size(name: str) -> tuple[Config, Encoder, dict]:
    """configs/NAME.py without its files: with its encoder and its variables as shapes."""
    config = importlib.import_module(f"configs.{name}").get_config()
    ids = json.loads(IDS.read_text())["encode"][config.prompt.text]
    config.prompt.update({"ids": tuple(ids), "text": "", "yes_no_ids": (9583, 2917)})
    config.accumulation, config.batch_size = 1, 2
    encoder = train_state.build_encoder(config, plain=True)
    variables = jax.eval_shape(partial(train_state.init_variables, config, encoder), jax.random.key(0))
    return config, encoder, variables


def of_a_pair(config: Config, encoder: Encoder, variables: dict) -> dict[str, tuple[int, int]]:
    """{what: (naive, actual)} FLOPs of two images, by themselves (scenario 2) or as one pair (scenario 3)."""
    trainable, frozen, _ = optimizer.split(variables, config.trainable)
    state, frozen, batch = loop.abstract_step(config, {"trainable": trainable, "stats": {}}, frozen)
    apply = lambda fn, variables, faces: fn(encoder, train_state.variables_of(config, variables), faces)  # noqa: E731
    forward = [flops.count(partial(apply, fn), variables, batch["images"]) for fn in (naive, actual)]
    step = flops.count(partial(loop.gradients, config, encoder), state, frozen, batch)
    by = partial(flops.count, partial(naive_gradients, config, encoder))
    return {
        "forward pass": (forward[0], forward[1]),
        "training step": (by(variables, {}, batch), step),
        "training step, adapters only": (by(state["trainable"], frozen, batch), step),
    }


def evaluation(config: Config, encoder: Encoder, variables: dict, pairs: Any) -> tuple[int, int]:
    """(naive, actual) FLOPs of P(Yes) for every pair (numbers of images a, b), on one device as fvjax.predict does."""
    net, size, dtype = encoder.net, config.eval.batch_size, jnp.dtype(config.dtype)
    variables = jax.eval_shape(partial(train_state.variables_of, config), variables)
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
    nothing = np.empty((images.max() + 1, 0))  # the schedule asks only how many rows there are
    verification.answers(prefix, after, nothing, pairs, batch_size=size, multiple=-(-size // 8))
    ours = -(-len(images) // size) * size * of_image + rows["first"] * of_first + rows["pair"] * of_pair
    return len(pairs.a) * flops.count(partial(naive, encoder), variables, faces), ours


def named(file: Path) -> SimpleNamespace:
    """The image numbers a, b of each pair of LFW's pairs.txt."""
    files = [(pair.a, pair.b) for pair in benchmark_lists.read_lfw(file)]
    numbers = np.unique(files, return_inverse=True)[1].reshape(-1, 2)
    return SimpleNamespace(a=numbers[:, 0], b=numbers[:, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--pairs", type=Path, help="LFW's pairs.txt")
    given.add_argument("--store", type=Path, help='a face store with benchmark "lfw"')
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
        print("The evaluation depends on which images its pairs share: give --pairs=FILE or --store=DIR.")


if __name__ == "__main__":
    main()
