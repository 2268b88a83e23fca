"""A tiny VLM learns to answer questions about procedural faces, on a laptop's CPU.

    python -m fvjax.main --config=configs/quickstart_chat.py

The tower is the tiny InternViT of this project, pretrained for other tasks; projector and decoder begin at random. Each
experiment is one row of the table:

    chat_frozen     the model as it is: what random weights answer
    chat_lora       the same model with rank-16 adapters in the decoder and a trained projector
    chat_text_only  the same training with a grey picture in place of every face: what the text alone tells

The questions are about pose, light, expression, what covers the face, hair and skin (fvjax/data/face_questions.py);
those of the table are about people that training has not seen. Hardware and time: 2 CPU cores, under 5 minutes.
docs/small_models.md has the result.
"""

from fvjax.config import base

LORA = {
    "epochs": 6,
    "lora": {
        "rank": 16,
        "alpha": 32.0,
        "targets": ("decoder/blocks/(attn|mlp)/.*",),
        "count": 7 * 3,
    },
    "trainable": (("lora/.*", "adapter"), ("params/projector/.*", "projector"), (".*", "frozen")),
}


def get_config(row: str = ""):
    """Return the config of all rows, or of one `row` (--config=configs/quickstart_chat.py:chat_lora)."""
    rows = {"chat_frozen": {}, "chat_lora": LORA, "chat_text_only": {**LORA, "chat": {"hide_pictures": True}}}
    if row and row not in rows:
        raise ValueError(f"configs/quickstart_chat.py has no row {row!r}; there are {', '.join(rows)}")
    c = base()
    c.name = "quickstart_chat"
    c.task = "conversation"
    c.model.kind = "vlm"
    c.model.vision_transformer.update(
        {"image_size": 112, "patch_size": 14, "width": 128, "depth": 4, "heads": 4, "mlp_dim": 512}
    )
    c.model.decoder.update(
        {"vocab": 512, "width": 128, "depth": 3, "heads": 4, "kv_heads": 2, "head_dim": 32, "mlp_dim": 384}
    )
    c.init_parts.vision = "fvjax/pretrained/tiny_internvit"
    c.trainable = ((".*", "frozen"),)
    c.chat.tokenizer = "fvjax/pretrained/tiny_chat"
    c.chat.system = ""
    c.chat.length = 128
    c.chat.buckets = (64, 96)
    c.chat.by_length = True
    c.chat.max_new_tokens = 8
    c.data.flip = False
    c.data.synthetic.identities = 200
    c.data.synthetic.test_images = 3
    c.data.synthetic.difficulty = 2.0  # as the tower was pretrained; poses and light vary more
    c.batch_size = 16
    c.optimizer.update(
        {"name": "adamw", "lr": 1.5e-3, "weight_decay": 0.0, "clip": 1.0, "schedule": "cosine", "warmup_ratio": 0.03}
    )
    c.eval.batch_size = 64
    c.eval.before_training = False
    c.checkpoint.every_steps = 200
    if row:
        c.name = f"quickstart_chat_{row}"
        c.update(rows[row])
    else:
        c.rows.update(rows)
    return c
