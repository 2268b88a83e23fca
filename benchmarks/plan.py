"""Compare what `fvjax.plan` predicts with one training step on this machine's CPU: memory, and FLOPs per second.

    python benchmarks/plan.py [--cases=resnet_tiny,mllm_tiny,mllm_100m,pair_100m] [--remat=none]
    python benchmarks/plan.py --cases=resnet50_infonce,vit_lora,mllm_lora,pair_lora [--remat=full]

resnet_tiny is the quickstart's ResNet, batch 64. mllm_* and pair_* are an InternVL2 at 448 pixels with rank-8
adapters on the MLPs, with an embedding or an answer; tiny has 0.6 million parameters (batch 8), 100m about 100
million (batch 4). The steps run in float32 with random weights, on one device, with attention by head, as in a run on
a CPU. Each case has its own process:

    predicted   parameters, optimizer, batch and `fvjax.planning.memory.estimate` of the step; the range counts the
                working set once and twice (see fvjax/plan.py)
    XLA         the same with XLA's own figure for the compiled step
    measured    peak resident memory after three steps, minus the resident memory after compilation
    GFLOP/s     `fvjax.planning.flops.count` of the step / median time. If the counts are right, it is similar for
                two models.

The name of a config selects a model at full size in float32, with 16 images per part. It is compiled for one device and
not run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent.parent))

if TYPE_CHECKING:  # only the child processes import jax
    from fvjax.config import Config

CASES = ("resnet_tiny", "mllm_tiny", "mllm_100m", "pair_100m")
FULL = ("resnet50_infonce", "vit_lora", "mllm_lora", "pair_lora")
VISION = {
    "tiny": {"width": 32, "depth": 3, "heads": 4, "mlp_dim": 64},
    "100m": {"width": 512, "depth": 8, "heads": 8, "mlp_dim": 2048},
}
DECODER = {
    "tiny": {"vocab": 256, "width": 64, "depth": 3, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp_dim": 128},
    "100m": {"vocab": 8000, "width": 768, "depth": 8, "heads": 12, "kv_heads": 4, "head_dim": 64, "mlp_dim": 3072},
}


def make(case: str, remat: str) -> Config:
    """Return the config of a case."""
    from configs import quickstart
    from fvjax.config import base, typed
    from fvjax.planning import estimate

    if case in FULL:
        full = estimate.without_files(typed(importlib.import_module(f"configs.{case}").get_config()))[0]
        parts = min(full.accumulation, 2)
        return full.replace({"accumulation": parts, "batch_size": 16 * parts, "dtype": "float32", "remat": remat})

    kind, size = case.split("_")
    if kind == "resnet":
        config = quickstart.get_config("resnet")
        config.batch_size = 64
        return typed(config)
    config = base()
    config.model.kind, config.remat, config.attention, config.epochs = "vlm", remat, "by_head", 1
    config.model.vision_transformer.update(VISION[size])
    config.model.decoder.update(DECODER[size])
    count = 2 * VISION[size]["depth"] + 3 * DECODER[size]["depth"]
    targets = ("vision/blocks/mlp/fc[12]", "decoder/blocks/mlp/(gate|up|down)")
    config.lora.update({"rank": 8, "alpha": 8.0, "targets": targets, "count": count})
    config.trainable = (("lora/.*", "adapter"), (".*", "frozen"))
    config.batch_size = 8 if size == "tiny" else 4
    if kind == "mllm":
        config.model.pooling = "visual_mean"
    else:
        config.task = "pair_answer"
        config.prompt.update({"ids": tuple(range(20, 34)), "yes_no_ids": (40, 50)})
    return typed(config)


def one(case: str, remat: str) -> dict:
    """Predict and measure one case in this (child) process; all sizes in bytes."""
    import jax
    import numpy as np

    from fvjax.parallel import sharding
    from fvjax.planning import flops, memory, programs
    from fvjax.training.state import make_learner, start_state

    config = make(case, remat)
    mesh = sharding.make_mesh(vars(config.mesh), jax.devices()[:1])
    program = programs.Planner(config, mesh).program()
    found, step = memory.estimate(program.step, *program.arguments), programs.compiled(program)
    arguments = sum(programs.bytes_per_device(*one) for one in zip(program.arguments, program.shardings))
    layer = 1 + (config.accumulation > 1)
    working = sum(found.alive[layer:]) if config.model.kind != "iresnet" else sum(found.alive)
    out = {
        "least": arguments + sum(found.alive),
        "most": arguments + sum(found.alive) + working,
        "xla": arguments + step.memory_analysis().temp_size_in_bytes,
        "gflop": flops.count(program.step, *program.arguments) / 1e9,
    }
    if case in FULL:
        return out
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    learner = make_learner(config.optimizer, program.model.groups, epochs=config.epochs, steps_per_epoch=1)
    state, frozen = start_state(learner, program.model, mesh), program.model.read_frozen()
    pairs = config.batch_size // 2
    rng, index = np.random.default_rng(0), np.arange(pairs, dtype=np.int32)
    images = rng.integers(0, 256, (pairs, 2, 112, 112, 3), np.uint8)
    labels = index % 2 if config.task == "pair_answer" else index
    batch, times = sharding.batch({"images": images, "labels": labels, "index": index}, mesh), []
    for _ in range(3):
        start = time.perf_counter()
        state, values = step(state, frozen, batch)
        values["loss"].block_until_ready()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return out | {"measured": peak - before, "seconds": statistics.median(times)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="none")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return print(json.dumps(one(options.cases, options.remat)))
    if unknown := set(options.cases.split(",")) - {*CASES, *FULL}:
        parser.error(f"unknown case {sorted(unknown)}; the cases are {(*CASES, *FULL)}")
    for case in options.cases.split(","):
        command = [sys.executable, __file__, f"--cases={case}", f"--remat={options.remat}", "--one"]
        done = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr or f"{case}: exit code {done.returncode}; -9 usually means no memory left")
        found = json.loads(done.stdout.splitlines()[-1])
        least, most, xla = (found[key] / 2**30 for key in ("least", "most", "xla"))
        text = f"{case}, remat {options.remat}: predicted {least:.2f} to {most:.2f} GiB, XLA {xla:.2f}"
        if "measured" in found:
            gflop, seconds = found["gflop"], found["seconds"]
            text += f", measured {found['measured'] / 2**30:.2f}; {gflop:.0f} GFLOP in {seconds:.2f} s"
            text += f", {gflop / seconds:.0f} GFLOP/s"
        print(text, flush=True)


if __name__ == "__main__":
    main()
