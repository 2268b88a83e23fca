"""Face-LLaVA in small: whether landmarks help where the picture does not show the answer, on a laptop's CPU.

    python -m fvjax.main --config=configs/facellava_quickstart.py

Pictures of drawn faces are shrunk to 6 pixels a side and enlarged again, so that the expression cannot be seen in them;
the 68 points are exact. A frozen tower and a decoder that begins at random learn to name the expression. Rows:

    no_landmarks          visual tokens alone
    facellava             visual tokens attend to the tokens of nine face regions, as in the paper
    shuffled_landmarks    the same with the landmarks of another picture, in training and in the questions

The figures are about people whom training has not seen. The settings are not tuned yet, and there is no result:
docs/face_instruction.md says how far it came.
"""

from configs.facellava import STAGE_2
from fvjax.config import base

# The landmark modules are a group of their own, with a higher rate: an expression moves the points by a few hundredths.
LANDMARKS = {
    "model": {"landmarks": {"use": "attention", "heads": 4}},
    "trainable": (("params/vision/.*", "frozen"), ("params/landmarks/.*", "landmarks"), (".*", "model")),
    "optimizer": {"lr_scale": {"landmarks": 25.0}},
}
ROWS = {
    "no_landmarks": {},
    "facellava": LANDMARKS,
    "shuffled_landmarks": {**LANDMARKS, "chat": {"landmarks": "shuffled"}},
}


def get_config(row: str = ""):
    """Return the config of all rows, or of one `row` (--config=configs/facellava_quickstart.py:facellava)."""
    if row and row not in ROWS:
        raise ValueError(f"configs/facellava_quickstart.py has no row {row!r}; there are {', '.join(ROWS)}")
    c = base()
    c.name = "facellava_quickstart"
    c.task = "face_instruction"
    c.model.kind = "llava"
    c.model.vision_transformer.update({"image_size": 112, "width": 128, "depth": 4, "heads": 4, "mlp_dim": 512})
    c.model.decoder.update(
        {"vocab": 512, "width": 64, "depth": 2, "heads": 4, "kv_heads": 4, "head_dim": 16, "mlp_dim": 192}
    )
    c.init_parts.vision = "fvjax/pretrained/tiny_internvit"
    c.trainable = STAGE_2
    c.chat.tokenizer = "fvjax/pretrained/tiny_chat"
    c.chat.template = "vicuna_tiny"
    c.chat.length = 256
    c.data.flip = False
    c.data.synthetic.identities = 300
    c.data.synthetic.images = 4
    c.data.synthetic.test_identities = 100
    c.data.synthetic.test_images = 4
    c.epochs = 8
    c.batch_size = 16
    c.optimizer.update(
        {"name": "adamw", "lr": 4e-3, "weight_decay": 0.0, "clip": 1.0, "schedule": "cosine", "warmup_ratio": 0.03}
    )
    c.eval.batch_size = 50
    c.eval.before_training = False
    c.checkpoint.every_steps = 1000
    if row:
        c.name = f"facellava_quickstart_{row}"
        c.update(ROWS[row])
    else:
        c.rows.update(ROWS)
    return c
