"""Work in threads that a request waits for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


class _Work:
    """A function that is left out where nobody waits for it any more when its turn comes."""

    __slots__ = ("abandoned",)

    def __init__(self) -> None:
        self.abandoned = False

    def __call__(self, function: Callable[..., _T], *arguments: object) -> _T:
        if self.abandoned:
            raise asyncio.CancelledError
        return function(*arguments)


async def run_to_end(pool: ThreadPoolExecutor, function: Callable[..., _T], *arguments: object) -> _T:
    """What `function` returns or raises in a thread of `pool`.

    A thread cannot be stopped, and the pool holds the arguments of what has not begun. So a request that is cancelled ends only when
    its work has left the pool: until then it counts as in flight, with its place in the queue and its bytes.
    """
    work = _Work()
    working = asyncio.wrap_future(pool.submit(work, function, *arguments))
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
