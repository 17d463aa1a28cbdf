"""The gRPC front: inference.GRPCInferenceService, with gRPC's own health and reflection. No other module knows grpc.

Every message is read here rather than by the library, and an inference call is handled as a stream of one request, which is the same on the wire.
So requests that are too large, too slow or never complete are limited and counted like any other request.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn
from urllib.parse import unquote

# No pool of threads reads the connections: docs/design/server.md#grpc. The library reads this when it is imported.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from fettle.api.text import clip
from fettle.server import call_metadata, describe, proxies
from fettle.server import inference_pb2 as pb
from fettle.server.call_metadata import Context
from fettle.server.logs import HEADERS, told
from fettle.server.messages import Messages
from fettle.server.ports import require_free
from fettle.server.reading import PATIENCE_SECONDS, Reading
from fettle.server.request import Code, RequestError
from fettle.server.service import InferenceService
from fettle.server.shares import Places, Who
from fettle.server.tls import Certificate, Files
from fettle.server.waiting_streams import WaitingStreams
from fettle.server.wire import field_head

STATUSES = {
    Code.OK: grpc.StatusCode.OK,
    Code.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Code.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Code.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Code.NOT_ALLOWED: grpc.StatusCode.UNIMPLEMENTED,
    Code.TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    Code.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    Code.LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.GONE: grpc.StatusCode.DEADLINE_EXCEEDED,  # a client that left hears nothing, so its deadline has passed
    Code.FAILED: grpc.StatusCode.INTERNAL,
    Code.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
}
SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
REFLECTION = reflection.SERVICE_NAME
_GRACE_SECONDS = 4.0  # for what came in while the port closed
_SHARE_OF_DRAIN = 0.75
_ACCEPTORS = 4  # servers on the port; docs/design/server.md#grpc says why
_MOST_METADATA = 1 << 14  # bytes; more: RESOURCE_EXHAUSTED
_MOST_AT_ONCE = 100  # requests on a connection; the client's library holds more back
_MOST_WATCHERS = 1024  # of health: each client that balances by itself is one, for as long as it is connected
_OPEN_AT_ONCE = 4  # messages that are read of those who need no token: they take no turn from those who need one
_OPEN = (health_pb2.HealthCheckRequest, pb.ServerLiveRequest, pb.ServerReadyRequest)  # what load balancers ask
_RESPONSE = 2  # number of the field ModelStreamInferResponse.infer_response


class RpcFront:
    """The gRPC port."""

    def __init__(self, service: InferenceService) -> None:
        settings = service.settings
        self.service = service
        self._codec = Messages(settings.model, settings.revision)
        self._trailing = (("fettle-revision", settings.revision),)
        at_once = max(1, settings.max_bodies_bytes // settings.grpc_max_message_bytes)
        self._reading = Reading(at_once, settings.body_seconds)
        self._open_reading = Reading(_OPEN_AT_ONCE, settings.body_seconds)
        self._streams = Places(settings.grpc_max_streams, "streams", "open")
        self._watchers = Places(_MOST_WATCHERS, "streams", "open")
        self._waiting = WaitingStreams(settings.grpc_stream_idle_seconds)
        self._listening, self._draining, self._stopping = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._reflection = reflection.aio.ReflectionServicer((SERVICE, HEALTH, REFLECTION))

    async def serve(self) -> None:
        """Listen until `stop`. Raises OSError if the port is in use, and UsageError without a usable certificate."""
        settings = self.service.settings
        if not settings.shares_ports:
            require_free(settings.host, settings.grpc_port)
        servers = [self._server() for _ in range(_ACCEPTORS)]
        for server in servers:
            await server.start()
        self._listening.set()
        await self._stopping.wait()
        await asyncio.gather(*(server.stop(_GRACE_SECONDS) for server in servers))

    async def begun(self) -> None:
        """Wait until it listens."""
        await self._listening.wait()

    def _server(self) -> Any:
        """One of the servers on the port. The kernel spreads connections over them."""
        settings = self.service.settings
        server = grpc.aio.server(options=self._options())
        server.add_generic_rpc_handlers((Handlers(self._handlers(), self._unknown()),))
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        if settings.tls_folder is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, _credentials(Certificate(settings.tls_folder, settings.tls_clients)))
        return server

    def drain(self) -> None:
        """Tell health watchers that this pod is terminating, and end streams when the drain is over: a client that goes on sending on one would keep
        the pod from its end. Connections stay open, because they can only be closed gracefully with the port."""
        self._draining.set()
        asyncio.get_running_loop().call_later(self.service.settings.drain_seconds, self._waiting.end)

    def stop(self) -> None:
        """Stop listening. Clients are told to reconnect elsewhere; connections end when requests in flight are answered, idle streams at once."""
        self._draining.set()
        self._stopping.set()
        self._waiting.end()

    def _options(self) -> list[tuple[str, Any]]:
        return [
            ("grpc.so_reuseport", 1),  # among the servers of this process, and among processes that share the port
            ("grpc.max_receive_message_length", self.service.settings.grpc_max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", _MOST_METADATA),
            ("grpc.max_concurrent_streams", _MOST_AT_ONCE),
            ("grpc.max_connection_age_ms", round(self._connection_seconds() * 1000)),
            # Clients that ask whether the connection lives are no attackers; and a peer that is gone is found.
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_time_ms", 60_000),
        ]

    def _connection_seconds(self) -> float:
        """The age at which a connection is closed gracefully; its open streams continue. The library adds a jitter of 10 %.

        This is what `connections` does for HTTP. It is short enough that every client reconnects once during a drain, because the library cancels
        requests that arrive while the port closes.
        """
        settings = self.service.settings
        return min(settings.connection_max_seconds, settings.drain_seconds * _SHARE_OF_DRAIN or math.inf)

    def _handlers(self) -> dict[str, Any]:
        own: dict[str, Any] = {
            "ServerLive": self._tells(pb.ServerLiveRequest, lambda request: pb.ServerLiveResponse(live=True)),
            "ServerReady": self._tells(
                pb.ServerReadyRequest, lambda request: pb.ServerReadyResponse(ready=self._ready)
            ),
            "ModelReady": self._tells(pb.ModelReadyRequest, self._model_ready),
            "ServerMetadata": self._tells(
                pb.ServerMetadataRequest, lambda request: pb.ServerMetadataResponse(**describe.server())
            ),
            "ModelMetadata": self._tells(pb.ModelMetadataRequest, self._model_metadata),
            "ModelInfer": grpc.stream_unary_rpc_method_handler(self._infer),
            "ModelStreamInfer": self._stream(self._infer_each, self._streams),
        }
        return {
            **{f"/{SERVICE}/{name}": handler for name, handler in own.items()},
            f"/{HEALTH}/Check": self._tells(health_pb2.HealthCheckRequest, self._check),
            f"/{HEALTH}/Watch": self._stream(self._watch, self._watchers),
            f"/{REFLECTION}/ServerReflectionInfo": self._stream(self._reflect, self._streams),
        }

    @property
    def _ready(self) -> bool:
        return not self.service.draining

    async def _infer(self, requests: Any, context: Context) -> bytes:
        try:
            answer = await self._answer(context, partial(self._receive, context))
        except RequestError as error:
            await self._refuse(context, error)
        context.set_trailing_metadata(self._told())
        return answer

    async def _answer(self, context: Context, receive: Callable[[Who], Awaitable[bytes]]) -> bytes:
        """The answer to a request for inference, which counts against its client's limits. Raises RequestError."""
        client: str | None = None
        try:
            if not self.service.access.open:
                client = await self._admit(context, infer=True)
            who = partial(self._who, client, context)
            # The library itself cancels this handler where the client has left.
            return await self.service.infer(receive(who), self._codec, deadline=context.time_remaining, who=who)
        finally:
            if client is not None:
                self.service.access.leave(client)

    async def _admit(self, context: Context, *, infer: bool = False) -> str | None:
        """The client of a call; an inference call counts against its limits. None if no token is needed. Raises RequestError."""
        if self.service.access.open:
            return None
        authorization = call_metadata.headers(context.invocation_metadata() or ())("authorization")
        return await self.service.admit(authorization, self._who(None, context), infer=infer)

    def _who(self, client: str | None, context: Context) -> str:
        """Who sent a message: see `Access.client`."""
        peer = unquote(context.peer()).partition(":")[2]
        return self.service.access.client(client, peer, lambda: call_metadata.values(context, proxies.HEADER))

    async def _receive(self, context: Context, who: Who) -> bytes:
        """The single message of a request, accounted for by `bodies`. Raises RequestError."""
        return self.service.bodies.hold(await self._message(context, self._reading, who), who)

    async def _message(self, context: Context, reading: Reading, who: Who) -> bytes:
        settings = self.service.settings
        try:
            message = await reading.read(context, who)
        except TimeoutError:
            text = f"the message did not arrive within {settings.body_seconds:g} s, or {PATIENCE_SECONDS:g} s where others waited"
            raise RequestError(Code.TIMEOUT, text) from None
        if message is grpc.aio.EOF:  # the library tells the client itself
            text = f"no message, or one larger than {settings.grpc_max_message_bytes} bytes"
            raise RequestError(Code.TOO_LARGE, text)
        return bytes(message)

    async def _infer_each(self, context: Context) -> None:
        """Answer the requests of a stream, one at a time."""
        while True:
            message = await self._next(context)
            if message is None:
                return
            try:
                answer = await self._answer(context, partial(self._held, message))
                response = field_head(_RESPONSE, len(answer)) + answer
            except RequestError as error:
                if error.code is Code.UNAUTHENTICATED:  # it was withdrawn while the stream was open
                    raise
                response = pb.ModelStreamInferResponse(error_message=error.message).SerializeToString()
            await context.write(response)

    async def _held(self, message: bytes, who: Who) -> bytes:
        return self.service.bodies.hold(message, who)

    async def _next(self, context: Context) -> bytes | None:
        """The next message of a stream; None at its end. Raises RequestError: see `WaitingStreams.next`."""
        message = await self._waiting.next(context, self._admit)
        return None if message is grpc.aio.EOF else bytes(message)

    def _tells(self, kind: type[Any], function: Callable[[Any], Message]) -> Any:
        """A handler for a call with one small message, counted by the service."""

        def tell(body: bytes) -> tuple[Code, bytes]:
            try:
                request = kind.FromString(body)
            except DecodeError as error:
                raise RequestError(Code.INVALID, f"the message is not a valid {kind.__name__}: {error}") from error
            return Code.OK, function(request).SerializeToString()

        async def answer(requests: Any, context: Context) -> bytes:
            try:
                client = None if kind in _OPEN else await self._admit(context)
                who = partial(self._who, client, context)
                reading = self._open_reading if kind in _OPEN else self._reading
                _, response = self.service.tell(tell, await self._small_message(context, reading, who))
            except RequestError as error:
                await self._refuse(context, error)
            context.set_trailing_metadata(self._told())
            return response

        return grpc.stream_unary_rpc_method_handler(answer)

    async def _small_message(self, context: Context, reading: Reading, who: Who) -> bytes:
        with self._counted():
            return await self._message(context, reading, who)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a request that is refused here, before the service knows of it."""
        try:
            yield
        except RequestError as error:
            self.service.metrics.count(error.code)
            raise

    def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        self._codec.require_model(request.name, request.version)
        return pb.ModelReadyResponse(ready=self._ready)

    def _model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        self._codec.require_model(request.name, request.version)
        told = describe.model(self.service.settings, self.service.model)
        del told["parameters"]  # for which the message has no field
        return pb.ModelMetadataResponse(**told)

    def _check(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        if request.service not in ("", SERVICE):
            raise RequestError(Code.NOT_FOUND, f"no service {clip(request.service, 64)!r} here; there is {SERVICE!r}")
        states = health_pb2.HealthCheckResponse
        return states(status=states.SERVING if self._ready else states.NOT_SERVING)

    async def _watch(self, context: Context) -> None:
        """Send the health state, and send it again when it changes."""
        who = partial(self._who, None, context)
        request = health_pb2.HealthCheckRequest.FromString(await self._small_message(context, self._open_reading, who))
        states = health_pb2.HealthCheckResponse
        if request.service not in ("", SERVICE):
            await context.write(states(status=states.SERVICE_UNKNOWN).SerializeToString())
        else:
            await context.write(self._check(request).SerializeToString())
            await self._draining.wait()
            await context.write(states(status=states.NOT_SERVING).SerializeToString())
        await self._stopping.wait()

    async def _reflect(self, context: Context) -> None:
        async def requests() -> AsyncIterator[Any]:
            while (message := await self._next(context)) is not None:
                yield reflection_pb2.ServerReflectionRequest.FromString(message)

        async for response in self._reflection.ServerReflectionInfo(requests(), context):
            await context.write(response.SerializeToString())

    def _stream(self, work: Callable[[Context], Awaitable[None]], places: Places) -> Any:
        """A handler for a stream. The number of streams is limited, because the library may hold a message for each."""

        async def handle(requests: Any, context: Context) -> None:
            context.set_trailing_metadata(self._told())
            try:
                await self._placed(work, places, context)
            except DecodeError as error:
                self.service.metrics.count(Code.INVALID)
                await self._refuse(context, RequestError(Code.INVALID, f"the message is not valid: {error}"))
            except RequestError as error:
                await self._refuse(context, error)

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _placed(self, work: Callable[[Context], Awaitable[None]], places: Places, context: Context) -> None:
        # A client without a token keeps no stream open, except to watch health.
        client = self._who(None if places is self._watchers else await self._admit(context), context)
        with self._counted():
            places.take(client)
        try:
            await work(context)
        finally:
            places.give(client)

    def _unknown(self) -> Any:
        async def handle(requests: Any, context: Context) -> bytes:
            error = RequestError(Code.NOT_ALLOWED, f"this server has {SERVICE}; see its reflection")
            self.service.metrics.count(error.code)
            await self._refuse(context, error)

        return grpc.stream_unary_rpc_method_handler(handle)

    async def _refuse(self, context: Context, error: RequestError) -> NoReturn:
        wait = error.retry_after
        more = (("grpc-retry-pushback-ms", str(1000 * wait)),) if wait is not None else ()
        await context.abort(STATUSES[error.code], clip(error.message, 2048), (*self._told(), *more))
        raise AssertionError("abort returned")

    def _told(self) -> tuple[tuple[str, str], ...]:
        """The trailing metadata of every response: the revision that answered, and the client's request id."""
        return (*self._trailing, *told(HEADERS.get()).items())


def _credentials(certificate: Certificate) -> Any:
    """The credentials of the port. The library asks for a renewed certificate with each new connection."""

    def configured(files: Files | None) -> Any:
        return None if files is None else grpc.ssl_server_certificate_configuration([files[:2]], files[2])

    certificate.mounted.changed()
    first, renewed = configured(certificate.files()), certificate.renewed_files
    return grpc.dynamic_ssl_server_credentials(first, lambda: configured(renewed()), certificate.clients)


class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # the library has no types
    """A handler for each method, and one for unknown methods, so that every response is our own.

    The library asks for it in the task of the call, and tells the call's metadata, which `context` would make anew.
    """

    def __init__(self, known: dict[str, Any], unknown: Any) -> None:
        self._known, self._unknown = known, unknown

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call, in whose task the call's headers are known from now on."""
        HEADERS.set(call_metadata.headers(handler_call_details.invocation_metadata))
        return self._known.get(handler_call_details.method, self._unknown)


FRONT = RpcFront
