"""FaceLLM-1B: InternVL3-1B learns to describe faces from FairFaceGPT, and is judged by FaceXBench.

    python -m fvjax.main --config=configs/facellm_1b.py

The first line of the table is the base model before training, which the paper does not report. Published for
FaceLLM-1B: 38.86% of FaceXBench's questions (by generation, on 4,998 of them), trained on one GPU with batches of 80 in
8 parts.
"""

from configs.facellm import facellm


def get_config():
    return facellm("facellm_1b", "1b")
