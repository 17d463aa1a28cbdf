"""The link between a pod's supervisor and a worker: neither waits for ever for what the other cannot say."""

from __future__ import annotations

import asyncio
from multiprocessing import Pipe
from types import SimpleNamespace
from typing import Any

import pytest

from fettle.server import link
from fettle.server.link import LinkClosed, SupervisorEnd, WorkerEnd


class Unreadable:
    """Something that can be pickled, but not read again."""

    def __reduce__(self) -> Any:
        return (_fail, ())


def _fail() -> None:
    raise AttributeError("nothing of that name")


async def test_an_answer_that_cannot_be_read_closes_the_link() -> None:
    ours, theirs = Pipe()
    end = SupervisorEnd(ours)
    asked = asyncio.create_task(end.ask("state"))
    await asyncio.to_thread(theirs.recv)
    theirs.send((1, True, Unreadable()))
    async with asyncio.timeout(30):
        with pytest.raises(LinkClosed, match="a worker has ended"):
            await asked
        await end.closed


async def test_an_answer_that_cannot_be_sent_is_an_error_and_the_next_question_is_answered() -> None:
    ours, theirs = Pipe()
    supervisor = SupervisorEnd(ours)
    state: Any = SimpleNamespace(
        told_metrics=lambda: lambda: None, told_window=lambda since: since, told_samples=None, condition=0
    )
    worker = WorkerEnd(theirs).open(state)
    async with asyncio.timeout(30):
        with pytest.raises(LinkClosed, match="a worker has no answer: "):
            await supervisor.ask("metrics")
        assert await supervisor.ask("window", 7.0) == 7.0
        ours.close()
        theirs.close()
    assert worker is not None


async def test_a_worker_that_answers_nothing_is_not_asked_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "MOST_UNANSWERED", 3)
    ours, theirs = Pipe()
    end = SupervisorEnd(ours)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(end.ask("state"), 0.01)
    with pytest.raises(LinkClosed, match="a worker has not answered 3 questions"):
        await end.ask("state")
    for number in range(1, 4):
        theirs.send((number, True, None))
    async with asyncio.timeout(30):
        while end._unanswered:  # noqa: ASYNC110  until what it has answered by now is heard, which nothing tells
            await asyncio.sleep(0.01)
        asked = asyncio.create_task(end.ask("state"))
        await asyncio.sleep(0)
        number, _, _ = await asyncio.to_thread(lambda: [theirs.recv() for _ in range(4)][-1])
        theirs.send((number, True, "well"))
        assert await asked == "well"
    theirs.close()
