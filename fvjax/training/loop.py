"""The training loop, top to bottom: model, data, state, evaluation before, steps, evaluation after."""

import functools
import json
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import fvjax
from fvjax import evaluate, predict, trees
from fvjax.config import Config, config_hash, to_json
from fvjax.data import pairs, synthetic
from fvjax.data.stores import Store
from fvjax.losses import accumulation, contrastive, pair_answer
from fvjax.models import encoder as encoders
from fvjax.models import lora, preprocess
from fvjax.parallel import distributed, sharding
from fvjax.planning import flops
from fvjax.training import checkpoint, feed, metrics, preemption, profiling, train_state

SAVE, STOP = 1, 2  # what a process may wish after a step


def run(
    config: Config, workdir: Path, *, train: bool, request: preemption.Request | None = None, profile: int = 0
) -> dict:
    """Train (or resume) in `workdir` and evaluate; with train=False only evaluate what is there.

    `request`: who may ask for a checkpoint and the end; nobody without it. `profile`: steps to trace, see `profiling`.
    Several processes all call this.

    Returns the contents of results.json. Raises ValueError for whatever a user can mend, Preempted when asked to stop.
    """
    start_time, code_version = time.perf_counter(), fvjax.code_version()
    first = jax.process_index() == 0  # the one that writes and prints
    say = metrics.console.print if first else lambda *_: None

    # ---- mesh and model
    mesh = sharding.make_mesh(config.mesh)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = "" if config.accumulation == 1 else " / accumulation"
    per_part = config.batch_size // 2 // config.accumulation
    for key, size in ((f"batch_size / 2{parts}", per_part), ("eval.batch_size", config.eval.batch_size)):
        if size % rows:
            raise ValueError(f"config.{key} = {size} does not divide over the mesh's data x fsdp = {rows} devices")
    if config.remat == "auto":
        from fvjax.planning import programs  # which imports this module

        config = config.copy_and_resolve_references()
        config.remat = programs.chosen(config, mesh, say) if train and config.epochs else "none"
    opened = train_state.open_model(config, mesh)
    encoder = opened.encoder

    # ---- data
    store, plan = open_data(config, workdir)
    hashes = evaluate.check(config, workdir)
    steps_per_epoch = plan.steps_per_epoch if plan else 1
    if plan and steps_per_epoch == 0:
        raise ValueError(f"config.batch_size={config.batch_size}: not one full batch of {plan.pairs_per_batch} pairs")
    total_steps = config.epochs * steps_per_epoch

    # ---- state
    state, frozen, tx, lr, shape, where = train_state.start(config, opened, mesh, steps_per_epoch)
    if first and not (workdir / "config.json").exists():  # nothing that a user can mend is wrong
        workdir.mkdir(parents=True, exist_ok=True)
        metrics.replace_file(workdir / "config.json", to_json(config))
    meta = {
        "base_hash": train_state.base_hash(config),
        "train_data_hash": store.data_hash if store else "",
        "pairs": [config.seed, plan.pairs_per_batch if plan else 0],
        **train_state.prompt_of(encoder),
    }
    if config.data.val:  # the best of several checkpoints is chosen by accuracies on the same pairs
        meta["val_data_hash"] = hashes["data of config.data.val"]
    distributed.agree({**meta, **hashes})
    unseen = "" if (workdir / "config.json").exists() else f"{workdir} of process 0 is not seen here"
    distributed.agree({}, unseen and f"{unseen}; choose a --workdir on a file system that all processes share")

    evaluated = {line["step"] for line in metrics.read(workdir / "evaluations.jsonl")}
    checkpoints = checkpoint.Checkpoints(workdir, config.checkpoint)
    request = request or preemption.Request()
    request.before_leaving = checkpoints.wait
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shape, where)
    latest, seconds_before = checkpoints.newest(target, meta, say), 0.0
    if not train and config.epochs and latest is None:
        raise ValueError(f"{workdir} has no checkpoint yet, so there is nothing trained to evaluate")
    if latest is not None:
        step, state = latest
        seconds_before = checkpoints.meta(step)["seconds"]
        say(f"Restored step {step} of {workdir}")
    step = int(state["step"])
    if profile and (not train or total_steps - step < profiling.SKIP + profile):
        left = total_steps - step if train else 0
        raise ValueError(f"--profile={profile}: needs {profiling.SKIP} steps before, and only {left} are to be trained")

    count = sum(x.size for x in trees.flatten(state["trainable"]).values())
    total = count + sum(x.size for x in trees.flatten(frozen).values())
    kind = jax.devices()[0].device_kind
    say(f"{config.name}: {total:,} parameters, {count:,} train; mesh {dict(mesh.shape)} on {kind}")
    say(sharding.table({"frozen": frozen, **{part: state[part] for part in ("trainable", "stats", "opt")}}))
    if store and plan:
        of_one = "in impostor pairs only" if config.task == "pair_answer" else "never drawn"
        say(
            f"{len(store):,} images, {plan.eligible + plan.single:,} identities ({plan.single:,} with one image, "
            f"{of_one}); {plan.pairs_per_batch} pairs a step, {steps_per_epoch} steps an epoch, {config.epochs} epochs"
        )

    # ---- evaluation before training
    predictor = predict.Predictor(config, encoder, mesh, frozen, workdir)
    seen = set(store.identities) if store and plan else set()
    evaluator = functools.partial(evaluate.run, config, workdir=workdir, seen=seen)
    before_file = workdir / "before_training.json"
    if config.eval.before_training and train and total_steps and step == 0 and not before_file.exists():
        before, _ = evaluator(predictor.score(state), title="before training")
        if first:
            metrics.replace_file(before_file, json.dumps(before, indent=1))

    # ---- steps
    validated: dict[int, dict] = {}  # by step, of this start
    if store and plan and train and step < total_steps:
        one_step = functools.partial(step_fn, config, encoder, tx, lr)
        train_step = jax.jit(after_vote(one_step), donate_argnums=0, out_shardings=(where, sharding.replicated(mesh)))
        whole = config.copy_and_resolve_references()
        whole.accumulation, whole.compat.last_micro_batch = 1, False  # else forward passes would count twice, or not
        plain = functools.partial(step_fn, whole, train_state.build_encoder(config, opened.base, plain=True), tx, lr)
        per_step = flops.count(plain, *abstract_step(config, shape, frozen))
        batches = feed.batches(config, store, plan, mesh, start_step=step, num_steps=total_steps - step)
        writer = metrics.Writer(workdir, config.log, step)
        writer.start(step, total_steps)
        trace = profiling.Trace(workdir, profile, step)
        gate: dict[int, dict] = {}
        pending: deque = deque()  # results are read one step late, so that the host does not wait for the device
        clock = time.perf_counter()

        def spent() -> float:
            return round(seconds_before + elapsed_since(start_time), 1)

        def report(number: int, values: dict) -> None:
            nonlocal clock
            if (dead := values.pop("dead", None)) is not None and number < 2:
                gate[number] = trees.flatten(jax.device_get(dead))
                if len(gate) == 2:
                    lora.check_alive(gate[0], gate[1])
            del values["vote"]
            values = {k: v if isinstance(v, str) else float(v) for k, v in values.items()}
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

        saved, several = time.monotonic(), jax.process_count() > 1
        minutes = config.checkpoint.every_minutes or float("inf")

        def look(step: int) -> None:
            """Evaluate what was saved: a start after a kill does it where it is missing."""
            results = {}
            if config.data.val:
                validated[step] = results["validation"] = evaluate.validate(
                    config, predictor.score(state), f"step {step}"
                )
            if step < total_steps:  # at the end all benchmarks are run anyway
                during = {"title": f"step {step}", "only": config.eval.during, "bootstrap": 0}
                results |= evaluator(predictor.score(state), **during)[0]
            evaluate.append_curve(workdir, step, step / steps_per_epoch, spent(), results)
            if config.data.val:
                checkpoints.validated(step, results["validation"]["accuracy@best_threshold"]["mean"])

        def due(step: int) -> bool:
            last = step == total_steps
            every = config.eval.every_epochs * steps_per_epoch
            return bool(every) and (step % every == 0 or last) and (not last or bool(config.data.val))

        try:
            if step and due(step) and step not in evaluated:
                look(step)
            for batch in batches:
                wish = STOP if request.asked else SAVE if first and time.monotonic() > saved + 60 * minutes else 0
                vote = strongest(wish, state["step"], mesh) if several else wish
                request.unsaved = True
                train_step = trace.before(step, train_step, state, frozen, batch, vote)
                state, values = train_step(state, frozen, batch, vote)
                step += 1
                if (profiled := trace.after(step, state)) is not None:
                    writer.say(profiled)
                if config.log.state_hash_every and step % config.log.state_hash_every == 0:
                    values |= {"state_hash": checkpoint.digest(state), "batch_hash": checkpoint.digest(batch)}
                pending.append((step - 1, values))
                if len(pending) > 1:
                    report(*pending.popleft())
                wish = int(vote) if several else STOP if request.asked else wish
                last = step == total_steps
                if not (wish or last or due(step) or step % config.checkpoint.every_steps == 0):
                    continue
                while pending:  # never save what a loss that is not finite has touched
                    report(*pending.popleft())
                checkpoints.save(step, state, {**meta, "seconds": spent()})
                saved = time.monotonic()
                request.saved(stop=wish == STOP)
                if due(step):
                    look(step)
                clock = time.perf_counter()
            checkpoints.wait()
        finally:
            trace.close()
            writer.close()
        say(f"Trained to step {step}, {elapsed_since(start_time):.0f} s since start")

    # ---- evaluation after
    if config.data.val and train and step and step not in checkpoints.accuracies:  # a kill came between save and look
        validated[step] = evaluate.validate(config, predictor.score(state), config.name)
        checkpoints.validated(step, validated[step]["accuracy@best_threshold"]["mean"])
    chosen = checkpoints.best() if config.data.val else None
    if chosen is not None and chosen != step:
        step, state = chosen, checkpoints.restore(chosen, target, meta)
        say(f"Step {step} had the best validation accuracy: it is what is evaluated")
    checkpoints.close()
    if config.data.val and step not in validated:
        validated[step] = evaluate.validate(config, predictor.score(state), config.name)
    score, pools = predictor.score(state, pools=bool(config.eval.pools)), {}
    for number, pool in enumerate(config.eval.pools):  # all from one embedding of each face
        pools[pool] = evaluator(functools.partial(score, pool=number), title=f"{config.name}, {pool}")
    results, curves = pools.pop(config.model.pooling) if pools else evaluator(score, title=config.name)
    seconds = round(seconds_before + elapsed_since(start_time), 1)  # of all starts, up to here
    if train and step and not config.data.val:
        evaluate.append_curve(workdir, step, step / steps_per_epoch, seconds, results)
    before = json.loads(before_file.read_text()) if before_file.exists() else {}
    before = {n: e for n, e in before.items() if n in results and e["data_hash"] == results[n]["data_hash"]}
    baselines = evaluate.baselines(config, workdir=workdir, seen=seen) if config.eval.baselines else {}
    out = {
        "benchmarks": {name: {**entry, "before_training": before.get(name)} for name, entry in results.items()},
        "pools": {pool: entries for pool, (entries, _) in pools.items()},  # other ones than the config's own
        "baselines": baselines,
        "validation": validated.get(step),
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


def strongest(wish: int, step: jax.Array, mesh) -> jax.Array:
    """The largest of what the processes wish, as all must do the same after the same step; known after `step` is.

    On a CPU nothing but what one program needs of another keeps them in order, and collectives of two programs at a
    time may meet the wrong ones of another process: so this comes after `step`, and the next step after this.
    """
    each = NamedSharding(mesh, PartitionSpec(sharding.AXES))
    wishes = jax.make_array_from_callback((mesh.size,), each, lambda _: np.full(1, wish, np.int32))
    return _largest(wishes, step, sharding.replicated(mesh))


def after_vote(one_step: Callable) -> Callable:
    """The step with one more argument, which it waits for and returns as the value "vote"."""

    def step(state, frozen, batch, vote):
        state, values = one_step(state, frozen, batch)
        return state, {**values, "vote": vote}

    return step


@functools.partial(jax.jit, static_argnums=2)
def _largest(wishes: jax.Array, step: jax.Array, where: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.max(wishes) + 0 * step, where)


# ---- one step ------------------------------------------------------------------------------------------------------


def gradients(config: Config, encoder: encoders.Encoder, state: dict, frozen: dict, batch: dict):
    """Loss, new batch statistics and the gradient of what trains, on a global batch.

    batch: images uint8 [P,2,112,112,3], labels int [P], index int [P] (global pair number). Random draws are keyed by
    the pair's number, so they do not depend on the device, host or row that an image is on, nor on `accumulation`.
    """
    parts, compat = config.accumulation, config.compat
    if compat.last_micro_batch:  # the reference's gradients of the others are set to zero before they are used
        batch, parts = jax.tree.map(lambda x: accumulation.split(x, parts)[-1], batch), 1
    faces = batch["images"].reshape(-1, *batch["images"].shape[2:])
    numbers = (2 * batch["index"][:, None] + jnp.arange(2)).reshape(-1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(config.seed), numbers)
    if config.data.flip:
        faces = preprocess.flip(faces, keys)

    def embed(trainable, faces, keys):
        variables = train_state.variables_of(config, trainable, frozen, state["stats"])
        return encoder(variables, faces, train=True, keys=keys)

    def contrast(embeddings):
        return contrastive.loss(embeddings, batch["labels"], config.loss.temperature, compat.negatives_group)

    def answer(trainable, faces, keys, labels):  # [p,2,…], [p,2], [p]
        variables = train_state.variables_of(config, trainable, frozen, state["stats"])
        rows, columns = None, encoder.yes_no
        if config.loss.pair_loss == "yes_no":  # the other columns are not needed
            rows, columns = encoder.yes_no, (0, 1)
        logits = encoder.answer(variables, faces[:, 0], faces[:, 1], rows, train=True, keys=keys)
        return pair_answer.loss(logits, labels, columns, config.loss.pair_loss)

    stats = state["stats"]
    if config.task == "pair_answer":
        pairs = faces.reshape(-1, 2, *faces.shape[1:]), keys.reshape(-1, 2), batch["labels"]
        loss, grads = accumulation.mean(answer, state["trainable"], pairs, chunks=parts)
    elif parts > 1:
        one = lambda *given: embed(*given)[0]  # noqa: E731
        loss, grads = accumulation.grad_cache(
            one, contrast, state["trainable"], faces, keys, chunks=parts, batch_stats=stats
        )
    else:

        def whole(trainable):
            embeddings, new = embed(trainable, faces, keys)
            return contrast(embeddings), new

        (loss, stats), grads = jax.value_and_grad(whole, has_aux=True)(state["trainable"])
    if compat.last_micro_batch:
        grads = jax.tree.map(lambda g: g / config.accumulation, grads)
    return loss, stats, grads


def step_fn(config: Config, encoder: encoders.Encoder, tx, lr, state: dict, frozen: dict, batch: dict):
    """One training step: the new state and {"loss", "lr", "grad_norm" (before clipping)}; with adapters also "dead".

    "dead": which of them have no gradient, see `lora.is_zero`.
    """
    loss, stats, grads = gradients(config, encoder, state, frozen, batch)
    updates, opt = tx.update(grads, state["opt"], state["trainable"])
    trainable = jax.tree.map(jnp.add, state["trainable"], updates)
    values = {"loss": loss, "lr": lr(state["step"]), "grad_norm": optax.global_norm(grads)}
    if "lora" in grads:
        values["dead"] = lora.is_zero(trees.flatten(grads["lora"]))
    return {"trainable": trainable, "stats": stats, "opt": opt, "step": state["step"] + 1}, values


def elapsed_since(start: float) -> float:
    return time.perf_counter() - start


# ---- data, shapes ---------------------------------------------------------------------------------------------------


def open_data(config: Config, workdir: Path) -> tuple[Store | None, pairs.Plan | None]:
    """The training store and its epoch plan; embedded synthetic sets are drawn first, where they are not there yet."""
    c = config.data.synthetic
    if c.identities:
        for split, people, images, count in (
            ("train", range(c.identities), c.images, None),
            ("test", range(c.identities, c.identities + c.test_identities), c.test_images, c.test_pairs),
        ):
            path = evaluate.synthetic_store(config, workdir, split)
            if jax.process_index() == 0 and not path.exists():
                metrics.console.print(f"Drawing {len(people) * images:,} synthetic faces ({split})")
                synthetic.write(path, people, images, c.seed, split=split, difficulty=c.difficulty, pairs=count)
        distributed.exchange("drawn")
        store = Store(evaluate.synthetic_store(config, workdir, "train"), "train")
    elif config.data.train:
        store = Store(config.data.train, config.data.split)
    else:
        store = None
    if not config.epochs:
        return store, None
    if store is None:
        raise ValueError("config.data.train is empty and config.epochs is not 0; give a face store to train on")
    per_step = config.batch_size // 2
    if config.task == "pair_answer":
        return store, pairs.GenuineImpostorPlan(store.labels, per_step, config.data.pairs_per_epoch, config.seed)
    return store, pairs.PairPlan(store.labels, per_step, config.seed)


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
