"""OpenTelemetry traces: one span for each sampled request, and in it one span for each stage (receive, decode, queue, run, encode).

OpenTelemetry is only imported where an endpoint is set. Its own variables (`OTEL_*`) apply to everything that is not set here, such as headers and
certificates of the exporter. Spans are exported by a thread of the SDK from a bounded queue, so a collector that is away delays no request.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fettle.server.logs import TRACE_CONTEXT, TRACE_STATE, Header
from fettle.server.request import Code, InferRequest
from fettle.server.settings import ServerSettings

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

FLUSH_MILLISECONDS = 2000  # at the end of the process


class RequestTrace:
    """The span of one sampled request. Its stages follow each other, and each begins where the one before it ended."""

    def __init__(self, tracer: Tracer, span: Span, started: float, epoch: float) -> None:
        """`started`: when the request began, on the clock of `time.perf_counter`; `epoch`: that clock's zero in Unix time."""
        self._tracer, self._span, self._epoch = tracer, span, epoch
        self._stages: list[tuple[str, float, float]] = []
        self._ended = started
        self._request: InferRequest | None = None

    def received(self) -> None:
        """The body has arrived."""
        self._stage("receive", time.perf_counter())

    def decoded(self, request: InferRequest) -> None:
        """The body has become a request."""
        self._request = request
        self._stage("decode", time.perf_counter())

    def ran(self) -> None:
        """The request has left the model: with its outputs, with an error, or without a run, which is then all queue."""
        now = time.perf_counter()
        began = self._request.began if self._request is not None else 0.0
        self._stage("queue", began or now)
        if began:
            self._stage("run", now)

    def end(self, code: Code) -> None:
        """Hand over the request and its stages for export. What follows the run is the encoding of an answer."""
        from opentelemetry.trace import StatusCode, set_span_in_context

        if code is Code.OK:
            self._stage("encode", time.perf_counter())
        inside = set_span_in_context(self._span)
        for name, began, ended in self._stages:
            stage = self._tracer.start_span(name, context=inside, start_time=_nanoseconds(self._epoch + began))
            stage.end(_nanoseconds(self._epoch + ended))
        self._span.set_attribute("fettle.code", code.value)
        if self._request is not None:
            self._span.set_attribute("fettle.items", self._request.rows)
        if code.is_failure:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()

    def _stage(self, name: str, ended: float) -> None:
        self._stages.append((name, self._ended, ended))
        self._ended = ended


class Tracing:
    """Decides which requests are traced, and exports their spans."""

    def __init__(self, settings: ServerSettings) -> None:
        """Raises ValueError for an endpoint that is no address."""
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._name, self._kind = f"infer {settings.model}", SpanKind.SERVER
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: settings.model, SERVICE_VERSION: settings.revision}),
            sampler=ParentBasedTraceIdRatio(settings.tracing_sample_ratio),
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.tracing_endpoint)))
        self._tracer = self._provider.get_tracer("fettle.server")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, header: Header | None, started: float) -> RequestTrace | None:
        """The trace of a request whose headers `header` returns; None if it is not sampled. A caller's trace decides for its own requests."""
        told = {} if header is None else {name: header(name) or "" for name in (TRACE_CONTEXT, TRACE_STATE)}
        parent = self._propagator.extract(told)
        epoch = time.time() - time.perf_counter()
        span = self._tracer.start_span(
            self._name, context=parent, kind=self._kind, start_time=_nanoseconds(epoch + started)
        )
        return RequestTrace(self._tracer, span, started, epoch) if span.is_recording() else None

    def close(self) -> None:
        """Export what is left, for at most two seconds."""
        self._provider.force_flush(FLUSH_MILLISECONDS)
        self._provider.shutdown()


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
