"""The closed list of reasons holds nothing that does not happen: each is set by the product, asserted by a test, and explained to people."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fettle.api.reasons import Reason

ROOT = Path(__file__).parents[3]
LIST = ROOT / "operator/fettle/api/reasons.py"


def _code(folder: str, *left_out: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((ROOT / folder).rglob("*.py")) if path not in left_out)


PRODUCT = _code("operator/fettle", LIST)
TESTS = _code("tests", Path(__file__))
TROUBLESHOOTING = (ROOT / "docs/troubleshooting.md").read_text()


def _sections() -> dict[str, str]:
    """Heading of the third level -> what stands under it."""
    parts = re.split(r"^### (.+)$", TROUBLESHOOTING, flags=re.MULTILINE)[1:]
    return {heading.strip(): body for heading, body in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_set_by_the_product(reason: Reason) -> None:
    assert re.search(rf"\bReason\.{reason.name}\b", PRODUCT), f"nothing sets {reason}: remove it, or set it"


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_asserted_by_a_test(reason: Reason) -> None:
    said = rf"\bReason\.{reason.name}\b|[\"']{reason.value}[\"']"
    assert re.search(said, TESTS), f"no test asserts {reason}"


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_explained_to_people(reason: Reason) -> None:
    section = _sections().get(f"`{reason.value}`", "")
    assert len(section.split()) >= 12, (
        f"docs/troubleshooting.md has no section ### `{reason.value}` that says what to do"
    )


def test_no_section_explains_what_is_no_reason() -> None:
    assert {heading.strip("`") for heading in _sections()} == {reason.value for reason in Reason}
