"""Scenario 2, frozen: the whole pretrained InternVL2-2B, with mean-pooled visual tokens. Nothing is trained.

    python -m fvjax.main --config=configs/mllm_frozen.py

The reference's result (accuracy at FAR 1e-3): LFW 60.12, CFP-FF 53.17, CFP-FP 50.86.
"""

from configs.paper import experiment, internvl


def get_config():
    c = experiment("mllm_frozen")
    internvl(c)
    c.data.train = ""
    return c
