"""An event loop whose clock jumps to the next timer instead of waiting for it."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class JumpingSelector(selectors.DefaultSelector):
    """Never waits: the time it should have waited is added to the clock."""

    elapsed = 0.0

    def select(self, timeout: float | None = None) -> Any:
        """What is ready now."""
        if timeout is not None:
            self.elapsed += timeout
        return super().select(0 if timeout is not None else None)


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0 and moves only when nothing is left to do."""

    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._jumping.elapsed


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run` in fake time."""
    with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
        return runner.run(main)
