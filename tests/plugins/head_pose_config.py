"""Regress the yaw and pitch of a head from the embeddings of the tower that comes with the project, on synthetic faces.

python -m fvjax.main --config=tests/plugins/head_pose_config.py
"""

from fvjax.config import base


def get_config():
    c = base()
    c.name = "head_pose"
    c.task = "tests.plugins.head_pose:HeadPose"
    c.plugin.people = 48
    c.model.kind, c.model.pooling = "vision_transformer", "mean"
    c.model.vision_transformer.update(
        {"image_size": 112, "patch_size": 14, "width": 128, "depth": 4, "heads": 4, "mlp_dim": 512}
    )
    c.init_from = "fvjax/pretrained/tiny_internvit"
    c.trainable = (("head/.*", "head"), (".*", "frozen"))
    c.optimizer.update({"name": "adamw", "lr": 3e-2, "weight_decay": 0.0, "schedule": "cosine", "warmup_ratio": 0.05})
    c.steps = 60
    c.batch_size, c.eval.batch_size = 16, 16
    c.checkpoint.every_steps = 30
    c.log.tensorboard = False
    return c
