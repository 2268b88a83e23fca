"""IResNet-100 with ArcFace and Partial FC on MS1M-ArcFace (MS1MV2): a step compares with a tenth of the identities.

    python -m fvjax.main --config=configs/resnet100_arcface_pfc.py

Settings: recognition/arcface_torch/configs/ms1mv2_r100.py at github.com/deepinsight/insightface (8 GPUs with 128 images
each, margins (1, 0.5, 0), scale 64, rate 0.1, decay 5e-4, 20 epochs), and the sampling rate 0.1 of Partial FC
(arXiv:2203.15565), which that file leaves at 1. configs/resnet50_arcface.py says what is not the same.
"""

from configs import resnet50_arcface


def get_config():
    c = resnet50_arcface.get_config()
    c.name = "resnet100_arcface_pfc"
    c.model.iresnet.layers = (3, 13, 30, 3)
    c.head.sample_rate = 0.1
    c.optimizer.idle_rows = ("head",)
    c.optimizer.weight_decay = 5e-4
    return c
