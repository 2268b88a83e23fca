"""The model of a run: its network, which parameters train, and where each one comes from and lives."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fvjax import plugins, shipped, trees
from fvjax.config import Config, LoraConfig, ModelConfig
from fvjax.data import tokenizers
from fvjax.models import encoder as encoders
from fvjax.models import int8, lora, presets
from fvjax.parallel import sharding
from fvjax.tasks.task import Task, Text
from fvjax.training import checkpoint, earlier_run, int8_base, optimizer
from weights_convert.read import open_checkpoint

SECTIONS = {"vision": "vision_transformer", "projector": "projector", "decoder": "decoder"}  # of config.model
TOWERS: dict[str, str] = dict.fromkeys(("vision", "video"), "vision_transformer")  # kind of a pretrained part
STATISTICS = ("batch_stats", "head_stats")  # variables that a step computes anew: neither trained nor frozen
CHOICES_OF_A_RUN = ("drop_path", "dropout")  # attributes in which a run may differ from its pretrained weights


@dataclass(frozen=True)
class Pretrained:
    """Pretrained weights, opened lazily: of a whole model, or (config.init_parts) of some parts of a VLM.

    Attributes:
        params: leaves by the run's parameter names.
        attributes: of the network's modules: of one, or by part.
        covers: regex over the run's names. Names that match must be in `params`, and no others.
        source: the directories, for messages.
    """

    params: dict[str, Any]  # Leaf, or an array that an earlier run has trained
    attributes: dict[str, Any]
    covers: str
    source: str


@dataclass(frozen=True)
class RunModel:
    """A network with everything that is known about its parameters before one of them is computed.

    Attributes:
        frozen: shapes and dtypes of what does not train, as it is kept on the devices, a nested dict.
        groups: optimizer group of each parameter that trains, by name.
        shardings: of every parameter and statistic, by name.
    """

    encoder: encoders.Encoder
    pretrained: Pretrained | None
    init_head: Callable[[jax.Array], dict[str, Any]]  # random parameters of the task's own
    init_head_stats: Callable[[], dict[str, Any]]  # and running statistics of its loss
    image_size: tuple[int, int]
    adapters: LoraConfig
    trainable_rules: Any
    base_dtype: Any
    seed: int
    frozen: dict[str, Any] = dataclasses.field(default_factory=dict)
    groups: dict[str, str] = dataclasses.field(default_factory=dict)
    shardings: dict[str, NamedSharding] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> jax.Array:
        """The key that random parameters are drawn with."""
        return jax.random.key(self.seed)

    @property
    def mesh(self) -> Mesh:
        """The mesh that parameters lie on."""
        mesh = next(iter(self.shardings.values())).mesh
        assert isinstance(mesh, Mesh)  # none of the shardings is abstract
        return mesh

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Return random variables: {"params", ["batch_stats"], ["lora"], ["head"], ["head_stats"]}."""
        variables = self.encoder.init(jax.random.fold_in(key, 0), self.image_size)
        if self.adapters.rank:
            c = self.adapters
            params = trees.flatten(variables["params"])
            adapters = lora.init(params, c.targets, c.rank, c.count, jax.random.fold_in(key, 1), c.init)
            variables["lora"] = trees.unflatten(adapters)
        if head := self.init_head(jax.random.fold_in(key, 2)):
            variables["head"] = head
        if stats := self.init_head_stats():
            variables["head_stats"] = stats
        return variables

    def initial(self, key: jax.Array) -> dict[str, Any]:
        """Return where training starts without pretrained weights: {"trainable": float32, "stats"}."""
        variables = self.init(key)
        stats = {name: variables.pop(name) for name in STATISTICS if name in variables}
        trainable, _, _ = optimizer.split(variables, self.trainable_rules)
        return {"trainable": jax.tree.map(lambda x: x.astype(jnp.float32), trainable), "stats": stats}

    def variables(self, trainable: Mapping, stats: Mapping, frozen: Mapping) -> dict[str, Any]:
        """Merge pruned trees into the variables that the network is applied to, adapters scaled by alpha / rank."""
        variables = optimizer.merge(trainable, frozen, stats)
        if "lora" in variables:
            scaled = lora.scaled(trees.flatten(variables["lora"]), self.adapters.alpha / self.adapters.rank)
            variables["lora"] = trees.unflatten(scaled)
        return variables

    def read_frozen(self) -> dict[str, Any]:
        """Return the frozen parameters on their devices: pretrained, or (without those) as initialised."""
        return self.read_base()[0]

    def read_base(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what :meth:`read_frozen` returns, and the errors of kernels as int8 (:func:`int8_base.read`)."""
        flat = trees.flatten(self.frozen)
        if not flat:
            return {}, {}
        kernels = [name for name, x in flat.items() if x.dtype == jnp.int8]
        kept = {n: x for n, x in flat.items() if n not in {*kernels, *map(int8.scale_name, kernels)}}
        pretrained = self.pretrained.params if self.pretrained else {}
        random_names = {*kept, *kernels} - set(pretrained)
        # A random kernel is drawn whole on every device before it becomes int8; a pretrained one never is there.
        whole = {n: NamedSharding(self.shardings[n].mesh, PartitionSpec()) for n in kernels}

        def init(key):
            drawn = trees.flatten(self.init(key))
            return {n: drawn[n] if n in whole else drawn[n].astype(self.base_dtype) for n in random_names}

        out_shardings = {n: whole.get(n, self.shardings[n]) for n in random_names}
        drawn = jax.jit(init, out_shardings=out_shardings)(self.key)
        sources = {n: pretrained[n] if n in pretrained else np.asarray(drawn.pop(n)) for n in kernels}
        integers, errors = int8_base.read(sources, self.shardings)
        rest = self._read_pretrained(trees.unflatten({**kept, **drawn}), self.base_dtype)
        return optimizer.merge(rest, integers), errors

    def start(self, initial: Mapping[str, Any]) -> dict[str, Any]:
        """Put pretrained weights and running statistics, in float32, in place of the random ones of `initial`."""
        return {part: self._read_pretrained(tree, "float32") for part, tree in initial.items()}

    def _read_pretrained(self, tree: Mapping, dtype: Any) -> dict[str, Any]:
        """Replace leaves that have pretrained values; each host reads only the slices that its devices hold."""
        flat = dict(trees.flatten(tree))
        for name, leaf in (self.pretrained.params if self.pretrained else {}).items():
            if name in flat:
                read = lambda index, leaf=leaf: np.asarray(leaf[index]).astype(dtype)  # noqa: E731
                flat[name] = jax.make_array_from_callback(tuple(leaf.shape), self.shardings[name], read)
        return trees.unflatten(flat)

    def state_shardings(self, shapes: Any, mesh: Mesh) -> Any:
        """Return a sharding for every leaf of a training state, see :func:`shardings_of_state`."""
        return shardings_of_state(shapes, self.shardings, mesh)


def shardings_of_state(shapes: Any, shardings: Mapping[str, NamedSharding], mesh: Mesh) -> Any:
    """Return a sharding for every leaf of a training state; `shardings`: of the parameters, by name.

    Optimizer leaves live where the parameter of the same name lives; scalars are replicated.
    """

    def one(path, leaf):
        keys = [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]
        for start in range(len(keys)):
            name = "/".join(keys[start:])
            if name in shardings and leaf.ndim:
                return shardings[name]
        return sharding.replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, shapes)


def open_model(config: Config, task: Task, mesh: Mesh, *, reference: bool = False) -> RunModel:
    """Describe the model of a run. Of pretrained weights only the headers are read.

    reference: the network as it is written, without rematerialisation and without what is arranged for speed, so that
    its arithmetic can be counted. Raises ValueError: pretrained weights, adapters or rules do not fit.
    """
    pretrained = open_pretrained(config.init_from, config.init_parts, config.model.kind)
    text = task.text(lambda: tokenizers.load(shipped.weights(config.init_from or config.init_parts["decoder"])))
    changes = {
        "dtype": jnp.dtype(config.dtype),
        **_arrangement(config.model.kind, config.remat, config.attention, reference),
    }
    if plugins.is_spec(config.model.kind):
        encoder = plugins.load(config.model.kind)(config.plugin, dtype=jnp.dtype(config.dtype))
    else:
        encoder = build_encoder(config.model, pretrained, text, changes)
    encoder = dataclasses.replace(encoder, norm_group=config.compat.batch_norm_group)
    model = RunModel(
        encoder,
        pretrained,
        functools.partial(task.init_head, encoder=encoder),
        task.init_head_stats,
        task.image_size,
        config.lora,
        config.trainable,
        jnp.dtype(config.base_dtype),
        config.seed,
    )
    variables = jax.eval_shape(model.init, model.key)
    if pretrained:
        everything = trees.flatten(variables)
        expected = {name: leaf for name, leaf in everything.items() if re.match(pretrained.covers, name)}
        trees.strict_diff(expected, pretrained.params, pretrained.source)
    shardings = trees.flatten(sharding.by_rules(variables, (*task.head_sharding, *config.sharding), mesh))
    for name in STATISTICS:
        variables.pop(name, None)
    _, frozen, groups = optimizer.split(variables, config.trainable)
    kept = {name: jax.ShapeDtypeStruct(x.shape, model.base_dtype) for name, x in trees.flatten(frozen).items()}
    if config.base_kernels == "int8":
        int8_base.check_rules(groups, config.trainable)
        kept, shardings = int8_base.with_int8_kernels(kept, shardings)
    return dataclasses.replace(model, frozen=trees.unflatten(kept), groups=groups, shardings=shardings)


def _arrangement(kind: str, remat: str, attention: str, reference: bool) -> dict[str, Any]:
    """Return the attributes of a network that change how it is computed and not what."""
    if kind == "iresnet":
        return {"on_cpu": jax.default_backend() == "cpu" and not reference}
    if reference:
        return {"remat": "none", "attention": "xla"}
    # By now training has chosen what "auto" means (planning.programs); without training nothing is recomputed.
    return {"remat": "none" if remat == "auto" else remat, "attention": attention}


def open_pretrained(init_from: str, init_parts: Mapping[str, str], kind: str) -> Pretrained | None:
    """Open `config.init_from` or `config.init_parts`, reading headers only; None without either."""
    if init_from and kind == "llava" and earlier_run.is_run(init_from):
        return _open_run(Path(init_from))
    if init_from:
        whole = open_checkpoint(shipped.weights(init_from), kind)
        covers = "(params|batch_stats)/"
        if kind == "llava":  # a checkpoint without landmark modules leaves them random
            covers = f"params/({'|'.join(part for part in whole.model_config if part != 'bos')})/"
        return Pretrained(whole.params, whole.model_config, covers, init_from)
    parts = [*SECTIONS, *(["video"] if kind == "llava" else [])]
    params, attributes = {}, {}
    for part, path in init_parts.items():
        if part not in parts:
            raise ValueError(f"config.init_parts.{part}: the parts of a {kind} are {', '.join(parts)}")
        one = open_checkpoint(shipped.weights(path), TOWERS.get(part, part))
        params |= {n.replace("params/", f"params/{part}/", 1): leaf for n, leaf in one.params.items()}
        attributes[part] = one.model_config
    if not attributes:
        return None
    return Pretrained(params, attributes, f"params/({'|'.join(attributes)})/", str(dict(init_parts)))


def _open_run(workdir: Path) -> Pretrained:
    """Open the model of a run that trained a llava: its base with what it trained in its place.

    Raises ValueError: nothing trained, another base than it was trained on, or parts that were random and frozen.
    """
    config = earlier_run.read_config(workdir)
    base = open_pretrained(config.init_from, config.init_parts, "llava")
    trained, facts = earlier_run.read_trained(workdir, config)
    if facts["base_hash"] != pretrained_hash(config.init_from, config.init_parts, config.base_kernels):
        raise ValueError(f"{workdir} was trained on another base than {config.pretrained} is now; put that base back")
    attributes = llava_parts(config.model, base.attributes if base else {}, str(workdir))
    return Pretrained({**(base.params if base else {}), **trained}, attributes, "params/", str(workdir))


def build_encoder(
    model: ModelConfig, pretrained: Pretrained | None, text: Text, changes: Mapping[str, Any]
) -> encoders.Encoder:
    """Build a network; attributes that the config leaves open come from the pretrained weights."""
    theirs = pretrained.attributes if pretrained else {}
    source = pretrained.source if pretrained else ""
    if model.kind == "llava":
        return encoders.build("llava", llava_parts(model, theirs, source), model.pooling, **changes)
    if model.kind != "vlm":
        ours = dataclasses.asdict(model)[model.kind]
        return encoders.build(model.kind, agreed(ours, theirs, source), model.pooling, **changes)
    parts = {
        part: agreed(dataclasses.asdict(getattr(model, section)), theirs.get(part, {}), source)
        for part, section in SECTIONS.items()
    }
    parts["projector"]["width"] = parts["decoder"]["width"]
    if (bos := theirs.get("bos", model.bos)) != model.bos:
        raise ValueError(f"{source} has bos={bos}, the config's model bos={model.bos}")
    return encoders.build("vlm", {**parts, "bos": bos}, model.pooling, text.prompt, text.answers, **changes)


def llava_parts(model: ModelConfig, theirs: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the attributes of a llava's parts; what the config leaves open comes from the weights, or is a LLaVA's.

    Raises ValueError if the weights have a part that the config does not ask for, or differ from it.
    """
    tower, decoder = dataclasses.asdict(model.vision_transformer), dataclasses.asdict(model.decoder)
    attention = dataclasses.asdict(model.landmarks)
    use, kind, tokens = (attention.pop(key) for key in ("use", "kind", "parts"))
    parts: dict[str, Any] = {
        "vision": agreed(tower, theirs.get("vision", presets.clip_style()), source),
        "decoder": agreed(decoder, theirs.get("decoder", presets.llama_style()), source),
        "projector": {"width": model.decoder.width, "shuffle": 1, "norm": False},
    }
    if model.frames:
        frames = {**tower, "frames": model.frames}
        parts["video"] = agreed(frames, theirs.get("video", presets.clip_style()), source)
    if use:
        ours = {"width": model.decoder.width, "kind": kind, "parts": tokens}
        parts["landmarks"] = agreed(ours, theirs.get("landmarks", {}), source)
    if use == "attention":
        parts["attention"] = agreed(attention, theirs.get("attention", {}), source)
    for part, remedy in (("video", "set model.frames"), ("landmarks", "set model.landmarks.use")):
        if part in theirs and part not in parts:
            raise ValueError(f"{source} has the part {part!r}, which the config does not use: {remedy}")
    if (bos := theirs.get("bos", model.bos)) != model.bos:
        raise ValueError(f"{source} has bos={bos}, the config's model bos={model.bos}")
    return {**parts, "bos": bos}


def agreed(ours: Mapping[str, Any], theirs: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Combine a module's attributes in the config and in its weights. Raises ValueError if both name one and differ."""
    ours = {key: value for key, value in ours.items() if value is not None}
    for key, value in theirs.items():
        mine = ours.get(key, value)
        same = tuple(mine) == tuple(value) if isinstance(value, list | tuple) else mine == value
        if not same and key not in CHOICES_OF_A_RUN:
            raise ValueError(f"{source} has {key}={value}, the config's model {key}={mine}")
    return {**theirs, **ours}


def pretrained_hash(init_from: str, init_parts: Mapping[str, str], base_kernels: str = "base_dtype") -> str:
    """Return the hash of the pretrained files, "" without any: what a run's checkpoints belong to.

    It says so if their kernels are int8, because that is another base, with other answers.
    """
    kept_as = "int8:" if base_kernels == "int8" else ""
    if init_from and earlier_run.is_run(init_from):
        return kept_as + earlier_run.fingerprint(init_from)
    if init_from:
        return kept_as + checkpoint.base_hash(shipped.weights(init_from))
    parts = sorted(init_parts.items())
    return kept_as + ",".join(f"{part}:{checkpoint.base_hash(shipped.weights(path))}" for part, path in parts)


def prompt_facts(encoder: encoders.Encoder) -> dict[str, Any]:
    """Return the token ids of a VLM's text and answers, for checkpoints to compare; {} for a model that reads none.

    A config may hold a text, and then the ids depend on the tokenizer's files, which the base's hash leaves out.
    """
    ids = [list(encoder.prompt), list(encoder.yes_no)]
    return {"prompt_ids": ids} if any(ids) else {}
