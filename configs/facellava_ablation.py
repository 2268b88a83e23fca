"""Face-LLaVA's ablation: which landmark tokens help, and how they are used. One row of the table each.

    python -m fvjax.main --config=configs/facellava_ablation.py --workdir=runs/facellava_ablation

Published (zero-shot on DFEW after training on MAFW, FERV39k and CREMA-D; UAR / WAR):

    no_landmarks           0.391 / 0.479   visual tokens alone, Video-LLaVA's architecture
    global_appended        0.402 / 0.483   one token of all points follows the visual tokens
    local_appended         0.409 / 0.491   nine tokens of face regions
    both_appended          0.410 / 0.491   the sums of both
    global_attention       0.401 / 0.483   visual tokens attend to landmark tokens, without distances
    local_attention        0.409 / 0.494
    both_attention         0.416 / 0.512
    facellava              0.424 / 0.520   with minus the distance of patch and region added to the scores

Every row trains everything but the towers in one stage. The two controls are not published: landmarks of other records
must help no more than none.
"""

from configs.facellava import STAGE_2, facellava
from fvjax.config import EditableConfig

ROWS = {
    "no_landmarks": {"use": ""},
    "global_appended": {"use": "append", "parts": "global"},
    "local_appended": {"use": "append", "parts": "local"},
    "both_appended": {"use": "append", "parts": "both"},
    "global_attention": {"use": "attention", "parts": "global", "variant": "simple"},
    "local_attention": {"use": "attention", "parts": "local", "variant": "simple"},
    "both_attention": {"use": "attention", "parts": "both", "variant": "simple"},
    "facellava": {"use": "attention", "parts": "both", "variant": "paper"},
}
CONTROLS = {"shuffled_landmarks": {"chat": {"landmarks": "shuffled"}}}


def get_config(row: str = "") -> EditableConfig:
    """Return the config of all rows, or of one `row` (--config=configs/facellava_ablation.py:facellava)."""
    rows = {name: {"model": {"landmarks": changes}} for name, changes in ROWS.items()} | CONTROLS
    if row and row not in rows:
        raise ValueError(f"configs/facellava_ablation.py has no row {row!r}; there are {', '.join(rows)}")
    c = facellava("facellava_ablation", lr=2e-5, batch_size=112)
    c.trainable = STAGE_2
    c.init_from = "data/Video-LLaVA-7B"
    if row:
        c.name = f"facellava_ablation_{row}"
        c.update(rows[row])
    else:
        c.rows.update(rows)
    return c
