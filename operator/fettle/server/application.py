"""The data port: Open Inference Protocol V2 REST as an RSGI application."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import orjson

from fettle import __version__
from fettle.errors import FettleError
from fettle.server.connections import Connections
from fettle.server.metrics import Metrics
from fettle.server.model import ServedModel
from fettle.server.protocol import InferRequest, ProtocolError, decode, encode, metadata
from fettle.server.samples import Samples
from fettle.server.settings import ServerSettings
from fettle.server.windows import Windows

log = logging.getLogger(__name__)


class Application:
    """Routes of the data port. State is touched by the event loop only."""

    def __init__(self, settings: ServerSettings, model: ServedModel) -> None:
        self.settings, self.model = settings, model
        self.windows = Windows()
        self.samples = Samples(model.signature, settings.samples, settings.samples_max_bytes)
        self.metrics = Metrics(settings.model, settings.revision)
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
            if scope.path in self._infer_paths:
                status, body, extra = await self._infer(scope, protocol)
            else:
                status, body, extra = self._get(scope)
            closing = status == 413 or self.connections.should_close(scope.client)
            headers = self._closing if closing else self._headers
            protocol.response_bytes(status, [*headers, *extra] if extra else headers, body)
            self.metrics.count(status)
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()

    async def _infer(self, scope: Any, protocol: Any) -> tuple[int, bytes, tuple[tuple[str, str], ...]]:
        started = time.perf_counter()
        extra: tuple[tuple[str, str], ...] = ()
        try:
            if scope.method != "POST":
                raise ProtocolError(405, "infer takes POST", (("Allow", "POST"),))
            request = decode(await self._body(scope, protocol), self.model.signature, self.settings.max_rows)
            body = await self._answer(request)
            status = 200
        except ProtocolError as error:
            status, body, extra = error.status, _error(error.message), error.headers
        except FettleError as error:
            log.warning("the model failed: %s", error.message)
            status, body = 500, _error(error.message)
        seconds = time.perf_counter() - started
        self.metrics.latency.observe(seconds)
        if status < 400 or status >= 500:  # a client's own mistake says nothing of the model
            self.windows.record(seconds * 1000, error=status >= 500)
        return status, body, extra

    async def _answer(self, request: InferRequest) -> bytes:
        started = time.perf_counter()
        self.metrics.waiting.inc()
        try:
            outputs = await self.model.infer(request)
        finally:
            self.metrics.waiting.dec()
            self.metrics.inference.observe(time.perf_counter() - started)
        self.samples.offer(request.inputs, request.rows, outputs)
        return encode(self.settings.model, self.settings.revision, request, self.model.signature, outputs)

    async def _body(self, scope: Any, protocol: Any) -> bytes:
        limit = self.settings.max_body_bytes
        too_large = ProtocolError(413, f"the body is larger than {limit} bytes")
        declared = scope.headers.get("content-length")
        if declared is not None:
            if int(declared) > limit:
                raise too_large
            return bytes(await protocol())
        parts: list[bytes] = []
        size = 0
        async for part in protocol:
            size += len(part)
            if size > limit:
                raise too_large
            parts.append(part)
        return b"".join(parts)

    def _get(self, scope: Any) -> tuple[int, bytes, tuple[tuple[str, str], ...]]:
        path = scope.path.rstrip("/")
        document = self._document(path)
        if document is None:
            known = f"this server has the model {self.settings.model!r}, version {self.settings.revision!r}"
            return 404, _error(f"{scope.path}: not found; {known}"), ()
        if scope.method not in ("GET", "HEAD"):
            return 405, _error(f"{scope.path} takes GET"), (("Allow", "GET"),)
        ready = not self.connections.draining
        status = 503 if path.endswith("/ready") and not ready else 200
        return status, orjson.dumps(document), ()

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


def _error(message: str) -> bytes:
    return orjson.dumps({"error": message})
