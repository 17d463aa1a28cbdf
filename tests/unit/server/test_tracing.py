"""Traces of requests, as a collector of OpenTelemetry receives them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from tests.unit.server.in_process import BODY, Scripted, Sent
from tools.ports import free_port

from fettle.errors import RuntimeFailure
from fettle.server import protocol
from fettle.server.logs import HEADERS
from fettle.server.request import RequestError
from fettle.server.service import InferenceService
from fettle.server.tracing import Tracing

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]  # generated without types
    """Keeps what it receives."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self._server = grpc.server(ThreadPoolExecutor(1))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def Export(self, request: Any, context: Any) -> Any:
        """What the service is called with."""
        for each in request.resource_spans:
            self.resources.append({pair.key: pair.value.string_value for pair in each.resource.attributes})
            self.spans += [span for scope in each.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def stop(self) -> None:
        """End it, with what it is working on."""
        self._server.stop(None).wait()


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.stop()


def traced(service: InferenceService, port: int, ratio: float = 1.0) -> InferenceService:
    told = {"tracing_endpoint": f"http://127.0.0.1:{port}", "tracing_sample_ratio": ratio}
    service.tracing = Tracing(service.settings.model_copy(update=told))
    return service


async def ask(service: InferenceService, headers: Mapping[str, str] | None = None, body: bytes = BODY) -> None:
    """One request, in a task of its own, as those of a front are."""

    async def request() -> None:
        HEADERS.set((headers or {}).get)
        await service.infer(service.bodies.read(Sent(body), len(body)), protocol)

    await asyncio.create_task(request())


def exported(service: InferenceService) -> None:
    assert service.tracing is not None
    service.tracing.close()


def stages(collector: Collector) -> list[str]:
    """The names of the stages, in the order of time."""
    inside = [span for span in collector.spans if span.kind == Span.SPAN_KIND_INTERNAL]
    return [span.name for span in sorted(inside, key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))]


def request_span(collector: Collector) -> Span:
    (span,) = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    return span


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


async def test_a_request_is_one_span_in_its_callers_trace_with_a_span_for_each_stage(
    service: InferenceService, collector: Collector
) -> None:
    traced(service, collector.port, ratio=0)  # the caller's decision counts
    await ask(service, {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1"})
    exported(service)
    whole = request_span(collector)
    assert (whole.name, whole.trace_id.hex(), whole.parent_span_id.hex()) == ("infer lookup", TRACE, CALLER)
    assert whole.trace_state == "vendor=1"
    assert attributes(whole) == {"fettle.code": "200", "fettle.items": 1}
    assert stages(collector) == ["receive", "decode", "queue", "run", "encode"]
    inside = [span for span in collector.spans if span is not whole]
    assert {span.parent_span_id for span in inside} == {whole.span_id}
    assert min(span.start_time_unix_nano for span in inside) == pytest.approx(whole.start_time_unix_nano, abs=5e6)
    assert max(span.end_time_unix_nano for span in inside) <= whole.end_time_unix_nano
    (resource,) = collector.resources
    assert (resource["service.name"], resource["service.version"]) == ("lookup", "r")


@pytest.mark.parametrize(
    ("headers", "ratio", "spans"),
    [
        ({}, 1.0, 1),
        ({}, 0.0, 0),
        ({"traceparent": f"00-{TRACE}-{CALLER}-00"}, 1.0, 0),
        ({"traceparent": "no trace at all"}, 1.0, 1),
    ],
    ids=["all", "none", "the caller samples it not", "a header that is malformed"],
)
async def test_the_share_of_requests_that_is_asked_for_is_traced_unless_the_caller_decides(
    service: InferenceService, collector: Collector, headers: dict[str, str], ratio: float, spans: int
) -> None:
    traced(service, collector.port, ratio)
    await ask(service, headers)
    exported(service)
    assert [span.kind for span in collector.spans].count(Span.SPAN_KIND_SERVER) == spans


async def test_a_run_that_fails_is_an_error_with_the_stages_that_it_reached(
    service: InferenceService, collector: Collector
) -> None:
    traced(service, collector.port)
    service.model.session = Scripted(RuntimeFailure("no answer"))
    with pytest.raises(RequestError):
        await ask(service)
    exported(service)
    whole = request_span(collector)
    assert (whole.status.code, attributes(whole)["fettle.code"]) == (Status.STATUS_CODE_ERROR, "500")
    assert stages(collector) == ["receive", "decode", "queue", "run"]


async def test_a_clients_mistake_is_no_error_of_the_server(service: InferenceService, collector: Collector) -> None:
    traced(service, collector.port)
    with pytest.raises(RequestError):
        await ask(service, body=b"{}")
    exported(service)
    whole = request_span(collector)
    assert (whole.status.code, attributes(whole)) == (Status.STATUS_CODE_UNSET, {"fettle.code": "400"})
    assert stages(collector) == ["receive"]


async def test_a_collector_that_is_away_delays_no_request_and_no_shutdown(service: InferenceService) -> None:
    traced(service, free_port())
    for _ in range(3):
        await asyncio.wait_for(ask(service), 30)
    await asyncio.wait_for(asyncio.to_thread(exported, service), 30)


async def test_a_short_run_in_the_event_loop_has_the_same_stages(
    service: InferenceService, collector: Collector
) -> None:
    service.model.pace.measured(np.zeros((1, 4), np.float32).nbytes, 0.0)
    await ask(traced(service, collector.port))
    exported(service)
    assert stages(collector) == ["receive", "decode", "queue", "run", "encode"]
