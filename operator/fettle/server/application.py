"""The data port: Open Inference Protocol V2 REST as an RSGI application.

Small bodies are decoded where they arrive, in the event loop. Large ones, and large answers, go through one thread, one at a time and piece by
piece (`elements`), so that neither the loop nor the management port waits for them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import orjson
from granian.rsgi import ProtocolClosed as RSGIProtocolClosed

from fettle import __version__
from fettle.api.text import clip
from fettle.errors import FettleError
from fettle.runtimes.base import Array
from fettle.server.bodies import Bodies
from fettle.server.connections import Connections
from fettle.server.metrics import Metrics
from fettle.server.model import ServedModel
from fettle.server.protocol import Header, InferRequest, ProtocolError, decode, encode, metadata
from fettle.server.samples import Samples
from fettle.server.settings import ServerSettings
from fettle.server.windows import Windows

log = logging.getLogger(__name__)
_T = TypeVar("_T")

SMALL_BODY, SMALL_ANSWER = (
    1 << 18,
    1 << 16,
)  # bytes, elements: what the event loop may work on itself, in a few milliseconds
GONE = 499  # counted where a client hung up before its request was whole: nobody hears an answer


class Answer(NamedTuple):
    """What goes back to the client. `closing`: its connection is of no more use."""

    status: int
    body: bytes
    headers: tuple[Header, ...] = ()
    closing: bool = False


class Application:
    """Routes of the data port. State is touched by the event loop only."""

    def __init__(self, settings: ServerSettings, model: ServedModel) -> None:
        self.settings, self.model = settings, model
        self.windows = Windows()
        self.samples = Samples(model.signature, settings.samples, settings.samples_max_bytes)
        self.metrics = Metrics(settings.model, settings.revision)
        self.bodies = Bodies(settings)
        self._codec = ThreadPoolExecutor(1, thread_name_prefix="codec")
        self.connections = Connections(settings.connection_max_requests, settings.connection_max_seconds)
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self._headers = [("content-type", "application/json"), ("fettle-revision", settings.revision)]
        self._closing = [*self._headers, ("connection", "close")]
        base = f"/v2/models/{settings.model}"
        self._bases = (base, f"{base}/versions/{settings.revision}")
        self._infer_paths = frozenset(f"{each}/infer" for each in self._bases)

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Answer one request."""
        if scope.proto != "http":
            protocol.close(None)
            return
        self.in_flight += 1
        self.idle.clear()
        try:
            answer = await self._answer(scope, protocol)
            self.metrics.count(answer.status)
            if answer.status == GONE:
                return
            closing = self.connections.should_close(scope.client) or answer.closing
            headers = self._closing if closing else self._headers
            protocol.response_bytes(answer.status, [*headers, *answer.headers], answer.body)
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()

    async def _answer(self, scope: Any, protocol: Any) -> Answer:
        """The answer, whatever happens: what nobody foresaw is a 500 that metrics and windows count like any other."""
        started = time.perf_counter()
        inference = scope.path in self._infer_paths
        try:
            answer = await self._infer(scope, protocol) if inference else self._get(scope)
        except ProtocolError as error:
            answer = Answer(error.status, _error(error.message), error.headers, error.unread)
        except FettleError as error:
            log.warning("the model failed: %s", error.message)
            answer = Answer(500, _error(error.message))
        except RSGIProtocolClosed:
            return Answer(GONE, b"")
        except Exception as error:
            log.exception("%s %s failed", scope.method, clip(scope.path))
            answer = Answer(500, _error(f"the server failed: {type(error).__name__}; its log says more"))
            inference = True
        if inference:
            self._record(answer.status, time.perf_counter() - started)
        return answer

    def _record(self, status: int, seconds: float) -> None:
        self.metrics.latency.observe(seconds)
        if status < 400 or status >= 500:  # a client's own mistake says nothing of the model
            self.windows.record(seconds * 1000, error=status >= 500)

    async def _infer(self, scope: Any, protocol: Any) -> Answer:
        if scope.method != "POST":
            raise ProtocolError(405, "infer takes POST", (("Allow", "POST"),))
        headers = scope.headers
        _check_form(headers)
        body = await self.bodies.read(protocol, headers.get("content-length"))
        try:
            arguments = (body, self.model.signature, self.settings.max_rows)
            request = await self._work(len(body) <= SMALL_BODY, decode, *arguments)
            outputs = await self._outputs(request)
            named = (self.settings.model, self.settings.revision, request, self.model.signature, outputs)
            small = sum(array.size for array in outputs.values()) <= SMALL_ANSWER
            return Answer(200, await self._work(small, encode, *named))
        finally:
            self.bodies.release(len(body))

    async def _work(self, small: bool, function: Callable[..., _T], *arguments: Any) -> _T:
        if small:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._codec, function, *arguments)

    async def _outputs(self, request: InferRequest) -> dict[str, Array]:
        started = time.perf_counter()
        self.metrics.waiting.inc()
        try:
            outputs = await self.model.infer(request)
        finally:
            self.metrics.waiting.dec()
            self.metrics.inference.observe(time.perf_counter() - started)
        try:
            self.samples.offer(request.inputs, request.rows, outputs)
        except Exception:
            log.exception("an answered item could not be kept for canaries")
        return outputs

    def _get(self, scope: Any) -> Answer:
        path = scope.path.rstrip("/")
        document = self._document(path)
        if document is None:
            known = f"this server has the model {self.settings.model!r}, version {self.settings.revision!r}"
            raise ProtocolError(404, f"{clip(scope.path)}: not found; {known}")
        if scope.method not in ("GET", "HEAD"):
            raise ProtocolError(405, f"{scope.path} takes GET", (("Allow", "GET"),))
        ready = not self.connections.draining
        return Answer(503 if path.endswith("/ready") and not ready else 200, orjson.dumps(document))

    def close(self) -> None:
        """End the thread that works on large bodies."""
        self._codec.shutdown(wait=True, cancel_futures=True)

    def _document(self, path: str) -> dict[str, Any] | None:
        ready = not self.connections.draining
        if path == "/v2":
            return {"name": "fettle", "version": __version__, "extensions": []}
        if path == "/v2/health/live":
            return {"live": True}
        if path == "/v2/health/ready":
            return {"ready": ready}
        if path in self._bases:
            platform = f"{self.model.manifest.model.format.lower()}_{self.model.manifest.runtime}"
            return metadata(self.settings.model, self.settings.revision, platform, self.model.signature)
        if path in tuple(f"{base}/ready" for base in self._bases):
            return {"name": self.settings.model, "ready": ready}
        return None


def _check_form(headers: Any) -> None:
    """Refuse bodies in forms that would only be found not to be JSON."""
    encoding = headers.get("content-encoding")
    if encoding is not None and encoding.strip().lower() not in ("", "identity"):
        raise ProtocolError(
            415, f"bodies are taken as they are, not with Content-Encoding {clip(encoding, 64)!r}", unread=True
        )
    if headers.get("inference-header-content-length") is not None:
        raise ProtocolError(400, "binary tensors are not supported: send JSON", unread=True)


def _error(message: str) -> bytes:
    return orjson.dumps({"error": message})
