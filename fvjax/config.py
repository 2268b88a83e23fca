"""Every setting of a run, with its type, its default and what it is for.

The dataclasses below are what the library reads, so a misspelt key in our own code fails the type checker. A config
file (`configs/NAME.py`) starts from :func:`base`, which holds the same keys as a locked `ConfigDict`: setting a key
that does not exist is an error that suggests the nearest one. :func:`typed` turns the finished `ConfigDict` into a
:class:`Config`; each part of the library then gets its own section.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fvjax import plugins
from fvjax.config_keys import NAMED_BY_THE_EXPERIMENT, flatten, has, unknown_key

Rules = Sequence[tuple[str, Any]]  # ordered (regex over parameter names, value); the first match decides


# ---- model -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IResNetConfig:
    layers: tuple[int, ...] = (3, 4, 14, 3)  # residual blocks in each stage
    widths: tuple[int, ...] = (64, 128, 256, 512)  # channels in each stage; the stem has the first
    num_features: int = 512
    dropout: float = 0.0
    conv_init: Literal["normal", "kaiming"] = "normal"  # normal: standard deviation 0.1, as in insightface


@dataclass(frozen=True)
class VisionTransformerConfig:
    """Sizes of the tower, by default InternViT-300M's. Norms, biases and so on come with a checkpoint."""

    image_size: int = 448
    patch_size: int = 14
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_dim: int = 4096
    drop_path: float | None = None  # None: the checkpoint's rate, or 0 without a checkpoint


@dataclass(frozen=True)
class ProjectorConfig:
    shuffle: int = 2
    ps_version: Literal["v1", "v2"] = "v2"  # v2: InternVL2


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder, by default InternLM2-1.8B's. Rotary positions, biases and so on come with a checkpoint."""

    vocab: int = 92553
    width: int = 2048
    depth: int = 24
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    mlp_dim: int = 8192


@dataclass(frozen=True)
class LandmarksConfig:
    """How a llava uses facial landmarks (fvjax/models/landmarks.py)."""

    # "": not at all | attention: visual tokens attend to landmark tokens | append: landmark tokens follow them
    use: Literal["", "attention", "append"] = ""
    kind: Literal["regions", "linear"] = "regions"  # of the local tokens: nine, of face regions, or one
    parts: Literal["both", "local", "global"] = "both"  # which landmark tokens are used
    variant: Literal["paper", "simple", "masked"] = "paper"  # of the attention
    heads: int = 8  # of the attention
    scale: float = 0.1  # of the attention's branch, but for paper
    # rowcol: distances of masked to the transposed grid of patches, as in the released code
    grid: Literal["xy", "rowcol"] = "xy"


@dataclass(frozen=True)
class ModelConfig:
    # iresnet | vision_transformer (pooling mean or cls) | vlm: a vision transformer, a projector and a decoder (pooling
    # visual_mean, all_mean or last_token; "" for pair_answer and conversation) | llava: one or two vision transformers,
    # a projector without pixel shuffle, a decoder and landmark modules (for face_instruction) | module:name of your own
    # (see fvjax/plugins.py)
    kind: str = "iresnet"
    pooling: str = ""
    iresnet: IResNetConfig = field(default_factory=IResNetConfig)
    vision_transformer: VisionTransformerConfig = field(default_factory=VisionTransformerConfig)
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    bos: int = 1  # the decoder's first token
    frames: int = 0  # of a clip, for a llava's second tower, of the first one's size; 0: it reads pictures only
    landmarks: LandmarksConfig = field(default_factory=LandmarksConfig)


@dataclass(frozen=True)
class PromptConfig:
    """What a VLM reads after the image(s): a text for the tokenizer in init_from, or its token ids."""

    text: str = ""
    ids: tuple[int, ...] = ()
    yes_no_ids: tuple[int, ...] = ()  # the answers (Yes, No) of pair_answer; (): as the tokenizer encodes them


@dataclass(frozen=True)
class ChatConfig:
    """How conversations become tokens and tiles (task conversation)."""

    template: str = "internvl2_5"  # see fvjax/data/chat.py
    system: str = "default"  # default: the template's system message | "": none | a text
    # Which tokens of an answer are learned. llamafactory: all, with the line break at its end; internvl_chat: without.
    labels: Literal["llamafactory", "internvl_chat"] = "llamafactory"
    tokenizer: str = ""  # directory; "": that of the pretrained decoder
    length: int = 2048  # of a row, in tokens. Nothing is cut: a longer conversation is an error, or dropped
    too_long: Literal["error", "drop"] = "error"
    buckets: tuple[int, ...] = ()  # shorter lengths that a step's rows may have; a step is compiled for each one
    by_length: bool = False  # let conversations of similar length share a step
    packed: bool = False  # put several conversations into a row; they do not see each other
    max_tiles: int = 1  # of a picture, its thumbnail apart
    # What several pictures in a conversation do to max_tiles. each: nothing | internvl_chat: they share it |
    # vlmevalkit: they share 64.
    tile_rule: Literal["each", "internvl_chat", "vlmevalkit"] = "each"
    hide_pictures: bool = False  # a grey picture in place of every picture: the control that sees the text alone
    # Of face_instruction: whether pictures are padded to a square or their centre is cut out, whether they are resized
    # with antialiasing, and whose landmarks they have: their own, none, or those of other records (two controls).
    square: Literal["pad", "crop"] = "pad"
    antialias: bool = True
    landmarks: Literal["own", "none", "shuffled"] = "own"
    eval_template: str = ""  # of evaluation; "": as in training
    eval_max_tiles: int = 0  # of evaluation; 0: as in training
    max_new_tokens: int = 64  # of a generated answer
    answers: int = 3  # generated answers that are printed with each validation


@dataclass(frozen=True)
class LoraConfig:
    rank: int = 0  # 0: no adapters
    alpha: float = 0.0
    # Bound of a's uniform start. kaiming: sqrt(6 / in), LLM-FaceVerification's | peft: 1 / sqrt(in), PEFT's
    init: Literal["kaiming", "peft"] = "kaiming"
    targets: tuple[str, ...] = ()  # regexes over module names
    count: int = 0  # how many adapters the targets must give; a stack of L layers counts L


# ---- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossConfig:
    # "": the task's own loss. module:name: a function of your own in its place (see the task's docstring).
    function: str = ""
    temperature: float = 0.07  # of the contrastive loss
    pair_loss: Literal["vocab", "yes_no"] = "vocab"  # pair_answer's cross-entropy: over all tokens or over Yes and No


@dataclass(frozen=True)
class MarginConfig:
    """The loss of task margin (fvjax/losses/margin.py)."""

    # combined: cos(m1 theta + m2) - m3, so ArcFace, CosFace or SphereFace | adaface | magface
    kind: Literal["combined", "adaface", "magface"] = "combined"
    scale: float = 64.0  # of the cosines, after the margin
    m1: float = 1.0  # combined: SphereFace's factor on the angle
    m2: float = 0.5  # combined: ArcFace's angle, in radians
    m3: float = 0.0  # combined: CosFace's difference of cosines
    m: float = 0.4  # adaface: the margin of a picture of average norm
    h: float = 0.333  # adaface: standard deviations of the norm are multiplied by it
    t_alpha: float = 0.01  # adaface: weight of a batch in the running statistics of the norm
    norm_weight: float = 35.0  # magface: weight of the regulariser that makes norms grow
    smoothing: float = 0.0  # share of the target that is spread over all classes
    filter_above: float = 0.0  # negatives with a larger cosine count as 0 (inter-class filtering); 0: none are


@dataclass(frozen=True)
class HeadConfig:
    """The class head of task margin (fvjax/losses/class_head.py)."""

    classes: int = 0  # identities of the training store, which must have as many; 0: as many as it has
    subcentres: int = 1  # centres of each class, of which the nearest counts
    sample_rate: float = 1.0  # Partial FC: part of the classes that a step compares with
    groups: int = 8  # equal parts in which rows are sampled; a multiple of the number of devices


@dataclass(frozen=True)
class AttributesConfig:
    """Attributes with knowledge, FaceInsight's way (task attributes, docs/faceinsight.md)."""

    maps: bool = True  # the model reads the store's segmentation maps beside the pictures
    shuffle_maps: bool = False  # each picture gets another one's map: the control that only the map's presence passes
    # The graph over the attributes' text features (fvjax/models/graph.py); none: the features as they are. Its edges
    # are correlations of at least tau between the training labels; omega is the weight of the neighbours.
    graph: Literal["none", "conditional", "lift", "identity", "random"] = "conditional"
    tau: float = 0.4
    omega: float = 0.8
    hidden: int = 1024  # width between the two layers of the graph convolution
    text: str = ""  # directory of a CLIP model, whose text tower reads the prompts; "": random features
    text_width: int = 768  # of random features
    prompts: str = ""  # TOML file with wordings of one's own beside fvjax/data/attribute_prompts.py, for `text`
    rules: str = ""  # rule file, or the name of a shipped one (fvjax/data/rule_sets); "": none
    rule_sets: tuple[str, ...] = ()  # sets of that file
    logic: Literal["none", "linear", "log"] = "none"  # the loss of violated rules
    group_loss: Literal["bce", "softmax"] = "bce"  # over the classes of a group, such as age
    labelled: float = 1.0  # embedded faces: share of the training pictures with labels of what no picture shows


@dataclass(frozen=True)
class OptimizerConfig:
    name: Literal["sgd", "adamw"] = "sgd"  # sgd: decay is added to the gradient, then momentum; adamw: decoupled decay
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float = 5.0  # global norm over everything that trains
    # epoch_cosine: one rate for each epoch, warm-up counted in epochs. cosine, linear (to 0), constant: by steps, from
    # rate 0 at the first step of the warm-up. epoch_milestones: a tenth of the rate from each milestone on.
    schedule: Literal["epoch_cosine", "epoch_milestones", "cosine", "linear", "constant"] = "epoch_cosine"
    milestones: tuple[int, ...] = ()  # of epoch_milestones: how many epochs are done
    warmup_epochs: int = 0  # of epoch_cosine and epoch_milestones
    warmup_steps: int = 0  # of the others
    warmup_ratio: float = 0.0  # or the warm-up as a share of all steps: ceil(ratio * steps)
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    lr_scale: Mapping[str, float] = field(
        default_factory=dict
    )  # group -> factor on lr; a group that is not named has 1
    # Groups whose gradient is neither clipped nor counted in the norm, as insightface does with its class head.
    unclipped: tuple[str, ...] = ()
    # Groups whose rows without any gradient stay as they are, with their momentum: classes that Partial FC left out.
    idle_rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class MeshConfig:
    data: int = -1  # -1: all devices that are left
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class CompatConfig:
    """What published code does differently from its text (docs/differences.md)."""

    last_micro_batch: bool = False  # of accumulation's parts only the last one's gradient, divided by their number
    negatives_group: int = 0  # images (one GPU's) that are each other's negatives; 0: the whole batch
    batch_norm_group: int = 0  # images (one GPU's) that share batch statistics; 0: the whole batch
    # face_instruction: rows (one GPU's) whose tokens are averaged before the mean over these groups; 0: the mean over
    # all tokens of the batch
    token_mean_rows: int = 0


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = 500
    every_minutes: float = 15.0  # 0: by steps alone
    keep: int = 2


@dataclass(frozen=True)
class LogConfig:
    every_steps: int = 1
    tensorboard: bool = True
    line_minutes: float = 1.0  # without a terminal, a line about a step at least so often; 0: after epochs only
    trackers: tuple[str, ...] = ()  # wandb | mlflow | module:name of your own: further places for the metrics
    pictures: int = 16  # of the first batch, as the model gets them, in first_batch.png and TensorBoard; 0: none
    # Send that file to the trackers too. It shows training data, which may be real people, and a tracker a service.
    send_pictures: bool = False
    show: int = 0  # training examples that are printed before training, as the model gets them
    state_hash_every: int = 0  # steps between hashes of the training state and the batch in metrics.jsonl; 0: none


# ---- data and evaluation ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SyntheticConfig:
    """The embedded synthetic faces, for training and evaluation. They are used if `identities` is not 0."""

    identities: int = 0
    images: int = 12
    test_identities: int = 120
    test_images: int = 6
    test_pairs: int = 1000
    difficulty: float = 1.0
    seed: int = 0
    dir: str = ""  # where they are written; "": the work directory


@dataclass(frozen=True)
class DataConfig:
    train: str = ""  # a store
    split: str = "train"
    flip: bool = True
    workers: int = 0
    threads: int = 2
    prefetch: int = 8
    # Decoded images: none (decoded when needed) | host (all kept in memory) | device (all kept on every device).
    cache: Literal["none", "host", "device"] = "none"
    # A store with other images of the identities trained on. Every eval.every_epochs and at the end, accuracy is
    # measured on val_pairs of its pairs (half genuine, half impostor), and the best checkpoint by that accuracy is the
    # one that is evaluated and used.
    val: str = ""
    val_pairs: int = 6000
    # Whose naming the identities follow. Only benchmarks with the same non-empty value can be checked for identities
    # seen in training: folder "100" of one data set is not person "100" of another.
    names: str = ""
    pairs_per_epoch: int = 100_000  # of pair_answer: half genuine, half impostor, drawn anew every epoch
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass(frozen=True)
class BenchmarkConfig:
    """One evaluation: a face store with the split "test" and its pair list pairs_NAME.csv."""

    store: str
    pairs: str
    names: str = ""  # see data.names


@dataclass(frozen=True)
class EvalConfig:
    name: str = ""  # of this evaluation in results.json, where later ones are listed by name and date
    batch_size: int = 128
    flip_sum: bool = False
    every_epochs: int = 0
    before_training: bool = True
    pools: tuple[str, ...] = ()  # a VLM's embeddings by these poolings too, from the same checkpoint in the same run
    during: tuple[str, ...] = ()  # benchmarks to run every `every_epochs` epochs; (): all
    baselines: bool = False  # also print the cosine of raw pixels and of colour histograms
    bootstrap: int = 1000  # resamples behind each 95% interval
    benchmarks: Mapping[str, BenchmarkConfig] = field(default_factory=dict)


# ---- the whole -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    name: str = "unnamed"
    seed: int = 0
    epochs: int = 0  # 0: nothing is trained, the model is evaluated as it is
    steps: int = 0  # instead of epochs: train for so many steps
    # contrastive (InfoNCE over embeddings) | margin (ArcFace and its relatives, with a class for each identity) |
    # pair_answer (a VLM says Yes or No about two faces) | conversation (a VLM answers questions about pictures) |
    # attributes (a VLM says Yes or No about every attribute of a face) |
    # face_instruction (a llava answers questions about faces in pictures and clips) | module:name of a task of your own
    task: str = "contrastive"
    # Settings of your own task, loss or backbone; fvjax's own read none of them.
    plugin: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 128  # images per step over all devices
    accumulation: int = 1  # parts in which a step's batch goes through the model, to save memory; the sums are the same
    # Compute. What trains, statistics and losses are float32 always.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # What transformer layers recompute: nothing | dots (keep matrix products) | full | auto (what fits in memory).
    remat: Literal["none", "dots", "full", "auto"] = "none"
    model: ModelConfig = field(default_factory=ModelConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    attributes: AttributesConfig = field(default_factory=AttributesConfig)
    # auto (by_head on a CPU, otherwise xla) | xla | by_head (little memory) | cudnn (GPU, half precision)
    attention: Literal["auto", "xla", "by_head", "cudnn"] = "auto"
    # Directory of pretrained weights (Hugging Face layout or converted), of a llava also the work directory of a run
    # that trained one; "": random
    init_from: str = ""
    # Instead, a VLM of several origins: part (vision, video, decoder) -> directory; parts not named are random.
    init_parts: Mapping[str, str] = field(default_factory=dict)
    base_dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # how frozen parameters are kept
    # How the frozen kernels in the layers of a tower or decoder are kept: as base_dtype says | int8 with a scale for
    # each output channel (fvjax/models/int8.py). Nothing that trains may be among them.
    base_kernels: Literal["base_dtype", "int8"] = "base_dtype"
    lora: LoraConfig = field(default_factory=LoraConfig)
    trainable: Rules = ((".*", "backbone"),)  # (regex over names, group); the group "frozen" does not train
    loss: LossConfig = field(default_factory=LossConfig)
    margin: MarginConfig = field(default_factory=MarginConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    sharding: Rules = ((".*", ()),)  # (regex over names, mesh axis or None for each dimension); shorter: replicated
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    compat: CompatConfig = field(default_factory=CompatConfig)
    # If not empty, the config stands for several experiments, one for each row of the table: name -> its differences.
    rows: Mapping[str, Any] = field(default_factory=dict)
    # What to tell somebody who lacks a file: (config key, where it comes from and the command that prepares it).
    prepare: Sequence[tuple[str, str]] = ()
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    heartbeat_seconds: float = 60.0  # a process of several that gives no sign of life for so long counts as lost
    deterministic: bool = False  # on a GPU: the same bits in every run, for some speed (a CPU always gives the same)

    @property
    def trains(self) -> bool:
        return bool(self.epochs or self.steps)

    @property
    def pretrained(self) -> dict[str, str]:
        """Directories of pretrained weights by config key."""
        parts = {f"init_parts.{part}": path for part, path in self.init_parts.items()}
        return {"init_from": self.init_from, **parts}

    @property
    def has_tokenizer(self) -> bool:
        return bool(self.init_from or self.init_parts.get("decoder"))

    @property
    def required_paths(self) -> dict[str, str]:
        """Files and directories that a run needs, by config key."""
        paths = {**self.pretrained, "chat.tokenizer": self.chat.tokenizer, "attributes.text": self.attributes.text}
        paths["attributes.prompts"] = self.attributes.prompts
        if not self.data.synthetic.identities:
            paths["data.train"] = self.data.train if self.trains else ""
        return paths | {f"eval.benchmarks.{name}": each.store for name, each in self.eval.benchmarks.items()}

    def check(self) -> None:
        """Raise ValueError for values that no task can use, before anything is read or written."""
        flat = self.flat()
        for key, choices in CHOICES.items():
            pluggable = key in PLUGGABLE
            if flat[key] not in choices and not (pluggable and plugins.is_spec(flat[key])):
                named = [*filter(None, choices), *(["module:name of your own"] if pluggable else [])]
                raise ValueError(f"config.{key}={flat[key]!r}: choose {' or '.join(named)}")
        for key in POSITIVE:
            if flat[key] < 1:
                raise ValueError(f"config.{key}={flat[key]} must be at least 1")
        if self.log.pictures < 0 or self.log.line_minutes < 0:
            raise ValueError("config.log: pictures and line_minutes must not be negative; 0 switches them off")
        self._check_schedule()
        lora, data = self.lora, self.data
        if bool(lora.rank) != bool(lora.targets) or bool(lora.rank) != bool(lora.alpha):
            raise ValueError("config.lora: rank, alpha and targets go together; all or none")
        if data.synthetic.identities and data.train:
            raise ValueError("config.data: give train or synthetic.identities, not both")
        if data.cache != "none" and data.workers:
            raise ValueError(f"config.data.cache={data.cache!r} leaves data.workers no decoding; set them to 0")
        if data.val and not self.eval.every_epochs:
            raise ValueError("config.data.val picks the best of several evaluations; set config.eval.every_epochs")
        if data.val_pairs < 20 or data.val_pairs % 20:
            raise ValueError(f"config.data.val_pairs={data.val_pairs}: ten folds, so a multiple of 20")
        if self.init_parts and (self.model.kind not in ("vlm", "llava") or self.init_from):
            raise ValueError("config.init_parts: are of a model of kind vlm or llava without init_from")
        if self.base_kernels == "int8" and self.model.kind not in ("vision_transformer", "vlm"):
            raise ValueError(f"config.base_kernels=int8: not for model.kind={self.model.kind}")
        if self.compat.last_micro_batch and self.accumulation == 1:
            raise ValueError("config.compat.last_micro_batch: there is one part; set accumulation")

    def _check_schedule(self) -> None:
        c = self.optimizer
        if self.steps and self.epochs:
            raise ValueError(f"config.steps={self.steps} and config.epochs={self.epochs}: give one of them")
        by_epochs = c.schedule in ("epoch_cosine", "epoch_milestones")
        if by_epochs and (self.steps or c.warmup_steps or c.warmup_ratio):
            raise ValueError(
                f"config.optimizer.schedule={c.schedule} counts epochs: config.steps, warmup_steps and warmup_ratio go "
                "with cosine, linear and constant"
            )
        if bool(c.milestones) != (c.schedule == "epoch_milestones") or list(c.milestones) != sorted(set(c.milestones)):
            raise ValueError(
                f"config.optimizer.milestones={c.milestones}: go with schedule=epoch_milestones, in rising order"
            )
        if not by_epochs and c.warmup_epochs:
            raise ValueError(f"config.optimizer.warmup_epochs: {c.schedule} takes warmup_steps or warmup_ratio")
        if c.warmup_steps and c.warmup_ratio:
            raise ValueError("config.optimizer: give warmup_steps or warmup_ratio, not both")
        if not 0 <= c.warmup_ratio <= 1 or c.warmup_steps < 0:
            raise ValueError(
                f"config.optimizer: warmup_ratio={c.warmup_ratio} must be from 0 to 1, warmup_steps={c.warmup_steps} "
                "not negative"
            )

    def replace(self, changes: Mapping[str, Any]) -> Config:
        """Return a copy with other values, by dotted key: `replace({"model.bos": 2})`. KeyError: no such key."""
        out: Any = self
        for key, value in changes.items():
            out = _replace(out, key.split("."), value)
        return out

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, sort_keys=True)

    def flat(self) -> dict[str, Any]:
        return flatten(self.to_dict())

    def hash(self) -> str:
        """Return 16 hexadecimal digits of what is computed: equal for an experiment wherever and however it runs.

        The sources of plugged-in code are part of it.
        """
        computed = {key: value for key, value in self.flat().items() if not _may_change(key)}
        if sources := self.plugin_sources():
            computed["plugin sources"] = sources
        return hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()[:16]

    def plugin_sources(self) -> dict[str, str]:
        """Hashes of the source files of the task, loss and backbone that are not fvjax's own, by config key."""
        flat = self.flat()
        return {key: plugins.source_hash(flat[key]) for key in PLUGGABLE if plugins.is_spec(flat[key])}

    def batch_granule(self, images_per_example: int) -> int:
        """Return the number that a process's devices must divide for its batches to divide too, in examples."""
        return math.gcd(self.batch_size // images_per_example // self.accumulation, self.eval.batch_size)


def _replace(node: Any, path: list[str], value: Any) -> Any:
    first, *rest = path
    if isinstance(node, Mapping):
        return {**node, first: _replace(node[first], rest, value) if rest else value}
    if first not in getattr(node, "__dataclass_fields__", {}):
        raise KeyError(f"{type(node).__name__} has no key {first!r}")
    return dataclasses.replace(node, **{first: _replace(getattr(node, first), rest, value) if rest else value})


def _choices(cls: Any, prefix: str = "") -> dict[str, tuple[str, ...]]:
    """The values of every key that has a Literal type, by dotted key."""
    out = {}
    for name, kind in typing.get_type_hints(cls).items():
        if typing.get_origin(kind) is Literal:
            out[prefix + name] = typing.get_args(kind)
        elif dataclasses.is_dataclass(kind):
            out |= _choices(kind, f"{prefix}{name}.")
    return out


CHOICES: dict[str, tuple[str, ...]] = {
    "task": ("contrastive", "margin", "pair_answer", "conversation", "attributes", "face_instruction"),
    "model.kind": ("iresnet", "vision_transformer", "vlm", "llava"),
    "loss.function": ("",),
    **_choices(Config),
}
PLUGGABLE = ("task", "model.kind", "loss.function")  # also take module:name
POSITIVE = (
    "attributes.hidden",
    "attributes.text_width",
    "batch_size",
    "chat.length",
    "chat.max_tiles",
    "chat.max_new_tokens",
    "accumulation",
    "data.pairs_per_epoch",
    "head.subcentres",
    "head.groups",
    "eval.batch_size",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "log.every_steps",
    "heartbeat_seconds",
)
# What may differ when a work directory is resumed: where and how it runs, not what is computed.
MAY_CHANGE = (
    "mesh",
    "sharding",
    "checkpoint",
    "log",
    "eval",
    "chat.eval_template",
    "chat.eval_max_tiles",
    "chat.max_new_tokens",
    "chat.answers",
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


# ---- config files ----------------------------------------------------------------------------------------------------


EditableConfig = Any  # the ConfigDict of a config file; its keys are not visible to a type checker


def base() -> EditableConfig:
    """Return all keys with safe defaults as a locked ConfigDict, for a config file to start from."""
    c: Any = ConfigDict(Config().to_dict())
    c.model.vision_transformer.drop_path = placeholder(float)
    c.lock()
    for key in NAMED_BY_THE_EXPERIMENT:
        node: Any = c
        for part in key.split("."):
            node = node[part]
        node.unlock()
    return c


def benchmark(store: str, pairs: str, names: str = "") -> EditableConfig:
    """One evaluation for `eval.benchmarks` of a config file, see :class:`BenchmarkConfig`."""
    return ConfigDict({"store": store, "pairs": pairs, "names": names})


def typed(config: EditableConfig) -> Config:
    """Turn a ConfigDict that began as :func:`base` into a Config.

    Raises ValueError for unknown keys, and for missing ones that have no default.
    """
    return _typed(Config, config.to_dict(), "config")


def _typed(cls: Any, values: Mapping[str, Any], name: str) -> Any:
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    required = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    if wrong := (set(values) - set(fields)) | (required - set(values)):
        raise ValueError(f"{name}: {', '.join(sorted(wrong))}: unknown or missing; there are {', '.join(fields)}")
    out = {}
    for key, value in values.items():
        if dataclasses.is_dataclass(hints[key]):
            value = _typed(hints[key], value, f"{name}.{key}")
        elif hints[key] == Mapping[str, BenchmarkConfig]:
            value = {n: _typed(BenchmarkConfig, one, f"{name}.{key}.{n}") for n, one in value.items()}
        out[key] = value
    return cls(**out)


def experiments(config: EditableConfig, workdir: Path) -> dict[Path, Config]:
    """Return the experiments that a ConfigDict stands for, by work directory: itself, or one for each of its rows.

    Rows come in the order of their names, but those that train nothing first, so that results appear soon. They share
    the embedded faces. Raises ValueError for a row's key that no config has, or a wrong type.
    """
    if not config.rows:
        return {workdir: typed(config)}
    out = {}
    for name, changes in config.rows.items():
        row = config.copy_and_resolve_references()
        row.rows = ConfigDict()
        row.data.synthetic.dir = str(workdir)
        if unknown := [key for key in flatten(changes.to_dict()) if not has(row, key)]:
            raise ValueError(f"config.rows.{name}: {unknown_key(unknown[0], row)}")
        try:
            row.update(changes)
        except (KeyError, TypeError) as error:
            raise ValueError(f"config.rows.{name}: {' '.join(str(error.args[0]).split())}") from None
        row.name = name
        out[workdir / name] = typed(row)
    return dict(sorted(out.items(), key=lambda item: item[1].trains))


def differences(new: dict, old: dict) -> list[str]:
    """Return the keys whose values differ, as text, without those in MAY_CHANGE."""
    new, old = (flatten(json.loads(json.dumps(one))) for one in (new, old))
    return [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted(set(new) | set(old))
        if new.get(key) != old.get(key) and not _may_change(key)
    ]


def hash_without(settings: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Hash the settings of a run's config.json, without `keys` and what :data:`MAY_CHANGE` names.

    Runs with equal hashes computed the same but for `keys`.
    """
    computed = {key: value for key, value in flatten(settings).items() if key not in keys and not _may_change(key)}
    return hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()


def _may_change(key: str) -> bool:
    return any(f"{key}.".startswith(f"{start}.") for start in MAY_CHANGE)
