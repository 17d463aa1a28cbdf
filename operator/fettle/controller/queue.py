"""The work queue: each object at most once in it, one worker an object, later looks and back-off included."""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic

from fettle.cluster.owner import Key
from fettle.controller.metrics import ERRORS, QUEUE_DEPTH, RECONCILE_SECONDS, RECONCILES
from fettle.errors import ClusterError, ConflictError

logger = logging.getLogger(__name__)

BACKOFF_FIRST = 0.5  # seconds
BACKOFF_LAST = 300.0
DOUBLINGS = 32  # of the first back-off, which is beyond the last one long before
IDLE_TURN = 10.0  # the loop turns at least this often, which is its sign of life

Reconcile = Callable[[Key], Awaitable[float | None]]
"""Bring one object nearer to what it asks for; returns the seconds after which to look again, None = when something changes."""


class Schedule:
    """Keys and when they are due: a key at most once, the earliest time wins. No clock of its own: `now` is handed in."""

    def __init__(self) -> None:
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: Key, due: float) -> None:
        """Want `key` at `due`, or at the earlier time it already has."""
        known = self._due.get(key)
        if known is not None and known <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, key))

    def take(self, now: float) -> Key | None:
        """The key that is due longest, taken out; None when none is due."""
        self._prune()
        if not self._heap or self._heap[0][0] > now:
            return None
        _, key = heapq.heappop(self._heap)
        del self._due[key]
        return key

    def next_due(self) -> float:
        """When the next key is due; infinity when there is none."""
        self._prune()
        return self._heap[0][0] if self._heap else math.inf

    def waiting(self, now: float) -> int:
        """How many keys are due and not yet taken."""
        return sum(due <= now for due in self._due.values())

    def _prune(self) -> None:
        """Entries whose key got an earlier time, or was taken, are stale."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)


class Queue:
    """Runs `reconcile` for every key that is due, at most `workers` at once and never two for one key.

    A key that is added while it is being worked on is worked on once more afterwards. An error brings it back after a time
    that doubles from BACKOFF_FIRST to BACKOFF_LAST; a ConflictError at once, for it only means that newer state is on its way.
    """

    def __init__(self, reconcile: Reconcile, *, workers: int, clock: Callable[[], float] = monotonic) -> None:
        self._reconcile = reconcile
        self._workers = workers
        self._clock = clock
        self._schedule = Schedule()
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._again: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._wake = asyncio.Event()
        self._stopped = False
        self.turned_at = clock()

    def add(self, key: Key, delay: float = 0.0) -> None:
        """Look at `key` after `delay` seconds, or earlier if that is wanted already."""
        due = self._clock() + delay
        if key in self._running:
            self._again[key] = min(due, self._again.get(key, math.inf))
            return
        self._schedule.add(key, due)
        self._wake.set()

    def idle(self) -> bool:
        """Whether nothing is running and nothing is due now."""
        return not self._running and self._schedule.next_due() > self._clock()

    async def run(self) -> None:
        """Work until cancelled; what is running then is cancelled too."""
        try:
            while True:
                self._turn()
                pause = min(self._schedule.next_due() - self._clock(), IDLE_TURN)
                if len(self._running) >= self._workers:
                    pause = IDLE_TURN  # a worker that ends wakes the loop
                await self._sleep(pause)
        finally:
            self._stopped = True
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _turn(self) -> None:
        self.turned_at = now = self._clock()
        self._wake.clear()
        while len(self._running) < self._workers and (key := self._schedule.take(now)) is not None:
            task = asyncio.create_task(self._work(key), name=f"reconcile {key.kind} {key.namespace}/{key.name}")
            self._running[key] = task
            task.add_done_callback(partial(self._finished, key))
        QUEUE_DEPTH.set(self._schedule.waiting(now))

    async def _sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return  # the usual case: the next key is due

    async def _work(self, key: Key) -> None:
        delay: float | None
        with RECONCILE_SECONDS.labels(key.kind).time():
            try:
                delay = await self._reconcile(key)
                self._failures.pop(key, None)
            except ConflictError as error:
                logger.debug("%s %s/%s changed in the meantime: %s", *key, error)
                delay = self._backoff(key)
            except ClusterError as error:
                ERRORS.labels(key.kind, error.reason).inc()
                delay = self._backoff(key)
                logger.warning("%s %s/%s: %s; retrying in %.1f s", *key, error, delay)
            except Exception:  # one object's fault must not stop the others
                ERRORS.labels(key.kind, "Internal").inc()
                delay = self._backoff(key)
                logger.exception("%s %s/%s: internal error; retrying in %.1f s", *key, delay)
        RECONCILES.labels(key.kind).inc()
        if delay is not None:
            due = self._clock() + delay
            self._again[key] = min(due, self._again.get(key, math.inf))

    def _backoff(self, key: Key) -> float:
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        return min(BACKOFF_FIRST * 2.0 ** min(count, DOUBLINGS), BACKOFF_LAST)

    def _finished(self, key: Key, task: asyncio.Task[None]) -> None:
        del self._running[key]
        due = self._again.pop(key, None)
        # Of ours, or a cancellation that nobody here asked for, as of a connection that was given up: the key still may not be lost.
        fault = asyncio.CancelledError() if task.cancelled() else task.exception()
        if fault is not None and not self._stopped:
            logger.critical("%s %s/%s: reconciliation failed", *key, exc_info=fault)
            due = min(self._clock() + BACKOFF_LAST, due if due is not None else math.inf)
        if due is not None and not self._stopped:
            self._schedule.add(key, due)
        self._wake.set()
