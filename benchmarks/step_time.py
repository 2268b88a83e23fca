"""One training step of small_real on this machine's CPU: devices, allocator and convolutions, against the PyTorch twin.

    python benchmarks/cpu_step.py [--rounds=3]

Variants run in turn, each in its own process (the allocator's settings are read at start), A B C … A B C …; a round is
the median of 5 steps after 2. Prints the median over rounds and the ratio to the first variant. torch is the twin in
tests/reference on the same batch size with the same loss; it is left out where torch is not installed.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time

KEEP = ":".join(f"glibc.malloc.{t}" for t in ("hugetlb=1", "mmap_max=0", "arena_max=1", f"trim_threshold={2**40}"))
VARIANTS = {
    "fvjax, one device": ("jax", 1, ""),
    "fvjax, a device per core": ("jax", os.cpu_count(), ""),
    "fvjax, a device per core, memory kept": ("jax", os.cpu_count(), KEEP),
    "the same, convolutions arranged for the CPU (what main does)": ("jax-arranged", os.cpu_count(), KEEP),
    "torch twin": ("torch", 1, ""),
    "torch twin, memory kept": ("torch", 1, KEEP),
}


def jax_steps(devices: int, arranged: bool):
    import jax
    import numpy as np

    jax.config.update("jax_num_cpu_devices", devices)
    sys.path.insert(0, ".")
    from configs import small_real
    from fvjax import optim, sharding, train

    config = small_real.get_config()
    mesh = sharding.make_mesh(config.mesh)
    encoder = train.build_encoder(config, plain=not arranged)
    everywhere = sharding.replicated(mesh)
    variables = jax.jit(lambda key: train.init_variables(config, encoder, key), out_shardings=everywhere)(
        jax.random.key(0)
    )
    stats = {"batch_stats": variables.pop("batch_stats")}
    trainable, frozen, groups = optim.split(variables, config.trainable)
    tx = optim.make(config.optimizer, groups, lambda step: 0.01)
    state = {"trainable": trainable, "stats": stats, "opt": tx.init(trainable), "step": np.int32(0)}
    p = config.batch_size // 2
    faces = np.random.default_rng(0).integers(0, 256, (p, 2, 112, 112, 3), np.uint8)
    index = np.arange(p, dtype=np.int32)
    batch = sharding.batch({"images": faces, "labels": index, "index": index}, mesh)
    step = jax.jit(lambda *args: train.step_fn(config, encoder, tx, lambda step: 0.01, *args), donate_argnums=0)
    while True:
        state, values = step(state, frozen, batch)
        float(values["loss"])
        yield


def torch_steps():
    import torch

    sys.path.insert(0, ".")
    from configs import small_real
    from tests.reference.iresnet_torch import IResNet, nt_xent

    config = small_real.get_config()
    c = config.model.iresnet
    net = IResNet(layers=c.layers, widths=c.widths, num_features=c.num_features)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, 0.9, weight_decay=5e-4)
    x = torch.randn(config.batch_size, 3, 112, 112)
    while True:
        optimizer.zero_grad()
        loss = nt_xent(torch.nn.functional.dropout(net(x), 0.0))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        loss.item()
        yield


def one(kind: str, devices: int) -> None:
    steps = torch_steps() if kind == "torch" else jax_steps(devices, kind == "jax-arranged")
    times = []
    for _ in range(7):
        start = time.perf_counter()
        next(steps)
        times.append(time.perf_counter() - start)
    print(statistics.median(times[2:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(options.one[0], int(options.one[1]))
    names = [n for n, v in VARIANTS.items() if v[0] != "torch" or importlib.util.find_spec("torch")]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            kind, devices, tunables = VARIANTS[name]
            command = [sys.executable, __file__, "--one", kind, str(devices)]
            out = subprocess.run(
                command, env={**os.environ, "GLIBC_TUNABLES": tunables}, capture_output=True, text=True
            )
            if out.returncode:
                sys.exit(out.stderr)
            seconds[name].append(float(out.stdout.split()[-1]))
    for name, values in seconds.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        ratio = statistics.median(b / a for a, b in zip(seconds[names[0]], values))
        print(f"{name:60} {statistics.median(values):5.2f} s a step ({spread}), {ratio:.2f} of the first")


if __name__ == "__main__":
    main()
