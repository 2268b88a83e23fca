"""Scenario 3 with adapters in the decoder only (ablation of pair_lora).

    python -m fvjax.main --config=configs/pair_lora_llm.py

Every epoch draws pairs_per_epoch new pairs, half of them genuine. batch_size counts images: 4096 images are the
reference's 2,048 pairs (8 GPUs with 16 pairs each, 16 accumulation steps).
"""

from configs.paper import DECODER, adapters, answering, experiment


def get_config():
    c = experiment("pair_lora_llm")
    answering(c)
    adapters(c, (DECODER,), count=72)
    c.batch_size = 2 * 2048
    c.accumulation = 16
    return c
