"""Scenario 1, frozen: the pretrained InternViT-300M with mean-pooled 1024-d embeddings. Nothing is trained.

    python -m fvjax.main --config=configs/vit_frozen.py

The reference's result (accuracy at FAR 1e-3): LFW 66.12, CFP-FF 54.34, CFP-FP 51.76.
"""

from configs.paper import experiment, internvit


def get_config():
    c = experiment("vit_frozen")
    internvit(c)
    c.data.train = ""
    return c
