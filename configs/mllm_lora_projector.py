"""Scenario 2 with the whole projector trained beside the adapters (variant of mllm_lora).

    python -m fvjax.main --config=configs/mllm_lora_projector.py

The reference leaves this question open, so there is no published result to compare with.

On one GPU, add --config.batch_size=256 --config.accumulation=8 --config.optimizer.lr=2.5e-5 (fewer negatives, and a
learning rate scaled with the batch). docs/differences.md says how the reference's accumulation
differs; compat.* restores it.
"""

from configs.paper import DECODER, VISION, adapters, experiment, internvl


def get_config():
    c = experiment("mllm_lora_projector")
    internvl(c)
    adapters(c, (VISION, DECODER), count=120)
    c.trainable = (("lora/.*", "adapter"), ("params/projector/.*", "projector"), (".*", "frozen"))
    return c
