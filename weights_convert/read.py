"""Read a checkpoint directory: Hugging Face layout or our own converted one, safetensors only, lazily."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401 (importing it teaches numpy, and so safetensors, the name bfloat16)
import numpy as np
from safetensors import SafetensorError, safe_open

from fvjax import trees
from fvjax.models import vlm
from fvjax.models.decoder import Decoder
from fvjax.models.iresnet import IResNet
from fvjax.models.vision_transformer import VisionTransformer
from weights_convert import internlm2, internvit, internvl, iresnet, llama
from weights_convert.rules import KEEP, Source, check, join, plan

FORMAT = 1
INDEX = "model.safetensors.index.json"
# where two know an architecture, the first is meant unless a kind is asked for
TABLES: tuple[ModuleType, ...] = (iresnet, internvit, internvl, internlm2, llama)
MODULES = {"iresnet": IResNet, "vision_transformer": VisionTransformer, "decoder": Decoder}
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


class Tensor:
    """One tensor of a safetensors file; indexing reads only what is asked for."""

    def __init__(self, path: Path, key: str, handle: Any):
        self._slice = handle.get_slice(key)
        self.path, self.key = path, key
        self.shape = tuple(self._slice.get_shape())
        if self._slice.get_dtype() not in _DTYPES:
            raise ValueError(f"{path}: {key} is of dtype {self._slice.get_dtype()}; known are {', '.join(_DTYPES)}")
        self.dtype = np.dtype(_DTYPES[self._slice.get_dtype()])

    def __getitem__(self, index) -> np.ndarray:
        return self._slice[index]


_KINDS = {"F": ("float", (16, 32, 64)), "I": ("int", (8, 16, 32, 64)), "U": ("uint", (8, 16, 32, 64))}
_DTYPES = {f"{kind}{bits}": f"{name}{bits}" for kind, (name, sizes) in _KINDS.items() for bits in sizes}
_DTYPES |= {"BF16": "bfloat16", "BOOL": "bool"}


class Leaf:
    """One array of ours inside a checkpoint: ``shape``, ``dtype``, slicing, numpy.asarray.

    A stacked leaf reads only the layers asked for; within a tensor whose layout is kept, only the slice.
    """

    def __init__(self, source: Source, tensors: list[Tensor], shape: tuple[int, ...]):
        self._source, self._tensors, self.shape = source, tensors, tuple(shape)
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
            return self._one(self._tensors[0], index)
        layers, rest = (index or (slice(None),))[0], index[1:]
        if not isinstance(layers, slice):
            return self._one(self._tensors[layers], rest)
        tensors = self._tensors[layers]
        first = self._one(tensors[0], rest)
        out = np.empty((len(tensors), *first.shape), self.dtype)  # np.stack would hold every layer twice
        for i, tensor in enumerate(tensors):
            out[i] = self._one(tensor, rest)
        return out

    def _one(self, tensor: Tensor, index) -> np.ndarray:
        if self._source.transform is KEEP:
            return np.asarray(tensor[index or (slice(None),)])
        return self._source.transform.to_ours(tensor[:])[index]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[(slice(None),) * self.ndim], dtype)


@dataclass
class Checkpoint:
    """What a directory holds. ``params`` has names such as ``params/blocks/mlp/fc1/kernel`` and ``batch_stats/…``."""

    path: Path
    config: dict[str, Any]  # config.json
    kind: str  # "iresnet" | "vision_transformer" | "decoder" | "vlm"
    model_config: dict[str, Any]  # keyword arguments of the module
    prefix: str  # of the original's keys
    sources: dict[str, Source]  # where each array is in the original's layout
    params: dict[str, Leaf]
    tensors: dict[str, Tensor]  # as stored
    ignored: list[str]  # keys nothing here needs

    @property
    def converted(self) -> bool:
        """Whether the directory holds our names and layouts, else it is the original."""
        return "fvjax" in self.config


def build(kind: str, model_config: Mapping[str, Any], **changes: Any) -> Any:
    """The module a checkpoint belongs to; ``changes`` override single attributes (dtype=…, drop_path=…)."""
    if kind == "vlm":
        return vlm.build(model_config, **changes)
    return MODULES[kind](**{**model_config, **changes})


def expected(kind: str, model_config: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Every array the module has, with shapes, without computing anything."""
    model = build(kind, model_config)
    if kind == "decoder":
        inputs = (1, 1, model.width)
    else:
        tower = model.vision if kind == "vlm" else model
        inputs = (1, *[tower.image_size if kind != "iresnet" else 112] * 2, 3)
    return trees.flatten(jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(inputs))))


def read(path: str | Path, kind: str | None = None) -> tuple[str, dict[str, Any], dict[str, Leaf]]:
    """Read a Hugging Face or converted directory -> (kind, model configuration, flat dict name -> lazy array).

    Names start with ``params/`` or ``batch_stats/``. See :func:`open_checkpoint` for ``kind`` and the errors.
    """
    ckpt = open_checkpoint(path, kind)
    return ckpt.kind, ckpt.model_config, ckpt.params


def open_checkpoint(path: str | Path, kind: str | None = None) -> Checkpoint:
    """Open a directory with config.json and safetensors files; nothing but headers is read.

    ``kind``: what to open it as, where there is a choice: an InternVL model is "vlm" or its "vision_transformer"
    alone. None means what the directory was converted as, and for one not converted the tower.

    Raises ValueError: not a directory, no or broken config.json, an architecture not known here, no safetensors (pickle
    files are never opened), a shard or key missing, a key nothing knows, a wrong shape.
    """
    path = Path(path)
    if path.is_file():
        why = _refused([str(path)]) if path.suffix in PICKLES else f"{path} is a file"
        raise ValueError(f"{why}; give the directory that holds config.json and *.safetensors")
    config = load_json(path / "config.json")
    converted = config.get("fvjax")
    if converted is not None and converted.get("format") != FORMAT:
        raise ValueError(f"{path}/config.json: fvjax format {converted.get('format')!r}, this version reads {FORMAT}")
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ValueError(f"{path}/config.json: architectures={architectures!r} is not a list of names")
    tables = {t.KIND: t for t in reversed(TABLES) if set(architectures) & set(t.ARCHITECTURES)}
    if not tables:
        known = sorted({name for t in TABLES for name in t.ARCHITECTURES})
        raise ValueError(f"{path}/config.json: unknown architectures {architectures}; known are {known}")
    written: str = converted["kind"] if converted and "kind" in converted else [*tables][-1]
    kind = kind or written
    if kind not in tables or (converted and kind != written and written != "vlm"):
        raise ValueError(f"{path} holds a {written}, and {kind!r} was asked for")
    table = tables[kind]
    model_config = table.model_config(config, f"{path}/config.json")
    model = build(kind, model_config)
    names = expected(kind, model_config)
    tensors = _tensors(path)
    # a tower out of a converted VLM has the prefix that the original's keys have
    prefix = converted["prefix"] if converted and kind == written else table.prefix(config, tensors)
    sources = plan(table.rules(model, prefix, config), names)
    stored, ignored = sources, table.ignored(model, prefix, config)
    if converted:
        inner, ignored = ("params/", []) if kind == written else ("params/vision/", ["params/(projector|decoder)/.*"])
        where = {n: n.replace("params/", inner, 1) for n in names}
        stored = {n: Source((where[n],), False, KEEP, tuple(leaf.shape)) for n, leaf in names.items()}
    unneeded = check(stored, tensors, ignored, str(path))
    params = {n: Leaf(s, [tensors[k] for k in s.keys], names[n].shape) for n, s in stored.items()}
    return Checkpoint(path, config, kind, model_config, prefix, sources, params, tensors, unneeded)


# (one of our arrays, or one layer of a stack; its layer or None) -> what is to stand in its place
Change = Callable[[np.ndarray, int | None], np.ndarray]


def originals(ckpt: Checkpoint, changes: Mapping[str, Change]) -> dict[str, Callable[[], np.ndarray]]:
    """Key of the original -> function that reads it in the original's layout and dtype, from either kind of directory.

    ``changes``: by our name. Keys that the model does not need are not there.
    """
    parts: dict[str, list[tuple[str, int | None]]] = {}  # several of ours may be parts of one of theirs
    for name, source in ckpt.sources.items():
        for i, key in enumerate(source.keys):
            parts.setdefault(key, []).append((name, i if source.stacked else None))

    def piece(name, layer):
        value = ckpt.params[name][(slice(None),) if layer is None else layer]
        if name in changes:
            value = changes[name](value, layer).astype(value.dtype, copy=False)
        return ckpt.sources[name].transform.to_theirs(value)

    def reader(key):
        if not ckpt.converted and not any(name in changes for name, _ in parts[key]):
            return lambda: ckpt.tensors[key][:]
        return lambda: join([piece(*part) for part in parts[key]])

    return {key: reader(key) for key in parts}


def hashes(ckpt: Checkpoint) -> dict[str, str]:
    """sha256 of a model's weights by part ("vision", "projector", "decoder"), to know again what adapters belong to.

    The same for the original and the converted directory, for any shards, and for a tower alone and within a whole.
    """
    read, digests = originals(ckpt, {}), {}
    for name in sorted(ckpt.sources):
        part = name.split("/")[1] if ckpt.kind == "vlm" else {"vision_transformer": "vision"}.get(ckpt.kind, ckpt.kind)
        digest = digests.setdefault(part, hashlib.sha256())
        for key in ckpt.sources[name].keys:
            if key in read:  # not the second part of a tensor
                value = np.ascontiguousarray(read.pop(key)())
                digest.update(f"{value.dtype.name}{value.shape}".encode())
                digest.update(value.view(np.uint8))
    return {part: digest.hexdigest() for part, digest in digests.items()}


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. ValueError if it is missing or anything else."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} is not there; a checkpoint directory needs it") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return value


def open_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file. ValueError if it is missing or another format (a pickle, cut short)."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; download or copy the whole directory again")
    try:
        handle = safe_open(path, framework="np")  # stays open as long as its tensors do
        return {key: Tensor(path, key, handle) for key in handle.keys()}  # noqa: SIM118
    except SafetensorError as error:
        told = f"{path} is not a complete safetensors file ({error})"
        raise ValueError(f"{told}; pickles are not read, and what was cut short is to be copied again") from None


def _refused(pickles: list[str]) -> str:
    return f"{', '.join(pickles)} can run code when opened, so pickles are not read: convert to safetensors first"


def _tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a directory: the shards the index names, else every *.safetensors' single file."""
    if not (path / INDEX).exists():
        if not (path / "model.safetensors").exists():
            pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES)
            found = f"; {_refused(pickles)}" if pickles else ""
            raise ValueError(f"{path} has neither model.safetensors nor {INDEX}{found}")
        return open_file(path / "model.safetensors")
    where = load_json(path / INDEX).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(shard, str) for shard in where.values()):
        raise ValueError(f"{path / INDEX} has no weight_map")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(where.values())):
        if Path(shard).name != shard:
            raise ValueError(f"{path / INDEX}: shard {shard!r} is not a plain file name")
        named = {key for key, file in where.items() if file == shard}
        found = open_file(path / shard)
        if set(found) != named:
            odd = sorted(set(found) ^ named)
            raise ValueError(f"{path / shard} and {INDEX} disagree about {len(odd)} keys, first {odd[0]!r}")
        tensors.update(found)
    return tensors
