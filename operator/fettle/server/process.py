"""The serving process: management port first, then the model, then the data port; on SIGTERM not ready -> drain -> exit.

The management port has a thread and an event loop of its own: whatever the data port's loop is busy with, probes and windows are answered.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server

from fettle.server.application import Application
from fettle.server.management import Management
from fettle.server.model import ServedModel, load
from fettle.server.replay import Replay
from fettle.server.settings import ServerSettings
from fettle.store.comparison import Outcome

log = logging.getLogger(__name__)


STOP_SECONDS = (
    5.0  # for a port's connections to end once nobody is owed an answer; who does not read his is left behind
)
MOST_HEADERS = 1 << 16  # bytes; more: 431


def _server(target: Any, settings: ServerSettings, port: int) -> Server:
    return Server(
        target,
        address=settings.host,
        port=port,
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(max_buffer_size=MOST_HEADERS),
        websockets=False,
        log_level=LogLevels.error,
        backlog=1024,
    )


class Port:
    """A port in a thread and an event loop of its own."""

    def __init__(self, target: Any, settings: ServerSettings, port: int) -> None:
        self._server = _server(target, settings, port)
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
        await self._server.serve()

    def _finish(self, error: Exception | None) -> None:
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)

    def stop(self) -> None:
        """Stop listening; `done` says when it is over."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._server.stop)


async def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises FettleError when the model cannot be loaded."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    management = Management()
    port = Port(management, settings, settings.management_port)
    beating = asyncio.create_task(_beat(management))
    try:
        model = await _loaded(settings, stop, port.done)
        if model is None:
            return
        application = Application(settings, model)
        data_server = _server(application, settings, settings.port)
        data_task = asyncio.create_task(data_server.serve())
        await asyncio.sleep(0)
        management.application = application
        management.replay = replay = _replay(application)
        await _until_stopped(stop, data_task, port.done)
        await _drain(application, settings.drain_seconds)
        await loop.run_in_executor(None, replay.stop)
        data_server.stop()
        await _ended(data_task, "the data port")
        await application.idle.wait()
        application.close()
        model.close()
    finally:
        beating.cancel()
        port.stop()
        await _ended(port.done, "the management port")


async def _loaded(
    settings: ServerSettings, stop: asyncio.Event, management: asyncio.Future[None]
) -> ServedModel | None:
    """The model, warmed up; None where the process is told to end first: nobody is served yet, so nobody is waited for.

    Raises FettleError when it cannot be loaded, and what ended the management port.
    """
    started = time.perf_counter()
    # In a pool of its own, for whose thread nothing waits at the end of the process.
    pool, told = ThreadPoolExecutor(1), (settings.folder, settings.sha256, settings.threads, settings.max_queue)
    loading = asyncio.get_running_loop().run_in_executor(pool, load, *told)
    await _until_stopped(stop, loading, management)
    if not loading.done():
        log.info("told to end while %s was loading", settings.model)
        return None
    log.info("loaded and warmed up %s in %.2f s", settings.model, time.perf_counter() - started)
    return loading.result()


async def _beat(management: Management) -> None:
    while True:
        management.beat()
        await asyncio.sleep(1)


async def _ended(running: asyncio.Future[None], what: str) -> None:
    """Wait for a port to end; not for ever, for one client who does not read his answer would hold it open."""
    _, waiting = await asyncio.wait({running}, timeout=STOP_SECONDS)
    if waiting:
        log.warning("%s still had open connections after %g s", what, STOP_SECONDS)


def _replay(application: Application) -> Replay:
    """Comparing with the stable revision, begun."""

    def count(outcome: Outcome | None, seconds: float) -> None:
        application.metrics.compare(outcome, seconds)
        if outcome is not None:
            application.windows.compare(outcome)

    replay = Replay(application.settings, application.model, count)
    replay.start()
    return replay


async def _until_stopped(stop: asyncio.Event, *servers: asyncio.Future[Any]) -> None:
    waiting: asyncio.Future[Any] = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({waiting, *servers}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for task in done - {waiting}:
        task.result()  # a port that cannot be bound ends the process with its own error


async def _drain(application: Application, seconds: float) -> None:
    """Keep answering while routes forget this pod, each answer ending its connection; then wait for what is in flight."""
    application.connections.draining = True
    log.info("draining for %s s", seconds)
    await asyncio.sleep(seconds)
    await application.idle.wait()
