"""Test that `fvjax CMD` equals `python -m MODULE`, and that experiments and weights are found from any folder."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fvjax
import weights_convert
from fvjax import __main__ as commands
from fvjax import checks, cli, saved_config, shipped
from fvjax.config import base, benchmark, typed
from fvjax.training.model import pretrained_hash

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {**os.environ, "PYTHONPATH": str(ROOT)}


def fvjax_command(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    command = [sys.executable, "-c", "from fvjax.__main__ import main; main()", *arguments]
    done = subprocess.run(command, cwd=cwd, env=ELSEWHERE, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def run_here(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["fvjax", *arguments])
    commands.main()


def test_every_command_names_a_module_that_can_be_run():
    for name, (module, _) in commands.COMMANDS.items():
        spec = importlib.util.find_spec(module)
        assert spec is not None, name
        package = spec.submodule_search_locations
        file = Path(next(iter(package))) / "__main__.py" if package else Path(str(spec.origin))
        assert '\nif __name__ == "__main__":\n' in file.read_text(), f"{file} does nothing when it is run"


def test_the_console_script_is_this_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"fvjax": "fvjax.__main__:main"}


def test_version_names_the_release_and_the_code(monkeypatch, capsys):
    run_here(monkeypatch, "--version")
    assert capsys.readouterr().out == f"fvjax {fvjax.__version__} ({fvjax.code_version()})\n"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)], ids=["nothing", "help", "h"])
def test_help_lists_every_command(monkeypatch, capsys, arguments):
    run_here(monkeypatch, *arguments)
    out = capsys.readouterr().out
    for name in commands.COMMANDS:
        assert f"\n  {name} " in out


def test_an_unknown_command_is_one_line_and_exit_code_2(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_here(monkeypatch, "verfy")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"fvjax: error: no command 'verfy'; there are {', '.join(commands.COMMANDS)}\n"


def test_a_command_gets_its_arguments_and_its_exit_code_comes_back(tmp_path):
    code, out, err = fvjax_command("prepare", "folder", "--src=nothere", "--dst=store", cwd=tmp_path)
    assert (code, out, err) == (2, "", "error: nothere: no such folder\n")


def test_help_of_a_command_has_its_own_flags_only(tmp_path):
    code, out, _ = fvjax_command("main", "--help", cwd=tmp_path)
    assert code == 0
    listed = {line.strip() for line in out.splitlines() if line.startswith("  --")}
    assert listed == {
        "--config=…",
        "--workdir=…",
        "--mode=…",
        "--benchmark=…",
        "--coordinator=…",
        "--processes=…",
        "--process=…",
        "--profile=…",
        "--show=…",
        "--[no]traceback",
    }
    assert "(default: train)" in out
    assert "train and evaluate, or only evaluate what is there" in out


def test_main_loads_an_experiment_by_name_in_a_folder_that_has_none(tmp_path):
    code, out, err = fvjax_command("main", "--config=small_real", cwd=tmp_path)
    assert (code, out) == (2, "")
    assert "config.data.train: data/cfp324 is not there. " in err  # the experiment was read, but its data is missing


def test_main_names_the_experiments_that_there_are(tmp_path):
    code, _, err = fvjax_command("main", "--config=nothere", cwd=tmp_path)
    shared = ("__init__", "paper", "facellm", "facellava")
    names = ", ".join(sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in shared))
    assert (code, err) == (2, f"fvjax: error: --config=nothere: no such file; there are {names}\n")


@pytest.mark.parametrize("name", ["quickstart", "quickstart.py", "configs/quickstart.py"])
def test_a_name_means_the_packages_experiment(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert shipped.config_file(name) == ROOT / "configs" / "quickstart.py"


def test_a_file_of_ones_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path("configs/quickstart.py").touch()
    assert shipped.config_file("configs/quickstart.py") == Path("configs/quickstart.py")
    assert shipped.config_file("elsewhere/quickstart.py") == Path("elsewhere/quickstart.py")  # reported as missing


def test_the_config_flag_is_rewritten_in_each_of_its_forms(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = f"{ROOT}/configs/quickstart.py"
    given = ["main", "--config=quickstart:resnet", "--config.epochs=1", "--mode", "eval"]
    assert cli.find_config(given) == ["main", f"--config={file}:resnet", *given[2:]]
    assert cli.find_config(["main", "--config", "quickstart"]) == ["main", "--config", file]
    assert cli.find_config(["main", "--config"]) == ["main", "--config"]


def test_a_runs_config_is_a_config(tmp_path):
    c = base()
    c.model.pooling, c.optimizer.lr_scale = "mean", {"head": 2.0}
    c.eval.benchmarks.lfw = benchmark("data/lfw", "lfw")
    c.trainable = (("lora/.*", "adapter"), (".*", "frozen"))
    saved, expected = tmp_path / "config.json", typed(c)
    saved.write_text(expected.to_json())
    assert typed(saved_config.get_config(str(saved))).to_json() == expected.to_json()
    row = f"--config={cli.SAVED}:{saved}"
    assert cli.find_config(["main", f"--config={saved}", "--mode=eval"]) == ["main", row, "--mode=eval"]
    short = ["main", f"--workdir={tmp_path}", "--mode=eval"]
    assert cli.find_config(short) == [*short, row]
    for others in (["main", f"--workdir={tmp_path}"], ["main", "--workdir=none", "--mode=eval"], [*short, "--config"]):
        assert cli.find_config(others) == others


def test_a_config_json_that_is_no_runs_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": []}')
    code, _, err = fvjax_command("main", f"--config={tmp_path}/config.json", cwd=tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "is of another version of fvjax (it differs in architectures" in err
    (tmp_path / "config.json").write_text("{")
    code, _, err = fvjax_command("main", f"--config={tmp_path}/config.json", cwd=tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "config.json: not JSON" in err


def test_pretrained_weights_are_found_from_another_folder(tmp_path, monkeypatch):
    given = "fvjax/pretrained/tiny_internvit"
    monkeypatch.chdir(ROOT)
    config = base()
    config.init_from, config.model.kind = given, "vision_transformer"
    here = pretrained_hash(config.init_from, config.init_parts)
    monkeypatch.chdir(tmp_path)
    assert shipped.weights(given) == f"{ROOT}/{given}"
    assert pretrained_hash(config.init_from, config.init_parts) == here
    assert checks.missing(typed(config).required_paths, {}) == []
    assert shipped.weights("data/InternVL2-2B") == "data/InternVL2-2B"


def test_an_installed_package_has_the_experiments_inside(tmp_path, monkeypatch):
    """In a wheel, pyproject.toml puts configs/ into fvjax/_wheel; the same layout is used here."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "fvjax")
    inside = tmp_path / build["force-include"]["configs"]
    inside.mkdir(parents=True)
    (inside / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    assert shipped.config_folder() == inside
    assert shipped.config_file("mine") == inside / "mine.py"
    assert shipped.config_names() == ["mine"]


@pytest.mark.slow
def test_the_wheel_runs_an_experiment_in_an_empty_folder(tmp_path):
    """The wheel is built, installed into its own environment (packages are downloaded) and run in an empty folder."""

    program = shutil.which("uv")
    if program is None:
        pytest.skip("uv is not on the PATH")

    def uv(*arguments: str) -> None:
        subprocess.run([program, *arguments], check=True, timeout=1200)

    uv("build", "--quiet", "--wheel", "--out-dir", str(tmp_path / "dist"), str(ROOT))
    uv("venv", "--quiet", "--python", sys.executable, str(tmp_path / "env"))
    wheel = next((tmp_path / "dist").glob("*.whl"))
    uv("pip", "install", "--quiet", "--python", str(tmp_path / "env/bin/python"), str(wheel))
    (tmp_path / "empty").mkdir()
    small = "identities=12", "images=4", "test_identities=20", "test_images=3", "test_pairs=40"
    settings = [f"--config.data.synthetic.{one}" for one in small]
    settings += ["--config.batch_size=8", "--config.eval.bootstrap=20"]
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    command = [str(tmp_path / "env/bin/fvjax"), "main", "--config=quickstart", *settings]
    done = subprocess.run(command, cwd=tmp_path / "empty", env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert "Face verification (%)" in done.stdout
    assert {p.name for p in (tmp_path / "empty/runs/quickstart").iterdir()} >= {"resnet", "vit_frozen", "vit_lora"}


def test_the_package_shows_and_imports_what_it_has():
    code = "import fvjax, sys; assert 'jax' not in sys.modules; print(*dir(fvjax))"
    code += "; print(fvjax.evals, fvjax.verify.compare)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ELSEWHERE)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()[0].split()) == {"__version__", "code_version", "faces", "load", *fvjax.MODULES}
    assert "fvjax/evals/__init__.py" in done.stdout
    assert "function compare" in done.stdout
    with pytest.raises(AttributeError, match=r"no attribute 'verfy'; there are .*verify"):
        fvjax.verfy  # noqa: B018
    for package in (fvjax, weights_convert):
        assert (Path(package.__file__).parent / "py.typed").is_file()
