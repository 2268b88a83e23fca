"""Scenario 2 with the projector trained in full beside the adapters: an open question of the seed; else as mllm_lora.

    python -m fvjax.main --config=configs/mllm_lora_projector.py

There is no published figure to compare with. On one GPU: --config.batch_size=256 --config.accumulation=8
--config.optimizer.lr=2.5e-5 (fewer negatives, a rate scaled with the batch). What differs from the seed's
accumulation is in README, "Differences from the reference"; compat.* brings it back.
"""

from configs.paper import DECODER, VISION, adapters, experiment, internvl


def get_config():
    c = experiment("mllm_lora_projector")
    internvl(c)
    adapters(c, (VISION, DECODER), count=120)
    c.trainable = (("lora/.*", "adapter"), ("params/projector/.*", "projector"), (".*", "frozen"))
    return c
