"""The default experiment, on a laptop's CPU: adapters teach verification to a tower that never learnt it.

    python -m fvjax.main --config=configs/quickstart.py

It runs three experiments on procedural faces (fvjax/data/synthetic.py) with pose, hard light and occlusion. Each is one
row of the table:

    vit_frozen  the tiny InternViT of this project (fvjax/pretrained), pretrained for other tasks
    vit_lora    the same tower, frozen, with rank-8 adapters trained
    resnet      a narrow IResNet trained from scratch

Hardware and time: 2 CPU cores, under 5 minutes, without downloads. Identities differ only in the shape of the face.
Colours, light, pose and expression change with every picture, so raw pixels and colours do not identify anyone (the
first two rows of the table). README has the result.
"""

from fvjax.config import base

TOWER = {
    "epochs": 0,
    "init_from": "fvjax/pretrained/tiny_internvit",
    "trainable": ((".*", "frozen"),),
    "model": {"kind": "vision_transformer", "pooling": "mean"},
}
LORA = {
    "epochs": 5,
    "lora": {
        "rank": 8,
        "alpha": 8.0,
        "targets": ("blocks/attn/qkv", "blocks/attn/proj", "blocks/mlp/fc1", "blocks/mlp/fc2"),
        "count": 16,
    },
    "trainable": (("lora/.*", "adapter"), (".*", "frozen")),
    "optimizer": {"name": "adamw", "lr": 4e-3, "weight_decay": 0.01},
    "eval": {"baselines": False, "before_training": False},
}


RESNET = {"eval": {"baselines": False, "before_training": False}}


def get_config(row: str = ""):
    """Return the config of all rows, or of one `row` (--config=configs/quickstart.py:vit_lora)."""
    rows = {"vit_frozen": TOWER, "vit_lora": {**TOWER, **LORA}, "resnet": RESNET}
    if row and row not in rows:
        raise ValueError(f"configs/quickstart.py has no row {row!r}; there are {', '.join(rows)}")
    c = base()
    c.name = "quickstart"
    c.model.iresnet.layers = (1, 1, 1, 1)
    c.model.iresnet.widths = (4, 8, 24, 64)
    c.model.iresnet.num_features = 128
    c.model.iresnet.conv_init = "kaiming"
    c.model.vision_transformer.update(
        {"image_size": 112, "patch_size": 14, "width": 128, "depth": 4, "heads": 4, "mlp_dim": 512}
    )
    c.trainable = (("params/features/scale", "frozen"), (".*", "backbone"))
    c.data.synthetic.identities = 200
    c.data.synthetic.difficulty = 2.0
    c.data.names = "synthetic"
    c.batch_size = 32
    c.epochs = 5
    c.optimizer.warmup_epochs = 1
    c.eval.baselines = True
    c.checkpoint.every_steps = 72
    if row:
        c.name = f"quickstart_{row}"
        c.update(rows[row])
    else:
        c.rows.update(rows)
    return c
