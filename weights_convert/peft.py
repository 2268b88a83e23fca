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
from weights_convert.rules import Part, join

WRAPPER = "base_model.model."  # PEFT's own; files saved from the inner model lack it


def read_adapters(path: str | Path, base: str | Path, kind: str | None = None) -> tuple[dict[str, np.ndarray], float]:
    """Read adapters for the model in directory ``base`` -> (flat tree as fvjax.lora makes, scale alpha / rank).

    ``path`` is a file with keys ``[base_model.model.]<module>.lora_A.weight`` [rank, in] and ``lora_B`` [out, rank].
    alpha is read from adapter_config.json beside it; without that file alpha = rank, as the reference trains.
    ``kind``: what ``base`` is opened as, see ``open_checkpoint``. For a vision tower, adapters of an InternVL model's
    decoder and projector are left out, as its weights are. An adapter of InternLM2's fused wqkv becomes one of q, k and
    v each, with the same a: the same sums.

    Raises ValueError: no such file or a pickle; an adapter for a module the model lacks; half an adapter; a stack with
    only some layers adapted; shapes or ranks that do not fit; a PEFT variant other than plain LoRA.
    """
    path, ckpt = Path(path), open_checkpoint(base, kind)
    modules = _modules(ckpt)
    places: dict[str, list[tuple[str, int]]] = {}  # several where theirs is fused
    for module, keys in modules.items():
        for layer, key in enumerate(keys):
            places.setdefault(key, []).append((module, layer))
    halves: dict[str, dict[int, np.ndarray]] = {}
    left_out = []
    for key, tensor in open_file(path).items():
        match = re.fullmatch(rf"(?:{re.escape(WRAPPER)})?(.+)\.lora_([AB])\.weight", key)
        if match is None:
            raise ValueError(f"{path}: {key!r} is not a LoRA key (….lora_A.weight or ….lora_B.weight)")
        theirs, half = match.groups()
        if ckpt.kind != "vlm" and "vision_config" in ckpt.config and re.match(r"(language_model|mlp1)\.", theirs):
            left_out.append(key)
            continue
        if theirs not in places and ckpt.prefix and ckpt.prefix + theirs in places:
            theirs = ckpt.prefix + theirs  # saved from the vision tower alone
        if theirs not in places:
            raise ValueError(f"{path}: {key!r} adapts a module that {base} does not have")
        for module, layer in places[theirs]:
            transform = ckpt.sources[f"params/{module}/kernel"].transform
            fused = half == "B" and isinstance(transform, Part)
            value = transform.to_ours(tensor[:]) if fused else tensor[:].T
            halves.setdefault(f"{module}/{half.lower()}", {})[layer] = value
    if not halves:
        raise ValueError(f"{path} holds no adapter for the {ckpt.kind} in {base}")
    if left_out:
        logging.info("%s: %d adapters outside the tower left out, first %s", path, len(left_out), left_out[0])

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


def write_adapters(
    dst: str | Path, adapters: Mapping[str, Any], alpha: float, base: str | Path, kind: str | None = None
) -> None:
    """Write adapter_model.safetensors and adapter_config.json into the new directory ``dst``, for ``peft`` to open.

    ``adapters`` is a flat tree for the model in directory ``base``, opened as ``kind``. ValueError: ``dst`` exists, a
    name ``base`` lacks, or adapters of q, k and v with different a where the original has one fused matrix.
    """
    dst, ckpt = Path(dst), open_checkpoint(base, kind)
    modules = _modules(ckpt)
    tensors: dict[str, np.ndarray] = {}
    adapted: dict[str, None] = {}
    for name in sorted(adapters):
        module, half = name.rsplit("/", 1)
        if module not in modules or half not in ("a", "b"):
            raise ValueError(f"adapter {name!r} does not belong to the model in {base}")
        transform = ckpt.sources[f"params/{module}/kernel"].transform
        stack = np.asarray(adapters[name], np.float32)
        for key, layer in zip(modules[module], stack if stack.ndim == 3 else stack[None]):
            theirs = f"{WRAPPER}{key}.lora_{half.upper()}.weight"
            fused = half == "b" and isinstance(transform, Part)
            value = np.ascontiguousarray(transform.to_theirs(layer) if fused else layer.T)
            if fused and theirs in tensors:
                value = join([tensors[theirs], value])
            elif theirs in tensors and not np.array_equal(tensors[theirs], value):
                told = f"{key} is one matrix there, and the adapters of its parts have different a"
                raise ValueError(f"adapter {name!r}: {told}; PEFT's layout cannot hold that: merge them instead")
            tensors[theirs] = value
            adapted[key] = None
    rank = next(t.shape[0] for key, t in tensors.items() if ".lora_A." in key)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": [*adapted], "bias": "none"}
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
