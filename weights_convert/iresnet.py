"""Convert IResNet: insightface's keys (conv1.weight, layer1.0.bn1.weight, …)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fvjax.models.iresnet import IResNet
from weights_convert.options import Options
from weights_convert.rules import CONV, KEEP, Rule, Transform

ARCHITECTURES = ("IResNet",)
KIND = "iresnet"
IMAGE_SIZE = 112  # of aligned faces, which the size of the last layer depends on


def model_config(config: Mapping[str, Any], location: str) -> dict[str, Any]:
    """Convert config.json to the attributes of fvjax.models.iresnet.IResNet.

    Raises ValueError for a key that is missing or unknown, or has an impossible value.
    """
    options = Options(config, location)
    options.get("architectures")
    sizes = {"layers": options.need("layers"), "widths": options.get("widths")}
    out: dict[str, Any] = {"num_features": options.count("num_features")}
    for key, value in sizes.items():
        if value is None:
            continue
        is_list = isinstance(value, list | tuple) and all(type(n) is int and n > 0 for n in value)
        if not is_list or not value:
            raise ValueError(f"{location}: {key}={value!r} is not a list of whole numbers of at least 1")
        out[key] = tuple(value)
    stages = len(out.get("widths", IResNet.widths))
    if len(out["layers"]) != stages:
        raise ValueError(
            f"{location}: layers={sizes['layers']!r} must have as many stages as there are widths, {stages}"
        )
    options.finish_model()
    return out


def _fc(channels: int) -> Transform:
    """Permute the last layer's rows: torch flattens features as (C, H, W), fvjax as (H, W, C)."""

    def to_fvjax(x):
        side = round((x.shape[1] // channels) ** 0.5)
        return x.reshape(-1, channels, side, side).transpose(2, 3, 1, 0).reshape(-1, x.shape[0])

    def to_original(x):
        side = round((x.shape[0] // channels) ** 0.5)
        return x.reshape(side, side, channels, -1).transpose(3, 2, 0, 1).reshape(x.shape[1], -1)

    return Transform(to_fvjax, to_original)


def rules(model: Any, prefix: str, config: Mapping[str, Any]) -> list[Rule]:
    """Return the rules."""
    del prefix, config
    paths = {  # fvjax name -> the original's key, in which a number is a level of its own
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
        Rule(f"{collection}/{name}/{leaf}", f"{module}.{key}", transform)
        for collection, leaf, key, transform in leaves
        for name, module in paths.items()
    ]
    return [Rule("params/fc/kernel", "fc.weight", _fc(model.widths[-1])), *table]


def input_shape(model: Any) -> tuple[int, ...]:
    """Return the shape of an input of the network: one image."""
    del model
    return (1, IMAGE_SIZE, IMAGE_SIZE, 3)


def prefix(config: Mapping[str, Any], keys) -> str:
    """Return the prefix of the original's keys, which is empty."""
    del config, keys
    return ""


def ignored(model: Any, prefix: str, config: Mapping[str, Any]) -> list[str]:
    """Return regexes of unneeded keys: torch's batch counters, used only without a fixed momentum.

    The inverse conversion writes them as 0.
    """
    del model, prefix, config
    return [r".*\.num_batches_tracked"]
