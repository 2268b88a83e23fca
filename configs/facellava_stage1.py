"""Face-LLaVA, stage 1: Video-LLaVA-7B learns to use landmarks; nothing but the landmark modules trains.

    python -m fvjax.main --config=configs/facellava_stage1.py --workdir=runs/facellava_stage1

The published settings: learning rate 1e-4, 24 conversations on each of seven GPUs, one epoch. The attention is that of
the text; the released scripts train the variant "simple" (--config.model.landmarks.variant=simple), and their loss is
the mean of the GPUs' means (--config.compat.token_mean_rows=24).
"""

from configs.facellava import STAGE_1, facellava


def get_config():
    """Return the config."""
    c = facellava("facellava_stage1", lr=1e-4, batch_size=168)
    c.trainable = STAGE_1
    c.init_from = "data/Video-LLaVA-7B"
    return c
