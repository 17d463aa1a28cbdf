"""Tests that the design pages name as evidence exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.docs.pages import ROOT

PAGES = sorted((ROOT / "docs" / "design").glob("*.md"))
FILES = sorted((ROOT / "tests").rglob("test_*.py"))
TESTS = {
    (path.stem, name) for path in FILES for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
}
KNOWN = {name for test in TESTS for name in test}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    """As `test_name` or `test_file.py` in code, or as `test_file - name, name` in a table, the names without `test_`."""
    text = page.read_text(encoding="utf-8")
    wanted = {name.removesuffix(".py").rsplit("/")[-1] for name in re.findall(r"`([\w/]*test_\w+(?:\.py)?)`", text)}
    wrong = sorted(wanted - KNOWN)
    for file, names in re.findall(r"\b(test_\w+) - (\w+(?:, \w+)*)", text):
        wrong += [f"{file} - {name}" for name in names.split(", ") if (file, f"test_{name}") not in TESTS]
    assert wrong == []
