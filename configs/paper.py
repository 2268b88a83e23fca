"""Parts shared by the configs of LLM-FaceVerification: training data, benchmarks, models and adapters."""

from fvjax.config import EditableConfig, base, benchmark
from fvjax.data.prompts import PAIR_PROMPT, PROMPT

MS1M = (
    "MS1M-ArcFace (github.com/deepinsight/insightface, recognition/_datasets_), the folder with train.rec: "
    "python -m fvjax.data.prepare recordio --src=FACES_EMORE --dst=data/ms1m"
)
LFW = (
    "LFW, aligned crops with vis-www.cs.umass.edu/lfw's pairs.txt: "
    "python -m fvjax.data.prepare lfw --src=LFW_CROPS --pairs=pairs.txt --dst=data/lfw"
)
CFP = (
    "CFP (cfpw.io), aligned crops and its Protocol folder: "
    "python -m fvjax.data.prepare cfp --src=CFP_CROPS --protocol=Protocol --dst=data/cfp"
)
INTERNVL = (
    "InternVL2-2B from huggingface.co/OpenGVLab/InternVL2-2B: "
    "hf download OpenGVLab/InternVL2-2B --local-dir data/InternVL2-2B"
)


def experiment(name: str) -> EditableConfig:
    """Return a config with the paper's training data and benchmarks, and the commands that prepare them."""
    c = base()
    c.name = name
    c.data.train = "data/ms1m"
    c.data.workers = 4
    c.eval.benchmarks.lfw = benchmark("data/lfw", "lfw")
    c.eval.benchmarks.cfp_ff = benchmark("data/cfp", "ff")
    c.eval.benchmarks.cfp_fp = benchmark("data/cfp", "fp")
    c.prepare = (
        ("data.train", MS1M),
        ("eval.benchmarks.lfw", LFW),
        ("eval.benchmarks.cfp_ff", CFP),
        ("init_from", INTERNVL),
    )
    c.checkpoint.every_steps = 1000
    return c


# Sharding rules for the large matrices. They split a matrix over the devices if the mesh has the named axes
# (--config.mesh.fsdp=4, or tensor). By default it does not have them, and every device has the whole matrix.
BLOCKS = (
    ("params/.*attn/qkv/kernel", (None, "fsdp")),  # its columns are q, k, v: a split would not fall between heads
    ("params/.*(attn/[qkv]|mlp/(fc1|gate|up))/kernel", (None, "fsdp", "tensor")),
    ("params/.*(attn/(proj|o)|mlp/(fc2|down))/kernel", (None, "tensor", "fsdp")),
)
WORDS = (("params/decoder/(embed|head)", (None, "fsdp")),)
REST = ((".*", ()),)

VISION = "vision/blocks/mlp/fc[12]"  # 48 adapters
DECODER = "decoder/blocks/mlp/(gate|up|down)"  # 72


def internvit(c: EditableConfig) -> None:
    """Select the frozen InternViT-300M of InternVL2-2B, with mean-pooled patch tokens (scenario 1)."""
    c.model.kind = "vision_transformer"
    c.model.pooling = "mean"
    c.init_from = "data/InternVL2-2B"
    c.base_dtype = "float16"
    c.dtype = "bfloat16"
    c.trainable = ((".*", "frozen"),)
    c.sharding = BLOCKS + REST


def internvl(c: EditableConfig) -> None:
    """Select the whole frozen InternVL2-2B, which embeds a face as the mean of its visual tokens (scenario 2)."""
    internvit(c)
    c.model.kind = "vlm"
    c.model.pooling = "visual_mean"
    c.prompt.text = PROMPT
    c.sharding = BLOCKS + WORDS + REST
    c.eval.batch_size = 64


MS1M_IDENTITIES = 85_742


def class_head(c: EditableConfig, rate: float = 1.0) -> None:
    """Train with a margin loss and a class for each identity of MS1M-ArcFace instead of with InfoNCE.

    rate: factor on the learning rate of the class head, whose gradient is not clipped (as in insightface).
    """
    c.task = "margin"
    c.head.classes = MS1M_IDENTITIES
    c.trainable = (("head/.*", "head"), *c.trainable)
    c.optimizer.unclipped = ("head",)
    c.optimizer.lr_scale.head = rate


def answering(c: EditableConfig) -> None:
    """Select the frozen InternVL2-2B, which answers Yes or No about two faces (scenario 3)."""
    internvl(c)
    c.task = "pair_answer"
    c.model.pooling = ""
    c.prompt.text = PAIR_PROMPT


def adapters(c: EditableConfig, targets: tuple[str, ...], count: int, rank: int = 8) -> None:
    """Add LoRA adapters to the frozen base, with the reference's training settings for the whole MLLM.

    Args:
        targets: regexes over layer paths.
        count: the number of adapters that they must create.
    """
    c.lora.rank = rank
    c.lora.alpha = float(rank)
    c.lora.targets = targets
    c.lora.count = count
    c.trainable = (("lora/.*", "adapter"), (".*", "frozen"))
    c.epochs = 10
    c.batch_size = 2048
    c.accumulation = 8
    c.optimizer.name = "adamw"
    c.optimizer.lr = 2e-4
    c.optimizer.weight_decay = 0.01
    c.optimizer.warmup_epochs = 2
    c.remat = "auto"
