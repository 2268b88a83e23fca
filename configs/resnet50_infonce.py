"""The reference's baseline: IResNet-50, trained from scratch on MS1M-ArcFace with InfoNCE.

    python -m fvjax.main --config=configs/resnet50_infonce.py

The reference's hardware: 2 GPUs with 1,450 images each. Its result (accuracy at FAR 1e-3):
LFW 99.55, CFP-FF 99.59, CFP-FP 87.87.
"""

from configs.paper import experiment


def get_config():
    c = experiment("resnet50_infonce")
    c.model.iresnet.dropout = 0.4
    c.trainable = (("params/features/scale", "frozen"), (".*", "backbone"))
    c.dtype = "bfloat16"
    c.batch_size = 2900
    c.epochs = 30
    c.optimizer.lr = 0.1
    c.optimizer.warmup_epochs = 5
    return c
