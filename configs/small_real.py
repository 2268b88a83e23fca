"""A small IResNet on a few thousand real faces: an LFW result in half an hour on a laptop's two cores.

It trains on the 324 identities of CFP whose names do not occur in LFW (4,518 crops; 18 more are copies), and evaluates
LFW's 6,000 pairs and both CFP protocols. From aligned 112x112 crops:

    python -m fvjax.data.prepare folder --src=CFP_CROPS --exclude=OVERLAP.tsv --dst=data/cfp324
    python -m fvjax.data.prepare lfw --src=LFW_CROPS --pairs=pairs.txt --dst=data/lfw
    python -m fvjax.data.prepare cfp --src=CFP_CROPS --protocol=Protocol --dst=data/cfp
    python -m fvjax.main --config=configs/small_real.py

Hardware and time: 2 CPU cores, about half an hour. docs/small_models.md has the result. CFP's rows are marked as seen,
because the model is trained on identities of CFP. LFW's are not.
"""

from fvjax.config import base, benchmark


def get_config():
    c = base()
    c.name = "small_real"
    c.model.iresnet.layers = (2, 2, 2, 2)
    c.model.iresnet.widths = (16, 32, 64, 128)
    c.model.iresnet.num_features = 256
    c.model.iresnet.dropout = 0.4
    c.model.iresnet.conv_init = "kaiming"
    c.trainable = (("params/features/scale", "frozen"), (".*", "backbone"))
    c.data.train = "data/cfp324"
    c.data.names = "cfp"
    c.batch_size = 128
    c.epochs = 22
    c.optimizer.warmup_epochs = 2
    c.eval.benchmarks.lfw = benchmark("data/lfw", "lfw", names="lfw")
    c.eval.benchmarks.cfp_ff = benchmark("data/cfp", "ff", names="cfp")
    c.eval.benchmarks.cfp_fp = benchmark("data/cfp", "fp", names="cfp")
    c.eval.every_epochs = 5
    c.eval.before_training = False  # it would take one minute of the half hour
    c.eval.during = ("lfw",)
    c.checkpoint.every_steps = 140
    make = "Made from aligned crops: python -m fvjax.data.prepare"
    c.prepare = (
        ("data.train", f"{make} folder --src=CFP_CROPS --exclude=OVERLAP.tsv --dst=data/cfp324"),
        ("eval.benchmarks.lfw", f"{make} lfw --src=LFW_CROPS --pairs=pairs.txt --dst=data/lfw"),
        ("eval.benchmarks.cfp_ff", f"{make} cfp --src=CFP_CROPS --protocol=Protocol --dst=data/cfp"),
    )
    return c
