"""The inference service: how a request is processed, independently of its protocol.

The bytes are decoded, the model runs, an item may be kept for canaries, the outputs are encoded, and the result is counted once. A front
(such as `http.py`) provides the bytes and a codec (such as `protocol.py`), and sends the response. This module depends on neither.

Small bodies are decoded in the event loop. Large bodies, pictures, texts and large answers are processed by one thread, one at a time and in pieces
(`elements`), so that neither the loop nor the management port waits for them. It works for clients in turn (`threads`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

from fettle.api import catalog
from fettle.api.signature import Signature
from fettle.api.vocabulary import DeviceKind
from fettle.errors import FettleError
from fettle.runtimes import cuda
from fettle.runtimes.base import Array
from fettle.server.access import Access
from fettle.server.batcher import Gone, Unheard
from fettle.server.bodies import NO_MEMORY, Bodies
from fettle.server.drift import Drift
from fettle.server.logs import HEADERS
from fettle.server.metrics import Metrics
from fettle.server.model import ServedModel
from fettle.server.request import Code, InferRequest, RequestError
from fettle.server.request_log import RequestLog
from fettle.server.samples import PER_SECOND, Samples
from fettle.server.settings import ServerSettings
from fettle.server.shares import Crowd, Places, Slots, Who, nobody
from fettle.server.threads import Turns
from fettle.server.tracing import RequestTrace, Tracing
from fettle.server.windows import MOST_BYTES, Windows

log = logging.getLogger(__name__)
_T = TypeVar("_T")
Deadline = Callable[[], float | None]  # seconds that the client still waits; None: as long as it takes
_OK = Code.OK

# What the event loop may work on itself, in a few milliseconds.
SMALL_BODY = 1 << 18  # bytes
SMALL_ANSWER = 1 << 16  # elements


class Codec(Protocol):
    """The encoding of a protocol's requests and responses. A module with these two functions is a codec."""

    def decode(self, body: bytes | bytearray, signature: Signature, max_rows: int, /) -> InferRequest:
        """The request, checked against the signature. Raises RequestError INVALID."""

    def encode(
        self, model: str, version: str, request: InferRequest, signature: Signature, outputs: Mapping[str, Array], /
    ) -> bytes:
        """The response. Raises RuntimeFailure if the protocol cannot represent what the model returned."""


class Underway:
    """A number of requests, and its end."""

    __slots__ = ("_ended", "count")

    def __init__(self) -> None:
        self.count = 0
        self._ended: asyncio.Event | None = None

    def settle(self) -> None:
        """To be called when a request has ended."""
        if self._ended is not None and not self.count:
            self._ended.set()

    async def over(self) -> None:
        """Wait until none is left. No other one may begin."""
        if self.count:
            self._ended = asyncio.Event()
            await self._ended.wait()


class InferenceService:
    """Processes the requests of all fronts. Its state is used by one event loop only, which is also that of the fronts."""

    def __init__(self, settings: ServerSettings, model: ServedModel) -> None:
        """Raises UsageError if tokens are required, but the Secret has none, and if requests are to be logged, but no samples are taken."""
        self.settings, self.model = settings, model
        self.windows = Windows(most_bytes=MOST_BYTES // settings.sharers)
        kept = (settings.samples, settings.samples_max_bytes)
        self.samples = Samples(model.signature, *kept, per_second=PER_SECOND / settings.sharers)
        self.metrics = Metrics(settings.model, settings.revision)
        self.metrics.waiting.set_function(lambda: float(model.waiting))
        self.metrics.samples.set_function(lambda: float(len(self.samples)))
        if catalog.runtime(model.manifest.runtime).device is DeviceKind.NVIDIA:
            self.metrics.watch_gpu(cuda.connect().memory)
        model.batcher.watch = self.metrics
        labels = (settings.model, settings.revision)
        self.drift = Drift(model.profile, model.signature, labels) if model.profile is not None else None
        if self.drift is not None and not settings.shares_ports:  # drift of several processes is not the sum of theirs
            self.metrics.registry.register(self.drift)
        self.request_log = RequestLog(settings, self.metrics) if settings.request_log_uri else None
        self._crowd = Crowd()
        self.bodies = Bodies(settings, self._crowd)
        self.access = Access(settings)
        self.tracing = Tracing(settings) if settings.tracing_endpoint else None
        self._codec_thread = Turns("codec")
        # Those who wait for the codec thread, or are in it.
        self.decoding = Places(
            settings.max_queue, "requests", "waiting to be decoded", Code.UNAVAILABLE, crowd=self._crowd
        )
        # A client that is alone may fill the queue: a model that is too slow for an ingress fails.
        self._queued = Slots(settings.max_queue, "requests", "waiting for the model", crowd=self._crowd)
        self.draining = False
        self.in_flight = 0
        # Requests that have begun since `finish` was last called: those whose client is not known yet, and those for inference.
        self._admitting, self._answering = Underway(), Underway()

    async def infer(
        self,
        receive: Awaitable[bytes | bytearray],
        codec: Codec,
        gone: Gone | None = None,
        deadline: Deadline | None = None,
        *,
        who: Who = nobody,
        in_thread: bool = False,
    ) -> bytes:
        """The encoded response. Every request is counted once, with the time from before its body arrives until its response is encoded.

        `receive` returns a body that `bodies` accounts for; it may raise RequestError. A request is dropped if, while it waits for the model, its
        client disconnects (`gone` ends) or its `deadline` (in seconds) passes. `who`: the client, with whose large bodies and answers those of
        others take turns. `in_thread`: even a small body takes long to decode.

        Raises only RequestError, also for unexpected errors, and CancelledError if the front's library cancels a request of a client that has
        disconnected, once no thread works on it.
        """
        started = time.perf_counter()
        underway = self._answering
        underway.count += 1
        self.in_flight += 1
        code = Code.FAILED
        judged: Code | None = None
        trace = None
        try:
            self._crowd.note(who, started)
            trace = self.tracing.begin(HEADERS.get(), started) if self.tracing is not None else None
            answer = await self._answer(await receive, codec, gone, deadline, who, in_thread, trace)
            code = _OK
            return answer
        except RequestError as error:
            code = error.code
            raise
        except asyncio.CancelledError as error:
            code = Code.GONE
            if isinstance(error, Unheard):
                judged = Code.FAILED if error.failed else _OK
            raise
        except Exception as error:
            failure = _failure(error)
            code = failure.code
            raise failure from error
        finally:
            self._count(code, time.perf_counter() - started, judged)
            if trace is not None:
                trace.end(code)
            self.in_flight -= 1
            underway.count -= 1
            if not underway.count:
                underway.settle()

    async def admit(self, authorization: str | None, address: str, *, infer: bool) -> str:
        """The client, identified by its token, or else by its `address`. Call `access.leave` when its inference request (`infer`) is over.

        Raises RequestError UNAUTHENTICATED, LIMITED, or UNAVAILABLE if nobody can say whose token it is. It is counted, but not in windows: it says
        nothing of the model.
        """
        underway = self._admitting
        underway.count += 1
        try:
            client = await self.access.identify(authorization, address)
            if infer:
                self.access.enter(client)
            return client
        except RequestError as error:
            log.debug("a request of %s was refused: %s", address, error.message)
            self.metrics.refuse(error.code)
            raise
        except asyncio.CancelledError:  # the client left while its token was checked
            self.metrics.refuse(Code.GONE)
            raise
        finally:
            underway.count -= 1
            underway.settle()

    def tell(self, function: Callable[..., tuple[Code, _T]], *arguments: Any) -> tuple[Code, _T]:
        """The response to a request that does not need the model (metadata, health, an unknown path). It is counted once, in metrics only.

        Raises RequestError: the function's own, or for an unexpected error FAILED, or UNAVAILABLE where memory is short, which also counts as an
        error in windows.
        """
        started = time.perf_counter()
        try:
            code, answer = function(*arguments)
        except RequestError as error:
            self.metrics.count(error.code)
            raise
        except Exception as error:
            failure = _failure(error)
            self._count(failure.code, time.perf_counter() - started)
            raise failure from error
        self.metrics.count(code)
        return code, answer

    async def finish(self) -> None:
        """Wait for the requests that are under way now, including those whose token is being checked. Requests that arrive meanwhile are answered as
        well, but not waited for: a client that keeps sending would keep the pod from its end."""
        admitting, self._admitting = self._admitting, Underway()
        await admitting.over()  # each of them has now begun its inference
        answering, self._answering = self._answering, Underway()
        await answering.over()

    def close(self) -> None:
        """End the threads for large bodies, for tokens and for the request log, and export the last traces."""
        self._codec_thread.close()
        if self.request_log is not None:
            self.request_log.stop()
        self.access.close()
        if self.tracing is not None:
            self.tracing.close()

    def _count(self, code: Code, seconds: float, judged: Code | None = None) -> None:
        """Count a result. `judged`: the model's result for a client that did not wait for it, so that clients with deadlines do not hide a slow
        model."""
        if log.isEnabledFor(logging.DEBUG):
            log.debug("a request ended with %s after %.3f ms", code.name, 1000 * seconds)
        self.metrics.count(code)
        code = judged or code
        if code is _OK:
            self.metrics.latency.observe(seconds)
            self.windows.record(seconds * 1000, error=False)
        elif code is not Code.GONE:
            self.metrics.latency.observe(seconds)
            if code.is_failure:  # a client's own mistake says nothing of the model
                self.windows.record(seconds * 1000, error=True)

    async def _answer(
        self,
        body: bytes | bytearray,
        codec: Codec,
        gone: Gone | None,
        deadline: Deadline | None,
        who: Who,
        in_thread: bool,
        trace: RequestTrace | None,
    ) -> bytes:
        settings, signature = self.settings, self.model.signature
        made = 0  # bytes that a few bytes of body became
        if trace is not None:
            trace.received()
        try:
            if len(body) <= SMALL_BODY and not in_thread:
                request = codec.decode(body, signature, settings.max_rows)
            else:
                request = await self._decode(codec, body, who())
            if in_thread:  # what is decoded from a few bytes may be large, and waits for the model
                self.bodies.reserve(request.size, who)
                made = request.size
            if trace is not None:
                trace.decoded(request)
            started = time.perf_counter()
            try:
                outputs = self.model.infer_at_once(request) if self.in_flight == 1 else None
                if outputs is None:
                    outputs = await self._in_turn(request, gone, deadline, who)
            finally:
                self.metrics.inference.observe(time.perf_counter() - started)
                if trace is not None:
                    trace.ran()
            self._keep(request, outputs)
            answered = (settings.model, settings.revision, request, signature, outputs)
            if sum([array.size for array in outputs.values()]) <= SMALL_ANSWER:
                return codec.encode(*answered)
            try:
                return await self._codec_thread.run(who(), codec.encode, *answered, first=True)
            except asyncio.CancelledError:
                raise Unheard(failed=False) from None
        finally:
            self.bodies.release(len(body), who)
            if made:
                self.bodies.release(made, who)

    async def _in_turn(
        self, request: InferRequest, gone: Gone | None, deadline: Deadline | None, who: Who
    ) -> dict[str, Array]:
        """The model's outputs, once it is free. Raises RequestError as `ServedModel.infer`, and LIMITED for a client with others that has most of the
        queue."""
        place = id(request)
        self._queued.take(place, who)
        try:
            left = deadline() if deadline is not None else None
            return await self.model.infer(request, self.settings.queue_seconds, left, gone)
        finally:
            self._queued.give(place)

    async def _decode(self, codec: Codec, body: bytes | bytearray, client: str) -> InferRequest:
        """Decode in the one thread. Raises RequestError UNAVAILABLE, LIMITED for more than may wait for it, of all or of this client, and UNAVAILABLE
        for one that waited too long."""
        settings = self.settings
        self.decoding.take(client)
        late = time.perf_counter() + settings.queue_seconds

        def decode() -> InferRequest:
            if time.perf_counter() > late:
                message = f"the request waited more than {settings.queue_seconds:g} s to be decoded"
                raise RequestError(Code.UNAVAILABLE, message)
            return codec.decode(body, self.model.signature, settings.max_rows)

        try:
            return await self._codec_thread.run(client, decode)
        finally:
            self.decoding.give(client)

    def _keep(self, request: InferRequest, outputs: Mapping[str, Array]) -> None:
        """Offer an answered item as a sample. Kept samples are also used to measure drift, and for the request log."""
        try:
            sample = self.samples.offer(request.inputs, request.rows, outputs)
            if sample is not None and self.drift is not None:
                self.drift.count(sample.inputs, sample.outputs)
            if sample is not None and self.request_log is not None:
                self.request_log.offer(sample.inputs)
        except Exception:
            log.exception("an answered item could not be kept for canaries")


def _failure(error: Exception) -> RequestError:
    """The error for a failure that is not the client's fault. The log has the details."""
    if isinstance(error, FettleError):
        log.warning("the model failed: %s", error.message)
        return RequestError(Code.FAILED, error.message)
    if isinstance(error, MemoryError):
        log.error("there was not enough memory for a request: %s", error)
        return RequestError(Code.UNAVAILABLE, NO_MEMORY)
    log.error("a request failed", exc_info=error)
    return RequestError(Code.FAILED, f"internal server error: {type(error).__name__}; see the server's log")
