"""Scenario 3, frozen: the pretrained InternVL2-2B is asked about two faces; the score is P(Yes). Nothing is trained.

    python -m fvjax.main --config=configs/pair_frozen.py

The reference's result (accuracy at FAR 1e-3): LFW 50.00, CFP-FF 50.40, CFP-FP 50.03.
"""

from configs.paper import answering, experiment


def get_config():
    c = experiment("pair_frozen")
    answering(c)
    c.data.train = ""
    return c
