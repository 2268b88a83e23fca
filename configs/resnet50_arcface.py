"""IResNet-50 with ArcFace on MS1M-ArcFace (MS1MV2), with the settings of insightface.

    python -m fvjax.main --config=configs/resnet50_arcface.py

Settings: recognition/arcface_torch/configs/ms1mv2_r50.py at github.com/deepinsight/insightface, which is run on 8 GPUs
with 128 images each: margins (1, 0.5, 0), scale 64, SGD with rate 0.1 and momentum 0.9, decay 1e-4, 20 epochs without
warm-up; the gradient of the backbone is clipped at 5, that of the head is not. The rate falls linearly to 0, as in the
newest arcface_torch. Not the same: batch statistics are of all 1,024 images (there of one GPU's), and the embedding is
computed in bfloat16 instead of float16.
"""

from configs.paper import class_head, experiment


def get_config():
    c = experiment("resnet50_arcface")
    c.trainable = (("params/features/scale", "frozen"), (".*", "backbone"))
    class_head(c)
    c.dtype = "bfloat16"
    c.batch_size = 1024
    c.epochs = 20
    c.optimizer.lr = 0.1
    c.optimizer.weight_decay = 1e-4
    c.optimizer.schedule = "linear"
    return c
