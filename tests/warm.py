"""Processes of ours that have their imports behind them, where a test is about what they do and not about how they start.

`python -m fettle.…` imports for half a second, and for several with PyTorch: longer than most tests take, and some hundred measurements start
five or more. Here such a process is forked from one that has imported and done nothing else, so that memory, descriptors and signals are its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from types import ModuleType, SimpleNamespace
from typing import IO

import pytest
from tests.warm_start import Start

CONTEXT = multiprocessing.get_context("forkserver")


def imported(*modules: str) -> None:
    """What is imported before the first process starts: by their programs, but not the programs, which run as `__main__`."""
    CONTEXT.set_forkserver_preload([*modules])


class Popen:
    """What is used of `subprocess.Popen`, for [sys.executable, "-m", MODULE, …] with nothing on its stdin. `cores`: those that it may use."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | IO[str] | None = None,
        start_new_session: bool = False,
        cores: Sequence[int] = (),
    ) -> None:
        assert (command[0], command[1], stdin) == (sys.executable, "-m", subprocess.DEVNULL)
        read, written = os.pipe() if stdout == subprocess.PIPE else (-1, 1 if stdout is None else stdout)
        error = 2 if stderr is None else stderr if isinstance(stderr, int) else stderr.fileno()
        told = dict(os.environ if env is None else env)
        start = Start(command[2], command[3:], told, (written, error), pass_fds, start_new_session, cores)
        self._process = CONTEXT.Process(target=start, daemon=True)  # it does not outlive this one
        self._process.start()
        self.stdout: TextIOWrapper | None = None
        if read >= 0:
            os.close(written)
            self.stdout = os.fdopen(read)
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        """Its exit status, or minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        """The same."""
        return self.poll()

    def wait(self, timeout: float | None = None) -> int:
        """The same, once it has ended."""
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it writes to stdout, to its end."""
        assert self.stdout is not None
        with self.stdout as stream:
            out = stream.read()
        self.wait(timeout)
        return out, None

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


@contextmanager
def warm(module: ModuleType) -> Iterator[None]:
    """What that module starts begins so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": Popen}))
        yield
