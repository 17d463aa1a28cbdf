"""Leader election with a Lease: one replica leads, and another takes over within seconds if it stops renewing.

As in client-go, the time without a renewal is measured on the local clock, from when the Lease was last seen to change. Clocks of different
machines are never compared.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fettle.cluster.client import Client
from fettle.cluster.kinds import LEASE, Object
from fettle.errors import ClusterError, ConflictError, ExistsError

logger = logging.getLogger(__name__)

RELEASE_SECONDS = 5.0  # of a stop's grace period; whoever waits for the Lease then waits for its duration


def boot_time() -> float:
    """Seconds since the machine was started, including the time while it was suspended.

    The monotonic clock stops while a virtual machine is suspended, but the Lease expires all the same.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class LeaseLostError(Exception):
    """Another replica leads, or the Lease was not renewed in time. The process must end at once."""


def micro_time(now: datetime) -> str:
    """A time as Kubernetes' MicroTime."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def held_spec(spec: Object, identity: str, duration: int, now: datetime) -> Object:
    """The Lease's spec when `identity` acquires or renews it."""
    ours = spec.get("holderIdentity") == identity
    return {
        **spec,
        "holderIdentity": identity,
        "leaseDurationSeconds": duration,
        "acquireTime": spec.get("acquireTime") if ours else micro_time(now),
        "renewTime": micro_time(now),
        "leaseTransitions": (spec.get("leaseTransitions") or 0) + (0 if ours else 1),
    }


def _spec(lease: Object) -> Object:
    """A Lease's spec; empty if it was created by hand without one."""
    spec: Object = lease.get("spec") or {}
    return spec


@dataclass(frozen=True)
class LeaseTiming:
    """Durations in seconds: how long a Lease is held, the interval between renewals, and between attempts to acquire it."""

    duration: int
    renew: float
    retry: float


class Elector:
    """Acquires, renews and releases one Lease. `turned_at` (monotonic seconds) is the time of its last activity."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        name: str,
        identity: str,
        timing: LeaseTiming,
        clock: Callable[[], float] = boot_time,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._timing = timing
        self._clock = clock
        self._now = now
        self._seen: tuple[str, float] = ("", 0.0)  # resourceVersion, and when we saw it first
        self._lease: Object | None = None  # ours, as we wrote it last
        self._renewed_at = 0.0
        self._writes: set[asyncio.Task[Object]] = set()  # under way
        self.identity = identity
        self.turned_at = time.monotonic()

    @property
    def seconds_left(self) -> float:
        """The number of seconds for which no other replica can take the Lease; 0 or less if one may have taken it."""
        return self._renewed_at + self._timing.duration - self._clock() if self._lease is not None else 0.0

    @property
    def valid(self) -> bool:
        """Whether no other replica can have taken the Lease."""
        return self.seconds_left > 0

    async def acquire(self) -> None:
        """Return when this replica is the leader."""
        while True:
            if await self._attempt():
                break
            await asyncio.sleep(self._timing.retry)
        logger.info("%s is the leader", self.identity)

    async def hold(self) -> None:
        """Renew until cancelled. Raises LeaseLostError."""
        while True:
            await asyncio.sleep(self._timing.renew)
            await self._renew_in_time()

    async def release(self) -> None:
        """Release the Lease, so that a standby need not wait (best effort).

        A write in progress may still succeed unnoticed after we were told to stop. So it is awaited, and the API server is asked.
        """
        self._lease = None
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await asyncio.gather(*self._writes, return_exceptions=True)
                while not await self._released():
                    pass
        except (ClusterError, TimeoutError) as error:
            logger.warning("the Lease was not released: %r", error)

    async def _released(self) -> bool:
        """Try once to release the Lease; returns whether it is no longer ours."""
        lease = await self._client.get(LEASE, self._namespace, self._name)
        if lease is None or _spec(lease).get("holderIdentity") != self.identity:
            return True
        free = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": micro_time(self._now())}
        try:
            await self._client.replace(LEASE, {**lease, "spec": {**lease["spec"], **free}})
        except ConflictError:
            return False
        logger.info("%s released the Lease", self.identity)
        return True

    async def _landed(self, write: Coroutine[Any, Any, Object]) -> Object:
        """The result of a write, which continues to its end even if we no longer wait for it."""
        task = asyncio.create_task(write)
        self._writes.add(task)
        task.add_done_callback(self._over)
        return await asyncio.shield(task)

    def _over(self, write: asyncio.Task[Object]) -> None:
        self._writes.discard(write)
        if not write.cancelled() and write.exception() is not None:
            logger.debug("a write to the Lease failed: %s", write.exception())

    async def _attempt(self) -> bool:
        self.turned_at = time.monotonic()
        try:
            lease = await self._client.get(LEASE, self._namespace, self._name)
            started = self._clock()
            if lease is None:
                self._keep(await self._landed(self._client.create(LEASE, self._fresh())), started)
                return True
            if not self._free(lease):
                return False
            spec = held_spec(_spec(lease), self.identity, self._timing.duration, self._now())
            self._keep(await self._landed(self._client.replace(LEASE, {**lease, "spec": spec})), started)
            return True
        except (ConflictError, ExistsError):
            return False  # another was faster
        except ClusterError as error:
            logger.warning("election: %s", error)
            return False

    def _fresh(self) -> Object:
        metadata = {"namespace": self._namespace, "name": self._name}
        spec = held_spec({}, self.identity, self._timing.duration, self._now())
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": metadata,
            "spec": {**spec, "leaseTransitions": 0},
        }

    def _free(self, lease: Object) -> bool:
        """Whether the Lease is ours, has no holder, or was not renewed for its whole duration."""
        spec, version = _spec(lease), lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, self._clock())
        if spec.get("holderIdentity") in ("", None, self.identity):
            return True
        patience = float(spec.get("leaseDurationSeconds") or self._timing.duration)
        return self._clock() - self._seen[1] > patience

    def _keep(self, lease: Object, asked_at: float) -> None:
        self._lease = lease
        self._renewed_at = asked_at

    async def _renew_in_time(self) -> None:
        """Renew once, with retries until two thirds of the duration have passed. This includes checking who holds the Lease."""
        assert self._lease is not None
        changed = False  # somebody wrote to it
        while True:
            left = self._renewed_at + self._timing.duration * 2 / 3 - self._clock()
            if left <= 0:
                raise LeaseLostError(f"not renewed within {self._timing.duration * 2 / 3:.0f} s")
            started = self._clock()
            self.turned_at = time.monotonic()
            try:
                async with asyncio.timeout(left):
                    if changed:
                        await self._reread()
                    spec = held_spec(self._lease["spec"], self.identity, self._timing.duration, self._now())
                    self._keep(await self._landed(self._client.replace(LEASE, {**self._lease, "spec": spec})), started)
                return
            except ConflictError:
                changed = True
            except (ClusterError, TimeoutError) as error:
                logger.warning("the Lease was not renewed: %s", error)
                await asyncio.sleep(min(self._timing.retry, 1.0))

    async def _reread(self) -> None:
        """Somebody wrote to the Lease: continue if it still names this replica."""
        lease = await self._client.get(LEASE, self._namespace, self._name)
        if lease is None or _spec(lease).get("holderIdentity") != self.identity:
            raise LeaseLostError("another replica holds the Lease")
        self._lease = lease
