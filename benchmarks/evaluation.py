"""Compare fvjax's pairwise evaluation, which reuses images and prefixes, with evaluating every pair separately.

    python benchmarks/evaluation.py --pairs=FILE [--case=pair_100m] [--take=96] [--batch=16] [--rounds=2]
    python benchmarks/evaluation.py --case=internvit [--device=gpu]           embedded images per second

With --pairs (LFW's pairs.txt), --take pairs are evaluated that share images as often as all pairs do (0: all pairs), by
an InternVL2 of cases.py with random weights, on synthetic faces, in float32. Three methods take turns, A B C A B C:

    reused      the evaluation's own method (`AnswerEvaluator`): each image and each first image's prefix once
    by pair     the same model's answer to each pair, with all shortcuts of a training step
    reference   every layer, and the logits of the whole vocabulary at every position, as in benchmarks/flops.py

All must give the same P(Yes). FLOPs are counted for the selected pairs and for the whole list.

Without --pairs, a case that embeds (not pair_…) embeds batches of images as an evaluation does, without decoding JPEGs:
in float32 on a CPU, in bfloat16 on a GPU. The first batch, which compiles, is not counted.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import cases, step_time
from benchmarks import flops as counts
from fvjax.config import typed
from fvjax.data import pipeline, synthetic
from fvjax.losses import pair_answer
from fvjax.parallel import sharding
from fvjax.planning import flops
from fvjax.tasks.predictor import Predictor

BATCH_OF_ALL = 128  # pairs per batch, for the FLOPs of the whole list: eval.batch_size of the paper's config


def renumbered(pairs: Any) -> SimpleNamespace:
    """Return the pairs with their images numbered from 0."""
    numbers = np.unique(np.stack([pairs.a, pairs.b], 1), return_inverse=True)[1].reshape(-1, 2)
    return SimpleNamespace(a=numbers[:, 0], b=numbers[:, 1])


def sample(pairs: Any, count: int) -> list[int]:
    """Return the numbers of `count` pairs that share images about as often as all pairs do.

    A random sample would not do, because few of its pairs share an image. Pairs are therefore added one at a time, each
    the one (in random order) that keeps the images and first images per pair nearest to the ratios of the whole list.
    """
    both = np.stack([pairs.a, pairs.b], 1)
    goal = np.array([len(np.unique(both)), len(np.unique(pairs.a))]) / len(both)
    left, taken = np.random.default_rng(0).permutation(len(both)), []
    seen, first = np.zeros((2, both.max() + 1), bool)
    while len(taken) < count:
        new = np.stack([(~seen[both[left]]).sum(1), ~first[pairs.a[left]]], 1)
        far = np.abs(new + np.array([seen.sum(), first.sum()]) - goal * (len(taken) + 1)).sum(1)
        pair = left[far.argmin()]
        taken.append(int(pair))
        seen[both[pair]] = first[pairs.a[pair]] = True
        left = left[left != pair]
    return taken


def evaluator_of(run: cases.Run) -> Any:
    """Return the evaluator of the run's task: an EmbeddingEvaluator, or an AnswerEvaluator."""
    model = run.recipe.model
    return run.recipe.task.evaluator(model.encoder, Predictor(model.variables, run.frozen, run.mesh), set())


def embedding(options: argparse.Namespace) -> None:
    """Print how many images are embedded per second."""
    given = argparse.Namespace(case=options.case, device=options.device, batch=2 * options.batch, set=[])
    config = step_time.configured(given, None, {"cpu": "float32", "gpu": "bfloat16"}[options.device])
    run = cases.started(config)
    evaluator = evaluator_of(run)
    faces, rates = cases.faces(options.batch), []
    for _ in range(1 + options.rounds):
        start = time.perf_counter()
        evaluator.embed(run.state, faces)
        rates.append(options.batch / (time.perf_counter() - start))
    kind, middle = jax.devices()[0].device_kind, statistics.median(rates[1:])
    low, high = min(rates[1:]), max(rates[1:])
    print(f"{options.case}, {config.dtype}, {kind}: {middle:.4g} images/s ({low:.4g} to {high:.4g})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, help="LFW's pairs.txt")
    parser.add_argument("--case", choices=list(cases.BATCH), default="pair_100m")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--take", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16, help="pairs per batch, or images without --pairs")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if options.case.startswith("pair") != bool(options.pairs):
        parser.error("--pairs=FILE is needed for the cases pair_…, and for no others")
    jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[options.device])
    if options.device == "cpu":
        jax.config.update("jax_num_cpu_devices", cases.cpu_devices(2 * options.batch))
    if not options.pairs:
        return embedding(options)
    every = counts.named(options.pairs)
    options.take = options.take or len(every.a)
    taken = sample(every, options.take)
    pairs = renumbered(SimpleNamespace(a=every.a[taken], b=every.b[taken]))

    config = cases.our_config(options.case, 2 * options.batch, None)
    config.eval.batch_size = options.batch
    seconds, answers = {}, {}

    with tempfile.TemporaryDirectory() as folder:
        store = synthetic.write(Path(folder) / "faces", range(-(-2 * options.take // 8)), 8, 0, split="test")
        run = cases.started(config, Path(folder))
        encoder, evaluator = run.recipe.model.encoder, evaluator_of(run)

        def each(answer):
            """Return a function that runs both images of every pair through the whole model."""

            @jax.jit
            def of_batch(state, frozen, faces):
                variables = run.variables(state, frozen)
                return pair_answer.p_yes(answer(variables, faces[::2], faces[1::2]), (0, 1))

            def all_pairs():
                out = []
                both = np.stack([pairs.a, pairs.b], 1).reshape(-1)
                for faces, count in pipeline.eval_batches(store, both, 2 * options.batch):
                    placed = sharding.batch({"faces": faces}, run.mesh)["faces"]
                    out.append(np.asarray(of_batch(run.state, run.frozen, placed))[: count // 2])
                return np.concatenate(out)

            return all_pairs

        def reference(variables, a, b):
            logits = counts.naive(encoder, variables, jnp.stack([a, b], 1))[0]
            return logits[:, jnp.array(encoder.yes_no)].astype(jnp.float32)

        ways = {
            "reused": lambda: evaluator.answers(run.state, store, pairs, "reused"),
            "by pair": each(lambda variables, a, b: encoder.answer(variables, a, b, encoder.yes_no)),
            "reference": each(reference),
        }
        for name, evaluate in ways.items():
            answers[name], seconds[name] = evaluate(), []
        for _ in range(options.rounds):
            for name, evaluate in ways.items():
                start = time.perf_counter()
                evaluate()
                seconds[name].append(time.perf_counter() - start)
    for name, probabilities in answers.items():
        np.testing.assert_allclose(probabilities, answers["reused"], rtol=1e-4, atol=1e-6, err_msg=name)

    variables = {"params": {}} | run.state.trainable | {"params": run.frozen["params"]}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
    pair = jax.ShapeDtypeStruct((1, 112, 112, 3), jnp.uint8)
    scaled = lambda variables: run.recipe.model.variables(variables, {}, {})  # noqa: E731
    alone = flops.count(lambda v, x: encoder.answer(scaled(v), x, x, encoder.yes_no), shapes, pair)
    for what, which, size in (("selected pairs", pairs, options.batch), ("all pairs", every, BATCH_OF_ALL)):
        config.eval.batch_size = size
        naive, ours = counts.evaluation(typed(config), run.recipe, shapes, which)
        images, firsts = len(np.union1d(which.a, which.b)), len(np.unique(which.a))
        print(
            f"{what}: {len(which.a):,} pairs of {images:,} images, {firsts:,} of them first images; FLOPs: reference "
            f"{naive / ours:.3f} times ours, by pair {alone * len(which.a) / ours:.3f} times"
        )
    base = statistics.median(seconds["reused"])
    for name, times in seconds.items():
        ratio = statistics.median(t / s for t, s in zip(times, seconds["reused"]))
        each_s = statistics.median(times) / options.take
        print(
            f"{name}: {each_s:.3f} s a pair ({min(times):.1f} to {max(times):.1f} s), {ratio:.3f} times reused's time"
        )
    print(f"{2 * options.take / base:.2f} images/s; P(Yes) is equal to 1e-4")


if __name__ == "__main__":
    main()
