"""Pairwise evaluation as fvjax does it, each image and each first image's prefix once, against every pair by itself.

    python benchmarks/evaluation.py --pairs=FILE [--take=96] [--batch=16] [--rounds=2]

--pairs: LFW's pairs.txt. Of its pairs, ordered by their first image, --take from the middle are computed, with random
weights in the InternVL2 of 100 million parameters of cases.py, synthetic faces and float32. Three ways, A B C A B C:
"reused", the evaluation's own (`predict.Predictor`); "by pair", the same model's answer to each pair, with all that a
training step leaves out left out; "reference", with every layer and all words' logits at every position, as
benchmarks/flops.py has it. All must give the same P(Yes). FLOPs are counted for the pairs taken and for the whole list.
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

from benchmarks import cases
from benchmarks import flops as counts
from fvjax import flops, predict, run_state, sharding
from fvjax.data import pipeline, synthetic
from fvjax.tasks import pair_answer

BATCH_OF_ALL = 128  # pairs at a time, for the FLOPs of the whole list: eval.batch_size of the paper's config


def renumbered(pairs: Any) -> SimpleNamespace:
    numbers = np.unique(np.stack([pairs.a, pairs.b], 1), return_inverse=True)[1].reshape(-1, 2)
    return SimpleNamespace(a=numbers[:, 0], b=numbers[:, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="LFW's pairs.txt")
    parser.add_argument("--take", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16, help="pairs at a time")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", cases.cpu_devices(2 * options.batch))
    every = counts.named(options.pairs)
    order = np.argsort(every.a, kind="stable")
    taken = order[(len(order) - options.take) // 2 :][: options.take]
    pairs = renumbered(SimpleNamespace(a=every.a[taken], b=every.b[taken]))

    config = cases.our_config("pair_100m", 2 * options.batch, None)
    config.eval.batch_size = options.batch
    mesh = sharding.make_mesh(config.mesh)
    opened = run_state.open_model(config, mesh)
    state, frozen, *_ = run_state.start(config, opened, mesh, steps_per_epoch=1)
    encoder, seconds, answers = opened.encoder, {}, {}

    with tempfile.TemporaryDirectory() as folder:
        store = synthetic.write(Path(folder) / "faces", range(-(-2 * options.take // 8)), 8, 0, split="test")
        predictor = predict.Predictor(config, encoder, mesh, frozen, Path(folder))

        def each(answer):
            """Both images of every pair through the whole model."""

            @jax.jit
            def run(state, frozen, faces):
                variables = run_state.variables_of(config, state["trainable"], frozen, state["stats"])
                return pair_answer.p_yes(answer(variables, faces[::2], faces[1::2]), (0, 1))

            def all_pairs():
                out = []
                both = np.stack([pairs.a, pairs.b], 1).reshape(-1)
                for faces, count in pipeline.eval_batches(store, both, 2 * options.batch):
                    placed = sharding.batch({"faces": faces}, mesh)["faces"]
                    out.append(np.asarray(run(state, frozen, placed))[: count // 2])
                return np.concatenate(out)

            return all_pairs

        def reference(variables, a, b):
            logits = counts.naive(encoder, variables, jnp.stack([a, b], 1))[0]
            return logits[:, jnp.array(encoder.yes_no)].astype(jnp.float32)

        ways = {
            "reused": lambda: predictor._answers(state, store, pairs, "reused"),  # type: ignore[arg-type]
            "by pair": each(lambda variables, a, b: encoder.answer(variables, a, b, encoder.yes_no)),
            "reference": each(reference),
        }
        for name, run in ways.items():
            answers[name], seconds[name] = run(), []
        for _ in range(options.rounds):
            for name, run in ways.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    for name, found in answers.items():
        np.testing.assert_allclose(found, answers["reused"], rtol=1e-4, atol=1e-6, err_msg=name)

    variables = {"params": {}} | state["trainable"] | {"params": frozen["params"]}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
    pair = jax.ShapeDtypeStruct((1, 112, 112, 3), jnp.uint8)
    scaled = lambda variables: run_state.variables_of(config, variables)  # noqa: E731
    alone = flops.count(lambda v, x: encoder.answer(scaled(v), x, x, encoder.yes_no), shapes, pair)
    for what, which, size in (("pairs taken", pairs, options.batch), ("all pairs", every, BATCH_OF_ALL)):
        config.eval.batch_size = size
        naive, ours = counts.evaluation(config, encoder, shapes, which)
        images, firsts = len(np.union1d(which.a, which.b)), len(np.unique(which.a))
        print(
            f"{what}: {len(which.a):,} pairs of {images:,} images, {firsts:,} of them first ones; FLOPs: reference "
            f"{naive / ours:.3f} times ours, by pair {alone * len(which.a) / ours:.3f} times"
        )
    base = statistics.median(seconds["reused"])
    for name, times in seconds.items():
        ratio = statistics.median(t / s for t, s in zip(times, seconds["reused"]))
        each_s = statistics.median(times) / options.take
        print(
            f"{name}: {each_s:.3f} s a pair ({min(times):.1f} to {max(times):.1f} s), {ratio:.3f} times reused's time"
        )
    print(f"{2 * options.take / base:.2f} images/s; P(Yes) the same to 1e-4")


if __name__ == "__main__":
    main()
