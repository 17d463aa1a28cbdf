"""What goes on beside the demo, in a thread, as long as a `with` block runs."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from tools.demo.kube import DemoError


class Background:
    """Calls `turn` every `every` seconds until the block ends, and waits for the last call. What one raises ends the block with a DemoError."""

    def __init__(self, name: str, every: float) -> None:
        self.every = every
        self._ended = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        # It may be why the block failed. Whoever interrupts it knows why.
        if self._error is not None and (kind is None or issubclass(kind, Exception)):
            raise DemoError(f"{self._thread.name}: {self._error!r}") from self._error

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than the block lasts."""
        self._ended.wait(seconds)

    def _run(self) -> None:
        try:
            while not self._ended.wait(self.every):
                self.turn()
        except Exception as error:  # noqa: BLE001  the block's end tells it
            self._error = error

    def turn(self) -> None:
        """What is done each time."""
        raise NotImplementedError
