"""IResNet-50 with AdaFace on MS1M-ArcFace (MS1MV2), with the published settings.

    python -m fvjax.main --config=configs/adaface_r50.py

Settings: scripts/run_ir50_ms1mv2.sh and the defaults of config.py at github.com/mk-minchul/AdaFace: m 0.4, h 0.333,
scale 64, t_alpha 0.01, SGD with rate 0.1 and momentum 0.9, decay 5e-4, 256 images a step in all, 26 epochs, a tenth of
the rate after 12, 20 and 24 of them, no clipping, dropout 0.4. Not the same: its augmentations (low resolution, crops,
colours, each with probability 0.2) do not exist here, its batch norms do not decay, its network is another IResNet-50
(fvjax converts its weights to this one), and its statistics are of one GPU's images, not of all 256.
"""

from configs.paper import class_head, experiment


def get_config():
    c = experiment("adaface_r50")
    c.model.iresnet.dropout = 0.4
    c.trainable = (("params/features/scale", "frozen"), (".*", "backbone"))
    class_head(c)
    c.margin.kind = "adaface"
    c.dtype = "bfloat16"
    c.batch_size = 256
    c.epochs = 26
    c.optimizer.lr = 0.1
    c.optimizer.schedule = "epoch_milestones"
    c.optimizer.milestones = (12, 20, 24)
    c.optimizer.clip = 1e9  # none
    return c
