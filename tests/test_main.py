"""Test the command line: a whole run, a run that is killed and resumed, and the messages for user errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import quickstart
from tests.test_bad_input import Commands

SETTINGS = {
    "model.iresnet.layers": (1, 1),  # two stages instead of four: half of the time to compile
    "model.iresnet.widths": (4, 8),
    "data.synthetic.identities": 12,
    "data.synthetic.images": 4,
    "data.synthetic.test_identities": 20,
    "data.synthetic.test_images": 3,
    "data.synthetic.test_pairs": 40,
    "batch_size": 8,
    "epochs": 6,
    "checkpoint.every_steps": 5,
    "eval.bootstrap": 20,
    "eval.every_epochs": 3,
    "eval.baselines": True,
    "eval.before_training": True,
}
TINY = ["--config=configs/quickstart.py:resnet", *(f"--config.{key}={value}" for key, value in SETTINGS.items())]
STEPS = 36  # 12 identities with 2 pairs each, 4 pairs per step: 6 steps per epoch
ENV = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_NUM_CPU_DEVICES": "2"}


def start(*args: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "fvjax.main", *args]
    return subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def call(*args: str) -> tuple[int, str, str]:
    process = start(*args)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def saved(workdir: Path) -> tuple[int, dict[str, np.ndarray]]:
    """Return the step of the newest checkpoint and every array by name."""
    step = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    state = ocp.StandardCheckpointer().restore((workdir / "checkpoints" / str(step) / "state").absolute())
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return step, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "undisturbed"
    code, out, err = call(*TINY, f"--workdir={workdir}")
    assert code == 0, err
    assert "Face verification (%)" in out
    assert "raw pixels" in out
    return workdir


def test_a_run_leaves_what_the_contract_says(finished):
    names = {
        "config.json",
        "metrics.jsonl",
        "evaluations.jsonl",
        "results.json",
        "roc.png",
        "det.png",
        "checkpoints",
        "tb",
    }
    assert names <= {p.name for p in finished.iterdir()}
    steps = lines(finished / "metrics.jsonl")
    assert [line["step"] for line in steps] == list(range(STEPS))
    assert set(steps[0]) == {"step", "loss", "lr", "grad_norm", "images_per_s"}
    assert [line["step"] for line in lines(finished / "evaluations.jsonl")] == [18, 36]
    results = json.loads((finished / "results.json").read_text())
    entry = results["benchmarks"]["synthetic"]
    assert entry["n_pairs"] == 40
    assert entry["n_genuine"] == entry["n_impostor"] == 20
    assert entry["identities_seen_in_training"] == 0
    assert 0 <= entry["before_training"]["accuracy@best_threshold"]["mean"] <= 1
    assert set(results["baselines"]) == {"raw pixels, cosine", "colour histogram, cosine"}
    for key in ("config_hash", "base_hash", "train_data_hash", "code_version", "dtype"):
        assert key in results
    step, state = saved(finished)
    assert step == STEPS
    assert any("trainable" in k for k in state)
    assert not any("features']['scale" in k for k in state), "what is frozen is not in checkpoints"


def test_killed_and_resumed_is_bit_identical(finished, tmp_path):
    workdir = tmp_path / "killed"
    process = start(*TINY, f"--workdir={workdir}")
    deadline = time.monotonic() + 300
    while len(lines(workdir / "metrics.jsonl")) < 13 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    reached = lines(workdir / "metrics.jsonl")[-1]["step"]
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / "results.json").exists()
    code, out, err = call(*TINY, f"--workdir={workdir}")
    assert code == 0, err
    assert "Restored step" in out
    assert 5 <= int(out.split("Restored step ")[1].split()[0]) <= reached + 1 < STEPS
    (step, state), (expected_step, expected) = saved(workdir), saved(finished)
    assert step == expected_step
    assert set(state) == set(expected)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(state[name], leaf, err_msg=name)
    metrics, expected_metrics = lines(workdir / "metrics.jsonl"), lines(finished / "metrics.jsonl")
    assert [(m["step"], m["loss"]) for m in metrics] == [(m["step"], m["loss"]) for m in expected_metrics]
    curves = [lines(w / "evaluations.jsonl") for w in (workdir, finished)]
    assert [(c["step"], c["synthetic"]) for c in curves[0]] == [(c["step"], c["synthetic"]) for c in curves[1]]


def test_eval_mode_repeats_the_figures(finished):
    before = json.loads((finished / "results.json").read_text())
    code, _, err = call(f"--workdir={finished}", "--mode=eval")  # the config is the run's own
    assert code == 0, err
    after = json.loads((finished / "results.json").read_text())
    assert after["benchmarks"] == before["benchmarks"]


@pytest.fixture
def commands(monkeypatch, capsys) -> Commands:
    return Commands(monkeypatch, capsys, devices=2)


def small(row: str = "resnet", **changes):
    """Return the config of `TINY`, changed."""
    config = quickstart.get_config(row)
    config.update_from_flattened_dict(SETTINGS | changes)
    return config


def test_a_workdir_of_another_config_is_left_alone(finished, commands):
    kept = {p: p.stat().st_mtime_ns for p in finished.iterdir()}
    err = commands.refuses("main", small(**{"optimizer.lr": 0.2}), finished)
    told = f"{finished} is of another config (optimizer.lr: 0.1 there, 0.2 now); choose another --workdir"
    assert err == f"fvjax: error: {told}\n"
    assert {p: p.stat().st_mtime_ns for p in finished.iterdir()} == kept


def test_a_loss_that_is_not_finite_stops_with_its_step(commands, tmp_path):
    changes = dict.fromkeys(("eval.before_training", "eval.baselines", "log.tensorboard"), False)
    err = commands.refuses("main", small(**changes, **{"loss.temperature": 1e-45}), tmp_path / "nan")
    assert err.startswith("fvjax: error: step 0: the loss is ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config=configs/quickstart.py:resnet", "--config.optimizer.lrr=1"], "the nearest are optimizer.lr"),
        (["--config=configs/quickstart.py:resnet", "--config.batch_size=7"], "must be even"),
        (["--config=configs/quickstart.py:resnet", "--config.mesh.data=3"], "does not make up the 2 devices"),
        (["--config=configs/quikstart.py"], "no such file; did you mean quickstart, "),
        (["--config=configs/nowhere.py"], "--config=configs/nowhere.py: no such file; there are adaface_r50, "),
        (["--config=configs/quickstart.py:resnet", "surplus"], "unexpected argument 'surplus'"),
        ([], "--config=NAME is missing; there are adaface_r50, "),
    ],
)
def test_mistakes_are_one_line(args, message, tmp_path):
    small = TINY[1:] if args and "quickstart" in args[0] else []
    code, _, err = call(*args[:1], *small, *args[1:], f"--workdir={tmp_path / 'x'}")
    assert code == 2
    assert message in err
    assert err.startswith("fvjax: error: ")
    assert err.count("\n") == 1, err
    assert not (tmp_path / "x" / "config.json").exists(), "the corrected command may use the same workdir"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch_size", 404, "choose 1 … 12"),
        ("batch_size", 6, "batch_size / 2 = 3 does not divide"),
        ("optimizer.name", "adm", "choose sgd or adamw"),
        ("dtype", "bf16", "choose float32 or bfloat16"),
        ("log.every_steps", 0, "must be at least 1"),
        ("lora.rank", 8, "rank, alpha and targets go together"),
        ("mode", "eval", "nothing trained to evaluate"),
    ],
)
def test_mistakes_in_a_config_are_one_line(key, value, message, tmp_path, commands):
    config, mode = (small(), value) if key == "mode" else (small(**{key: value}), "train")
    assert message in commands.refuses("main", config, tmp_path / "x", mode)
    assert not (tmp_path / "x" / "config.json").exists(), "the corrected command may use the same workdir"


@pytest.mark.slow  # tests/test_train.py compares one step, tests/test_processes.py whole runs
def test_sharded_run_equals_replicated(finished, tmp_path):
    config = tmp_path / "sharded.py"
    config.write_text(
        "from configs import quickstart\n\n\ndef get_config():\n    c = quickstart.get_config('resnet')\n"
        "    columns = (None, None, None, 'fsdp')\n"
        "    c.sharding = (('params/fc/kernel', ('fsdp',)), ('.*/conv[12]/kernel', columns), ('.*', ()))\n"
        "    return c\n"
    )
    mesh = ["--config.mesh.data=1", "--config.mesh.fsdp=2"]
    workdir = tmp_path / "sharded"
    code, _, err = call(f"--config={config}", *TINY[1:], *mesh, f"--workdir={workdir}", "--config.epochs=1")
    assert code == 0, err
    ours, theirs = lines(workdir / "metrics.jsonl"), lines(finished / "metrics.jsonl")
    # because of the warm-up, the first epoch's rate does not depend on the number of epochs
    np.testing.assert_allclose([m["loss"] for m in ours], [m["loss"] for m in theirs[: len(ours)]], rtol=1e-4)
    figures = json.loads((workdir / "results.json").read_text())["benchmarks"]["synthetic"]
    # the checkpoint, optimizer included, is restored onto another mesh
    code, _, err = call(f"--config={config}", *TINY[1:], "--mode=eval", f"--workdir={workdir}", "--config.epochs=1")
    assert code == 0, err
    again = json.loads((workdir / "results.json").read_text())["benchmarks"]["synthetic"]
    assert again["auc"]["value"] == pytest.approx(figures["auc"]["value"], abs=0.01)


def test_three_rows_and_their_table(commands, capsys, tmp_path):
    assert commands.main(small("", **{"epochs": 1, "rows.vit_lora.epochs": 2}), tmp_path) == 0
    out = capsys.readouterr().out
    written = {p.name for p in tmp_path.iterdir() if "synthetic" not in p.name}
    assert written == {"resnet", "vit_frozen", "vit_lora", "table.txt"}
    assert len(list(tmp_path.glob("synthetic_*"))) == 2, "the rows share their faces"
    table = out[out.rindex("Face verification (%)") :]
    for row in ("raw pixels", "resnet", "vit_frozen", "vit_lora"):
        assert row in table
    assert (tmp_path / "table.txt").read_text().strip() in out
    results = {row: json.loads((tmp_path / row / "results.json").read_text()) for row in ("vit_frozen", "vit_lora")}
    assert results["vit_frozen"]["step"] == 0
    assert results["vit_lora"]["step"] == 12
    assert results["vit_frozen"]["base_hash"] == results["vit_lora"]["base_hash"] != ""
    _, state = saved(tmp_path / "vit_lora")
    assert state
    assert all("lora" in name for name in state if "trainable" in name)


def test_missing_files_are_named_with_their_remedy(tmp_path):
    code, _, err = call("--config=configs/vit_lora.py", f"--workdir={tmp_path / 'x'}", "--config.init_from=not/here")
    assert code == 2
    told = err.splitlines()
    assert any(
        "config.init_from: not/here is not there" in t and "hf download OpenGVLab/InternVL2-2B" in t for t in told
    )
    assert any("config.data.train: " in t and "MS1M" in t and "fvjax.data.prepare recordio" in t for t in told)
    assert not (tmp_path / "x").exists()


COMPILES = """
import sys, jax
from fvjax import runtime
backend, jax.default_backend = jax.default_backend, lambda: sys.argv[1]
runtime.keep_programs()
jax.default_backend = backend
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x @ x.T)(jax.numpy.ones((8, 8)))
"""


@pytest.mark.parametrize(("platform", "elsewhere"), [("gpu", False), ("gpu", True), ("cpu", False)])
def test_compiled_programs_are_kept_but_not_a_cpus(tmp_path, platform, elsewhere):
    env = {k: v for k, v in ENV.items() if k != "JAX_COMPILATION_CACHE_DIR"} | {"XDG_CACHE_HOME": str(tmp_path)}
    env |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "mine")} if elsewhere else {}
    subprocess.run([sys.executable, "-c", COMPILES, platform], env=env, check=True)
    found = {file.parent.relative_to(tmp_path) for file in tmp_path.rglob("*-cache")}
    assert found == ({Path("mine" if elsewhere else "fvjax/xla")} if platform == "gpu" else set())
