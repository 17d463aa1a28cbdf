"""What goes on beside the demo, in a thread, as long as a `with` block runs."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self


class Background:
    """Calls `turn` every `every` seconds until the block ends, and waits for the last call."""

    def __init__(self, name: str, every: float) -> None:
        self.every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self.every):
            self.turn()

    def turn(self) -> None:
        """What is done each time."""
        raise NotImplementedError
