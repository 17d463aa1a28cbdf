"""What the pod of `fettle push` and `fettle pull` runs, as a process of this machine over pipes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


class Pipe:
    """The process's ends: a `Wire`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout

    def send(self, data: bytes) -> None:
        """Write to its stdin."""
        self._stdin.write(data)
        self._stdin.flush()

    def line(self) -> str:
        """The next line of its stdout."""
        return self._stdout.readline().decode()

    def read(self, size: int) -> bytes:
        """The next `size` bytes of its stdout."""
        return self._stdout.read(size)


class Silent:
    """The ends of a process that is gone: a `Wire`."""

    def send(self, data: bytes) -> None:
        """Nobody reads it."""

    def line(self) -> str:
        """Nothing."""
        return ""

    def read(self, size: int) -> bytes:
        """Nothing."""
        return b""


@contextmanager
def running(program: ModuleType, root: Path) -> Iterator[Pipe]:
    """`program`, sent as text as the pod gets it, with `root` for the claim."""
    assert program.__file__ is not None
    command = [sys.executable, "-I", "-c", Path(program.__file__).read_text(), str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Pipe(process)
        finally:
            process.kill()
