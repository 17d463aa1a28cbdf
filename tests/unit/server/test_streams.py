"""Streams of gRPC that end though their clients keep them open: their token is withdrawn, or they send nothing for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest

from fettle.server import inference_pb2 as pb
from fettle.server import rpc, waiting_streams
from fettle.server.access import Access
from fettle.server.request import Code, RequestError
from fettle.server.reviews import Reviews, User
from fettle.server.service import InferenceService


class Call:
    """A stream of gRPC. `send` returns its client's next message, or None while there is none."""

    def __init__(self, send: Callable[[], bytes | None]) -> None:
        self._send = send
        self.answers: list[pb.ModelStreamInferResponse] = []

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", "Bearer web"),)

    def peer(self) -> str:
        return "ipv4:10.0.0.7:1"

    def time_remaining(self) -> None:
        return None

    async def read(self) -> Any:
        message = self._send()
        if message is None:
            await asyncio.Event().wait()
        return message

    async def write(self, answer: bytes) -> None:
        self.answers.append(pb.ModelStreamInferResponse.FromString(answer))


def message() -> bytes:
    """A request for one item of the look-up model."""
    item = np.array([[1, 2, 3, 4]], np.float32)
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 4])
    made = pb.ModelInferRequest(model_name="lookup", inputs=[tensor], raw_input_contents=[item.tobytes()])
    return bytes(made.SerializeToString())


@pytest.mark.parametrize(
    ("sent", "answered"), [([message(), message(), message()], 1), ([message(), None], 1), ([None], 0)]
)
async def test_a_withdrawn_token_ends_the_stream(
    service: InferenceService, monkeypatch: pytest.MonkeyPatch, sent: list[bytes | None], answered: int
) -> None:
    settings = service.settings.model_copy(update={"token_review_folder": service.settings.folder})
    known = [User("web")] * 2  # when the stream is opened, and for its first message

    def ask(token: str) -> User | None:
        return known.pop() if known else None

    later = count(step=1000)  # each look is later than what was kept is good for
    service.access = Access(settings)
    service.access._reviews = Reviews(settings, ask, lambda: float(next(later)))
    monkeypatch.setattr(waiting_streams, "_CHECK_SECONDS", 0)
    messages = iter(sent)
    call = Call(lambda: next(messages))
    front = rpc.RpcFront(service)
    with pytest.raises(RequestError, match="expected a token for this model") as raised:
        await front._placed(front._infer_each, front._streams, call)
    assert raised.value.code is Code.UNAUTHENTICATED
    assert [answer.infer_response.model_name for answer in call.answers] == ["lookup"] * answered
    assert not service.in_flight and not service.bodies.held


@pytest.mark.parametrize(("sent", "answered"), [([None], 0), ([message(), message(), None], 2)])
async def test_a_stream_that_is_idle_ends_and_gives_its_place_back(
    service: InferenceService, sent: list[bytes | None], answered: int
) -> None:
    told = {"grpc_stream_idle_seconds": 0.05, "grpc_max_streams": 1}
    service.settings = service.settings.model_copy(update=told)
    front = rpc.RpcFront(service)
    for _ in range(2):
        messages = iter(sent)
        call = Call(messages.__next__)
        with pytest.raises(RequestError, match=r"no message came within 0.05 s: open the stream again") as raised:
            await front._placed(front._infer_each, front._streams, call)
        assert raised.value.code is Code.TIMEOUT
        assert [answer.infer_response.model_name for answer in call.answers] == ["lookup"] * answered


async def test_a_stream_whose_client_goes_on_sending_ends_with_the_drain(service: InferenceService) -> None:
    service.settings = service.settings.model_copy(update={"drain_seconds": 0})
    front = rpc.RpcFront(service)
    call = Call(message)
    front.drain()
    async with asyncio.timeout(60):
        with pytest.raises(RequestError, match="the server is stopping: open the stream again") as raised:
            await front._placed(front._infer_each, front._streams, call)
    assert raised.value.code is Code.UNAVAILABLE
    assert not service.in_flight and not front._streams.taken
