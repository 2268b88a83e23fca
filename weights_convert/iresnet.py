"""IResNet: insightface's keys (conv1.weight, layer1.0.bn1.weight, …)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fvjax.models.iresnet import IResNet
from weights_convert.options import Options
from weights_convert.rules import CONV, KEEP, Rule, Transform

ARCHITECTURES = ("IResNet",)
KIND = "iresnet"


def model_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """config.json -> keyword arguments of fvjax.models.iresnet.IResNet.

    ValueError: a key is missing, has a value that makes no sense, or is not known here.
    """
    options = Options(config, where)
    options.get("architectures")
    sizes = {"layers": options.need("layers"), "widths": options.get("widths")}
    out: dict[str, Any] = {"num_features": options.count("num_features")}
    for key, value in sizes.items():
        if value is None:
            continue
        right = isinstance(value, list | tuple) and all(type(n) is int and n > 0 for n in value)
        if not right or not value:
            raise ValueError(f"{where}: {key}={value!r} is not a list of whole numbers of at least 1")
        out[key] = tuple(value)
    stages = len(out.get("widths", IResNet.widths))
    if len(out["layers"]) != stages:
        raise ValueError(f"{where}: layers={sizes['layers']!r} has not as many stages as there are widths, {stages}")
    options.finish_model()
    return out


def _fc(channels: int) -> Transform:
    """torch flattens features as (C, H, W), fvjax as (H, W, C)."""

    def to_ours(x):
        side = round((x.shape[1] // channels) ** 0.5)
        return x.reshape(-1, channels, side, side).transpose(2, 3, 1, 0).reshape(-1, x.shape[0])

    def to_theirs(x):
        side = round((x.shape[0] // channels) ** 0.5)
        return x.reshape(side, side, channels, -1).transpose(3, 2, 0, 1).reshape(x.shape[1], -1)

    return Transform(to_ours, to_theirs)


def rules(model: Any, prefix: str, config: Mapping[str, Any]) -> list[Rule]:
    """The table for one model."""
    del prefix, config
    paths = {  # ours -> theirs: a number is a level of its own there
        r"layer(\d+)_(\d+)/downsample_(\d)": "layer{0}.{1}.downsample.{2}",
        r"layer(\d+)_(\d+)/(\w+)": "layer{0}.{1}.{2}",
        r"(\w+)": "{0}",
    }
    leaves = [
        ("params", "kernel", "weight", CONV),
        ("params", "(?:scale|slope)", "weight", KEEP),
        ("params", "bias", "bias", KEEP),
        ("batch_stats", "mean", "running_mean", KEEP),
        ("batch_stats", "var", "running_var", KEEP),
    ]
    table = [
        Rule(f"{collection}/{ours}/{leaf}", f"{theirs}.{key}", transform)
        for collection, leaf, key, transform in leaves
        for ours, theirs in paths.items()
    ]
    return [Rule("params/fc/kernel", "fc.weight", _fc(model.widths[-1])), *table]


def prefix(config: Mapping[str, Any], keys) -> str:
    """insightface's keys have no prefix."""
    del config, keys
    return ""


def ignored(model: Any, prefix: str, config: Mapping[str, Any]) -> list[str]:
    """torch's batch counters: they matter only without a fixed momentum. Written as 0 on the way back."""
    del model, prefix, config
    return [r".*\.num_batches_tracked"]
