"""Test that the files, functions and configs that the documentation names exist."""

import importlib
import re
from pathlib import Path

import pytest

PAGES = [*map(Path, ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")), *sorted(Path("docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), f"{page}: {target}"
        headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE) if anchor else []
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, f"{page}: #{anchor} is no heading of {file}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_what_is_named_exists(page):
    text = page.read_text()
    for name in re.findall(r"`((?:fvjax|weights_convert)(?:\.\w+)+)`", text):
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:length]))
                break
            except ModuleNotFoundError:
                continue
        for part in parts[length:]:
            found = getattr(found, part)  # raises AttributeError, which names both
    for file in re.findall(r"\b((?:configs|tests|fvjax)/[\w/]+\.(?:py|md))\b", text):
        assert Path(file).exists() or "NAME" in file, f"{page}: {file}"
    for file, test in re.findall(r"\b(tests/\w+\.py)::(\w+)", text):
        assert f"def {test}(" in Path(file).read_text(), f"{page}: {file}::{test}"
