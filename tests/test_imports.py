"""Who may import whom (CONTRIBUTING.md): read from the source, so that a shortcut does not slip in."""

import ast
from pathlib import Path

import pytest

PARTS = ("tasks", "evals", "data", "optim", "checkpoint", "lora", "sharding", "metrics", "models", "flops")
COMMON = {"trees", "typing", "config"}
MAY = {part: COMMON for part in PARTS} | {"models": {"trees", "typing"}}


def imports(file: Path) -> set[str]:
    """Modules that a file imports, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(part: str) -> list[Path]:
    path = Path("fvjax") / part
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


@pytest.mark.parametrize("part", PARTS)
def test_parts_do_not_import_each_other(part):
    for file in files(part):
        ours = {m.split(".")[1] for m in imports(file) if m.startswith("fvjax.")}
        assert ours <= MAY[part] | {part}, f"{file} imports {ours - MAY[part] - {part}}"


def test_data_and_protocols_need_no_jax():
    for file in [*files("data"), Path("fvjax/evals/folds.py")]:
        assert not {m for m in imports(file) if m.split(".")[0] in ("jax", "flax", "torch")}, file


def test_conversion_knows_models_only():
    for file in Path("weights_convert").glob("*.py"):
        ours = {m.split(".")[1] for m in imports(file) if m.startswith("fvjax.")}
        assert ours <= {"models", "trees"}, file


def test_torch_and_pickle_stay_outside():
    for folder in ("fvjax", "weights_convert", "configs"):
        for file in Path(folder).rglob("*.py"):
            assert not {m for m in imports(file) if m.split(".")[0] in ("torch", "pickle", "peft", "tensorflow")}, file
