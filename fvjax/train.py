"""The training loop, top to bottom: model, data, state, evaluation before, steps, evaluation after."""

import functools
import json
import time
from collections import deque
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fvjax
from fvjax import checkpoint, evaluate, flops, lora, metrics, optim, sharding, trees
from fvjax.config import Config, config_hash, to_json
from fvjax.data import pairs, pipeline, synthetic
from fvjax.data.store import Store
from fvjax.models import encoder as encoders
from fvjax.models import preprocess
from fvjax.tasks import contrastive
from weights_convert.read import Checkpoint, open_checkpoint


def run(config: Config, workdir: Path, *, train: bool) -> dict:
    """Train (or resume) in `workdir` and evaluate; with train=False only evaluate what is there.

    Returns the contents of results.json. Raises ValueError for whatever a user can mend.
    """
    start_time, code_version = time.perf_counter(), fvjax.code_version()
    say = metrics.console.print if jax.process_index() == 0 else lambda *_: None

    # ---- mesh and model
    if jax.process_count() > 1:
        raise ValueError("this version runs in one process; several hosts come with the launch scripts")
    mesh = sharding.make_mesh(config.mesh)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    for key, size in (("batch_size / 2", config.batch_size // 2), ("eval.batch_size", config.eval.batch_size)):
        if size % rows:
            raise ValueError(f"config.{key} = {size} does not divide over the mesh's data x fsdp = {rows} devices")
    base, encoder, frozen, groups, placed = open_model(config, mesh)

    # ---- data
    store, plan = open_data(config, workdir)
    evaluate.check(config, workdir)
    steps_per_epoch = plan.steps_per_epoch if plan else 1
    if plan and steps_per_epoch == 0:
        raise ValueError(f"config.batch_size={config.batch_size}: not one full batch of {plan.pairs_per_batch} pairs")
    total_steps = config.epochs * steps_per_epoch

    # ---- state: what trains is initialised inside jit, where it will live; the frozen base is read shard by shard
    lr = optim.schedule(config.optimizer, config.epochs, steps_per_epoch)
    tx = optim.make(config.optimizer, groups, lr)

    def init_state(key):
        start = initial(config, encoder, key)
        return {**start, "opt": tx.init(start["trainable"]), "step": jnp.zeros((), jnp.int32)}

    key = jax.random.key(config.seed)
    shape = jax.eval_shape(init_state, key)
    where = state_shardings(shape, placed, mesh)
    state = jax.jit(init_state, out_shardings=where)(key)
    if base:
        state["trainable"] = replace(state["trainable"], base.params, placed, "float32")
        state["stats"] = replace(state["stats"], base.params, placed, "float32")
    frozen = read_frozen(config, encoder, frozen, base, placed)
    if jax.process_index() == 0 and not (workdir / "config.json").exists():  # nothing that a user can mend is wrong
        workdir.mkdir(parents=True, exist_ok=True)
        metrics.replace_file(workdir / "config.json", to_json(config))
    meta = {
        "base_hash": checkpoint.base_hash(config.init_from) if config.init_from else "",
        "train_data_hash": store.data_hash if store else "",
        "pairs": [config.seed, plan.pairs_per_batch if plan else 0],
    }

    checkpoints = checkpoint.Checkpoints(workdir, config.checkpoint)
    latest, seconds_before = checkpoints.latest(), 0.0
    if not train and config.epochs and latest is None:
        raise ValueError(f"{workdir} has no checkpoint yet, so there is nothing trained to evaluate")
    if latest is not None:
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shape, where)
        state = checkpoints.restore(latest, target, meta)
        seconds_before = checkpoints.meta(latest)["seconds"]
        say(f"Restored step {latest} of {workdir}")
    step = int(state["step"])

    count = sum(x.size for x in trees.flatten(state["trainable"]).values())
    total = count + sum(x.size for x in trees.flatten(frozen).values())
    kind = jax.devices()[0].device_kind
    say(f"{config.name}: {total:,} parameters, {count:,} train; mesh {dict(mesh.shape)} on {kind}")
    if store and plan:
        say(
            f"{len(store):,} images, {plan.eligible + plan.single:,} identities ({plan.single:,} with one image, never "
            f"drawn); {plan.pairs_per_batch} pairs a step, {steps_per_epoch} steps an epoch, {config.epochs} epochs"
        )

    # ---- evaluation before training
    embed = functools.partial(embed_faces, jax.jit(functools.partial(embed_step, config, encoder)), frozen, mesh)
    seen = set(store.identities) if store and plan else set()
    evaluator = functools.partial(evaluate.run, config, workdir=workdir, seen=seen)
    before_file = workdir / "before_training.json"
    if config.eval.before_training and train and total_steps and step == 0 and not before_file.exists():
        before, _ = evaluator(functools.partial(embed, state), title="before training")
        metrics.replace_file(before_file, json.dumps(before, indent=1))

    # ---- steps
    if store and plan and train and step < total_steps:
        one_step = functools.partial(step_fn, config, encoder, tx, lr)
        train_step = jax.jit(one_step, donate_argnums=0, out_shardings=(where, None))
        plain = functools.partial(step_fn, config, build_encoder(config, base, plain=True), tx, lr)
        per_step = flops.count(plain, *abstract_step(config, shape, frozen))
        batches = pipeline.train_batches(
            store,
            plan,
            start_step=step,
            num_steps=total_steps - step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=config.data.workers,
            threads=config.data.threads,
            prefetch=config.data.prefetch,
        )
        writer = metrics.Writer(workdir, config.log, step)
        writer.start(step, total_steps)
        pending: deque = deque()  # results are read one step late, so that the host does not wait for the device
        clock = time.perf_counter()

        def spent() -> float:
            return round(seconds_before + elapsed_since(start_time), 1)

        def report(number: int, values: dict) -> None:
            nonlocal clock
            values = {k: float(v) for k, v in values.items()}
            if not np.isfinite([values["loss"], values["grad_norm"]]).all():
                raise FloatingPointError(
                    f"step {number}: the loss is {values['loss']}, its gradient's norm {values['grad_norm']} (learning "
                    f"rate {values['lr']:.3g}); the last checkpoint is step {checkpoints.latest()}"
                )
            elapsed, clock = time.perf_counter() - clock, time.perf_counter()
            values["images_per_s"] = config.batch_size / elapsed
            if number % config.log.every_steps == 0:
                writer.write(number, values)
            rate = f"{values['images_per_s']:.0f} images/s {per_step / elapsed / 1e9:.0f} GFLOP/s"
            text = f"epoch {number // steps_per_epoch + 1}/{config.epochs} loss {values['loss']:.4f} {rate}"
            writer.show(number + 1, text)
            if (number + 1) % steps_per_epoch == 0 and not metrics.console.is_terminal:
                writer.say(f"{text}, {elapsed_since(start_time):.0f} s since start")

        try:
            for batch in batches:
                batch = sharding.batch({k: batch[k] for k in ("images", "labels", "index")}, mesh)
                state, values = train_step(state, frozen, batch)
                pending.append((step, values))
                step += 1
                if len(pending) > 1:
                    report(*pending.popleft())
                last = step == total_steps
                evaluating = config.eval.every_epochs and step % (config.eval.every_epochs * steps_per_epoch) == 0
                if not (last or evaluating or step % config.checkpoint.every_steps == 0):
                    continue
                while pending:  # never save what a loss that is not finite has touched
                    report(*pending.popleft())
                if evaluating and not last:  # before the checkpoint, so that a kill in between repeats it
                    now = functools.partial(embed, state)
                    results, _ = evaluator(now, title=f"step {step}", only=config.eval.during, bootstrap=0)
                    evaluate.append_curve(workdir, step, step / steps_per_epoch, spent(), results)
                checkpoints.save(step, state, {**meta, "seconds": spent()})
                clock = time.perf_counter()
        finally:
            writer.close()
            checkpoints.close()
        say(f"Trained to step {step}, {elapsed_since(start_time):.0f} s since start")

    # ---- evaluation after
    results, curves = evaluator(functools.partial(embed, state), title=config.name)
    seconds = round(seconds_before + elapsed_since(start_time), 1)  # of all starts, up to here
    if train and step:
        evaluate.append_curve(workdir, step, step / steps_per_epoch, seconds, results)
    before = json.loads(before_file.read_text()) if before_file.exists() else {}
    before = {n: e for n, e in before.items() if n in results and e["data_hash"] == results[n]["data_hash"]}
    baselines = evaluate.baselines(config, workdir=workdir, seen=seen) if config.eval.baselines else {}
    out = {
        "benchmarks": {name: {**entry, "before_training": before.get(name)} for name, entry in results.items()},
        "baselines": baselines,
        "step": step,
        "config_hash": config_hash(config),
        "base_hash": meta["base_hash"],
        "train_data_hash": meta["train_data_hash"],
        "code_version": code_version,
        "dtype": config.dtype,
        "flip_sum": config.eval.flip_sum,  # of these figures: config.json may say otherwise (--mode=eval)
        "seconds": seconds,
    }
    evaluate.finish(config, workdir, out, curves)
    return out


# ---- one step ------------------------------------------------------------------------------------------------------


def variables_of(config: Config, *parts: dict) -> dict:
    """The variables a network is applied to: pruned trees merged, adapters scaled by alpha / rank."""
    variables = optim.merge(*parts)
    if "lora" in variables:
        scaled = lora.scaled(trees.flatten(variables["lora"]), config.lora.alpha / config.lora.rank)
        variables["lora"] = trees.unflatten(scaled)
    return variables


def gradients(config: Config, encoder: encoders.Encoder, state: dict, frozen: dict, batch: dict):
    """Loss, new batch statistics and the gradient of what trains, on a global batch.

    batch: images uint8 [P,2,112,112,3], labels int [P], index int [P] (global pair number). Random draws are keyed by
    the pair's number, so they do not depend on the device, host or row that an image is on.
    """
    faces = batch["images"].reshape(-1, *batch["images"].shape[2:])
    numbers = (2 * batch["index"][:, None] + jnp.arange(2)).reshape(-1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(config.seed), numbers)
    if config.data.flip:
        faces = preprocess.flip(faces, keys)

    def loss_fn(trainable):
        variables = variables_of(config, trainable, frozen, state["stats"])
        embeddings, stats = encoder(variables, faces, train=True, keys=keys)
        return contrastive.loss(embeddings, batch["labels"], config.loss.temperature), stats

    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["trainable"])
    return loss, stats, grads


def step_fn(config: Config, encoder: encoders.Encoder, tx, lr, state: dict, frozen: dict, batch: dict):
    """One training step: the new state and {"loss", "lr", "grad_norm" (before clipping)}."""
    loss, stats, grads = gradients(config, encoder, state, frozen, batch)
    updates, opt = tx.update(grads, state["opt"], state["trainable"])
    trainable = jax.tree.map(jnp.add, state["trainable"], updates)
    values = {"loss": loss, "lr": lr(state["step"]), "grad_norm": optax.global_norm(grads)}
    return {"trainable": trainable, "stats": stats, "opt": opt, "step": state["step"] + 1}, values


def embed_step(config: Config, encoder: encoders.Encoder, trainable: dict, stats: dict, frozen: dict, faces):
    return encoder(variables_of(config, trainable, frozen, stats), faces)[0]


def embed_faces(compiled, frozen: dict, mesh, state: dict, faces: np.ndarray) -> np.ndarray:
    """uint8 [b,112,112,3] -> float32 [b,D] on the host."""
    on_device = sharding.batch({"faces": faces}, mesh)["faces"]
    return np.asarray(compiled(state["trainable"], state["stats"], frozen, on_device))


def elapsed_since(start: float) -> float:
    return time.perf_counter() - start


# ---- what a run is made of -----------------------------------------------------------------------------------------


def open_model(config: Config, mesh) -> tuple:
    """(base or None, encoder, frozen, groups, placed): `frozen` as shapes, `groups` and shardings by name.

    Nothing is computed, and of a base only headers are read. Raises ValueError if the base does not fit the config.
    """
    base = open_base(config) if config.init_from else None
    encoder = build_encoder(config, base)
    variables = jax.eval_shape(functools.partial(init_variables, config, encoder), jax.random.key(config.seed))
    everything = trees.flatten(variables)
    if base:
        expected = {n: leaf for n, leaf in everything.items() if not n.startswith("lora/")}
        trees.strict_diff(expected, base.params, config.init_from)
    placed = trees.flatten(sharding.by_rules(variables, config.sharding, mesh))
    variables.pop("batch_stats", None)  # neither trained nor frozen: part of the state
    _, frozen, groups = optim.split(variables, config.trainable)
    return base, encoder, frozen, groups, placed


def initial(config: Config, encoder: encoders.Encoder, key: jax.Array) -> dict:
    """Where training starts when there is no base: {"trainable": float32, "stats"}, without what is frozen."""
    variables = init_variables(config, encoder, key)
    stats = {"batch_stats": variables.pop("batch_stats")} if "batch_stats" in variables else {}
    trainable, _, _ = optim.split(variables, config.trainable)
    return {"trainable": jax.tree.map(lambda x: x.astype(jnp.float32), trainable), "stats": stats}


def restore(config: Config, workdir: Path) -> tuple[encoders.Encoder, dict, int, str]:
    """What a run embeds with, on one device and without its optimizer; the workdir is only read.

    Returns:
        (encoder, its variables, step, hash of the base or ""). With config.epochs = 0 nothing was trained: step 0 of
        what the base or the seed gives.
    Raises:
        ValueError: no checkpoint yet; the base is not there, or not the one that was trained on.
    """
    if config.init_from and not Path(config.init_from).is_dir():
        remedy = dict(config.prepare).get("init_from", "")
        told = f"{config.init_from} is not there (seen from where the run was started). {remedy}"
        raise ValueError(f"{workdir}/config.json: init_from: {told}".rstrip())
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    base, encoder, frozen, _, placed = open_model(config, mesh)
    base_hash = checkpoint.base_hash(config.init_from) if config.init_from else ""
    start, key = functools.partial(initial, config, encoder), jax.random.key(config.seed)
    shape = jax.eval_shape(start, key)
    where = state_shardings(shape, placed, mesh)
    if config.epochs:
        nothing = ValueError(f"{workdir} has no checkpoint yet, so there is nothing trained to use")
        if not (workdir / "checkpoints").is_dir():
            raise nothing
        checkpoints = checkpoint.Checkpoints(workdir, config.checkpoint, read_only=True)
        step = checkpoints.latest()
        if step is None:
            raise nothing
        trained_on = checkpoints.meta(step)["base_hash"]
        if trained_on != base_hash:
            raise ValueError(
                f"{workdir} was trained on another base than {config.init_from} is now (hash {trained_on[:8]} there, "
                f"{base_hash[:8]} now); put that base back"
            )
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shape, where)
        state = checkpoints.restore(step, target, {})
        checkpoints.close()
    else:
        step, state = 0, jax.jit(start, out_shardings=where)(key)
        given = base.params if base else {}
        state = {part: replace(tree, given, placed, "float32") for part, tree in state.items()}
    frozen = read_frozen(config, encoder, frozen, base, placed)
    return encoder, variables_of(config, state["trainable"], frozen, state["stats"]), step, base_hash


def build_encoder(config: Config, base: Checkpoint | None = None, plain: bool = False) -> encoders.Encoder:
    """The config's encoder; attributes that the config does not set come from the base.

    `plain`: as the model is written, without what is computed twice or arranged for speed; to count its arithmetic.
    """
    kind, changes = config.model.kind, {"dtype": jnp.dtype(config.dtype)}
    if kind == "vision_transformer":
        changes |= {"remat": "none" if plain else config.remat, "attention": config.attention}
    else:
        changes |= {"on_cpu": jax.default_backend() == "cpu" and not plain}
    mine = {key: value for key, value in config.model[kind].items() if value is not None}
    theirs = base.model_config if base else {}
    for key, value in theirs.items():
        same = (
            tuple(mine.get(key, value)) == tuple(value)
            if isinstance(value, list | tuple)
            else mine.get(key, value) == value
        )
        if not same and key not in ("drop_path", "dropout"):  # those are choices of the training run
            raise ValueError(f"{config.init_from} has {key}={value}, the config's model {key}={mine[key]}")
    return encoders.build(kind, {**theirs, **mine}, config.model.pooling, **changes)


def init_variables(config: Config, encoder: encoders.Encoder, key: jax.Array) -> dict:
    """Random variables of the encoder and its adapters: {"params", ["batch_stats"], ["lora"]}."""
    variables = encoder.init(jax.random.fold_in(key, 0))
    if config.lora.rank:
        c = config.lora
        adapters = lora.init(trees.flatten(variables["params"]), c.targets, c.rank, c.count, jax.random.fold_in(key, 1))
        variables["lora"] = trees.unflatten(adapters)
    return variables


def open_base(config: Config) -> Checkpoint:
    """The pretrained weights' directory; only headers are read."""
    base = open_checkpoint(config.init_from)
    if base.kind != config.model.kind:
        raise ValueError(f"{config.init_from} holds a {base.kind}, config.model.kind is {config.model.kind}")
    return base


def open_data(config: Config, workdir: Path) -> tuple[Store | None, pairs.PairPlan | None]:
    """The training store and its epoch plan; embedded synthetic sets are drawn first, where they are not there yet."""
    c = config.data.synthetic
    if c.identities:
        for split, people, images, count in (
            ("train", range(c.identities), c.images, None),
            ("test", range(c.identities, c.identities + c.test_identities), c.test_images, c.test_pairs),
        ):
            path = evaluate.synthetic_store(config, workdir, split)
            if not path.exists():
                metrics.console.print(f"Drawing {len(people) * images:,} synthetic faces ({split})")
                synthetic.write(path, people, images, c.seed, split=split, difficulty=c.difficulty, pairs=count)
        store = Store(evaluate.synthetic_store(config, workdir, "train"), "train")
    elif config.data.train:
        store = Store(config.data.train, config.data.split)
    else:
        store = None
    if not config.epochs:
        return store, None
    if store is None:
        raise ValueError("config.data.train is empty and config.epochs is not 0; give a face store to train on")
    return store, pairs.PairPlan(store.labels, config.batch_size // 2, config.seed)


def read_frozen(config: Config, encoder: encoders.Encoder, frozen: dict, base, placed: dict) -> dict:
    """The frozen parameters on their devices, from the base or (without one) as initialised."""
    names = trees.flatten(frozen)
    if not names:
        return {}
    dtype = jnp.dtype(config.base_dtype)
    initialised = {n for n in names if not base or n.startswith("lora/")}

    def init(key):
        flat = trees.flatten(init_variables(config, encoder, key))
        return {n: flat[n].astype(dtype) for n in initialised}

    out = jax.jit(init, out_shardings={n: placed[n] for n in initialised})(jax.random.key(config.seed))
    return replace(trees.unflatten({**names, **out}), base.params if base else {}, placed, dtype)


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


def abstract_step(config: Config, shape: dict, frozen: dict) -> tuple:
    """Arguments of `step_fn` as shapes, for counting and for tests."""
    p = config.batch_size // 2
    batch = {
        "images": jax.ShapeDtypeStruct((p, 2, 112, 112, 3), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((p,), jnp.int32),
        "index": jax.ShapeDtypeStruct((p,), jnp.int32),
    }
    as_shape = functools.partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype))
    return as_shape(shape), as_shape(frozen), batch
