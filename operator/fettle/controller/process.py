"""The operator's process. It starts the health port, acquires the Lease, lists all objects, and starts kopf and the queue; SIGTERM stops them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Coroutine, Mapping
from time import monotonic
from typing import Any

import kopf

from fettle.cluster.cache import Cache
from fettle.cluster.client import Client
from fettle.cluster.events import EventRecorder
from fettle.cluster.kinds import MODEL_DEPLOYMENT, OPTIMIZED_MODEL, WATCHED, Object
from fettle.cluster.lease import Elector, LeaseLostError, LeaseTiming
from fettle.cluster.owner import Key
from fettle.cluster.sync import list_until_done, resync
from fettle.controller import health, metrics
from fettle.controller.context import Context, Reconciler
from fettle.controller.handlers import Feed, kopf_settings, registry
from fettle.controller.queue import Queue
from fettle.settings import Settings

logger = logging.getLogger(__name__)

FIRST_RESYNC = 20.0  # seconds after the watches began
STOP_PATIENCE = 10.0  # seconds for kopf to end its streams


class Process:
    """All parts of one replica."""

    def __init__(self, settings: Settings, client: Client, reconcilers: Mapping[str, Reconciler]) -> None:
        self.settings = settings
        self.client = client
        self.cache = Cache()
        client.on_write = self.cache.put
        client.on_delete = self.cache.drop
        self.context = Context(settings, client, self.cache, EventRecorder(client))
        self.reconcilers = reconcilers
        self.queue = Queue(self._reconcile, workers=settings.workers)
        self.feed = Feed(self.cache, self._enqueue, settings.serves)
        self.elector = Elector(
            client,
            settings.namespace,
            settings.lease_name,
            settings.identity,
            LeaseTiming(
                duration=settings.lease_duration_seconds,
                renew=settings.lease_renew_seconds,
                retry=settings.lease_retry_seconds,
            ),
        )
        client.may_write = lambda: self.elector.seconds_left
        self.health = health.Health(
            patience=settings.liveness_seconds,
            election_turned_at=lambda: self.elector.turned_at,
            queue_turned_at=lambda: self.queue.turned_at,
            synced=lambda: self.cache.synced,
        )
        self.listed = asyncio.Event()
        self.stop = asyncio.Event()

    async def run(self) -> int:
        """Run until `stop` is set (returns 0), or until an essential part ends (returns 1)."""
        settings = self.settings
        async with health.serve(self.health, settings.health_host, settings.health_port, self._measure) as port:
            logger.info(
                "serving health on port %d; waiting for the Lease %s/%s", port, settings.namespace, settings.lease_name
            )
            await first_of(self.elector.acquire(), self.stop.wait())
            if self.stop.is_set():
                await self.elector.release()
                return 0
            self.health.leading = True
            self.health.watch_seen_at = monotonic()
            metrics.LEADER.set(1)
            return await self._lead()

    async def _lead(self) -> int:
        """Run as the leader. On a stop, writes end first, then the Lease is released, and then kopf may take its time to end."""
        holding = asyncio.create_task(self._hold(), name="hold the Lease")
        working = asyncio.create_task(self._work(), name="work")
        kopf_stop = asyncio.Event()
        watching = asyncio.create_task(self._watch(kopf_stop), name="watch")
        stopping = asyncio.create_task(self.stop.wait(), name="wait for the signal")
        tasks = (holding, working, watching, stopping)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            failed = [task for task in done if task is not stopping]
            for task in failed:
                logger.error("task '%s' ended: %r", task.get_name(), task.exception())
            return 1 if failed else 0
        finally:
            await cancelled(working)
            await cancelled(holding)
            await self.elector.release()
            kopf_stop.set()
            await asyncio.wait({watching}, timeout=STOP_PATIENCE if self.listed.is_set() else 0)
            await cancelled(watching)
            await cancelled(stopping)

    async def _hold(self) -> None:
        """Hold the Lease. Once it is lost, another replica may already write, so nothing here may continue, not even clean-up."""
        try:
            await self.elector.hold()
        except LeaseLostError as error:
            logger.critical("lost the Lease, exiting at once: %s", error)
            logging.shutdown()
            os._exit(1)

    async def _work(self) -> None:
        """List all objects, then run the queue and the resync."""
        settings = self.settings
        await list_until_done(self.client, self.cache, settings, self.feed.touch, settings.lease_retry_seconds)
        self.listed.set()
        logger.info("the cache is synced; reconciling")
        again = resync(
            self.client,
            self.cache,
            settings,
            self.feed.touch,
            first=FIRST_RESYNC,
            every=settings.resync_seconds,
        )
        await first_of(self.queue.run(), again)

    async def _watch(self, stop: asyncio.Event) -> None:
        """Run kopf, once the lists prove that the API server has our kinds."""
        await self.listed.wait()
        namespaces = (
            {*self.settings.watch_namespaces, self.settings.namespace} if self.settings.watch_namespaces else set()
        )
        others = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=registry(self.feed, self.client, self._lease_seen),
            settings=kopf_settings(self.settings.lease_name),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=sorted(namespaces),
            stop_flag=stop,
        )
        self.listen_to_signals()  # kopf has just taken them: it would go before our Lease does
        await kopf.run_tasks(tasks, ignored=others)

    def listen_to_signals(self) -> None:
        """Stop cleanly on SIGTERM and SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)

    def _lease_seen(self, lease: Object) -> None:
        if lease["metadata"]["namespace"] == self.settings.namespace:
            self.health.watch_seen_at = monotonic()

    def _enqueue(self, key: Key) -> None:
        if key.kind in self.reconcilers:
            self.queue.add(key)

    async def _reconcile(self, key: Key) -> float | None:
        if not self.elector.valid:  # the loop stood still for long: somebody else may lead
            logger.critical("the Lease expired, exiting at once")
            logging.shutdown()
            os._exit(1)
        return await self.reconcilers[key.kind](self.context, key.namespace, key.name)

    def _measure(self) -> None:
        for name, count in self.client.writes.items():
            metrics.API_WRITES.labels(name).set(count)
        for (verb, resource), count in self.client.requests.items():
            metrics.API_REQUESTS.labels(verb, resource).set(count)
        for kind in WATCHED:
            metrics.OBJECTS.labels(kind.kind).set(self.cache.count(kind))
        metrics.ROLLBACKS.set(metrics.rolled_back(self.cache.all(MODEL_DEPLOYMENT)))
        for kind in (OPTIMIZED_MODEL, MODEL_DEPLOYMENT):
            for condition in metrics.CONDITIONS:
                count = metrics.with_condition(self.cache.all(kind), condition)
                metrics.CONDITION_OBJECTS.labels(kind.kind, condition).set(count)


async def first_of(*coroutines: Coroutine[Any, Any, Any]) -> None:
    """Return (or raise) when the first of the coroutines does, and cancel the others."""
    tasks = {asyncio.create_task(coroutine) for coroutine in coroutines}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            await cancelled(task)


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end. Its error, if any, was reported before."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def main(settings: Settings, reconcilers: Mapping[str, Reconciler]) -> int:
    """Run one replica until SIGTERM or SIGINT; returns the exit status."""
    client = await Client.connect(settings.kubeconfig)
    process = Process(settings, client, reconcilers)
    process.listen_to_signals()
    try:
        return await process.run()
    finally:
        await client.close()
