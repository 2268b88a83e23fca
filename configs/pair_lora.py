"""Scenario 3 with LoRA: adapters in tower and decoder are trained to answer Yes or No about two faces.

    python -m fvjax.main --config=configs/pair_lora.py

Every epoch draws pairs_per_epoch new pairs, half of them genuine. batch_size counts images: 4096 images are the
reference's 2,048 pairs (8 GPUs with 16 pairs each, 16 accumulation steps). The reference's result (accuracy at FAR
1e-3): LFW 73.03, CFP-FF 65.77, CFP-FP 56.56. The cross-entropy is over the whole vocabulary, as in the reference's
code. The reference's text describes two tokens instead: --config.loss.pair_loss=yes_no.
"""

from configs.paper import DECODER, VISION, adapters, answering, experiment


def get_config():
    c = experiment("pair_lora")
    answering(c)
    adapters(c, (VISION, DECODER), count=120)
    c.batch_size = 2 * 2048
    c.accumulation = 16
    return c
