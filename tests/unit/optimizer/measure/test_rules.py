"""The rules of measuring and of the default plan are listed with their tests; the list is true."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[4]


def test_every_rule_in_the_design_note_names_tests_that_exist() -> None:
    note = (ROOT / "docs/design/measuring.md").read_text()
    rules = [line for line in note.split("## Rules and their tests")[1].splitlines() if line.startswith("| ")][1:]
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    known = set(re.findall(r"def (test_\w+)\(", tests))
    named = {line: set(re.findall(r"`(test_\w+)`", line)) for line in rules}
    assert len(named) > 25
    assert {line: names - known for line, names in named.items() if not names or names - known} == {}
