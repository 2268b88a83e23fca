"""One training step on this machine's CPU against the PyTorch twin: the same weights, the same batch, in turn.

    python benchmarks/step_time.py [--case=small_real|resnet50|internvit|mllm_tiny|mllm_100m|pair_tiny|pair_100m]
                                   [--rounds=2] [--variants="A;B"]
    python benchmarks/step_time.py --case=decode [--store=DIR]

small_real: that config's network, batch 128. resnet50: IResNet-50, batch 32. internvit: InternViT-300M with rank-8
adapters on both MLP layers, frozen base, batch 2 (one pair: its loss is 0, its arithmetic is not less). mllm_* and
pair_*: an InternVL2 at 448 pixels with rank-8 adapters on the MLPs of tower and decoder, as a siamese embedding by
visual_mean or with the answer Yes or No over the whole vocabulary; tiny is the golden set's (batch 8), 100m has about
100 million parameters (batch 4). The twins leave out the text, and logits that nothing uses, as ours do. All float32;
decode: reading, JPEG decoding and batching alone, on one core, of a test store or of synthetic
faces (whose JPEGs are two to three times as large as those of photographs).

Each variant runs in its own process (the allocator's settings are read at start), A B C … A B C …; a figure is the
median of the steps after the warm-up, then the median over rounds. Losses of the first step must agree. torch and the
twins in tests/reference are needed for the torch variants; those are left out where torch is not installed.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from tests.reference import recipe

KEEP = ":".join(f"glibc.malloc.{t}" for t in ("hugetlb=1", "mmap_max=0", "arena_max=1", f"trim_threshold={2**40}"))
VARIANTS = {  # what runs, glibc's tunables
    "fvjax": ("fvjax", KEEP),  # as main does: a device per core, convolutions arranged for the CPU, memory kept
    "fvjax, one device": ("fvjax one", KEEP),
    "fvjax, convolutions as written": ("fvjax plain", KEEP),
    "fvjax, memory given back": ("fvjax", ""),
    "torch": ("torch", ""),
    "torch, memory kept": ("torch", KEEP),
}
DEFAULT = ("fvjax", "torch", "torch, memory kept")
BATCH = {"small_real": 128, "resnet50": 32, "internvit": 2}
BATCH |= {"mllm_tiny": 8, "pair_tiny": 8, "mllm_100m": 4, "pair_100m": 4}
STEPS = {"small_real": (5, 6), "resnet50": (2, 3), "internvit": (1, 2)}  # warm-up, measured
STEPS |= {
    "mllm_tiny": (3, 7),
    "pair_tiny": (3, 7),
    "mllm_100m": (5, 4),
    "pair_100m": (5, 4),
}  # the heap grows until then
IRESNET = {"small_real": ((2, 2, 2, 2), (16, 32, 64, 128), 256), "resnet50": ((3, 4, 14, 3), (64, 128, 256, 512), 512)}
INTERNVIT = {
    "architectures": ["InternVisionModel"], "image_size": 448, "patch_size": 14, "hidden_size": 1024,
    "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096, "qkv_bias": True,
    "qk_normalization": False, "norm_type": "layer_norm", "layer_norm_eps": 1e-6, "hidden_act": "gelu",
    "drop_path_rate": 0.0,
}  # fmt: skip
TINY_INTERNVL = json.loads((recipe.GOLDEN / "internvl_tiny/config.json").read_text())
INTERNVL = {
    "tiny": TINY_INTERNVL,
    "100m": TINY_INTERNVL | {
        "vision_config": TINY_INTERNVL["vision_config"] | {
            "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048,
        },
        "llm_config": TINY_INTERNVL["llm_config"] | {
            "hidden_size": 768, "num_hidden_layers": 8, "num_attention_heads": 12, "num_key_value_heads": 4,
            "intermediate_size": 3072, "vocab_size": 8000,
        },
    },
}  # fmt: skip
QUESTION, YES_NO = tuple(range(20, 34)), (40, 50)  # as many ids as the real question has


def faces(case: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (BATCH[case], 112, 112, 3), np.uint8)


def answers(case: str) -> np.ndarray:
    """Labels of the pairs of a pair_… case: 1, genuine, or 0."""
    return np.arange(BATCH[case] // 2, dtype=np.int32) % 2


def fvjax_steps(case: str, weights: Path, how: str):
    import jax

    cores = len(os.sched_getaffinity(0))
    pairs = BATCH[case] // 2
    jax.config.update("jax_num_cpu_devices", 1 if how == "one" or pairs % cores else cores)
    from fvjax import run_state, sharding, train
    from fvjax.config import base as defaults
    from weights_convert import internvl

    c = defaults()
    c.init_from, c.batch_size, c.data.flip = str(weights), BATCH[case], False
    c.epochs, c.optimizer.lr = 100, 0.01  # so many that the rate stays what the twin has
    if case == "internvit":
        c.model.kind, c.model.pooling, c.remat = "vision_transformer", "mean", "dots"  # else 24 GB
        c.lora.update({"rank": 8, "alpha": 8.0, "targets": ("blocks/mlp/fc1", "blocks/mlp/fc2"), "count": 48})
        c.trainable = (("lora/.*", "adapter"), (".*", "frozen"))
    elif case.startswith(("mllm", "pair")):
        given = internvl.model_config(INTERNVL[case[5:]], case)
        for section, part in (("vision_transformer", given["vision"]), ("decoder", given["decoder"])):
            c.model[section].update({key: part[key] for key in c.model[section] if key in part})
        c.model.kind = "vlm"
        c.lora.update({"rank": 8, "alpha": 8.0, "count": 2 * given["vision"]["depth"] + 3 * given["decoder"]["depth"]})
        c.lora.targets = ("vision/blocks/mlp/fc[12]", "decoder/blocks/mlp/(gate|up|down)")
        c.trainable = (("lora/.*", "adapter"), (".*", "frozen"))
        if case.startswith("mllm"):
            c.model.pooling = "visual_mean"
        else:
            c.task = "pair_answer"
            c.prompt.update({"ids": QUESTION, "yes_no_ids": YES_NO})
    else:
        layers, widths, features = IRESNET[case]
        c.model.iresnet.update({"layers": layers, "widths": widths, "num_features": features})
        c.trainable = (("params/features/scale", "frozen"), (".*", "backbone"))
    mesh = sharding.make_mesh(c.mesh)
    opened = run_state.open_model(c, mesh, plain=how == "plain")
    state, frozen, tx, lr, _, where = run_state.start(c, opened, mesh, steps_per_epoch=1000)
    index = np.arange(pairs, dtype=np.int32)
    labels = answers(case) if case.startswith("pair") else index
    batch = sharding.batch(
        {"images": faces(case).reshape(pairs, 2, 112, 112, 3), "labels": labels, "index": index}, mesh
    )
    one_step = lambda *args: train.step_fn(c, opened.encoder, tx, lr, *args)  # noqa: E731
    step = jax.jit(one_step, donate_argnums=0, out_shardings=(where, None))
    while True:
        state, values = step(state, frozen, batch)
        yield float(values["loss"])


def torch_model(case: str):
    """The twin without weights, and its loss (net, faces) -> scalar."""
    import torch

    from tests.reference import internvit_torch, internvl_torch, iresnet_torch

    def answer(net, batch):
        x = internvit_torch.pixels(batch, 448)
        right = torch.tensor([YES_NO[0] if genuine else YES_NO[1] for genuine in answers(case)])
        return torch.nn.functional.cross_entropy(net.pair(x[::2], x[1::2], QUESTION), right)

    contrast = iresnet_torch.nt_xent
    if case.startswith("pair"):
        return internvl_torch.InternVL2(INTERNVL[case[5:]]), answer
    if case.startswith("mllm"):
        net = internvl_torch.InternVL2(INTERNVL[case[5:]])
        return net, lambda net, batch: contrast(net.visual_mean(internvit_torch.pixels(batch, 448)))
    if case == "internvit":
        net = internvit_torch.InternVisionModel(INTERNVIT)
        return net, lambda net, batch: contrast(net(internvit_torch.pixels(batch, 448))[:, 1:].mean(1))
    return iresnet_torch.IResNet(*IRESNET[case]), lambda net, batch: contrast(net(iresnet_torch.pixels(batch)))


def torch_steps(case: str, weights: Path):
    import torch
    from safetensors.torch import load_file

    from tests.reference import internvl_torch

    net, loss_of = torch_model(case)
    net.load_state_dict(load_file(weights / "model.safetensors"))
    if case in IRESNET:
        net.features.weight.requires_grad_(False)
    else:
        internvl_torch.adapt(net, r".*\.mlp\.fc[12]|.*\.feed_forward\.w[123]")
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.01, 0.9, weight_decay=5e-4)
    batch = faces(case)
    while True:
        optimizer.zero_grad()
        loss = loss_of(net, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 5.0)
        optimizer.step()
        yield loss.item()


def write_weights(case: str, weights: Path) -> None:
    """Run once, in its own process: the reference recipe's weights in the twin's names, for both sides."""
    import torch

    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in torch_model(case)[0].state_dict().items()}
    config = INTERNVL[case[5:]] if case.startswith(("mllm", "pair")) else INTERNVIT
    if case in IRESNET:
        layers, widths, features = IRESNET[case]
        config = {"architectures": ["IResNet"], "layers": layers, "widths": widths, "num_features": features}
    recipe.write_checkpoint(weights, config, shapes)


def one(case: str, what: str, weights: Path) -> None:
    """In a child process: time steps, print one line of JSON."""
    kind, _, how = what.partition(" ")
    if kind == "write":
        return write_weights(case, weights)
    steps = torch_steps(case, weights) if kind == "torch" else fvjax_steps(case, weights, how)
    warm, measured = STEPS[case]
    first, times = next(steps), []
    for _ in range(warm + measured - 1):
        start = time.perf_counter()
        next(steps)
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": statistics.median(times[-measured:]), "loss": first, "gib": peak}))


def decode(directory: str | None) -> None:
    """JPEG/s decoded and batched on one core, and what libjpeg-turbo alone would do."""
    import simplejpeg

    from fvjax.data import pipeline, synthetic
    from fvjax.data.store import Store

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        if directory:
            store = Store(directory, "test")
        else:
            store = synthetic.write(Path(folder) / "faces", range(128), 8, 0, split="test")
        order = np.random.default_rng(0).integers(0, len(store), 8192)
        jpegs = [store.jpeg(i) for i in order]
        into = np.empty((112, 112, 3), np.uint8)
        rates, alone = [], []
        for _ in range(5):
            start = time.perf_counter()
            count = sum(real for _, real in pipeline.eval_batches(store, order, 128, threads=1))
            rates.append(count / (time.perf_counter() - start))
            start = time.perf_counter()
            for jpeg in jpegs:
                simplejpeg.decode_jpeg(jpeg, colorspace="RGB", buffer=into)
            alone.append(len(jpegs) / (time.perf_counter() - start))
    for what, each in (("read, decode and batch", rates), ("libjpeg-turbo alone", alone)):
        print(f"{what}, one core: {statistics.median(each):,.0f} JPEG/s ({min(each):,.0f} to {max(each):,.0f})")
    print(f"{np.mean([len(jpeg) for jpeg in jpegs]):,.0f} bytes a JPEG")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=[*BATCH, "decode"], default="small_real")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--variants", default=";".join(DEFAULT), help=f"separated by ';', of: {'; '.join(VARIANTS)}")
    parser.add_argument("--store", help="of --case=decode: a face store with split test")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case == "decode":
        return decode(options.store)
    if options.one:
        return one(options.case, options.one[0], Path(options.one[1]))
    if not importlib.util.find_spec("torch"):
        sys.exit("torch is not installed: pip install -r tests/requirements-torch.txt")
    names = options.variants.split(";")
    if unknown := set(names) - set(VARIANTS):
        parser.error(f"no variant {sorted(unknown)}; there are {list(VARIANTS)}")
    found: dict[str, list[dict]] = {name: [] for name in names}

    def child(what: str, weights: str, tunables: str) -> str:
        command = [sys.executable, __file__, f"--case={options.case}", "--one", what, weights]
        done = subprocess.run(command, env={**os.environ, "GLIBC_TUNABLES": tunables}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr or f"{what}: ended with {done.returncode}; -9 is usually a lack of memory")
        return done.stdout

    with tempfile.TemporaryDirectory() as directory:
        weights = f"{directory}/weights"
        child("write", weights, "")
        for _ in range(options.rounds):
            for name in names:
                found[name].append(json.loads(child(VARIANTS[name][0], weights, VARIANTS[name][1]).splitlines()[-1]))
    losses = [runs[0]["loss"] for runs in found.values()]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-3, atol=1e-5, err_msg="first losses differ")
    for name, runs in found.items():
        seconds = statistics.median(r["seconds"] for r in runs)
        ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(found[names[0]], runs))
        rate = BATCH[options.case] / seconds
        gib = max(r["gib"] for r in runs)
        print(
            f"{options.case}, {name:32} {seconds:6.2f} s a step, {rate:6.2f} images/s, {gib:5.1f} GiB at the peak; "
            f"time is {ratio:.2f} of {names[0]}'s"
        )


if __name__ == "__main__":
    main()
