"""Scenario 3 with LoRA: the answer Yes or No about two faces is trained through adapters in tower and decoder.

    python -m fvjax.main --config=configs/pair_lora.py

pairs_per_epoch pairs, half of them genuine, are drawn anew every epoch. batch_size counts images: 4096 are the seed's
2,048 pairs (8 GPUs, 16 pairs each, 16 accumulation steps). Its result (accuracy at FAR 1e-3): LFW 73.03, CFP-FF
65.77, CFP-FP 56.56. The cross-entropy is over the whole vocabulary, as in the seed's code; its text has two tokens:
--config.loss.pair_loss=yes_no.
"""

from configs.paper import DECODER, VISION, adapters, answering, experiment


def get_config():
    c = experiment("pair_lora")
    answering(c)
    adapters(c, (VISION, DECODER), count=120)
    c.batch_size = 2 * 2048
    c.accumulation = 16
    return c
