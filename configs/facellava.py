"""Parts shared by the configs of Face-LLaVA (arXiv:2504.07198): Video-LLaVA-7B with landmark modules, in two stages."""

from configs.paper import BLOCKS, REST, WORDS
from fvjax.config import EditableConfig, base, benchmark
from fvjax.models import presets

FACEINSTRUCT = (
    "FaceInstruct-1M (huggingface.co/datasets/chaubeyG/FaceInstruct1M) with the pictures and clips of its data sets, "
    "cropped, and a landmarks file for each: docs/face_instruction.md says how they become a store"
)
VIDEO_LLAVA = (
    "Video-LLaVA-7B (huggingface.co/LanguageBind/Video-LLaVA-7B) as safetensors; docs/face_instruction.md says how"
)
VICUNA = "the tokenizer of huggingface.co/lmsys/vicuna-7b-v1.5: tokenizer.model and tokenizer_config.json"
# Which parameters train: the landmark modules alone, then everything but the two towers.
STAGE_1 = (("params/(landmarks|attention)/.*", "landmarks"), (".*", "frozen"))
STAGE_2 = (("params/(vision|video)/.*", "frozen"), (".*", "model"))


def video_llava(c: EditableConfig) -> None:
    """Select Video-LLaVA-7B with landmark modules of Face-LLaVA's text."""
    c.model.kind = "llava"
    for section, part in (("vision_transformer", presets.languagebind()), ("decoder", presets.vicuna_7b())):
        known = set(c.model[section])
        c.model[section].update({key: value for key, value in part.items() if key in known})
    c.model.frames = 8
    c.model.landmarks.use = "attention"
    c.dtype = "bfloat16"
    c.base_dtype = "bfloat16"
    c.sharding = BLOCKS + WORDS + REST
    c.remat = "auto"


def facellava(name: str, lr: float, batch_size: int) -> EditableConfig:
    """Return what both stages share: one epoch, AdamW without decay, per-step cosine after 3% warm-up."""
    c = base()
    c.name = name
    c.task = "face_instruction"
    video_llava(c)
    c.epochs = 1
    c.seed = 42
    c.batch_size = batch_size
    c.optimizer.update(
        {"name": "adamw", "lr": lr, "weight_decay": 0.0, "clip": 1.0, "schedule": "cosine", "warmup_ratio": 0.03}
    )
    c.chat.template = "vicuna_v1"
    c.chat.eval_template = "llava_v1"
    c.chat.tokenizer = "data/vicuna-7b-v1.5"
    c.chat.length = 3072
    c.chat.buckets = (512, 2304)  # a picture and its text, a clip and its text
    c.chat.by_length = True
    c.chat.max_new_tokens = 512
    c.data.train = "data/faceinstruct"
    c.data.flip = False
    c.data.workers = 8
    c.eval.batch_size = 8
    c.eval.benchmarks.dfew = benchmark("data/dfew", "")
    c.checkpoint.every_steps = 5000
    c.prepare = (("data.train", FACEINSTRUCT), ("init_from", VIDEO_LLAVA), ("chat.tokenizer", VICUNA))
    return c
