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
    c.task = "contrastive"  # contrastive (InfoNCE over embeddings) | pair_answer (a VLM says Yes or No about two faces)
    c.batch_size = 128  # images per step over all devices: batch_size / 2 pairs
    c.accumulation = 1  # parts in which a step's batch goes through the model, to save memory; the sums are the same
    c.dtype = "float32"  # compute: float32 | bfloat16 (trainables, statistics, losses are float32 always)
    c.remat = "none"  # transformer layers: none | dots (keep matrix products) | full | auto (what fits in memory)

    # kind: iresnet | vision_transformer (pooling mean | cls) | vlm: vision_transformer, projector and decoder (pooling
    # visual_mean | all_mean | last_token, or "" for pair_answer)
    c.model = ConfigDict({"kind": "iresnet", "pooling": ""})
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
    c.model.projector = ConfigDict({"shuffle": 2, "ps_version": "v2"})  # InternVL2
    c.model.decoder = ConfigDict(  # InternLM2-1.8B; rotary positions, biases and so on come with a checkpoint
        {
            "vocab": 92553,
            "width": 2048,
            "depth": 24,
            "heads": 16,
            "kv_heads": 8,
            "head_dim": 128,
            "mlp_dim": 8192,
        }
    )
    c.model.bos = 1  # the decoder's first token
    # What a VLM reads after the image(s): a text for the tokenizer in init_from, or its ids. yes_no_ids: of the answers
    # (Yes, No) of pair_answer; (): by the tokenizer.
    c.prompt = ConfigDict({"text": "", "ids": (), "yes_no_ids": ()})
    c.attention = (
        "auto"  # auto (by_head on a CPU, else xla) | xla | by_head (little memory) | cudnn (GPU, half precision)
    )
    c.init_from = ""  # directory of pretrained weights (Hugging Face layout or converted); "": random
    # A VLM of several origins instead: part (vision, decoder) -> directory; parts not named are random.
    c.init_parts = ConfigDict()
    c.base_dtype = "float32"  # how frozen parameters are kept: float32 | float16 | bfloat16
    c.lora = ConfigDict({"rank": 0, "alpha": 0.0, "targets": (), "count": 0})  # rank 0: no adapters
    c.trainable = ((".*", "backbone"),)  # ordered (regex over names, group); group "frozen" does not train

    # temperature: of contrastive. pair_loss: cross-entropy of pair_answer among the whole "vocab" or among "yes_no".
    c.loss = ConfigDict({"temperature": 0.07, "pair_loss": "vocab"})
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
    # Decoded faces: none (decoded when needed) | host (all kept in memory) | device (all kept on every device).
    c.data.cache = "none"
    # A store with other images of the identities trained on: every eval.every_epochs, and at the end, the accuracy on
    # val_pairs of its pairs (half genuine, half impostor); the best checkpoint by that is what is evaluated and used.
    c.data.update({"val": "", "val_pairs": 6000})
    # Whose naming the identities follow. Only benchmarks with the same non-empty one can be checked for identities seen
    # in training: folder "100" of one data set is not person "100" of another.
    c.data.names = ""
    c.data.pairs_per_epoch = 100_000  # of pair_answer: half genuine, half impostor, drawn anew every epoch
    # Not 0 identities: the embedded synthetic faces are made under dir and used for training and evaluation.
    c.data.synthetic = ConfigDict(
        {"identities": 0, "images": 12, "test_identities": 120, "test_images": 6, "test_pairs": 1000}
    )
    c.data.synthetic.update({"difficulty": 1.0, "seed": 0, "dir": ""})  # dir "": the workdir

    c.eval = ConfigDict({"batch_size": 128, "flip_sum": False, "every_epochs": 0, "before_training": True})
    c.eval.pools = ()  # a VLM's embeddings: also by these poolings, from the same checkpoint, in the same run
    c.eval.during = ()  # benchmarks to run every `every_epochs` epochs; (): all
    c.eval.baselines = False  # also print raw-pixel and colour-histogram cosine
    c.eval.bootstrap = 1000  # resamples behind each 95% interval
    c.eval.benchmarks = ConfigDict()  # name -> ConfigDict(store=DIR, pairs=NAME), see benchmark()

    # What LLM-FaceVerification's code does differently from its text (README, differences from the reference).
    c.compat = ConfigDict(
        {
            "last_micro_batch": False,  # of accumulation's parts only the last one's gradient, divided by their number
            "negatives_group": 0,  # images whose negatives are each other, one GPU's; 0: the whole batch
            "batch_norm_group": 0,  # images that batch statistics are of, one GPU's; 0: the whole batch
        }
    )

    # Not empty: the config stands for several experiments, one a row of the table. name -> what differs from the above.
    c.rows = ConfigDict()

    # What to tell somebody who lacks a file: (config key, where it comes from and the command that prepares it).
    c.prepare = ()
    c.checkpoint = ConfigDict({"every_steps": 500, "every_minutes": 15.0, "keep": 2})  # every_minutes 0: by steps alone
    # state_hash_every: steps between hashes of what trains, its optimizer and the batch in metrics.jsonl; 0: none
    c.log = ConfigDict({"every_steps": 1, "tensorboard": True, "state_hash_every": 0})
    c.heartbeat_seconds = 60.0  # several processes: one that gives no sign of life for so long is lost, the others end
    c.deterministic = False  # on a GPU: the same bits in every run, for some speed (on a CPU they are anyway)
    c.lock()
    named_by_the_experiment: tuple[Config, ...] = (c.eval.benchmarks, c.optimizer.lr_scale, c.rows, c.init_parts)
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
    "task": ("contrastive", "pair_answer"),
    "dtype": ("float32", "bfloat16"),
    "base_dtype": ("float32", "float16", "bfloat16"),
    "remat": ("none", "dots", "full", "auto"),
    "attention": ("auto", "xla", "by_head", "cudnn"),
    "data.cache": ("none", "host", "device"),
    "model.kind": ("iresnet", "vision_transformer", "vlm"),
    "loss.pair_loss": ("vocab", "yes_no"),
    "model.projector.ps_version": ("v1", "v2"),
    "model.iresnet.conv_init": ("normal", "kaiming"),
    "optimizer.name": ("sgd", "adamw"),
}
POSITIVE = (
    "batch_size",
    "accumulation",
    "data.pairs_per_epoch",
    "eval.batch_size",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "log.every_steps",
    "heartbeat_seconds",
)


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
    _check_task(config)
    if bool(config.lora.rank) != bool(config.lora.targets) or bool(config.lora.rank) != bool(config.lora.alpha):
        raise ValueError("config.lora: rank, alpha and targets go together; all or none")
    if config.data.synthetic.identities and config.data.train:
        raise ValueError("config.data: give train or synthetic.identities, not both")
    if config.data.cache != "none" and config.data.workers:
        raise ValueError(f"config.data.cache={config.data.cache!r} leaves data.workers no decoding; set them to 0")
    if config.data.val and not config.eval.every_epochs:
        raise ValueError("config.data.val picks the best of several evaluations; set config.eval.every_epochs")
    if config.data.val_pairs < 20 or config.data.val_pairs % 20:
        raise ValueError(f"config.data.val_pairs={config.data.val_pairs}: ten folds, so a multiple of 20")


def _check_task(config: Config) -> None:
    """What goes with a VLM, with pairs and with parts of a batch. Raises ValueError."""
    pairs, vlm, compat = config.task == "pair_answer", config.model.kind == "vlm", config.compat
    wrong = {
        "task=pair_answer: only a model of kind vlm answers": pairs and not vlm,
        "model.pooling: pair_answer has none, it reads the answer": pairs and config.model.pooling,
        "eval.pools: only a VLM's embeddings have several": config.eval.pools and (pairs or not vlm),
        "eval.pools: visual_mean, all_mean, last_token are the choices, model.pooling must be one of them": (
            config.eval.pools
            and not {config.model.pooling} <= set(config.eval.pools) <= {"visual_mean", "all_mean", "last_token"}
        ),
        "eval.flip_sum: an answer about two faces has no mirrored sum": pairs and config.eval.flip_sum,
        "prompt: give text or ids, and both only to a model of kind vlm": (
            (config.prompt.text and config.prompt.ids) or (not vlm and (config.prompt.text or config.prompt.ids))
        ),
        "prompt: without init_from there is no tokenizer; give ids, and for pair_answer yes_no_ids": (
            not (config.init_from or config.init_parts.get("decoder"))
            and (config.prompt.text or (pairs and not config.prompt.yes_no_ids))
        ),
        "init_parts: are of a model of kind vlm without init_from": (
            config.init_parts and (not vlm or config.init_from)
        ),
        "compat.last_micro_batch: there is one part; set accumulation": (
            compat.last_micro_batch and config.accumulation == 1
        ),
        "compat.negatives_group: pair_answer has no negatives": pairs and compat.negatives_group,
        "compat.batch_norm_group: only an iresnet has batch statistics": (
            compat.batch_norm_group and config.model.kind != "iresnet"
        ),
    }
    if told := next((line for line, is_wrong in wrong.items() if is_wrong), ""):
        raise ValueError(f"config.{told}")
    per_part = config.batch_size // 2 // config.accumulation
    if config.accumulation * per_part * 2 != config.batch_size:
        told = f"its {config.batch_size // 2} pairs do not divide into config.accumulation={config.accumulation} parts"
        raise ValueError(f"config.batch_size={config.batch_size}: {told}")
    seen = 2 * per_part if compat.last_micro_batch else config.batch_size
    for key in ("negatives_group", "batch_norm_group"):
        if compat[key] and (compat[key] % 2 or seen % compat[key]):
            raise ValueError(f"config.compat.{key}={compat[key]}: must be even and divide the {seen} images of a step")


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
    "data.train",  # checkpoints know the hash of its data
    "data.val",
    "data.workers",
    "data.threads",
    "data.prefetch",
    "data.cache",
    "data.synthetic.dir",
    "remat",
    "prepare",
    "heartbeat_seconds",
    "deterministic",
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
