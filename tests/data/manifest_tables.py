"""Good and bad manifests, and every manifest that people are shown: what an API server and the command line must agree on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.docs.pages import PAGES, blocks

from fettle.api.base import API_VERSION

ROOT = Path(__file__).parents[2]
TABLES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(ROOT.glob("tests/data/manifests/*.yaml"))}
GOOD = [pytest.param(kind, case, id=f"{kind}: {case}") for kind, table in TABLES.items() for case in table["good"]]
BAD = [pytest.param(kind, case, id=f"{kind}: {case}") for kind, table in TABLES.items() for case in table["bad"]]
EXAMPLES = [
    pytest.param(text, id=where)
    for where, text in [
        *((path.name, path.read_text()) for path in sorted((ROOT / "examples").rglob("*.yaml"))),
        *((str(block), block.text) for page in PAGES for block in blocks(page) if block.language == "yaml"),
    ]
    if f"apiVersion: {API_VERSION}" in text
]


def merged(base: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386), except that a null stays where it stands inside of a list."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    out = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merged(out.get(key), value)
    return out


def manifest(kind: str, quality: str, case: str) -> dict[str, Any]:
    """A row of a table, `quality` being good or bad, as the whole object."""
    table = TABLES[kind]
    patch = {key: value for key, value in table[quality][case].items() if key != "complaints"}
    found: dict[str, Any] = merged(table["base"], patch)
    return found
