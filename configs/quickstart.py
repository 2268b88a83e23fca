"""The embedded default: a narrow IResNet learns to tell procedural faces apart, from nothing, on a laptop's CPU.

python -m fvjax.main --config=configs/quickstart.py
"""

from fvjax.config import base


def get_config():
    c = base()
    c.name = "quickstart"
    c.model.iresnet.layers = (1, 1, 1, 1)
    c.model.iresnet.widths = (8, 16, 32, 64)
    c.model.iresnet.num_features = 128
    c.model.iresnet.conv_init = "kaiming"
    c.trainable = (("params/features/scale", "frozen"), (".*", "backbone"))
    c.data.synthetic.identities = 200
    c.batch_size = 128
    c.epochs = 12
    c.optimizer.warmup_epochs = 1
    c.eval.baselines = True
    c.checkpoint.every_steps = 20
    return c
