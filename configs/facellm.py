"""Parts shared by the configs of FaceLLM (arXiv:2507.10300): InternVL3 with adapters on its decoder, on FairFaceGPT."""

from configs.paper import BLOCKS, REST, WORDS
from fvjax.config import EditableConfig, base, benchmark
from fvjax.models import presets

FAIRFACEGPT = (
    "FairFaceGPT's dataset.json (zenodo.org/records/16323621) and the pictures fairface_img_margin025 of FairFace: "
    "python -m fvjax.data.prepare conversations --src=dataset.json --images=FAIRFACE --dst=data/fairfacegpt --val=0.02"
)
FACEXBENCH = (
    "FaceXBench (github.com/Kartik-3004/facexbench), the folder that has benchmark/: "
    "python -m fvjax.data.prepare facexbench --src=FACEXBENCH --dst=data/facexbench"
)
ADAPTERS_PER_LAYER = 7  # q, k, v, o, gate, up, down


def internvl3(c: EditableConfig, size: str) -> None:
    """Select InternVL3 of a size ("1b", "2b", "8b", "14b", "38b"), all of it frozen."""
    parts = getattr(presets, f"internvl3_{size}")()
    c.model.kind = "vlm"
    for section, part in (("vision_transformer", "vision"), ("projector", "projector"), ("decoder", "decoder")):
        known = set(c.model[section])
        c.model[section].update({key: value for key, value in parts[part].items() if key in known})
    c.model.bos = parts["bos"]
    c.init_from = f"data/InternVL3-{size.upper()}"
    c.base_dtype = "bfloat16"
    c.dtype = "bfloat16"
    c.trainable = ((".*", "frozen"),)
    c.sharding = BLOCKS + WORDS + REST
    c.remat = "auto"


def facellm(name: str, size: str, rank: int = 16) -> EditableConfig:
    """Return FaceLLM's training: one epoch, rank-16 adapters on the decoder, learning rate 1e-5 with a cosine to 0.

    The published settings: one tile a picture in training, up to 12 and a thumbnail in evaluation, where there is no
    system message either; the loss covers the answer with the line break at its end.
    """
    c = base()
    c.name = name
    c.task = "conversation"
    internvl3(c, size)
    c.lora.rank = rank
    c.lora.alpha = 2.0 * rank
    c.lora.init = "peft"
    c.lora.targets = ("decoder/blocks/(attn|mlp)/.*",)
    c.lora.count = ADAPTERS_PER_LAYER * c.model.decoder.depth
    c.trainable = (("lora/.*", "adapter"), (".*", "frozen"))
    c.epochs = 1
    c.batch_size = 80
    c.accumulation = 8
    c.seed = 42
    c.optimizer.update({"name": "adamw", "lr": 1e-5, "weight_decay": 0.0, "clip": 1.0, "schedule": "cosine"})
    c.chat.buckets = (512, 768, 1024)
    c.chat.eval_template = "internvl2_5_hf"
    c.chat.eval_max_tiles = 12
    c.chat.max_new_tokens = 2048
    c.data.train = "data/fairfacegpt"
    c.data.flip = False
    c.data.workers = 4
    c.eval.batch_size = 8
    c.eval.benchmarks.facexbench = benchmark("data/facexbench", "")
    c.checkpoint.every_steps = 100
    hub = f"OpenGVLab/InternVL3-{size.upper()}"
    c.prepare = (
        ("data.train", FAIRFACEGPT),
        ("eval.benchmarks.facexbench", FACEXBENCH),
        ("init_from", f"{hub} from huggingface.co (or {hub}-hf): hf download {hub} --local-dir {c.init_from}"),
    )
    return c
