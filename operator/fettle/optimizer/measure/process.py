"""The measuring process's side of a worker: start it, send it requests, stop and continue it, and say why it died."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from fettle.api.executed import Executed
from fettle.api.reasons import Reason
from fettle.errors import RuntimeFailure
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.protocol import (
    Block,
    Judge,
    Load,
    Loaded,
    MapItems,
    Mapped,
    Memory,
    PeakMemory,
    Profile,
    RunItems,
    Runs,
    WorkerFailure,
    WorkerRequest,
)
from fettle.runtimes.base import Array

LOAD_SECONDS = 600.0  # a worker that says nothing for that long hangs
RUN_SECONDS = 300.0
CHILD = "fettle.optimizer.measure.worker"
Reply = TypeVar("Reply")


class WorkerDied(RuntimeFailure):
    """The process is gone: it crashed, was killed, or hung and was killed by us."""

    default_reason = Reason.JOB_FAILED


class WorkerProcess:
    """A worker. Every method raises RuntimeFailure if the model fails, and WorkerDied if the process does."""

    def __init__(self, name: str = "") -> None:
        """`name` is shown in the list of processes."""
        ours, theirs = multiprocessing.Pipe()
        # Its standard output is our standard error: the last line of ours is the Job's answer, and libraries talk.
        self._process = subprocess.Popen(
            [sys.executable, "-m", CHILD, str(theirs.fileno()), name],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,
        )
        theirs.close()
        self._connection = ours
        self._stopped = False
        self.alone = False  # items are timed one by one: an answer of this model depends on the other items of its run

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def load(self, request: Load) -> None:
        """Load the model with the requested settings."""
        self._ask(request, Loaded, LOAD_SECONDS)

    def map_items(self, files: Mapping[str, Path]) -> None:
        """Use these items from now on."""
        self._ask(MapItems(files), Mapped, LOAD_SECONDS)

    def answers(self, request: Judge) -> list[Answer]:
        """Answers to items, in order."""
        answers: list[Answer] = self._ask(request, list, RUN_SECONDS)
        return answers

    def run(self, request: RunItems) -> dict[str, Array]:
        """One run's outputs, as the model gives them."""
        outputs: dict[str, Array] = self._ask(request, dict, RUN_SECONDS)
        return outputs

    def block(self, request: Block) -> Runs:
        """Milliseconds of timed runs."""
        return self._ask(replace(request, alone=self.alone), Runs, RUN_SECONDS + 2 * request.seconds)

    def executed(self) -> Executed:
        """Precision in which its compute nodes run."""
        return self._ask(Profile(), Executed, LOAD_SECONDS)

    def peak_memory(self) -> int:
        """Peak resident bytes so far."""
        return self._ask(Memory(), PeakMemory, RUN_SECONDS).peak_memory_bytes

    def stop(self) -> None:
        """Stop it (SIGSTOP) with its spinning threads, so that it takes no time from another candidate."""
        if not self._stopped and self._process.poll() is None:
            self._process.send_signal(signal.SIGSTOP)
            self._stopped = True

    def wake(self) -> None:
        """Let it run again."""
        if self._stopped:
            self._process.send_signal(signal.SIGCONT)
            self._stopped = False

    def close(self) -> None:
        """End it, in whatever state it is. May be called twice."""
        self._connection.close()
        if self._process.poll() is None:
            self._process.kill()  # it holds nothing that needs a goodbye, and a kill reaches a stopped process too
        self._process.wait()

    def _ask(self, request: WorkerRequest, kind: type[Reply], seconds: float) -> Reply:
        self.wake()
        try:
            self._connection.send(request)
            if not self._connection.poll(seconds):
                self._process.kill()
                self._process.wait()
                message = f"{_verb(request)} did not finish within {seconds:.0f} s, so its process was killed"
                raise WorkerDied(message, reason=Reason.DEADLINE_EXCEEDED)
            reply: Any = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise self._death(request) from error
        if isinstance(reply, WorkerFailure):
            raise RuntimeFailure(reply.message, reason=reply.reason)
        if not isinstance(reply, kind):
            raise WorkerDied(f"{_verb(request)} was answered with {type(reply).__name__}, expected {kind.__name__}")
        return reply

    def _death(self, request: WorkerRequest) -> WorkerDied:
        status = self._process.wait()
        if status == -signal.SIGKILL:
            why = "the process was killed, most likely because it ran out of memory: raise resources.limits.memory"
            message = f"{_verb(request)}: {why}"
            return WorkerDied(message, reason=Reason.OUT_OF_MEMORY)
        how = f"of {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
        reason = Reason.MODEL_LOAD_FAILED if isinstance(request, Load) else Reason.JOB_FAILED
        return WorkerDied(f"{_verb(request)}: the process died {how}", reason=reason)


def _verb(request: WorkerRequest) -> str:
    verbs = {Load: "loading the model", Judge: "judging", RunItems: "running", Block: "timing", Profile: "profiling"}
    return verbs.get(type(request), "asking")
