"""Scenario 1 with LoRA: rank-8 fp32 adapters on both MLP layers of every block of a frozen fp16 InternViT-300M.

    python -m fvjax.main --config=configs/vit_lora.py

The reference's hardware: 8 GPUs with 200 images each. Its result (accuracy at FAR 1e-3): LFW 99.02, CFP-FF 97.60,
CFP-FP 87.07. On one GPU, add --config.batch_size=200 --config.optimizer.lr=1.25e-4 (fewer negatives, and a learning
rate scaled with the batch).
"""

from configs.paper import experiment, internvit


def get_config():
    c = experiment("vit_lora")
    internvit(c)
    c.lora.rank = 8
    c.lora.alpha = 8.0
    c.lora.targets = ("blocks/mlp/fc1", "blocks/mlp/fc2")
    c.lora.count = 48
    c.trainable = (("lora/.*", "adapter"), (".*", "frozen"))
    c.batch_size = 1600
    c.epochs = 15
    c.optimizer.lr = 1e-3
    c.optimizer.warmup_epochs = 5
    c.remat = "auto"
    return c
