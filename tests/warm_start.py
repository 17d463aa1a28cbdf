"""What a process of `tests/warm.py` does first. It imports nothing that its program does not need."""

from __future__ import annotations

import gc
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.reduction import DupFd
from typing import Any


@dataclass
class Start:
    """How `python -m` starts it: `streams` are its stdout and stderr, `passed` more descriptors, which its arguments name."""

    module: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    streams: tuple[int, int]
    passed: Sequence[int] = ()
    session: bool = False
    cores: Sequence[int] = field(default=())

    def __getstate__(self) -> dict[str, Any]:
        """Descriptors go with it, and have other numbers there."""
        streams, passed = tuple(map(DupFd, self.streams)), {str(number): DupFd(number) for number in self.passed}
        return {**vars(self), "streams": streams, "passed": passed}

    def __call__(self) -> None:
        """Be that process."""
        gc.freeze()  # what was imported is nothing to look through again
        for number, copy in enumerate(self.streams, start=1):
            came = copy.detach()  # type: ignore[attr-defined]
            os.dup2(came, number)
            os.close(came)
        numbers = {before: str(copy.detach()) for before, copy in self.passed.items()}  # type: ignore[attr-defined]
        os.environ.clear()
        os.environ.update(self.environment)
        if self.session:
            os.setsid()
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        sys.argv = [self.module, *(numbers.get(argument, argument) for argument in self.arguments)]
        runpy.run_module(self.module, run_name="__main__", alter_sys=True)
