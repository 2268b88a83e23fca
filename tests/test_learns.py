"""Test that the small MLLM learns: scenario 2 on people it never saw, scenario 3 at least on its training pairs."""

import functools
import importlib
import json

import jax
import numpy as np
import pytest

from fvjax import experiment, trees
from fvjax.config import typed
from fvjax.data import pairs, pipeline, synthetic
from fvjax.models import lora
from fvjax.parallel import sharding
from fvjax.training.step import train_step
from tests.parts import recipe_of, start_of
from tests.test_mllm import two_devices  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow


def row(name: str, folder):
    config = importlib.import_module("configs.quickstart_mllm").get_config(name)
    config.data.synthetic.dir = str(folder)
    config.eval.bootstrap, config.eval.pools = 0, ()
    return config


def accuracy(out: dict) -> float:
    return out["benchmarks"]["synthetic"]["accuracy@best_threshold"]["mean"]


def test_siamese_embeddings_gain_ten_points(tmp_path):
    frozen = experiment.run(typed(row("mllm_frozen", tmp_path)), tmp_path / "frozen", train=True)
    adapted = experiment.run(typed(row("mllm_lora", tmp_path)), tmp_path / "lora", train=True)
    print(f"frozen {accuracy(frozen):.4f}, with adapters {accuracy(adapted):.4f}")
    assert accuracy(adapted) >= accuracy(frozen) + 0.10
    losses = [json.loads(line)["loss"] for line in (tmp_path / "lora" / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])


def test_pairwise_answers_fit_64_pairs(tmp_path):
    config = row("pair_lora", tmp_path)
    config.data.flip = False
    store = synthetic.write(tmp_path / "faces", range(64), 2, 0, split="train", difficulty=2.0)
    plan = pairs.GenuineImpostorPlan(store.labels, 16, 64, seed=0)
    mesh = sharding.make_mesh(config.mesh)
    recipe = recipe_of(config, mesh, steps_per_epoch=1000)
    state, frozen = start_of(recipe, mesh), recipe.model.read_frozen()
    step = jax.jit(functools.partial(train_step, recipe), donate_argnums=0)
    keep = "images", "labels", "index"
    batches = [{k: b[k] for k in keep} for b in pipeline.train_batches(store, plan, start_step=0, num_steps=4)]
    assert sum(int(b["labels"].sum()) for b in batches) == 32
    batches, dead, losses = [sharding.batch(b, mesh) for b in batches], [], []
    for number in range(500):
        state, values = step(state, frozen, batches[number % 4])
        dead.append(trees.flatten(values["dead"]))
        losses.append(float(values["loss"]))
        if np.mean(losses[-4:]) < 0.1 and number > 4:
            break
    lora.check_alive(*dead[:2])
    print(f"cross-entropy over 64 pairs {np.mean(losses[-4:]):.4f} after {number + 1} steps")
    assert np.mean(losses[-4:]) < 0.1
