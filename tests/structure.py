"""Measure the structure of the code: the length of the reading path, uses of the whole config, mentions of a task.

`python -m tests.test_imports` writes the table into docs/architecture.md. `python -m tests.structure DIR` prints the
figures of another checkout, such as one of an earlier commit.
"""

import ast
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from fvjax import config

# The files that a newcomer reads in this order to understand a run.
PATH = ("main", "experiment", "training/loop", "tasks/verification", "models/vlm", "models/decoder")
PATH_BEFORE = ("main", "train", "tasks/contrastive", "models/vlm", "models/decoder")
TASK_NAMES = {"contrastive", "pair_answer"}
COMMANDS = {"main", "plan", "verify", "doctor", "export", "pretrain", "prepare"}
# The same figures at commit f41f023, from running `python -m tests.structure` on that checkout.
BEFORE: dict[str, int | str] = {
    "lines of the reading path": 1246,
    "functions that take the whole config": 47,
    "places outside fvjax/tasks that ask which task it is": 12,
    "places that know 112 pixels": 46,
    "files flat in fvjax/": 31,
    "longest function": "231 lines (run, train.py)",
    "longest file": "672 lines (data/recordio.py)",
    "import cycles": 1,
}


def functions(root: Path) -> Iterator[tuple[Path, ast.FunctionDef]]:
    for file in sorted((root / "fvjax").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield file, node


def sections() -> list[set[str]]:
    """Return the keys of each section of the config."""
    classes = [cls for cls in vars(config).values() if dataclasses.is_dataclass(cls) and cls is not config.Config]
    return [{field.name for field in dataclasses.fields(cls)} for cls in classes]


def takes_the_whole_config(function: ast.FunctionDef) -> bool:
    """Return whether a parameter is a config of which several sections are used, or which is passed on as a whole.

    Before the config was typed, its sections had the same annotation as the whole.
    """
    arguments = [*function.args.args, *function.args.kwonlyargs]
    names = {a.arg for a in arguments if a.annotation is not None and ast.unparse(a.annotation) == "Config"}
    for name in names:
        used, attributes = 0, set()
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id == name:
                used += 1
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name:
                used -= 1
                attributes.add(node.attr)
        if used or not any(attributes <= keys for keys in sections()):
            return True
    return False


def names_a_task(file: Path) -> int:
    """Count comparisons with a task's name, or of `config.task` with anything."""
    count = 0
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            is_task = any(isinstance(side, ast.Attribute) and side.attr == "task" for side in sides)
            is_name = any(isinstance(side, ast.Constant) and side.value in TASK_NAMES for side in sides)
            count += is_task or is_name
    return count


def knows_112(file: Path) -> int:
    """Count the numbers 112, and uses of the constant that stands for it, outside of synthetic faces and alignment."""
    nodes = ast.walk(ast.parse(file.read_text()))
    return sum(
        (isinstance(node, ast.Constant) and node.value == 112)
        or (isinstance(node, ast.Name) and node.id == "SIZE" and isinstance(node.ctx, ast.Load))
        or (isinstance(node, ast.Attribute) and node.attr == "SIZE")
        for node in nodes
    )


def measure(root: Path, path: tuple[str, ...] = PATH) -> dict[str, int | str]:
    """Return the figures of a checkout."""
    files = sorted((root / "fvjax").rglob("*.py"))
    lines = {file: len(file.read_text().splitlines()) for file in files}
    spans = {(file, f.name): (f.end_lineno or 0) - f.lineno + 1 for file, f in functions(root)}
    longest, longest_function = max(lines, key=lines.__getitem__), max(spans, key=spans.__getitem__)
    outside_tasks = [file for file in files if "tasks" not in file.parts]
    drawing = {"synthetic.py", "cartoon.py", "align.py"}
    others = [file for file in files if file.name not in drawing and "alignment" not in file.parts]
    short = lambda file: file.relative_to(root / "fvjax").as_posix()  # noqa: E731
    return {
        "lines of the reading path": sum(lines[root / "fvjax" / f"{name}.py"] for name in path),
        "functions that take the whole config": sum(takes_the_whole_config(f) for _, f in functions(root)),
        "places outside fvjax/tasks that ask which task it is": sum(names_a_task(file) for file in outside_tasks),
        "places that know 112 pixels": sum(knows_112(file) for file in others),
        "files flat in fvjax/": len(list((root / "fvjax").glob("*.py"))),
        "longest function": f"{spans[longest_function]} lines ({longest_function[1]}, {short(longest_function[0])})",
        "longest file": f"{lines[longest]} lines ({short(longest)})",
    }


def table(cycles: int) -> str:
    """Return the table of the earlier and the current figures as Markdown."""
    now = {**measure(Path()), "import cycles": cycles}
    rows = [f"| {name} | {BEFORE[name]} | {value} |" for name, value in now.items()]
    path = " → ".join(f"`{name}`" for name in PATH)
    return "\n".join(["| | commit f41f023 | now |", "|---|---|---|", *rows, "", f"The reading path: {path}.", ""])


if __name__ == "__main__":
    before = (Path(sys.argv[1]) / "fvjax/train.py").exists()
    print(json.dumps(measure(Path(sys.argv[1]), PATH_BEFORE if before else PATH), indent=1, ensure_ascii=False))
