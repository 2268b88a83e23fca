"""LoRA adapters in PEFT's safetensors layout <-> fvjax's flat adapter tree."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from weights_convert.options import Options
from weights_convert.read import Checkpoint, hashes, load_json, open_checkpoint, open_file
from weights_convert.rules import Part, join
from weights_convert.write import new_directory, save

BASE = "fvjax_base."  # and a part's name: its hash, in the file's metadata
WRAPPER = "base_model.model."  # PEFT's own; files saved from the inner model lack it
# Keys of adapter_config.json that make something else of the adapters, whatever they are set to.
VARIANTS = ("use_dora", "use_rslora", "use_qalora", "lora_bias", "modules_to_save", "trainable_token_indices")
INITS = (True, False, "gaussian", "orthogonal", "eva")  # those that leave the base as it is
# Keys of adapter_config.json that change nothing, with the reason.
IRRELEVANT = {
    **dict.fromkeys(
        ("base_model_name_or_path", "revision", "peft_version", "auto_mapping", "task_type", "inference_mode"),
        "says where the file comes from, or what it is for",
    ),
    **dict.fromkeys(
        ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        "says which modules get adapters, which the file's keys do too",
    ),
    **dict.fromkeys(("lora_dropout", "runtime_config"), "of training"),
    **dict.fromkeys(
        ("eva_config", "corda_config", "loftq_config", "lora_ga_config"), "of an initialisation: see init_lora_weights"
    ),
    **dict.fromkeys(("megatron_core", "qalora_group_size"), "has no effect without what it belongs to"),
    "fan_in_fan_out": "the layout of a base that stores its matrices transposed, which none that is read here does",
}


def read_adapters(path: str | Path, base: str | Path, kind: str | None = None) -> tuple[dict[str, np.ndarray], float]:
    """Read adapters for the model in directory ``base`` -> (flat tree as fvjax.models.lora makes, scale alpha / rank).

    ``path`` is a file with keys ``[base_model.model.]<module>.lora_A.weight`` [rank, in] and ``lora_B`` [out, rank].
    alpha is read from adapter_config.json beside it; without that file alpha = rank, as the reference trains. Ranks may
    differ between modules, alpha / rank may not.
    ``kind``: what ``base`` is opened as, see ``open_checkpoint``. For a vision tower, adapters of an InternVL model's
    decoder and projector are left out, as its weights are. An adapter of InternLM2's fused wqkv becomes one of q, k and
    v each, with the same a: the same sums.

    Raises ValueError: no such file or a pickle; an adapter for a module the model lacks; half an adapter; a stack with
    only some layers adapted; shapes or ranks that do not fit; a PEFT variant other than plain LoRA; weights other than
    those the file says it belongs to (``write_adapters`` notes them, PEFT itself does not: then nothing is checked).
    """
    path, ckpt = Path(path), open_checkpoint(base, kind)
    modules = _modules(ckpt)
    places: dict[str, list[tuple[str, int]]] = {}  # several where theirs is fused
    for module, keys in modules.items():
        for layer, key in enumerate(keys):
            places.setdefault(key, []).append((module, layer))
    halves: dict[str, dict[int, np.ndarray]] = {}
    ranks: dict[str, int] = {}  # by their module
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
        if half == "A":
            ranks[match[1]] = tensor.shape[0]
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
    for name, leaf in flat.items():
        *stack, inputs, outputs = ckpt.params[f"params/{name[:-2]}/kernel"].shape
        rank = flat[f"{name[:-2]}/a"].shape[-1]
        if name.endswith("/b") and leaf.shape[-2] != rank:
            raise ValueError(f"{path}: {name[:-2]} has an a and a b of different ranks, {rank} and {leaf.shape[-2]}")
        shape = (*stack, inputs, rank) if name.endswith("/a") else (*stack, rank, outputs)
        if leaf.shape != shape:
            raise ValueError(f"{path}: {name} is {leaf.shape}, but {base} needs {shape}")
    _check_base(path, ckpt)
    return flat, _scale(path, ranks)


def write_adapters(
    dst: str | Path, adapters: Mapping[str, Any], alpha: float, base: str | Path, kind: str | None = None
) -> None:
    """Write adapter_model.safetensors and adapter_config.json into the new directory ``dst``, for ``peft`` to open.

    ``adapters`` is a flat tree for the model in directory ``base``, opened as ``kind``. ``alpha`` over their rank, the
    smallest if they differ, is the scale of all. The file's metadata say which weights they belong to.

    Where the original has q, k and v in one matrix, their adapters (of ranks r, and a of their own) become one of rank
    3 r: the a above each other, and the b along the diagonal of its b, whose other blocks are zero. That is the same
    sum, and read back it is three adapters of rank 3 r. If they share one a, the rank stays.

    Raises ValueError: ``dst`` exists, or a name or a shape does not fit ``base``.
    """
    dst, ckpt = Path(dst), open_checkpoint(base, kind)
    modules = _modules(ckpt)
    if odd := [name for name in adapters if name[:-2] not in modules or name[-2:] not in ("/a", "/b")]:
        raise ValueError(f"adapter {odd[0]!r} does not belong to the model in {base}")
    if halves := [name for name in adapters if name[:-1] + {"a": "b", "b": "a"}[name[-1]] not in adapters]:
        raise ValueError(f"adapter {halves[0]!r} is without its other half")
    # (a [in, rank], b [rank, out of theirs]) of the parts of each of their matrices
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for module in dict.fromkeys(name[:-2] for name in sorted(adapters)):
        *stack, inputs, outputs = ckpt.params[f"params/{module}/kernel"].shape
        a, b = (np.asarray(adapters[f"{module}/{half}"], np.float32) for half in "ab")
        if a.shape != (*stack, inputs, a.shape[-1]) or b.shape != (*stack, a.shape[-1], outputs):
            raise ValueError(
                f"adapter {module}: a is {a.shape} and b {b.shape}, its kernel is {(*stack, inputs, outputs)}"
            )
        transform = ckpt.sources[f"params/{module}/kernel"].transform
        for key, one, other in zip(modules[module], *(x if stack else x[None] for x in (a, b))):
            whole = transform.to_theirs(other) if isinstance(transform, Part) else other.T
            parts.setdefault(key, []).append((one, whole))
    tensors: dict[str, np.ndarray] = {}
    for key, given in parts.items():
        a, b = (list(halves) for halves in zip(*given))
        shared = all(np.array_equal(a[0], other) for other in a)
        theirs = f"{WRAPPER}{key}.lora_"
        tensors[f"{theirs}A.weight"] = np.ascontiguousarray((a[0] if shared else np.concatenate(a, 1)).T)
        tensors[f"{theirs}B.weight"] = np.ascontiguousarray(join(b) if shared else np.concatenate(b, 1))
    ranks = {key: tensors[f"{WRAPPER}{key}.lora_A.weight"].shape[0] for key in parts}
    rank = min(a.shape[-1] for given in parts.values() for a, _ in given)
    other = {key: r for key, r in ranks.items() if r != rank}
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": other,
        "alpha_pattern": {key: alpha * r / rank for key, r in other.items()},
        "target_modules": [*parts],
        "bias": "none",
    }
    belongs = {BASE + part: digest for part, digest in hashes(ckpt).items()}
    with new_directory(dst) as temporary:
        save(temporary / "adapter_model.safetensors", tensors, belongs)
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=1))


def _modules(ckpt: Checkpoint) -> dict[str, list[str]]:
    """Module of ours -> the original's module path(s), one per layer."""
    return {
        name.removeprefix("params/").removesuffix("/kernel"): [key.removesuffix(".weight") for key in source.keys]
        for name, source in ckpt.sources.items()
        if name.endswith("/kernel") and len(source.shape) == 2
    }


def _check_base(path: Path, ckpt: Checkpoint) -> None:
    """Compare the weights that a file of adapters belongs to with those that are there, where both have the part."""
    with safe_open(path, framework="np") as file:
        belongs = {k.removeprefix(BASE): v for k, v in (file.metadata() or {}).items() if k.startswith(BASE)}
    if not belongs:
        return
    for part, now in hashes(ckpt).items():
        if belongs.get(part, now) != now:
            told = f"of {ckpt.path} has the hash {now[:12]}, the adapters belong to {belongs[part][:12]}"
            raise ValueError(f"{path} was made for another base: the {part} {told}; give that base")


def _scale(path: Path, ranks: Mapping[str, int]) -> float:
    """alpha / rank, by adapter_config.json. ``ranks``: of the adapters by their module."""
    file = path.parent / "adapter_config.json"
    if not file.exists():
        logging.info("%s: no adapter_config.json beside it, alpha = rank", path)
        return 1.0
    config = load_json(file)
    if "r" not in config or "lora_alpha" not in config:
        raise ValueError(f"{file} has no r or no lora_alpha")
    options = Options(config, str(file))
    for key in VARIANTS:
        if value := options.get(key):
            raise ValueError(f"{file}: {key}={value!r}: {key} is not supported, only plain LoRA is")
    options.only("peft_type", "LORA")
    options.only("bias", "none", "merge the adapters by PEFT and convert the whole model")
    options.count("r")
    options.number("lora_alpha")
    for pattern in ("rank_pattern", "alpha_pattern"):
        value = options.get(pattern) or {}
        if not isinstance(value, dict) or not all(type(v) in (int, float) and v > 0 for v in value.values()):
            raise ValueError(f"{file}: {pattern}={value!r} is not a JSON object of numbers above 0")
    init = options.get("init_lora_weights", True)
    if init not in INITS and str(init).lower() not in INITS:
        told = "that subtracts the first adapters from the base; let PEFT convert them to plain LoRA"
        raise ValueError(f"{file}: init_lora_weights={init!r} is not supported: {told}")
    options.finish(IRRELEVANT, unset=(False, {}, []))

    def of(module, key, pattern):
        """As PEFT reads it: the first pattern that matches the end of a module's path, else the value for all."""
        given = config.get(pattern) or {}
        return next((v for k, v in given.items() if re.fullmatch(rf"(.*\.)?({k})", module)), config[key])

    scales = {}
    for module, rank in sorted(ranks.items(), key=lambda item: item[1]):
        told, alpha = of(module, "r", "rank_pattern"), of(module, "lora_alpha", "alpha_pattern")
        if told != rank:
            raise ValueError(f"{file}: r={told} for {module}, lora_alpha={alpha}; the file has rank {rank}")
        scales[module] = alpha / rank
    first, scale = next(iter(scales.items()))
    for module, another in scales.items():
        if abs(another - scale) > 1e-6 * abs(scale):
            told = f"{scale} for {first} and {another} for {module}"
            raise ValueError(f"{file}: alpha / rank is {told}; only one for all is supported")
    return scale
