"""The small IResNet of configs/small_real.py with ArcFace on the 324 identities instead of InfoNCE.

    python -m fvjax.main --config=configs/small_real_arcface.py

Data, network, epochs and seed are those of configs/small_real.py. The scale and the margin are smaller than ArcFace's
64 and 0.5, because there are few identities and the network is narrow.
"""

from configs import small_real


def get_config():
    c = small_real.get_config()
    c.name = "small_real_arcface"
    c.task = "margin"
    c.head.classes = 324
    c.margin.scale = 32.0
    c.margin.m2 = 0.3
    c.trainable = (("head/.*", "head"), *c.trainable)
    c.optimizer.unclipped = ("head",)
    return c
