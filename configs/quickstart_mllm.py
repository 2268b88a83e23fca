"""Small versions of scenarios 2 and 3 on a laptop's CPU: tower, projector and decoder on the quickstart's faces.

    python -m fvjax.main --config=configs/quickstart_mllm.py

Each experiment is one row of the table:

    mllm_frozen  the tiny InternViT of this project, followed by a randomly initialised projector and decoder
    mllm_lora    the same model, frozen, with rank-8 adapters in tower and decoder; mean of the visual tokens
    pair_lora    the same model with adapters, answering Yes or No about two faces; the score is P(Yes)

This decoder knows no language: the ids of the prompt and of Yes and No are arbitrary. Hardware and time: 2 CPU cores,
under 5 minutes. docs/small_models.md has the result.
"""

from configs import quickstart

LORA = {
    "lora": {
        "rank": 8,
        "alpha": 8.0,
        "targets": ("vision/blocks/(attn|mlp)/.*", "decoder/blocks/mlp/(gate|up|down)"),
        "count": 4 * 4 + 2 * 3,
    },
    "trainable": (("lora/.*", "adapter"), (".*", "frozen")),
    "optimizer": {"name": "adamw", "lr": 4e-3, "weight_decay": 0.01},
    "eval": {"baselines": False, "before_training": False},
}
PAIR = {
    "task": "pair_answer",
    "model": {"pooling": ""},
    "epochs": 8,
    "optimizer": {**LORA["optimizer"], "lr": 2e-3},
    "data": {"pairs_per_epoch": 1600},
    "eval": {"baselines": False, "before_training": False, "pools": ()},
}


def get_config(row: str = ""):
    """Return the config of all rows, or of one `row` (--config=configs/quickstart_mllm.py:mllm_lora)."""
    rows = {"mllm_frozen": {"epochs": 0}, "mllm_lora": LORA, "pair_lora": {**LORA, **PAIR}}
    if row and row not in rows:
        raise ValueError(f"configs/quickstart_mllm.py has no row {row!r}; there are {', '.join(rows)}")
    c = quickstart.get_config("vit_frozen")
    c.name = "quickstart_mllm"
    c.model.kind = "vlm"
    c.model.pooling = "visual_mean"
    c.model.decoder.update(
        {"vocab": 64, "width": 128, "depth": 2, "heads": 4, "kv_heads": 2, "head_dim": 32, "mlp_dim": 256}
    )
    c.init_from = ""
    c.init_parts.vision = quickstart.TOWER["init_from"]
    c.prompt.ids = (2, 3, 4)
    c.prompt.yes_no_ids = (5, 6)
    c.epochs = 5
    c.optimizer.warmup_epochs = 1
    c.eval.pools = ("visual_mean", "all_mean", "last_token")
    if row:
        c.name = f"quickstart_mllm_{row}"
        c.update(rows[row])
    else:
        c.rows.update(rows)
    return c
