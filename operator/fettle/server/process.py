"""A serving process: it starts the management port, then the model, then the fronts. On SIGTERM, it becomes not ready, drains and exits.

The management port has its own thread and event loop, so that probes and windows are answered even if the loop of the data ports is busy.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from fettle.runtimes import cpu
from fettle.server.management import Management
from fettle.server.model import Batching, ServedModel, load
from fettle.server.replay import Replay
from fettle.server.reviews import require_permission
from fettle.server.service import InferenceService
from fettle.server.settings import ServerSettings
from fettle.server.state import ProcessState
from fettle.store.comparison import Outcome

log = logging.getLogger(__name__)

# For a port's connections to end once nobody is owed an answer; a client that does not read its own is left behind.
STOP_SECONDS = 5.0


class Front(Protocol):
    """A protocol for requests. It passes inference requests to `InferenceService.infer`, and requests that need no model to `tell`."""

    async def serve(self) -> None:
        """Listen in the event loop of the service until `stop`, and until connections have ended. Raises if it cannot listen."""

    async def begun(self) -> None:
        """Wait until it listens."""

    def drain(self) -> None:
        """The pod is draining: keep answering requests, and tell clients to reconnect elsewhere."""

    def stop(self) -> None:
        """Stop listening."""


# Modules, each with a `FRONT`. They are imported while the model is loaded: grpc alone takes as long as a small model.
FRONTS = ("fettle.server.http", "fettle.server.rpc")
MakeFront = Callable[[InferenceService], Front]


class StatePort(Protocol):
    """Where the state of this process is told. `done` completes when that ends: by `stop`, or because nobody asks any more."""

    done: asyncio.Future[None]

    def stop(self) -> None:
        """Complete `done`, once what is being told has been."""


Manage = Callable[[ProcessState, ServerSettings], StatePort]


class ManagementPort:
    """The management port, in a thread and an event loop of its own."""

    def __init__(self, state: ProcessState, settings: ServerSettings) -> None:
        self._management = Management(settings, state)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.done = asyncio.get_running_loop().create_future()
        threading.Thread(target=self._run, args=(asyncio.get_running_loop(),), name="management", daemon=True).start()

    def _run(self, main: asyncio.AbstractEventLoop) -> None:
        error: Exception | None = None
        try:
            asyncio.run(self._serve())
        except Exception as raised:  # such as a port that cannot be bound: it ends the process
            log.exception("the management port failed")
            error = raised
        main.call_soon_threadsafe(self._finish, error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._management.serve()

    def _finish(self, error: Exception | None) -> None:
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)

    def stop(self) -> None:
        """Stop listening; `done` completes when that is over."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._management.stop)


async def serve(
    settings: ServerSettings,
    on_ready: Callable[[ServedModel], None] = lambda model: None,
    manage: Manage = ManagementPort,
) -> None:
    """Serve until SIGTERM or SIGINT, or until the port of `manage` ends, then drain. `on_ready` is called once requests are answered.

    Raises FettleError when the model cannot be loaded, or was lost while it served.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    state = ProcessState()
    port = manage(state, settings)
    beating = asyncio.create_task(_beat(state))
    permission = asyncio.create_task(require_permission(settings))
    try:
        importing = loop.run_in_executor(None, _imported_fronts)
        model = await _loaded(settings, stop, port.done, permission)
        if model is None:
            return
        made = await importing
        gc.collect()
        gc.freeze()  # what is there now stays: a full collection would look at all of it again, in the middle of a request
        service = InferenceService(settings, model)
        fronts = [front(service) for front in made]
        serving = [asyncio.create_task(front.serve()) for front in fronts]
        await _begun(stop, fronts, *serving, port.done)
        state.service = service
        state.replay = replay = _replay(service)
        if service.request_log is not None:
            service.request_log.start()
        on_ready(model)
        await _until_stopped(stop, *serving, port.done)
        await _drain(service, fronts, settings.drain_seconds)
        await loop.run_in_executor(None, replay.stop)
        for front in fronts:
            front.stop()
        await _ended("the data port", *serving)
        await service.finish()
        service.close()
        model.close()
        if model.lost is not None:
            raise model.lost  # an end with status 0 would be nobody's fault, and its revision might be promoted
    finally:
        beating.cancel()
        permission.cancel()
        port.stop()
        await _ended("the management port", port.done)


async def _begun(stop: asyncio.Event, fronts: Sequence[Front], *ports: asyncio.Future[None]) -> None:
    """Wait until each front listens, or the process is told to stop. Raises what keeps one from it: a pod whose port is taken is never ready."""
    listening = asyncio.gather(*(front.begun() for front in fronts))
    try:
        await _until_stopped(stop, listening, *ports)
    finally:
        listening.cancel()


def _imported_fronts() -> list[MakeFront]:
    return [importlib.import_module(name).FRONT for name in FRONTS]


async def _loaded(
    settings: ServerSettings, stop: asyncio.Event, management: asyncio.Future[None], permission: asyncio.Future[None]
) -> ServedModel | None:
    """The warmed-up model, if the pod has the `permission` that it needs; None if the process is told to end first. No drain is needed then,
    because nobody is served yet.

    Raises FettleError if the model cannot be loaded or the permission is missing, and the error that ended the management port.
    """
    started = time.perf_counter()
    # In a pool of its own, for whose thread nothing waits at the end of the process.
    pool, artifact = ThreadPoolExecutor(1), (settings.folder, settings.sha256)
    batching = Batching(settings.batch_max_size, settings.batch_max_delay_milliseconds / 1000)
    cores = max(1, cpu.usable_cores() // settings.sharers)
    told = (*artifact, settings.threads, settings.max_queue, batching, cores)
    loading = asyncio.get_running_loop().run_in_executor(pool, load, *told)
    for needed in (permission, loading):
        await _until_stopped(stop, needed, management)
        if not needed.done():
            log.info("stopped while %s was loading", settings.model)
            return None
    log.info("loaded and warmed up %s in %.2f s", settings.model, time.perf_counter() - started)
    return loading.result()


async def _beat(state: ProcessState) -> None:
    while True:
        state.beat()
        await asyncio.sleep(1)


async def _ended(what: str, *running: asyncio.Future[None]) -> None:
    """Wait for ports to close, with a limit, because a client that does not read its response would keep them open."""
    _, waiting = await asyncio.wait(running, timeout=STOP_SECONDS)
    if waiting:
        log.warning("%s still had open connections after %g s", what, STOP_SECONDS)


def _replay(service: InferenceService) -> Replay:
    """Start the comparison with the stable revision."""

    def count(outcome: Outcome | None, seconds: float) -> None:
        service.metrics.compare(outcome, seconds)
        if outcome is not None:
            service.windows.compare(outcome)

    replay = Replay(service.settings, service.model, count)
    replay.start()
    return replay


async def _until_stopped(stop: asyncio.Event, *servers: asyncio.Future[Any]) -> None:
    waiting: asyncio.Future[Any] = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({waiting, *servers}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for task in done - {waiting}:
        task.result()  # a port that cannot be bound ends the process with its own error


async def _drain(service: InferenceService, fronts: Sequence[Front], seconds: float) -> None:
    """Keep answering until this pod is removed from all routes; then wait for requests in flight."""
    service.draining = True
    for front in fronts:
        front.drain()
    log.info("draining for %s s", seconds)
    await asyncio.sleep(seconds)
    await service.finish()
