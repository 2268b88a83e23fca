"""Test the training step: what is trained, on how many devices, with which optimizer."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fvjax
from fvjax import experiment, trees
from fvjax.config import base, typed
from fvjax.data.stores import Store, read_pairs
from fvjax.evals import folds, verification
from fvjax.losses import contrastive
from fvjax.models import lora, preprocess
from fvjax.parallel import sharding
from fvjax.tasks.predictor import Predictor
from fvjax.training import optimizer
from fvjax.training.step import gradients, train_step
from tests.parts import recipe_of, start_of, state_with
from tests.reference.recipe import write_checkpoint
from tests.test_convert import IRESNET, iresnet_shapes


def tiny_resnet():
    c = base()
    c.model.iresnet.layers = (1, 1, 1, 1)
    c.model.iresnet.widths = (4, 8, 8, 8)
    c.model.iresnet.num_features = 16
    c.model.iresnet.dropout = 0.4
    c.model.iresnet.conv_init = "kaiming"
    c.trainable = (("params/features/scale", "frozen"), (".*", "backbone"))
    c.sharding = (("params/fc/kernel", ("fsdp", None)), (".*conv2/kernel", (None, None, None, "fsdp")), (".*", ()))
    c.batch_size = 16
    c.epochs = 1
    return c


def tiny_vit():
    c = base()
    c.model.kind = "vision_transformer"
    c.model.pooling = "mean"
    c.model.vision_transformer = {
        "image_size": 56,
        "patch_size": 14,
        "width": 32,
        "depth": 3,
        "heads": 4,
        "mlp_dim": 64,
        "drop_path": 0.2,
    }
    c.lora.rank = 4
    c.lora.alpha = 8.0
    c.lora.targets = ("blocks/mlp/fc[12]",)
    c.lora.count = 6
    c.trainable = (("lora/.*", "adapter"), (".*", "frozen"))
    c.sharding = (
        ("params/blocks/mlp/fc1/kernel", (None, "fsdp", "tensor")),
        ("params/blocks/mlp/fc2/kernel", (None, "tensor", None)),
        ("lora/.*/b", (None, None, "fsdp")),
        (".*", ()),
    )
    c.batch_size = 16
    c.epochs = 1
    return c


def setup(config, devices, **mesh):
    """Return (a jitted gradient function, state, frozen, batch) on a mesh. The numbers are the same on any mesh."""
    config.mesh.update(mesh)
    mesh = sharding.make_mesh(config.mesh, devices)
    recipe = recipe_of(config, mesh, steps_per_epoch=10)
    begun = start_of(recipe, mesh)
    # B starts at zero, so give the adapters a value. Otherwise half of the gradients would be zero
    wave = lambda x: x + 0.01 * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)  # noqa: E731
    state = state_with(jax.tree.map(wave, begun.trainable), begun.stats)
    rng = np.random.default_rng(0)
    p = config.batch_size // 2
    batch = sharding.batch(
        {
            "images": rng.integers(0, 256, (p, 2, 112, 112, 3), np.uint8),
            "labels": np.arange(p, dtype=np.int32),
            "index": np.arange(100, 100 + p, dtype=np.int32),
        },
        mesh,
    )
    return functools.partial(gradients, recipe), state, recipe.model.read_frozen(), batch, recipe.model.groups


def host(tree) -> dict[str, np.ndarray]:
    return {k: np.asarray(v) for k, v in trees.flatten(tree).items()}


# Biases whose shift a batch norm removes again (in stages of one block, that of the next stage). Their gradient is
# zero except for rounding.
BEFORE_BATCH_NORM = r"params/(fc|layer\d_0/(bn3|downsample_1))/bias"


FEW = ({"data": 8}, {"data": 2, "fsdp": 4})
ALL = (*FEW, {"data": 4, "fsdp": 2})
MESHES = {
    "tiny_resnet": (tiny_resnet, FEW),
    "tiny_resnet_all": (tiny_resnet, ALL),
    "tiny_vit": (tiny_vit, (*ALL, {"data": 2, "fsdp": 2, "tensor": 2})),
}
# tests/test_gradients.py has transformers on all axes too
ONLY_IN_FULL = [pytest.param(case, marks=pytest.mark.slow) for case in ("tiny_resnet_all", "tiny_vit")]


@pytest.mark.parametrize("case", ["tiny_resnet", *ONLY_IN_FULL])
def test_one_device_equals_eight(case):
    make, meshes = MESHES[case]
    fn, *args, _ = setup(make(), jax.devices()[:1], data=1)
    loss, stats, grads = jax.jit(fn)(*args)
    grads, stats = host(grads), host(stats)
    total = float(optax.global_norm(grads))
    for mesh in meshes:
        fn, *args, _ = setup(make(), jax.devices(), **mesh)
        loss8, stats8, grads8 = jax.jit(fn)(*args)
        assert abs(float(loss8) - float(loss)) <= 1e-6 * abs(float(loss)), mesh
        for key, g in host(grads8).items():
            if re.fullmatch(BEFORE_BATCH_NORM, key):
                assert np.linalg.norm(g) <= 1e-6 * total
                continue
            distance = np.linalg.norm(g - grads[key]) / np.linalg.norm(grads[key])
            assert distance <= 1e-5, f"{mesh}: {key} {distance:.1e}"
        for key, s in host(stats8).items():
            np.testing.assert_allclose(s, stats[key], rtol=1e-4, atol=1e-6, err_msg=key)


def test_randomness_follows_the_pair_not_its_row():
    fn, state, frozen, batch, _ = setup(tiny_vit(), jax.devices()[:1], data=1)
    loss = float(jax.jit(fn)(state, frozen, batch)[0])
    order = np.random.default_rng(1).permutation(8)
    permuted = {k: v[order] for k, v in batch.items()}
    assert float(jax.jit(fn)(state, frozen, permuted)[0]) == pytest.approx(loss, abs=1e-5)
    renumbered = {**batch, "index": batch["index"] + 8}
    assert float(jax.jit(fn)(state, frozen, renumbered)[0]) != pytest.approx(loss, abs=1e-5)


def test_only_what_trains_has_gradients_and_optimizer_state():
    config = tiny_resnet()
    fn, state, frozen, batch, groups = setup(config, jax.devices()[:1], data=1)
    recipe = fn.args[0]
    state = state_with(state.trainable, state.stats, recipe.learner.tx.init(state.trainable))
    assert "params/features/scale" in trees.flatten(frozen)
    assert "params/features/scale" not in groups
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(state.opt)]
    assert any("'features']['bias'" in p for p in paths)
    assert not any("'features']['scale'" in p for p in paths)
    step = jax.jit(functools.partial(train_step, recipe))
    new, values = step(state, frozen, batch)
    changed = {k: bool((v != trees.flatten(state.trainable)[k]).any()) for k, v in trees.flatten(new.trainable).items()}
    moved = {k: bool((v != trees.flatten(state.stats)[k]).any()) for k, v in trees.flatten(new.stats).items()}
    assert all(changed.values()), changed
    assert all(moved.values()), f"running statistics that a step in training mode left alone: {moved}"
    assert int(new.step) == 1
    assert float(values["grad_norm"]) > 0


def test_sgd_clips_then_decays_then_gathers_momentum():
    c = base().optimizer
    c.lr, c.clip, c.weight_decay, c.momentum = 0.1, 1.0, 0.5, 0.9
    tx = optimizer.make(c, {"w": "g"}, lambda step: 0.1)
    w, g = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([6.0, 8.0])}  # norm 10, clipped to [0.6, 0.8]
    state = tx.init(w)
    u, state = tx.update(g, state, w)
    np.testing.assert_allclose(u["w"], -0.1 * np.array([0.6 + 1.5, 0.8 + 2.0]), rtol=1e-6)
    u2, _ = tx.update(g, state, w)  # same gradient again: momentum adds 0.9 of the first
    np.testing.assert_allclose(u2["w"], 1.9 * np.asarray(u["w"]), rtol=1e-6)


def test_adamw_decay_is_decoupled():
    c = base().optimizer
    c.name, c.lr, c.clip, c.weight_decay = "adamw", 0.1, 1e9, 0.5
    tx = optimizer.make(c, {"w": "g"}, lambda step: 0.1)
    w = {"w": jnp.array([2.0])}
    u, _ = tx.update({"w": jnp.array([1e-3])}, tx.init(w), w)
    assert float(u["w"][0]) == pytest.approx(-0.1 * (1 + 0.5 * 2), rel=1e-4)  # Adam's first step has size 1


def test_groups_have_their_own_rate():
    c = base().optimizer
    c.weight_decay, c.clip = 0.0, 1e9
    c.lr_scale.head = 10.0
    tx = optimizer.make(c, {"a": "body", "b": "head"}, lambda step: 0.1)
    w = {"a": jnp.ones(1), "b": jnp.ones(1)}
    u, _ = tx.update(w, tx.init(w), w)
    assert float(u["b"][0]) == pytest.approx(10 * float(u["a"][0]))
    c.lr_scale.hed = 1.0
    with pytest.raises(ValueError, match="hed"):
        optimizer.make(c, {"a": "body", "b": "head"}, lambda step: 0.1)


def test_schedule_is_constant_in_an_epoch():
    c = base().optimizer
    c.lr, c.warmup_epochs = 1.0, 2
    lr = optimizer.schedule(c, epochs=6, steps_per_epoch=10)
    by_epoch = [float(lr(10 * e)) for e in range(6)]
    expected = [0.5, 1.0] + [0.5 * (1 + np.cos(np.pi * k / 4)) for k in range(4)]
    np.testing.assert_allclose(by_epoch, expected, rtol=1e-6)
    assert float(lr(9)) == by_epoch[0]
    assert float(lr(10)) == by_epoch[1]


def test_rules_are_strict():
    tree = {"params": {"fc": {"kernel": jnp.zeros((6, 4))}}}
    mesh = sharding.make_mesh(base().mesh)
    with pytest.raises(ValueError, match=r"nothing matches 'params/fc/kernel'"):
        optimizer.split(tree, (("lora/.*", "adapter"),))
    with pytest.raises(ValueError, match=r"'params/fd/.\*' decides nothing"):
        optimizer.split(tree, (("params/fd/.*", "head"), (".*", "frozen")))
    with pytest.raises(ValueError, match="does not divide over data=8"):
        sharding.by_rules(tree, ((".*", ("data",)),), mesh)
    with pytest.raises(ValueError, match="fewer dimensions"):
        sharding.by_rules(tree, ((".*", (None, None, "data")),), mesh)
    bad = base().mesh
    bad.data = 3
    with pytest.raises(ValueError, match="does not make up the 8 devices"):
        sharding.make_mesh(bad)


def infonce(z: np.ndarray, temperature: float) -> float:
    """Return the loss, computed by a loop."""
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    losses = []
    for i in range(len(u)):
        similar = [u[i] @ u[j] / temperature for j in range(len(u)) if j != i]
        losses.append(np.log(np.sum(np.exp(similar))) - u[i] @ u[i ^ 1] / temperature)
    return float(np.mean(losses))


def test_loss_against_a_loop():
    z = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    assert float(contrastive.loss(jnp.asarray(z), jnp.zeros(4), 0.07)) == pytest.approx(infonce(z, 0.07), rel=1e-6)


def test_the_loss_is_of_the_adapted_model_at_the_configs_temperature():
    """Compute the loss of a step by hand: merge adapters into the base, embed, and sum in a loop."""
    config = tiny_vit()
    config.data.flip, config.model.vision_transformer.drop_path, config.loss.temperature = False, 0.0, 0.2
    fn, state, frozen, batch, _ = setup(config, jax.devices()[:1], data=1)
    state = state_with(jax.tree.map(lambda x: 10 * x, state.trainable))  # so that their scale shows
    adapters = trees.flatten(state.trainable["lora"])
    merged = lora.merge(trees.flatten(frozen["params"]), adapters, config.lora.alpha / config.lora.rank)
    encoder = fn.args[0].model.encoder
    faces = np.asarray(batch["images"]).reshape(-1, 112, 112, 3)  # rows 2i and 2i + 1 are pair i
    embed = jax.jit(lambda params: encoder({"params": trees.unflatten(params)}, faces)[0])
    expected = infonce(np.asarray(embed(merged), np.float64), 0.2)
    assert float(jax.jit(fn)(state, frozen, batch)[0]) == pytest.approx(expected, rel=1e-5)


def test_half_of_the_faces_are_mirrored_left_to_right():
    faces = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)
    out = np.asarray(preprocess.flip(jnp.asarray(faces), jax.random.split(jax.random.key(0), 64)))
    as_they_are, mirrored = ((out == x).all((1, 2, 3)) for x in (faces, faces[:, :, ::-1]))
    assert (as_they_are ^ mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_an_embedding_does_not_depend_on_its_batch():
    """Evaluation uses the running statistics and not those of the batch."""
    config = tiny_resnet()
    config.model.iresnet.dropout = 0.0
    fn, state, frozen, batch, _ = setup(config, jax.devices()[:1], data=1)
    faces = batch["images"].reshape(-1, 112, 112, 3)[:8]
    model = fn.args[0].model
    predictor = Predictor(model.variables, frozen, sharding.one_device())
    embed = fn.args[0].task.evaluator(model.encoder, predictor, set()).embed
    one, other = (embed(state, np.asarray(x)) for x in (faces, faces.at[1:].set(0)))
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5, atol=1e-6)


def test_what_trains_starts_from_init_from(tmp_path):
    """A run starts from the checkpoint's weights and running statistics, not from random ones."""
    write_checkpoint(tmp_path / "base", IRESNET, iresnet_shapes())
    c = base()
    c.init_from = str(tmp_path / "base")
    c.model.iresnet.layers, c.model.iresnet.widths, c.model.iresnet.num_features = (1, 1), (4, 8), 6
    c.data.synthetic.update({"identities": 8, "images": 2, "test_identities": 20, "test_images": 3, "test_pairs": 40})
    c.batch_size, c.eval.batch_size, c.eval.bootstrap = 16, 16, 0
    figures = experiment.run(typed(c), tmp_path / "run", train=True)["benchmarks"]["synthetic"]
    faces = Store(next((tmp_path / "run").glob("synthetic_test*")), "test")
    pairs, model = read_pairs(faces.path, "synthetic"), fvjax.load(tmp_path / "base", scenario="resnet")
    scores = verification.scores(model.embed(np.stack([faces.image(i) for i in range(len(faces))])), pairs)
    area = folds.auc(*folds.roc(scores, pairs.same))
    assert figures["auc"]["value"] == pytest.approx(area, abs=3e-3)  # one of 20 x 20 comparisons may change by rounding
    assert area != pytest.approx(0.5, abs=3e-3)
