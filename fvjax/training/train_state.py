"""What a run is made of: the encoder, what trains and what is frozen, each leaf where it will live."""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fvjax import shipped, trees
from fvjax.config import Config
from fvjax.data import prompts
from fvjax.data.tokenizers.internlm2 import Tokenizer
from fvjax.models import encoder as encoders
from fvjax.models import lora
from fvjax.parallel import sharding
from fvjax.training import checkpoint, optimizer
from weights_convert.read import Leaf, open_checkpoint

SECTIONS = {"vision": "vision_transformer", "projector": "projector", "decoder": "decoder"}  # of config.model


class Base(NamedTuple):
    """Pretrained weights, lazily: of a whole model, or (config.init_parts) of some parts of a VLM."""

    params: dict[str, Leaf]  # by the run's names
    model_config: dict[str, Any]  # attributes of the model, or by part
    covers: str  # regex over the run's names: these must be there, and nothing else


class Opened(NamedTuple):
    """A run's model before anything is computed. `frozen` as shapes; `groups` and shardings (`placed`) by name."""

    base: Base | None
    encoder: encoders.Encoder
    frozen: dict
    groups: dict[str, str]
    placed: dict


class Start(NamedTuple):
    """What training starts from. `shape` and `where`: of the state's leaves, their shapes and their shardings."""

    state: dict  # {"trainable", "stats", "opt", "step"}, on their devices
    frozen: dict
    tx: optax.GradientTransformation
    lr: Callable[[Any], jax.Array]
    shape: dict
    where: dict


def open_model(config: Config, mesh, plain: bool = False) -> Opened:
    """Of a base only headers are read. Raises ValueError if it does not fit the config. `plain`: see build_encoder."""
    base = open_base(config)
    encoder = build_encoder(config, base, plain)
    variables = jax.eval_shape(functools.partial(init_variables, config, encoder), jax.random.key(config.seed))
    everything = trees.flatten(variables)
    if base:
        expected = {n: leaf for n, leaf in everything.items() if re.match(base.covers, n)}
        trees.strict_diff(expected, base.params, config.init_from or str(config.init_parts.to_dict()))
    placed = trees.flatten(sharding.by_rules(variables, config.sharding, mesh))
    variables.pop("batch_stats", None)  # neither trained nor frozen: part of the state
    _, frozen, groups = optimizer.split(variables, config.trainable)
    return Opened(base, encoder, frozen, groups, placed)


def open_base(config: Config) -> Base | None:
    """config.init_from or config.init_parts, of which only headers are read; None without either."""
    if config.init_from:
        whole = open_checkpoint(shipped.weights(config.init_from), config.model.kind)
        return Base(whole.params, whole.model_config, "(params|batch_stats)/")
    params, attributes = {}, {}
    for part, path in config.init_parts.items():
        if part not in SECTIONS:
            raise ValueError(f"config.init_parts.{part}: a VLM's parts are {', '.join(SECTIONS)}")
        one = open_checkpoint(shipped.weights(path), {"vision": "vision_transformer"}.get(part, part))
        params |= {n.replace("params/", f"params/{part}/", 1): leaf for n, leaf in one.params.items()}
        attributes[part] = one.model_config
    return Base(params, attributes, f"params/({'|'.join(attributes)})/") if attributes else None


def base_hash(config: Config) -> str:
    """Of the base's files, "" without one: what a run's checkpoints belong to."""
    if config.init_from:
        return checkpoint.base_hash(shipped.weights(config.init_from))
    parts = sorted(config.init_parts.items())
    return ",".join(f"{part}:{checkpoint.base_hash(shipped.weights(path))}" for part, path in parts)


def prompt_of(encoder: encoders.Encoder) -> dict[str, Any]:
    """The token ids of a VLM's text and answers, as checkpoints know them; {} of what reads none.

    A config may hold a text, and then the ids depend on the tokenizer's files, which :func:`base_hash` leaves out.
    """
    ids = [list(encoder.prompt), list(encoder.yes_no)]
    return {"prompt_ids": ids} if any(ids) else {}


def start(config: Config, opened: Opened, mesh, steps_per_epoch: int) -> Start:
    """What trains is initialised inside jit, where it will live; what a base gives is read shard by shard."""
    lr = optimizer.schedule(config.optimizer, config.epochs, steps_per_epoch)
    tx = optimizer.make(config.optimizer, opened.groups, lr)

    def init(key):
        first = initial(config, opened.encoder, key)
        return {**first, "opt": tx.init(first["trainable"]), "step": jnp.zeros((), jnp.int32)}

    key = jax.random.key(config.seed)
    shape = jax.eval_shape(init, key)
    where = state_shardings(shape, opened.placed, mesh)
    state = from_base(jax.jit(init, out_shardings=where)(key), opened)
    return Start(state, read_frozen(config, opened), tx, lr, shape, where)


def from_base(state: dict, opened: Opened) -> dict:
    """The state with the base's weights and running statistics, in float32."""
    given = opened.base.params if opened.base else {}
    return state | {part: replace(state[part], given, opened.placed, "float32") for part in ("trainable", "stats")}


def initial(config: Config, encoder: encoders.Encoder, key: jax.Array) -> dict:
    """Where training starts when there is no base: {"trainable": float32, "stats"}, without what is frozen."""
    variables = init_variables(config, encoder, key)
    stats = {"batch_stats": variables.pop("batch_stats")} if "batch_stats" in variables else {}
    trainable, _, _ = optimizer.split(variables, config.trainable)
    return {"trainable": jax.tree.map(lambda x: x.astype(jnp.float32), trainable), "stats": stats}


def restore(config: Config, workdir: Path) -> tuple[encoders.Encoder, dict, int, str]:
    """What a run embeds with: (encoder, its variables, step, hash of the base or ""). Else as :func:`trained`."""
    opened, state, step, now = trained(config, workdir)
    frozen = read_frozen(config, opened)
    return opened.encoder, variables_of(config, state["trainable"], frozen, state["stats"]), step, now


def trained(config: Config, workdir: Path) -> tuple[Opened, dict, int, str]:
    """What a run trained, on one device and without its optimizer; the workdir is only read.

    Returns:
        (model, state {"trainable", "stats"}, step, hash of the base or ""). With config.epochs = 0 nothing was trained:
        step 0 of what the base or the seed gives.
    Raises:
        ValueError: no checkpoint yet; the base is not there, or not the one that was trained on.
    """
    bases = {"init_from": config.init_from, **{f"init_parts.{k}": v for k, v in config.init_parts.items()}}
    for key, path in bases.items():
        if path and not Path(shipped.weights(path)).is_dir():
            remedy = dict(config.prepare).get(key, "")
            told = f"{path} is not there (seen from where the run was started). {remedy}"
            raise ValueError(f"{workdir}/config.json: {key}: {told}".rstrip())
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    opened = open_model(config, mesh)
    now = base_hash(config)
    init, key = functools.partial(initial, config, opened.encoder), jax.random.key(config.seed)
    shape = jax.eval_shape(init, key)
    where = state_shardings(shape, opened.placed, mesh)
    if config.epochs:
        nothing = ValueError(f"{workdir} has no checkpoint yet, so there is nothing trained to use")
        if not (workdir / "checkpoints").is_dir():
            raise nothing
        checkpoints = checkpoint.Checkpoints(workdir, config.checkpoint, read_only=True)
        step = checkpoints.best()
        if step is None:
            raise nothing
        meta = checkpoints.meta(step)
        trained_on = meta["base_hash"]
        if trained_on != now:
            base = config.init_from or config.init_parts.to_dict()
            raise ValueError(
                f"{workdir} was trained on another base than {base} is now (hash {trained_on[:8]} there, "
                f"{now[:8]} now); put that base back"
            )
        for key, ids in prompt_of(opened.encoder).items():
            if meta.get(key, ids) != ids:  # checkpoints of before this was noted have none
                told = f"was trained with {key} {meta[key]}, its tokenizer now gives {ids}"
                raise ValueError(f"{workdir} {told}; put the tokenizer's files back")
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shape, where)
        state = checkpoints.restore(step, target, {})
        checkpoints.close()
    else:
        step, state = 0, from_base(jax.jit(init, out_shardings=where)(key), opened)
    return opened, state, step, now


def build_encoder(config: Config, base: Base | None = None, plain: bool = False) -> encoders.Encoder:
    """The config's encoder; attributes that the config does not set come from the base.

    `plain`: as the model is written, without what is computed twice or arranged for speed; to count its arithmetic.
    """
    kind, changes = config.model.kind, {"dtype": jnp.dtype(config.dtype)}
    theirs = base.model_config if base else {}
    if kind == "iresnet":
        changes |= {"on_cpu": jax.default_backend() == "cpu" and not plain}
    elif plain:
        changes |= {"remat": "none", "attention": "xla"}
    else:
        remat = "none" if config.remat == "auto" else config.remat  # training has chosen, see needs.remat
        changes |= {"remat": remat, "attention": config.attention}
    if kind != "vlm":
        encoder = encoders.build(kind, _agreed(config, kind, theirs), config.model.pooling, **changes)
        return dataclasses.replace(encoder, norm_group=config.compat.batch_norm_group)
    parts = {part: _agreed(config, section, theirs.get(part, {})) for part, section in SECTIONS.items()}
    parts["projector"]["width"] = parts["decoder"]["width"]
    if (bos := theirs.get("bos", config.model.bos)) != config.model.bos:
        raise ValueError(f"{config.init_from} has bos={bos}, the config's model bos={config.model.bos}")
    prompt, yes_no = prompt_ids(config)
    if not prompt and set(config.eval.pools) - {"visual_mean"}:
        raise ValueError(f"config.eval.pools={config.eval.pools} depend on the text: set config.prompt")
    return encoders.build(kind, {**parts, "bos": bos}, config.model.pooling, prompt, yes_no, **changes)


def _agreed(config: Config, section: str, theirs: dict) -> dict:
    """A module's attributes, by its base and by the config. Raises ValueError where both have one and differ."""
    mine = {key: value for key, value in config.model[section].items() if value is not None}
    for key, value in theirs.items():
        same = (
            tuple(mine.get(key, value)) == tuple(value)
            if isinstance(value, list | tuple)
            else mine.get(key, value) == value
        )
        if not same and key not in ("drop_path", "dropout"):  # those are choices of the training run
            base = config.init_from or "the base"
            raise ValueError(f"{base} has {key}={value}, the config's model {key}={mine[key]}")
    return {**theirs, **mine}


def prompt_ids(config: Config) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of the text that a VLM reads after the image(s), and of the answers (Yes, No) to it if the task has any."""
    answers = config.task == "pair_answer"
    ids, yes_no = tuple(config.prompt.ids), tuple(config.prompt.yes_no_ids) if answers else ()
    if config.prompt.text or (answers and not yes_no):
        tokenizer = Tokenizer(shipped.weights(config.init_from or config.init_parts.get("decoder", "")))
        ids = ids or tuple(tokenizer.encode(config.prompt.text))
        yes_no = yes_no or (prompts.yes_no_ids(tokenizer) if answers else ())
    return ids, yes_no


def init_variables(config: Config, encoder: encoders.Encoder, key: jax.Array) -> dict:
    """Random variables of the encoder and its adapters: {"params", ["batch_stats"], ["lora"]}."""
    variables = encoder.init(jax.random.fold_in(key, 0))
    if config.lora.rank:
        c = config.lora
        adapters = lora.init(trees.flatten(variables["params"]), c.targets, c.rank, c.count, jax.random.fold_in(key, 1))
        variables["lora"] = trees.unflatten(adapters)
    return variables


def variables_of(config: Config, *parts: dict) -> dict:
    """The variables a network is applied to: pruned trees merged, adapters scaled by alpha / rank."""
    variables = optimizer.merge(*parts)
    if "lora" in variables:
        scaled = lora.scaled(trees.flatten(variables["lora"]), config.lora.alpha / config.lora.rank)
        variables["lora"] = trees.unflatten(scaled)
    return variables


def read_frozen(config: Config, opened: Opened) -> dict:
    """The frozen parameters on their devices, from the base or (without one) as initialised."""
    names = trees.flatten(opened.frozen)
    if not names:
        return {}
    dtype = jnp.dtype(config.base_dtype)
    given = opened.base.params if opened.base else {}
    initialised = set(names) - set(given)

    def init(key):
        flat = trees.flatten(init_variables(config, opened.encoder, key))
        return {n: flat[n].astype(dtype) for n in initialised}

    out = jax.jit(init, out_shardings={n: opened.placed[n] for n in initialised})(jax.random.key(config.seed))
    return replace(trees.unflatten({**names, **out}), given, opened.placed, dtype)


def replace(tree: dict, given: dict, placed: dict, dtype) -> dict:
    """The tree with the leaves in `given` (sliceable, lazy) read onto their devices, each host only its shards."""
    flat = dict(trees.flatten(tree))
    for name, leaf in given.items():
        if name in flat:
            read = lambda index, leaf=leaf: np.asarray(leaf[index]).astype(dtype)  # noqa: E731
            flat[name] = jax.make_array_from_callback(tuple(leaf.shape), placed[name], read)
    return trees.unflatten(flat)


def state_shardings(shape: dict, placed: dict, mesh) -> dict:
    """Optimizer leaves live where the parameter of the same name lives, scalars are replicated."""

    def one(path, leaf):
        keys = [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]
        for start in range(len(keys)):
            name = "/".join(keys[start:])
            if name in placed and leaf.ndim:
                return placed[name]
        return sharding.replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, shape)
