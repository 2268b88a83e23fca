"""Which layers and what rank: scenario 1 with adapters on the tower's attention, alone and beside the MLPs.

    python -m fvjax.main --config=configs/vit_lora_attention.py            all rows, one table
    python -m fvjax.main --config=configs/vit_lora_attention.py:both_r16   one of them

An open question of the seed, which adapts the MLPs at rank 8 only (vit_lora); there is no published figure to compare
with. Else as vit_lora.
"""

import configs.vit_lora as seed

ATTENTION = ("blocks/attn/qkv", "blocks/attn/proj")
BOTH = (*ATTENTION, "blocks/mlp/fc1", "blocks/mlp/fc2")
ROWS = {
    f"{name}_r{rank}": {"lora": {"rank": rank, "alpha": float(rank), "targets": targets, "count": 24 * len(targets)}}
    for name, targets in (("attention", ATTENTION), ("both", BOTH))
    for rank in (4, 8, 16)
}


def get_config(row: str = ""):
    if row and row not in ROWS:
        raise ValueError(f"configs/vit_lora_attention.py has no row {row!r}; there are {', '.join(ROWS)}")
    c = seed.get_config()
    c.name = "vit_lora_attention"
    if row:
        c.name = f"vit_lora_attention_{row}"
        c.update(ROWS[row])
    else:
        c.rows.update(ROWS)
    return c
