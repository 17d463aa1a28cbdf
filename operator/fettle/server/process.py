"""The serving process: management port first, then the model, then the data port; on SIGTERM not ready -> drain -> exit."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels
from granian.server.embed import Server

from fettle.server.application import Application
from fettle.server.management import Management
from fettle.server.model import load
from fettle.server.replay import Replay
from fettle.server.settings import ServerSettings
from fettle.store.comparison import Outcome

log = logging.getLogger(__name__)


def _server(target: Any, settings: ServerSettings, port: int) -> Server:
    return Server(
        target,
        address=settings.host,
        port=port,
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,
        websockets=False,
        log_level=LogLevels.error,
        backlog=1024,
    )


async def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises FettleError when the model cannot be loaded."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    management = Management()
    management_server = _server(management, settings, settings.management_port)
    management_task = asyncio.create_task(management_server.serve())
    try:
        started = time.perf_counter()
        model = await loop.run_in_executor(
            None, load, settings.folder, settings.sha256, settings.threads, settings.max_queue
        )
        log.info("loaded and warmed up %s in %.2f s", settings.model, time.perf_counter() - started)
        application = Application(settings, model)
        data_server = _server(application, settings, settings.port)
        data_task = asyncio.create_task(data_server.serve())
        await asyncio.sleep(0)
        management.application = application
        management.replay = replay = _replay(application, loop)
        await _until_stopped(stop, data_task, management_task)
        await _drain(application, settings.drain_seconds)
        await loop.run_in_executor(None, replay.stop)
        data_server.stop()
        await data_task
        model.close()
    finally:
        management_server.stop()
        await management_task


def _replay(application: Application, loop: asyncio.AbstractEventLoop) -> Replay:
    """Comparing with the stable revision, begun. Its windows are touched by the event loop only."""

    def count(outcome: Outcome | None, seconds: float) -> None:
        application.metrics.compare(outcome, seconds)
        if outcome is not None:
            loop.call_soon_threadsafe(application.windows.compare, outcome)

    replay = Replay(application.settings, application.model, count)
    replay.start()
    return replay


async def _until_stopped(stop: asyncio.Event, *servers: asyncio.Task[None]) -> None:
    waiting = asyncio.create_task(stop.wait())
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
