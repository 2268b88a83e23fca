"""LoRA adapters in PEFT's safetensors layout <-> fvjax's flat adapter tree."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from weights_convert.read import Checkpoint, load_json, open_checkpoint, open_file

WRAPPER = "base_model.model."  # PEFT's own; files saved from the inner model lack it


def read_adapters(path: str | Path, base: str | Path) -> tuple[dict[str, np.ndarray], float]:
    """Read adapters for the model in directory ``base`` -> (flat tree as fvjax.lora makes, scale alpha / rank).

    ``path`` is a file with keys ``[base_model.model.]<module>.lora_A.weight`` [rank, in] and ``lora_B`` [out, rank].
    alpha is read from adapter_config.json beside it; without that file alpha = rank, as the reference trains.
    For a vision tower, adapters of an InternVL model's decoder and projector are left out, as its weights are.

    Raises ValueError: no such file or a pickle; an adapter for a module the model lacks; half an adapter; a stack with
    only some layers adapted; shapes or ranks that do not fit; a PEFT variant other than plain LoRA.
    """
    path, ckpt = Path(path), open_checkpoint(base)
    modules = _modules(ckpt)
    place = {key: (module, layer) for module, keys in modules.items() for layer, key in enumerate(keys)}
    halves: dict[str, dict[int, np.ndarray]] = {}
    left_out = []
    for key, tensor in open_file(path).items():
        match = re.fullmatch(rf"(?:{re.escape(WRAPPER)})?(.+)\.lora_([AB])\.weight", key)
        if match is None:
            raise ValueError(f"{path}: {key!r} is not a LoRA key (….lora_A.weight or ….lora_B.weight)")
        theirs, half = match.groups()
        if "vision_config" in ckpt.config and re.match(r"(language_model|mlp1)\.", theirs):
            left_out.append(key)
            continue
        if theirs not in place and ckpt.prefix and ckpt.prefix + theirs in place:
            theirs = ckpt.prefix + theirs  # saved from the vision tower alone
        if theirs not in place:
            raise ValueError(f"{path}: {key!r} adapts a module that {base} does not have")
        module, layer = place[theirs]
        halves.setdefault(f"{module}/{half.lower()}", {})[layer] = tensor[:].T
    if not halves:
        raise ValueError(f"{path} holds no adapter for the {ckpt.kind} in {base}")
    if left_out:
        logging.info("%s: %d decoder adapters left out, first %s", path, len(left_out), left_out[0])

    flat = {}
    for name in sorted(h.rsplit("/", 1)[0] + end for h in halves for end in ("/a", "/b")):
        keys = modules[name.rsplit("/", 1)[0]]
        absent = sorted(set(range(len(keys))) - set(halves.get(name, {})))
        if absent:
            raise ValueError(f"{path}: {keys[absent[0]]}.lora_{name[-1].upper()}.weight is missing; all layers or none")
        layers = [halves[name][i].astype(np.float32) for i in range(len(keys))]
        if len({x.shape for x in layers}) > 1:
            raise ValueError(f"{path}: the layers of {name} differ in shape: {sorted({x.shape for x in layers})}")
        flat[name] = np.stack(layers) if ckpt.sources[f"params/{name[:-2]}/kernel"].stacked else layers[0]
    ranks = {flat[name].shape[-1 if name.endswith("/a") else -2] for name in flat}
    if len(ranks) > 1:
        raise ValueError(f"{path}: adapters of different ranks {sorted(ranks)} are not supported")
    rank = ranks.pop()
    for name, leaf in flat.items():
        *stack, inputs, outputs = ckpt.params[f"params/{name[:-2]}/kernel"].shape
        shape = (*stack, inputs, rank) if name.endswith("/a") else (*stack, rank, outputs)
        if leaf.shape != shape:
            raise ValueError(f"{path}: {name} is {leaf.shape}, but {base} needs {shape}")
    return flat, _alpha(path, rank) / rank


def write_adapters(dst: str | Path, adapters: Mapping[str, Any], alpha: float, base: str | Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json into the new directory ``dst``, for ``peft`` to open.

    ``adapters`` is a flat tree for the model in directory ``base``. ValueError: ``dst`` exists, a name ``base`` lacks.
    """
    dst, modules = Path(dst), _modules(open_checkpoint(base))
    tensors: dict[str, np.ndarray] = {}
    adapted: list[str] = []
    for name in sorted(adapters):
        module, half = name.rsplit("/", 1)
        if module not in modules or half not in ("a", "b"):
            raise ValueError(f"adapter {name!r} does not belong to the model in {base}")
        stack = np.asarray(adapters[name], np.float32)
        for key, layer in zip(modules[module], stack if stack.ndim == 3 else stack[None]):
            tensors[f"{WRAPPER}{key}.lora_{half.upper()}.weight"] = np.ascontiguousarray(layer.T)
            adapted += [key] if half == "a" else []
    rank = next(t.shape[0] for key, t in tensors.items() if ".lora_A." in key)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": adapted, "bias": "none"}
    if dst.exists():
        raise ValueError(f"{dst} exists; choose a new directory")
    dst.mkdir(parents=True)
    save_file(tensors, dst / "adapter_model.safetensors")
    (dst / "adapter_config.json").write_text(json.dumps(config, indent=1))


def _modules(ckpt: Checkpoint) -> dict[str, list[str]]:
    """Module of ours -> the original's module path(s), one per layer."""
    return {
        name.removeprefix("params/").removesuffix("/kernel"): [key.removesuffix(".weight") for key in source.keys]
        for name, source in ckpt.sources.items()
        if name.endswith("/kernel") and len(source.shape) == 2
    }


def _alpha(path: Path, rank: int) -> float:
    file = path.parent / "adapter_config.json"
    if not file.exists():
        logging.info("%s: no adapter_config.json beside it, alpha = rank = %d", path, rank)
        return rank
    config = load_json(file)
    for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern"):
        if config.get(key):
            raise ValueError(f"{file}: {key} is not supported, only plain LoRA is")
    if config.get("r") != rank or "lora_alpha" not in config:
        raise ValueError(
            f"{file}: r={config.get('r')}, lora_alpha={config.get('lora_alpha')}; the file has rank {rank}"
        )
    return config["lora_alpha"]
