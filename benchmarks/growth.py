"""Measure how a step's time, memory, FLOPs and communication grow, and print the expected beside the measured exponent.

    python benchmarks/growth.py [--law=contrastive|batch|tokens|rank|devices …]

    contrastive   InfoNCE and its gradient alone, on embeddings [N,512]. The similarities are computed in parts of 2^26
                  elements, so beyond 8,192 images the memory no longer grows with the square of N.
    batch         the whole step of a tiny InternVL2, in parts of 8 images (GradCache)
    tokens        two layers of InternViT-300M's width with adapters, batch 2, at image sizes from 112 to 672
    rank          the same at 448 pixels, as a function of the adapters' rank
    devices       the bytes that each of 1 to 8 fake CPU devices sends in a step of the tiny InternVL2, read from the
                  compiled program

Time is the median of three steps after one warm-up step, on this machine's CPU, in float32. Memory is what XLA assigns
the compiled step besides its arguments. An exponent is the slope of the logarithms over the upper half of the sizes.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import cases
from fvjax.config import typed
from fvjax.losses import contrastive
from fvjax.parallel import sharding
from fvjax.planning import flops, hlo, programs

Point = tuple[int, dict[str, float]]  # a size and the measurements at that size


def seconds(run: Callable[[], object], times: int = 3) -> float:
    """Return the median time of `times` calls after one warm-up call."""
    run()
    measured = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        measured.append(time.perf_counter() - start)
    return statistics.median(measured)


def wait_for(step: Callable, *args: jax.Array) -> None:
    """Run the step and wait for its results."""
    jax.block_until_ready(step(*args))


def of_step(config) -> dict[str, float]:
    """Return the seconds, MiB and GFLOP of a training step."""
    program = programs.Planner(typed(config), sharding.make_mesh(config.mesh)).program()
    steps = cases.our_steps(config)
    return {
        "seconds": seconds(lambda: next(steps)),
        "MiB": programs.compiled(program).memory_analysis().temp_size_in_bytes / 2**20,
        "GFLOP": flops.count(program.step, *program.arguments) / 1e9,
    }


def by_contrastive() -> Iterator[Point]:
    for n in (256, 1024, 4096, 8192, 16384, 32768):
        z, labels = jax.random.normal(jax.random.key(0), (n, 512)), jnp.arange(n // 2)
        loss = jax.value_and_grad(lambda z, labels: contrastive.loss(z, labels, 0.07))
        step = jax.jit(loss).lower(z, labels).compile()
        analysis: Any = step.memory_analysis()
        memory = analysis.temp_size_in_bytes / 2**20
        yield n, {"seconds": seconds(partial(wait_for, step, z, labels), 1), "MiB": memory}


def by_batch() -> Iterator[Point]:
    for n in (16, 32, 64, 128):
        config = cases.our_config("mllm_tiny", n, None)
        config.accumulation = n // 8
        yield n, of_step(config)


def two_layers(size: int = 448, rank: int = 8):
    """Return the config of two layers of InternViT-300M's width."""
    config = cases.our_config("internvit", 2, None)
    config.model.vision_transformer.update({"depth": 2, "image_size": size})
    config.lora.update({"count": 4, "rank": rank, "alpha": float(rank)})
    return config


def by_tokens() -> Iterator[Point]:
    for size in (112, 224, 336, 448, 672):
        yield (size // 14) ** 2 + 1, of_step(two_layers(size))


def by_rank() -> Iterator[Point]:
    for rank in (4, 8, 16, 32, 64, 128):
        yield rank, of_step(two_layers(rank=rank))


def by_devices() -> Iterator[Point]:
    for n in (1, 2, 4, 8):
        config = cases.our_config("mllm_tiny", 64, None)
        program = programs.Planner(typed(config), sharding.make_mesh(config.mesh, jax.devices()[:n])).program()
        found = hlo.collectives(programs.compiled(program).as_text(), n)
        sent = {kind: sum(c.sent for c in found if c.kind == kind) / 1e6 for kind in ("all-reduce", "all-gather")}
        trained = sum(x.size for x in jax.tree.leaves(program.arguments[0].trainable))
        result = 4 * (trained + 64 * program.model.encoder.net.decoder.width)
        yield n, {f"MB by {k}": v for k, v in sent.items()} | {"MB expected": 2 * result * (n - 1) / n / 1e6}


LAWS = {  # name -> function, expected exponent of each measurement
    "contrastive": (by_contrastive, {"seconds": "2", "MiB": "2 up to 8,192 images, then at most 1"}),
    "batch": (by_batch, {"seconds": "1", "MiB": "below 1: one part's activations and all images", "GFLOP": "1"}),
    "tokens": (by_tokens, {"seconds": "1 to 2", "MiB": "1 (attention by head keeps no logits)", "GFLOP": "1 to 2"}),
    "rank": (by_rank, {"seconds": "about 0", "MiB": "about 0", "GFLOP": "about 0"}),
    "devices": (by_devices, {"MB by all-reduce": "2 (n-1)/n x bytes", "MB by all-gather": "(n-1)/n"}),
}


def exponent(points: list[Point], measure: str) -> float:
    """Return the slope of log(measure) over log(size) in the upper half of the points."""
    upper = [(size, values[measure]) for size, values in points[len(points) // 2 :] if values[measure]]
    sizes, values = np.log(np.array(upper).T)
    return float(np.polyfit(sizes, values, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--law", nargs="+", choices=list(LAWS), default=list(LAWS))
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8 if options.law == ["devices"] else 1)
    for law in options.law:
        if law == "devices" and len(jax.devices()) < 8:
            print("devices: needs eight fake devices, so run it alone: --law=devices\n")
            continue
        run, expected = LAWS[law]
        points = list(run())
        measures = list(points[0][1])
        print(f"| {law} | {' | '.join(measures)} |\n|{'---|' * (len(measures) + 1)}")
        for size, found in points:
            print(f"| {size:,} | {' | '.join(f'{found[m]:,.3g}' for m in measures)} |")
        print(f"| exponent | {' | '.join(f'{exponent(points, m):.2f}' for m in measures)} |")
        print(f"| expected | {' | '.join(expected.get(m, '') for m in measures)} |\n", flush=True)


if __name__ == "__main__":
    main()
