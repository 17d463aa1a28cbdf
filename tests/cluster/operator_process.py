"""The operator as a process of its own, against the tests' API server, watching one namespace only."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
from tests.warm import Popen
from tools.ports import free_port

Value = TypeVar("Value")


async def eventually(look: Callable[[], Awaitable[Value]], seconds: float = 60.0) -> Value:
    """What `look` returns once it is neither None nor False nor empty."""
    last: Value | None = None
    async with asyncio.timeout(seconds):
        while True:
            last = await look()
            if last:
                return last
            await asyncio.sleep(0.1)


@dataclass
class OperatorProcess:
    """A running replica."""

    process: Popen
    port: int
    log: Path

    async def get(self, path: str) -> httpx.Response:
        """GET on the health port."""
        async with httpx.AsyncClient() as http:
            return await http.get(f"http://127.0.0.1:{self.port}{path}", timeout=5)

    async def answers(self) -> bool:
        """Whether its health port answers. AssertionError when it ended instead."""
        assert self.process.returncode is None, f"exit status {self.process.returncode}"
        try:
            return (await self.get("/healthz")).status_code > 0
        except httpx.TransportError:
            return False

    async def leads(self) -> bool:
        """Whether it holds the Lease and has listed everything. AssertionError when it ended instead."""
        assert self.process.returncode is None, f"exit status {self.process.returncode}"
        try:
            metrics, ready = await self.get("/metrics"), await self.get("/readyz")
        except httpx.TransportError:
            return False
        return "fettle_leader 1.0" in metrics.text and ready.status_code == 200

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit status."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        """The exit status, once it has ended."""
        return await asyncio.to_thread(self.process.wait, 40)

    def text(self) -> str:
        """Everything it logged."""
        return self.log.read_text()


@asynccontextmanager
async def operator(kubeconfig: str, namespace: str, **settings: object) -> AsyncIterator[OperatorProcess]:
    """Run a replica that serves `namespace` and keeps its Lease there; killed at the end if it still runs."""
    port = free_port()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("FETTLE_")},
        "FETTLE_KUBECONFIG": kubeconfig,
        "FETTLE_NAMESPACE": namespace,
        "FETTLE_WATCH_NAMESPACES": namespace,
        "FETTLE_HEALTH_HOST": "127.0.0.1",
        "FETTLE_HEALTH_PORT": str(port),
        "FETTLE_LOG_LEVEL": "INFO",
        **{f"FETTLE_{key.upper()}": str(value) for key, value in settings.items()},
    }
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        process = Popen(
            (sys.executable, "-m", "fettle.controller"), env=environment, stdout=log.fileno(), stderr=log.fileno()
        )
        running = OperatorProcess(process, port, Path(log.name))
        try:
            yield running
        except BaseException:
            sys.stderr.write(running.text())
            raise
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
