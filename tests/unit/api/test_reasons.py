"""The closed list of reasons holds nothing that does not happen: each is set by the product, asserted by a test, and explained to people."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from fettle.api.reasons import Reason

ROOT = Path(__file__).parents[3]
LIST = ROOT / "operator/fettle/api/reasons.py"
TROUBLESHOOTING = (ROOT / "docs/troubleshooting.md").read_text()


def named(node: ast.AST) -> Reason | None:
    """The reason that a node is, as `Reason.NAME`."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason":
        return Reason.__members__.get(node.attr)
    return None


def quoted(node: ast.AST) -> Reason | None:
    """The reason that a node is, as its word."""
    is_one = isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in set(Reason)
    return Reason(node.value) if is_one else None  # type: ignore[attr-defined]


def set_by(node: ast.AST) -> Iterator[Reason]:
    """Reasons below a node of the product, but for those in comparisons and in sets: these only ask whether it is one of them."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Compare | ast.Set | ast.match_case):
            continue
        if (reason := named(child)) is not None:
            yield reason
        yield from set_by(child)


def expected_by(module: ast.AST) -> Iterator[Reason]:
    """Reasons in the asserts and comparisons of a test's module, and in the tables whose rows they speak of.

    In a table a quoted word does not count: it may be the kubelet's.
    """
    tables = _tables(module)
    for node in ast.walk(module):
        is_table = isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.parametrize"
        if not is_table and not isinstance(node, ast.Assert | ast.Compare):
            continue
        for below in ast.walk(node):
            rows = list(ast.walk(tables[below.id])) if isinstance(below, ast.Name) and below.id in tables else []
            found = (*map(named, (below, *rows)), None if is_table else quoted(below))
            yield from (reason for reason in found if reason is not None)


def _tables(module: ast.AST) -> dict[str, ast.expr]:
    """The module's own names -> what they are."""
    assigned = (one for one in ast.iter_child_nodes(module) if isinstance(one, ast.Assign | ast.AnnAssign))
    pairs = ((one.targets[0] if isinstance(one, ast.Assign) else one.target, one.value) for one in assigned)
    return {name.id: value for name, value in pairs if isinstance(name, ast.Name) and value is not None}


@cache
def in_code(folder: str, reasons: Callable[[ast.AST], Iterator[Reason]]) -> frozenset[Reason]:
    paths = [path for path in (ROOT / folder).rglob("*.py") if path not in (LIST, Path(__file__))]
    return frozenset(reason for path in paths for reason in reasons(ast.parse(path.read_text())))


def _sections() -> dict[str, str]:
    """Heading of the third level -> what stands under it."""
    parts = re.split(r"^### (.+)$", TROUBLESHOOTING, flags=re.MULTILINE)[1:]
    return {heading.strip(): body for heading, body in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_set_by_the_product(reason: Reason) -> None:
    assert reason in in_code("operator/fettle", set_by), f"nothing sets {reason}: remove it, or set it"


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_asserted_by_a_test(reason: Reason) -> None:
    assert reason in in_code("tests", expected_by), f"no test asserts {reason}"


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_explained_to_people(reason: Reason) -> None:
    section = _sections().get(f"`{reason.value}`", "")
    assert len(section.split()) >= 12, (
        f"docs/troubleshooting.md has no section ### `{reason.value}` that says what to do"
    )


def test_no_section_explains_what_is_no_reason() -> None:
    assert {heading.strip("`") for heading in _sections()} == {reason.value for reason in Reason}


@pytest.mark.parametrize(
    ("code", "counts"),
    [
        ("raise StoreError(text, reason=Reason.STORE_FULL)", True),
        ("FAULTS = {'ENOSPC': Reason.STORE_FULL}", True),
        ("default = Reason.STORE_FULL if full else None", True),
        ("if ready.reason == Reason.STORE_FULL: pass", False),
        ("if ready.reason in (Reason.STORE_FULL, None): pass", False),
        ("PASSING = frozenset({Reason.STORE_FULL})", False),
        ("'StoreFull'", False),
    ],
)
def test_what_counts_as_setting_a_reason(code: str, counts: bool) -> None:
    assert (Reason.STORE_FULL in set_by(ast.parse(code))) == counts


@pytest.mark.parametrize(
    ("code", "counts"),
    [
        ("assert ready.reason == Reason.COMPLETED", True),
        ("assert ready['reason'] == 'Completed'", True),
        ("world.until(lambda w: w.ready == ('True', Reason.COMPLETED))", True),
        ("ENDS = [('it', Reason.COMPLETED)]\n@pytest.mark.parametrize(('it', 'reason'), ENDS)\ndef test(): pass", True),
        ("ENDS = [('it', Reason.COMPLETED)]", False),
        ("@pytest.mark.parametrize('state', [{'terminated': {'reason': 'Completed'}}])\ndef test(): pass", False),
        ("pod = {'terminated': {'reason': 'Completed'}}", False),
        ("world.answer = failure(Reason.COMPLETED)", False),
    ],
)
def test_what_counts_as_asserting_a_reason(code: str, counts: bool) -> None:
    assert (Reason.COMPLETED in expected_by(ast.parse(code))) == counts
