"""What the tests of this toolchain share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.optimizer.prepare.workbench import Workbench


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    """A claim of its own."""
    return Workbench(tmp_path)
