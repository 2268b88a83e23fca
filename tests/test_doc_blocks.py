"""Test every shell and Python block of README and docs, in order and as written.

Commands run in a folder with small stand-ins for what the pages name: procedural faces for LFW and CFP, a function for
a trained model, the golden InternVL2 for the real one. A command whose input is too large for that must fail because
its input is missing, and for no other reason. What needs a network, another machine or minutes is listed with the
reason; of training commands the flags and every key of the config are checked.
"""

import importlib
import inspect
import itertools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from PIL import Image

from fvjax import cli
from fvjax.data import synthetic
from tests import tiny_onnx
from tests.reference.recipe import GOLDEN

ROOT = Path(__file__).resolve().parent.parent
PAGES = [Path("README.md"), *(page.relative_to(ROOT) for page in sorted((ROOT / "docs").rglob("*.md")))]
ELSEWHERE = {  # how a command begins: why no test runs it
    r"python3 -m venv ": "installs packages; .ci/run does it with README's test command",
    r"(\.venv/bin/)?(uv|pip) (sync|install)": "installs packages",
    r"\.venv/bin/(ruff|pyright) |\.venv/bin/python -m pytest": "this is the command that runs the tests",
    r"hf download|vllm serve": "needs a network, and programs that are not fvjax's",
    r"kubectl ": "needs a cluster; tests/test_launch.py reads the file",
    r"launch/slurm.sh ": "needs Slurm; tests/slurm starts one",
    r"\S*python launch/local.py ": "trains on two processes; tests/test_local.py does that with less",
    r"python -m benchmarks\.": "takes minutes and the whole of LFW and CFP",
    r".* lfw --download ": "downloads LFW; tests/test_align.py has the rest",
}
TRAINS = {"fvjax.main", "fvjax.plan"}
MISSING = (  # of these the input is not in the stand-ins
    r"prepare (recordio|bin|ijb|conversations|facexbench|folder --src=tfds)|describe labels|--align|--landmarks|data/my"
    r"|fvjax\.(chat|face_tasks|demo|ijb|export|search|doctor --data=data/lfw --model)|weights_convert --src=(?!data)"
)
STOPPED = {"fvjax.reproduce": "--rows=none"}  # an argument with which a command ends after it has read its flags
EXIT_CODES = {"fvjax.doctor": 1}  # drawings are not placed as aligned photographs are, which it finds
NOT_THERE = r"\b(no|not|missing|neither|nothing|none|needs)\b"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Return the commands of a page's shell blocks, without comments."""
    lines = [line for block in blocks(page, "sh") for line in re.sub(r"\\\n\s*|&&\n", "&& ", block).splitlines()]
    lines = [re.sub(r"&& (?=--)", "", line) for line in lines]  # a continued line, not a second command
    return [part.strip() for line in lines for part in re.sub(r"\s#.*", "", line).split("&&") if part.strip()]


def lfw(folder: Path) -> None:
    """Write 34 people in four pictures each, and LFW's list of two folds with a hundred pairs of each kind."""
    lines = ["2\t100"]
    for who in range(34):
        for shot in (1, 2, 3, 4):
            file = folder / f"LFW_CROPS/P_{who}/P_{who}_{shot:04d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(synthetic.face(who, shot, 0)).save(file, quality=95)
    for fold in range(2):
        people = range(17 * fold, 17 * fold + 17)
        genuine = [f"P_{who}\t{i}\t{j}" for who in people for i, j in itertools.combinations((1, 2, 3, 4), 2)]
        impostor = [f"P_{a}\t1\tP_{b}\t2" for a, b in itertools.combinations(people, 2)]
        lines += genuine[:100] + impostor[:100]
    (folder / "pairs.txt").write_text("\n".join(lines) + "\n")


def cfp(folder: Path) -> None:
    """Write CFP's pictures of four people, and its protocol of two folds with two pairs of each kind."""
    views = {"F": "frontal", "P": "profile"}
    for number, (letter, view) in enumerate(views.items()):
        lines = []
        for who in range(4):
            for shot in (1, 2):
                file = folder / f"CFP_CROPS/{who + 1:03d}/{view}/{shot:02d}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(synthetic.face(100 + who, 2 * shot + number, 0)).save(file, quality=95)
                lines.append(f"{len(lines) + 1} ../Data/Images/{who + 1:03d}/{view}/{shot:02d}.jpg")
        (folder / "Protocol").mkdir(exist_ok=True)
        (folder / "Protocol" / f"Pair_list_{letter}.txt").write_text("\n".join(lines) + "\n")
    for kind in ("FF", "FP"):
        for fold in (1, 2):
            split = folder / f"Protocol/Split/{kind}/{fold:02d}"
            split.mkdir(parents=True)
            first = 4 * fold - 3
            (split / "same.txt").write_text(f"{first},{first + 1}\n{first + 2},{first + 3}\n")
            (split / "diff.txt").write_text(f"{first},{first + 2}\n{first + 1},{first + 3}\n")
    (folder / "OVERLAP.tsv").write_text("001\tSomebody\n")


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> Path:
    """Return a folder in which the pages' names mean something small."""
    folder = tmp_path_factory.mktemp("stand-ins")
    lfw(folder)
    cfp(folder)
    for number, name in enumerate(("A.jpg", "B.jpg", "face.jpg", "FACE.png")):
        Image.fromarray(synthetic.face(number, 0, 0)).save(folder / name)
    tiny_onnx.mean_colour(folder / "MobileFaceNet.onnx", [1, 3, 112, 112])
    (folder / "mine.py").write_text(
        "def embed(faces):\n    return faces[:, ::16, ::16].reshape(len(faces), -1).astype('float32') - 128\n"
    )
    shutil.copytree(GOLDEN / "internvl_tiny", folder / "data/InternVL2-2B")
    shutil.copy(GOLDEN / "internvl_tiny/adapters.safetensors", folder / "adapters.safetensors")
    for name in ("configs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        assert call("fvjax.data.prepare", ["lfw", "--src=LFW_CROPS", "--pairs=pairs.txt", "--dst=data/lfw"]) == 0
        assert call("fvjax.data.prepare", ["cfp", "--src=CFP_CROPS", "--protocol=Protocol", "--dst=data/cfp"]) == 0
        for run in ("small_real", "mobilefacenet", "vit_lora", "resnet", "vit_lora_seed1", "vit_lora_seed2"):
            model = "--model=MobileFaceNet.onnx" if run == "mobilefacenet" else "--embedder=mine:embed"
            given = [model, "--benchmark=data/lfw", f"--workdir=runs/{run}", "--bootstrap=20"]
            assert call("fvjax.evaluate", given) == 0
    return folder


@pytest.fixture
def here(stand_ins, tmp_path, monkeypatch) -> Path:
    """Return a copy of the stand-ins, which is the current directory."""
    shutil.copytree(stand_ins, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(tmp_path / "here")
    return tmp_path / "here"


def call(module: str, arguments: list[str]) -> int | str | None:
    """Run a command's main function; return its exit code."""
    found = importlib.import_module(module)
    main = found.main if hasattr(found, "main") else importlib.import_module(f"{module}.__main__").main
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])  # for those that read it themselves
        try:
            return main(arguments) if inspect.signature(main).parameters else main()
        except SystemExit as end:
            return end.code


def make_room(arguments: list[str]) -> None:
    """Remove what an earlier reader of the page has made."""
    for argument in arguments:
        flag, _, value = argument.partition("=")
        if flag in ("--dst", "--workdir") and Path(value).exists():
            shutil.rmtree(value)


def check_flags_and_config(module: str, arguments: list[str]) -> None:
    """Raise if a training command has a flag, a config or a key that is not there."""
    importlib.import_module(module)
    known = {flag.name for name in (module, "fvjax.cli") for flag in flags.FLAGS.flags_by_module_dict()[name]}
    names = {re.split("[=.]", argument[2:])[0] for argument in arguments}
    assert names <= known, names - known
    if not any(argument.startswith("--config=") for argument in arguments):
        arguments = ["--config=configs/small_real.py", *arguments]  # that of the run which the page evaluates
    cli.check_config(cli.find_config(["main", *arguments]))


def run(command: str, capsys) -> None:
    """Run a command of a page as this test can; see the module's docstring."""
    words = shlex.split(command)
    assert words[0].endswith("python"), f"neither python nor in ELSEWHERE: {command}"
    assert words[1] == "-m", command
    module, arguments = words[2], words[3:]
    if module in TRAINS:
        return check_flags_and_config(module, arguments)
    absent = re.search(MISSING, command)
    if not absent and module not in STOPPED:
        make_room(arguments)
    code = call(module, [*arguments, *([STOPPED[module]] if module in STOPPED else [])])
    said = capsys.readouterr()
    if module in STOPPED:
        assert (code, "--rows=none" in said.err) == (2, True), said.err
    elif absent:
        assert (code, "--help" in said.err, said.err.count("\n")) == (2, False, 1), f"{command}\n{said}"
        assert re.search(NOT_THERE, said.err), said.err
        values = [word.partition("=")[2] or word for word in arguments]
        assert "extra" in said.err or any(value and value in said.err for value in values), f"{command}\n{said.err}"
    else:
        assert code == EXIT_CODES.get(module, 0), f"{command}\n{said}"
    return None


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=str)
def test_every_command_of_a_page_works(page, here, capsys):
    for command in commands(page):
        if not any(re.match(beginning, command) for beginning in ELSEWHERE):
            run(command, capsys)


def test_every_exception_is_needed():
    every = [command for page in PAGES for command in commands(page)]
    for beginning in ELSEWHERE:
        assert any(re.match(beginning, command) for command in every), f"no page has {beginning}"


@pytest.mark.parametrize("page", ["README.md", "docs/photographs.md"])
def test_every_python_block_of_a_page_works(page, here):
    given = {"faces": np.stack([synthetic.face(0, shot, 0) for shot in range(3)]), "pairs": [("A.jpg", "B.jpg")]}
    for block in blocks(Path(page), "python"):
        exec(compile(block, page, "exec"), given)
    if page == "README.md":
        assert given["embeddings"].shape == (3, 32)
    else:
        assert given["answers"][0]["same"] in (True, False)
        assert Path("answer.png").stat().st_size > 1000


def test_signatures_are_checked_as_the_page_of_plugins_says():
    (block,) = [block for block in blocks(Path("docs/plugins.md"), "python") if "install_import_hook" in block]
    given = "import jax.numpy as jnp\nembeddings, labels = jnp.ones({shape}), jnp.arange(4)\n"
    right, wrong = (
        subprocess.run([sys.executable, "-c", given.format(shape=shape) + block], capture_output=True, text=True)
        for shape in ((8, 3), (8,))
    )
    assert right.returncode == 0, right.stderr
    assert wrong.returncode == 1
    assert "Expected type: <class 'Float[" in wrong.stderr
