"""Read and write LoRA adapters in PEFT's safetensors layout."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from weights_convert.layouts import layout_of, module_paths, written_paths
from weights_convert.options import Options
from weights_convert.read import Checkpoint, Tensor, hashes, load_json, open_checkpoint, open_file
from weights_convert.rules import Part, Source, join
from weights_convert.write import new_directory, save

BASE = "fvjax_base."  # prefix of metadata keys that hold the hash of a part of the base
WRAPPER = "base_model.model."  # prefix of PEFT's keys; files saved from the inner model lack it
# Keys of adapter_config.json that turn the adapters into another method, whatever their value.
VARIANTS = ("use_dora", "use_rslora", "use_qalora", "lora_bias", "modules_to_save", "trainable_token_indices")
INITS = (True, False, "gaussian", "orthogonal", "eva")  # initialisations that do not change the base
# Keys of adapter_config.json that change nothing, each with the reason.
IRRELEVANT = {
    **dict.fromkeys(
        ("base_model_name_or_path", "revision", "peft_version", "auto_mapping", "task_type", "inference_mode"),
        "says where the file comes from, or what it is for",
    ),
    **dict.fromkeys(
        ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        "says which modules get adapters, and so do the keys of the weights",
    ),
    **dict.fromkeys(("lora_dropout", "runtime_config"), "belongs to training"),
    **dict.fromkeys(
        ("eva_config", "corda_config", "loftq_config", "lora_ga_config"),
        "belongs to an initialisation: see init_lora_weights",
    ),
    **dict.fromkeys(("megatron_core", "qalora_group_size"), "has no effect without the option that it belongs to"),
    "fan_in_fan_out": "says that the base stores its matrices transposed, which no supported base does",
}


Modules = dict[str, list[tuple[str, ...]]]  # fvjax module -> for each layer the original's module paths, see Source
Layers = dict[int, np.ndarray]  # layer -> a or b of its adapter
Pieces = dict[int, np.ndarray]  # number of the original's module within a layer -> a or b of its adapter


def read_adapters(path: str | Path, base: str | Path, kind: str | None = None) -> tuple[dict[str, np.ndarray], float]:
    """Read adapters for the model in directory ``base`` -> (flat tree as fvjax.models.lora makes, scale alpha / rank).

    ``path`` is a file with keys ``[base_model.model.]<module>.lora_A.weight`` [rank, in] and ``lora_B`` [out, rank], or
    a directory that has it as adapter_model.safetensors, as PEFT writes it.
    alpha is read from adapter_config.json beside it; without that file alpha = rank, as in the reference's training.
    Ranks may differ between modules, alpha / rank may not.
    ``kind``: how ``base`` is opened, see ``open_checkpoint``. For a vision tower, adapters of an InternVL model's
    decoder and projector are ignored, as their weights are. An adapter of InternLM2's fused wqkv becomes one adapter
    each of q, k and v, with the same a, which gives the same sums. Adapters of the -hf tower's q, k and v become one of
    our qkv. A file for one layout of an InternVL model fits the other as well: modules are found by every path that
    PEFT may have for them.

    Raises ValueError: no such file or a pickle; an adapter for a module that the model lacks; half an adapter; a stack
    in which only some layers have adapters; shapes or ranks that do not fit; a PEFT variant other than plain LoRA; the
    file was made for other weights (``write_adapters`` records them; PEFT does not, and then nothing is checked).
    """
    path, ckpt = Path(path), open_checkpoint(base, kind)
    path = path / "adapter_model.safetensors" if path.is_dir() else path
    tensors = _adapter_tensors(path)
    sources = _fitting_sources(ckpt, {module for module, _ in tensors})
    halves, ranks = _read_halves(path, ckpt, sources, tensors, base)
    adapters = _stack_layers(path, sources, halves)
    _check_shapes(path, ckpt, adapters, base)
    _check_base(path, ckpt)
    return adapters, _scale(path, ranks)


def _adapter_tensors(path: Path) -> dict[tuple[str, str], Tensor]:
    """Open a file of adapters -> tensors by (the original's module, "A" or "B"). Raises ValueError for another key."""
    tensors = {}
    for key, tensor in open_file(path).items():
        match = re.fullmatch(rf"(?:{re.escape(WRAPPER)})?(.+)\.lora_([AB])\.weight", key)
        if match is None:
            raise ValueError(f"{path}: {key!r} is not a LoRA key (….lora_A.weight or ….lora_B.weight)")
        tensors[match[1], match[2]] = tensor
    return tensors


def _is_outside(ckpt: Checkpoint, module: str) -> bool:
    """Return whether a module belongs to the parts of an InternVL model that were not opened with its tower."""
    parts = r"(model\.)?(language_model|mlp1|multi_modal_projector)\."
    return ckpt.kind != "vlm" and "vision_config" in ckpt.config and re.match(parts, module) is not None


def _fitting_sources(ckpt: Checkpoint, adapted: Collection[str]) -> dict[str, Source]:
    """Return the sources with the paths of all adapted modules; the checkpoint's own if there are none."""
    inside = {module for module in adapted if not _is_outside(ckpt, module)}
    for sources in module_paths(ckpt):
        if inside <= {path for layers in _modules(sources).values() for paths in layers for path in paths}:
            return sources
    return ckpt.sources


def _read_halves(
    path: Path,
    ckpt: Checkpoint,
    sources: Mapping[str, Source],
    tensors: Mapping[tuple[str, str], Tensor],
    base: str | Path,
) -> tuple[dict[str, Layers], dict[str, int]]:
    """Read a file's tensors -> ("module/a" or "module/b" -> layer -> array, rank by the original's module)."""
    modules = _modules(sources)
    # original module -> (module, layer, piece); several if it is fused
    targets: dict[str, list[tuple[str, int, int]]] = {}
    for module, layers in modules.items():
        for layer, paths in enumerate(layers):
            for piece, original in enumerate(paths):
                targets.setdefault(original, []).append((module, layer, piece))
    pieces: dict[tuple[str, int], dict[str, Pieces]] = {}  # (module, layer) -> "A" or "B" -> piece -> array
    ranks: dict[str, int] = {}
    outside = []
    for (original, half), tensor in tensors.items():
        if _is_outside(ckpt, original):
            outside.append(tensor.key)
            continue
        target = original
        if target not in targets and ckpt.prefix and ckpt.prefix + target in targets:
            target = ckpt.prefix + target  # saved from the vision tower alone
        if target not in targets:
            raise ValueError(f"{path}: {tensor.key!r} adapts a module that {base} does not have")
        if half == "A":
            ranks[original] = tensor.shape[0]
        for module, layer, piece in targets[target]:
            value = _half_of_module(sources[f"params/{module}/kernel"], half, tensor)
            pieces.setdefault((module, layer), {}).setdefault(half, {})[piece] = value
    if not pieces:
        raise ValueError(f"{path} holds no adapter for the {ckpt.kind} in {base}")
    if outside:
        logging.info("%s: ignored %d adapters outside the tower, the first is %s", path, len(outside), outside[0])
    halves: dict[str, Layers] = {}
    for (module, layer), found in pieces.items():
        for half, value in _join_pieces(path, modules[module][layer], found).items():
            halves.setdefault(f"{module}/{half}", {})[layer] = value
    return halves, ranks


def _half_of_module(source: Source, half: str, tensor: Tensor) -> np.ndarray:
    """Convert lora_A or lora_B to a or b of one fvjax module, which may be part of a fused original."""
    fused = half == "B" and isinstance(source.transform, Part)
    return source.transform.to_fvjax(tensor[:]) if fused else tensor[:].T


def _join_pieces(path: Path, paths: tuple[str, ...], found: Mapping[str, Pieces]) -> dict[str, np.ndarray]:
    """Join the adapters of the modules that are one of ours -> its halves "a" [in, rank] and "b" [rank, out].

    With the same a for all, the rank stays. Otherwise the ranks add up: the a stand beside each other, and each b has
    its own rows and its own module's columns, which gives the same sums.
    """
    if len(paths) == 1:
        return {half.lower(): values[0] for half, values in found.items()}
    a, b = found.get("A", {}), found.get("B", {})
    if set(a) != set(b):
        piece = min(set(a) ^ set(b))
        missing = f"{paths[piece]}.lora_{'A' if piece in b else 'B'}.weight"
        raise ValueError(f"{path}: {missing} is missing; an adapter needs both halves")
    if len({x.shape[1] for x in b.values()}) > 1 or len({x.shape[0] for x in a.values()}) > 1:
        raise ValueError(f"{path}: the adapters of {', '.join(paths)} differ in their inputs or outputs")
    first = next(iter(a.values()))
    if len(a) == len(paths) and all(np.array_equal(first, x) for x in a.values()):
        return {"a": first, "b": np.concatenate([b[piece] for piece in range(len(paths))], axis=1)}
    rows = [
        np.concatenate([b[piece] if i == piece else np.zeros_like(b[piece]) for i in range(len(paths))], axis=1)
        for piece in sorted(b)
    ]
    return {"a": np.concatenate([a[piece] for piece in sorted(a)], axis=1), "b": np.concatenate(rows)}


def _stack_layers(path: Path, sources: Mapping[str, Source], halves: Mapping[str, Layers]) -> dict[str, np.ndarray]:
    """Stack the layers of each adapter. Raises ValueError for a missing half or layer, or layers of several shapes."""
    adapters, modules = {}, _modules(sources)
    for name in sorted(half.rsplit("/", 1)[0] + end for half in halves for end in ("/a", "/b")):
        keys = modules[name.rsplit("/", 1)[0]]
        missing = sorted(set(range(len(keys))) - set(halves.get(name, {})))
        if missing:
            key = f"{keys[missing[0]][0]}.lora_{name[-1].upper()}.weight"
            raise ValueError(f"{path}: {key} is missing; a stack needs adapters in all layers or in none")
        layers = [halves[name][i].astype(np.float32) for i in range(len(keys))]
        if len({x.shape for x in layers}) > 1:
            raise ValueError(f"{path}: the layers of {name} differ in shape: {sorted({x.shape for x in layers})}")
        adapters[name] = np.stack(layers) if sources[f"params/{name[:-2]}/kernel"].stacked else layers[0]
    return adapters


def _check_shapes(path: Path, ckpt: Checkpoint, adapters: Mapping[str, np.ndarray], base: str | Path) -> None:
    """Raise ValueError for an adapter whose halves do not fit each other or their kernel."""
    for name, leaf in adapters.items():
        *stack, inputs, outputs = ckpt.params[f"params/{name[:-2]}/kernel"].shape
        rank = adapters[f"{name[:-2]}/a"].shape[-1]
        if name.endswith("/b") and leaf.shape[-2] != rank:
            raise ValueError(f"{path}: {name[:-2]} has an a and a b of different ranks, {rank} and {leaf.shape[-2]}")
        shape = (*stack, inputs, rank) if name.endswith("/a") else (*stack, rank, outputs)
        if leaf.shape != shape:
            raise ValueError(f"{path}: {name} is {leaf.shape}, but {base} needs {shape}")


def write_adapters(
    dst: str | Path,
    adapters: Mapping[str, Any],
    alpha: float,
    base: str | Path,
    kind: str | None = None,
    layout: str | None = None,
) -> None:
    """Write adapter_model.safetensors and adapter_config.json into the new directory ``dst``, for ``peft`` to open.

    ``adapters`` is a flat tree for the model in directory ``base``, opened as ``kind``. The scale of all adapters is
    ``alpha`` over their rank, or over the smallest rank if they differ. The file's metadata identify the base.
    ``layout``: "remote" or "hf", the layout of the InternVL model that the adapters are for; None means the base's. In
    "hf" the paths are those of the model in memory (model.language_model.layers.0…), and adapters of our qkv become
    three, of q, k and v, with the same a.

    If the original has q, k and v in one matrix, their adapters of rank r, each with an a of its own, become one
    adapter of rank 3 r: it has the three a above each other, and the three b on the diagonal of its b, which is zero
    elsewhere. The sum is the same, and reading it back gives three adapters of rank 3 r. If they share one a, the rank
    stays r.

    Raises ValueError: ``dst`` exists, a name or a shape does not fit ``base``, or ``base`` does not have the layout.
    """
    dst, ckpt = Path(dst), open_checkpoint(base, kind)
    parts = _split_by_original(adapters, ckpt, written_paths(ckpt, layout), base)
    tensors: dict[str, np.ndarray] = {}
    for key, halves in parts.items():
        a, b = (list(half) for half in zip(*halves))
        shared = all(np.array_equal(a[0], other) for other in a)
        lora_key = f"{WRAPPER}{key}.lora_"
        tensors[f"{lora_key}A.weight"] = np.ascontiguousarray((a[0] if shared else np.concatenate(a, 1)).T)
        tensors[f"{lora_key}B.weight"] = np.ascontiguousarray(join(b) if shared else np.concatenate(b, 1))
    ranks = {key: tensors[f"{WRAPPER}{key}.lora_A.weight"].shape[0] for key in parts}
    rank = min(a.shape[-1] for halves in parts.values() for a, _ in halves)
    other = {key: r for key, r in ranks.items() if r != rank}
    for_generation = ckpt.kind == "vlm" and (layout or layout_of(ckpt)) == "hf"  # remote code lacks what PEFT asks for
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if for_generation else None,
        "base_model_name_or_path": ckpt.config.get("fvjax", {}).get("source", str(base)),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": other,
        "alpha_pattern": {key: alpha * r / rank for key, r in other.items()},
        "target_modules": [*parts],
        "bias": "none",
    }
    base_hashes = {BASE + part: digest for part, digest in hashes(ckpt).items()}
    with new_directory(dst) as temporary:
        save(temporary / "adapter_model.safetensors", tensors, base_hashes)
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=1))


def _split_by_original(
    adapters: Mapping[str, Any], ckpt: Checkpoint, sources: Mapping[str, Source], base: str | Path
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Group adapters by the original's module -> (a [in, rank], b [out of the original, rank]) of each of its parts.

    ``sources``: where the original's modules are. Raises ValueError for a name or a shape that does not fit the base.
    """
    modules = _modules(sources)
    if unknown := [name for name in adapters if name[:-2] not in modules or name[-2:] not in ("/a", "/b")]:
        raise ValueError(f"adapter {unknown[0]!r} does not belong to the model in {base}")
    if halves := [name for name in adapters if name[:-1] + {"a": "b", "b": "a"}[name[-1]] not in adapters]:
        raise ValueError(f"adapter {halves[0]!r} is without its other half")
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for module in dict.fromkeys(name[:-2] for name in sorted(adapters)):
        *stack, inputs, outputs = ckpt.params[f"params/{module}/kernel"].shape
        a, b = (np.asarray(adapters[f"{module}/{half}"], np.float32) for half in "ab")
        if a.shape != (*stack, inputs, a.shape[-1]) or b.shape != (*stack, a.shape[-1], outputs):
            kernel = (*stack, inputs, outputs)
            raise ValueError(f"adapter {module}: a is {a.shape} and b {b.shape}, but its kernel is {kernel}")
        transform = sources[f"params/{module}/kernel"].transform
        for keys, layer_a, layer_b in zip(modules[module], *(x if stack else x[None] for x in (a, b))):
            whole_b = transform.to_original(layer_b) if isinstance(transform, Part) else layer_b.T
            for key, piece in zip(keys, np.split(whole_b, len(keys))):
                parts.setdefault(key, []).append((layer_a, piece))
    return parts


def _modules(sources: Mapping[str, Source]) -> Modules:
    """Return the modules that can be adapted: those with a matrix."""
    return {
        name.removeprefix("params/").removesuffix("/kernel"): [
            tuple(key.removesuffix(".weight") for key in keys) for keys in source.layers
        ]
        for name, source in sources.items()
        if name.endswith("/kernel") and len(source.shape) == 2
    }


def _check_base(path: Path, ckpt: Checkpoint) -> None:
    """Compare the hashes of the weights that the adapters were made for with the checkpoint's, part by part.

    Parts that only one of the two has are not compared.
    """
    with safe_open(path, framework="np") as file:
        recorded = {k.removeprefix(BASE): v for k, v in (file.metadata() or {}).items() if k.startswith(BASE)}
    if not recorded:
        return
    for part, actual in hashes(ckpt).items():
        if recorded.get(part, actual) != actual:
            raise ValueError(
                f"{path} was made for another base: the {part} of {ckpt.path} has the hash {actual[:12]}, but the "
                f"adapters belong to {recorded[part][:12]}; use that base"
            )


def _scale(path: Path, ranks: Mapping[str, int]) -> float:
    """Return alpha / rank according to adapter_config.json. ``ranks``: the adapters' ranks by original module."""
    file = path.parent / "adapter_config.json"
    if not file.exists():
        logging.info("%s: there is no adapter_config.json beside it, so alpha = rank", path)
        return 1.0
    config = _read_adapter_config(file)

    def value_for(module, key, pattern):
        """Look a value up as PEFT does: by the first pattern that matches the end of a module's path, else for all."""
        patterns = config.get(pattern) or {}
        return next((v for k, v in patterns.items() if re.fullmatch(rf"(.*\.)?({k})", module)), config[key])

    scales = {}
    for module, rank in sorted(ranks.items(), key=lambda item: item[1]):
        r, alpha = value_for(module, "r", "rank_pattern"), value_for(module, "lora_alpha", "alpha_pattern")
        if r != rank:
            raise ValueError(f"{file}: r={r} for {module}, lora_alpha={alpha}, but the weights have rank {rank}")
        scales[module] = alpha / rank
    first, scale = next(iter(scales.items()))
    for module, other in scales.items():
        if abs(other - scale) > 1e-6 * abs(scale):
            raise ValueError(
                f"{file}: alpha / rank is {scale} for {first} and {other} for {module}; it must be the same for all"
            )
    return scale


def _read_adapter_config(file: Path) -> dict[str, Any]:
    """Read adapter_config.json. Raises ValueError for anything but plain LoRA."""
    config = load_json(file)
    if "r" not in config or "lora_alpha" not in config:
        raise ValueError(f"{file} has no r or no lora_alpha")
    options = Options(config, str(file))
    for key in VARIANTS:
        if value := options.get(key):
            raise ValueError(f"{file}: {key}={value!r}: {key} is not supported, only plain LoRA is")
    options.only("peft_type", "LORA")
    options.only("bias", "none", "merge the adapters with PEFT and convert the whole model")
    options.count("r")
    options.number("lora_alpha")
    for pattern in ("rank_pattern", "alpha_pattern"):
        value = options.get(pattern) or {}
        if not isinstance(value, dict) or not all(type(v) in (int, float) and v > 0 for v in value.values()):
            raise ValueError(f"{file}: {pattern}={value!r} is not a JSON object of numbers above 0")
    init = options.get("init_lora_weights", True)
    if init not in INITS and str(init).lower() not in INITS:
        remedy = "it subtracts the first adapters from the base; let PEFT convert them to plain LoRA"
        raise ValueError(f"{file}: init_lora_weights={init!r} is not supported: {remedy}")
    options.finish(IRRELEVANT, unset=(False, {}, []))
    return config
