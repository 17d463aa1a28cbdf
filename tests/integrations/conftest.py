"""A cluster of its own for the tests with other systems: `make test-integrations`."""

from __future__ import annotations

import pytest
from tools.cluster.paths import INTEGRATIONS, checkout
from tools.cluster.target import Target, resolve_target


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs the whole cluster."""
    for item in items:
        if "tests/integrations" in str(item.path):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def target() -> Target:
    """The embedded cluster of these tests, or the one that FETTLE_KUBECONFIG names."""
    return resolve_target(paths=checkout(INTEGRATIONS))
