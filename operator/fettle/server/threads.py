"""A thread that requests wait for, and that works for their clients in turn."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_Queues = tuple[deque[Callable[[], None]], deque[Callable[[], None]]]  # what goes first, and the rest
MOST_KNOWN = 4096  # clients; beyond, those who do not wait begin anew


class Turns:
    """One thread. The next client is the one for which it has worked for the shortest time; of that client's work, what goes `first` does.

    Time and not numbers, because a picture takes a millisecond or seconds. Who comes anew begins with the time of the client whose turn it is, so
    nobody saves any up. (Start-time fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996.) `clock`: that of the thread's own CPU.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.thread_time) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[str, _Queues] = {}
        self._had: dict[str, float] = {}  # seconds of each client; those who wait are all in it
        self._now = 0.0  # those of the client whose turn it is

    async def run(self, client: str, function: Callable[..., _T], *arguments: object, first: bool = False) -> _T:
        """What `function` returns or raises in the thread.

        A thread cannot be stopped, and the queue holds the arguments of what has not begun. So a request that is cancelled ends only when
        its work has left both: until then it counts as in flight, with its place in the queue and its bytes.
        """
        work = _Work()
        working = asyncio.wrap_future(self._submit(client, first, lambda: work(function, *arguments)))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            work.abandoned = True
            while not working.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait((working,))
            if not working.cancelled():
                working.exception()  # nobody waits for it any more; unread, it would be logged as an accident
            raise

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, client: str, first: bool, function: Callable[[], _T]) -> Future[_T]:
        future: Future[_T] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:  # noqa: BLE001  whatever it is, it is told to who waits
                    future.set_exception(error)

        with self._lock:
            self._had[client] = max(self._had.get(client, 0.0), self._now)
            self._waiting.setdefault(client, (deque(), deque()))[0 if first else 1].append(work)
        self._pool.submit(self._turn)  # a turn for each piece of work, whosever it will be
        return future

    def _turn(self) -> None:
        client, work = self._next()
        began = self._clock()
        work()
        spent = self._clock() - began
        with self._lock:
            self._had[client] += spent
            if len(self._had) > MOST_KNOWN:
                self._had = {waits: self._had[waits] for waits in self._waiting}

    def _next(self) -> tuple[str, Callable[[], None]]:
        with self._lock:
            client = min(self._waiting, key=self._had.__getitem__)
            self._now = self._had[client]
            first, rest = self._waiting[client]
            work = (first or rest).popleft()
            if not (first or rest):
                del self._waiting[client]
            return client, work


class _Work:
    """A function that is left out where nobody waits for it any more when its turn comes."""

    __slots__ = ("abandoned",)

    def __init__(self) -> None:
        self.abandoned = False

    def __call__(self, function: Callable[..., _T], *arguments: object) -> _T:
        if self.abandoned:
            raise asyncio.CancelledError
        return function(*arguments)
