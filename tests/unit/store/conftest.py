"""What the tests of addresses outside have in common."""

from __future__ import annotations

import pytest
from tests.servers.retries import retry_soon

from fettle.store import remote


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients try again at once."""
    retry_soon(monkeypatch)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a quarter of a megabyte takes several requests."""
    monkeypatch.setattr(remote, "PART", 64 << 10)
