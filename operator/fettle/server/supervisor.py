"""A pod's supervisor: it starts the workers that share the ports of the inference protocol, and answers on the management port for all of them.

A worker that ends by itself ends the pod: the others drain, and the supervisor fails with the worker's error, or says which signal ended it. The
kubelet starts the container again, and the operator counts a crash, as it does where there is only one process. If the worker were replaced here, its
counts would be lost, and a canary that crashes now and then would look well.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Pipe
from typing import Any

from fettle.errors import FettleError, RuntimeFailure
from fettle.server.link import SupervisorEnd
from fettle.server.management import Management
from fettle.server.pod_state import PodState, WorkerState
from fettle.server.process import STOP_SECONDS
from fettle.server.processes import share
from fettle.server.settings import ServerSettings
from fettle.server.state import Condition

log = logging.getLogger(__name__)


class Worker:
    """A worker's process, and what is known of it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, state: WorkerState) -> None:
        self.name, self.process, self.state = name, process, state

    @classmethod
    async def start(cls, name: str, settings: ServerSettings, changed: Callable[[], None]) -> Worker:
        """A new process that works by `settings`. `changed` is called when more is known of it."""
        ours, theirs = Pipe()
        command = [sys.executable, "-m", "fettle.server", "worker", str(theirs.fileno())]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            preexec_fn=os.setpgrp,  # Ctrl-C is for the supervisor, which lets it drain; in a session of its own, Linux schedules it as a stranger
        )
        theirs.close()
        with contextlib.suppress(OSError):  # it has ended already, which is seen
            ours.send(settings)
        return cls(name, process, WorkerState(SupervisorEnd(ours), changed))

    @property
    def leaves(self) -> bool:
        """Whether it drains, or has ended."""
        return self.process.returncode is not None or self.state.condition is Condition.DRAINING

    def stop(self) -> None:
        """Let it drain and end."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    async def ended(self) -> None:
        """Wait until it has ended, and all that it said was heard."""
        await self.process.wait()
        await self.state.link.closed

    def fault(self) -> FettleError | None:
        """Why it failed, once it has ended; None if it did not."""
        status = self.process.returncode or 0
        if self.state.link.failure is not None:
            return self.state.link.failure
        # Before a worker listens to SIGTERM, it ends at once: by the signal, and once its interpreter has begun to import with a status.
        # A worker that nobody had told to end is found by the supervisor.
        if status in (0, 128 + signal.SIGTERM, -signal.SIGTERM):
            return None
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return RuntimeFailure(f"{self.name} {how}; see the server's log")


class Supervisor:
    """See the module. `on_ready` is called once all workers answer requests."""

    def __init__(self, settings: ServerSettings, count: int, on_ready: Callable[[], None]) -> None:
        self._settings, self._count, self._on_ready = settings, count, on_ready
        self._state = PodState()
        self._workers: list[Worker] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._told_to_end = False

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain. Raises FettleError if a worker failed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        management = Management(self._settings, self._state)
        serving = self._task(management.serve())
        try:
            await self._start()
            await self._until_over(serving)
            early = [worker.name for worker in self._workers if worker.leaves and not self._told_to_end]
        finally:
            await self._drain()
            management.stop()
            await asyncio.wait({serving}, timeout=STOP_SECONDS)
        self._raise_fault(early)
        if serving.done():
            serving.result()  # such as a port that is taken

    def _end(self) -> None:
        self._told_to_end = True
        self._changed.set()

    def _task(self, work: Any) -> asyncio.Task[None]:
        """Run something whose end is a change."""
        task = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._changed.set())
        self._tasks.append(task)
        return task

    async def _start(self) -> None:
        # They log what is logged here: `fettle serve` wants less than its settings say.
        level = logging.getLevelName(logging.getLogger().level).lower()
        settings = self._settings.model_copy(update={"log_level": level})
        for number in range(self._count):
            name = f"process {number + 1} of {self._count}"
            worker = await Worker.start(name, share(settings, self._count, number), self._changed.set)
            self._workers.append(worker)
            self._task(worker.state.watch())
            self._task(worker.ended())
        self._state.workers = [worker.state for worker in self._workers]

    async def _until_over(self, serving: asyncio.Future[None]) -> None:
        ready = False
        while not (self._told_to_end or serving.done() or any(worker.leaves for worker in self._workers)):
            await self._changed.wait()
            self._changed.clear()
            if not ready and self._state.condition is Condition.READY:
                ready = True
                log.info("%d processes share the ports", self._count)
                self._on_ready()

    async def _drain(self) -> None:
        self._state.draining = True
        for worker in self._workers:
            worker.stop()
        await asyncio.gather(*(worker.ended() for worker in self._workers))

    def _raise_fault(self, early: list[str]) -> None:
        """Raises FettleError if a worker failed, or ended `early` without being told to."""
        for worker in self._workers:
            fault = worker.fault()
            if fault is not None:
                raise fault
        if early:
            raise RuntimeFailure(f"{early[0]} ended, although nobody told it to")
