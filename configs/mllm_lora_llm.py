"""Scenario 2 with adapters in the decoder only (ablation); else as mllm_lora.

    python -m fvjax.main --config=configs/mllm_lora_llm.py

On one GPU: --config.batch_size=256 --config.accumulation=8 --config.optimizer.lr=2.5e-5 (fewer negatives, a rate
scaled with the batch). What differs from the seed's accumulation is in README, "Differences from the reference";
compat.* brings it back.
"""

from configs.paper import DECODER, adapters, experiment, internvl


def get_config():
    c = experiment("mllm_lora_llm")
    internvl(c)
    adapters(c, (DECODER,), count=72)
    return c
