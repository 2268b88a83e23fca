"""`python -m fvjax.plan --config=configs/NAME.py --devices=8 [--devices=16 …] [--config.any.key=value]`

What a training step of a config (or, if it trains nothing, the forward pass of eval.batch_size faces) needs of each of
so many accelerators, and the least time it can take. Nothing is computed and no file of the experiment is needed: sizes
come from the config, shapes from abstract evaluation, and collectives from the step that XLA compiles for as many fake
CPU devices, on this machine. Options: `--device-kind` (one of DEVICES), `--per-node` devices, `--network-gbytes` per
second and node, `--decode-rate` in images per second and worker, `--steps-per-epoch` or `--images` of the training
store, `--json=FILE`. Exit code 2 and one line for what the caller can mend.

Bytes of one device, where R = data x fsdp devices share the batch:

    base, trained, optimizer    sum over leaves of itemsize x size / devices the leaf is sharded over (config.sharding)
    gradients                   4 x what trains
    batch                       2 x 37,632 x images / R: uint8 faces, one batch in use and one arriving
    kept, working set           `fvjax.planning.memory.estimate` of the step with images / R: kept between forward and
                                backward pass, and one layer's own values while it runs. The working set is a range: the
                                estimate, and twice it, as compilers copy (of an IResNet without layers in a loop:
                                all of it). The tensor axis is not taken to divide either.
    similarities                what XLA assigns the loss and its gradient alone, compiled for these devices

FLOPs, by `fvjax.planning.flops.count`: model, the step as it is written without what is computed twice; hardware, with
remat's recomputation and GradCache's second forward pass, per device divided by all devices (on the tensor axis this
supposes that its rules divide everything).

Bytes communicated: the collectives in the compiled step, times the trips of the loops they are in. Sent by each of g
devices for a result of b bytes: all-reduce 2 b (g-1)/g, all-gather b (g-1)/g, reduce-scatter b (g-1), all-to-all
b (g-1)/g, collective-permute b. For data parallelism alone they come to (tests/test_plan.py), per step:

    all-reduce  accumulation x itemsize(dtype) x trained kernels and adapters   gradients, in each part of the batch
                4 x images x D                                                  gradient by the gathered embeddings
                8 to 16 x channels of an IResNet's batch norms, moments and their gradients
    all-gather  4 x images x D                                                  embeddings for the similarities

Rules over fsdp and tensor add what XLA's partitioner makes of them, which may be to move activations, not kernels.

Bounds: the least time of each resource alone; the step takes at least the longest, at best.

    compute             hardware FLOPs / peak (bfloat16; for float32 half of it, TF32)
    memory bandwidth    bytes moved by `fvjax.planning.memory.estimate` / bandwidth
    NVLink              all collectives of groups within a node: bytes as above, for the devices of one node
    network             the same between k nodes: b (k-1)/k (all-reduce twice) for each group in a node, over its port
    input               images / (nodes x workers x decode rate)

Not modelled: cuDNN's workspaces, layout copies, fragmentation, XLA's own choice of what to fuse, compute and
communication that do not overlap, kernels below peak, evaluation during training, data.cache="device".
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

from fvjax import config as configs
from fvjax import errors, shipped
from fvjax import main as cli
from fvjax.config import Config
from fvjax.parallel import sharding
from fvjax.planning import flops, hlo, programs


class Device(NamedTuple):
    flops: float  # per second, bfloat16 on tensor cores, dense
    bandwidth: float  # bytes per second
    gib: float  # of memory
    nvlink: float  # bytes per second, one direction


DEVICES = {
    "h200": Device(989e12, 4.8e12, 139, 450e9),  # NVIDIA H200 Tensor Core GPU datasheet, SXM
    "h100": Device(989e12, 3.35e12, 79, 450e9),  # NVIDIA H100 Tensor Core GPU datasheet, SXM
    "a100-80gb": Device(312e12, 2.039e12, 79, 300e9),  # NVIDIA A100 Tensor Core GPU datasheet, 80GB SXM
    "a100-40gb": Device(312e12, 1.555e12, 39, 300e9),  # the same, 40GB SXM
}
GIB = 2**30


class Machine(NamedTuple):
    device: Device
    per_node: int  # devices
    network: float  # bytes per second that a node can send
    decoding: float  # JPEGs per second and worker process


DEVICE_COUNTS = flags.DEFINE_multi_string("devices", [], "how many accelerators; several: repeated or 8,16")
KIND = flags.DEFINE_enum("device-kind", "h100", list(DEVICES), "what accelerator")
PER_NODE = flags.DEFINE_integer("per-node", 4, "accelerators of one node", lower_bound=1)
# 50: one NDR400 InfiniBand port a node (NVIDIA ConnectX-7 datasheet)
NETWORK = flags.DEFINE_float("network-gbytes", 50.0, "GB/s that a node can send", lower_bound=1e-3)
# benchmarks/README.md: 6,140 on one core of an AMD EPYC, JPEGs of 9.6 kB
DECODE = flags.DEFINE_float("decode-rate", 6000.0, "JPEGs per second that a worker process decodes", lower_bound=1)
STEPS = flags.DEFINE_integer("steps-per-epoch", 0, "for the time of all epochs; 0: unknown", lower_bound=0)
IMAGES = flags.DEFINE_integer("images", 0, "of the training store: steps-per-epoch is at most images / batch_size")
JSON = flags.DEFINE_string("json", None, "also write everything there")


# ---- the config ----------------------------------------------------------------------------------------------------


def without_files(config: Config) -> tuple[Config, list[str]]:
    """The config as on a GPU, by its own sizes where its files are not here; and what to tell of that."""
    config, told = config.copy_and_resolve_references(), []
    absent = [
        path
        for path in (config.init_from, *config.init_parts.values())
        if path and not Path(shipped.weights(path)).is_dir()
    ]
    if absent:
        told.append(f"{', '.join(absent)}: not here, so the model's sizes are the config's own")
        config.init_from, config.init_parts = "", {}
        if config.prompt.text:  # right for both prompts of the paper's configs
            count = len(re.findall(r"\w+|[^\w\s]", config.prompt.text))
            told.append(f"prompt: taken to be {count} tokens, its words and punctuation marks")
            config.prompt.update({"text": "", "ids": (0,) * count})
        if config.task == "pair_answer":
            config.prompt.yes_no_ids = config.prompt.yes_no_ids or (0, 1)
    if config.attention == "auto":
        config.attention = "xla"
    if not config.epochs:  # the step is a batch of the evaluation
        config.batch_size, config.accumulation = config.eval.batch_size * (1 + (config.task == "pair_answer")), 1
    return config, told


# ---- the plan ------------------------------------------------------------------------------------------------------


def check_divides(config: Config, rows: int) -> None:
    """As train.run does, with what to set instead."""
    parts = "" if config.accumulation == 1 else " / accumulation"
    per_part, unit = config.batch_size // 2 // config.accumulation, 2 * config.accumulation
    sizes = {"eval.batch_size": ("eval.batch_size", config.eval.batch_size, 1)}
    if config.epochs:
        sizes[f"batch_size / 2{parts}"] = ("batch_size", per_part, unit)
    wrong = [f"config.{what} = {size}" for what, (_, size, _) in sizes.items() if size % rows]
    remedy = [f"--config.{k}={-(-size // rows) * rows * unit}" for k, size, unit in sizes.values() if size % rows]
    if wrong:
        told = f"{' and '.join(wrong)} do{'es' * (len(wrong) == 1)} not divide over the mesh's data x fsdp"
        raise ValueError(f"{told} = {rows} devices; for example {' '.join(remedy)}")


def plan(config: Config, n: int, gib: float = DEVICES["h100"].gib) -> dict[str, Any]:
    """Of `config`, as :func:`without_files` gives it, on `n` devices of `gib` memory: bytes and FLOPs, JSON-ready.

    Raises ValueError for a batch, a mesh or a sharding rule that does not fit `n` devices.
    """
    if n > len(jax.devices()):
        raise ValueError(f"--devices={n}: this process has {len(jax.devices())} fake devices (XLA_FLAGS)")
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:n])
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    check_divides(config, rows)
    if config.remat == "auto":
        config = config.copy_and_resolve_references()
        config.remat, _ = programs.remat(config, mesh, int(gib * GIB))
    whole = programs.program(config, mesh)
    sizes, moved = programs.sizes(config, mesh, whole)
    alone = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])

    plain = config.copy_and_resolve_references()
    plain.accumulation, plain.compat.last_micro_batch = 1, False
    written = programs.program(plain, alone, plain=True)
    communicated = hlo.collectives(programs.compiled(whole).as_text(), n)
    trains_and_not = whole.given[0]["trainable"], whole.given[1]
    trained, kept = (sum(x.size for x in jax.tree.leaves(tree)) for tree in trains_and_not)
    return {
        "devices": n,
        "mesh": dict(mesh.shape),
        "images": config.batch_size,
        "parameters": trained + kept,
        "trained": trained,
        "remat": config.remat,
        "bytes": sizes,
        "model_flops": flops.count(written.step, *written.given),
        "device_flops": flops.count(whole.step, *whole.given) / n,
        "bytes_moved": moved,
        "collectives": [c._asdict() | {"sent": c.sent} for c in communicated],
    }


def bounds(config: Config, found: dict[str, Any], machine: Machine) -> dict[str, float]:
    """Seconds a step, of each resource alone; `found` as :func:`plan` gives it."""
    nvlink = network = 0.0
    for c in found["collectives"]:
        nodes = len({i // machine.per_node for i in c["group"]})
        inside, volume = len(c["group"]) // nodes, c["size"] * c["times"]
        nvlink += volume * hlo.share(c["kind"], inside) / machine.device.nvlink
        network += machine.per_node // inside * volume * hlo.share(c["kind"], nodes) / machine.network
    workers = -(-found["devices"] // machine.per_node) * max(config.data.workers, 1)
    return {
        "compute": found["device_flops"] / (machine.device.flops / (1 + (config.dtype == "float32"))),
        "memory bandwidth": found["bytes_moved"] / machine.device.bandwidth,
        "NVLink": nvlink,
        "network": network,
        "input": found["images"] / workers / machine.decoding if config.data.cache == "none" else 0.0,
    }


def verdict(config: Config, found: dict[str, Any], device: Device) -> str:
    """Whether it fits, and else what to set."""
    least = sum(found["bytes"].values()) / GIB
    most = least + found["bytes"]["working set"] / GIB
    if most <= 0.9 * device.gib:
        return "fits"
    remedies = {
        "config.remat=full": config.model.kind != "iresnet" and config.epochs and found["remat"] != "full",
        "config.attention=cudnn": config.model.kind != "iresnet" and config.attention == "xla",
        "a larger config.accumulation": config.model.kind != "iresnet" and config.epochs,
        "a smaller batch or more devices": True,
    }
    remedy = next(what for what, is_one in remedies.items() if is_one)
    return f"{'does' if least > device.gib else 'may'} not fit; try {remedy}"


# ---- the command ---------------------------------------------------------------------------------------------------


def steps_per_epoch(config: Config) -> int:
    """As the data has them, or told on the command line; 0: unknown."""
    if config.task == "pair_answer":
        return config.data.pairs_per_epoch // (config.batch_size // 2)
    return STEPS.value or IMAGES.value // config.batch_size


def column(config: Config, found: dict[str, Any], device: Device) -> dict[str, str]:
    """One column of the table: what it is -> text."""
    sizes, seconds = found["bytes"], found["bounds"]
    least = sum(sizes.values()) / GIB
    sent = {kind: [c for c in found["collectives"] if c["kind"] == kind] for kind in hlo.KINDS}
    longest = max(seconds, key=seconds.__getitem__)
    steps = steps_per_epoch(config) if config.epochs else 0
    return {
        "data x fsdp x tensor": " x ".join(str(size) for size in found["mesh"].values()),
        "images a step": f"{found['images']:,}",
        "remat": found["remat"],
        "of each device, GiB": "",
        **{f"  {name}": f"{size / GIB:,.3f}" for name, size in sizes.items()},
        f"  altogether, of {device.gib:g}": f"{least:,.1f} to {least + sizes['working set'] / GIB:,.1f}",
        "  so it": found["verdict"],
        "model TFLOP a step": f"{found['model_flops'] / 1e12:,.1f}",
        "  of a device": f"{found['model_flops'] / found['devices'] / 1e12:,.2f}",
        "  with recomputation": f"{found['device_flops'] / 1e12:,.2f}",
        "GB moved in memory": f"{found['bytes_moved'] / 1e9:,.0f}",
        **{
            f"MB sent by {kind}": f"{sum(c['sent'] for c in of_kind) / 1e6:,.2f} in {sum(c['times'] for c in of_kind)}"
            for kind, of_kind in sent.items()
            if of_kind
        },
        "least seconds a step": "",
        **{f"  {name}": f"{value:.3g}" for name, value in seconds.items()},
        "bound by": longest,
        "images/s at most": f"{found['images'] / seconds[longest]:,.0f}",
        **(
            {
                "steps an epoch, at most": f"{steps:,}",
                f"hours of {config.epochs} epochs, at least": f"{config.epochs * steps * seconds[longest] / 3600:,.1f}",
            }
            if steps
            else {}
        ),
    }


def run(config: Config, counts: list[int]) -> list[dict[str, Any]]:
    """Print a table for each experiment of the config; returns all of it, JSON-ready. ValueError: no count can be."""
    device, out, console = DEVICES[KIND.value], [], Console()
    machine = Machine(device, PER_NODE.value, NETWORK.value * 1e9, DECODE.value)
    for one in configs.experiments(config, Path()).values():
        configs.check(one)
        one, told = without_files(one)
        columns, wrong = [], []
        for n in counts:
            try:
                found = plan(one, n, device.gib)
            except ValueError as error:
                wrong.append(f"{n} devices: {error}")
                continue
            found["bounds"] = bounds(one, found, machine)
            found["verdict"] = verdict(one, found, device)
            out.append({"name": one.name, "device_kind": KIND.value, **found})
            columns.append(column(one, found, device))
        for line in told + wrong:
            console.print(line, soft_wrap=True, highlight=False)
        if not columns:
            raise ValueError("; ".join(wrong))
        found = out[-1]
        title = f"{one.name}: {found['parameters']:,} parameters, {found['trained']:,} train; {KIND.value}, "
        title += f"attention {one.attention}, accumulation {one.accumulation}"
        table = Table(
            "", *(str(n) for n in counts if any(f["devices"] == n for f in out[-len(columns) :])), title=title
        )
        for label in dict.fromkeys(label for each in columns for label in each):
            table.add_row(label, *(each.get(label, "0") for each in columns))
        console.print(table)
    return out


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        given = [text for many in (*DEVICE_COUNTS.value, *argv[1:]) for text in many.split(",")]
        if not given or not all(text.isdecimal() and int(text) for text in given):
            raise ValueError(f"--devices={','.join(given)}: give how many, such as --devices=8,16,64")
        counts = sorted({int(text) for text in given})
        jax.config.update("jax_platforms", "cpu")  # also where there is an accelerator: nothing is computed
        jax.config.update("jax_num_cpu_devices", counts[-1])
        out = run(cli.CONFIG.value, counts)
        if JSON.value:
            with errors.naming(JSON.value):
                Path(JSON.value).write_text(json.dumps(out, indent=1))
    except (ValueError, OSError) as error:
        if cli.TRACEBACK.value:
            raise
        cli.fail(errors.line(error))


if __name__ == "__main__":
    own = (cli.CONFIG, DEVICE_COUNTS, KIND, PER_NODE, NETWORK, DECODE, STEPS, IMAGES, JSON, cli.TRACEBACK)
    app.run(main, flags_parser=partial(cli.parse, about=__doc__ or "", holders=own))
