"""Scenario 2 with LoRA: rank-8 fp32 adapters on the MLPs of a frozen fp16 InternVL2-2B, in tower and decoder.

    python -m fvjax.main --config=configs/mllm_lora.py

The pooling ablation is included: one trained checkpoint is evaluated with three pools. The reference's hardware: 8
GPUs with 32 images each, in 8 accumulation steps. Its result with visual_mean (accuracy at FAR 1e-3): LFW 98.68, CFP-FF
98.09, CFP-FP 84.20.

On one GPU, add --config.batch_size=256 --config.accumulation=8 --config.optimizer.lr=2.5e-5 (fewer negatives, and a
learning rate scaled with the batch). docs/differences.md says how the reference's accumulation
differs; compat.* restores it.
"""

from configs.paper import DECODER, VISION, adapters, experiment, internvl


def get_config():
    c = experiment("mllm_lora")
    internvl(c)
    adapters(c, (VISION, DECODER), count=120)
    c.eval.pools = ("visual_mean", "all_mean", "last_token")
    return c
