"""Every key a config may have, with its default. A config file starts from `base()` and sets what it needs."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

Config = Any  # a ConfigDict as base() makes it; its keys are not visible to a type checker


def base() -> Config:
    """All keys with safe defaults, locked: setting a key that is not here is an error that suggests the nearest one."""
    c: Config = ConfigDict()
    c.name = "unnamed"
    c.seed = 0
    c.epochs = 0  # 0: nothing is trained, the model is evaluated as it is
    c.batch_size = 128  # images per step over all devices: batch_size / 2 identity pairs
    c.dtype = "float32"  # compute: float32 | bfloat16 (trainables, statistics, losses are float32 always)
    c.remat = "none"  # transformer layers: none | dots (keep matrix products) | full

    c.model = ConfigDict({"kind": "iresnet", "pooling": ""})  # kind: iresnet | vision_transformer (pooling mean | cls)
    c.model.iresnet = ConfigDict(
        {
            "layers": (3, 4, 14, 3),  # residual blocks per stage
            "widths": (64, 128, 256, 512),  # channels per stage; the stem has the first
            "num_features": 512,
            "dropout": 0.0,
            "conv_init": "normal",  # normal (std 0.1, as insightface) | kaiming
        }
    )
    c.model.vision_transformer = ConfigDict(  # InternViT-300M; norms, biases and so on come with a checkpoint
        {
            "image_size": 448,
            "patch_size": 14,
            "width": 1024,
            "depth": 24,
            "heads": 16,
            "mlp_dim": 4096,
            "drop_path": placeholder(float),  # None: the checkpoint's (0 without one)
        }
    )
    c.attention = "xla"  # xla | cudnn (half precision on a GPU)
    c.init_from = ""  # directory of pretrained weights (Hugging Face layout or converted); "": random
    c.base_dtype = "float32"  # how frozen parameters are kept: float32 | float16 | bfloat16
    c.lora = ConfigDict({"rank": 0, "alpha": 0.0, "targets": (), "count": 0})  # rank 0: no adapters
    c.trainable = ((".*", "backbone"),)  # ordered (regex over names, group); group "frozen" does not train

    c.loss = ConfigDict({"temperature": 0.07})
    c.optimizer = ConfigDict(
        {
            "name": "sgd",  # sgd (decay added to the gradient, then momentum) | adamw (decoupled)
            "lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "clip": 5.0,  # global norm over everything that trains
            "warmup_epochs": 0,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "lr_scale": ConfigDict(),  # group -> factor on lr; a group not named has 1
        }
    )

    c.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # -1: all devices that are left
    c.sharding = ((".*", ()),)  # ordered (regex over names, mesh axis or None per dimension); shorter: replicated

    c.data = ConfigDict({"train": "", "split": "train", "flip": True, "workers": 0, "threads": 2, "prefetch": 8})
    # Whose naming the identities follow. Only benchmarks with the same non-empty one can be checked for identities seen
    # in training: folder "100" of one data set is not person "100" of another.
    c.data.names = ""
    # Not 0 identities: the embedded synthetic faces are made under dir and used for training and evaluation.
    c.data.synthetic = ConfigDict(
        {"identities": 0, "images": 12, "test_identities": 120, "test_images": 6, "test_pairs": 1000}
    )
    c.data.synthetic.update({"difficulty": 1.0, "seed": 0, "dir": ""})  # dir "": the workdir

    c.eval = ConfigDict({"batch_size": 128, "flip_sum": False, "every_epochs": 0, "before_training": True})
    c.eval.during = ()  # benchmarks to run every `every_epochs` epochs; (): all
    c.eval.baselines = False  # also print raw-pixel and colour-histogram cosine
    c.eval.bootstrap = 1000  # resamples behind each 95% interval
    c.eval.benchmarks = ConfigDict()  # name -> ConfigDict(store=DIR, pairs=NAME), see benchmark()

    # Not empty: the config stands for several experiments, one a row of the table. name -> what differs from the above.
    c.rows = ConfigDict()

    # What to tell somebody who lacks a file: (config key, where it comes from and the command that prepares it).
    c.prepare = ()
    c.checkpoint = ConfigDict({"every_steps": 500, "keep": 2})
    c.log = ConfigDict({"every_steps": 1, "tensorboard": True})
    c.lock()
    named_by_the_experiment: tuple[Config, ...] = (c.eval.benchmarks, c.optimizer.lr_scale, c.rows)
    for section in named_by_the_experiment:
        section.unlock()
    return c


def benchmark(store: str, pairs: str, names: str = "") -> Config:
    """One evaluation: a face store with split "test", its pair list pairs_NAME.csv, whose names (see data.names)."""
    return ConfigDict({"store": store, "pairs": pairs, "names": names})


def experiments(config: Config, workdir: Path) -> dict[Path, Config]:
    """The experiments a config stands for, by workdir: itself, or one for each of its rows under the workdir.

    Rows come in the order of their names and share the embedded faces. Raises ValueError for a
    row's key that no config has, or a wrong type.
    """
    if not config.rows:
        return {workdir: config}
    found = {}
    for name, changes in config.rows.items():
        row = config.copy_and_resolve_references()
        row.rows = ConfigDict()
        row.data.synthetic.dir = str(workdir)
        try:
            row.update(changes)
        except (KeyError, TypeError) as error:
            raise ValueError(f"config.rows.{name}: {' '.join(str(error.args[0]).split())}") from None
        row.name = name
        found[workdir / name] = row.lock()
    return found


CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "base_dtype": ("float32", "float16", "bfloat16"),
    "remat": ("none", "dots", "full"),
    "attention": ("xla", "cudnn"),
    "model.kind": ("iresnet", "vision_transformer"),
    "model.iresnet.conv_init": ("normal", "kaiming"),
    "optimizer.name": ("sgd", "adamw"),
}
POSITIVE = ("batch_size", "eval.batch_size", "checkpoint.every_steps", "checkpoint.keep", "log.every_steps")


def check(config: Config) -> None:
    """Raise ValueError for values that no run can use, before anything is read or written."""
    flat = flatten(config.to_dict())
    for key, choices in CHOICES.items():
        if flat[key] not in choices:
            raise ValueError(f"config.{key}={flat[key]!r}: choose {' or '.join(choices)}")
    for key in POSITIVE:
        if flat[key] < 1:
            raise ValueError(f"config.{key}={flat[key]} must be at least 1")
    if config.batch_size % 2:
        raise ValueError(f"config.batch_size={config.batch_size} must be even: it is made of pairs")
    if bool(config.lora.rank) != bool(config.lora.targets) or bool(config.lora.rank) != bool(config.lora.alpha):
        raise ValueError("config.lora: rank, alpha and targets go together; all or none")
    if config.data.synthetic.identities and config.data.train:
        raise ValueError("config.data: give train or synthetic.identities, not both")


def flatten(values: dict, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    out = {}
    for key, value in values.items():
        out |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


# What may differ when a workdir is resumed: where and how it runs, not what is computed.
MAY_CHANGE = (
    "mesh",
    "sharding",
    "checkpoint",
    "log",
    "eval",
    "data.workers",
    "data.threads",
    "data.prefetch",
    "data.synthetic.dir",
    "remat",
    "prepare",
)


def to_json(config: Config) -> str:
    return json.dumps(config.to_dict(), indent=1, sort_keys=True)


def differences(new: dict, old: dict) -> list[str]:
    """Keys whose values differ, as text, without those in MAY_CHANGE."""
    new, old = (flatten(json.loads(json.dumps(one))) for one in (new, old))
    return [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted(set(new) | set(old))
        if new.get(key) != old.get(key) and not _may_change(key)
    ]


def _may_change(key: str) -> bool:
    return any(f"{key}.".startswith(f"{start}.") for start in MAY_CHANGE)


def config_hash(config: Config) -> str:
    """Of what is computed: the same for an experiment wherever and however it runs."""
    kept = {
        k: v for k, v in flatten(config.to_dict()).items() if not any(f"{k}.".startswith(f"{m}.") for m in MAY_CHANGE)
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
