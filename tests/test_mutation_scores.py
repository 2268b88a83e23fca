"""Test that the list of tests/mutation_scores.py (too slow for every run) matches the code, and test its parts."""

import re
import tomllib

import pytest

from tests.mutations import ROOT

LIST = tomllib.loads((ROOT / "tests/mutation_scores.toml").read_text())


@pytest.mark.parametrize("module", LIST["modules"])
def test_the_list_fits_the_code(module):
    assert (ROOT / module).is_file()
    for test in LIST["modules"][module]:
        file, *name = re.sub(r"\[.*", "", test).split("::")
        if file.startswith("tests/"):
            assert not name or f"\ndef {name[0]}(" in (ROOT / file).read_text(), f"{test} is gone"


def test_survivors_that_are_explained_are_still_there():
    for one in LIST.get("equivalent", []):
        assert one["why"]
        assert one["module"] in LIST["modules"]
        lines = {line.strip() for line in (ROOT / one["module"]).read_text().splitlines()}
        assert one["line"] in lines, f"correct tests/mutation_scores.toml: {one['module']} has no line {one['line']!r}"


SOURCE = """
from functools import cache

@cache
def f(a: int | None, *, b: float = 1 - 2, **rest) -> int | str:
    if a < 1 + 1:
        raise ValueError(f"{a + 1} is too small")
    x: int | float = a * 2
    return g(*rest, a ** 2, x.reshape(-1, 3))
"""


def test_code_that_decides_nothing_is_not_mutated(monkeypatch):
    pytest.importorskip("cosmic_ray", reason="cosmic-ray is not installed: uv sync --extra dev")
    monkeypatch.syspath_prepend(ROOT / "tests")
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # the module sets these variables; monkeypatch restores them at the end
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    import mutation_scores

    lines = SOURCE.splitlines()
    parts = {lines[start[0] - 1][start[1] : end[1]]: start for start, end in mutation_scores.meaningless(SOURCE)}
    assert set(parts) == {
        *("cache", "int | None", "*", "float", "**", "int | str", "int | float", "-1"),
        'ValueError(f"{a + 1} is too small")',
    }
    assert str(mutation_scores.difference("a\n  b | c\n", "a\n  b & c\n")) == "`b \\| c` → `b & c`"
    score = mutation_scores.Score(30, 20, 15, {mutation_scores.Mutant(1, "a", "b"): "why"}, [])
    assert score.percent == pytest.approx(100 * 15 / 19)
