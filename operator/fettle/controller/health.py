"""The health port: /healthz, /readyz and /metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from fettle.controller.metrics import REGISTRY


@dataclass
class Health:
    """What the probes look at. Times are monotonic seconds; None = does not apply now."""

    patience: float
    election_turned_at: Callable[[], float]
    queue_turned_at: Callable[[], float] | None = None
    watch_seen_at: float | None = None
    leading: bool = False
    synced: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = monotonic

    def why_dead(self) -> str:
        """What has not moved for `patience` seconds; empty when all is well."""
        now = self.clock()
        signs = {"election": self.election_turned_at()}
        if self.leading:
            if self.queue_turned_at is not None:
                signs["queue"] = self.queue_turned_at()
            if self.watch_seen_at is not None:
                signs["watch of the Lease"] = self.watch_seen_at
        silent = [f"{name}: no progress for {now - at:.0f} s" for name, at in signs.items() if now - at > self.patience]
        return "; ".join(silent)

    def ready(self) -> bool:
        """A standby is ready; a leader once it has listed everything."""
        return not self.leading or self.synced()


@asynccontextmanager
async def serve(health: Health, host: str, port: int, before_metrics: Callable[[], None]) -> AsyncIterator[int]:
    """Answer on the health port while the context lasts; yields the port (asked 0 = any). `before_metrics` brings gauges up to date."""

    async def healthz(_: web.Request) -> web.Response:
        cause = health.why_dead()
        return web.Response(text=cause or "ok", status=503 if cause else 200)

    async def readyz(_: web.Request) -> web.Response:
        ready = health.ready()
        return web.Response(text="ok" if ready else "listing", status=200 if ready else 503)

    async def metrics(_: web.Request) -> web.Response:
        before_metrics()
        return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound: int = runner.addresses[0][1]
        yield bound
    finally:
        await runner.cleanup()
