"""Test the configs of scenarios 2 and 3 end to end, on real faces and a tiny InternVL2 of 112 pixels."""

import dataclasses
import functools
import importlib
import itertools
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import fvjax
import weights_convert
from fvjax import api, experiment, tasks, trees, verify
from fvjax.config import EditableConfig, benchmark, typed
from fvjax.data import stores
from fvjax.evals import verification
from tests.reference.recipe import write_checkpoint
from tests.test_main import saved
from weights_convert.read import open_file

GOLDEN = Path("tests/golden/internvl_tiny")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Adapt internvl_tiny to images of 112 pixels: 64 patches instead of 1,024, which become 16 visual tokens."""
    config = json.loads((GOLDEN / "config.json").read_text())
    config["vision_config"]["image_size"] = config["force_image_size"] = 112
    shapes = {key: tensor.shape for key, tensor in open_file(GOLDEN / "model.safetensors").items()}
    shapes["vision_model.embeddings.position_embedding"] = (1, 65, 32)
    path = tmp_path_factory.mktemp("base") / "internvl"
    write_checkpoint(path, config, shapes)
    return path


@pytest.fixture(scope="module")
def faces(real_data, tmp_path_factory):
    """Make a folder with `train` (12 people of CFP, 4 crops each) and `lfw` (24 pairs of LFW in two folds)."""
    folder, crops = tmp_path_factory.mktemp("faces"), real_data / "faces"
    people = sorted((crops / "cfp112").iterdir())[:12]
    shots = [(file, who.name) for who in people for file in sorted(who.rglob("*.jpg"))[:4]]
    stores.write(folder / "train", [(f.read_bytes(), who, f.name) for f, who in shots], split="train", sources=["cfp"])

    several = [d for d in sorted((crops / "lfw112_pairs").iterdir()) if len(list(d.glob("*.jpg"))) > 1][:6]
    files = [(file, who.name) for who in several for file in sorted(who.glob("*.jpg"))[:2]]
    lfw = stores.write(
        folder / "lfw", [(f.read_bytes(), who, f.name) for f, who in files], split="test", sources=["lfw"]
    )
    a, b = np.array(list(itertools.combinations(range(12), 2))).T
    genuine, impostor = (np.flatnonzero((lfw.labels[a] == lfw.labels[b]) == same) for same in (True, False))
    rows = np.concatenate([genuine[:3], impostor[:9], genuine[3:6], impostor[9:18]])
    a, b = a[rows], b[rows]
    ids = lfw.labels[a], lfw.labels[b]
    stores.write_pairs(lfw.path, "lfw", stores.Pairs(a, b, ids[0] == ids[1], np.repeat([0, 1], 12), *ids))
    return folder


def tiny(name: str, faces, base) -> EditableConfig:
    """Load configs/NAME.py and change only its checkpoint and its data, to the tiny ones."""
    file, *row = name.split(":")
    c = importlib.import_module(f"configs.{file}").get_config(*row)
    golden = np.load(GOLDEN / "golden.npz")
    c.init_from, c.dtype, c.base_dtype = str(base), "float32", "float32"
    c.model.vision_transformer.update({"image_size": 112, "width": 32, "depth": 3, "heads": 4, "mlp_dim": 64})
    c.model.decoder.update(
        {"vocab": 256, "width": 64, "depth": 3, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp_dim": 128}
    )
    if c.model.kind == "vlm":
        key = "pair_prompt_ids" if c.task == "pair_answer" else "prompt_ids"
        c.prompt.update({"text": "", "ids": tuple(golden[key].tolist())})
        c.prompt.yes_no_ids = tuple(golden["yes_no_ids"].tolist())
    c.lora.count //= 8  # 3 layers instead of 24
    for key in c.eval.benchmarks.to_dict():
        del c.eval.benchmarks[key]
    c.eval.benchmarks.lfw = benchmark(str(faces / "lfw"), "lfw")
    c.eval.update({"batch_size": 8, "bootstrap": 20})
    c.data.update({"workers": 0, "pairs_per_epoch": 16})
    c.mesh.update({"data": 2, "fsdp": 1, "tensor": 1})
    if c.epochs:
        c.data.train = str(faces / "train")
        c.batch_size, c.epochs, c.optimizer.warmup_epochs = 16, 2, 0
        c.accumulation = min(c.accumulation, 2)
    return c


@pytest.fixture(scope="module", autouse=True)
def two_devices():
    """Use two devices. Compiling for eight takes longer; tests/test_train.py does so."""
    everything, two = jax.devices, jax.devices()[:2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *args: everything(*args) if args else two)
        yield


def check(config: EditableConfig) -> None:
    typed(config).check()
    tasks.get(config.task).check(typed(config))


@pytest.fixture(scope="module")
def run(faces, base, tmp_path_factory):
    """Return a function NAME -> (workdir, config, results.json) that runs each config once."""
    root = tmp_path_factory.mktemp("runs")

    @functools.cache
    def one(name: str):
        config = tiny(name, faces, base)
        check(config)
        workdir = root / name.replace(":", "_")
        return workdir, config, experiment.run(typed(config), workdir, train=True)

    return one


def alone(entry: dict) -> dict:
    """Remove from an entry the keys that only training runs have."""
    return {k: v for k, v in entry.items() if k not in ("before_training", "identities_seen_in_training")}


FROZEN_OF = {"mllm_frozen": "mllm_lora", "pair_frozen": "pair_lora"}
TRAINED = (
    "mllm_lora",
    "mllm_lora_vit",
    pytest.param("mllm_lora_llm", marks=pytest.mark.slow),  # differs by one regex; test_configs.py counts its adapters
    "mllm_lora_projector",
    "pair_lora",
    pytest.param("pair_lora_llm", marks=pytest.mark.slow),
    pytest.param("vit_lora_attention:both_r8", marks=pytest.mark.slow),
)


@pytest.mark.parametrize("name", TRAINED)
def test_trains_to_a_table(name, run):
    workdir, config, out = run(name)
    assert json.loads((workdir / "results.json").read_text()) == json.loads(json.dumps(out))
    figures = out["benchmarks"]["lfw"]
    assert (figures["n_genuine"], figures["n_impostor"]) == (6, 18)
    assert alone(figures) != alone(figures["before_training"])
    losses = [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == out["step"] >= 4
    assert np.isfinite(losses).all()
    _, state = saved(workdir)
    names = {k for k in state if "trainable" in k}
    projector = {k for k in names if "projector" in k}
    assert len(projector) == (6 if name == "mllm_lora_projector" else 0)
    assert all("lora" in k for k in names - projector)
    assert sum(np.shape(state[k])[0] for k in names - projector) == 2 * config.lora.count
    assert all(np.abs(state[k]).max(axis=(-2, -1)).min() > 0 for k in names - projector), "some B has not moved"


@pytest.mark.parametrize("frozen", FROZEN_OF)
def test_frozen_evaluates_what_training_starts_from(frozen, run):
    _, _, out = run(frozen)
    _, _, trained = run(FROZEN_OF[frozen])
    assert out["step"] == 0
    assert alone(out["benchmarks"]["lfw"]) == alone(trained["benchmarks"]["lfw"]["before_training"])


def scored(workdir):
    """Load the workdir with fvjax.api and the same pairs -> (model, first faces, second faces, pairs)."""
    model = api.load_workdir(workdir)
    where = model.run.config.eval.benchmarks["lfw"].store
    pairs, lfw = stores.read_pairs(where, "lfw"), stores.Store(where, "test")
    return model, lfw.images(pairs.a), lfw.images(pairs.b), pairs


@pytest.mark.parametrize("name", ["pair_frozen", "pair_lora"])
def test_answers_that_share_images_are_those_of_each_pair_alone(name, run):
    workdir, _, out = run(name)
    model, a, b, pairs = scored(workdir)
    alone = model.p_same(a, b)
    assert np.ptp(alone) > 1e-4, "all the same: nothing would be noticed"
    figures = verification.entry(alone, pairs, {"failure_to_acquire": 0, "policy": "fail"}, "", bootstrap=0)
    got = out["benchmarks"]["lfw"]
    for key in ("auc", "eer"):
        assert figures[key]["value"] == pytest.approx(got[key]["value"], abs=1e-6)
    assert figures["accuracy@far=1e-3"]["threshold"] == pytest.approx(got["accuracy@far=1e-3"]["threshold"], rel=1e-5)


def test_verify_asks_the_model(run, faces, tmp_path):
    workdir, _, out = run("pair_lora")
    model, a, b, _ = scored(workdir)
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file, face in zip(files, (a[0], b[0])):
        Image.fromarray(face).save(file)
    told = verify.compare(*files, workdir)
    kept = np.stack([fvjax.faces(file).crops[0] for file in files])
    assert told["measure"] == "P(Yes)"
    assert told["score"] == pytest.approx(float(model.p_same(kept[:1], kept[1:])[0]), rel=1e-6)
    assert told["threshold"] == out["benchmarks"]["lfw"]["accuracy@far=1e-3"]["threshold"]
    assert "(P(Yes))" in verify.text(told)


def test_pools_are_those_of_one_checkpoint(run):
    workdir, config, out = run("mllm_lora")
    assert set(out["pools"]) == {"all_mean", "last_token"}
    model, a, b, pairs = scored(workdir)
    found = {config.model.pooling: out["benchmarks"], **out["pools"]}
    thresholds = {}
    for pool, entries in found.items():
        other = api.Model(dataclasses.replace(model.encoder, pooling=pool), model.variables, 8, "highest")
        scores = verification.scores(np.concatenate([other.embed(a), other.embed(b)]), by_row(len(a)))
        figures = verification.entry(scores, pairs, {"failure_to_acquire": 0, "policy": "fail"}, "", bootstrap=0)
        thresholds[pool] = entries["lfw"]["accuracy@far=1e-3"]["threshold"]
        assert figures["accuracy@far=1e-3"]["threshold"] == pytest.approx(thresholds[pool], rel=1e-4), pool
    assert len(set(thresholds.values())) == 3, "three pools, three figures"


def test_other_ids_of_the_prompt_are_refused(run, tmp_path):
    """Simulate a changed tokenizer, which a config with a text depends on."""
    workdir, config, _ = run("pair_lora")
    other = config.copy_and_resolve_references()
    other.prompt.ids = (*other.prompt.ids[:-1], other.prompt.ids[-1] - 1)
    copy = shutil.copytree(workdir, tmp_path / "run")
    (copy / "config.json").write_text(typed(other).to_json())
    was, now = ([list(c.prompt.ids), list(c.prompt.yes_no_ids)] for c in (config, other))
    told = re.escape(f"{copy} was trained with prompt_ids {was}, its tokenizer now gives {now}; put the tokenizer's")
    with pytest.raises(ValueError, match=told):
        api.load_workdir(copy)


def by_row(n: int):
    return SimpleNamespace(a=np.arange(n), b=np.arange(n, 2 * n))


def test_a_dead_adapter_stops_at_the_second_step(base, faces, tmp_path):
    """Switch off one layer's MLP by a LayerScale of zero."""
    dead = tmp_path / "dead"
    dead.mkdir()
    tensors = {key: tensor[:] for key, tensor in open_file(base / "model.safetensors").items()}
    tensors["vision_model.encoder.layers.1.ls2"][:] = 0
    save_file(tensors, dead / "model.safetensors")
    shutil.copy(base / "config.json", dead)
    config = tiny("mllm_lora_vit", faces, dead)
    found = r"dead adapters.* vision/blocks/mlp/fc1/b layers \[1\] \(first step\)"
    with pytest.raises(ValueError, match=found) as error:
        experiment.run(typed(config), tmp_path / "run", train=True)
    assert "vision/blocks/mlp/fc2/a layers [1] (after the first update)" in str(error.value)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) < 2


def test_half_precision(base, faces, tmp_path):
    """With an fp16 base and bf16 computation, the stored visual tokens of the pairs are bf16 as well."""
    config = tiny("pair_frozen", faces, base)
    config.dtype, config.base_dtype = "bfloat16", "float16"
    out = experiment.run(typed(config), tmp_path, train=True)
    assert out["dtype"] == "bfloat16"
    assert not list(tmp_path.glob("tmp*")), "nothing is left of the visual tokens"


def test_a_part_may_come_from_elsewhere(faces, tmp_path):
    """Combine the tower that comes with the project with a random projector and decoder."""
    config = tiny("mllm_frozen", faces, "")
    config.model.vision_transformer.update({"width": 128, "depth": 4, "heads": 4, "mlp_dim": 512})
    config.init_parts.vision = "fvjax/pretrained/tiny_internvit"
    check(config)
    workdir, out = tmp_path / "run", experiment.run(typed(config), tmp_path / "run", train=True)
    tower = weights_convert.read("fvjax/pretrained/tiny_internvit")[2]
    variables = trees.flatten(api.load_workdir(workdir).variables)
    np.testing.assert_array_equal(variables["params/vision/patch/kernel"], tower["params/patch/kernel"])
    assert variables["params/decoder/embed"].shape == (256, 64)
    assert out["base_hash"].startswith("vision:")
    config.init_parts.tower = config.init_parts.vision
    with pytest.raises(ValueError, match=r"init_parts\.tower: the parts of a vlm are vision, projector, decoder"):
        experiment.run(typed(config), tmp_path / "other", train=True)
