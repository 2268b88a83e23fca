"""Scenario 2 with adapters in the vision tower only (ablation of mllm_lora).

    python -m fvjax.main --config=configs/mllm_lora_vit.py

On one GPU, add --config.batch_size=256 --config.accumulation=8 --config.optimizer.lr=2.5e-5 (fewer negatives, and a
learning rate scaled with the batch). docs/differences.md says how the reference's accumulation
differs; compat.* restores it.
"""

from configs.paper import VISION, adapters, experiment, internvl


def get_config():
    c = experiment("mllm_lora_vit")
    internvl(c)
    adapters(c, (VISION,), count=48)
    return c
