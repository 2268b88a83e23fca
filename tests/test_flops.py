"""Test how many FLOPs the exact shortcuts save at full size, and that both sides compute the same."""

import functools
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import flops
from fvjax import tasks, trees
from fvjax.config import base, typed
from fvjax.parallel import sharding
from fvjax.training import optimizer
from fvjax.training.model import open_model
from fvjax.training.state import TrainState, make_learner
from fvjax.training.step import Recipe, gradients
from tests.parity import close
from tests.reference.recipe import GOLDEN
from weights_convert import read_adapters

TINY = GOLDEN / "internvl_tiny"
full_size = functools.cache(flops.full_size)


@pytest.mark.parametrize(
    ("name", "forward", "step", "adapters_only"), [("mllm_lora", 1.08, 1.5, 1.05), ("pair_lora", 1.08, 1.5, 1.08)]
)
def test_fewer_flops_at_full_size(name, forward, step, adapters_only):
    """In a pair's forward pass, the head (6%) and the last layer (2%) are nearly all that the answer does not need."""
    found = {what: counts[0] / counts[1] for what, counts in flops.of_a_pair(*full_size(name)).items()}
    bars = {"forward pass": forward, "training step": step, "training step, adapters only": adapters_only}
    assert set(found) == set(bars)
    assert not {what: ratio for what, ratio in found.items() if ratio < bars[what]}, found


def test_fewer_flops_in_lfws_evaluation(real_data):
    pairs = flops.named(real_data / "faces/protocol/lfw_pairs.txt")
    assert (len(pairs.a), len(np.union1d(pairs.a, pairs.b))) == (6000, 7701)
    counts = flops.evaluation(*full_size("pair_lora"), pairs)
    assert counts[0] / counts[1] >= 1.35, counts


def test_the_evaluation_counts_what_its_schedule_computes():
    """With batches of 2 pairs, images are padded to 4. The first batch shares its first image; the second cannot."""
    config, recipe, variables = flops.full_size("pair_lora")
    config = config.replace({"eval.batch_size": 2})
    count = functools.partial(flops.evaluation, config, recipe, variables)
    naive, shared = count(SimpleNamespace(a=np.array([0, 0]), b=np.array([1, 2])))
    again, alone = count(SimpleNamespace(a=np.array([0, 3]), b=np.array([1, 2])))
    pair, forward = flops.of_a_pair(config, recipe, variables)["forward pass"]
    assert naive == again == 2 * pair
    # the FLOPs of one image's 257 tokens in 23 of 24 layers, and of the last layer's keys and values
    assert alone - shared == pytest.approx(776e9, rel=0.02)
    assert alone == pytest.approx(2 * forward, rel=0.02), "without images shared it is the plain forward pass"


@pytest.mark.parametrize(("task", "pooling"), [("contrastive", "visual_mean"), ("pair_answer", "")])
def test_naive_and_actual_compute_the_same(task, pooling):
    """Compare outputs, loss and every adapter's gradient in float32."""
    golden = dict(np.load(TINY / "golden.npz"))
    config = base()
    config.task, config.init_from, config.data.flip = task, str(TINY), False
    config.model.update({"kind": "vlm", "pooling": pooling})
    config.model.vision_transformer.update({"width": 32, "depth": 3, "heads": 4, "mlp_dim": 64})
    config.model.decoder.update(
        {"vocab": 256, "width": 64, "depth": 3, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp_dim": 128}
    )
    targets = ("vision/blocks/mlp/fc[12]", "decoder/blocks/mlp/(gate|up|down)")
    config.lora.update({"rank": 8, "alpha": 8.0, "targets": targets, "count": 2 * 3 + 3 * 3})
    key = "prompt_ids" if pooling else "pair_prompt_ids"
    config.prompt.update({"ids": tuple(golden[key].tolist()), "yes_no_ids": tuple(golden["yes_no_ids"].tolist())})
    config = typed(config)
    task_of = tasks.get(task)(config, Path())
    model = open_model(config, task_of, sharding.one_device())
    recipe = Recipe(model, task_of, make_learner(config.optimizer, model.groups, epochs=1, steps_per_epoch=1))
    assert model.pretrained
    frozen = trees.unflatten({name: jnp.asarray(np.asarray(leaf)) for name, leaf in model.pretrained.params.items()})
    trainable = {"lora": trees.unflatten(read_adapters(TINY / "adapters.safetensors", TINY, "vlm")[0])}
    batch = {
        "images": golden["faces"][:4].reshape(2, 2, 112, 112, 3),
        "labels": np.array([1, 0] if task == "pair_answer" else [0, 1]),
        "index": np.arange(2),
    }
    with jax.default_matmul_precision("highest"):
        variables = model.variables(trainable, {}, frozen)
        found, logits = jax.jit(functools.partial(flops.naive, model.encoder))(variables, batch["images"])
        ours = jax.jit(functools.partial(flops.actual, model.encoder))(variables, batch["images"])
        everything = optimizer.merge(trainable, frozen)
        naive = jax.jit(functools.partial(flops.naive_gradients, config, model, frozen={}))
        (loss, _), grads = naive(everything, batch=batch)
        state = TrainState({}, {}, 0, trainable)
        ours_loss, _, ours_grads = jax.jit(functools.partial(gradients, recipe))(state, frozen, batch)
    text = len(config.prompt.ids)
    assert logits.shape == ((4, 1 + 256 + text, 256) if pooling else (2, 1 + 512 + text, 256))
    close(ours, found if pooling else found[:, list(config.prompt.yes_no_ids)], 1e-5, "outputs")
    np.testing.assert_allclose(ours_loss, loss, rtol=1e-5)
    assert set(trees.flatten(grads)) == set(trees.flatten(everything)), "naive: every parameter has a gradient"
    for name, grad in trees.flatten(ours_grads["lora"]).items():
        close(grad, trees.flatten(grads["lora"])[name], 1e-5, name)
