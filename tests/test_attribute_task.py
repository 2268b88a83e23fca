"""Test the task `attributes` on a tiny model: what it learns, what stays as it is, and what it refuses."""

import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from fvjax import experiment, trees
from fvjax.config import typed
from fvjax.data import attributes
from fvjax.models import attribute_slots, graph
from fvjax.parallel import sharding
from fvjax.tasks.attributes import FaceAttributes
from fvjax.training import preemption
from fvjax.training.model import open_model
from tests.test_preemption import AskedAtStep


def config(folder: Path, devices: int = 1, accumulation: int = 1):
    c = importlib.import_module("configs.faceinsight_quickstart").get_config("logic")
    del c.init_parts.vision
    tower = {"image_size": 28, "patch_size": 14, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 16}
    c.model.vision_transformer.update(tower)
    c.model.decoder.update({"width": 16, "depth": 1, "heads": 2, "kv_heads": 2, "head_dim": 8, "mlp_dim": 16})
    c.attributes.update({"hidden": 8, "text_width": 8, "labelled": 1.0})
    c.data.synthetic.update({"identities": 8, "images": 2, "test_identities": 4, "test_images": 2, "dir": str(folder)})
    c.batch_size, c.epochs, c.accumulation, c.eval.batch_size, c.eval.bootstrap = 8, 4, accumulation, 8, 5
    c.mesh.data = devices
    return c


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("attributes")


def run(folder: Path, name: str, devices: int = 1, accumulation: int = 1, **options):
    chosen = jax.devices()[:devices]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: chosen)
        c = typed(config(folder, devices, accumulation))
        results = experiment.run(c, folder / name, train=True, **options)
    return results, [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(folder):
    return run(folder, "one")


def test_it_learns_and_reports(trained):
    results, lines = trained
    entry = results["benchmarks"]["faces"]
    assert entry["n"] == 8
    assert {"macro", "samples", "micro", "map", "violations"} <= set(entry)
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]


@pytest.mark.parametrize(("devices", "accumulation"), [(8, 1), (1, 4)])
def test_devices_and_parts_equal_the_whole(folder, trained, devices, accumulation):
    _, lines = run(folder, f"{devices}_{accumulation}", devices, accumulation)
    losses, expected = ([line["loss"] for line in each] for each in (lines, trained[1]))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_it_goes_on_after_a_stop_bit_for_bit(folder, trained):
    request = AskedAtStep(folder / "stopped", 3)
    with pytest.raises(preemption.Preempted):
        run(folder, "stopped", request=request)
    request.before_leaving()
    results, lines = run(folder, "stopped")
    assert results["benchmarks"] == trained[0]["benchmarks"]
    assert [line["loss"] for line in lines] == [line["loss"] for line in trained[1]]


@pytest.fixture(scope="module")
def opened(folder, trained):
    c = typed(config(folder))
    task = FaceAttributes(c, folder / "one")
    return task, open_model(c, task, sharding.one_device())


def test_adapters_and_graph_train_and_all_else_is_frozen(opened):
    _, model = opened
    parts = {"/".join(name.split("/")[:2]) for name in model.groups}
    assert parts == {"params/projector", "head/maps", "head/text", "head/graph"}
    assert {name.split("/")[1] for name in trees.flatten(model.frozen)} == {"vision", "decoder"}


def test_a_slot_sees_picture_map_query_and_the_slots_before_it(opened):
    task, model = opened
    variables = model.init(jax.random.key(1))
    store = task.open_store()
    rng = np.random.default_rng(0)
    images, maps = rng.integers(0, 256, (2, 112, 112, 3), np.uint8), store.read(np.arange(2), ["map"])["map"]
    slots, net = task.slots(model.encoder), model.encoder.net

    def logits(images, maps, text, features=variables["head_stats"]["features"]):
        changed = variables | {"head_stats": variables["head_stats"] | {"features": features}}
        changed["head_stats"]["adjacency"] = np.eye(len(features), dtype=np.float32)
        return np.asarray(attribute_slots.logits(net, slots, changed, images, maps, text, (56, 45)))

    before = logits(images, maps, (3, 4))
    assert before.shape == (2, len(task.columns.names))
    for other in (logits(255 - images, maps, (3, 4)), logits(images, 18 - maps, (3, 4)), logits(images, maps, (3, 5))):
        assert (np.abs(other - before).max(axis=1) > 1e-6).all()
    features = np.array(variables["head_stats"]["features"])
    features[5] += 1
    difference = np.abs(logits(images, maps, (3, 4), features) - before).max(axis=0)
    assert difference[:5].max() < 1e-6 < difference[5:].min()


def test_the_graph_is_of_the_training_labels_alone(opened):
    task, model = opened
    labels = attributes.labels(task.open_store())
    c = task.settings
    expected = graph.adjacency(c.graph, labels, tau=c.tau, omega=c.omega, labelled=labels != 0)["C_hat"]
    np.testing.assert_array_equal(model.init_head_stats()["adjacency"], expected.astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attributes.maps": False, "attributes.shuffle_maps": True}, "there are no maps"),
        ({"attributes.rules": "", "attributes.rule_sets": ()}, "name rules and rule_sets"),
        ({"attributes.tau": 1.5}, r"config\.attributes\.tau=1\.5: must be from 0 to 1"),
        ({"attributes.prompts": "own.toml"}, "nothing reads them"),
        ({"model.pooling": "all_mean"}, "no pooling"),
    ],
)
def test_bad_settings(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        FaceAttributes.check(typed(config(folder)).replace(changes))
