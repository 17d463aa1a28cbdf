"""One name for one thing: no two classes of the package are called the same."""

from __future__ import annotations

import ast
import inspect
from collections import defaultdict
from pathlib import Path

import fettle

SOURCE = Path(inspect.getfile(fettle)).parent


def test_no_two_public_classes_have_one_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
