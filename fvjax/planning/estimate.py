"""What a step needs of each of so many accelerators, and the least time it can take; fvjax/plan.py has the formulas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax

from fvjax import shipped, tasks
from fvjax.config import Config, DataConfig
from fvjax.models import int8
from fvjax.parallel import sharding
from fvjax.planning import flops, hlo, programs
from fvjax.planning.devices import DEVICES, GIB, Device, Machine, peak


def without_files(config: Config) -> tuple[Config, list[str]]:
    """Return the config as on a GPU, with the config's own sizes where its files are missing; and notes about that."""
    changes: dict[str, Any] = {}
    notes = []
    absent = [path for path in config.pretrained.values() if path and not Path(shipped.weights(path)).is_dir()]
    if absent:
        notes.append(f"{', '.join(absent)}: not here, so the model's sizes are the config's own")
        changes |= {"init_from": "", "init_parts": {}}
        if config.prompt.text:  # right for both prompts of the paper's configs
            count = len(re.findall(r"\w+|[^\w\s]", config.prompt.text))
            notes.append(f"prompt: taken to be {count} tokens, its words and punctuation marks")
            changes |= {"prompt.text": "", "prompt.ids": (0,) * count}
        changes["prompt.yes_no_ids"] = config.prompt.yes_no_ids or (0, 1)
    if config.attention == "auto":
        changes["attention"] = "xla"
    if not config.trains:  # the step is a batch of the evaluation
        per_prediction = tasks.get(config.task).images_per_prediction
        changes |= {"batch_size": config.eval.batch_size * per_prediction, "accumulation": 1}
    return config.replace(changes), notes


def plan(config: Config, n: int, gib: float = DEVICES["h100"].gib) -> dict[str, Any]:
    """Plan `config`, as :func:`without_files` returns it, for `n` devices of `gib` memory: bytes and FLOPs, JSON-ready.

    Raises ValueError for a batch, a mesh or a sharding rule that does not fit `n` devices.
    """
    if n > len(jax.devices()):
        raise ValueError(f"--devices={n}: this process has {len(jax.devices())} fake devices (XLA_FLAGS)")
    mesh = sharding.make_mesh(vars(config.mesh), jax.devices()[:n])
    planner = programs.Planner(config, mesh)
    planner.check_divides(sharding.rows(mesh))
    if config.remat == "auto":
        config = config.replace({"remat": planner.remat_that_fits(int(gib * GIB))[0]})
        planner = programs.Planner(config, mesh)
    whole = planner.step
    sizes, moved = planner.sizes()
    collectives = hlo.collectives(programs.compiled(whole).as_text(), n)
    state, frozen, _ = whole.arguments
    trained, fixed = int8.parameters(state.trainable), int8.parameters(frozen)
    return {
        "devices": n,
        "mesh": dict(mesh.shape),
        "images": config.batch_size,
        "parameters": trained + fixed,
        "trained": trained,
        "remat": config.remat,
        "bytes": sizes,
        "model_flops": programs.Planner(config, sharding.one_device()).model_flops(),
        "device_flops": flops.count(whole.step, *whole.arguments) / n,
        "bytes_moved": moved,
        "collectives": [c._asdict() | {"sent": c.sent} for c in collectives],
    }


def bounds(data: DataConfig, dtype: str, planned: dict[str, Any], machine: Machine) -> dict[str, float]:
    """Return the seconds of a step by each resource alone; `planned`: what :func:`plan` returned."""
    nvlink = network = 0.0
    for c in planned["collectives"]:
        nodes = len({i // machine.per_node for i in c["group"]})
        inside, volume = len(c["group"]) // nodes, c["size"] * c["times"]
        nvlink += volume * hlo.share(c["kind"], inside) / machine.device.nvlink
        network += machine.per_node // inside * volume * hlo.share(c["kind"], nodes) / machine.network
    workers = -(-planned["devices"] // machine.per_node) * max(data.workers, 1)
    return {
        "compute": planned["device_flops"] / peak(machine.device, dtype),
        "memory bandwidth": planned["bytes_moved"] / machine.device.bandwidth,
        "NVLink": nvlink,
        "network": network,
        "input": planned["images"] / workers / machine.decoding if data.cache == "none" else 0.0,
    }


def verdict(kind: str, attention: str, trains: bool, planned: dict[str, Any], device: Device) -> str:
    """Say whether a model of some kind fits, and if not, what to set."""
    least = sum(planned["bytes"].values()) / GIB
    most = least + planned["bytes"]["working set"] / GIB
    if most <= programs.FILLED * device.gib:
        return "fits"
    layers = programs.has_layers(kind)
    remedies = {
        "config.remat=full": layers and trains and planned["remat"] != "full",
        "config.attention=cudnn": layers and attention == "xla",
        "a larger config.accumulation": layers and trains,
        "a smaller batch or more devices": True,
    }
    remedy = next(what for what, applies in remedies.items() if applies)
    return f"{'does' if least > device.gib else 'may'} not fit; try {remedy}"
