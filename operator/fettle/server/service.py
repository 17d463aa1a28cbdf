"""The inference service: what becomes of a request, whichever front it came through.

Bytes are decoded, the model runs, an item is kept for canaries, outputs are encoded, and how it ended is counted once. A front
(`http.py`) brings the bytes and a codec (`protocol.py`), and says to its client what came of it; nothing here knows of either.

Small bodies are decoded where they arrive, in the event loop. Large ones, and large answers, go through one thread, one at a time and piece by
piece (`elements`), so that neither the loop nor the management port waits for them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from fettle.api.signature import Signature
from fettle.errors import FettleError
from fettle.runtimes.base import Array
from fettle.server.access import Access
from fettle.server.batcher import Gone, Unheard
from fettle.server.bodies import Bodies
from fettle.server.drift import Drift
from fettle.server.metrics import Metrics
from fettle.server.model import ServedModel
from fettle.server.request import Code, InferRequest, RequestError
from fettle.server.samples import Samples
from fettle.server.settings import ServerSettings
from fettle.server.threads import run_to_end
from fettle.server.windows import Windows

log = logging.getLogger(__name__)
_T = TypeVar("_T")
Deadline = Callable[[], float | None]  # seconds that the client still waits; None: as long as it takes
_OK = Code.OK

# What the event loop may work on itself, in a few milliseconds.
SMALL_BODY = 1 << 18  # bytes
SMALL_ANSWER = 1 << 16  # elements


class Codec(Protocol):
    """The bytes of a protocol's requests and answers. A module with these two functions is one."""

    def decode(self, body: bytes | bytearray, signature: Signature, max_rows: int, /) -> InferRequest:
        """The request, checked against the signature. Raises RequestError INVALID."""

    def encode(
        self, model: str, version: str, request: InferRequest, signature: Signature, outputs: Mapping[str, Array], /
    ) -> bytes:
        """The answer. Raises RuntimeFailure where the protocol has no form for what the model returned."""


class InferenceService:
    """Answers what fronts bring. State is touched by one event loop only, which is the fronts' as well."""

    def __init__(self, settings: ServerSettings, model: ServedModel) -> None:
        """Raises UsageError where tokens are asked for and there is none."""
        self.settings, self.model = settings, model
        self.windows = Windows()
        self.samples = Samples(model.signature, settings.samples, settings.samples_max_bytes)
        self.metrics = Metrics(settings.model, settings.revision)
        self.metrics.waiting.set_function(lambda: float(model.waiting))
        model.batcher.watch = self.metrics
        labels = (settings.model, settings.revision)
        self.drift = Drift(model.profile, model.signature, labels) if model.profile is not None else None
        if self.drift is not None:
            self.metrics.registry.register(self.drift)
        self.bodies = Bodies(settings)
        self.access = Access(settings)
        self._codec_thread = ThreadPoolExecutor(1, thread_name_prefix="codec")
        self.draining = False
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()

    async def infer(
        self,
        receive: Awaitable[bytes | bytearray],
        codec: Codec,
        gone: Gone | None = None,
        deadline: Deadline | None = None,
    ) -> bytes:
        """The encoded answer. Whatever happens is counted once, from before the body is there to after the answer is.

        `receive` ends with a body that `bodies` holds; it may raise RequestError. A request whose client leaves (`gone` ends), or has no time
        left (`deadline` tells the seconds), while it waits for the model is let go. Raises RequestError and nothing else, what nobody
        foresaw included; CancelledError where a front's own library ends a request whose client is gone, once no thread works on it.
        """
        started = time.perf_counter()
        self.in_flight += 1
        self.idle.clear()
        code = Code.FAILED
        judged: Code | None = None
        try:
            answer = await self._answer(await receive, codec, gone, deadline)
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
            raise _failure(error) from error
        finally:
            self._count(code, time.perf_counter() - started, judged)
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()

    def admit(self, authorization: str | None, address: str, *, infer: bool) -> str:
        """The client that asks, by its token or its address; `access.leave` when its request for inference (`infer`) is over.

        Raises RequestError UNAUTHENTICATED, LIMITED, which is counted.
        """
        try:
            client = self.access.identify(authorization, address)
            if infer:
                self.access.enter(client)
        except RequestError as error:
            log.debug("a request of %s was refused: %s", address, error.message)
            self.metrics.refuse(error.code)
            raise
        return client

    def tell(self, function: Callable[..., tuple[Code, _T]], *arguments: Any) -> tuple[Code, _T]:
        """What a front says without the model (metadata, health, that a path is not there), counted once, in metrics only.

        Raises RequestError: the function's own, or FAILED for what nobody foresaw, which is an error of this pod in windows as well.
        """
        started = time.perf_counter()
        try:
            code, answer = function(*arguments)
        except RequestError as error:
            self.metrics.count(error.code)
            raise
        except Exception as error:
            self._count(Code.FAILED, time.perf_counter() - started)
            raise _failure(error) from error
        self.metrics.count(code)
        return code, answer

    def close(self) -> None:
        """End the thread that works on large bodies."""
        self._codec_thread.shutdown(wait=True, cancel_futures=True)

    def _count(self, code: Code, seconds: float, judged: Code | None = None) -> None:
        """`judged`: what the model came to, where the client did not stay to hear it. Else clients with deadlines would hide how slow it is."""
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
        self, body: bytes | bytearray, codec: Codec, gone: Gone | None, deadline: Deadline | None
    ) -> bytes:
        settings, signature = self.settings, self.model.signature
        try:
            if len(body) <= SMALL_BODY:
                request = codec.decode(body, signature, settings.max_rows)
            else:
                request = await run_to_end(self._codec_thread, codec.decode, body, signature, settings.max_rows)
            started = time.perf_counter()
            try:
                outputs = self.model.infer_at_once(request) if self.in_flight == 1 else None
                if outputs is None:
                    left = deadline() if deadline is not None else None
                    outputs = await self.model.infer(request, settings.queue_seconds, left, gone)
            finally:
                self.metrics.inference.observe(time.perf_counter() - started)
            self._keep(request, outputs)
            answered = (settings.model, settings.revision, request, signature, outputs)
            if sum([array.size for array in outputs.values()]) <= SMALL_ANSWER:
                return codec.encode(*answered)
            try:
                return await run_to_end(self._codec_thread, codec.encode, *answered)
            except asyncio.CancelledError:
                raise Unheard(failed=False) from None
        finally:
            self.bodies.release(len(body))

    def _keep(self, request: InferRequest, outputs: Mapping[str, Array]) -> None:
        """Offer an answered item to canaries; what is kept tells of drift as well."""
        try:
            sample = self.samples.offer(request.inputs, request.rows, outputs)
            if sample is not None and self.drift is not None:
                self.drift.count(sample.inputs, sample.outputs)
        except Exception:
            log.exception("an answered item could not be kept for canaries")


def _failure(error: Exception) -> RequestError:
    """What a client hears of a failure that is not its own doing; the log says more."""
    if isinstance(error, FettleError):
        log.warning("the model failed: %s", error.message)
        return RequestError(Code.FAILED, error.message)
    log.error("a request failed", exc_info=error)
    return RequestError(Code.FAILED, f"internal server error: {type(error).__name__}; see the server's log")
