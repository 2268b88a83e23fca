"""The embedded default: a narrow IResNet learns to tell procedural faces apart, from nothing, on a laptop's CPU.

    python -m fvjax.main --config=configs/quickstart.py

Hardware and time: 2 CPU cores, under 4 minutes, nothing downloaded. Training and test identities are drawn by
fvjax/data/synthetic.py and differ in the shape of the face only; colours, light, pose and expression change with
every shot, so raw pixels and colours do not give them away (the first two rows of the table). Result: README.
"""

from fvjax.config import base


def get_config():
    c = base()
    c.name = "quickstart"
    c.model.iresnet.layers = (1, 1, 1, 1)
    c.model.iresnet.widths = (4, 8, 16, 32)
    c.model.iresnet.num_features = 128
    c.model.iresnet.conv_init = "kaiming"
    c.trainable = (("params/features/scale", "frozen"), (".*", "backbone"))
    c.data.synthetic.identities = 200
    c.data.names = "synthetic"
    c.batch_size = 32
    c.epochs = 8
    c.optimizer.warmup_epochs = 1
    c.eval.baselines = True
    c.checkpoint.every_steps = 72
    return c
