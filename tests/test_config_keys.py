"""Test that every config key has its effect: each is changed, and the thing that it controls must change.

EFFECTS has at least one entry for each key of `base()`: another legal value, a config in which the key matters, and
where the effect must appear: in the traced training step, the shapes, shardings or values of the state, the batches,
the generated stores, or the files and results of a whole run. A key without an entry fails, and so does a key whose
change has no effect. The runs are real ones of `experiment.run`, with a linear network that compiles quickly.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from flax.traverse_util import flatten_dict
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

import fvjax.main
import fvjax.results
from fvjax import api, checks, experiment, files, runtime, shipped, tasks, trees
from fvjax.config import CHOICES, base, benchmark, differences, typed
from fvjax.console import console
from fvjax.data import attribute_faces, pipeline, synthetic
from fvjax.data.stores import Store
from fvjax.data.stores.conversations import Writer
from fvjax.data.tokenizers.internlm2 import Tokenizer
from fvjax.evals import plots, verification
from fvjax.models import encoder as encoders
from fvjax.models import preprocess
from fvjax.parallel import distributed, sharding
from fvjax.tasks import faces
from fvjax.tasks.benchmarks import Benchmarks, CosineScore
from fvjax.tasks.predictor import Predictor
from fvjax.tasks.task import Text
from fvjax.training import feed, optimizer, preemption
from fvjax.training.model import Pretrained, build_encoder, open_model, open_pretrained, pretrained_hash
from fvjax.training.restore import restore
from fvjax.training.state import make_learner, start_state
from fvjax.training.step import Recipe, gradients
from tests import tiny_bpe, tiny_clip
from tests.test_conversation_store import chat, make, picture
from tests.test_prompts import describe
from weights_convert.write import write_original

# ---- configs in which keys matter ------------------------------------------------------------------------------------


def resnet():
    c = base()
    c.model.iresnet.update({"layers": (1,), "widths": (4,), "num_features": 8})
    c.batch_size = 16
    return c


def vit():
    c = base()
    c.model.kind, c.model.pooling = "vision_transformer", "mean"
    tower = {"image_size": 28, "patch_size": 14, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
    c.model.vision_transformer.update(tower)
    c.lora.update({"rank": 2, "alpha": 4.0, "targets": ("blocks/mlp/fc[12]",), "count": 2})
    c.trainable = (("lora/.*", "adapter"), (".*", "frozen"))
    c.batch_size = 16
    return c


def classes():
    """Return the config of the tower with a class head."""
    c = vit()
    c.task, c.head.classes = "margin", 40
    c.trainable = (("head/.*", "head"), *c.trainable)
    return c


def bare():
    """Return the config of the tower without adapters."""
    c = vit()
    c.lora.update({"rank": 0, "alpha": 0.0, "targets": (), "count": 0})
    c.trainable = ((".*", "all"),)
    return c


def vlm():
    c = vit()
    c.model.kind, c.model.pooling = "vlm", "all_mean"
    c.model.vision_transformer.image_size = 56  # 2 x 2 visual tokens: in another order by the other pixel shuffle
    decoder = {"vocab": 11, "width": 8, "depth": 2, "heads": 2, "kv_heads": 2, "head_dim": 4, "mlp_dim": 8}
    c.model.decoder.update(decoder)
    c.prompt.update({"ids": (2, 3), "yes_no_ids": (5, 6)})
    c.lora.update({"targets": ("(vision|decoder)/blocks/mlp/(fc[12]|up)",), "count": 4})
    return c


def answers():
    c = vlm()
    c.task, c.model.pooling = "pair_answer", ""
    return c


def talks():
    """Return the config of a model that learns answers in conversations; `TALKS` names the stores."""
    c = vlm()
    c.task, c.model.pooling = "conversation", ""
    c.model.vision_transformer.image_size = 28  # one visual token a tile
    c.model.decoder.vocab = 512
    c.prompt.update({"ids": (), "yes_no_ids": ()})
    c.chat.update({"tokenizer": "fvjax/pretrained/tiny_chat", "system": "", "length": 128})
    c.data.flip, c.batch_size = False, 4
    return c


def looks():
    """Return the config of a model that learns from pictures and clips with landmarks; `FACES` names the store."""
    c = talks()
    c.task, c.model.kind, c.model.frames = "face_instruction", "llava", 2
    c.model.vision_transformer.depth = 2  # the last layer is not built
    c.model.landmarks.update({"use": "attention", "heads": 2})
    c.chat.update({"template": "vicuna_tiny", "length": 256})
    return c


def recognises():
    """Return the config of a model that learns attributes; `TRAITS` names the store."""
    c = vlm()
    c.task, c.model.pooling = "attributes", ""
    c.lora.update({"rank": 0, "alpha": 0.0, "targets": (), "count": 0})
    c.trainable = (("params/projector/.*", "adapter"), ("head/.*", "adapter"), (".*", "frozen"))
    c.attributes.update({"hidden": 8, "text_width": 8, "rules": "procedural", "rule_sets": ("anatomical", "groups")})
    c.data.flip, c.batch_size = False, 4
    return c


def toy():
    """Return the config of a run whose network is :class:`Linear`, with 4 steps of 8 images per epoch."""
    c = base()
    c.name = "toy"
    c.model.iresnet.num_features = 4
    c.data.synthetic.update({"identities": 8, "images": 4, "test_identities": 20, "test_images": 2, "test_pairs": 20})
    c.batch_size, c.epochs, c.eval.batch_size = 8, 2, 40
    c.eval.bootstrap, c.data.flip = 5, False
    c.optimizer.lr = 1e-3
    return c


def without_data():
    c = toy()
    c.data.synthetic.identities = 0
    return c


class Linear(nn.Module):
    """A network that multiplies some pixels with a matrix, with the fields of an IResNet."""

    features: int

    def preprocess(self, images):
        return preprocess.for_resnet(images)

    def embed(self, x, text, pooling, **_):
        return self(x)

    @nn.compact
    def __call__(self, x, **_):
        uniform = nn.initializers.uniform(0.1)  # compiles sooner than flax's default
        return nn.Dense(self.features, kernel_init=uniform, name="fc")(x.reshape(x.shape[0], -1)[:, ::401])


class ToyEncoder(encoders.Encoder):
    def pools(self, variables, faces, pools):
        x = self(variables, faces)[0]
        return jnp.stack([x[:, i:] @ x[:, i:].T[:, :2] if i else x[:, :2] for i in range(len(pools))], axis=1)


@contextlib.contextmanager
def linear_network(mesh):
    """Replace every model by the linear network, draw no plots, and use as many devices as the config's mesh names."""

    def build(kind, attributes, pooling, prompt=(), yes_no=(), /, **_):
        return ToyEncoder(Linear(attributes["num_features"]), "")

    with pytest.MonkeyPatch.context() as patch:
        first = jax.devices()[: abs(math.prod(mesh.values()))]
        patch.setattr(jax, "devices", lambda *_: first)
        patch.setattr(encoders, "build", build)
        for plot in ("roc", "det"):
            patch.setattr(plots, plot, lambda path, _: path.touch())
        yield patch


# ---- code of a user's own --------------------------------------------------------------------------------------------


def mean_square(embeddings, labels):
    return jnp.mean(jnp.square(embeddings))


def mean_cosine(cosines, labels, columns):
    return jnp.mean(cosines)


def sum_of_logits(logits, labels, columns):
    return logits.sum(axis=-1)


def backbone(settings, dtype):
    return ToyEncoder(Linear(settings["features"]), "")


class Tracked:
    """A tracker that writes what it is given into a file of the workdir."""

    def __init__(self, name, workdir, step):
        self.file = (workdir / "tracked").open("a")
        self.file.write(f"{name} from {step}:")

    def write(self, step, values):
        self.file.write(f" {step}{' loss' * ('loss' in values)}")

    def picture(self, step, name, pixels):
        (Path(self.file.name).parent / "shown").touch()

    def close(self):
        self.file.write(" closed")
        self.file.close()


def plugged():
    c = resnet()
    c.model.kind = f"{__name__}:backbone"
    c.plugin.update({"features": 3})
    return c


# ---- observations in which effects must appear -----------------------------------------------------------------------


def program(fn: Callable, *args: Any) -> tuple:
    """Return the jaxpr of a function as text, without addresses in memory, and the arrays that it closes over."""
    closed = jax.make_jaxpr(fn)(*args)
    arrays = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in closed.consts]
    constants = [(np.asarray(x).dtype.name, np.asarray(x).tolist()) for x in arrays]
    return re.sub("0x[0-9a-f]+", "", str(closed.jaxpr)), constants


def task_of(config, folder=Path()):
    c = typed(config)
    return tasks.get(c.task)(c, folder)


def opened(config):
    return open_model(typed(config), task_of(config), sharding.make_mesh(config.mesh))


def learner(config, model):
    lengths = {"epochs": config.epochs, "steps_per_epoch": 1, "steps": config.steps}
    return make_learner(typed(config).optimizer, model.groups, **lengths)


def initial(model):
    return model.initial, model.key


def step(config, _) -> tuple:
    """Return the program of a training step: the loss and its gradient."""
    model, task, c = opened(config), task_of(config), typed(config)
    recipe = Recipe(model, task, learner(config, model), c.accumulation, c.compat.last_micro_batch)
    state = jax.eval_shape(lambda key: recipe.learner.init(model, key), model.key)
    batch = task.batch_shapes(c.batch_size // task.images_per_example)
    return program(functools.partial(gradients, recipe), state, model.frozen, batch)


def forward(config, _) -> tuple:
    """Return the program that embeds faces, or answers a pair, after training."""
    model = opened(config)
    variables = jax.eval_shape(model.init, jax.random.key(0))

    def call(variables, faces):
        variables = model.variables(variables, {}, {})
        if config.task == "pair_answer":
            return model.encoder.answer(variables, faces, faces, model.encoder.yes_no)
        return model.encoder(variables, faces)[0]

    return program(call, variables, jax.ShapeDtypeStruct((2, 112, 112, 3), jnp.uint8))


def shapes(config, _) -> dict:
    """Return shape and type of all trained and frozen variables."""
    model = opened(config)
    leaves = trees.flatten({"frozen": jax.eval_shape(model.read_frozen), **jax.eval_shape(*initial(model))})
    return {name: (x.shape, x.dtype.name) for name, x in leaves.items()}


def initialisation(config, _) -> tuple:
    return program(*initial(opened(config)))


def placement(config, _) -> tuple:
    """Return the mesh, and the part of each leaf that each device holds."""
    return dict(sharding.make_mesh(config.mesh).shape), {n: str(s.spec) for n, s in opened(config).shardings.items()}


def values(config, folder) -> dict[str, list]:
    """Return the linear network's initial variables, trained and frozen, and the results of a run without training."""
    with linear_network(config.mesh):
        model = opened(config)
        begun = start_state(learner(config, model), model, sharding.make_mesh(config.mesh))
        untrained = restore(typed(config).replace({"epochs": 0}), folder)
        found = {"trains": begun.trainable, "frozen": model.read_frozen(), "untrained": untrained.trainable}
        return {name: np.asarray(x).tolist() for name, x in trees.flatten(found).items()}


def trains(config, folder) -> list:
    return values(config, folder)["trains/params/fc/kernel"]


def frozen(config, folder) -> list:
    return values(config, folder)["frozen/params/fc/kernel"]


def untrained(config, folder) -> list:
    return values(config, folder)["untrained/params/fc/kernel"]


def of_base(config, _) -> dict:
    """Return a pretrained weight as it is read."""
    params = open_pretrained(config.init_from, dict(config.init_parts), config.model.kind).params
    return {name: np.asarray(leaf[()]).tolist() for name, leaf in params.items() if "cls" in name}


def base_hash(config, _) -> str:
    return pretrained_hash(config.init_from, dict(config.init_parts), config.base_kernels)


def open_data(config, folder) -> tuple:
    """Return the store to train on and the plan of its batches."""
    task = task_of(config, folder)
    store = task.open_store()
    return store, task.examples(store).plan


def batches(config, folder) -> dict:
    """Return the first and last batch of the first epoch as training sees them, and the number of batches."""
    store, plan = open_data(config, folder)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    found = list(feed.batches(config.data, store, plan, mesh, start_step=0, num_steps=plan.steps_per_epoch))
    return {
        "steps": len(found),
        "images": [hashlib.sha256(np.asarray(b["images"]).tobytes()).hexdigest() for b in found],
        "shape": found[0]["images"].shape,
        "labels": [b["labels"].tolist() for b in found],
        "store": store.data_hash,
    }


def labels(config, folder) -> set:
    """Return labels 0 and 1 if pairs are answered in training, otherwise identities."""
    return set(np.ravel(batches(config, folder)["labels"]).tolist())


def decoding(config, folder) -> dict:
    """Return how faces are decoded: grain's arguments, the number of decoded faces, and whether devices hold them."""
    asked: dict[str, Any] = {"workers": 0, "faces": 0}
    with pytest.MonkeyPatch.context() as patch:
        real, read = grain.ReadOptions, Store.images
        patch.setattr(grain, "ReadOptions", lambda **options: asked.update(options) or real(**options))
        many = lambda num_workers: asked.update(workers=num_workers) or None  # noqa: E731
        patch.setattr(grain, "MultiprocessingOptions", many)
        patch.setattr(grain.IterDataset, "mp_prefetch", lambda self, options: self)
        patch.setattr(
            Store, "images", lambda self, ids: asked.update(faces=asked["faces"] + len(ids)) or read(self, ids)
        )
        store, plan = open_data(config, folder)
        mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
        running = feed.batches(config.data, store, plan, mesh, start_step=0, num_steps=plan.steps_per_epoch)
        next(running)
        held = [x for x in jax.live_arrays() if x.shape == (len(store), 112, 112, 3)]
        asked["on devices"] = len(held)
        list(running)
    return asked


def threads_of_a_cache(config, folder) -> list:
    """Return the number of threads with which grain decodes all faces for data.cache."""
    told = []
    with pytest.MonkeyPatch.context() as patch:
        real = pipeline.eval_batches
        patch.setattr(
            pipeline, "eval_batches", lambda *a, threads, **k: told.append(threads) or real(*a, threads=threads)
        )
        batches(config, folder)
    return told


def constants(config, folder) -> dict[str, list]:
    """Return what the head of a task knows beside its parameters."""
    return {name: np.asarray(x).tolist() for name, x in task_of(config, folder).init_head_stats().items()}


def knowledge(config, folder) -> tuple:
    """Return the sizes of a task's own parameters, and what it knows beside them."""
    return shapes(config, folder), constants(config, folder)


def maps_shown(config, folder) -> list[str]:
    """Return hashes of the maps that the model gets with the pictures of the first step, in their order."""
    task, (store, plan) = task_of(config, folder), open_data(config, folder)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    features = task.features
    (batch,) = feed.batches(config.data, store, plan, mesh, start_step=0, num_steps=1, features=features)
    return [hashlib.sha256(np.asarray(one).tobytes()).hexdigest() for one in task.prepare(batch)["maps"]]


def rules_of(config, folder) -> list[str]:
    """Return the names of the rules that a loss and an evaluation know."""
    table = task_of(config, folder).rules
    return [] if table is None else [rule.name for rule in table.rules]


def labelled(config, folder) -> str:
    """Return the hash of the attribute faces that a run draws."""
    return task_of(config, folder).open_store().data_hash


def drawn(config, folder) -> dict:
    """Return the identities, images, pairs and hashes of the synthetic stores, drawn into a folder shared by all."""
    open_data(config, folder)
    where = {split: faces.synthetic_store(config.data.synthetic, folder, split) for split in ("train", "test")}
    train_store, test = (Store(path, split) for split, path in where.items())
    assert not set(train_store.identities) & set(test.identities), "nobody is in both"
    return {
        "train": (len(train_store.identities), len(train_store), train_store.data_hash),
        "test": (len(test.identities), len(test), test.data_hash, test.manifest["benchmarks"]["synthetic"]["pairs"]),
        "where": str(train_store.path.parent.relative_to(folder.parent)),
    }


def benchmarks_of(config, folder) -> Benchmarks:
    c = typed(config)
    return Benchmarks(c.eval, c.data, c.seed, folder)


def embedded(config, folder) -> list:
    """Return the batches in which the faces of benchmarks are embedded: the numbers of faces and of mirrored faces."""
    seen: list[np.ndarray] = []
    open_data(config, folder)

    def embed(faces):
        seen.append(faces)
        return faces.reshape(len(faces), -1)[:, ::401].astype(np.float32)

    benchmarks_of(config, folder).run(CosineScore(typed(config).eval, embed), seen=set(), title="")
    mirrored = sum((a[:, :, ::-1] == b).all() for a in seen for b in seen if a.shape == b.shape)
    return [len(faces) for faces in seen] + [int(mirrored)]


def answered(config, folder) -> dict:
    """Return how pairs are answered: images and pairs per batch, and the type in which visual tokens are kept."""
    open_data(config, folder)
    told: dict[str, Any] = {}

    def answers(prefix, after, visual, pairs, *, batch_size, multiple, track):
        told.update(pairs=batch_size, type=visual.dtype.name)
        return np.linspace(0, 1, len(pairs.a))

    net = SimpleNamespace(image_tokens=1, decoder=SimpleNamespace(width=1))
    encoder: Any = SimpleNamespace(net=net, visual=len, prefix=len)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "eval_batches", lambda store, used, size: told.update(images=size) or [])
        patch.setattr(verification, "answers", answers)
        predictor = Predictor(lambda *_: {}, {}, mesh)
        score = task_of(config, folder).evaluator(encoder, predictor, set()).score({})
        benchmarks_of(config, folder).run(score, seen=set(), title="")
    return told


def intervals(config, folder) -> list:
    """Return the 95% intervals of scores that do not depend on the config."""
    open_data(config, folder)

    def score(store, pairs, _):
        return np.sin(np.arange(len(pairs.a)) * 7.0) + pairs.same

    entries, _ = benchmarks_of(config, folder).run(score, seen=set(), title="")
    return entries["synthetic"]["auc"]["ci95"]


def validation_pairs(config, folder) -> list:
    drawn: list = []

    def score(store, pairs, _):
        drawn.append((pairs.a.tolist(), pairs.b.tolist()))
        return np.arange(len(pairs.a)) + 100.0 * pairs.same

    benchmarks_of(config, folder).validate(score, "")
    return drawn


def rows(what: Callable[[list[dict]], Any]) -> Callable:
    """Return an observation of the batches of an epoch of conversations, each with a hash in place of its tiles."""

    def observe(config, folder):
        task = task_of(config, folder)
        examples = task.examples(task.open_store())
        steps, size = examples.plan.steps_per_epoch, examples.plan.examples_per_step
        read = [examples.read(examples.plan.examples(np.arange(size) + step * size)) for step in range(steps)]
        return what([{name: x.tolist() for name, x in batch.items()} for batch in read])

    return observe


def column(name: str) -> Callable[[list[dict]], list]:
    return lambda batches: [batch[name] for batch in batches]


def filled(batches: list[dict]) -> int:
    """Return the number of rows that are not empty."""
    return sum(any(row) for batch in batches for row in batch["tokens"])


def lengths(batches: list[dict]) -> list[int]:
    return [len(batch["tokens"][0]) for batch in batches]


def tiles_used(batches: list[dict]) -> list[int]:
    """Return the number of tiles of each row, where a tile has one visual token."""
    return sorted(
        sum(place < n for place in row) for batch, n in zip(batches, lengths(batches)) for row in batch["places"]
    )


class Silent:
    """A stand-in for a model: it finds all tokens equally probable and notes what it is asked."""

    def __init__(self):
        self.net = SimpleNamespace(decoder=SimpleNamespace(vocab=512, max_tokens=1000))
        self.prompts: list[list] = []
        self.tiles: list[int] = []
        self.most = 0

    def read_conversation(self, variables, tokens, tiles, places, segments=None):
        return jnp.zeros((*tokens.shape, 1))

    def logits(self, variables, states):
        return jnp.zeros((*states.shape[:-1], 512))

    def continue_conversation(self, variables, tokens, tiles, places, lengths, *, max_tokens, **_):
        self.prompts += tokens.tolist()
        self.tiles.append(tiles.shape[1])
        self.most = max_tokens
        return np.zeros((len(tokens), max_tokens), np.int32), np.full(len(tokens), max_tokens)


def asked(what: Callable[[Silent, str], Any]) -> Callable:
    """Return an observation of a validation and of questions: what the model was asked, and what was printed."""

    def observe(config, folder):
        model: Any = Silent()
        predictor: Any = SimpleNamespace(compile=lambda function: function, put=jnp.asarray)
        evaluator = task_of(config, folder).evaluator(model, predictor, set())
        with console.capture() as printed:
            evaluator.validate({}, "")
            evaluator.entries({}, "")
        return what(model, printed.get())

    return observe


def wide_start(config, _) -> bool:
    """Return whether an adapter begins with values beyond PEFT's bound, 1 / sqrt(inputs)."""
    model = opened(config)
    start = trees.flatten(model.initial(model.key)["trainable"])
    return any(float(jnp.abs(x).max()) > x.shape[-2] ** -0.5 for name, x in start.items() if name.endswith("/a"))


class Ran(NamedTuple):
    """The files and the printed output of a run."""

    folder: Path
    results: dict
    printed: str

    def lines(self, name: str) -> list[dict]:
        return files.read_lines(self.folder / name)

    @property
    def saved(self) -> list[int]:
        return sorted(int(p.name) for p in (self.folder / "checkpoints").iterdir() if p.name.isdigit())

    @property
    def entry(self) -> dict:
        return self.results["benchmarks"]["synthetic"]


RUNS: dict[str, Ran] = {}


def ran(config, folder) -> Ran:
    """Run a config from the start to its results, once for each config."""
    config.data.synthetic.dir = str(folder) if config.data.synthetic.identities else ""
    key = typed(config).to_json()
    if key not in RUNS:
        workdir = folder / f"run{len(RUNS)}"
        with linear_network(config.mesh), console.capture() as printed:
            results = experiment.run(typed(config), workdir, train=True)
        RUNS[key] = Ran(workdir, results, printed.get())
    return RUNS[key]


def run(what: Callable[[Ran], Any]) -> Callable:
    """Return an observation of a whole run."""

    def observe(config, folder):
        return what(ran(config, folder))

    observe.__qualname__ = f"run of {what.__code__.co_firstlineno}"
    return observe


def command(config, folder) -> dict:
    """Return what `fvjax.main` does with a config before training: the environment, the heartbeat, the workdirs."""
    found: dict[str, Any] = {"workdirs": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", flags := os.environ["XLA_FLAGS"])
        patch.setattr(distributed, "start", lambda _, heartbeat: found.update(heartbeat=heartbeat))
        patch.setattr(
            experiment, "run", lambda one, path, **_: found["workdirs"].append((path.name, one.optimizer.lr)) or {}
        )
        patch.setattr(fvjax.results, "compare", lambda rows: found.update(compared=[p.name for p in rows]))
        fvjax.main.run(config, folder / "command", "train", distributed.ALONE, preemption.Request())
        found["XLA_FLAGS"] = os.environ["XLA_FLAGS"].removeprefix(flags).strip()
    return found


def missing(config, _) -> list[str]:
    return checks.missing(typed(config).required_paths, dict(config.prepare))


def ids(config, folder) -> tuple:
    return task_of(config).text(lambda: Tokenizer(shipped.weights(config.init_from)))


TREE = {"a": jnp.array([0.5, -2.0]), "b": jnp.array([3.0])}
GROUPS = {"a": "body", "b": "head"}
GRADIENTS = [{"a": [3.0, 0.0], "b": [-4.0]}, {"a": [0.5, 0.25], "b": [0.125]}, {"a": [-8.0, 1e-8], "b": [2e-8]}]


def updates(config, _) -> list:
    """Return what three steps of the optimizer add to parameters, with one step per epoch."""
    lr = optimizer.schedule(config.optimizer, epochs=config.epochs, steps_per_epoch=1, steps=config.steps)
    tx = optimizer.make(config.optimizer, GROUPS, lr)
    params, out = TREE, []
    state = tx.init(params)
    for gradient in GRADIENTS:
        added, state = tx.update(
            jax.tree.map(jnp.asarray, gradient, is_leaf=lambda x: isinstance(x, list)), state, params
        )
        params = jax.tree.map(jnp.add, params, added)
        out += [np.asarray(added[name], np.float64).tolist() for name in "ab"]
    return out


def by_hand(config) -> list:
    """Compute :func:`updates` in float64, as config.py and optimizer.py describe them."""
    o, out = config.optimizer, []
    params = {name: np.asarray(x, np.float64) for name, x in TREE.items()}
    first, second = ({name: np.zeros_like(x) for name, x in params.items()} for _ in range(2))
    for number, gradient in enumerate(GRADIENTS):
        gradient = {name: np.asarray(x) for name, x in gradient.items()}
        norm = np.sqrt(sum((g**2).sum() for name, g in gradient.items() if GROUPS[name] not in o.unclipped))
        total = config.steps or config.epochs
        warm = o.warmup_epochs or o.warmup_steps or math.ceil(o.warmup_ratio * total)
        progress = (number - warm) / max(total - warm, 1)
        after = {"linear": 1 - progress, "constant": 1.0}.get(o.schedule, 0.5 * (1 + np.cos(np.pi * progress)))
        first_rate = int(o.schedule == "epoch_cosine")  # the others begin at 0
        rate = o.lr * ((number + first_rate) / warm if number < warm else after)
        for name in "ab":
            idle = (gradient[name] == 0) & (GROUPS[name] in o.idle_rows)
            before = first[name], second[name]
            g, p = gradient[name] * (1.0 if GROUPS[name] in o.unclipped else min(1.0, o.clip / norm)), params[name]
            if o.name == "sgd":
                first[name] = o.momentum * first[name] + g + o.weight_decay * p
                move = first[name]
            else:
                first[name] = o.b1 * first[name] + (1 - o.b1) * g
                second[name] = o.b2 * second[name] + (1 - o.b2) * g**2
                mean, square = first[name] / (1 - o.b1 ** (number + 1)), second[name] / (1 - o.b2 ** (number + 1))
                move = mean / (np.sqrt(square) + o.eps) + o.weight_decay * p
            added = np.where(idle, 0.0, -rate * o.lr_scale.to_dict().get(GROUPS[name], 1.0) * move)
            first[name], second[name] = np.where(idle, before[0], first[name]), np.where(idle, before[1], second[name])
            params[name] = p + added
            out.append(added.tolist())
    return out


def rates(config, _) -> list:
    """Return the learning rates of ten steps, with two steps per epoch."""
    lr = optimizer.schedule(config.optimizer, epochs=config.epochs, steps_per_epoch=2, steps=config.steps)
    return [float(lr(step)) for step in range(10)]


def sgd():
    c = base()
    c.epochs = 5
    return c


def adamw():
    c = sgd()
    c.optimizer.update({"name": "adamw", "lr": 0.01, "weight_decay": 0.1})
    return c


# ---- the table -------------------------------------------------------------------------------------------------------


class Effect(NamedTuple):
    """Where the effect of a key appears.

        observe: the observation, a function of a config and a folder. make: a config in which the key matters. other:
    another legal value; "here:NAME" is something that the fixture `here` has made. also: other settings, before and
    after. goes_with: further changes that make the other value legal. refused: the error, if the value does not fit
    here. expect: the observations before and after.
    """

    observe: Callable
    make: Callable
    other: Any
    also: Mapping[str, Any] = MappingProxyType({})
    goes_with: Mapping[str, Any] = MappingProxyType({})
    refused: str = ""
    expect: tuple | None = None


VAL = {"data.val": "here:val", "eval.every_epochs": 1, "data.val_pairs": 20}
TRAIN = {"data.train": "here:train"}
TALKS = {"data.train": "here:talks", "data.val": "here:talks_val", "eval.benchmarks": {"asked": "here:questions"}}
FACES = {"data.train": "here:faces"}
TRAITS = {"data.train": "here:traits"}
CLASSES = {"data.train": "here:classes"}
BY_CLIP = {**TRAITS, "attributes.text": "here:clip"}
REGIONS = {"model.landmarks.variant": "simple"}
SPLIT = (("params/fc/kernel", (None, "fsdp")), (".*", ()))
OF_FC = (("params/fc/bias", "rest"), (".*", "frozen"))
E = Effect

EFFECTS: dict[str, list[Effect]] = {
    "name": [
        E(run(lambda r: r.printed[: r.printed.index(" parameters")].split()[-2]), toy, "x", expect=("toy:", "x:")),
        E(
            run(lambda r: [w for w in ("toy", "other") if f"\n {w} " in r.printed]),
            toy,
            "other",
            expect=(["toy"], ["other"]),
        ),
    ],
    "seed": [
        E(batches, toy, 1),
        E(batches, toy, 1, {"task": "pair_answer", "data.pairs_per_epoch": 8}),
        E(trains, toy, 1),
        E(frozen, toy, 1, {"trainable": OF_FC}),
        E(untrained, toy, 1),
        E(step, vit, 1, {"data.flip": False, "model.vision_transformer.drop_path": 0.5}),
        E(step, vit, 1),
        E(intervals, toy, 1, {"eval.bootstrap": 20}),
        E(validation_pairs, toy, 1, VAL),
    ],
    "epochs": [
        E(run(lambda r: [m["step"] for m in r.lines("metrics.jsonl")]), toy, 3, expect=([*range(8)], [*range(12)])),
        E(run(lambda r: r.results["step"]), toy, 0, {"eval.before_training": False}, expect=(8, 0)),
        E(updates, sgd, 8),
        E(lambda c, f: len(missing(c, f)), without_data, 0, {"data.train": "nowhere"}, expect=(1, 0)),
        E(run(lambda r: round(r.lines("metrics.jsonl")[4]["lr"], 7)), toy, 3, expect=(5e-4, 7.5e-4)),
    ],
    "steps": [
        E(
            run(lambda r: [m["step"] for m in r.lines("metrics.jsonl")]),
            toy,
            5,
            {"epochs": 0, "steps": 3, "optimizer.schedule": "cosine"},
            expect=([*range(3)], [*range(5)]),
        ),
        E(updates, sgd, 8, {"epochs": 0, "steps": 5, "optimizer.schedule": "linear"}),
        E(updates, adamw, 8, {"epochs": 0, "steps": 5, "optimizer.schedule": "cosine"}),
        E(lambda c, f: len(missing(c, f)), without_data, 5, {"epochs": 0, "data.train": "nowhere"}, expect=(0, 1)),
    ],
    # what is in it a plugged-in network, task or loss reads
    "plugin": [E(shapes, plugged, {"features": 5})],
    "task": [
        E(step, vlm, "pair_answer"),
        E(forward, vlm, "pair_answer"),
        E(labels, toy, "pair_answer", {"data.pairs_per_epoch": 8}),
        E(step, classes, "contrastive", goes_with={"trainable": (("lora/.*", "adapter"), (".*", "frozen"))}),
        E(lambda c, f: batches(c, f)["shape"][:2], toy, "margin", expect=((4, 2), (8, 1))),
    ],
    "batch_size": [
        E(lambda c, f: batches(c, f)["shape"][0], toy, 4, expect=(4, 2)),
        E(
            run(lambda r: re.search(r"(\d+) pairs a step, (\d+) steps", r.printed).groups()),
            toy,
            4,
            expect=(("4", "4"), ("2", "8")),
        ),
    ],
    "accumulation": [E(step, vit, 2), E(step, answers, 2)],
    "dtype": [
        *(E(step, make, "bfloat16") for make in (resnet, vit, vlm)),
        E(
            lambda c, f: answered(c, f)["type"],
            toy,
            "bfloat16",
            {"task": "pair_answer"},
            expect=("float32", "bfloat16"),
        ),
        E(run(lambda r: r.results["dtype"]), toy, "bfloat16", expect=("float32", "bfloat16")),
    ],
    "remat": [
        E(step, vit, "dots"),
        E(step, vlm, "full"),
        E(run(lambda r: "remat: none (" in r.printed), toy, "auto", expect=(False, True)),
    ],
    "model.kind": [E(shapes, bare, "iresnet", goes_with={"model.pooling": ""})],
    "model.pooling": [E(forward, vit, "cls"), E(forward, vlm, "visual_mean")],
    "model.iresnet.layers": [E(shapes, resnet, (2,))],
    "model.iresnet.widths": [E(shapes, resnet, (8,))],
    "model.iresnet.num_features": [
        E(lambda c, f: shapes(c, f)["trainable/params/fc/bias"][0], resnet, 6, expect=((8,), (6,)))
    ],
    "model.iresnet.dropout": [E(step, resnet, 0.5)],
    "model.iresnet.conv_init": [E(initialisation, resnet, "kaiming")],
    "model.vision_transformer.image_size": [E(shapes, vit, 42), E(forward, vit, 42), E(forward, vlm, 112)],
    "model.vision_transformer.patch_size": [E(shapes, vit, 7)],
    "model.vision_transformer.width": [E(shapes, vit, 12)],
    "model.vision_transformer.depth": [E(shapes, vit, 2, goes_with={"lora.count": 4})],
    "model.vision_transformer.heads": [E(forward, vit, 4), E(forward, vlm, 4)],
    "model.vision_transformer.mlp_dim": [E(shapes, vit, 12)],
    "model.vision_transformer.drop_path": [E(step, vit, 0.5), E(step, answers, 0.5)],
    "model.projector.shuffle": [E(shapes, vlm, 1), E(forward, vlm, 1)],
    "model.projector.ps_version": [E(forward, vlm, "v1")],
    "model.decoder.vocab": [E(shapes, vlm, 13)],
    "model.decoder.width": [E(shapes, vlm, 12)],
    "model.decoder.depth": [E(shapes, vlm, 3, goes_with={"lora.count": 5})],
    "model.decoder.heads": [E(shapes, vlm, 4)],
    "model.decoder.kv_heads": [E(shapes, vlm, 1)],
    "model.decoder.head_dim": [E(shapes, vlm, 2)],
    "model.decoder.mlp_dim": [E(shapes, vlm, 12)],
    "model.bos": [E(forward, vlm, 4), E(forward, answers, 4)],
    "prompt.ids": [E(forward, vlm, (2, 7)), E(step, answers, (2, 7))],
    "prompt.text": [
        E(ids, answers, "one two", {"init_from": "here:tokenizer", "prompt.ids": (), "prompt.text": "three"})
    ],
    "prompt.yes_no_ids": [
        E(step, answers, (6, 5)),
        E(forward, answers, (6, 5)),
        E(ids, answers, (), {"init_from": "here:tokenizer"}),
        E(ids, answers, (6, 5), {"init_from": "here:tokenizer", "prompt.ids": (), "prompt.text": "three"}),
    ],
    "model.frames": [E(shapes, looks, 3), E(shapes, looks, 0)],
    "model.landmarks.use": [
        E(shapes, looks, ""),
        E(shapes, looks, "append"),
        E(rows(column("tokens")), looks, "append", FACES),
        E(rows(column("image_has_landmarks")), looks, "", FACES),
    ],
    "model.landmarks.kind": [E(shapes, looks, "linear", REGIONS)],
    "model.landmarks.parts": [E(shapes, looks, parts, REGIONS) for parts in ("local", "global")],
    "model.landmarks.variant": [E(step, looks, "masked"), E(shapes, looks, "simple")],
    "model.landmarks.heads": [E(step, looks, 4)],
    "model.landmarks.scale": [E(step, looks, 0.001, REGIONS)],
    "model.landmarks.grid": [E(step, looks, "rowcol")],
    "chat.template": [
        E(
            rows(lengths),
            talks,
            "internvl2_5_hf",
            {**TALKS, "chat.system": "default", "chat.length": 512, "chat.buckets": (128,)},
            expect=([512, 512], [128, 128]),
        ),
        E(asked(lambda model, _: model.prompts), talks, "internvl2_5_hf", {**TALKS, "chat.system": "default"}),
    ],
    "chat.system": [
        E(rows(column("tokens")), talks, text, {**TALKS, "chat.length": 256}) for text in ("default", "Be brief.")
    ],
    "chat.labels": [E(rows(column("targets")), talks, "internvl_chat", TALKS)],
    "chat.tokenizer": [
        E(rows(column("tokens")), talks, "here:bpe", {**TALKS, "chat.length": 256}),
        E(lambda c, f: task_of(c, f).facts()["tokenizer"], talks, "here:bpe"),
    ],
    "chat.length": [
        E(rows(lengths), talks, 96, TALKS, expect=([128, 128], [96, 96])),
        E(step, talks, 96),
    ],
    "chat.too_long": [
        E(
            rows(filled),
            talks,
            "error",
            {**TALKS, "chat.too_long": "drop", "chat.length": 40},
            refused="conversations are longer than config.chat.length=40",
        )
    ],
    "chat.buckets": [E(rows(lengths), talks, (64,), {**TALKS, "chat.by_length": True, "batch_size": 1})],
    "chat.by_length": [E(rows(lengths), talks, True, {**TALKS, "chat.buckets": (26, 33), "batch_size": 2, "seed": 1})],
    "chat.packed": [
        E(rows(filled), talks, True, TALKS),
        E(step, talks, True),
    ],
    "chat.max_tiles": [E(rows(tiles_used), talks, 3, TALKS), E(step, talks, 3)],
    "chat.tile_rule": [
        E(rows(tiles_used), talks, rule, {**TALKS, "chat.max_tiles": 40}) for rule in ("internvl_chat", "vlmevalkit")
    ],
    "chat.hide_pictures": [
        E(rows(column("tiles")), talks, True, TALKS),
        E(
            rows(lambda found: {max(np.ravel(b["tiles"])) for b in found} == {128}),
            talks,
            True,
            TALKS,
            expect=(False, True),
        ),
    ],
    "chat.square": [E(rows(column("images")), looks, "crop", FACES)],
    "chat.antialias": [E(rows(column("images")), looks, False, FACES)],
    "chat.landmarks": [
        E(rows(column("image_landmarks")), looks, "shuffled", FACES),
        E(rows(column("image_has_landmarks")), looks, "none", FACES),
    ],
    "chat.eval_template": [
        E(asked(lambda model, _: model.prompts), talks, "internvl2_5_hf", {**TALKS, "chat.system": "default"})
    ],
    "chat.eval_max_tiles": [E(asked(lambda model, _: model.tiles), talks, 3, TALKS, expect=None)],
    "chat.max_new_tokens": [E(asked(lambda model, _: model.most), talks, 5, TALKS, expect=(64, 5))],
    "chat.answers": [
        E(asked(lambda _, printed: printed.count("expected:")), talks, 1, TALKS, expect=(3, 1)),
        E(asked(lambda _, printed: printed.count("expected:")), talks, 0, TALKS, expect=(3, 0)),
    ],
    # which of them a device gets: test_attention_is_chosen_by_the_device
    "attention": [E(forward, vit, "xla"), E(forward, vlm, "xla")],
    "init_from": [
        *(E(see, vit, "here:tower2", {"init_from": "here:tower"}) for see in (of_base, base_hash)),
        E(missing, toy, "nowhere", expect=([], ["config.init_from: nowhere is not there. Supply it or name another."])),
    ],
    "init_parts": [
        *(
            E(see, vlm, {"vision": "here:tower2"}, {"init_parts": {"vision": "here:tower"}})
            for see in (of_base, base_hash)
        ),
        E(lambda c, f: len(missing(c, f)), vlm, {"vision": "nowhere"}, expect=(0, 1)),
    ],
    "base_dtype": [E(shapes, make, "float16") for make in (vit, vlm)],
    "base_kernels": [
        *(E(step, make, "int8") for make in (vit, vlm)),
        E(base_hash, vit, "int8", {"init_from": "here:tower"}),
    ],
    "lora.rank": [E(shapes, vit, 4), E(step, vit, 4), E(shapes, vit, 0, goes_with={"trainable": ((".*", "all"),)})],
    "lora.alpha": [E(step, vit, 8.0), E(forward, vit, 8.0), E(step, answers, 8.0)],
    "lora.init": [E(initialisation, vit, "peft"), E(wide_start, vit, "peft", expect=(True, False))],
    "lora.targets": [E(shapes, vit, ("blocks/mlp/fc1", "blocks/attn/proj"))],
    "lora.count": [E(shapes, vit, 3, refused="give 2 adapters, expected 3")],
    "trainable": [
        E(shapes, vit, (("lora/.*/a", "adapter"), (".*", "frozen"))),
        E(
            run(lambda r: re.search(r"([\d,]+) parameters, ([\d,]+) train", r.printed).groups()),
            toy,
            OF_FC,
            expect=(("380", "380"), ("380", "4")),
        ),
    ],
    "loss.temperature": [E(step, vit, 0.2), E(step, vit, 0.2, {"accumulation": 2}), E(step, resnet, 0.2)],
    "loss.pair_loss": [E(step, answers, "yes_no")],
    "loss.function": [
        E(step, vit, f"{__name__}:mean_square"),
        E(step, vit, f"{__name__}:mean_square", {"accumulation": 2}),
        E(step, answers, f"{__name__}:sum_of_logits"),
        E(step, classes, f"{__name__}:mean_cosine"),
    ],
    "margin.kind": [E(step, classes, kind) for kind in ("adaface", "magface")],
    "margin.scale": [E(step, classes, 32.0)],
    "margin.m1": [E(step, classes, 1.5)],
    "margin.m2": [E(step, classes, 0.3)],
    "margin.m3": [E(step, classes, 0.3)],
    "margin.m": [E(step, classes, 0.3, {"margin.kind": "adaface"})],
    "margin.h": [E(step, classes, 0.5, {"margin.kind": "adaface"})],
    "margin.t_alpha": [E(step, classes, 0.5, {"margin.kind": "adaface"})],
    "margin.norm_weight": [E(step, classes, 5.0, {"margin.kind": "magface"})],
    "margin.smoothing": [E(step, classes, 0.1)],
    "margin.filter_above": [E(step, classes, 0.4)],
    "attributes.maps": [E(knowledge, recognises, False, TRAITS)],
    "attributes.shuffle_maps": [E(maps_shown, recognises, True, TRAITS)],
    "attributes.graph": [E(knowledge, recognises, kind, TRAITS) for kind in ("identity", "none")],
    "attributes.tau": [E(constants, recognises, 0.2, TRAITS)],
    "attributes.omega": [E(constants, recognises, 0.5, TRAITS)],
    "attributes.hidden": [E(knowledge, recognises, 16, TRAITS)],
    "attributes.text": [E(constants, recognises, "here:clip", TRAITS)],
    "attributes.text_width": [E(knowledge, recognises, 16, TRAITS)],
    "attributes.prompts": [E(constants, recognises, "here:wordings", BY_CLIP)],
    "attributes.rules": [E(rules_of, recognises, "", TRAITS, {"attributes.rule_sets": ()})],
    "attributes.rule_sets": [E(rules_of, recognises, ("groups",), TRAITS)],
    "attributes.logic": [E(step, recognises, form, TRAITS) for form in ("linear", "log")],
    "attributes.group_loss": [E(step, recognises, "softmax", CLASSES)],
    "attributes.labelled": [E(labelled, recognises, 0.5, {"data.synthetic.identities": 4, "data.synthetic.images": 3})],
    "head.classes": [
        E(step, classes, 41),
        E(batches, toy, 7, {"task": "margin"}, refused="config.head.classes=7, but"),
    ],
    "head.subcentres": [E(shapes, classes, 3)],
    "head.sample_rate": [E(step, classes, 0.5, {"optimizer.idle_rows": ("head",)})],
    "head.groups": [E(shapes, classes, 3), E(step, classes, 16, {"head.sample_rate": 0.5})],
    "optimizer.name": [E(updates, sgd, "adamw")],
    "optimizer.lr": [
        E(updates, sgd, 0.2),
        E(updates, adamw, 0.2),
        E(run(lambda r: round(r.lines("metrics.jsonl")[0]["lr"], 7)), toy, 2e-3, expect=(1e-3, 2e-3)),
    ],
    "optimizer.momentum": [E(updates, sgd, 0.5)],
    "optimizer.weight_decay": [E(updates, sgd, 0.3), E(updates, adamw, 0.3)],
    "optimizer.clip": [E(updates, sgd, 4.0), E(updates, sgd, 6.0), E(updates, adamw, 4.0)],
    "optimizer.warmup_epochs": [E(updates, sgd, 1), E(updates, sgd, 2), E(updates, adamw, 3)],
    "optimizer.schedule": [
        *(E(updates, sgd, name) for name in ("linear", "constant")),
        E(updates, adamw, "linear"),
        E(rates, sgd, "cosine"),
    ],
    "optimizer.warmup_steps": [
        E(updates, make, 2, {"optimizer.schedule": name})
        for make in (sgd, adamw)
        for name in ("cosine", "linear", "constant")
    ],
    "optimizer.warmup_ratio": [
        E(updates, sgd, 0.5, {"optimizer.schedule": "cosine"}),
        E(updates, adamw, 0.3, {"optimizer.schedule": "linear", "optimizer.warmup_ratio": 0.5}),
    ],
    "optimizer.b1": [E(updates, adamw, 0.5)],
    "optimizer.b2": [E(updates, adamw, 0.5)],
    "optimizer.eps": [E(updates, adamw, 0.5)],
    "optimizer.milestones": [
        E(rates, sgd, (1, 3), {"optimizer.schedule": "epoch_milestones", "optimizer.milestones": (2,)})
    ],
    "optimizer.unclipped": [E(updates, make, ("head",), {"optimizer.clip": 4.0}) for make in (sgd, adamw)],
    "optimizer.idle_rows": [E(updates, sgd, ("body",)), E(updates, adamw, ("body",))],
    "optimizer.lr_scale": [E(updates, sgd, {"head": 10.0}), E(updates, adamw, {"body": 0.0, "head": 0.5})],
    "mesh.data": [E(placement, vit, 4, {"mesh.data": 8, "mesh.fsdp": -1}, expect=None)],
    "mesh.fsdp": [
        E(placement, vit, 2),
        E(run(lambda r: "'fsdp': 2" in r.printed), toy, 2, expect=(False, True)),
    ],
    "mesh.tensor": [E(placement, vit, 2)],
    "sharding": [
        E(placement, resnet, SPLIT, {"mesh.fsdp": 2}),
        E(run(lambda r: r.printed.count(" fsdp ")), toy, SPLIT, expect=None),
    ],
    "data.train": [
        E(lambda c, f: batches(c, f)["store"], without_data, "here:train2", TRAIN),
        E(run(lambda r: r.results["train_data_hash"]), without_data, "here:train2", {**TRAIN, "epochs": 1}),
        E(
            missing,
            without_data,
            "nowhere",
            TRAIN,
            expect=([], ["config.data.train: nowhere is not there. Supply it or name another."]),
        ),
    ],
    "data.split": [E(batches, without_data, "val", TRAIN, refused="its split is 'train', but 'val' was requested")],
    "data.flip": [E(step, vit, False), E(step, answers, False)],
    "data.workers": [E(lambda c, f: decoding(c, f)["workers"], toy, 3, expect=(0, 3))],
    "data.threads": [
        E(lambda c, f: decoding(c, f)["num_threads"], toy, 3, expect=(2, 3)),
        E(threads_of_a_cache, toy, 3, {"data.cache": "host"}, expect=([2], [3])),
    ],
    "data.prefetch": [E(lambda c, f: decoding(c, f)["prefetch_buffer_size"], toy, 5, expect=(8, 5))],
    "data.cache": [
        E(
            lambda c, f: (decoding(c, f)["faces"], decoding(c, f)["on devices"]),
            toy,
            value,
            {"epochs": 3, "data.synthetic.images": 5},
            expect=((32, 0), after),
        )
        for value, after in (("host", (256, 0)), ("device", (256, 1)))
    ],
    "data.val": [
        E(
            run(lambda r: r.results["validation"] and r.results["validation"]["n_pairs"]),
            toy,
            "here:val",
            {"eval.every_epochs": 1, "data.val_pairs": 20},
            expect=(None, 20),
        ),
        E(
            run(lambda r: "toy (ids seen)" in r.printed),
            toy,
            "here:val",
            {"eval.every_epochs": 1, "data.val_pairs": 20},
            expect=(False, True),
        ),
    ],
    "data.val_pairs": [E(lambda c, f: len(validation_pairs(c, f)[0][0]), toy, 40, VAL, expect=(20, 40))],
    "data.names": [E(run(lambda r: r.entry["identities_seen_in_training"]), toy, "us", expect=(None, 0))],
    "data.pairs_per_epoch": [
        E(
            lambda c, f: batches(c, f)["steps"],
            toy,
            17,
            {"task": "pair_answer", "data.pairs_per_epoch": 12},
            expect=(3, 4),
        )
    ],
    "data.synthetic.identities": [E(lambda c, f: drawn(c, f)["train"][:2], toy, 9, expect=((8, 32), (9, 36)))],
    "data.synthetic.images": [E(lambda c, f: drawn(c, f)["train"][:2], toy, 5, expect=((8, 32), (8, 40)))],
    "data.synthetic.test_identities": [E(lambda c, f: drawn(c, f)["test"][:2], toy, 21, expect=((20, 40), (21, 42)))],
    "data.synthetic.test_images": [E(lambda c, f: drawn(c, f)["test"][:2], toy, 3, expect=((20, 40), (20, 60)))],
    "data.synthetic.test_pairs": [
        E(lambda c, f: drawn(c, f)["test"][3], toy, 40, expect=(20, 40), also={"data.synthetic.test_images": 3})
    ],
    "data.synthetic.difficulty": [E(lambda c, f, s=s: drawn(c, f)[s], toy, 2.0) for s in ("train", "test")],
    "data.synthetic.seed": [E(lambda c, f, s=s: drawn(c, f)[s], toy, 1) for s in ("train", "test")],
    "data.synthetic.dir": [E(lambda c, f: drawn(c, f)["where"], toy, "here:elsewhere", expect=("shared", "elsewhere"))],
    "eval.batch_size": [
        E(embedded, toy, 16, expect=([40, 0], [16, 16, 0])),
        E(
            lambda c, f: (answered(c, f)["images"], answered(c, f)["pairs"]),
            toy,
            16,
            {"task": "pair_answer"},
            expect=((40, 40), (16, 16)),
        ),
        E(lambda c, f: runtime.cpu_devices(fvjax.main.batches([typed(c)]), 1), toy, 41, {"batch_size": 4}, expect=None),
    ],
    "eval.flip_sum": [
        E(embedded, toy, True, expect=([40, 0], [40, 40, 2])),
        E(run(lambda r: r.results["flip_sum"]), toy, True, expect=(False, True)),
    ],
    "eval.every_epochs": [
        E(run(lambda r: [line["step"] for line in r.lines("evaluations.jsonl")]), toy, 1, expect=([8], [4, 8])),
        E(run(lambda r: r.saved), toy, 1, expect=([8], [4, 8])),
    ],
    "eval.before_training": [
        E(run(lambda r: r.entry["before_training"] is None), toy, False, expect=(False, True)),
        E(run(lambda r: "toy, before" in r.printed), toy, False, expect=(True, False)),
    ],
    "eval.pools": [
        E(
            run(lambda r: list(r.results["pools"])),
            toy,
            ("visual_mean", "all_mean"),
            {"model.pooling": "visual_mean", "prompt.ids": (2, 3)},
            expect=([], ["all_mean"]),
        ),
        E(
            run(lambda r: "toy, all_mean" in r.printed),
            toy,
            ("visual_mean", "all_mean"),
            {"model.pooling": "visual_mean", "prompt.ids": (2, 3)},
            expect=(False, True),
        ),
    ],
    "eval.during": [
        E(
            run(lambda r: [set(line) - {"step", "epoch", "seconds"} for line in r.lines("evaluations.jsonl")]),
            toy,
            ("second",),
            {"eval.every_epochs": 1, "eval.benchmarks": {"second": "here:benchmark"}},
            expect=([{"synthetic", "second"}] * 2, [{"second"}, {"synthetic", "second"}]),
        )
    ],
    "eval.baselines": [
        E(run(lambda r: len(r.results["baselines"])), toy, True, expect=(0, 2)),
        E(run(lambda r: "raw pixels" in r.printed), toy, True, expect=(False, True)),
    ],
    "eval.name": [E(run(lambda r: r.results["evaluation"]["name"]), toy, "again", expect=("", "again"))],
    "eval.bootstrap": [E(intervals, toy, 0), E(intervals, toy, 50), E(run(lambda r: r.entry["auc"]["ci95"]), toy, 0)],
    "eval.benchmarks": [
        E(
            run(lambda r: list(r.results["benchmarks"])),
            toy,
            {"second": "here:benchmark"},
            expect=(["synthetic"], ["second", "synthetic"]),
        ),
        E(lambda c, f: len(missing(c, f)), toy, {"second": benchmark("nowhere", "x")}, expect=(0, 1)),
    ],
    "compat.last_micro_batch": [E(step, make, True, {"accumulation": 2}) for make in (vit, answers)],
    "compat.negatives_group": [E(step, vit, 8), E(step, vit, 8, {"accumulation": 2})],
    "compat.batch_norm_group": [E(step, resnet, 8)],
    "compat.token_mean_rows": [E(step, looks, 2)],
    "rows": [
        E(
            lambda c, f: (command(c, f)["workdirs"], command(c, f).get("compared")),
            toy,
            {"b": {"optimizer": {"lr": 2.0}}, "a": {}},
            expect=(([("command", 1e-3)], None), ([("a", 1e-3), ("b", 2.0)], ["a", "b"])),
        )
    ],
    "prepare": [
        E(
            missing,
            toy,
            (("init_from", "Fetch it."),),
            {"init_from": "nowhere"},
            expect=(
                ["config.init_from: nowhere is not there. Supply it or name another."],
                ["config.init_from: nowhere is not there. Fetch it."],
            ),
        )
    ],
    "checkpoint.every_steps": [E(run(lambda r: r.saved), toy, 3, {"checkpoint.keep": 9}, expect=([8], [3, 6, 8]))],
    "checkpoint.every_minutes": [
        E(run(lambda r: r.saved), toy, 1e-9, {"checkpoint.keep": 9}, expect=([8], [1, 2, 3, 4, 5, 6, 7, 8])),
        E(
            run(lambda r: r.saved),
            toy,
            0,
            {"checkpoint.every_minutes": 1e-9, "checkpoint.keep": 9},
            expect=([*range(1, 9)], [8]),
        ),
    ],
    "checkpoint.keep": [E(run(lambda r: r.saved), toy, 1, {"checkpoint.every_steps": 3}, expect=([6, 8], [8]))],
    "log.every_steps": [
        E(run(lambda r: [m["step"] for m in r.lines("metrics.jsonl")]), toy, 3, expect=([*range(8)], [0, 3, 6]))
    ],
    "log.tensorboard": [E(run(lambda r: (r.folder / "tb").exists()), toy, False, expect=(True, False))],
    "log.trackers": [
        E(
            run(lambda r: (r.folder / "tracked").read_text() if (r.folder / "tracked").exists() else ""),
            toy,
            (f"{__name__}:Tracked",),
            {"log.every_steps": 3},
            expect=("", "toy from 0: 0 0 loss 3 loss 6 loss 7 closed"),  # evaluated before and after
        )
    ],
    # of a step by the real clock: tests/test_reporter.py has the times
    "log.line_minutes": [E(run(lambda r: r.printed.count("since start, about")), toy, 1e-9, expect=(2, 8))],
    "log.pictures": [E(run(lambda r: (r.folder / "first_batch.png").exists()), toy, 0, expect=(True, False))],
    "log.send_pictures": [
        E(
            run(lambda r: (r.folder / "shown").exists()),
            toy,
            True,
            {"log.trackers": (f"{__name__}:Tracked",)},
            expect=(False, True),
        )
    ],
    # what it prints of conversations: tests/test_conversation_task.py
    "log.show": [E(run(lambda r: r.saved), toy, 1, refused="config.log.show=1: this task has no examples that can be")],
    "log.state_hash_every": [
        E(
            run(lambda r: [m["step"] for m in r.lines("metrics.jsonl") if {"state_hash", "batch_hash"} <= set(m)]),
            toy,
            3,
            expect=([], [2, 5]),
        )
    ],
    "heartbeat_seconds": [E(lambda c, f: command(c, f)["heartbeat"], toy, 7.5, expect=(60.0, 7.5))],
    # XLA applies it on a GPU only; here XLA's flag is checked
    "deterministic": [
        E(lambda c, f: command(c, f)["XLA_FLAGS"], toy, True, expect=("", "--xla_gpu_deterministic_ops=true"))
    ],
}
NAMED = ("eval.benchmarks", "optimizer.lr_scale", "rows", "init_parts", "plugin")  # what is in them an experiment names
KEYS = sorted(".".join(path) for path in flatten_dict(base().to_dict(), keep_empty_nodes=True))
CASES = [(key, effect) for key, effects in EFFECTS.items() for effect in effects]
NAMES = [f"{key}-{i}" for key, effects in EFFECTS.items() for i in range(len(effects))]


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Keep compiled programs for the next run, because most keys do not change the program."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("xla")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return the folder of synthetic faces and runs; `elsewhere` beside it is another folder of faces."""
    root = tmp_path_factory.mktemp("keys")
    (root / "shared").mkdir()
    return root / "shared"


def write_faces(folder: Path) -> Path:
    """Write a store of two wide pictures and two clips of two frames, each with landmarks."""
    with Writer(folder / "faces", split="train", sources=["here"], frames=2, detector="drawn") as writer:
        for number in range(2):
            shown = [picture(number, 84, 56), picture(number + 2, 84, 56)]
            points = [np.full((count, 68, 2), 0.25 * (number + 1), np.float32) for count in (1, 2)]
            writer.add(chat("<image>\nSmile?", "Yes."), shown[:1], f"picture {number}", points[:1])
            writer.add(chat("<video>\nSmile?", "No."), shown, f"clip {number}", points[1:])
    return folder / "faces"


def write_talks(folder: Path) -> dict[str, Path]:
    """Write stores of conversations with none, one or two pictures, of one or three tiles, and another tokenizer."""
    square, wide, long = picture(0, 28, 28), picture(1, 84, 28), picture(2, 1120, 28)
    records = [
        (chat("<image>\nWho?", "Ann."), [square], "a", {}),
        (chat("<image>\nHow many?", "Three."), [wide], "b", {}),
        (chat("<image><image> Which one?", "The second."), [long, long], "c", {}),
        (chat("No picture at all, is there none?", "None whatsoever."), [], "d", {}),
        (chat("<image>\nHair?", "Dark.", "Sure?", "Yes, rather."), [square], "e", {}),
    ]
    options = {"options": ["yes", "no"], "answer": "no"}
    questions = [(messages, pictures, source, options) for messages, pictures, source, _ in records[:3]]
    stores_of = {"talks": ("train", records), "talks_val": ("val", records), "questions": ("test", questions)}
    for name, (split, chosen) in stores_of.items():
        make(folder / name, chosen, split)
    (folder / "bpe").mkdir()
    return {**{name: folder / name for name in stores_of}, "bpe": tiny_bpe.write(folder / "bpe")}


def write_traits(folder: Path) -> dict[str, Path]:
    """Write a store of faces with attributes, a CLIP with its tokenizer, and wordings of prompts."""
    attribute_faces.write(folder / "traits", range(6), 2, 0, split="train")
    with pytest.MonkeyPatch.context() as patch:
        hair = {"hair": attribute_faces.HAIR_COLOURS}
        patch.setattr(attribute_faces, "ATTRIBUTES", dataclasses.replace(attribute_faces.ATTRIBUTES, groups=hair))
        attribute_faces.write(folder / "classes", range(4), 2, 0, split="train")
    (folder / "wordings.toml").write_text('Smiling = "a happy person"\n')
    clip = tiny_clip.write(folder / "clip")
    stores = {name: folder / name for name in ("traits", "classes")}
    return {**stores, "wordings": folder / "wordings.toml", "clip": clip}


@pytest.fixture(scope="module")
def here(folder) -> dict[str, Path]:
    """Make stores, towers and a tokenizer for the table's "here:NAME"."""
    made = {
        name: folder.parent / name for name in ("train", "train2", "val", "benchmark", "tower", "tower2", "tokenizer")
    }
    made |= {**write_talks(folder.parent), "faces": write_faces(folder.parent), **write_traits(folder.parent)}
    synthetic.write(made["train"], range(8), 4, 0, split="train")
    synthetic.write(made["train2"], range(8), 4, 1, split="train")
    synthetic.write(made["val"], range(8), 4, 0, split="val")
    synthetic.write(made["benchmark"], range(50, 70), 2, 0, split="test", pairs=20)
    sizes = {"image_size": 28, "patch_size": 14, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    of_tower = {**importlib.import_module("fvjax.pretrain").CONFIG, **sizes, "intermediate_size": 8}
    leaves = trees.flatten({"params": jax.eval_shape(opened(vit()).encoder.init, jax.random.key(0))["params"]})
    for number, name in enumerate(("tower", "tower2"), 1):
        write_original(made[name], {n: np.full(x.shape, number, np.float16) for n, x in leaves.items()}, of_tower)
    made["tokenizer"].mkdir()
    model = str(made["tokenizer"] / "tokenizer")
    texts = iter(["Yes Yes No No No", "one two three"] * 20)
    options = {"byte_fallback": True, "add_dummy_prefix": False, "remove_extra_whitespaces": False}
    options |= {"normalization_rule_name": "identity", "minloglevel": 2, "model_type": "bpe", "vocab_size": 280}
    sentencepiece.SentencePieceTrainer.Train(sentence_iterator=texts, model_prefix=model, **options)
    describe(made["tokenizer"], {"<unk>": 0, "<s>": 1, "</s>": 2})
    return {**made, "elsewhere": folder.parent / "elsewhere"}


def resolved(value: Any, here: dict[str, Path]) -> Any:
    if isinstance(value, dict):
        return {key: resolved(one, here) for key, one in value.items()}
    if isinstance(value, str) and value.startswith("here:"):
        return str(here[value[5:]])
    return value


def changed(config, settings: Mapping[str, Any], here: dict[str, Path]):
    """Return a copy of a config with other values. Values of an experiment are added."""
    config = config.copy_and_resolve_references()
    for key, value in settings.items():
        *parents, last = key.split(".")
        section = functools.reduce(lambda at, name: at[name], parents, config)
        value = resolved(value, here)
        if key == "eval.benchmarks":
            value = {n: benchmark(b, "synthetic") if isinstance(b, str) else b for n, b in value.items()}
        if key in NAMED:
            section[last].update(value)
        else:
            section[last] = value
    return config


SEEN: dict[tuple, Any] = {}
REPEATED: set[Callable] = set()


def look(observe: Callable, config, folder) -> Any:
    """Return the observation, made once per config.

    The first one is made twice, to see that it is the same without a change.
    """
    key = observe, typed(config).to_json()
    if key not in SEEN:
        SEEN[key] = observe(config.copy_and_resolve_references(), folder)
        if observe not in REPEATED:
            REPEATED.add(observe)
            assert observe(config.copy_and_resolve_references(), folder) == SEEN[key]
    return SEEN[key]


def test_every_key_has_an_effect_that_is_looked_for():
    assert sorted(EFFECTS) == KEYS
    assert all(EFFECTS.values())


@pytest.mark.parametrize(("key", "effect"), CASES, ids=NAMES)
def test_a_key_changes_what_it_is_there_for(key, effect, here, folder):
    config = changed(effect.make(), effect.also, here)
    other = changed(config, {key: effect.other, **effect.goes_with}, here)
    assert typed(other).to_json() != typed(config).to_json(), "the other value is another one"
    was = look(effect.observe, config, folder)
    if effect.refused:
        with pytest.raises(ValueError, match=re.escape(effect.refused)):
            effect.observe(other, folder)
        return
    now = look(effect.observe, other, folder)
    assert was != now, f"config.{key} has no effect"
    if effect.expect:
        assert (was, now) == effect.expect


OF_OPTIMIZER = [(k, e) for k, e in CASES if e.observe is updates]


@pytest.mark.parametrize(("key", "effect"), OF_OPTIMIZER, ids=[f"{k}-{i}" for i, (k, _) in enumerate(OF_OPTIMIZER)])
def test_the_optimizer_does_what_its_formulas_say(key, effect, here, folder):
    config = changed(effect.make(), effect.also, here)
    for one in (config, changed(config, {key: effect.other}, here)):
        assert updates(one, folder) == [pytest.approx(x, rel=2e-4, abs=1e-9) for x in by_hand(one)], f"config.{key}"


def test_a_gradient_as_long_as_clip_says_is_left_as_it_is():
    config = sgd()
    config.optimizer.update({"clip": 5.0, "momentum": 0.0, "weight_decay": 0.0, "lr": 1.0})
    for clip, length in ((5.0, 1.0), (5.0 + 1e-3, 1.0), (2.5, 0.5)):
        config.optimizer.clip = clip
        assert updates(config, None)[:2] == [pytest.approx([-3.0 * length, 0.0]), pytest.approx([4.0 * length])]


# ---- a workdir and another config ------------------------------------------------------------------------------------

# Keys for where and how a run computes, what it reports and where its files are. The same workdir accepts other values.
MAY_CHANGE = {
    *(key for key in KEYS if key.split(".")[0] in ("mesh", "checkpoint", "log", "eval")),
    *("sharding", "remat", "prepare", "heartbeat_seconds", "deterministic"),
    *(f"chat.{key}" for key in ("eval_template", "eval_max_tiles", "max_new_tokens", "answers")),
    *(f"data.{key}" for key in ("train", "val", "workers", "threads", "prefetch", "cache", "synthetic.dir")),
}


@pytest.mark.parametrize("key", KEYS)
def test_a_workdir_goes_on_with_another_config_only_if_that_computes_the_same(key, here, tmp_path):
    effect = EFFECTS[key][0]
    before = changed(effect.make(), effect.also, here)
    config, other = typed(before), typed(changed(before, {key: effect.other}, here))
    (tmp_path / "config.json").write_text(config.to_json())
    (difference,) = differences(json.loads(other.to_json()), json.loads(config.to_json())) or [""]
    if key in MAY_CHANGE:
        assert difference == ""
        assert other.hash() == config.hash()
        checks.check_workdir(other.to_json(), tmp_path, False)
    else:
        assert difference.startswith(key)
        assert other.hash() != config.hash()
        with pytest.raises(ValueError, match=f"is of another config .{re.escape(key)}"):
            checks.check_workdir(other.to_json(), tmp_path, False)


# Keys that change the computation but not the results.
NOT_NEEDED = {
    "attention": "the same sums in another order",
    "init_parts": "without parts it is empty, and what is in it an experiment names",
    "head.subcentres": "of the class head, which embeddings do without",
    "head.groups": "likewise",
    "plugin": "what is in it is of code whose source is hashed",
}
DECIDES = {forward, shapes, untrained, of_base, ids}
NEEDED = {key for key, effect in CASES if effect.observe in DECIDES} - set(NOT_NEEDED)
NEEDED |= {"dtype", "epochs", "eval.flip_sum"}


@pytest.mark.parametrize("key", sorted(NEEDED))
def test_a_workdir_that_lacks_what_decides_its_embeddings_is_of_another_version(key, tmp_path):
    """Without this check, a default would replace what an older version of the code did."""
    values = base().to_dict()
    *parents, last = key.split(".")
    section = functools.reduce(lambda at, name: at[name], parents, values)
    del section[last]
    (tmp_path / "config.json").write_text(json.dumps(values))
    told = "is not a workdir" if key == "trainable" else f"another version of fvjax .it differs in {re.escape(key)}"
    with pytest.raises(ValueError, match=told):
        api.read_config(tmp_path)


# ---- choices ---------------------------------------------------------------------------------------------------------


def attended(config, folder) -> tuple:
    """Return :func:`forward` with a stand-in for cuDNN, which is not available here."""

    def cudnn(q, k, v, *, is_causal, implementation):
        assert implementation == "cudnn"
        return jnp.cumsum(q + k + v, axis=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.nn, "dot_product_attention", cudnn)
        return forward(config, folder)


def kept(config, folder) -> int | str:
    """Return how many conversations there are to train on, or the error."""
    try:
        return rows(len)(config, folder)
    except ValueError as error:
        return str(error)


# Key -> the observation in which its choices differ, the config, and the settings that a choice needs.
CHOOSE: dict[str, tuple[Callable, Callable, dict[str, dict]]] = {
    "task": (
        step,
        vlm,
        {
            "conversation": {"chat.length": 8, "model.pooling": ""},
            "face_instruction": {
                "chat.length": 8,
                "model.pooling": "",
                "model.kind": "llava",
                "model.vision_transformer.depth": 2,
            },
            "margin": {"trainable": classes().trainable, "head.classes": 40},
            "attributes": {
                **TRAITS,
                "model.pooling": "",
                "lora.rank": 0,
                "lora.targets": (),
                "lora.count": 0,
                "trainable": recognises().trainable,
            },
        },
    ),
    "dtype": (step, vit, {}),
    "base_dtype": (shapes, vit, {}),
    "base_kernels": (step, vit, {}),
    "remat": (step, vit, {}),
    "attention": (attended, vit, {}),
    "data.cache": (lambda c, f: {k: decoding(c, f)[k] for k in ("faces", "on devices")}, toy, {}),
    "model.kind": (
        shapes,
        bare,
        {"iresnet": {"model.pooling": ""}, "vlm": {"model.pooling": "visual_mean"}, "llava": {"model.pooling": ""}},
    ),
    "model.landmarks.use": (shapes, looks, {}),
    "model.landmarks.kind": (shapes, looks, {}),
    "model.landmarks.parts": (shapes, looks, {}),
    "model.landmarks.variant": (step, looks, {}),
    "model.landmarks.grid": (step, looks, {}),
    "chat.square": (rows(column("images")), looks, {}),
    "chat.landmarks": (
        rows(lambda found: [(b["image_landmarks"], b["image_has_landmarks"]) for b in found]),
        looks,
        {},
    ),
    "chat.labels": (rows(column("targets")), talks, {}),
    "chat.too_long": (kept, talks, {}),
    "chat.tile_rule": (rows(tiles_used), talks, {}),
    "lora.init": (initialisation, vit, {}),
    "loss.pair_loss": (step, answers, {}),
    "margin.kind": (step, classes, {}),
    "attributes.graph": (knowledge, recognises, {}),
    "attributes.logic": (step, recognises, {}),
    "attributes.group_loss": (step, recognises, {}),
    "model.projector.ps_version": (forward, vlm, {}),
    "model.iresnet.conv_init": (initialisation, resnet, {}),
    "loss.function": (step, vit, {}),
    "optimizer.name": (updates, adamw, {}),
    "optimizer.schedule": (rates, sgd, {"epoch_milestones": {"optimizer.milestones": (2,)}}),
}


CONVERSATIONS = {
    "attributes.graph": {**TRAITS, "attributes.tau": 0.2},
    "attributes.logic": TRAITS,
    "attributes.group_loss": CLASSES,
    "model.landmarks.kind": REGIONS,
    "model.landmarks.parts": REGIONS,
    "chat.square": FACES,
    "chat.landmarks": FACES,
    "chat.labels": TALKS,
    "chat.too_long": {**TALKS, "chat.length": 40},
    "chat.tile_rule": {**TALKS, "chat.max_tiles": 40, "chat.length": 256},
}


def test_all_choices_are_compared():
    assert set(CHOOSE) == set(CHOICES)


AUTO = {"remat", "attention"}  # "auto" is one of the others


@pytest.mark.parametrize("key", CHOICES)
def test_all_choices_differ(key, here, folder):
    observe, make, goes_with = CHOOSE[key]
    choices = [choice for choice in CHOICES[key] if choice != "auto"]
    assert (len(choices) < len(CHOICES[key])) == (key in AUTO)
    settings = {choice: {key: choice, **goes_with.get(choice, {})} for choice in choices}
    if key == "model.kind":
        settings["vlm"] |= {"model.decoder": vlm().model.decoder, "prompt.ids": (2, 3)}
        settings["llava"] |= {"model.decoder": vlm().model.decoder, "model.vision_transformer.depth": 2}
    if key == "data.cache":
        settings = {c: {**s, "data.synthetic.images": 5} for c, s in settings.items()}
    settings = {c: {**CONVERSATIONS.get(key, {}), **s} for c, s in settings.items()}
    seen = {choice: look(observe, changed(make(), each, here), folder) for choice, each in settings.items()}
    for i, one in enumerate(choices):
        for other in choices[:i]:
            assert seen[one] != seen[other], f"config.{key}: {one} and {other} are the same"


def test_attention_is_chosen_by_the_device(folder, monkeypatch, here):
    seen = {
        choice: attended(changed(vit(), {"attention": choice}, here), folder) for choice in ("auto", "by_head", "xla")
    }
    assert seen["auto"] == seen["by_head"] != seen["xla"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert attended(changed(vit(), {"attention": "auto"}, here), folder) == seen["xla"]


def check(config) -> None:
    """Check a config's values as `fvjax.main` does."""
    c = typed(config)
    c.check()
    tasks.get(c.task).check(c)


@pytest.mark.parametrize("key", CHOICES)
def test_another_value_than_the_choices_is_refused_by_name(key, here):
    for choice in CHOICES[key]:
        told = ""
        try:
            check(changed(base(), {key: choice}, here))
        except ValueError as error:  # for it goes with other keys
            told = str(error)
        assert ": choose " not in told
    with pytest.raises(ValueError, match=rf"config.{re.escape(key)}='none of these': choose \w"):
        check(changed(base(), {key: "none of these"}, here))


COUNTS = ("batch_size", "accumulation", "data.pairs_per_epoch", "eval.batch_size", "checkpoint.every_steps")
COUNTS += ("checkpoint.keep", "log.every_steps", "heartbeat_seconds")
COUNTS += ("chat.length", "chat.max_tiles", "chat.max_new_tokens")


@pytest.mark.parametrize("key", COUNTS)
def test_counts_are_at_least_one(key, here):
    with pytest.raises(ValueError, match=rf"config.{re.escape(key)}=0(\.0)? must be at least 1"):
        check(changed(base(), {key: 0}, here))
    check(changed(base(), {key: 2 if key == "batch_size" else 1}, here))


# ---- the configs that come with the project --------------------------------------------------------------------------

# Keys that a config sets to their default on purpose, as part of a recipe.
RESTATED: dict[str, set[str]] = {
    "quickstart": {"model.vision_transformer.patch_size"},  # lists all sizes of the tower
    "quickstart_margins": {"model.vision_transformer.patch_size"},
    "quickstart_mllm": {"model.vision_transformer.patch_size", "optimizer.warmup_epochs"},
    "quickstart_chat": {"model.vision_transformer.patch_size"},
    "faceinsight_quickstart": {"model.vision_transformer.patch_size"},
    "small_chat": {"model.vision_transformer.patch_size"},
    "resnet50_infonce": {"optimizer.lr"},  # the published one
    **{name: {"optimizer.lr"} for name in ("resnet50_arcface", "resnet100_arcface_pfc", "adaface_r50")},  # likewise
    "small_real": {"batch_size"},
    "small_real_arcface": {"batch_size"},
}


@pytest.mark.parametrize(
    "file",
    sorted(p.stem for p in Path("configs").glob("*.py") if p.stem not in ("__init__", "paper", "facellm", "facellava")),
)
def test_a_config_sets_nothing_to_what_it_is_already(file, monkeypatch):
    """Otherwise a reader would mistake the line for a choice, and a changed default would not reach this config."""
    base()
    assign, done = ConfigDict.__setitem__, []

    def watched(section, key, value):
        if section.is_locked and key in section and not isinstance(value, ConfigDict):
            now = section[key]
            done.append((section, key, type(value)(now) == value if now is not None else value is None))
        assign(section, key, value)

    module = importlib.import_module(f"configs.{file}")
    monkeypatch.setattr(ConfigDict, "__setitem__", watched)
    config = module.get_config()
    monkeypatch.undo()
    assert done
    paths = {id(config): ""}
    for path in {".".join(p[:i]) for p in flatten_dict(config.to_dict()) for i in range(1, len(p))}:
        section = functools.reduce(lambda at, name: at[name], path.split("."), config)
        paths[id(section)] = f"{path}."
    restated = {f"{paths.get(id(section), '?.')}{key}" for section, key, same in done if same}
    if file.startswith(("facellm_", "facellava_")):
        restated = {key for key in restated if not key.startswith("model.")}  # all sizes are of a preset
    assert restated == RESTATED.get(file, set())


@pytest.mark.parametrize(("ours", "expected"), [(None, 0.2), (0.0, 0.0), (0.4, 0.4)])
def test_the_rate_of_dropped_paths_is_the_bases_unless_the_config_has_one(ours, expected):
    c = bare()
    c.model.vision_transformer.drop_path = ours
    net: Any = build_encoder(typed(c).model, Pretrained({}, {"drop_path": 0.2}, "", ""), Text(), {}).net
    assert net.drop_path == expected
