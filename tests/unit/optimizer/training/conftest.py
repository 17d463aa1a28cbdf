"""Training on one core: two that are shared with other tests wait for each other more than they compute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.data import trainable
from tests.unit.optimizer.training.course import Course


@pytest.fixture(scope="package", autouse=True)
def _one_core(operators_gathered_once: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fettle.runtimes.cpu.usable_cores", lambda: 1)
        yield


@pytest.fixture(scope="package")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """A net that knows its digits, prepared once for all of these tests."""
    return Course.of(tmp_path_factory.mktemp("course"), trainable.learned())
