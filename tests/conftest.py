"""What every test runs under."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

# As many test processes run as there are cores: threads of numpy's products would only wait for each other. Before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.toolchains.preparing import Preparer

# A machine under load is slow, not wrong: no example has a deadline of its own.
settings.register_profile("fettle", deadline=None)
settings.load_profile("fettle")

TEARDOWN_SECONDS = 600


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """A test that failed has no timeout any more (pytest takes it away for a debugger), so a teardown that hangs would hang for ever:
    here it ends the process, and the run goes on in another."""
    faulthandler.dump_traceback_later(TEARDOWN_SECONDS, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def preparing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preparer]:
    """Prepares damaged files in a process of its own: those of the project's own formats and of every toolchain."""
    from tests.toolchains.preparing import Preparer

    with closing(Preparer(tmp_path_factory.mktemp("preparing"))) as made:
        yield made
