"""Dynamic batching: threads take waiting requests in order, several with the same form in one run if this makes the runtime faster.

The event loop adds requests to the queue and is called back once per run. A thread that finishes a run takes the next requests by itself,
without going through the loop. The request at the head of the queue always runs next. Waiting requests of the same form join it while the run
has room, so that no request is overtaken by more than one run.

An answer does not depend on the other requests in the run: only models with a verified batch axis, whose answers were evaluated in batches,
are batched (`model.items_at_once`). If a run of several requests fails, each of them is run again on its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import numpy as np

from fettle.api.signature import Signature
from fettle.errors import RuntimeFailure
from fettle.runtimes.base import Array
from fettle.server.request import Code, InferRequest, RequestError

log = logging.getLogger(__name__)

Tensors = dict[str, Array]
Outcome = Tensors | BaseException
Run = Callable[[Tensors, int, int], Tensors]  # inputs, how many items they are, and their bytes
Gone = Callable[[], Awaitable[object]]  # ends when the client has left
# A request that waits less is not watched for its client: most wait less, and a look costs as much as a small request.
LOOK_AFTER_SECONDS = 0.05


class Watch(Protocol):
    """Receives figures about runs. It is called in the event loop."""

    def ran(self, items: int, seconds: float) -> None:
        """A run of `items` items took `seconds`."""

    def waited(self, seconds: float) -> None:
        """A request waited `seconds` until its run began."""


class Unheard(asyncio.CancelledError):
    """The client disconnected after its run had begun, so nobody receives the result; `failed`: whether the run failed."""

    def __init__(self, failed: bool) -> None:
        super().__init__()
        self.failed = failed


class _Nobody:
    """A `Watch` that ignores everything."""

    def ran(self, items: int, seconds: float) -> None:
        """See `Watch`."""

    def waited(self, seconds: float) -> None:
        """See `Watch`."""


class _Work:
    """A request that the event loop runs in its next turn."""

    __slots__ = ("form", "future", "request", "rows")

    def __init__(self, request: InferRequest, form: tuple[int, ...], future: asyncio.Future[Tensors]) -> None:
        self.request, self.rows, self.form, self.future = request, request.rows, form, future


class _QueuedWork(_Work):
    """A request in the queue or in a run. The thread that runs it writes `outcome` and the times; the event loop writes everything else."""

    __slots__ = ("abandoned", "arrived", "began", "ended", "outcome", "over")

    def __init__(self, request: InferRequest, form: tuple[int, ...], future: asyncio.Future[Tensors]) -> None:
        super().__init__(request, form, future)
        self.arrived = time.perf_counter()
        self.began = self.ended = 0.0  # 0: it did not run
        self.outcome: Outcome | None = None
        self.abandoned = self.over = False

    def settle(self) -> None:
        """Resume the request with its outcome, unless the client has disconnected."""
        self.over = True
        _resume(self.future, {} if self.abandoned or self.outcome is None else self.outcome)


class Batcher:
    """The queue and its threads. `infer` and `infer_here` may be called from one event loop at a time. `run` is called in as many threads as there
    are `streams`, `run_here` in the event loop.

    `items`: maximum number of items in a run of several requests (1: no batching); `items_here`: the same for runs in the event loop. `delay`:
    how long a run with room waits for more requests, in seconds from the arrival of its first request.
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
        self._queue: deque[_QueuedWork] = deque()
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
        """Outputs by name. Raises the model's error, RequestError UNAVAILABLE if the model was not free within `seconds`, and RequestError GONE if it
        was not free within `deadline` (the client's own limit, in seconds) or before `gone` ended.

        A computing thread cannot be stopped. So a request that is cancelled during its run ends with `Unheard` only when the run is over. Until
        then it counts as in flight, with its bytes. A request whose run has not begun leaves the queue at once.
        """
        loop = asyncio.get_running_loop()
        work = _QueuedWork(request, self._form(request.inputs), loop.create_future())
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

    def infer_here(self, request: InferRequest) -> asyncio.Future[Tensors]:
        """Like `infer`, but the event loop itself runs the model in its next turn, together with other requests that arrived in this turn."""
        if self._turns is None or self._turns.is_closed():
            self._turns = asyncio.get_running_loop()
            self._turns.call_soon(self._turn)
        future: asyncio.Future[Tensors] = self._turns.create_future()
        self._here.append(_Work(request, self._form(request.inputs), future))
        return future

    def close(self) -> None:
        """Drop waiting requests, and end the threads after their current runs."""
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
        """The form that requests in one run share: the sizes of their inputs, except for the number of items."""
        if self._fixed or self.items == 1:
            return ()
        return tuple(
            size
            for tensor in self._signature.inputs
            for axis, size in enumerate(inputs[tensor.name].shape)
            if axis != tensor.batch_axis
        )

    def _put(self, work: _QueuedWork) -> None:
        with self._changed:
            self._queue.append(work)
            if self._lingering:
                self._changed.notify_all()  # whoever lingers may be the one to take it, or holds the others up no longer
            else:
                self._changed.notify()

    def _turn(self) -> None:
        """Run the first requests that wait for the event loop. Other tasks of the loop get a turn between two runs."""
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
        if not self._here:
            self._turns = None
        elif self._turns is not None:
            self._turns.call_soon(self._turn)
        if batch:
            began = time.perf_counter()
            outcomes = self._outcomes(batch, self._run_here)
            self.watch.ran(rows, time.perf_counter() - began)
            for work, outcome in zip(batch, outcomes, strict=True):
                work.request.began = began
                _resume(work.future, outcome)

    def _expire(self, work: _QueuedWork, error: RequestError) -> None:
        """Answer a waiting request with `error`. A request whose run has begun still gets its outputs."""
        with self._changed:
            if work not in self._queue:
                return
            self._queue.remove(work)
        work.outcome = error
        work.settle()

    def _watch(self, work: _QueuedWork, gone: Gone) -> None:
        """Drop a waiting request if its client disconnects."""
        watching = asyncio.ensure_future(_until(gone))
        watching.add_done_callback(lambda _: self._expire(work, _given_up("the client had left")))
        work.future.add_done_callback(lambda _: watching.cancel())

    def _settle(self, batch: list[_QueuedWork]) -> None:
        """Finish the requests of a run of a thread, in the event loop."""
        if batch[0].began:
            self.watch.ran(sum(work.rows for work in batch), batch[0].ended - batch[0].began)
        for work in batch:
            if work.began:
                self.watch.waited(work.began - work.arrived)
            work.settle()

    # --------------------------------------------------------------------------------------------------------- in the threads

    def _serve(self) -> None:
        while batch := self._next():
            began = time.perf_counter()
            outcomes = self._outcomes(batch, self._run)
            ended = time.perf_counter()
            for work, outcome in zip(batch, outcomes, strict=True):
                work.began = work.request.began = began
                work.ended, work.outcome = ended, outcome
            self._return(batch)

    def _next(self) -> list[_QueuedWork]:
        """The next request, and those that run with it; empty when the batcher is closed."""
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

    def _first(self) -> list[_QueuedWork]:
        while True:
            while self._queue:
                work = self._queue.popleft()
                if not work.abandoned:
                    return [work]
                self._return([work])
            if self._closed:
                return []
            self._changed.wait()

    def _join(self, batch: list[_QueuedWork], rows: int, most: int) -> int:
        """Move waiting requests of the same form into the run, in their order, while there is room; returns its number of items."""
        others: list[_QueuedWork] = []
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

    def _return(self, batch: list[_QueuedWork]) -> None:
        """Return the requests to the event loop, all in one call."""
        try:
            batch[0].future.get_loop().call_soon_threadsafe(self._settle, batch)
        except RuntimeError:  # the loop has ended, and with it those who waited
            log.warning("%d requests ended after the event loop", len(batch))

    # ------------------------------------------------------------------------------------------------------------ in either

    def _outcomes(self, batch: Sequence[_Work], run: Run) -> Sequence[Outcome]:
        """Run the requests: the outputs or the error of each."""
        if len(batch) == 1:
            return [_alone(batch[0], run)]
        try:
            rows = sum([work.rows for work in batch])
            size = sum([work.request.size for work in batch])
            return self._scattered(batch, run(self._gathered(batch), rows, size), rows)
        except Exception as error:  # noqa: BLE001  one request may have made the run fail, and no other is to hear of it
            log.info("a run of %d requests failed, so each runs by itself: %s", len(batch), error)
            return [_alone(work, run) for work in batch]

    def _gathered(self, batch: Sequence[_Work]) -> Tensors:
        return {
            tensor.name: np.concatenate(
                [work.request.inputs[tensor.name] for work in batch], axis=tensor.batch_axis or 0
            )
            for tensor in self._signature.inputs
        }

    def _scattered(self, batch: Sequence[_Work], outputs: Tensors, rows: int) -> list[Tensors]:
        """Each request's part of the outputs, as views. Raises RuntimeFailure if the outputs do not have as many items as the inputs."""
        parts: list[Tensors] = [{} for _ in batch]
        for tensor in self._signature.outputs:
            array, before = outputs[tensor.name], (slice(None),) * (tensor.batch_axis or 0)
            if array.shape[len(before)] != rows:
                raise RuntimeFailure(f"output {tensor.name}: expected {rows} items, found shape {list(array.shape)}")
            at = 0
            for work, part in zip(batch, parts, strict=True):
                part[tensor.name] = array[(*before, slice(at, at := at + work.rows))]
        return parts


def _resume(future: asyncio.Future[Tensors], outcome: Outcome) -> None:
    """End the wait for the outcome, unless nobody waits any more."""
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _alone(work: _Work, run: Run) -> Outcome:
    try:
        return run(work.request.inputs, work.rows, work.request.size)
    except BaseException as error:  # noqa: BLE001  whatever it is, it is this request's, and there are others to serve
        return error


async def _until(gone: Gone) -> None:
    await gone()


def _given_up(why: str) -> RequestError:
    """The error for a request that nobody waits for any more. It is not a failure of the model."""
    return RequestError(Code.GONE, f"the request was cancelled while it waited for the model: {why}")
