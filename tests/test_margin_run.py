"""Test runs of task margin: checkpoints with the head, on other numbers of devices, and what is used without it."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fvjax import experiment, trees
from fvjax.config import typed
from fvjax.data import synthetic
from fvjax.parallel import sharding
from fvjax.planning import flops, programs
from fvjax.training import optimizer, preemption
from fvjax.training.checkpoint import Checkpoints
from fvjax.training.restore import restore
from fvjax.training.step import gradients
from tests import parts
from tests.test_config_keys import linear_network, toy
from tests.test_preemption import AskedAtStep


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("margin")


@pytest.fixture(scope="module")
def stores(folder) -> dict[str, Path]:
    """Return stores of the same 8 identities, of 9, and of 8 other ones."""
    people = {"eight": range(8), "nine": range(9), "others": range(20, 28)}
    for name, numbers in people.items():
        synthetic.write(folder / name, numbers, 4, 0, split="train")
    return {name: folder / name for name in people}


def config(stores, devices: int = 1, **changes):
    """Return a run of AdaFace on the 8 identities: 8 steps of 8 images, sampled classes, a linear network."""
    c = toy()
    c.data.synthetic.identities = 0
    c.data.train = str(stores["eight"])
    c.task, c.margin.kind = "margin", "adaface"
    c.trainable = (("head/.*", "head"), (".*", "backbone"))
    c.eval.before_training, c.log.state_hash_every, c.checkpoint.every_steps = False, 1, 3
    c.mesh.data = devices
    c.update(changes)
    return c


def run(c, workdir: Path, **options) -> list[dict]:
    with linear_network(c.mesh):
        experiment.run(typed(c), workdir, train=True, **options)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(folder, stores):
    return run(config(stores), folder / "finished")


def test_it_learns_and_its_checkpoint_holds_the_head_and_adafaces_statistics(folder, stores, finished):
    assert len(finished) == 8
    checkpoints = Checkpoints(folder / "finished", config(stores).checkpoint, read_only=True)
    tree = checkpoints.manager.item_metadata(8)["state"]
    names = set(trees.flatten({"trainable": tree["trainable"], "stats": tree["stats"]}))
    assert {"trainable/head/centres", "stats/head_stats/mean", "stats/head_stats/std"} <= names
    assert checkpoints.meta(8)["classes"] == 8


def test_a_run_resumes_on_four_devices_with_the_state_of_one(folder, stores, finished):
    workdir = folder / "moved"
    request = AskedAtStep(workdir, 4)
    with pytest.raises(preemption.Preempted):
        run(config(stores), workdir, request=request)
    request.before_leaving()
    lines = run(config(stores, devices=4), workdir)
    saved = next(number for number, line in enumerate(lines) if line["step"] == 4)
    assert [line["state_hash"] for line in lines[:saved]] == [line["state_hash"] for line in finished[:saved]]
    np.testing.assert_allclose([x["loss"] for x in lines], [x["loss"] for x in finished], rtol=1e-5)


def test_what_is_trained_is_used_without_the_head_and_without_the_store(folder, stores, finished):
    c = config(stores)
    c.data.train = "no longer here"
    with linear_network(c.mesh):
        restored = restore(typed(c), folder / "finished")
    assert set(restored.trainable) == {"params"}
    assert not restored.stats
    assert restored.step == 8


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("nine", "classes is 8, this run has 9"),
        ("others", "identities_hash is '.*', this run has '.*'; choose another"),
    ],
)
def test_a_store_of_other_identities_is_refused_by_name(folder, stores, finished, store, message):
    c = config(stores)
    c.data.train = str(stores[store])
    with pytest.raises(ValueError, match=message):
        run(c, folder / "finished")


def test_a_number_of_classes_that_the_store_does_not_have_is_refused(folder, stores):
    c = config(stores, head={"classes": 7})
    with pytest.raises(ValueError, match=r"config.head.classes=7, but .*eight has 8 identities; use 0 or 8"):
        run(c, folder / "seven")
    assert not (folder / "seven").exists()


# ---- parts of a step


def trained(c, devices: int):
    """Return loss, statistics and gradients of one step of a tiny IResNet and a batch of single images."""
    mesh = sharding.make_mesh({"data": devices, "fsdp": 1, "tensor": 1}, jax.devices()[:devices])
    with linear_network(c.mesh):
        recipe = parts.recipe_of(c, mesh)
    state = parts.start_of(recipe, mesh)
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.integers(0, 256, (16, 1, 112, 112, 3)).astype(np.uint8),
        "labels": rng.integers(0, 300, 16).astype(np.int32),
        "index": np.arange(16, 32).astype(np.int32),
    }
    loss, stats, grads = jax.jit(functools.partial(gradients, recipe))(state, {}, sharding.batch(batch, mesh))
    return float(loss), jax.tree.map(np.asarray, stats), jax.tree.map(np.asarray, grads)


@pytest.mark.parametrize("kind", ["combined", "adaface"])
def test_a_step_is_the_same_on_1_and_8_devices_and_in_parts(stores, kind):
    c = config(stores, batch_size=16, head={"classes": 300, "subcentres": 2}, margin={"kind": kind})
    loss, stats, grads = trained(c, 1)
    assert np.abs(grads["head"]["centres"][300:]).max() == 0, "padding"
    in_parts = config(stores, batch_size=16, accumulation=4, head={"classes": 300, "subcentres": 2})
    in_parts.margin.kind = kind
    for found in (trained(in_parts, 1), trained(c, 8)):
        assert found[0] == pytest.approx(loss, rel=1e-6)
        np.testing.assert_allclose(jax.tree.leaves(found[1]), jax.tree.leaves(stats), rtol=1e-6)
        for name, theirs in trees.flatten(grads).items():
            assert np.linalg.norm(trees.flatten(found[2])[name] - theirs) <= 1e-5 * np.linalg.norm(theirs), name


def test_the_plan_counts_the_head(stores):
    """384 rows of 4 features, split over two devices, a network of 380 parameters and the number of the step."""
    c = config(stores, devices=2, batch_size=16, head={"classes": 300}, margin={"kind": "combined"})
    with linear_network(c.mesh):
        mesh = sharding.make_mesh({"data": 2, "fsdp": 1, "tensor": 1}, jax.devices())
        planner = programs.Planner(typed(c), mesh)
        sizes, _ = planner.sizes()
        head = flops.count(planner.step.step, *planner.step.arguments)
    rows = 384 // 2
    assert sizes["trained"] == 4 * (rows * 4 + 380 + 1)
    assert sizes["gradients"] == 4 * (rows * 4 + 380)
    assert sizes["similarities"] >= 4 * 16 * rows, "one device's logits"
    assert head >= 3 * 2 * 16 * 384 * 4, "the logits, and their gradients by the embeddings and the centres"


def test_rows_without_a_gradient_keep_their_values_and_momenta():
    inner = optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9))
    tx = optimizer.leave_idle_rows(inner)
    params = {"centres": jnp.ones((3, 2)), "other": None}
    state = tx.init(params)
    first = {"centres": jnp.array([[1.0, 0.0], [0.0, 0.0], [2.0, 2.0]]), "other": None}
    second = {"centres": jnp.array([[1.0, 0.0], [3.0, 0.0], [0.0, 0.0]]), "other": None}
    updates, state = tx.update(first, state, params)
    np.testing.assert_allclose(updates["centres"], [[1.1, 0.1], [0, 0], [2.1, 2.1]])
    updates, state = tx.update(second, state, params)
    np.testing.assert_allclose(updates["centres"], [[0.9 * 1.1 + 1.1, 0.19], [3.1, 0.1], [0, 0]], rtol=1e-6)
    (momentum,) = (x for x in jax.tree.leaves(state) if x.shape == (3, 2))
    np.testing.assert_allclose(momentum[2], [2.1, 2.1])  # as it was after the step that had it
