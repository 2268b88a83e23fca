"""Scenario 2 with LoRA: rank-8 fp32 adapters on the MLPs of a frozen fp16 InternVL2-2B, tower and decoder.

    python -m fvjax.main --config=configs/mllm_lora.py

The pooling ablation is part of it: the one trained checkpoint is evaluated by three pools. Hardware of the seed: 8
GPUs, 32 images each in 8 accumulation steps. Its result by visual_mean (accuracy at FAR 1e-3): LFW 98.68, CFP-FF
98.09, CFP-FP 84.20. On one GPU: --config.batch_size=256 --config.accumulation=8 --config.optimizer.lr=2.5e-5 (fewer
negatives, a rate scaled with the batch). What differs from the seed's accumulation is in README, "Differences from
the reference"; compat.* brings it back.
"""

from configs.paper import DECODER, VISION, adapters, experiment, internvl


def get_config():
    c = experiment("mllm_lora")
    internvl(c)
    adapters(c, (VISION, DECODER), count=120)
    c.eval.pools = ("visual_mean", "all_mean", "last_token")
    return c
