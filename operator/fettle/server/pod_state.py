"""The state of a pod whose processes share the ports of the inference protocol: what each of them tells, put together.

Counts are only told if every process tells its own. A sum without one of them would look like a pod that answered less.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fettle.api.window import Window, summed, written
from fettle.server import logs
from fettle.server.drift import Counted
from fettle.server.link import LinkClosed, SupervisorEnd
from fettle.server.metrics import Sum
from fettle.server.state import Condition, NotTold, ProcessWindow

LOOK_SECONDS = 0.25  # between two looks at a worker
ANSWER_SECONDS = 5.0  # for a worker to tell what it has counted; the operator waits about as long for a pod


class WorkerState:
    """What is known of one worker. `changed` is called when more is."""

    def __init__(self, link: SupervisorEnd, changed: Callable[[], None]) -> None:
        self.link, self._changed = link, changed
        self.condition = Condition.LOADING
        self._turned_at = time.monotonic()

    def silence(self) -> float:
        """Seconds since its event loop turned last, as far as it has said."""
        return time.monotonic() - self._turned_at

    async def watch(self) -> None:
        """Ask how it is, again and again, until it is gone. One that hangs answers nothing, so its silence grows."""
        with contextlib.suppress(LinkClosed):
            while True:
                self.condition, silence = await self.link.ask("state")
                self._turned_at = time.monotonic() - silence
                self._changed()
                await asyncio.sleep(LOOK_SECONDS)
        self.condition = Condition.DRAINING

    async def tell(self, question: str, *arguments: Any) -> Any:
        """What it answers. Raises NotTold."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self.link.ask(question, *arguments)
        except TimeoutError:
            raise NotTold(f"a process did not answer within {ANSWER_SECONDS:g} s") from None


class PodState:
    """All workers, as the management port tells of them (`State`)."""

    def __init__(self) -> None:
        self.workers: Sequence[WorkerState] = ()
        self.draining = False
        self._turns = itertools.count()  # of workers that are asked for samples first
        self._summing = asyncio.Lock()  # one sum at a time: each takes a core, and all of the workers' parts

    @property
    def condition(self) -> Condition:
        """Ready if every worker is: the kernel gives connections to all that listen."""
        known = {worker.condition for worker in self.workers}
        if self.draining or Condition.DRAINING in known:
            return Condition.DRAINING
        return Condition.READY if known == {Condition.READY} else Condition.LOADING

    def silence(self) -> float:
        """Of the worker that was silent longest."""
        return max((worker.silence() for worker in self.workers), default=0.0)

    async def metrics(self) -> bytes:
        """The sums of all workers."""
        return await self._sum(_metrics, "metrics")

    async def window(self, since: float) -> bytes:
        """The seconds from `since` on, each the sum of all workers'. In a thread, because hours of them take a while."""
        return await self._sum(_window, "window", since)

    async def _sum(self, function: Callable[[Sequence[Any]], bytes], question: str, *arguments: Any) -> bytes:
        """Raises NotTold, also if others are asking for so long that this one gets no turn."""
        try:
            await asyncio.wait_for(self._summing.acquire(), ANSWER_SECONDS)
        except TimeoutError:
            raise NotTold(f"others asked for {ANSWER_SECONDS:g} s: try again later") from None
        try:
            return await asyncio.to_thread(function, await self._all(question, *arguments))
        finally:
            self._summing.release()

    async def samples(self, most: int) -> bytes:
        """Those of one worker: the next in turn that has any."""
        first, body = next(self._turns), b""
        for number in range(len(self.workers)):
            worker = self.workers[(first + number) % len(self.workers)]
            found, body = await worker.tell("samples", most)
            if found:
                break
        return body

    async def set_level(self, level: str) -> None:
        """Change what all processes log. Raises ValueError."""
        logs.set_level(level)
        await self._all("level", level)

    async def _all(self, question: str, *arguments: Any) -> list[Any]:
        return await asyncio.gather(*(worker.tell(question, *arguments) for worker in self.workers))


def _metrics(parts: Sequence[tuple[Any, Counted | None]]) -> bytes:
    counted = _drift([drift for _, drift in parts])
    return Sum([*(families for families, _ in parts), counted.metrics() if counted is not None else ()]).text()


def _window(parts: Sequence[ProcessWindow]) -> bytes:
    head, seconds = summed([(part.head, _seconds(part)) for part in parts])
    counted = _drift([part.drift for part in parts])
    drift = counted.window() if counted is not None else None
    return written(head.model_copy(update={"drift": drift}), (second.written() for second in seconds))


def _seconds(part: ProcessWindow) -> Iterator[Window]:
    return (Window.model_validate_json(second) for second in part.seconds)


def _drift(parts: Sequence[Counted | None]) -> Counted | None:
    known = [part for part in parts if part is not None]
    return functools.reduce(operator.add, known) if known else None
