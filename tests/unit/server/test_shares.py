"""What each client may hold of what clients share: a client alone most of it, and never all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.unit.server.in_process import Sent

from fettle.server.bodies import AT_ONCE, Bodies
from fettle.server.request import Code, RequestError
from fettle.server.settings import ServerSettings
from fettle.server.shares import Crowd, Places, Shares, Slots, Who, fits, most_of, total_for

MOST = 16 * AT_ONCE


def code_of(call: Any, *arguments: Any) -> Code:
    """How a refused request ends."""
    with pytest.raises(RequestError) as raised:
        call(*arguments)
    assert "of this client" in raised.value.message and "the rest is kept for other clients" in raised.value.message
    assert raised.value.retry_after == 1
    return raised.value.code


@pytest.mark.parametrize(("capacity", "alone"), [(1, 1), (2, 1), (3, 2), (4, 3), (32, 24), (256, 192), (1024, 768)])
def test_a_client_alone_has_three_quarters_and_the_next_one_finds_room(capacity: int, alone: int) -> None:
    held = 0
    while held < capacity and fits(held + 1, capacity - held - 1):
        held += 1
    assert held == alone == most_of(capacity)
    assert held < capacity or capacity == 1


def test_the_least_total_for_a_share_is_no_larger_than_it_must_be() -> None:
    assert [total for total in map(total_for, range(2, 100)) if most_of(total - 1) >= most_of(total)] == []
    assert [most_of(total_for(most)) for most in range(2, 100)] == list(range(2, 100))


def test_two_greedy_clients_leave_room_for_a_third_one() -> None:
    places = Places(32, "streams", "open")
    for greedy in "ab":
        with pytest.raises(RequestError):
            for _ in range(32):
                places.take(greedy)
    places.take("c")


def test_streams_of_a_client_that_has_its_share_are_refused_until_one_of_them_ends() -> None:
    places = Places(4, "streams", "open")
    for _ in range(3):
        places.take("a")
    assert code_of(places.take, "a") is Code.LIMITED
    places.take("b")
    with pytest.raises(RequestError, match="4 streams are already open") as raised:
        places.take("c")
    assert raised.value.code is Code.UNAVAILABLE
    places.give("a")
    assert code_of(places.take, "a") is Code.LIMITED, "b took from what is free"
    places.give("b")
    places.take("a")


def who(name: str) -> Who:
    return lambda: name


@pytest.fixture
def bodies() -> Bodies:
    return Bodies(ServerSettings(max_bodies_bytes=MOST, max_body_bytes=MOST, max_reading=4))


def test_a_client_with_large_bodies_leaves_room_for_those_of_others(bodies: Bodies) -> None:
    large = 4 * AT_ONCE
    for _ in range(3):
        bodies.reserve(large, who("a"))
    assert code_of(bodies.reserve, large, who("a")) is Code.UNAVAILABLE, "as any other load of the server"
    bodies.reserve(large // 2, who("b"))
    assert code_of(bodies.reserve, large // 2, who("a")) is Code.LIMITED, "it takes from others"
    for _ in range(3):
        bodies.release(large, who("a"))
    bodies.release(large // 2, who("b"))
    assert bodies.held == 0
    bodies.reserve(3 * large, who("a"))


def test_small_bodies_count_against_no_share(bodies: Bodies) -> None:
    for _ in range(16):
        bodies.reserve(AT_ONCE, who("a"))
    with pytest.raises(RequestError, match=f"requests of {MOST} bytes in total are being read") as raised:
        bodies.reserve(1, who("a"))
    assert raised.value.code is Code.UNAVAILABLE


def test_a_client_cannot_fill_a_small_memory_with_small_bodies() -> None:
    bodies = Bodies(ServerSettings(max_bodies_bytes=64 * AT_ONCE))
    with pytest.raises(RequestError, match="the rest is kept for other clients"):
        for _ in range(64):
            bodies.reserve(AT_ONCE, who("a"))
    bodies.reserve(AT_ONCE, who("b"))


async def test_what_is_small_elsewhere_counts_in_a_small_memory_while_it_arrives() -> None:
    bodies = Bodies(ServerSettings(max_bodies_bytes=64 * AT_ONCE))
    reading = asyncio.create_task(bodies.read(Sent(b"begun", ends=False), AT_ONCE, who("a")))
    await asyncio.sleep(0)
    assert bodies.held == len(b"begun")
    reading.cancel()
    await asyncio.wait((reading,))
    assert bodies.held == 0


async def test_a_body_that_arrives_in_parts_counts_while_it_arrives_and_as_a_small_one_no_longer(
    bodies: Bodies,
) -> None:
    part = bytes(AT_ONCE // 2)
    small = await bodies.read(Sent(part), None, who("a"))
    assert bodies.held == len(small) and not bodies._shares._held
    bodies.release(len(small), who("a"))
    large = await bodies.read(Sent(*[part] * 24), None, who("a"))
    assert bodies.held == len(large)
    with pytest.raises(RequestError, match="the rest is kept for other clients") as raised:
        await bodies.read(Sent(part), None, who("a"))
    assert raised.value.unread
    assert await bodies.read(Sent(part), None, who("b"))
    bodies.release(len(large), who("a"))
    bodies.release(len(part), who("b"))
    assert bodies.held == 0 and not bodies._shares._held


async def test_a_body_that_could_never_be_held_is_too_large_at_once(bodies: Bodies) -> None:
    largest = MOST * 3 // 4
    with pytest.raises(RequestError, match=f"the body is larger than {largest} bytes") as raised:
        await bodies.read(Sent(), largest + 1, who("a"))
    assert raised.value.code is Code.TOO_LARGE


async def test_a_client_that_sends_its_bodies_slowly_keeps_nobody_from_sending_one(bodies: Bodies) -> None:
    reading = [asyncio.create_task(bodies.read(Sent(ends=False), 9, who("slow"))) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(RequestError, match="3 request bodies of this client are already being read") as raised:
        await bodies.read(Sent(b"x"), 1, who("slow"))
    assert (raised.value.code, raised.value.unread) == (Code.LIMITED, True)
    assert await bodies.read(Sent(b"x"), 1, who("other")) == b"x"
    for task in reading:
        task.cancel()
    await asyncio.wait(reading)


@pytest.mark.parametrize(("others", "ends"), [([], Code.UNAVAILABLE), (["b"], Code.LIMITED)])
def test_a_client_cannot_make_its_own_excess_look_like_a_failure_while_others_ask(
    others: list[str], ends: Code
) -> None:
    crowd = Crowd(lambda: 100.0)
    for second, name in enumerate(["a", *others]):
        crowd.note(lambda name=name: name, 95.0 + second)  # type: ignore[misc]
    shares = Shares("{held} requests of this client", Code.UNAVAILABLE, crowd=crowd)
    shares.take("a", 3, 4)
    with pytest.raises(RequestError) as raised:
        shares.take("a", 1, 1)
    assert raised.value.code is ends


def test_whoever_asked_long_ago_is_forgotten_and_not_every_request_is_looked_up() -> None:
    now, looked = 100.0, 0

    def who() -> str:
        nonlocal looked
        looked += 1
        return "b"

    crowd = Crowd(lambda: now)
    for _ in range(320):
        crowd.note(who, 100.0)
    assert looked <= 11 and not crowd.is_only("a")
    now = 111.0
    assert crowd.is_only("a")


def test_each_holder_of_a_slot_is_looked_up_once_and_only_where_most_are_taken() -> None:
    asked: list[str] = []

    def who(name: str) -> Who:
        return lambda: asked.append(name) or name  # type: ignore[func-returns-value]

    slots = Slots(8, "requests", "waiting")
    for number, name in enumerate("aaaabb"):
        slots.take(number, who(name))
    assert not asked
    slots.take(6, who("c"))
    slots.take(7, who("d"))
    assert sorted(asked) == list("aaaabbccd"), "each of those who wait, and who asks"
    with pytest.raises(RequestError, match=r"^8 requests are already waiting$") as raised:
        slots.take(8, who("e"))
    assert raised.value.code is Code.UNAVAILABLE
    slots.give(0)
    with pytest.raises(
        RequestError, match=r"^3 requests of this client are already waiting, and the rest is kept"
    ) as raised:
        slots.take(8, who("a"))
    assert raised.value.code is Code.LIMITED


def test_what_could_never_be_held_is_too_large_and_not_a_failure_of_the_model() -> None:
    bodies = Bodies(ServerSettings(max_bodies_bytes=16 << 20, max_body_bytes=16 << 20))
    with pytest.raises(RequestError) as raised:
        bodies.hold(bytes(13 << 20))
    assert raised.value.code is Code.TOO_LARGE and not bodies.held
