"""Requests that wait for the model: its threads take them in order, several of the same form in one run where the runtime gains from it.

The event loop puts requests in and is called back once for each run, however many requests were in it. A thread that is done takes what
waits by itself: between two runs nothing goes through the loop. Who is at the head of the queue runs next, always; those of its form that
wait behind it join it as long as the run has room, so that nobody is overtaken by more than one run.

An answer does not depend on who else was in the run: only models whose batch axis was proved, and whose answers were certified with other
items beside them, are batched (`model.items_at_once`); where a run of several requests fails, each of them runs again by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import numpy as np

from fettle.api.signature import Signature
from fettle.errors import RuntimeFailure
from fettle.runtimes.base import Array
from fettle.server.request import Code, InferRequest, RequestError

log = logging.getLogger(__name__)

Tensors = dict[str, Array]
Run = Callable[[Tensors, int, int], Tensors]  # inputs, how many items they are, and their bytes
Gone = Callable[[], Awaitable[object]]  # ends when the client has left
LOOK_AFTER_SECONDS = (
    0.05  # whose request waits no longer is not watched: most wait less, and a look costs as much as a small request
)


class Watch(Protocol):
    """Who counts runs. Called in the event loop."""

    def ran(self, items: int, seconds: float) -> None:
        """A run of so many items is over, and took so long."""

    def waited(self, seconds: float) -> None:
        """A request waited so long for its run to begin."""


class Unheard(asyncio.CancelledError):
    """The client left after its run had begun, and nobody hears what came of it: an answer, or that it `failed`."""

    def __init__(self, failed: bool) -> None:
        super().__init__()
        self.failed = failed


class _Nobody:
    """Does not count."""

    def ran(self, items: int, seconds: float) -> None:
        """See `Watch`."""

    def waited(self, seconds: float) -> None:
        """See `Watch`."""


class _Work:
    """A request in the queue or in a run. `outcome` and the times are written by the thread that ran it, all else by the event loop."""

    __slots__ = ("abandoned", "arrived", "began", "ended", "form", "future", "outcome", "over", "request", "rows")

    def __init__(self, request: InferRequest, form: tuple[int, ...], future: asyncio.Future[Tensors]) -> None:
        self.request, self.rows, self.form, self.future = request, request.rows, form, future
        self.arrived = time.perf_counter()
        self.began = self.ended = 0.0  # 0: it did not run
        self.outcome: Tensors | BaseException | None = None
        self.abandoned = self.over = False

    def settle(self) -> None:
        """Its request goes on, with the outcome; a client that is gone hears nothing of it."""
        self.over = True
        if self.future.done():
            return
        if self.abandoned or self.outcome is None:
            self.future.set_result({})
        elif isinstance(self.outcome, BaseException):
            self.future.set_exception(self.outcome)
        else:
            self.future.set_result(self.outcome)


class Batcher:
    """The queue and the threads. Both `infer` and `infer_here` are for one event loop at a time; `run` is called in as many threads as there
    are `streams`, `run_here` in the event loop.

    `items`: most of a run of several requests; 1 = each runs by itself; `items_here`: of a run in the event loop. `delay`: seconds that a
    run with room waits for more, from the arrival of its first request.
    """

    def __init__(self, run: Run, run_here: Run, signature: Signature, streams: int) -> None:
        self._run, self._run_here, self._signature = run, run_here, signature
        self.items, self.items_here, self.delay = 1, 1, 0.0
        self._here: deque[_Work] = deque()
        self._turns: asyncio.AbstractEventLoop | None = None  # in which what is in `_here` has its turn next
        self.watch: Watch = _Nobody()
        self._fixed = all(
            size >= 0 or axis == tensor.batch_axis
            for tensor in signature.inputs
            for axis, size in enumerate(tensor.shape)
        )
        self._queue: deque[_Work] = deque()
        self._changed = threading.Condition()
        self._lingering = 0  # threads whose run has room and waits for more
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"infer_{number}", daemon=True) for number in range(streams)
        ]
        for thread in self._threads:
            thread.start()

    async def infer(
        self,
        request: InferRequest,
        seconds: float | None = None,
        deadline: float | None = None,
        gone: Gone | None = None,
    ) -> Tensors:
        """Outputs by name. Raises what the model raised; RequestError UNAVAILABLE where the model was not free within `seconds`, GONE where it
        was not within `deadline`, the client's own number of seconds, or before `gone` ended.

        A thread that computes cannot be stopped. So a request that is cancelled while its work runs ends only when that is over, with
        `Unheard`: until then it counts as in flight, with its bytes. What had not begun leaves the queue at once.
        """
        loop = asyncio.get_running_loop()
        work = _Work(request, self._form(request.inputs), loop.create_future())
        self._put(work)
        timers = []
        if deadline is not None and (seconds is None or deadline < seconds):
            timers.append(loop.call_later(deadline, self._expire, work, _given_up(f"its deadline of {deadline:.3g} s")))
        elif seconds is not None:
            late = RequestError(Code.UNAVAILABLE, f"the model was not free within {seconds:g} s")
            timers.append(loop.call_later(seconds, self._expire, work, late))
        if gone is not None:
            timers.append(loop.call_later(LOOK_AFTER_SECONDS, self._watch, work, gone))
        try:
            return await work.future
        except asyncio.CancelledError:
            work.abandoned = True
            self._expire(work, _given_up("the client had left"))  # what waits leaves the queue at once
            while not work.over:
                work.future = loop.create_future()
                with contextlib.suppress(asyncio.CancelledError):
                    await work.future
            if work.began:
                raise Unheard(isinstance(work.outcome, BaseException)) from None
            raise
        finally:
            for timer in timers:
                timer.cancel()

    async def infer_here(self, request: InferRequest) -> Tensors:
        """As `infer`, by the event loop itself in its next turn, together with what else came in this one."""
        loop = asyncio.get_running_loop()
        work = _Work(request, self._form(request.inputs), loop.create_future())
        self._here.append(work)
        if self._turns is not loop:
            self._turns = loop
            loop.call_soon(self._turn, loop)
        return await work.future

    def close(self) -> None:
        """Answer nobody who still waits, and end the threads after the runs that are under way."""
        with self._changed:
            left, self._closed = list(self._queue), True
            self._queue.clear()
            self._changed.notify_all()
        for work in left:
            work.outcome = RequestError(Code.UNAVAILABLE, "the server is shutting down")
            self._return([work])
        for thread in self._threads:
            thread.join()

    # ------------------------------------------------------------------------------------------------------- in the event loop

    def _form(self, inputs: Tensors) -> tuple[int, ...]:
        """What requests of one run have in common: the sizes of their inputs, but for the number of items."""
        if self._fixed or self.items == 1:
            return ()
        return tuple(
            size
            for tensor in self._signature.inputs
            for axis, size in enumerate(inputs[tensor.name].shape)
            if axis != tensor.batch_axis
        )

    def _put(self, work: _Work) -> None:
        with self._changed:
            self._queue.append(work)
            if self._lingering:
                self._changed.notify_all()  # whoever lingers may be the one to take it, or holds the others up no longer
            else:
                self._changed.notify()

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """One run of those at the head of what is to be run here. Between two runs all others have their turn."""
        batch: list[_Work] = []
        rows = 0
        while self._here:
            work = self._here[0]
            if work.future.done():  # its client is gone
                self._here.popleft()
                continue
            if batch and (work.form != batch[0].form or rows + work.rows > self.items_here):
                break
            batch.append(self._here.popleft())
            rows += work.rows
        self._turns = loop if self._here else None
        if self._here:
            loop.call_soon(self._turn, loop)
        if batch:
            self._compute(batch, self._run_here)
            self._settle(batch, waited=False)

    def _expire(self, work: _Work, error: RequestError) -> None:
        """Answer a request that waits with `error`; one whose run has begun gets its outputs."""
        with self._changed:
            if work not in self._queue:
                return
            self._queue.remove(work)
        work.outcome = error
        work.settle()

    def _watch(self, work: _Work, gone: Gone) -> None:
        """Let go of a request whose client leaves while it waits."""
        watching = asyncio.ensure_future(_until(gone))
        watching.add_done_callback(lambda _: self._expire(work, _given_up("the client had left")))
        work.future.add_done_callback(lambda _: watching.cancel())

    def _settle(self, batch: list[_Work], waited: bool = True) -> None:
        """What is over, as the threads give it back."""
        if batch[0].began:
            self.watch.ran(sum(work.rows for work in batch), batch[0].ended - batch[0].began)
        for work in batch:
            if work.began and waited:
                self.watch.waited(work.began - work.arrived)
            work.settle()

    # --------------------------------------------------------------------------------------------------------- in the threads

    def _serve(self) -> None:
        while batch := self._next():
            self._compute(batch, self._run)
            self._return(batch)

    def _next(self) -> list[_Work]:
        """The request whose turn it is, and those that run with it; empty when there will be no more."""
        with self._changed:
            batch = self._first()
            most, delay = self.items, self.delay
            rows = batch[0].rows if batch else most
            while rows < most:
                rows = self._join(batch, rows, most)
                left = batch[0].arrived + delay - time.perf_counter()
                # Who waits and cannot join is not held up.
                if left <= 0 or rows >= most or self._queue or self._closed:
                    break
                self._lingering += 1
                self._changed.wait(left)
                self._lingering -= 1
            return batch

    def _first(self) -> list[_Work]:
        while True:
            while self._queue:
                work = self._queue.popleft()
                if not work.abandoned:
                    return [work]
                self._return([work])
            if self._closed:
                return []
            self._changed.wait()

    def _join(self, batch: list[_Work], rows: int, most: int) -> int:
        """Move those that wait, have the form and find room from the queue into the run, in their order; how many items it has then."""
        others: list[_Work] = []
        while self._queue and rows < most:
            work = self._queue.popleft()
            if work.abandoned:
                self._return([work])
            elif work.form == batch[0].form and rows + work.rows <= most:
                batch.append(work)
                rows += work.rows
            else:
                others.append(work)
        self._queue.extendleft(reversed(others))
        return rows

    def _return(self, batch: list[_Work]) -> None:
        """Give the requests back to the event loop, all in one call."""
        try:
            batch[0].future.get_loop().call_soon_threadsafe(self._settle, batch)
        except RuntimeError:  # the loop has ended, and with it those who waited
            log.warning("%d requests ended after the event loop", len(batch))

    # ------------------------------------------------------------------------------------------------------------ in either

    def _compute(self, batch: list[_Work], run: Run) -> None:
        """Run the requests, and write what came of it into them."""
        began = time.perf_counter()
        outcomes = self._together(batch, run) if len(batch) > 1 else [_alone(batch[0], run)]
        ended = time.perf_counter()
        for work, outcome in zip(batch, outcomes, strict=True):
            work.began, work.ended, work.outcome = began, ended, outcome

    def _together(self, batch: list[_Work], run: Run) -> list[Tensors | BaseException]:
        try:
            rows = sum([work.rows for work in batch])
            size = sum([work.request.size for work in batch])
            return self._scattered(batch, run(self._gathered(batch), rows, size), rows)
        except Exception as error:  # noqa: BLE001  one request may have made the run fail, and no other is to hear of it
            log.info("a run of %d requests failed, so each runs by itself: %s", len(batch), error)
            return [_alone(work, run) for work in batch]

    def _gathered(self, batch: list[_Work]) -> Tensors:
        return {
            tensor.name: np.concatenate(
                [work.request.inputs[tensor.name] for work in batch], axis=tensor.batch_axis or 0
            )
            for tensor in self._signature.inputs
        }

    def _scattered(self, batch: list[_Work], outputs: Tensors, rows: int) -> list[Tensors | BaseException]:
        """Each request's part of the outputs, as views. Raises RuntimeFailure where they are not as many as the inputs."""
        for tensor in self._signature.outputs:
            shape = outputs[tensor.name].shape
            if shape[tensor.batch_axis or 0] != rows:
                raise RuntimeFailure(f"output {tensor.name}: expected {rows} items, found shape {list(shape)}")
        parts: list[Tensors | BaseException] = []
        at = 0
        for work in batch:
            own = slice(at, at := at + work.rows)
            parts.append(
                {
                    tensor.name: outputs[tensor.name][(slice(None),) * (tensor.batch_axis or 0) + (own,)]
                    for tensor in self._signature.outputs
                }
            )
        return parts


def _alone(work: _Work, run: Run) -> Tensors | BaseException:
    try:
        return run(work.request.inputs, work.rows, work.request.size)
    except BaseException as error:  # noqa: BLE001  whatever it is, it is this request's, and there are others to serve
        return error


async def _until(gone: Gone) -> None:
    await gone()


def _given_up(why: str) -> RequestError:
    """Nobody waits for the answer any more, which says nothing of the model."""
    return RequestError(Code.GONE, f"the request was cancelled while it waited for the model: {why}")
