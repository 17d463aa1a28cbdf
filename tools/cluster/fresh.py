"""A cluster for one command: empty when it starts, stopped when it ends, whatever becomes of it.

Tests and benchmarks run in it, so that they find the same room each time, and fill nobody's cluster.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from tools.cluster import images, lifecycle
from tools.cluster.errors import InUseError, TakenError
from tools.cluster.paths import Paths
from tools.cluster.shell import Progress
from tools.cluster.target import resolve_target

ENDING_SECONDS = 30.0  # for what a command started to end once it was told to
_ENDING = (signal.SIGTERM, signal.SIGHUP)


def run(paths: Paths, command: Sequence[str], names: Sequence[str], progress: Progress) -> int:
    """Exit status of a command that has the cluster to itself, with the named images in its registry.

    Raises InUseError while another command has it, TakenError while another checkout's runs.
    """
    with in_use(paths), _ended_by_signal():
        try:
            lifecycle.up(paths, progress, empty=True)
            if names:
                images.build(paths, resolve_target({}, paths), progress, names)
            progress(f"up until {Path(command[0]).name} ends: export KUBECONFIG={paths.kubeconfig}")
            return play(command)
        finally:
            with _undisturbed(), contextlib.suppress(TakenError):
                lifecycle.down(paths, progress)


def play(command: Sequence[str]) -> int:
    """Run a command to its end; its exit status. It is told to end when this process is, with all that it started."""
    descendants: list[psutil.Process] = []
    with subprocess.Popen(command) as child:

        def tell(number: int, _: types.FrameType | None) -> None:
            # A shell that is told to end leaves what it runs behind. It is told first, lest it goes on to its next command.
            with contextlib.suppress(psutil.NoSuchProcess):
                descendants.extend(psutil.Process(child.pid).children(recursive=True))
            child.send_signal(number)
            for descendant in descendants:
                with contextlib.suppress(psutil.NoSuchProcess):
                    descendant.send_signal(number)

        with _handling(tell, *_ENDING), _handling(_let_the_child_decide, signal.SIGINT):
            status = child.wait()
    psutil.wait_procs(descendants, ENDING_SECONDS)
    return status if status >= 0 else 128 - status


@contextlib.contextmanager
def in_use(paths: Paths) -> Iterator[None]:
    """While a command has the cluster. The lock ends with the process that holds it. Raises InUseError."""
    file = paths.folder / "in-use"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            raise InUseError(paths.cluster.name, handle.read()) from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _let_the_child_decide(number: int, frame: types.FrameType | None) -> None:
    """A terminal interrupts the child as well: what it makes of that is the end to wait for."""


def _exit(number: int, _: types.FrameType | None) -> None:
    raise SystemExit(128 + number)


def _ended_by_signal() -> contextlib.AbstractContextManager[None]:
    """Being told to end is an exception, so that what was started is stopped."""
    return _handling(_exit, *_ENDING)


def _undisturbed() -> contextlib.AbstractContextManager[None]:
    """Stopping takes seconds: a second interrupt does not leave half of the cluster."""
    return _handling(_let_the_child_decide, signal.SIGINT, *_ENDING)


@contextlib.contextmanager
def _handling(handler: object, *numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
