"""Scenario 2, frozen: the whole InternVL2-2B as it comes, mean of the visual tokens' states; nothing is trained.

    python -m fvjax.main --config=configs/mllm_frozen.py

The seed's result (accuracy at FAR 1e-3): LFW 60.12, CFP-FF 53.17, CFP-FP 50.86.
"""

from configs.paper import experiment, internvl


def get_config():
    c = experiment("mllm_frozen")
    internvl(c)
    c.data.train = ""
    return c
