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
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from rich.console import Console
from rich.table import Table

from fvjax import cli, errors, tasks
from fvjax import config as configs
from fvjax.config import Config
from fvjax.console import say
from fvjax.planning import hlo
from fvjax.planning.devices import DEVICES, GIB, Device, Machine
from fvjax.planning.estimate import bounds, plan, verdict, without_files
from fvjax.tasks.task import Task

DEVICE_COUNTS = flags.DEFINE_multi_string("devices", [], "how many accelerators; several: repeated or 8,16")
KIND = flags.DEFINE_enum("device-kind", "h100", list(DEVICES), "what accelerator")
PER_NODE = flags.DEFINE_integer("per-node", 4, "accelerators of one node", lower_bound=1)
# 50: one NDR400 InfiniBand port a node (NVIDIA ConnectX-7 datasheet)
NETWORK = flags.DEFINE_float("network-gbytes", 50.0, "GB/s that a node can send", lower_bound=1e-3)
# benchmarks/README.md: 6,140 on one core of an AMD EPYC, JPEGs of 9.6 kB
DECODE = flags.DEFINE_float("decode-rate", 6000.0, "JPEGs per second that a worker process decodes", lower_bound=1)
STEPS = flags.DEFINE_integer("steps-per-epoch", 0, "for the time of all epochs; 0: unknown", lower_bound=0)
IMAGES = flags.DEFINE_integer("images", 0, "of the training store: steps-per-epoch is at most images / batch_size")
JSON = flags.DEFINE_string("json", None, "also write everything to this file")


def steps_per_epoch(task: Task, batch_size: int) -> int:
    """Return how many steps an epoch has, by the task or the command line; 0 if that is not known."""
    known = task.steps_per_epoch(batch_size // task.images_per_example)
    return known or STEPS.value or IMAGES.value // batch_size


def column(planned: dict[str, Any], device: Device) -> dict[str, str]:
    """Return one column of the table: label -> text."""
    sizes, seconds = planned["bytes"], planned["bounds"]
    least = sum(sizes.values()) / GIB
    longest = max(seconds, key=seconds.__getitem__)
    return {
        "data x fsdp x tensor": " x ".join(str(size) for size in planned["mesh"].values()),
        "images a step": f"{planned['images']:,}",
        "remat": planned["remat"],
        "of each device, GiB": "",
        **{f"  {name}": f"{size / GIB:,.3f}" for name, size in sizes.items()},
        f"  altogether, of {device.gib:g}": f"{least:,.1f} to {least + sizes['working set'] / GIB:,.1f}",
        "  so it": planned["verdict"],
        "model TFLOP a step": f"{planned['model_flops'] / 1e12:,.1f}",
        "  of a device": f"{planned['model_flops'] / planned['devices'] / 1e12:,.2f}",
        "  with recomputation": f"{planned['device_flops'] / 1e12:,.2f}",
        "GB moved in memory": f"{planned['bytes_moved'] / 1e9:,.0f}",
        **_communication(planned),
        "least seconds a step": "",
        **{f"  {name}": f"{value:.3g}" for name, value in seconds.items()},
        "bound by": longest,
        "images/s at most": f"{planned['images'] / seconds[longest]:,.0f}",
    }


def _communication(planned: dict[str, Any]) -> dict[str, str]:
    """Return a line for each kind of collective: megabytes sent by a device, and in how many collectives."""
    lines = {}
    for kind in hlo.KINDS:
        if of_kind := [c for c in planned["collectives"] if c["kind"] == kind]:
            megabytes, times = sum(c["sent"] for c in of_kind) / 1e6, sum(c["times"] for c in of_kind)
            lines[f"MB sent by {kind}"] = f"{megabytes:,.2f} in {times}"
    return lines


def duration(steps: int, epochs: int, per_epoch: int, seconds: float) -> dict[str, str]:
    """Return how many steps there are and how long they take at least, where that is known.

    seconds: of a step. steps, epochs: how long training takes, by one of them; per_epoch: steps, 0: not known.
    """
    if steps:
        return {f"hours of {steps:,} steps, at least": f"{steps * seconds / 3600:,.1f}"}
    if not epochs or not per_epoch:
        return {}
    hours = f"{epochs * per_epoch * seconds / 3600:,.1f}"
    return {"steps an epoch, at most": f"{per_epoch:,}", f"hours of {epochs} epochs, at least": hours}


def run(config: Any, counts: list[int]) -> list[dict[str, Any]]:
    """Print a table for each experiment of a config file's config; return all figures, JSON-ready.

    Raises ValueError: an experiment fits none of the counts.
    """
    machine = Machine(DEVICES[KIND.value], PER_NODE.value, NETWORK.value * 1e9, DECODE.value)
    out = []
    for experiment in configs.experiments(config, Path()).values():
        experiment.check()
        tasks.get(experiment.task).check(experiment)
        out += run_experiment(experiment, counts, machine)
    return out


def run_experiment(config: Config, counts: list[int], machine: Machine) -> list[dict[str, Any]]:
    """Print the table of one experiment, a column for each count; return its figures."""
    console, device = Console(markup=False, emoji=False), machine.device
    config, notes = without_files(config)
    per_epoch = steps_per_epoch(tasks.get(config.task)(config, Path()), config.batch_size)
    plans, columns = {}, {}
    for n in counts:
        try:
            planned = plan(config, n, device.gib)
        except ValueError as error:
            notes.append(f"{n} devices: {error}")
            continue
        planned["bounds"] = bounds(config.data, config.dtype, planned, machine)
        planned["verdict"] = verdict(config.model.kind, config.attention, config.trains, planned, device)
        plans[n] = {"name": config.name, "device_kind": KIND.value, **planned}
        slowest = max(planned["bounds"].values())
        columns[str(n)] = column(planned, device) | duration(config.steps, config.epochs, per_epoch, slowest)
    for line in notes:
        console.print(line, soft_wrap=True, highlight=False)
    if not plans:
        raise ValueError("; ".join(note for note in notes if " devices: " in note))
    last = plans[max(plans)]
    title = f"{config.name}: {last['parameters']:,} parameters, {last['trained']:,} train; {KIND.value}, "
    title += f"attention {config.attention}, accumulation {config.accumulation}"
    say(table(title, columns))
    return list(plans.values())


def table(title: str, columns: dict[str, dict[str, str]]) -> Table:
    """Make the table of one experiment; `columns` by number of devices."""
    out = Table("", *columns, title=title)
    for label in dict.fromkeys(label for each in columns.values() for label in each):
        out.add_row(label, *(each.get(label, "0") for each in columns.values()))
    return out


def device_counts(texts: list[str]) -> list[int]:
    """Return the numbers in the values of --devices, in rising order. Raises ValueError."""
    numbers = [text for many in texts for text in many.split(",")]
    if not numbers or not all(text.isdecimal() and int(text) for text in numbers):
        raise ValueError(f"--devices={','.join(numbers)}: give how many, such as --devices=8,16,64")
    return sorted({int(text) for text in numbers})


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        counts = device_counts([*DEVICE_COUNTS.value, *argv[1:]])
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
    cli.start(main, __doc__ or "", own)
