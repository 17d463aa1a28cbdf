"""A thread that works for clients in turn. Its clock is the test's: work takes as long as it is told to."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

import pytest

from fettle.server import threads
from fettle.server.threads import Turns


@dataclass(frozen=True)
class Piece:
    """Of work: its client is the first letter of its name."""

    name: str
    seconds: float = 1
    first: bool = False


class Thread:
    """A thread, what it did, and its clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done: list[str] = []
        self.turns = Turns("test", lambda: self.now)

    async def do(self, *pieces: Piece) -> list[str]:
        """The order in which is done what all waits once the thread is free."""
        free = threading.Event()
        waiting = [asyncio.create_task(self.turns.run("nobody", free.wait))]
        waiting += [
            asyncio.create_task(self.turns.run(piece.name[0], self._work, piece, first=piece.first)) for piece in pieces
        ]
        await asyncio.sleep(0)
        free.set()
        await asyncio.gather(*waiting)
        done, self.done = self.done, []
        return done

    def _work(self, piece: Piece) -> bool:
        self.now += piece.seconds
        self.done.append(piece.name)
        return True


@pytest.mark.parametrize(
    ("sentence", "pieces", "order"),
    [
        ("one client in its own order", [Piece("a1"), Piece("a2"), Piece("a3")], "a1 a2 a3"),
        ("clients by turns", [Piece("a1"), Piece("a2"), Piece("a3"), Piece("b1"), Piece("b2")], "a1 b1 a2 b2 a3"),
        (
            "each for the same time, not the same number",
            [Piece("a1", 3), Piece("a2", 3), *(Piece(f"b{number}") for number in range(1, 5))],
            "a1 b1 b2 b3 a2 b4",
        ),
        ("answers before bodies", [Piece("a1"), Piece("a2"), Piece("a3", first=True)], "a3 a1 a2"),
        (
            "but not those of a client that had more",
            [Piece("a1", first=True), Piece("a2", first=True), Piece("b1")],
            "a1 b1 a2",
        ),
    ],
)
async def test_work_is_done(sentence: str, pieces: list[Piece], order: str) -> None:
    thread = Thread()
    assert (await thread.do(*pieces)) == order.split(), sentence
    thread.turns.close()


async def test_a_client_that_comes_anew_has_saved_up_nothing() -> None:
    thread = Thread()
    late = [Piece("b1"), Piece("b2"), Piece("b3")]
    coming: list[asyncio.Task[bool]] = []
    loop = asyncio.get_running_loop()

    def come(piece: Piece) -> bool:
        """Ten seconds into the work for another client."""
        come_now = threading.Event()

        def start() -> None:
            coming.extend(asyncio.ensure_future(thread.turns.run("b", thread._work, each)) for each in late)
            loop.call_soon(come_now.set)

        loop.call_soon_threadsafe(start)
        come_now.wait()
        return thread._work(piece)

    pieces = [Piece("a1", 10), Piece("a2"), Piece("a3"), Piece("a4")]
    does = [thread._work, come, thread._work, thread._work]
    asked = [asyncio.create_task(thread.turns.run("a", do, piece)) for do, piece in zip(does, pieces, strict=True)]
    await asyncio.gather(*asked)
    await asyncio.gather(*coming)
    assert thread.done == ["a1", "a2", "b1", "a3", "b2", "a4", "b3"]
    thread.turns.close()


async def test_clients_without_end_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MOST_KNOWN", 3)
    thread = Thread()
    await thread.do(*(Piece(chr(0x4E00 + number)) for number in range(100)))
    assert len(thread.turns._had) <= 3
    thread.turns.close()


async def test_what_the_work_raises_is_raised_and_the_next_is_done() -> None:
    thread = Thread()

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await thread.turns.run("a", fail)
    assert await thread.do(Piece("a1")) == ["a1"]
    thread.turns.close()
