"""Election on a stand-in API server, with the clock in hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from tests.api_server import ApiServer, serving, status

from fettle.cluster.client import Client
from fettle.cluster.kinds import LEASE, Object
from fettle.cluster.lease import Elector, LeaseLostError, LeaseTiming

PATH = LEASE.path("system", "fettle")
LOOKS = 20


@dataclass
class Ground:
    """The server, and a clock that moves when told."""

    server: ApiServer
    client: Client
    seconds: float = 100.0
    electors: list[Elector] = field(default_factory=list)

    def elector(self, identity: str, *, renew: float = 0.001) -> Elector:
        return Elector(
            self.client,
            "system",
            "fettle",
            identity,
            LeaseTiming(duration=15, renew=renew, retry=0.001),
            clock=lambda: self.seconds,
            now=lambda: datetime(2026, 3, 1, tzinfo=UTC),
        )

    async def tries(self, elector: Elector) -> bool:
        """Whether it leads after some looks. Who holds the Lease does not look."""
        last = self._looks + LOOKS
        acquiring = asyncio.create_task(elector.acquire())
        while self._looks < last and not acquiring.done():  # noqa: ASYNC110  nothing tells of a look
            await asyncio.sleep(0.001)
        leads = acquiring.done()
        acquiring.cancel()
        await asyncio.gather(acquiring, return_exceptions=not leads)
        return leads

    @property
    def _looks(self) -> int:
        return self.server.requests.count(("GET", PATH))

    def holder(self) -> str:
        spec: Object = self.server.objects[PATH]["spec"]
        return str(spec["holderIdentity"])


@pytest.fixture
async def ground() -> AsyncIterator[Ground]:
    async with serving() as (server, client):
        yield Ground(server, client)


async def test_the_first_one_leads_and_the_second_waits(ground: Ground) -> None:
    first, second = ground.elector("first"), ground.elector("second")
    assert await ground.tries(first) and first.valid
    assert not await ground.tries(second) and not second.valid
    assert ground.holder() == "first"


async def test_a_silent_leader_is_replaced_after_its_whole_duration_on_our_clock(ground: Ground) -> None:
    first, second = ground.elector("first"), ground.elector("second")
    assert await ground.tries(first)
    assert not await ground.tries(second)
    ground.seconds += 14.9
    assert not await ground.tries(second)
    ground.seconds += 0.2
    assert await ground.tries(second)
    assert ground.holder() == "second"
    assert ground.server.objects[PATH]["spec"]["leaseTransitions"] == 1


async def test_a_leader_that_renews_is_not_replaced(ground: Ground) -> None:
    first, second = ground.elector("first"), ground.elector("second")
    assert await ground.tries(first)
    holding = asyncio.create_task(first.hold())
    for _ in range(5):
        ground.seconds += 5
        assert not await ground.tries(second)
    holding.cancel()


async def test_the_same_pod_leads_again_at_once_after_its_container_restarted(ground: Ground) -> None:
    assert await ground.tries(ground.elector("pod-uid"))
    assert await ground.tries(ground.elector("pod-uid"))
    assert ground.server.objects[PATH]["spec"]["leaseTransitions"] == 0


async def test_a_released_lease_is_taken_at_once(ground: Ground) -> None:
    first, second = ground.elector("first"), ground.elector("second")
    assert await ground.tries(first)
    await first.release()
    assert not first.valid
    assert await ground.tries(second)


async def test_a_renewal_that_landed_unseen_does_not_keep_the_lease_from_being_released(ground: Ground) -> None:
    first, second = ground.elector("first"), ground.elector("second")
    assert await ground.tries(first)
    lease = await ground.client.get(LEASE, "system", "fettle")
    assert lease is not None
    await ground.client.replace(LEASE, lease)  # as a renewal does that was cancelled before its answer came
    await first.release()
    assert await ground.tries(second)


@pytest.mark.parametrize("held", [False, True], ids=["taking", "renewing"])
async def test_who_is_stopped_while_a_write_is_under_way_still_gives_the_lease_up(ground: Ground, held: bool) -> None:
    first, second = ground.elector("first"), ground.elector("second")
    if held:
        assert await ground.tries(first)
    ground.server.write_seconds, written = 0.2, len(ground.server.writes())
    leading = asyncio.create_task(first.hold() if held else first.acquire())
    while len(ground.server.writes()) == written:  # noqa: ASYNC110  nothing tells that the write is under way
        await asyncio.sleep(0.001)
    leading.cancel()
    await first.release()
    await asyncio.sleep(0.3)
    assert ground.holder() == ""
    assert await ground.tries(second)


async def test_a_replica_that_does_not_lead_releases_nothing(ground: Ground) -> None:
    first = ground.elector("first")
    assert await ground.tries(first)
    await ground.elector("second").release()
    assert ground.holder() == "first"


async def test_a_lease_that_somebody_took_is_lost(ground: Ground) -> None:
    first = ground.elector("first")
    assert await ground.tries(first)
    lease = ground.server.objects[PATH]
    ground.server.store(PATH, {**lease, "spec": {**lease["spec"], "holderIdentity": "thief"}})
    with pytest.raises(LeaseLostError):
        await first.hold()


async def test_a_write_by_somebody_that_leaves_us_the_lease_is_no_loss(ground: Ground) -> None:
    first = ground.elector("first")
    assert await ground.tries(first)
    lease = ground.server.objects[PATH]
    ground.server.store(PATH, {**lease, "metadata": {**lease["metadata"], "labels": {"a": "b"}}})
    holding = asyncio.create_task(first.hold())
    before = len(ground.server.requests)
    while len(ground.server.requests) < before + 6:
        await asyncio.sleep(0.001)
        assert not holding.done()
    holding.cancel()


async def test_a_leader_that_cannot_renew_gives_up_before_another_may_lead(ground: Ground) -> None:
    first = ground.elector("first")
    assert await ground.tries(first)
    ground.server.refuse = lambda method, path: status(500, "InternalError")
    holding = asyncio.create_task(first.hold())
    ground.seconds += 9.9
    await asyncio.sleep(0.05)
    assert not holding.done()
    ground.seconds += 0.2
    with pytest.raises(LeaseLostError):
        await holding
    assert first.valid, "nobody else can have taken it yet"


async def changed_once(ground: Ground, first: Elector) -> None:
    """`first` leads, and somebody labels the Lease, so that its next renewal conflicts."""
    assert await ground.tries(first)
    lease = ground.server.objects[PATH]
    ground.server.store(PATH, {**lease, "metadata": {**lease["metadata"], "labels": {"a": "b"}}})


async def test_looking_who_holds_the_lease_after_a_conflict_is_tried_again_when_it_fails(ground: Ground) -> None:
    first = ground.elector("first")
    await changed_once(ground, first)
    refused = iter([status(503, "ServiceUnavailable")] * 3)
    ground.server.refuse = lambda method, path: next(refused, None) if method == "GET" else None
    holding = asyncio.create_task(first.hold())
    renewed = ground.server.objects[PATH]["metadata"]["resourceVersion"]
    async with asyncio.timeout(30):
        while ground.server.objects[PATH]["metadata"]["resourceVersion"] == renewed:
            assert not holding.done()
            await asyncio.sleep(0.001)
    holding.cancel()


async def test_a_look_after_a_conflict_that_hangs_ends_the_leader_in_time(ground: Ground) -> None:
    first = ground.elector("first")
    await changed_once(ground, first)
    hangs = asyncio.Event()

    async def hang(*_: object) -> None:
        hangs.set()
        await asyncio.sleep(3600)

    ground.client.get = hang  # type: ignore[method-assign,assignment]
    ground.seconds += 9.95
    holding = asyncio.create_task(first.hold())
    await hangs.wait()
    ground.seconds += 0.1
    with pytest.raises(LeaseLostError):
        async with asyncio.timeout(30):
            await holding
    assert first.valid, "nobody else can have taken it yet"


async def test_the_seconds_left_are_those_in_which_nobody_else_can_lead(ground: Ground) -> None:
    first = ground.elector("first")
    assert first.seconds_left == 0
    assert await ground.tries(first)
    ground.seconds += 4
    assert first.seconds_left == 11
    ground.seconds += 11
    assert not first.valid


@pytest.mark.parametrize("spec", [{}, {"spec": {}}, {"spec": {"leaseTransitions": None}}])
async def test_a_lease_that_somebody_made_by_hand_is_taken(ground: Ground, spec: Object) -> None:
    ground.server.store(PATH, {"kind": LEASE.kind, "metadata": {}, **spec})
    first = ground.elector("first")
    assert await ground.tries(first)
    assert ground.holder() == "first"


async def test_the_lease_runs_out_while_the_machine_is_suspended(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    elector = Elector(ground.client, "system", "fettle", "a", LeaseTiming(duration=15, renew=5, retry=0.001))
    assert await ground.tries(elector) and elector.valid
    awake = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda clock: awake(clock) + 3600 * (clock == time.CLOCK_BOOTTIME))
    assert not elector.valid
