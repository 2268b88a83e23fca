"""Read a checkpoint directory lazily: in Hugging Face layout or converted, from safetensors files only."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401 (importing it teaches numpy, and so safetensors, the name bfloat16)
import numpy as np
from safetensors import SafetensorError, safe_open

from fvjax import trees
from fvjax.models import encoder
from fvjax.models.clip import build as build_clip
from fvjax.models.decoder import Decoder
from weights_convert import (
    clip,
    clip_vision,
    internlm2,
    internvit,
    internvit_hf,
    internvl,
    internvl_hf,
    iresnet,
    llama,
    llava,
    llava_hf,
)
from weights_convert.rules import KEEP, Source, check, join, plan, split
from weights_convert.torch_file import open_torch

FORMAT = 1
INDEX = "model.safetensors.index.json"
TORCH_FILE = "pytorch_model.bin"
TORCH_INDEX = f"{TORCH_FILE}.index.json"
# One conversion table per family. If two know an architecture, the first is used unless a kind is asked for. A table
# may have a function `settle`, for attributes that the keys of the file decide; `beside` and `tower_files`, for towers
# that are described or stored beside an original; and `notes`, for what a user should know about a model.
TABLES: tuple[ModuleType, ...] = (
    *(iresnet, internvit, internvl, internvit_hf, internvl_hf, internlm2, llama),
    *(clip_vision, clip, llava, llava_hf),
)
PUBLISHED_BY_TORCH = (clip_vision, clip, llava, llava_hf)  # some of their checkpoints exist as files of torch.save only
REFUSED = {  # architecture -> why it is not read
    "VideoLlavaForConditionalGeneration": "its conversion dropped the temporal layers of the video tower, and its "
    "activation is not the original's; use the original checkpoint (LlavaLlamaForCausalLM)",
}
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


class Tensor:
    """One tensor of a safetensors file; indexing reads only the indexed part."""

    def __init__(self, path: Path, key: str, handle: Any):
        self._slice = handle.get_slice(key)
        self.path = path
        self.key = key
        self.shape = tuple(self._slice.get_shape())
        if self._slice.get_dtype() not in _DTYPES:
            raise ValueError(f"{path}: {key} is of dtype {self._slice.get_dtype()}; known are {', '.join(_DTYPES)}")
        self.dtype = np.dtype(_DTYPES[self._slice.get_dtype()])

    def __getitem__(self, index) -> np.ndarray:
        return self._slice[index if self.shape else ()]  # a single number has no axis to slice


_NUMBERS = {"F": ("float", (16, 32, 64)), "I": ("int", (8, 16, 32, 64)), "U": ("uint", (8, 16, 32, 64))}
_DTYPES = {f"{letter}{bits}": f"{name}{bits}" for letter, (name, sizes) in _NUMBERS.items() for bits in sizes}
_DTYPES |= {"BF16": "bfloat16", "BOOL": "bool"}


class Leaf:
    """One fvjax array in a checkpoint: has ``shape`` and ``dtype``, supports slicing and numpy.asarray.

    A stacked leaf reads only the indexed layers. A slice is read alone only if the tensor's layout is the original's.
    """

    def __init__(self, source: Source, tensors: list[Tensor], shape: tuple[int, ...]):
        self._source = source
        self._tensors = tensors
        self.shape = tuple(shape)
        dtypes = {t.dtype for t in tensors}
        if len(dtypes) > 1:
            raise ValueError(f"{tensors[0].path}: {tensors[0].key} and its other layers differ in dtype: {dtypes}")
        self.dtype = tensors[0].dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def __getitem__(self, index) -> np.ndarray:
        index = index if isinstance(index, tuple) else (index,)
        if not self._source.stacked:
            return self._read(0, index)
        layers, rest = (index or (slice(None),))[0], index[1:]
        numbers = range(self.shape[0])[layers]
        if isinstance(numbers, int):
            return self._read(numbers, rest)
        first = self._read(numbers[0], rest)
        out = np.empty((len(numbers), *first.shape), self.dtype)  # np.stack would need memory for every layer twice
        for i, layer in enumerate(numbers):
            out[i] = self._read(layer, rest)
        return out

    def _read(self, layer: int, index) -> np.ndarray:
        pieces = self._tensors[layer * self._source.pieces : (layer + 1) * self._source.pieces]
        if self._source.transform is KEEP and len(pieces) == 1:
            return np.asarray(pieces[0][index or (slice(None),)])
        whole = pieces[0][:] if len(pieces) == 1 else np.concatenate([piece[:] for piece in pieces])
        return self._source.transform.to_fvjax(whole)[index]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[(slice(None),) * self.ndim], dtype)


@dataclass
class Checkpoint:
    """An open checkpoint directory."""

    path: Path
    config: dict[str, Any]  # config.json
    kind: str  # "iresnet" | "vision_transformer" | "decoder" | "vlm" | "llava"
    model_config: dict[str, Any]  # attributes of the network
    prefix: str  # of the original's keys
    sources: dict[str, Source]  # where each array is stored in the original's layout
    params: dict[str, Leaf]  # by names such as params/blocks/mlp/fc1/kernel and batch_stats/…
    tensors: dict[str, Tensor]  # as stored in this directory
    ignored: list[str]  # keys that the network does not need
    reasons: dict[str, str] = field(default_factory=dict)  # why, of those keys whose table says it
    towers: dict[str, Any] = field(default_factory=dict)  # configurations of towers, from files beside config.json
    notes: list[str] = field(default_factory=list)  # what a user should know about the model

    @property
    def converted(self) -> bool:
        """Whether the directory has fvjax names and layouts; otherwise it is an original."""
        return "fvjax" in self.config


def build(kind: str, model_config: Mapping[str, Any], **changes: Any) -> Any:
    """Build the network of a checkpoint; ``changes`` override single attributes (dtype=…, drop_path=…)."""
    if kind == "decoder":  # it embeds nothing, so it is no kind of encoder
        return Decoder(**{**model_config, **changes})
    if kind == "clip":  # it embeds pictures and texts
        return build_clip(model_config, **changes)
    return encoder.KINDS[kind].build(model_config, **changes)


def expected_arrays(model: Any, input_shape: Sequence[int]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return every array that the network has, with its shape, without computing anything."""
    return trees.flatten(jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(input_shape))))


def read(path: str | Path, kind: str | None = None) -> tuple[str, dict[str, Any], dict[str, Leaf]]:
    """Read a Hugging Face or converted directory -> (kind, attributes of the network, flat dict name -> lazy array).

    Names start with ``params/`` or ``batch_stats/``. See :func:`open_checkpoint` for ``kind`` and the errors.
    """
    ckpt = open_checkpoint(path, kind)
    return ckpt.kind, ckpt.model_config, ckpt.params


def open_checkpoint(path: str | Path, kind: str | None = None, *, torch_files: bool = False) -> Checkpoint:
    """Open a directory with config.json and safetensors files; only headers are read.

    ``torch_files``: of CLIP, LanguageBind and the models of the LLaVA kind, also read pytorch_model.bin and its shards,
    by a reader that runs nothing in them. They are slow to read piece by piece, so only a conversion does that.

    ``kind`` selects how to open it if there is a choice: an InternVL model can be opened as "vlm", a CLIP model as
    "clip", or each as "vision_transformer" for its tower alone. None means the kind that the directory was converted
    as, and the tower of an original.

    Raises ValueError: not a directory, no or broken config.json, an unknown architecture, no safetensors (pickle files
    are never opened), a shard or key missing, an unknown key, a wrong shape.
    """
    path = Path(path)
    if path.is_file():
        problem = _pickles_are_refused([str(path)]) if path.suffix in PICKLES else f"{path} is a file"
        raise ValueError(f"{problem}; give the directory that holds config.json and *.safetensors")
    if not path.exists():
        raise ValueError(
            f"{path}: no such directory; `python -m weights_convert --src=OWNER/NAME --dst={path}` downloads a "
            "checkpoint from the Hugging Face Hub and converts it (for example --src=OpenGVLab/InternVL2-2B; "
            "docs/other_files.md lists what can be read)"
        )
    config = load_json(path / "config.json")
    converted = config.get("fvjax")
    table, stored_kind = _choose_table(path, config, kind)
    opened_kind: str = table.KIND

    towers: dict[str, Any] = {}
    if hasattr(table, "beside"):
        towers = converted["towers"] if converted else table.beside(path, config)
        config = {**config, "towers": towers}
    model_config = table.model_config(config, f"{path}/config.json")
    config.pop("towers", None)
    tensors: Any = _open_torch_files(path) if torch_files and table in PUBLISHED_BY_TORCH else None
    tensors = _open_tensors(path) if tensors is None else tensors
    if towers and not converted:
        tensors |= _open_towers(table.tower_files(path, config, tensors))
    if hasattr(table, "settle"):
        model_config = table.settle(model_config, config, tensors)
    model = build(opened_kind, model_config)
    arrays = expected_arrays(model, table.input_shape(model))
    # The tower of a converted VLM has the prefix that the original's keys have.
    prefix = converted["prefix"] if converted and opened_kind == stored_kind else table.prefix(config, tensors)
    sources = plan(table.rules(model, prefix, config), arrays)
    if converted:
        stored, ignored = _converted_sources(arrays, is_part=opened_kind != stored_kind)
    else:
        stored, ignored = sources, table.ignored(model, prefix, config)
    unneeded = check(stored, tensors, ignored, str(path))
    params = {n: Leaf(s, [tensors[k] for k in s.keys], arrays[n].shape) for n, s in stored.items()}
    reasons = _reasons(ignored, unneeded) if isinstance(ignored, Mapping) else {}
    notes = table.notes(model_config, config) if hasattr(table, "notes") else []
    opened = (path, config, opened_kind, model_config, prefix, sources, params, tensors, unneeded)
    return Checkpoint(*opened, reasons, towers, notes)


def _open_towers(files: Mapping[Path, str]) -> dict[str, Tensor]:
    """Open towers in files of their own, in which their keys begin with vision_model., under other prefixes."""
    inner = "vision_model."
    return {
        start + key.removeprefix(inner): tensor
        for file, start in files.items()
        for key, tensor in open_file(file).items()
        if key.startswith(inner)
    }


def _reasons(ignored: Mapping[str, str], unneeded: Sequence[str]) -> dict[str, str]:
    """Return why each unneeded key is not read."""
    return {key: next(why for pattern, why in ignored.items() if re.fullmatch(pattern, key)) for key in unneeded}


def _choose_table(path: Path, config: Mapping[str, Any], kind: str | None) -> tuple[ModuleType, str]:
    """Choose the conversion table by config.json and ``kind`` -> (table, the kind that the directory holds)."""
    converted = config.get("fvjax")
    if converted is not None and converted.get("format") != FORMAT:
        raise ValueError(f"{path}/config.json: fvjax format {converted.get('format')!r}, this version reads {FORMAT}")
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ValueError(f"{path}/config.json: architectures={architectures!r} is not a list of names")
    if refused := next((name for name in architectures if name in REFUSED), None):
        raise ValueError(f"{path}/config.json: {refused} is not read: {REFUSED[refused]}")
    tables = {t.KIND: t for t in reversed(TABLES) if set(architectures) & set(t.ARCHITECTURES)}
    if not tables:
        known = sorted({name for t in TABLES for name in t.ARCHITECTURES})
        raise ValueError(f"{path}/config.json: unknown architectures {architectures}; known are {known}")
    stored: str = converted["kind"] if converted and "kind" in converted else [*tables][-1]
    kind = kind or stored
    if kind not in tables or (converted and kind != stored and stored != "vlm"):
        raise ValueError(f"{path} holds a {stored}, and {kind!r} was asked for")
    return tables[kind], stored


def _converted_sources(arrays: Mapping[str, Any], is_part: bool) -> tuple[dict[str, Source], list[str]]:
    """Return the sources of a converted directory and regexes of its unneeded keys; ``is_part``: a VLM's tower only."""
    prefix, ignored = ("params/vision/", ["params/(projector|decoder)/.*"]) if is_part else ("params/", [])
    keys = {n: n.replace("params/", prefix, 1) for n in arrays}
    return {n: Source((keys[n],), False, KEEP, tuple(leaf.shape)) for n, leaf in arrays.items()}, ignored


# (an fvjax array, or one layer of a stack; that layer or None) -> the array to write in its place
Change = Callable[[np.ndarray, int | None], np.ndarray]


def originals(ckpt: Checkpoint, changes: Mapping[str, Change]) -> dict[str, Callable[[], np.ndarray]]:
    """Return for every key of the original a function that reads it, in the original's layout and dtype.

    The directory may be an original or a converted one. ``changes``: by fvjax name. Keys that the network does not
    need are left out.
    """
    # Several fvjax arrays may be parts of one tensor, and several tensors pieces of one array.
    parts: dict[str, list[tuple[str, int | None, int]]] = {}
    for name, source in ckpt.sources.items():
        for i, keys in enumerate(source.layers):
            for piece, key in enumerate(keys):
                parts.setdefault(key, []).append((name, i if source.stacked else None, piece))

    def read_part(name, layer, piece):
        value = ckpt.params[name][(slice(None),) if layer is None else layer]
        if name in changes:
            value = changes[name](value, layer).astype(value.dtype, copy=False)
        source = ckpt.sources[name]
        return split(source.transform.to_original(value), source.pieces)[piece]

    def reader(key):
        if key in ckpt.tensors and not any(name in changes for name, *_ in parts[key]):
            return lambda: ckpt.tensors[key][:]
        return lambda: join([read_part(*part) for part in parts[key]])

    return {key: reader(key) for key in parts}


def hashes(ckpt: Checkpoint) -> dict[str, str]:
    """Compute the sha256 of a model's weights by part ("vision", "projector", "decoder"), which adapters refer to.

    It is the same for the original and the converted directory, for any shards, for a tower alone or in a VLM, and for
    the remote-code and the -hf layout of an InternVL model with the same decoder class: q, k and v of the -hf tower are
    hashed as the one tensor that they are in the other.
    """
    readers = originals(ckpt, {})
    digests = {}
    for name in sorted(ckpt.sources):
        part = (
            name.split("/")[1]
            if ckpt.kind in ("vlm", "llava", "clip")
            else {"vision_transformer": "vision"}.get(ckpt.kind, ckpt.kind)
        )
        digest = digests.setdefault(part, hashlib.sha256())
        for keys in ckpt.sources[name].layers:
            if keys[0] in readers:  # otherwise it was hashed with the first part of its tensor
                pieces = [readers.pop(key)() for key in keys]
                value = np.ascontiguousarray(pieces[0] if len(pieces) == 1 else np.concatenate(pieces))
                digest.update(f"{value.dtype.name}{value.shape}".encode())
                digest.update(value.view(np.uint8))
    return {part: digest.hexdigest() for part, digest in digests.items()}


def load_json(path: Path) -> dict[str, Any]:
    """Load a JSON object from a file. Raises ValueError if it is missing or anything else."""
    try:
        value = json.loads(
            path.read_text(encoding="utf-8-sig")
        )  # editors on Windows begin a file with a byte-order mark
    except FileNotFoundError:
        remedy = f"python -m weights_convert --src={path.parent} --dst=DIR writes it for an IResNet"
        raise ValueError(f"{path} is missing; a checkpoint directory needs it ({remedy})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return value


def open_file(path: Path) -> dict[str, Tensor]:
    """Open one safetensors file -> its tensors by key. Raises ValueError if it is missing or not safetensors."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; download or copy the whole directory again")
    try:
        handle = safe_open(path, framework="np")  # stays open as long as its tensors do
        return {key: Tensor(path, key, handle) for key in handle.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({error}); "
            "pickles are not read: convert them to safetensors first. Copy a truncated file again"
        ) from None


def _pickles_are_refused(pickles: list[str]) -> str:
    refusal = f"{', '.join(pickles)} can run code when opened, so pickles are not read: convert to safetensors first"
    return f"{refusal} (for an IResNet, python -m weights_convert --src={pickles[0]} --dst=DIR does that)"


def _only_file(path: Path) -> Path:
    """Return the file that has all tensors of a directory without an index. Raises ValueError if there is none."""
    for name in ("model.safetensors", "model-00001-of-00001.safetensors"):
        if (path / name).exists():
            return path / name
    problem = f"{path} has neither model.safetensors nor {INDEX}"
    if shards := sorted(file.name for file in path.glob("model-*-of-*.safetensors")):
        raise ValueError(f"{problem}: {shards[0]} is one of several files, which the index lists; copy it too")
    if others := sorted(file.name for file in path.glob("*.safetensors") if not file.name.startswith("adapter")):
        raise ValueError(f"{problem}; if {others[0]} has all weights, name it model.safetensors")
    if pickles := sorted(file.name for file in path.iterdir() if file.suffix in PICKLES):
        problem += f"; {_pickles_are_refused(pickles)}"
    raise ValueError(problem)


def _open_tensors(path: Path) -> dict[str, Tensor]:
    """Open all tensors of a directory: those of the shards that the index names, or of its only file."""
    return _open_shards(path, INDEX, open_file) if (path / INDEX).exists() else open_file(_only_file(path))


def _open_shards(path: Path, index: str, open_one: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """Open the tensors of all shards that an index file names."""
    weight_map = load_json(path / index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ValueError(f"{path / index} has no weight_map")
    tensors: dict[str, Any] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise ValueError(f"{path / index}: shard {shard!r} is not a plain file name")
        indexed = {key for key, file in weight_map.items() if file == shard}
        stored = open_one(path / shard)
        if set(stored) != indexed:
            different = sorted(set(stored) ^ indexed)
            raise ValueError(f"{path / shard} and {index} disagree about {len(different)} keys, first {different[0]!r}")
        tensors.update(stored)
    return tensors


def _open_torch_files(path: Path) -> dict[str, Any] | None:
    """Open the files of torch.save in a directory without safetensors, running nothing in them; None: others are there.

    Raises ValueError as :func:`weights_convert.torch_file.open_torch`.
    """
    if any(path.glob("*.safetensors")):
        return None
    if (path / TORCH_INDEX).is_file():
        return _open_shards(path, TORCH_INDEX, open_torch)
    return dict(open_torch(path / TORCH_FILE)) if (path / TORCH_FILE).is_file() else None
