"""Read and write LoRA adapters in PEFT's safetensors layout."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from weights_convert.adapter_config import CONFIG, AdapterConfig, read_adapter_config
from weights_convert.layouts import layout_of, module_paths, written_paths
from weights_convert.read import Checkpoint, Tensor, hashes, open_checkpoint, open_file
from weights_convert.rules import Part, Source, join
from weights_convert.write import new_directory, save

BASE = "fvjax_base."  # prefix of metadata keys that hold the hash of a part of the base
WRAPPER = "base_model.model."  # prefix of PEFT's keys; files saved from the inner model lack it
SCALE = "fvjax_scale"  # metadata key with the scale of all adapters, for a file that has lost its adapter_config.json
WEIGHTS = "adapter_model.safetensors"  # PEFT's name of the file in a directory of adapters


Modules = dict[str, list[tuple[str, ...]]]  # fvjax module -> for each layer the original's module paths, see Source
Layers = dict[int, np.ndarray]  # layer -> a or b of its adapter
Pieces = dict[int, np.ndarray]  # number of the original's module within a layer -> a or b of its adapter


def read_adapters(path: str | Path, base: str | Path, kind: str | None = None) -> tuple[dict[str, np.ndarray], float]:
    """Read adapters for the model in directory ``base`` -> (flat tree as fvjax.models.lora makes, scale of all).

    ``path`` is a file with keys ``[base_model.model.]<module>.lora_A[.NAME].weight`` [rank, in] and ``lora_B``
    [out, rank], or a directory that has it as adapter_model.safetensors, as PEFT writes it.
    The scale is alpha / rank, of rsLoRA alpha / sqrt(rank), by the adapter_config.json beside the file; without one, by
    the file's metadata (``write_adapters``). If the file lacks those as well, alpha = rank, as in the reference's
    training, and a warning says so. Ranks and scales may differ between modules: an adapter of another scale than the
    first has the quotient in its b, and layers of a stack with a lower rank, or without an adapter, are filled with
    zeros, which gives the same sums.
    ``kind``: how ``base`` is opened, see ``open_checkpoint``. For a vision tower, adapters of an InternVL model's
    decoder and projector are ignored, as their weights are. An adapter of InternLM2's fused wqkv becomes one adapter
    each of q, k and v, with the same a, which gives the same sums. Adapters of the -hf tower's q, k and v become one of
    our qkv. A file for one layout of an InternVL model fits the other as well: modules are found by every path that
    PEFT may have for them.

    Raises ValueError: no such file or a pickle; an adapter for a module that the model lacks, or that the config does
    not target; half an adapter; shapes or ranks that do not fit; numbers that are not finite; a PEFT variant other than
    LoRA; the file was made for other weights (``write_adapters`` records them; PEFT does not, and then nothing is
    checked).
    """
    path, ckpt = _adapter_file(Path(path)), open_checkpoint(base, kind)
    file = path.parent / CONFIG
    config = read_adapter_config(file) if file.exists() else None  # before the tensors: it names what they are
    tensors = _inside(path, ckpt, _adapter_tensors(path), base)
    sources = _fitting_sources(ckpt, {module for module, _ in tensors})
    _check_modules(path, ckpt, sources, tensors, base)
    _check_pairs(path, tensors)
    scales = _scales(path, config, ckpt, sources, tensors)
    scale = next(iter(scales.values()), 1.0)
    halves = _read_halves(path, ckpt, sources, tensors, {m: other / scale for m, other in scales.items()})
    adapters = _stack_layers(path, sources, halves)
    _check_shapes(path, ckpt, adapters, base)
    _check_base(path, ckpt)
    return adapters, scale


def _adapter_file(path: Path) -> Path:
    """Return the file of adapters that a path means. Raises ValueError for a directory without one."""
    if not path.is_dir():
        return path
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    names = sorted(file.name for file in path.iterdir())
    if "adapter_model.bin" in names:
        remedy = "pickles are not read: open it with a current PEFT and save it again"
    else:
        remedy = f"it holds {', '.join(names[:5]) or 'nothing'}; give the directory that PEFT saved, or the file"
    raise ValueError(f"{path} has no {WEIGHTS}; {remedy}")


def _adapter_tensors(path: Path) -> dict[tuple[str, str], Tensor]:
    """Open a file of adapters -> tensors by (the original's module, "A" or "B").

    Raises ValueError for another key, adapters of several names (``lora_A.NAME.weight``), or numbers that are no
    floating-point numbers.
    """
    tensors, names = {}, set()
    for key, tensor in open_file(path).items():
        match = re.fullmatch(rf"(?:{re.escape(WRAPPER)})?(.+)\.lora_([AB])(?:\.([^.]+))?\.weight", key)
        if match is None:
            raise ValueError(f"{path}: {key!r} is not a LoRA key (….lora_A.weight or ….lora_B.weight)")
        if tensor.dtype.name not in ("float16", "bfloat16", "float32", "float64") or len(tensor.shape) != 2:
            raise ValueError(f"{path}: {key!r} is {tensor.dtype.name}{list(tensor.shape)}, not a matrix of floats")
        tensors[match[1], match[2]] = tensor
        names.add(match[3])
    if len(names) > 1:
        spelled = ", ".join(repr(name) for name in sorted(names, key=str))
        raise ValueError(f"{path}: holds adapters of several names ({spelled}); save one of them alone")
    return tensors


def _check_pairs(path: Path, tensors: Mapping[tuple[str, str], Tensor]) -> None:
    """Raise ValueError for half an adapter, or halves of different ranks."""
    for module in sorted({module for module, _ in tensors}):
        a, b = tensors.get((module, "A")), tensors.get((module, "B"))
        if a is None or b is None:
            half = "A" if a is None else "B"
            raise ValueError(f"{path}: {module}.lora_{half}.weight is missing; an adapter needs both halves")
        if a.shape[0] != b.shape[1]:
            ranks = f"{a.shape[0]} and {b.shape[1]}"
            raise ValueError(f"{path}: {module} has an a and a b of different ranks, {ranks}")


def _inside(
    path: Path, ckpt: Checkpoint, tensors: Mapping[tuple[str, str], Tensor], base: str | Path
) -> dict[tuple[str, str], Tensor]:
    """Return the tensors without those for parts of the model that were not opened. ValueError if none is left."""
    inside = {key: tensor for key, tensor in tensors.items() if not _is_outside(ckpt, key[0])}
    if not inside:
        raise ValueError(f"{path} holds no adapter for the {ckpt.kind} in {base}")
    if outside := [tensor.key for key, tensor in tensors.items() if key not in inside]:
        logging.info("%s: ignored %d adapters outside the tower, the first is %s", path, len(outside), outside[0])
    return inside


def _is_outside(ckpt: Checkpoint, module: str) -> bool:
    """Return whether a module belongs to the parts of an InternVL model that were not opened with its tower."""
    parts = r"(model\.)?(language_model|mlp1|multi_modal_projector)\."
    return ckpt.kind != "vlm" and "vision_config" in ckpt.config and re.match(parts, module) is not None


def _fitting_sources(ckpt: Checkpoint, adapted: Collection[str]) -> dict[str, Source]:
    """Return the sources with the paths of all adapted modules; the checkpoint's own if there are none."""
    for sources in module_paths(ckpt):
        if set(adapted) <= _paths(sources):
            return sources
    return ckpt.sources


def _check_modules(
    path: Path,
    ckpt: Checkpoint,
    sources: Mapping[str, Source],
    tensors: Mapping[tuple[str, str], Tensor],
    base: str | Path,
) -> None:
    """Raise ValueError for an adapter of a module that the model does not have."""
    known = _paths(sources)
    for (module, _), tensor in tensors.items():
        if module not in known and not (ckpt.prefix and ckpt.prefix + module in known):
            raise ValueError(f"{path}: {tensor.key!r} adapts a module that {base} does not have")


def _read_halves(
    path: Path,
    ckpt: Checkpoint,
    sources: Mapping[str, Source],
    tensors: Mapping[tuple[str, str], Tensor],
    factors: Mapping[str, float],
) -> dict[str, Layers]:
    """Read a file's tensors -> "module/a" or "module/b" -> layer -> float32 array.

    ``factors``: by the original's module, what its b is multiplied by.
    """
    modules = _modules(sources)
    # original module -> (module, layer, piece); several if it is fused
    targets: dict[str, list[tuple[str, int, int]]] = {}
    for module, layers in modules.items():
        for layer, paths in enumerate(layers):
            for piece, original in enumerate(paths):
                targets.setdefault(original, []).append((module, layer, piece))
    pieces: dict[tuple[str, int], dict[str, Pieces]] = {}  # (module, layer) -> "A" or "B" -> piece -> array
    for (original, half), tensor in tensors.items():
        target = original if original in targets else ckpt.prefix + original  # or saved from the vision tower alone
        numbers = _finite(path, tensor)
        if half == "B" and (factor := factors.get(original, 1.0)) != 1.0:
            numbers = numbers * np.float32(factor)
        for module, layer, piece in targets[target]:
            value = _half_of_module(sources[f"params/{module}/kernel"], half, numbers)
            pieces.setdefault((module, layer), {}).setdefault(half, {})[piece] = value
    halves: dict[str, Layers] = {}
    for (module, layer), found in pieces.items():
        for half, value in _join_pieces(path, modules[module][layer], found).items():
            halves.setdefault(f"{module}/{half}", {})[layer] = value
    return halves


def _finite(path: Path, tensor: Tensor) -> np.ndarray:
    """Read a tensor as float32. Raises ValueError for a number that is not finite."""
    numbers = tensor[:].astype(np.float32)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{path}: {tensor.key} holds numbers that are not finite (NaN or infinity)")
    return numbers


def _half_of_module(source: Source, half: str, numbers: np.ndarray) -> np.ndarray:
    """Convert lora_A or lora_B to a or b of one fvjax module, which may be part of a fused original."""
    fused = half == "B" and isinstance(source.transform, Part)
    return source.transform.to_fvjax(numbers) if fused else numbers.T


def _join_pieces(path: Path, paths: tuple[str, ...], found: Mapping[str, Pieces]) -> dict[str, np.ndarray]:
    """Join the adapters of the modules that are one of ours -> its halves "a" [in, rank] and "b" [rank, out].

    With the same a for all, the rank stays. Otherwise the ranks add up: the a stand beside each other, and each b has
    its own rows and its own module's columns, which gives the same sums.
    """
    if len(paths) == 1:
        return {half.lower(): values[0] for half, values in found.items()}
    a, b = found["A"], found["B"]
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
    """Stack the layers of each adapter; layers without one, and missing ranks, are zeros.

    Raises ValueError for layers of several widths.
    """
    adapters, modules = {}, _modules(sources)
    for module in sorted({half.rsplit("/", 1)[0] for half in halves}):
        keys = modules[module]
        a, b = halves[f"{module}/a"], halves[f"{module}/b"]
        if len(widths := {(a[layer].shape[0], b[layer].shape[1]) for layer in a}) > 1:
            raise ValueError(f"{path}: the layers of {module} differ in shape (in, out): {sorted(widths)}")
        if len(a) < len(keys):
            logging.info("%s: %s has adapters in %d of its %d layers", path, module, len(a), len(keys))
        rank = max(x.shape[1] for x in a.values())
        stacks = {"a": _filled(a, len(keys), rank, axis=1), "b": _filled(b, len(keys), rank, axis=0)}
        for half, stack in stacks.items():
            adapters[f"{module}/{half}"] = stack if sources[f"params/{module}/kernel"].stacked else stack[0]
    return adapters


def _filled(layers: Layers, count: int, rank: int, axis: int) -> np.ndarray:
    """Stack ``count`` layers, with zeros where there is none and up to ``rank`` along ``axis``."""
    shape = list(next(iter(layers.values())).shape)
    shape[axis] = rank
    stack = np.zeros((count, *shape), np.float32)
    for number, layer in layers.items():
        stack[(number, *(slice(n) for n in layer.shape))] = layer
    return stack


def _check_shapes(path: Path, ckpt: Checkpoint, adapters: Mapping[str, np.ndarray], base: str | Path) -> None:
    """Raise ValueError for an adapter whose halves do not fit their kernel."""
    for name, leaf in adapters.items():
        *stack, inputs, outputs = ckpt.params[f"params/{name[:-2]}/kernel"].shape
        rank = adapters[f"{name[:-2]}/a"].shape[-1]
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
    config = {
        "peft_type": "LORA",
        **_opened_by(ckpt, layout),
        **_origin(ckpt, base),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": other,
        "alpha_pattern": {key: alpha * r / rank for key, r in other.items()},
        "target_modules": [*parts],
        "bias": "none",
    }
    metadata = {SCALE: repr(alpha / rank), **{BASE + part: digest for part, digest in hashes(ckpt).items()}}
    with new_directory(dst) as temporary:
        save(temporary / WEIGHTS, tensors, metadata)
        (temporary / CONFIG).write_text(json.dumps(config, indent=1))


def _opened_by(ckpt: Checkpoint, layout: str | None) -> dict[str, Any]:
    """Return the keys of adapter_config.json by which PEFT's AutoPeftModel classes choose the base's class.

    A decoder has the task type of AutoPeftModelForCausalLM. No task type of PEFT fits a model that sees: AutoPeftModel
    opens it by the class in auto_mapping, and refuses a task type beside it.
    """
    if ckpt.kind == "decoder":
        return {"task_type": "CAUSAL_LM", "auto_mapping": None}
    is_hf_whole = (layout or layout_of(ckpt)) == "hf" and "vision_config" in ckpt.config
    base_class = "AutoModelForImageTextToText" if is_hf_whole else "AutoModel"
    return {"task_type": None, "auto_mapping": {"base_model_class": base_class, "parent_library": "transformers"}}


def _origin(ckpt: Checkpoint, base: str | Path) -> dict[str, Any]:
    """Return the keys of adapter_config.json that name the base: the repository it was downloaded from, or its path."""
    origin = ckpt.config.get("fvjax", {})
    return {"base_model_name_or_path": origin.get("source", str(base)), "revision": origin.get("revision")}


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


def _paths(sources: Mapping[str, Source]) -> set[str]:
    """Return the original's paths of all modules that can be adapted."""
    return {path for layers in _modules(sources).values() for paths in layers for path in paths}


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


def _scales(
    path: Path,
    config: AdapterConfig | None,
    ckpt: Checkpoint,
    sources: Mapping[str, Source],
    tensors: Mapping[tuple[str, str], Tensor],
) -> dict[str, float]:
    """Return the scale of each adapter by the original's module, those of the lowest rank first.

    Differences by rounding (alpha in proportion to rank) are removed.
    """
    ranks = {module: tensor.shape[0] for (module, half), tensor in tensors.items() if half == "A"}
    if config is None:
        return dict.fromkeys(ranks, _recorded_scale(path))
    paths = _paths(sources)
    if not set(ranks) <= paths:  # saved from the vision tower alone
        paths = {path.removeprefix(ckpt.prefix) for path in paths}
    config.check_targets(ranks, paths - set(ranks))
    scales = {m: config.scale(m, rank) for m, rank in sorted(ranks.items(), key=lambda item: item[1])}
    first = next(iter(scales.values()), 1.0)
    return {m: first if math.isclose(scale, first, rel_tol=1e-6) else scale for m, scale in scales.items()}


def _recorded_scale(path: Path) -> float:
    """Return the scale in a file's metadata; 1, with a warning, if there is none."""
    with safe_open(path, framework="np") as file:
        recorded = (file.metadata() or {}).get(SCALE)
    if recorded is None:
        logging.warning("%s: there is no %s beside it, so alpha = rank is assumed for all adapters", path, CONFIG)
        return 1.0
    try:
        scale = float(recorded)
    except ValueError:
        scale = math.nan
    if not 0 < scale < math.inf:
        raise ValueError(f"{path}: its metadata have {SCALE}={recorded!r}, which is no number above 0")
    return scale
