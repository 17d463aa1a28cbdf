"""The HTTP front: the routes of the Open Inference Protocol V2, the bodies and headers of requests, and the lifetime of connections."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from fettle.api.text import clip
from fettle.server import describe, openapi, proxies, rsgi
from fettle.server.connections import Connections
from fettle.server.listener import Listener
from fettle.server.logs import HEADERS, REQUEST_ID, TRACE_CONTEXT, told
from fettle.server.predict import Predict
from fettle.server.protocol import LINES, TEXT, HttpExchange, PictureExchange, PreparedExchange, TextExchange
from fettle.server.request import Code, RequestError, not_found
from fettle.server.service import InferenceService
from fettle.server.shares import Who
from fettle.server.texts import Room

Header = tuple[str, str]

# Metrics count under HTTP's own numbers. 499 is none of them: who closed only its own half of the connection still hears the answer.
STATUSES = {code: int(code.value) for code in Code} | {Code.GONE: int(Code.INVALID.value)}
_CHALLENGE: tuple[Header, ...] = (("WWW-Authenticate", "Bearer"),)
_OPEN = ("/v2/health/live", "/v2/health/ready")  # what load balancers ask, who have no token
_JSON: tuple[Header, ...] = (("content-type", "application/json"),)
_BYTES: Header = ("content-type", "application/octet-stream")
_JSON_SIZE = "inference-header-content-length"  # bytes of JSON before those of tensors


class HttpFront:
    """The data port."""

    def __init__(self, service: InferenceService) -> None:
        settings = service.settings
        self.service = service
        self.connections = Connections(settings.connection_max_requests, settings.connection_max_seconds)
        told = (settings.host, settings.port, settings.tls_folder, settings.tls_clients, settings.shares_ports)
        self._listener = Listener(self, *told)
        if settings.tls_folder is not None:
            service.metrics.certificate(lambda: self._listener.expires)
        self._guarded = settings.tls_folder is not None or not service.access.open
        self._headers = [("fettle-revision", settings.revision)]
        self._closing = [*self._headers, ("connection", "close")]
        self._room = Room(settings.max_text_bytes, settings.max_body_bytes)
        named = f"/models/{settings.model}"
        names = (named, f"{named}/versions/{settings.revision}")
        self._bases = tuple(f"/v2{name}" for name in names)
        self._v1_bases = tuple(f"/v1{name}" for name in names)
        self._codecs: dict[str, Callable[[], HttpExchange | Predict]] = {
            **dict.fromkeys((f"{base}/infer" for base in self._bases), HttpExchange),
            **dict.fromkeys((f"{base}:predict" for base in self._v1_bases), Predict),
        }

    async def serve(self) -> None:
        """Listen until `stop`."""
        await self._listener.serve()

    async def begun(self) -> None:
        """Wait until it listens."""
        await self._listener.begun()

    def drain(self) -> None:
        """Nothing to do: during a drain, each response closes its connection."""

    def stop(self) -> None:
        """Stop listening."""
        self._listener.stop()

    async def __rsgi__(self, scope: Any, connection: Any) -> None:
        """Answer one request."""
        if scope.proto != "http":
            connection.close(None)
            return
        closing = False
        more: tuple[Header, ...] = _JSON
        client: str | None = None
        peer, given = scope.client, scope.headers
        HEADERS.set(given.get)
        try:
            codec = self._codecs.get(scope.path)
            if self._guarded:
                client = await self._admit(scope, peer, codec is not None)
            if codec is not None:
                exchange = self._exchange(codec, given)
                who = partial(self.service.access.client, client, peer, partial(_forwarded, given))
                receive = self._receive(scope, given, connection, exchange, who)
                gone = connection.client_disconnect
                made = isinstance(exchange, PreparedExchange)
                code, body = Code.OK, await self.service.infer(receive, exchange, gone, who=who, in_thread=made)
                if exchange.json_size is not None:
                    more = (_BYTES, (_JSON_SIZE, str(exchange.json_size)))
            else:
                code, body = self.service.tell(self._get, scope)
        except RequestError as error:
            code, body = error.code, orjson.dumps({"error": error.message})
            closing, more = error.unread, (*_JSON, *self._error_headers(error, scope.path))
        finally:
            if client is not None:
                self.service.access.leave(client)
        closing |= self.connections.should_close(peer) or self.service.draining
        headers = self._closing if closing else self._headers
        if REQUEST_ID in given or TRACE_CONTEXT in given:
            more = (*more, *told(given.get).items())
        connection.response_bytes(STATUSES[code], [*headers, *more], body)

    async def _admit(self, scope: Any, peer: str, infer: bool) -> str | None:
        """The client of an inference request, which now counts against its limits; None for other requests. Raises RequestError."""
        if scope.path in _OPEN:
            return None
        client = self._listener.client(peer)
        if client is None:
            code = Code.GONE if self._listener.has_left(peer) else Code.UNAUTHENTICATED
            self.service.metrics.refuse(code)
            raise RequestError(code, "this port only accepts connections from the TLS listener", unread=True)
        headers = scope.headers
        address = self.service.access.client(None, client, partial(_forwarded, headers))
        name = await self.service.admit(headers.get("authorization"), address, infer=infer)
        return name if infer else None

    def _exchange(self, codec: Callable[[], HttpExchange | Predict], headers: Any) -> HttpExchange | Predict:
        """The codec of this request: that of its path, or of pictures or texts where the body is one."""
        kind = headers.get("content-type")
        if kind is None or kind == "application/json" or codec is not HttpExchange:
            return codec()
        model = self.service.model
        kind, _, parameters = kind.partition(";")
        kind = kind.strip().lower()
        if kind.startswith("image/"):
            return PictureExchange(kind, model.pictures, self.service.settings.max_image_pixels)
        return TextExchange(kind, parameters, model.texts, self._room) if kind in (TEXT, LINES) else codec()

    def _error_headers(self, error: RequestError, path: str) -> tuple[Header, ...]:
        """The headers of an error response."""
        if error.code is Code.NOT_ALLOWED:
            return (("Allow", "POST" if path in self._codecs else "GET, HEAD"),)
        if error.code is Code.UNAUTHENTICATED:
            return _CHALLENGE
        return (("Retry-After", str(error.retry_after)),) if error.retry_after is not None else ()

    async def _receive(
        self, scope: Any, headers: Any, connection: Any, exchange: HttpExchange | Predict, who: Who
    ) -> bytes | bytearray:
        """The body of a request for inference; `exchange` is told how much of it is JSON. Raises RequestError."""
        if scope.method != "POST":
            raise RequestError(Code.NOT_ALLOWED, f"{scope.path} requires POST")
        exchange.json_size = _json_size(headers)
        if isinstance(exchange, PreparedExchange):
            exchange.require()
        length = headers.get("content-length")
        size = int(length) if length is not None and length.isdecimal() else None
        try:
            return await self.service.bodies.read(connection, size, who)
        except rsgi.ProtocolClosed:
            message = "the client closed the connection before its request was complete"
            raise RequestError(Code.GONE, message, unread=True) from None

    def _get(self, scope: Any) -> tuple[Code, bytes]:
        path = scope.path.rstrip("/")
        document = self._document(path)
        if document is None:
            raise not_found(clip(scope.path), self.service.settings.model, self.service.settings.revision)
        if scope.method not in ("GET", "HEAD"):
            raise RequestError(Code.NOT_ALLOWED, f"{scope.path} requires GET")
        unready = path.endswith("/ready") and self.service.draining
        return Code.UNAVAILABLE if unready else Code.OK, orjson.dumps(document)

    def _document(self, path: str) -> dict[str, Any] | None:
        settings, model, ready = self.service.settings, self.service.model, not self.service.draining
        if path == "/v2":
            return describe.server()
        if path == "/v2/health/live":
            return {"live": True}
        if path == "/v2/health/ready":
            return {"ready": ready}
        if path in self._bases:
            return describe.model(settings, model)
        if path in tuple(f"{base}/ready" for base in self._bases):
            return {"name": settings.model, "ready": ready}
        if path in self._v1_bases:
            return describe.status(settings, ready)
        if path == openapi.PATH:
            pictures, texts = not isinstance(model.pictures, str), not isinstance(model.texts, str)
            return openapi.document(settings, model.signature, pictures=pictures, texts=texts)
        return None


def _forwarded(headers: Any) -> list[str]:
    """The values of X-Forwarded-For; none if granian leaves one out whose name it tells, as it does for bytes beyond ASCII."""
    values: list[str] = headers.get_all(proxies.HEADER)
    return values if len(values) >= sum(name == proxies.HEADER for name in headers.keys()) else []  # noqa: SIM118


def _json_size(headers: Any) -> int | None:
    """The number of bytes of JSON before the tensors; None if the whole body is JSON. Raises RequestError for a compressed body or a wrong number."""
    encoding = headers.get("content-encoding")
    if encoding is not None and encoding.strip().lower() not in ("", "identity"):
        message = f"Content-Encoding {clip(encoding, 64)!r} is not supported: send the body uncompressed"
        raise RequestError(Code.UNSUPPORTED, message, unread=True)
    size = headers.get(_JSON_SIZE)
    if size is None:
        return None
    if not (size.isascii() and size.isdecimal() and len(size) < 20) or not int(size):
        message = f"Inference-Header-Content-Length must be the number of bytes of JSON, found {clip(size, 64)!r}"
        raise RequestError(Code.INVALID, message, unread=True)
    return int(size)


FRONT = HttpFront
