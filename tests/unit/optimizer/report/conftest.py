"""What the tests of the report share."""

from __future__ import annotations

import pytest
from tests.unit.optimizer.report.run_of_digits import fill, open_store, published


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a finished run's report, drawn once."""
    folder = tmp_path_factory.mktemp("report")
    store = open_store(folder / "store")
    fill(store, folder / "model")
    return published(store)
