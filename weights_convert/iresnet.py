"""IResNet: insightface's keys (conv1.weight, layer1.0.bn1.weight, …)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weights_convert.rules import CONV, KEEP, Rule, Transform

ARCHITECTURES = ("IResNet",)
KIND = "iresnet"
KNOWN = {"architectures", "layers", "widths", "num_features", "model_type", "torch_dtype", "fvjax"}


def model_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """config.json -> keyword arguments of fvjax.models.iresnet.IResNet."""
    unknown = sorted(set(config) - KNOWN)
    missing = sorted({"layers", "num_features"} - set(config))
    if unknown or missing:
        raise ValueError(f"{where}: missing keys {missing}, unknown keys {unknown}; known are {sorted(KNOWN)}")
    out = {"layers": tuple(config["layers"]), "num_features": config["num_features"]}
    return out | ({"widths": tuple(config["widths"])} if "widths" in config else {})


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
