"""Face-LLaVA, stage 2: everything but the two towers trains, from the result of stage 1.

    python -m fvjax.main --config=configs/facellava_stage2.py --workdir=runs/facellava_stage2

The published settings: learning rate 2e-5, 16 conversations on each of seven GPUs, one epoch, no adapters. The float32
state of 6.8 billion trained parameters takes 108 GB: split it with --config.mesh.fsdp=8.
"""

from configs.facellava import STAGE_2, facellava


def get_config():
    """Return the config."""
    c = facellava("facellava_stage2", lr=2e-5, batch_size=112)
    c.trainable = STAGE_2
    c.init_from = "runs/facellava_stage1"
    return c
