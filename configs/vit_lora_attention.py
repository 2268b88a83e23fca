"""Ablation of layers and rank: scenario 1 with adapters on the tower's attention, with and without its MLPs.

    python -m fvjax.main --config=configs/vit_lora_attention.py            all rows, one table
    python -m fvjax.main --config=configs/vit_lora_attention.py:both_r16   one row

The reference adapts the MLPs at rank 8 only (vit_lora) and leaves this question open, so there is no published result
to compare with. All other settings are those of vit_lora.
"""

from configs import vit_lora

ATTENTION = ("blocks/attn/qkv", "blocks/attn/proj")
BOTH = (*ATTENTION, "blocks/mlp/fc1", "blocks/mlp/fc2")
ROWS = {
    f"{name}_r{rank}": {"lora": {"rank": rank, "alpha": float(rank), "targets": targets, "count": 24 * len(targets)}}
    for name, targets in (("attention", ATTENTION), ("both", BOTH))
    for rank in (4, 8, 16)
}


def get_config(row: str = ""):
    """Return the config of all rows, or of one `row`."""
    if row and row not in ROWS:
        raise ValueError(f"configs/vit_lora_attention.py has no row {row!r}; there are {', '.join(ROWS)}")
    c = vit_lora.get_config()
    c.name = "vit_lora_attention"
    if row:
        c.name = f"vit_lora_attention_{row}"
        c.update(ROWS[row])
    else:
        c.rows.update(ROWS)
    return c
