"""Scenario 2 with ArcFace instead of InfoNCE: adapters on a frozen InternVL2-2B, and a class for each identity.

    python -m fvjax.main --config=configs/mllm_lora_arcface.py

The model, batch and adapters' rate are those of configs/mllm_lora.py; the head has 50 times that rate, 0.01 with AdamW.
Nobody has published results of this combination, and none were made here.
"""

from configs import mllm_lora
from configs.paper import class_head


def get_config():
    c = mllm_lora.get_config()
    c.name = "mllm_lora_arcface"
    class_head(c, rate=50.0)
    c.eval.pools = ()
    return c
