"""Test which modules import which (CONTRIBUTING.md), read from the source.

`python -m tests.test_imports` writes the import graph into docs/architecture.md.
"""

import ast
import functools
from pathlib import Path

import pytest

from tests import structure

# From the bottom up: a module imports modules of the lines above its own, and of its own folder.
LAYERS: tuple[set[str], ...] = (
    {"trees", "typing", "durations", "face_classes", "face_regions"},
    {"errors", "shipped", "console", "plugins", "config_keys", "attribute_rules", "co_occurrence"},
    {"files", "startup", "local_server"},
    {"config"},
    {"models", "data", "parallel", "checks", "runtime", "saved_config", "config_errors"},
    {"losses", "evals", "cli", "foreign", "default_model", "prepared"},
    {"tasks", "diagnosis", "foreign_workdir", "reporting"},
    {"training"},
    {"planning", "chat_model", "media_model"},
    {"api", "results"},
    {"experiment"},
    {"main"},
    {
        "plan",
        "verify",
        "search",
        "ijb",
        "doctor",
        "chat",
        "export",
        "compare",
        "evaluate",
        "pretrain",
        "face_tasks",
        "__main__",
    },
    {"report"},
    {"demo_answers"},
    {"demo_page"},
    {"demo"},
    {"reproduction"},
    {"reproduce"},
)
BELOW_ALL = LAYERS[0] | LAYERS[1] | LAYERS[2] | LAYERS[3]
PAGE, MARKS = Path("docs/architecture.md"), ("<!-- imports -->\n", "<!-- /imports -->")
TABLE = "<!-- structure -->\n", "<!-- /structure -->"


@functools.cache
def imports(file: Path) -> set[str]:
    """Return the modules that a file imports, as dotted names."""
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


def layer(part: str) -> int:
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


@pytest.mark.parametrize("part", [part for parts in LAYERS for part in sorted(parts)])
def test_imports_point_downwards(part):
    for file in files(part):
        ours = {m.split(".")[1] for m in imports(file) if m.startswith("fvjax.")} - {part}
        wrong = {other for other in ours if layer(other) >= layer(part)}
        assert not wrong, f"{file} imports {sorted(wrong)}, which stand beside or above it"


def test_every_module_has_a_layer():
    parts = {path.stem for path in Path("fvjax").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__"} == set().union(*LAYERS)


def cycles() -> list[str]:
    """Return the cycles of imports, each once; imports inside functions count, so that they cannot hide one."""
    imported = {module: sorted(b for a, b in edges() if a == module) for module in modules()}
    found: dict[frozenset[str], str] = {}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            cycle = path[path.index(module) :]
            found.setdefault(frozenset(cycle), " -> ".join((*cycle, module)))
        elif module not in done:
            for other in imported[module]:
                visit(other, (*path, module))
            done.add(module)

    for module in imported:
        visit(module, ())
    return list(found.values())


def test_no_module_imports_itself_in_a_circle():
    assert cycles() == []


def test_models_know_arrays_only():
    for file in files("models"):
        ours = {m.split(".")[1] for m in imports(file) if m.startswith("fvjax.")}
        assert ours <= {"trees", "typing", "co_occurrence", "face_classes", "face_regions", "models"}, (
            f"{file} imports {ours}"
        )


def test_data_and_protocols_need_no_jax():
    protocols = ("folds", "intervals", "choices", "facexbench", "facexbench_answers", "facexbench_tables")
    protocols += ("identification", "templates", "search_text", "verification", "finished", "pair_scores", "paired")
    protocols += ("attributes", "attribute_parser", "attribute_text", "faceinsight_published")
    modules = [*files("data"), *files("diagnosis"), *files("reporting")]
    modules += [*files("attribute_rules"), *files("co_occurrence")]
    for file in [*modules, *(Path(f"fvjax/evals/{name}.py") for name in protocols)]:
        assert not {m for m in imports(file) if m.split(".")[0] in ("jax", "flax", "torch")}, file


def test_conversion_knows_models_only():
    for file in Path("weights_convert").glob("*.py"):
        ours = {m.split(".")[1] for m in imports(file) if m.startswith("fvjax.")}
        assert ours <= {"models", "trees", "errors", "startup"}, file


def test_torch_and_pickle_stay_outside():
    for folder in ("fvjax", "weights_convert", "configs"):
        for file in Path(folder).rglob("*.py"):
            assert not {m for m in imports(file) if m.split(".")[0] in ("torch", "pickle", "peft", "tensorflow")}, file


def modules() -> dict[str, Path]:
    """Return fvjax's modules by dotted name, without `fvjax` itself (its lazy `load`) and packages without code."""
    sources = sorted([*Path("fvjax").rglob("*.py"), *Path("weights_convert").glob("*.py")])
    found = {".".join(f.with_suffix("").parts).removesuffix(".__init__"): f for f in sources if f.stat().st_size}
    del found["fvjax"]
    return found


@functools.cache
def edges() -> set[tuple[str, str]]:
    """Return pairs (module, imported module), both of fvjax. Imports inside functions count."""
    ours, out = modules(), set()
    for importer, file in ours.items():
        for name in imports(file):
            while name and name not in ours:  # a name inside a module
                name = name.rpartition(".")[0]
            if name and name != importer:
                out.add((importer, name))
    return out


def graph() -> str:
    """Return the import graph as Markdown: a drawing of the parts, and every module's imports as text."""

    def part(module):
        return module.split(".")[1] if module.startswith("fvjax.") else "weights_convert"

    def short(module):
        return module.removeprefix("fvjax.")

    everything = edges()
    drawn = sorted({(part(a), part(b)) for a, b in everything if part(a) != part(b) and part(b) not in BELOW_ALL})
    listed = {a: sorted(short(b) for c, b in everything if c == a) for a in modules()}
    return "\n".join(
        [
            f"Between the parts (any may import {', '.join(f'`{name}`' for name in sorted(BELOW_ALL))}, not drawn):",
            "",
            "```mermaid",
            "flowchart TD",
            *(f"    {a} --> {b}" for a, b in drawn),
            "```",
            "",
            "Every module and what it imports of ours:",
            "",
            "```text",
            *(f"{short(a):32}{', '.join(names)}".rstrip() for a, names in listed.items()),
            "```",
            "",
        ]
    )


def test_the_page_shows_the_real_graph():
    assert MARKS[0] + graph() + MARKS[1] in PAGE.read_text(), f"{PAGE} is out of date: python -m tests.test_imports"


def test_the_page_shows_the_real_structure():
    text = TABLE[0] + structure.table(len(cycles())) + TABLE[1]
    assert text in PAGE.read_text(), f"{PAGE} is out of date: python -m tests.test_imports"


def replace_between(page: str, marks: tuple[str, str], text: str) -> str:
    before, _, rest = page.partition(marks[0])
    return before + marks[0] + text + marks[1] + rest.partition(marks[1])[2]


if __name__ == "__main__":
    page = replace_between(PAGE.read_text(), MARKS, graph())
    PAGE.write_text(replace_between(page, TABLE, structure.table(len(cycles()))))
