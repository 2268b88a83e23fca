"""Convert one file with the weights of an IResNet to a checkpoint directory, with the config.json that belongs to it.

Two families of names are known:
- insightface's (conv1.weight, layer1.0.bn1.weight, …): backbone.pth of arcface_torch, and IResNets of CVLFace. These
  networks read RGB.
- AdaFace's (input_layer.0.weight, body.0.res_layer.0.weight, …), which CVLFace shares. AdaFace trained on BGR, CVLFace
  on RGB (color_space in the model.yaml beside its weights), and the file does not say which.

Both are the same network. Two things are constants in AdaFace's: the first block of its first stage takes every second
pixel where an IResNet has a convolution with kernel size 1 and a batch norm, and its last batch norm has no scale and
bias. A network for BGR becomes one for RGB by reversing the input channels of its first convolution.
Sources: insightface's recognition/arcface_torch/backbones/iresnet.py, CVLFace's models/iresnet/model.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from weights_convert.iresnet import KIND
from weights_convert.read import PICKLES, Checkpoint, open_checkpoint, open_file
from weights_convert.torch_file import is_torch_file, open_torch
from weights_convert.write import by_size, new_directory, write_shards

CONFIG = "config.json"
CHANNELS = ("rgb", "bgr")
WRAPPERS = ("module.", "model.", "net.", "backbone.")  # prefixes that training programs add to all keys of a network
HEADS = r"head\.\w+"  # class centres beside AdaFace's network
BATCH_NORM_EPS = 1e-5
STAGE_KEY = r"layer(\d+)\.(\d+)\.conv2\.weight"
BLOCK = ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3")  # insightface's names of AdaFace's res_layer.0 to .5
# AdaFace's module -> insightface's.
OUTSIDE_BLOCKS = {
    "input_layer.0": "conv1",
    "input_layer.1": "bn1",
    "input_layer.2": "prelu",
    "output_layer.0": "bn2",
    "output_layer.3": "fc",
    "output_layer.4": "features",
}


class Array(Protocol):
    """A tensor of a file, read when it is indexed."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __getitem__(self, index: Any, /) -> np.ndarray: ...


def source_file(src: str) -> Path | None:
    """Return the file of weights that ``src`` means: a file, or the only one of a directory without config.json.

    None for anything else: a checkpoint directory, one of another model that lacks its config.json, a repository id, or
    a bare pickle. Raises ValueError for several files, or a damaged one.
    """
    path = Path(src)
    if path.is_dir() and not (path / CONFIG).exists():
        files = sorted(file for file in path.iterdir() if _is_weights(file))
        if len(files) > 1:
            raise ValueError(f"{path} has no {CONFIG} and several files of weights; give one, such as {files[0]}")
        return files[0] if files and _is_iresnet(_open(files[0])) else None
    return path if _is_weights(path) else None


def _open(path: Path) -> Mapping[str, Array]:
    """Open a safetensors file, or one that torch.save wrote -> its tensors by key."""
    return open_file(path) if path.suffix == ".safetensors" else open_torch(path)


def _is_iresnet(keys: Collection[str]) -> bool:
    """Return whether keys are insightface's or AdaFace's, with whatever prefix."""
    return any(key.endswith(("layer1.0.conv2.weight", "input_layer.0.weight")) for key in keys)


def _is_weights(path: Path) -> bool:
    return path.is_file() and (path.suffix == ".safetensors" or (path.suffix in PICKLES and is_torch_file(path)))


def convert_iresnet(src: Path, dst: str | Path, channels: str | None = None) -> Checkpoint:
    """Write the new directory ``dst`` with insightface's keys and config.json from one file, and open it.

    ``src`` is a safetensors file, or one that torch.save wrote; dtypes stay. ``dst`` appears complete or not at all.
    ``channels``: "rgb" or "bgr", the order that the network was trained on; None means "rgb" for insightface's names.
    The network in ``dst`` always reads RGB.

    Raises ValueError: ``dst`` exists; another network; a missing, unexpected or misshapen tensor; AdaFace's names
    without ``channels``; the errors of :func:`open_torch`.
    """
    tensors = _open(src)
    heads = [key for key in tensors if re.fullmatch(HEADS, key)]
    tensors = _without_wrappers({key: tensor for key, tensor in tensors.items() if key not in heads})
    if "input_layer.0.weight" in tensors:
        if channels is None:
            raise ValueError(
                f"{src}: has AdaFace's names, which do not say the order of colours; add --channels=bgr for AdaFace's "
                "own weights, or the color_space of CVLFace's model.yaml"
            )
        tensors = _with_insightfaces_names(src, tensors)
    if "conv1.weight" not in tensors or "layer1.0.conv2.weight" not in tensors:
        example = next(iter(sorted(tensors)), None)
        raise ValueError(f"{src}: its keys, such as {example!r}, are neither insightface's nor AdaFace's IResNet")
    arrays: dict[str, Callable[[], np.ndarray]] = {key: partial(_read, tensor) for key, tensor in tensors.items()}
    if channels == "bgr":
        arrays["conv1.weight"] = partial(_read, tensors["conv1.weight"], (slice(None), slice(None, None, -1)))
    sizes = {key: math.prod(tensor.shape) * tensor.dtype.itemsize for key, tensor in tensors.items()}
    with new_directory(Path(dst)) as temporary:
        (temporary / CONFIG).write_text(json.dumps(sizes_of(src, tensors), indent=1))
        write_shards(temporary, by_size(arrays, sizes))
        try:
            open_checkpoint(temporary, KIND)
        except ValueError as error:
            raise ValueError(f"{src}: {str(error).replace(f'{temporary}', str(src))}") from None
    ckpt = open_checkpoint(dst, KIND)
    return replace(ckpt, ignored=[*ckpt.ignored, *heads])


def _read(tensor: Array, index: tuple[slice, ...] = ()) -> np.ndarray:
    return np.asarray(tensor[...])[index]


def sizes_of(src: Path, tensors: Mapping[str, Array]) -> dict[str, Any]:
    """Return config.json of an IResNet with insightface's keys: what its tensors say about its depth and widths."""
    depths: dict[int, int] = {}
    widths: dict[int, int] = {}
    for key, tensor in tensors.items():
        if match := re.fullmatch(STAGE_KEY, key):
            stage = int(match[1])
            depths[stage] = max(depths.get(stage, 0), int(match[2]) + 1)
            widths[stage] = int(tensor.shape[0])
    if sorted(depths) != list(range(1, len(depths) + 1)) or "fc.weight" not in tensors:
        raise ValueError(
            f"{src}: it has stages {sorted(depths)}, or no fc.weight; an IResNet has stages from 1 and one"
        )
    return {
        "architectures": ["IResNet"],
        "layers": [depths[stage] for stage in sorted(depths)],
        "widths": [widths[stage] for stage in sorted(widths)],
        "num_features": int(tensors["fc.weight"].shape[0]),
    }


def _without_wrappers(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Remove prefixes that all keys share: DistributedDataParallel's, and those of classes that hold the network."""
    stripped = dict(tensors)
    while prefix := next((p for p in WRAPPERS if stripped and all(key.startswith(p) for key in stripped)), None):
        stripped = {key.removeprefix(prefix): tensor for key, tensor in stripped.items()}
    return stripped


def _with_insightfaces_names(src: Path, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Return a network with AdaFace's names under insightface's, with the constants that it lacks."""
    if other := sorted(key for key in tensors if ".se_block." in key or re.fullmatch(r".*\.res_layer\.[6-9]\..*", key)):
        raise ValueError(f"{src}: {other[0]}: its blocks are not an IResNet's (squeeze and excitation, or bottlenecks)")
    blocks = _blocks_by_stage(src, tensors)
    named: dict[str, Array] = {}
    for key, tensor in tensors.items():
        module, leaf = key.rsplit(".", 1)
        if match := re.fullmatch(r"body\.(\d+)\.(res_layer|shortcut_layer)\.(\d)", module):
            part = BLOCK[int(match[3])] if match[2] == "res_layer" else f"downsample.{match[3]}"
            module = f"{blocks[int(match[1])]}.{part}"
        elif module in OUTSIDE_BLOCKS:
            module = OUTSIDE_BLOCKS[module]
        else:
            raise ValueError(f"{src}: {key} is no part of AdaFace's IResNet")
        named[f"{module}.{leaf}"] = tensor
    return {**_constants(named), **named}


def _blocks_by_stage(src: Path, tensors: Mapping[str, Array]) -> dict[int, str]:
    """Return insightface's name of each block of AdaFace's body; a stage begins where the width changes."""
    numbers = sorted({int(match[1]) for key in tensors if (match := re.match(r"body\.(\d+)\.", key))})
    widths = []
    for number in numbers:
        last = tensors.get(f"body.{number}.res_layer.4.weight")
        if last is None or len(last.shape) != 4 or f"body.{number}.res_layer.5.weight" not in tensors:
            problem = f"body.{number} is not batch norm, convolution, batch norm, PReLU, convolution and batch norm"
            raise ValueError(f"{src}: {problem}, as an IResNet's blocks are (face.evoLVe's have one batch norm less)")
        widths.append(last.shape[0])
    names: dict[int, str] = {}
    stage, first = 0, 0
    for i, number in enumerate(numbers):
        if i == 0 or widths[i] != widths[i - 1]:
            stage, first = stage + 1, i
        names[number] = f"layer{stage}.{i - first}"
    return names


def _constants(named: Mapping[str, Array]) -> dict[str, Array]:
    """Return the tensors of an IResNet that AdaFace's network has as constants.

    The first block's shortcut is the identity at every second pixel: its batch norm multiplies by what it divides by.
    """
    dtype = named["conv1.weight"].dtype
    width, features = named["layer1.0.bn1.weight"].shape[0], named["fc.weight"].shape[0]

    def norm(module: str, size: int, scale: float) -> dict[str, Array]:
        values = {"weight": scale, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
        return {f"{module}.{leaf}": np.full(size, value, dtype) for leaf, value in values.items()}

    shortcut = {"layer1.0.downsample.0.weight": np.eye(width, dtype=dtype)[:, :, None, None]}
    shortcut |= norm("layer1.0.downsample.1", width, math.sqrt(1 + BATCH_NORM_EPS))
    last = {key: value for key, value in norm("features", features, 1.0).items() if "running" not in key}
    return {**shortcut, **last}
