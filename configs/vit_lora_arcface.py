"""Scenario 1 with ArcFace instead of InfoNCE: adapters on a frozen InternViT-300M, and a class for each identity.

    python -m fvjax.main --config=configs/vit_lora_arcface.py

The model, batch and adapters' rate are those of configs/vit_lora.py, the margin and the head's rate of 0.1 those of
insightface (configs/resnet50_arcface.py). Nobody has published results of this combination, and none were made here.
"""

from configs import vit_lora
from configs.paper import class_head


def get_config():
    c = vit_lora.get_config()
    c.name = "vit_lora_arcface"
    class_head(c, rate=100.0)
    return c
