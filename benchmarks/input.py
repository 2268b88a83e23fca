"""Measure images per second from a store to batches on the device, for 0, 1 and 2 decoding processes and each cache.

    python benchmarks/input.py [--store=DIR] [--batch=256] [--batches=100] [--rounds=3]

--store: a store with the split "train". Without one, synthetic faces are used; their JPEGs are two to three times as
large as those of photographs. The variants take turns. Each runs in its own process on one core, and those with workers
on all cores of this process. A rate is the median over rounds of --batches batches, measured after enough batches to
fill the prefetch buffers. The time that decoding the whole store into a cache takes is printed separately.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

VARIANTS = {  # name -> workers, cache, number of cores (0: all)
    "decoded when needed": (0, "none", 1),
    "one worker process": (1, "none", 0),
    "two worker processes": (2, "none", 0),
    "cached in memory": (0, "host", 1),
    "cached on the device": (0, "device", 1),
}


def one(path: str, batch: int, count: int, workers: int, cache: str, cores: int) -> dict[str, float]:
    """Measure one variant in this process: images per second, and seconds until the first batch."""
    if cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    import jax

    from fvjax.config import base
    from fvjax.data.pairs import PairPlan
    from fvjax.data.stores import Store
    from fvjax.parallel import sharding
    from fvjax.training import feed

    c, store = base(), Store(path, "train")
    c.batch_size = batch
    c.data.update({"workers": workers, "cache": cache})
    mesh = sharding.make_mesh(c.mesh)
    warm = 2 * max(1, workers) * c.data.prefetch
    start = time.perf_counter()
    batches = feed.batches(c, store, PairPlan(store.labels, batch // 2, 0), mesh, start_step=0, num_steps=warm + count)
    jax.block_until_ready(next(batches))
    first = time.perf_counter() - start
    for _ in range(warm - 1):
        next(batches)
    start = time.perf_counter()
    for _ in range(count):
        jax.block_until_ready(next(batches))
    return {"rate": count * batch / (time.perf_counter() - start), "first": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return print(json.dumps(one(options.store, options.batch, options.batches, *VARIANTS[options.one])))
    with tempfile.TemporaryDirectory() as folder:
        if not options.store:
            from fvjax.data import synthetic

            options.store = f"{folder}/faces"
            synthetic.write(options.store, range(options.batch), 4, 0, split="train")
        sizes = [f"--batch={options.batch}", f"--batches={options.batches}", f"--store={options.store}"]
        runs: dict[str, list[dict]] = {name: [] for name in VARIANTS}
        for _ in range(options.rounds):
            for name in VARIANTS:
                command = [sys.executable, __file__, *sizes, f"--one={name}"]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(done.stderr)
                runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    for name, measured in runs.items():
        rates = [r["rate"] for r in measured]
        cores = VARIANTS[name][2] or len(os.sched_getaffinity(0))
        print(
            f"{name:22} {statistics.median(rates):8,.0f} images/s ({min(rates):,.0f} to {max(rates):,.0f}) on {cores} "
            f"core(s), first batch after {statistics.median(r['first'] for r in measured):.1f} s"
        )


if __name__ == "__main__":
    main()
