"""Test two photographs against a trained workdir: the evaluation's scores and threshold, one line for user errors."""

import json
import re
import shutil
import subprocess
import sys
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import fvjax
from fvjax import api, doctor, tasks, verify
from fvjax.data import images
from fvjax.data.stores import Store, read_pairs
from fvjax.evals import folds
from fvjax.parallel import sharding
from fvjax.training import optimizer
from fvjax.training.model import open_model
from tests.reference.recipe import GOLDEN, write_checkpoint
from tests.test_bad_input import snapshot
from tests.test_convert import IRESNET, iresnet_shapes
from tests.test_images import file_bytes, png_that_claims, smooth_face
from tests.test_main import ENV, call

BASE = GOLDEN / "internvl_tiny"
STATES = ("ok", "skipped", "FINDING")  # of a check of the doctor
CONFIG = """from fvjax.config import base


def get_config():
    c = base()
    c.model.iresnet.update({"layers": (1, 1), "widths": (4, 8), "num_features": 16, "conv_init": "kaiming"})
    c.trainable = (("params/features/scale", "frozen"), (".*", "backbone"))
    c.data.synthetic.update({"identities": 12, "images": 4, "test_identities": 20, "test_images": 2, "test_pairs": 20})
    c.data.names = "synthetic"
    c.batch_size, c.epochs = 8, 1
    c.eval.update({"batch_size": 4, "bootstrap": 2, "before_training": False})
"""
LORA = f"""
    c.model.kind, c.model.pooling, c.init_from = "vision_transformer", "mean", "{BASE}"
    c.model.vision_transformer.update({{"width": 32, "depth": 3, "heads": 4, "mlp_dim": 64}})
    c.lora.update({{"rank": 8, "alpha": 16.0, "targets": ("blocks/mlp/fc[12]",), "count": 6}})
    c.trainable = (("lora/.*", "adapter"), (".*", "frozen"))
    c.optimizer.update({{"name": "adamw", "lr": 0.01}})
    c.data.synthetic.images = 2  # three steps; the test identities follow the training ones, so as many of those
    c.prepare = (("init_from", "hf download it"),)
"""


def run(folder, config: str, *args: str):
    """Train in folder/run."""
    (folder / "config.py").write_text(f"{config}\n    return c\n")
    code, _, err = call(f"--config={folder}/config.py", f"--workdir={folder}/run", *args)
    assert code == 0, err
    return folder / "run"


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """Return a finished run. Tests change only copies of it."""
    return run(tmp_path_factory.mktemp("resnet"), CONFIG)


@pytest.fixture(scope="module")
def flipped(resnet, tmp_path_factory):
    """Return the same run, first evaluated with mirrored embeddings added; config.json does not say so."""
    folder = tmp_path_factory.mktemp("flipped")
    shutil.copytree(resnet, folder / "run", ignore=shutil.ignore_patterns("results.json"))
    return run(folder, CONFIG, "--mode=eval", "--config.eval.flip_sum=True")


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """Return a vision transformer with adapters, and the base on which it was trained."""
    folder = tmp_path_factory.mktemp("lora")
    shutil.copytree(BASE, folder / "base", ignore=shutil.ignore_patterns("golden.npz"))
    return run(folder, CONFIG + LORA, f"--config.init_from={folder}/base")


@pytest.fixture(scope="module")
def crops(resnet, tmp_path_factory):
    """Return the images of the synthetic benchmark (the same in all runs here) as files, by record number."""
    folder, store = tmp_path_factory.mktemp("crops"), Store(faces_of(resnet), "test")
    files = [folder / f"{i}.jpg" for i in range(len(store))]
    for i, file in enumerate(files):
        file.write_bytes(store.jpeg(i))
    return files


@pytest.fixture
def loaded(resnet, monkeypatch):
    """Return the run's workdir with its model loaded once, for tests of its messages."""
    network = api.load_workdir(resnet)
    monkeypatch.setattr(api, "load_workdir", lambda path: network)
    return resnet


def faces_of(workdir):
    """Return the store of the built-in benchmark."""
    return next(workdir.glob("synthetic_test*"))


def say(capsys, *args) -> tuple[int, str, str]:
    try:
        code = verify.main([str(arg) for arg in args])
    except SystemExit as end:  # of wrong arguments
        code = end.code
    return code, *capsys.readouterr()


def results_of(workdir) -> dict:
    return json.loads((workdir / "results.json").read_text())


def with_results(workdir, dst, results: dict):
    """Return a copy of a workdir with another results.json."""
    shutil.copytree(workdir, dst, ignore=shutil.ignore_patterns("tb", "synthetic_*"))
    (dst / "results.json").write_text(json.dumps(results))
    return dst


@pytest.mark.parametrize("kind", ["resnet", "flipped", "lora"])
def test_scores_and_threshold_are_the_evaluations(kind, request, crops, monkeypatch):
    workdir = request.getfixturevalue(kind)
    network, pairs = api.load_workdir(workdir), read_pairs(faces_of(workdir), "synthetic")
    monkeypatch.setattr(api, "load_workdir", lambda path: network)
    told = [verify.compare(crops[a], crops[b], workdir) for a, b in zip(pairs.a, pairs.b)]
    entry = results_of(workdir)["benchmarks"]["synthetic"]
    scores = [one["score"] for one in told]
    again = folds.verification(scores, pairs.same, pairs.fold_sizes, bootstrap=0)
    for figure in ("accuracy@far=1e-3", "accuracy@best_threshold"):
        assert again[figure]["threshold"] == pytest.approx(entry[figure]["threshold"], abs=1e-5)
    assert again["auc"]["value"] == pytest.approx(entry["auc"]["value"], abs=0.01)
    for one in told:
        assert one["threshold"] == entry["accuracy@far=1e-3"]["threshold"]
        assert one["same"] == (one["score"] >= one["threshold"])
    assert {one["same"] for one in told} == {True, False}
    assert told[0]["far"] == 1e-3
    assert told[0]["measured_on"] == {
        "benchmark": "synthetic",
        "n_impostor": 10,
        "n_impostor_per_fold": 9,
        "impostors_above_per_fold": 0,
        "identities_seen_in_training": 0,
        "data_hash": entry["data_hash"],
        "flip_sum": kind == "flipped",
        "step": results_of(workdir)["step"],
        "evaluated": results_of(workdir)["evaluation"]["date"],
    }


def test_score_is_the_cosine_of_what_the_checkpoint_embeds(resnet, crops):
    config = api.load_workdir(resnet).run.config
    step = max(int(p.name) for p in (resnet / "checkpoints").iterdir() if p.name.isdigit())
    state = ocp.StandardCheckpointer().restore((resnet / "checkpoints" / str(step) / "state").absolute())
    state = jax.tree.map(np.asarray, state)
    model = open_model(config, tasks.get(config.task)(config, resnet), sharding.one_device())
    variables = jax.jit(model.init)(jax.random.key(config.seed))
    variables.pop("batch_stats")
    _, frozen, _ = optimizer.split(variables, config.trainable)
    faces = np.stack([images.decode(crops[i].read_bytes(), "") for i in (0, 1)])
    variables = model.variables(state["trainable"], state["stats"], frozen)
    a, b = np.asarray(jax.jit(model.encoder)(variables, faces)[0])
    got = verify.compare(crops[0], crops[1], resnet)
    assert got["score"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
    assert verify.compare(crops[0], crops[1], resnet, threshold=got["score"])["same"] is True


def test_a_workdir_is_only_read(resnet, crops):
    (resnet / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir()  # a resumed run is saving its next checkpoint
    before = {p: p.stat().st_mtime_ns for p in resnet.rglob("*")}
    model = api.load_workdir(resnet)
    verify.compare(crops[0], crops[1], resnet)
    assert {p: p.stat().st_mtime_ns for p in resnet.rglob("*")} == before
    held = {leaf.sharding.num_devices for leaf in jax.tree.leaves(model.variables)}
    assert held == {1}
    (resnet / "checkpoints" / "7.orbax-checkpoint-tmp").rmdir()


def test_as_a_command(resnet, crops):
    command = [sys.executable, "-m", "fvjax.verify", crops[3], crops[3], f"--model={resnet}", "--json"]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    keys = ["score", "measure", "threshold", "same", "far", "measured_on", "model", "images"]
    assert list(told) == [*keys, "far_ci95", "face", "pictures", "comparisons", "caution", "notes", "verdict", "lower"]
    assert told["score"] == pytest.approx(1, abs=1e-6)
    assert told["same"] is True
    assert (told["model"], told["images"]) == (str(resnet), [str(crops[3])] * 2)
    done = subprocess.run([*command[:-1], "--threshold=7"], env=ENV, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fvjax: error: --threshold=7.0: a cosine lies between -1 and 1, P(Yes) between 0 and 1\n"


def test_the_doctor_examines_a_run(resnet, capsys):
    """The command itself on a run of six steps, in every reading: whether it finds anything is the network's affair."""
    (data,) = resnet.glob("synthetic_test_*")
    entry = results_of(resnet)["benchmarks"]["synthetic"]
    code, before = doctor.main([f"--data={data}", f"--model={resnet}"]), snapshot(resnet)
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    named = {line.partition("  ")[2].strip().partition(":")[0]: line for line in lines if line[:8].strip() in STATES}
    assert re.search(r"AUC [01]\.\d{3} and separation -?\d+\.\d\d of 20 pairs", named["model on synthetic"])
    figure, hash8 = entry["accuracy@best_threshold"], entry["data_hash"][:8]
    assert named["results.json"] == (
        f"ok       results.json: synthetic: {figure['mean']:.1%} of step 6 on data {hash8}; "
        f"the checkpoint is of step 6, the data {hash8}"
    )
    assert f" at {figure['threshold']:.4f} ({resnet}/results.json), 10-fold " in named["threshold on synthetic"]
    found = [line for line in lines if line.startswith("[")]
    assert len(found) == sum(line.startswith("FINDING") for line in lines)
    assert (code, lines[-1][:11]) == ((1, f"{len(found)} finding") if found else (0, "no findings"))
    assert snapshot(resnet) == before


def test_what_people_read(loaded, crops, capsys, tmp_path):
    entry, date = results_of(loaded)["benchmarks"]["synthetic"], results_of(loaded)["evaluation"]["date"]
    threshold = entry["accuracy@far=1e-3"]["threshold"]
    code, out, err = say(capsys, crops[0], crops[0], f"--model={loaded}")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"same person: score 1.0000 (cosine) >= threshold {threshold:.4f}, for FAR 0.001",
        f"measured on synthetic: 10 impostor pairs, data {entry['data_hash'][:8]}, model at step 6, evaluated {date}",
        "too few for FAR 0.001: the threshold lies just above all of some 9 impostor scores",
        "95% interval of its FAR: 0 to 0.3 (Wilson's, of 0 in 9)",
    ]
    code, out, _ = say(capsys, crops[0], crops[5], f"--model={loaded}", "--threshold=1")
    assert code == 0
    assert out.startswith("different persons: score 0.")
    assert "< threshold 1.0000\nFAR of this threshold: not known\nfor comparison: on synthetic, threshold " in out

    # a large benchmark, one whose people training saw, and one with another naming scheme
    results = results_of(loaded)
    large = entry | {"n_impostor": 3000, "n_folds": 10, "data_hash": "0123456789"}
    results["benchmarks"] = {
        "seen": large | {"identities_seen_in_training": 3, "accuracy@far=1e-3": {"threshold": 0.25}},
        "other": large | {"identities_seen_in_training": None, "accuracy@far=1e-3": {"threshold": 0.5}},
    }
    several = with_results(loaded, tmp_path / "several", results)
    assert say(capsys, crops[0], crops[0], f"--model={several}")[1].splitlines() == [
        "same person: score 1.0000 (cosine) >= threshold 0.5000, for FAR 0.001",
        f"measured on other: 3,000 impostor pairs, data 01234567, model at step 6, evaluated {date}",
        "the threshold rests on the 2 highest of some 2,700 impostor scores: few, so take the FAR as a rough one",
        "95% interval of its FAR: 0.0002 to 0.0027 (Wilson's, of 2 in 2,700)",
        "whether training saw identities of other is not known: another naming, or no model of fvjax",
    ]
    results["benchmarks"]["unseen"] = large | {"identities_seen_in_training": 0}
    known = with_results(loaded, tmp_path / "known", results)
    assert "measured on unseen: " in say(capsys, crops[0], crops[0], f"--model={known}")[1], "known to be unseen"
    out = say(capsys, crops[0], crops[0], f"--model={several}", "--benchmark=seen")[1]
    assert "threshold 0.2500" in out
    assert out.endswith("training saw 3 of its identities: expect more false accepts among strangers\n")
    assert say(capsys, crops[0], crops[0], f"--model={several}", "--benchmark=lfw") == (
        2,
        "",
        f"fvjax: error: --benchmark=lfw: {several}/results.json has seen, other\n",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 3}, "is of (step, base) (3, ''), the newest checkpoint is (6, '')"),
        ({"base_hash": "f" * 64}, "is of (step, base) (6, 'ffffffff'), the newest checkpoint is (6, '')"),
        ({"flip_sum": None}, "lacks 'flip_sum'"),
        ({"identities_seen_in_training": 3}, "training saw identities of every benchmark; choose --benchmark=synth"),
    ],
)
def test_a_threshold_that_cannot_be_trusted_is_not_used(change, message, loaded, crops, capsys, tmp_path):
    results = results_of(loaded)
    for key, value in change.items():
        where = results["benchmarks"]["synthetic"] if key in results["benchmarks"]["synthetic"] else results
        where.pop(key)
        where |= {} if value is None else {key: value}
    path = with_results(loaded, tmp_path / "run", results)
    code, out, err = say(capsys, crops[0], crops[1], f"--model={path}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{path}/results.json" in err
    assert message in err
    assert say(capsys, crops[0], crops[1], f"--model={path}", "--threshold=0.5")[0] == 0


def test_checkpoints_have_a_score_and_no_threshold(crops, capsys, tmp_path):
    iresnet = write_checkpoint(tmp_path / "r", IRESNET, iresnet_shapes())
    faces = np.stack([images.decode(crops[i].read_bytes(), "") for i in (0, 1)])
    for path, scenario in ((iresnet, "resnet"), (BASE, "vit")):
        a, b = fvjax.load(path, scenario=scenario).embed(faces)
        told = verify.compare(crops[0], crops[1], path)
        assert told["score"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
        assert [told[key] for key in ("threshold", "same", "far", "measured_on")] == [None] * 4
    code, out, _ = say(capsys, crops[0], crops[0], f"--model={iresnet}")
    assert code == 0
    assert out.startswith("score 1.0000 (cosine)\nno threshold is known for")
    assert "give --threshold=X, or as --model the workdir" in out
    assert verify.compare(crops[0], crops[0], iresnet, threshold=0.3)["same"] is True
    code, _, err = say(capsys, crops[0], crops[0], f"--model={iresnet}", "--benchmark=lfw")
    assert code == 2
    assert f"--benchmark=lfw: {iresnet} has no results.json" in err


def test_before_the_first_evaluation_there_is_a_score(loaded, crops, tmp_path):
    path = with_results(loaded, tmp_path / "run", {})
    (path / "results.json").unlink()
    told = verify.compare(crops[0], crops[1], path)
    assert told["threshold"] is None
    assert told["score"] == verify.compare(crops[0], crops[1], loaded)["score"]


def test_untrained_is_what_the_base_gives(lora, crops, tmp_path):
    """A config without epochs needs no checkpoint."""
    path = with_results(lora, tmp_path / "run", {})
    shutil.rmtree(path / "checkpoints")
    config = json.loads((path / "config.json").read_text())
    config |= {"epochs": 0, "trainable": [[".*", "frozen"]]}
    config["lora"] |= {"rank": 0, "alpha": 0.0, "targets": [], "count": 0}
    (path / "config.json").write_text(json.dumps(config))
    alone = verify.compare(crops[0], crops[1], BASE)["score"]
    assert verify.compare(crops[0], crops[1], path)["score"] == pytest.approx(alone, abs=1e-6)
    assert verify.compare(crops[0], crops[1], lora)["score"] != pytest.approx(alone, abs=1e-6)


def test_a_base_that_has_changed_or_gone_is_refused(lora, crops, capsys):
    base = lora.parent / "base"
    kept = (base / "model.safetensors").read_bytes()
    tensors = load_file(base / "model.safetensors")
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name] * 2}, base / "model.safetensors")
    try:
        code, _, err = say(capsys, crops[0], crops[1], f"--model={lora}")
        assert (code, err.count("\n")) == (2, 1)
        assert f"{lora} was trained on another base than {base} is now" in err
        base.rename(base.with_name("elsewhere"))
        code, _, err = say(capsys, crops[0], crops[1], f"--model={lora}")
        assert (code, err.count("\n")) == (2, 1)
        assert f"{lora}/config.json: init_from: {base} is not there" in err
        assert "hf download it" in err
        base.with_name("elsewhere").rename(base)
    finally:
        (base / "model.safetensors").write_bytes(kept)
    assert say(capsys, crops[0], crops[1], f"--model={lora}")[0] == 0


def test_directories_that_hold_no_model(resnet, crops, capsys, tmp_path):
    def refused(path, message):
        code, out, err = say(capsys, crops[0], crops[1], f"--model={path}")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err

    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nowhere"):
        refused(path, f"{path} is neither a workdir of python -m fvjax.main nor a checkpoint")
    bare = with_results(resnet, tmp_path / "bare", {})
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(config | {"warmth": 3}))
    refused(bare, f"{bare}/config.json is of another version of fvjax (it differs in warmth)")
    (bare / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "lora"}))
    refused(bare, "it differs in lora.")
    (bare / "config.json").write_text(json.dumps(config))
    shutil.rmtree(bare / "checkpoints")
    for _ in range(2):  # no directory, then an empty one
        refused(bare, f"{bare} has no checkpoint yet")
        (bare / "checkpoints").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=r"open it with fvjax\.api\.load_workdir"):
        fvjax.load(resnet, scenario="resnet")
    with pytest.raises(ValueError, match=r"is not a workdir of python -m fvjax\.main"):
        api.load_workdir(BASE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (file_bytes(Image.fromarray(smooth_face(0, 224)[:112]), "PNG"), "no face found in 224x112 pixels"),
        (png_that_claims(12000, 9000), "cannot be read as an image (12000x9000 pixels in the header, refused; scale"),
        (b"not a picture", "cannot be read as an image"),
        (None, "no such file"),
    ],
)
def test_pictures_without_a_face(data, message, tmp_path, capsys):
    picture, face = tmp_path / "photo; mine.jpg", tmp_path / "face.jpg"
    face.write_bytes(images.encode(smooth_face(1)))
    if data is not None:
        picture.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns of large pictures: a second line
        code, out, err = say(capsys, face, picture, "--model=nowhere")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"fvjax: error: {picture}: ")
    assert message in err


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_pictures_are_read_as_a_store_would_hold_them(mode, tmp_path):
    picture = Image.fromarray(smooth_face(1)).convert(mode)
    (tmp_path / "a.jpg").write_bytes(file_bytes(picture, "JPEG", quality=95))
    got = fvjax.faces(tmp_path / "a.jpg").crops[0]
    assert np.abs(got.astype(int) - np.asarray(picture.convert("RGB"))).mean() < 5
    if mode != "CMYK":  # libjpeg-turbo refuses it, so it is encoded again too
        assert np.array_equal(got, images.decode((tmp_path / "a.jpg").read_bytes(), ""))
        (tmp_path / "a.png").write_bytes(file_bytes(picture, "PNG"))
        png = fvjax.faces(tmp_path / "a.png").crops[0]
        assert np.abs(png.astype(int) - np.asarray(picture.convert("RGB"))).mean() < 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: A.jpg, B.jpg"),
        (["a", "b", "--model=x", "--threshold=high"], "invalid float value: 'high'"),
        (["a", "b", "--model=x", "--threshold=nan"], "a cosine lies between -1 and 1"),
        (["a", "b", "--model=x", "--threshold=0.1", "--benchmark=lfw"], "--threshold and --benchmark: give one"),
        (["a", "b", "c", "--model=x"], "unrecognized arguments: c"),
    ],
)
def test_arguments_that_are_wrong(args, message, capsys):
    code, out, err = say(capsys, *args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
