"""The verification sets that face recognition is judged by: a model is evaluated on all of them, nothing is trained.

    python -m fvjax.main --config=standard_suite --config.init_from=DIR                    all sets
    python -m fvjax.main --config=standard_suite:lfw,agedb_30 --config.init_from=DIR       some of them

DIR is an IResNet in insightface's names, or what `python -m weights_convert` made of one. Sets that are missing are
named with the commands that prepare them, and so is what a run of yours needs to be judged by them: copy the lines of
`SETS` to its config. TAR at FAR 1e-4 to 1e-6 is in results.json where there are enough impostor pairs. The accuracies
of RFW's four groups are also given as mean, standard deviation, lowest and highest.

Other protocols have commands of their own (docs/search.md): IJB-B and IJB-C `python -m fvjax.ijb`, TinyFace and every
other search `python -m fvjax.search`.
"""

from fvjax.config import base, benchmark

BINS = "insightface's validation files (recognition/_datasets_): python -m fvjax.data.prepare bin"
RFW = "RFW (whdeng.cn/RFW) as a .bin file for each group: python -m fvjax.data.prepare bin --folds=10"
GROUPS = ("african", "asian", "caucasian", "indian")
# set: (where it comes from and the command that prepares it)
SETS = {
    **{
        name: f"{BINS} --src=faces_emore/{name}.bin --dst=data/{name}"
        for name in ("lfw", "cfp_ff", "cfp_fp", "agedb_30", "calfw", "cplfw")
    },
    **{
        f"rfw_{group}": f"{RFW} --name=rfw_{group} --src={group.capitalize()}_test.bin --dst=data/rfw_{group}"
        for group in GROUPS
    },
}


def get_config(only: str = ""):
    names = only.split(",") if only else list(SETS)
    if unknown := [name for name in names if name not in SETS]:
        raise ValueError(f"standard_suite:{only}: no set {unknown[0]!r}; there are {', '.join(SETS)}")
    c = base()
    c.name = "standard_suite"
    c.init_from = "data/resnet50"
    c.trainable = ((".*", "frozen"),)
    c.eval.flip_sum = True  # as insightface and CVLFace evaluate
    c.eval.before_training = False
    for name in names:
        c.eval.benchmarks[name] = benchmark(f"data/{name}", name)
    model = "an IResNet, such as insightface's: python -m weights_convert --src=DIR --dst=data/resnet50"
    c.prepare = (("init_from", model), *((f"eval.benchmarks.{name}", SETS[name]) for name in names))
    return c
