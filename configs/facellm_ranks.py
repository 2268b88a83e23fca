"""The rank ablation of FaceLLM-1B: adapters of rank 4, 8, 16 and 32, each a row of the table.

python -m fvjax.main --config=configs/facellm_ranks.py
"""

from configs.facellm import facellm

RANKS = (4, 8, 16, 32)


def get_config(row: str = ""):
    """Return the config of all rows, or of one `row` (--config=configs/facellm_ranks.py:rank_16)."""
    rows = {f"rank_{rank}": {"lora": {"rank": rank, "alpha": 2.0 * rank}} for rank in RANKS}
    if row and row not in rows:
        raise ValueError(f"configs/facellm_ranks.py has no row {row!r}; there are {', '.join(rows)}")
    c = facellm("facellm_ranks", "1b")
    if row:
        c.name = f"facellm_ranks_{row}"
        c.update(rows[row])
    else:
        c.rows.update(rows)
    return c
