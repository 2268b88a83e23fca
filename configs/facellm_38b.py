"""FaceLLM-38B: InternVL3-38B learns to describe faces from FairFaceGPT, and is judged by FaceXBench.

    python -m fvjax.main --config=configs/facellm_38b.py

The first line of the table is the base model before training, which the paper does not report. Published for
FaceLLM-38B: 60.52% of FaceXBench's questions (by generation, on 4,998 of them), trained on one GPU with batches of 12
in 6 parts.
"""

from configs.facellm import facellm


def get_config():
    c = facellm("facellm_38b", "38b")
    c.batch_size = 12
    c.accumulation = 6
    return c
