"""The inference service with no transport at all, and with a front of a protocol that is nobody's: every outcome is counted once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from tests.unit.server.in_process import BODY, Scripted, Sent, counted, timed

from fettle.api.signature import Signature
from fettle.errors import RuntimeFailure
from fettle.runtimes.base import Array
from fettle.server import bodies, protocol
from fettle.server.access import Access
from fettle.server.bodies import Incoming
from fettle.server.request import Code, InferRequest, RequestError
from fettle.server.reviews import Reviews, User
from fettle.server.service import InferenceService

NOT_JUDGED = (0, 0)  # requests and errors of windows
ANSWERED = (1, 0)
FAILED = (1, 1)
LINE = Sent(b"1 2 ", b"3 4")


def received(service: InferenceService, body: bytes = BODY) -> Any:
    return service.bodies.read(Sent(body), len(body))


def is_over(service: InferenceService) -> bool:
    """Nothing is left of any request."""
    underway = (service._admitting.count, service._answering.count, service.in_flight)
    return (*underway, service.bodies.held, service.model.waiting) == (0, 0, 0, 0, 0)


async def test_bytes_are_decoded_answered_counted_sampled_and_encoded_without_any_transport(
    service: InferenceService,
) -> None:
    answer = await service.infer(received(service), protocol)
    assert orjson.loads(answer) == {
        "model_name": "lookup",
        "model_version": "r",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}],
    }
    assert counted(service) == (*ANSWERED, {200: 1})
    assert timed(service) == 1
    (sample,) = service.samples.take(9)
    assert (sample.inputs["x"].tolist(), sample.outputs["y"].tolist()) == ([1, 2, 3, 4], [1, 2, 3, 4])
    assert is_over(service)


@pytest.mark.parametrize(("most", "thread"), [(1 << 18, "MainThread"), (0, "codec_0")])
async def test_small_bodies_and_answers_stay_in_the_event_loop_and_large_ones_go_through_one_thread(
    service: InferenceService, monkeypatch: pytest.MonkeyPatch, most: int, thread: str
) -> None:
    threads = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            threads.append(threading.current_thread().name)
            return function(*arguments)

        return call

    codec: Any = SimpleNamespace(decode=noted(protocol.decode), encode=noted(protocol.encode))
    monkeypatch.setattr("fettle.server.service.SMALL_BODY", most)
    monkeypatch.setattr("fettle.server.service.SMALL_ANSWER", most)
    answer = await service.infer(received(service), codec)
    assert orjson.loads(answer)["outputs"][0]["data"] == [1, 2, 3, 4]
    assert threads == [thread, thread]


class Held:
    """A session, or a codec, that works on one request after another until it may go on."""

    def __init__(self) -> None:
        self.begun, self.goes_on = threading.Event(), threading.Event()
        self.calls = 0
        self.fails: Exception | None = None

    def infer(self, *arguments: Any) -> dict[str, Array]:
        self.wait()
        if self.fails is not None:
            raise self.fails
        return {"y": np.zeros((1, 4), np.float32)}

    def decode(self, *arguments: Any) -> InferRequest:
        self.wait()
        return protocol.decode(*arguments)

    def wait(self) -> None:
        self.calls += 1
        self.begun.set()
        self.goes_on.wait()


@pytest.fixture
async def held() -> AsyncIterator[Held]:
    """What holds threads, which no failed test may leave waiting. It ends before the event loop, which waits for them."""
    held = Held()
    yield held
    held.goes_on.set()


async def test_a_request_whose_client_gives_up_while_the_model_works_counts_as_gone_when_the_model_is_done_and_its_time_is_judged(
    service: InferenceService, held: Held
) -> None:
    """Else a revision that makes clients miss their deadlines would be judged by its quick answers alone."""
    service.model.session = held  # type: ignore[assignment]
    request = asyncio.create_task(service.infer(received(service), protocol))
    await asyncio.to_thread(held.begun.wait)
    request.cancel()
    await asyncio.sleep(0)
    request.cancel()  # whoever asks twice gets no more
    await asyncio.sleep(0)
    waiting = service.metrics.registry.get_sample_value("fettle_server_waiting", {"model": "lookup", "revision": "r"})
    assert (service.in_flight, service.bodies.held, service.model.waiting, waiting) == (1, len(BODY), 1, 1)
    assert not request.done()
    held.goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert counted(service) == (*ANSWERED, {499: 1})
    assert timed(service) == 1
    assert is_over(service)


async def test_a_failure_that_nobody_stayed_to_hear_is_a_failure(service: InferenceService, held: Held) -> None:
    held.fails = RuntimeFailure("the model failed")
    service.model.session = held  # type: ignore[assignment]
    request = asyncio.create_task(service.infer(received(service), protocol))
    await asyncio.to_thread(held.begun.wait)
    request.cancel()
    held.goes_on.set()
    await asyncio.wait([request])
    assert request.cancelled()
    assert counted(service) == (*FAILED, {499: 1})


async def test_a_client_that_leaves_while_its_answer_is_encoded_was_answered(
    service: InferenceService, monkeypatch: pytest.MonkeyPatch, held: Held
) -> None:
    monkeypatch.setattr("fettle.server.service.SMALL_ANSWER", 0)
    codec: Any = SimpleNamespace(decode=protocol.decode, encode=held.infer)
    request = asyncio.create_task(service.infer(received(service), codec))
    await asyncio.to_thread(held.begun.wait)
    request.cancel()
    await asyncio.sleep(0)
    held.goes_on.set()
    await asyncio.wait([request])
    assert request.cancelled()
    assert counted(service) == (*ANSWERED, {499: 1})
    assert is_over(service)


async def test_a_client_that_gives_up_again_and_again_keeps_no_place_in_the_queue(
    service: InferenceService, held: Held
) -> None:
    service.model.session = held  # type: ignore[assignment]
    service.model.max_queue = 3  # one is computed, two wait
    computed = asyncio.create_task(service.infer(received(service), protocol))
    await asyncio.to_thread(held.begun.wait)
    for _ in range(10):
        request = asyncio.create_task(service.infer(received(service), protocol))
        await asyncio.sleep(0)
        assert service.model.waiting == 2
        request.cancel()
        await asyncio.wait([request])
        assert request.cancelled()
        assert service.model.waiting == 1
    computed.cancel()
    await asyncio.sleep(0)
    assert not computed.done(), "a thread that computes cannot be stopped"
    held.goes_on.set()
    await asyncio.wait([computed])
    assert held.calls == 1, "nobody waits for those that had not begun"
    assert is_over(service)


async def test_a_large_body_that_is_still_decoded_is_held_though_its_client_is_gone(
    service: InferenceService, monkeypatch: pytest.MonkeyPatch, held: Held
) -> None:
    monkeypatch.setattr("fettle.server.service.SMALL_BODY", 0)
    codec: Any = SimpleNamespace(decode=held.decode, encode=protocol.encode)
    requests = [asyncio.create_task(service.infer(received(service), codec)) for _ in range(3)]
    await asyncio.to_thread(held.begun.wait)
    for request in requests:
        request.cancel()
    await asyncio.sleep(0)
    assert (service.in_flight, service.bodies.held) == (3, 3 * len(BODY))
    held.goes_on.set()
    await asyncio.gather(*requests, return_exceptions=True)
    assert held.calls == 1
    assert is_over(service)


# ------------------------------------------------------------------------------------------------------------- a second front


class Line:
    """A codec: four numbers in a line of text, and the answer's in another."""

    def decode(self, body: bytes | bytearray, signature: Signature, max_rows: int, /) -> InferRequest:
        try:
            numbers = np.array(bytes(body).split(), np.float32).reshape(1, 4)
        except ValueError as error:
            raise RequestError(Code.INVALID, "expected four numbers") from error
        return InferRequest({"x": numbers}, 1, None, None)

    def encode(
        self, model: str, version: str, request: InferRequest, signature: Signature, outputs: Mapping[str, Array], /
    ) -> bytes:
        return " ".join(f"{number:g}" for number in outputs["y"][0]).encode()


class LineFront:
    """A front in this process: a verb and a body, answered by a word and a line."""

    WORDS = {
        Code.OK: "here",
        Code.INVALID: "what?",
        Code.UNAUTHENTICATED: "who are you?",
        Code.LIMITED: "not so fast",
        Code.NOT_FOUND: "who?",
        Code.NOT_ALLOWED: "no",
        Code.TIMEOUT: "asleep?",
        Code.TOO_LARGE: "shorter",
        Code.UNSUPPORTED: "in plain words",
        Code.GONE: "",
        Code.FAILED: "sorry",
        Code.UNAVAILABLE: "later",
    }

    def __init__(self, service: InferenceService) -> None:
        self.service = service

    async def ask(self, verb: str, body: Incoming | None = None) -> tuple[str, bytes]:
        try:
            if verb.startswith("infer"):
                client = await self.service.admit(None, "here", infer=True)
                self.service.access.leave(client)
                return self.WORDS[Code.OK], await self.service.infer(self._receive(verb, body), Line())
            code, line = self.service.tell(self._tell, verb, body)
            return self.WORDS[code], line
        except RequestError as error:
            return self.WORDS[error.code], error.message.encode()

    async def _receive(self, verb: str, body: Incoming | None) -> bytes | bytearray:
        if verb != "infer":
            raise RequestError(Code.UNSUPPORTED, "infer takes a line of text")
        assert body is not None
        try:
            return await self.service.bodies.read(body, None)
        except ConnectionError as error:
            raise RequestError(Code.GONE, "hung up") from error

    def _tell(self, verb: str, body: Incoming | None) -> tuple[Code, bytes]:
        if verb not in ("ready", "age"):
            raise RequestError(Code.NOT_FOUND, f"no verb {verb}")
        if body is not None:
            raise RequestError(Code.NOT_ALLOWED, f"{verb} takes no body")
        draining = self.service.draining
        return (Code.UNAVAILABLE, b"") if draining else (Code.OK, {"ready": b"yes"}[verb])


@dataclass(frozen=True)
class Case:
    """A way to ask, how it ends, and what windows count of it. `model`: what the model does; None = what it is made for."""

    ends: Code
    windows: tuple[int, int]
    verb: str = "infer"
    body: Sent | None = LINE
    model: Mapping[str, Any] | BaseException | None = None
    beforehand: Callable[[InferenceService], None] = lambda service: None


def busy(service: InferenceService) -> None:
    """The client has as many requests under way as it may."""
    service.access = Access(service.settings.model_copy(update={"client_max_concurrent": 1}))
    service.access.enter("here")


def without_token(service: InferenceService) -> None:
    """Tokens are asked for."""
    (service.settings.folder / "someone").write_text("a token")
    service.access = Access(service.settings.model_copy(update={"tokens_folder": service.settings.folder}))


CASES = {
    "an answer": Case(Code.OK, ANSWERED),
    "an answer without the model": Case(Code.OK, NOT_JUDGED, "ready", None),
    "no request": Case(Code.INVALID, NOT_JUDGED, body=Sent(b"1 2 3")),
    "a client without a token": Case(Code.UNAUTHENTICATED, NOT_JUDGED, beforehand=without_token),
    "a client that asks for too much": Case(Code.LIMITED, NOT_JUDGED, beforehand=busy),
    "an unknown verb": Case(Code.NOT_FOUND, NOT_JUDGED, "sing"),
    "a verb used otherwise": Case(Code.NOT_ALLOWED, NOT_JUDGED, "ready"),
    "a form not taken": Case(Code.UNSUPPORTED, NOT_JUDGED, "infer in Morse"),
    "half a body": Case(Code.TIMEOUT, NOT_JUDGED, body=Sent(b"1 2", ends=False)),
    "a body without end": Case(Code.TOO_LARGE, NOT_JUDGED, body=Sent(*[b"1 " * 300] * 9)),
    "a client that hangs up": Case(Code.GONE, NOT_JUDGED, body=Sent(b"1 2", then=ConnectionResetError())),
    "a model that fails": Case(Code.FAILED, FAILED, model=RuntimeFailure("the model failed")),
    "a model that raises what nobody foresaw": Case(Code.FAILED, FAILED, model=ValueError("shapes differ")),
    "an answer that cannot be encoded": Case(Code.FAILED, FAILED, model={}),
    "a front that fails to read": Case(Code.FAILED, FAILED, body=Sent(then=KeyError("x"))),
    "a front that fails without the model": Case(Code.FAILED, FAILED, "age", None),
    "a full queue": Case(Code.UNAVAILABLE, FAILED, beforehand=lambda service: setattr(service.model, "max_queue", 0)),
    "too many bytes held": Case(
        Code.UNAVAILABLE, FAILED, beforehand=lambda service: setattr(service.bodies, "held", 1500)
    ),
    "a drain": Case(Code.UNAVAILABLE, NOT_JUDGED, "ready", None, beforehand=lambda s: setattr(s, "draining", True)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_every_outcome_is_counted_once_by_whichever_front_a_request_came(
    service: InferenceService, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    monkeypatch.setattr(service.model, "max_queue", service.model.max_queue)  # put back afterwards
    if case.model is not None:
        service.model.session = Scripted(case.model)  # type: ignore[assignment]
    case.beforehand(service)
    held = service.bodies.held
    word, line = await LineFront(service).ask(case.verb, case.body)
    assert word == LineFront.WORDS[case.ends]
    assert line == b"1 2 3 4" or case.ends is not Code.OK or case.verb == "ready"
    assert counted(service) == (*case.windows, {int(case.ends.value): 1})
    inference = case.verb.startswith("infer") and case.ends not in (Code.GONE, Code.UNAUTHENTICATED, Code.LIMITED)
    assert timed(service) == (inference or case.windows == FAILED)
    service.bodies.held -= held
    assert is_over(service)


def test_these_are_all_the_ways_in_which_a_request_can_end() -> None:
    assert {case.ends for case in CASES.values()} == set(Code) == set(LineFront.WORDS)


async def test_a_small_body_that_takes_long_is_decoded_in_the_thread_and_counted_like_any_other(
    service: InferenceService,
) -> None:
    threads = []

    def decode(*arguments: Any) -> InferRequest:
        threads.append(threading.current_thread().name)
        return protocol.decode(*arguments)

    codec: Any = SimpleNamespace(decode=decode, encode=protocol.encode)
    await service.infer(received(service), codec, in_thread=True)
    assert threads == ["codec_0"]
    assert counted(service) == (*ANSWERED, {200: 1})
    assert is_over(service)


async def test_no_more_requests_wait_to_be_decoded_than_may_wait_for_the_model(
    service: InferenceService, held: Held
) -> None:
    service.decoding._most = 1
    codec: Any = SimpleNamespace(decode=held.decode, encode=protocol.encode)
    first = asyncio.create_task(service.infer(received(service), codec, in_thread=True))
    await asyncio.to_thread(held.begun.wait)
    with pytest.raises(RequestError, match="1 requests are already waiting to be decoded") as raised:
        await service.infer(received(service), codec, in_thread=True)
    assert (raised.value.code, raised.value.retry_after) == (Code.UNAVAILABLE, 1)
    held.goes_on.set()
    await first
    assert counted(service) == (2, 1, {200: 1, 503: 1})
    assert is_over(service) and service.decoding.taken == 0


@pytest.fixture
def may(service: InferenceService) -> Iterator[threading.Event]:
    """When the API server may say that a token is good."""
    may = threading.Event()

    def ask(token: str) -> User | None:
        may.wait(60)
        return User(token)

    told = service.settings.model_copy(update={"token_review_folder": service.settings.folder})
    service.access = Access(told)
    service.access._reviews = Reviews(told, ask)
    yield may
    may.set()


async def test_a_client_that_leaves_while_its_token_is_checked_is_counted_once(
    service: InferenceService, may: threading.Event
) -> None:
    admitting = asyncio.create_task(service.admit("Bearer good", "here", infer=True))
    await asyncio.sleep(0)
    admitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await admitting
    assert counted(service) == (0, 0, {499: 1})
    assert is_over(service)


async def test_a_service_that_ends_answers_a_request_whose_token_is_still_checked(
    service: InferenceService, may: threading.Event
) -> None:
    async def ask() -> bytes:
        await service.admit("Bearer good", "here", infer=True)
        return await service.infer(received(service), protocol)

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    await service.infer(received(service), protocol)  # another, which ends meanwhile
    finishing = asyncio.create_task(service.finish())
    await asyncio.sleep(0)
    assert not finishing.done()
    may.set()
    await finishing
    assert asking.done() and counted(service) == (2, 0, {200: 2})


async def test_a_service_that_ends_waits_for_those_who_asked_before_and_not_for_those_who_go_on_asking(
    service: InferenceService, held: Held
) -> None:
    service.model.session = held  # type: ignore[assignment]
    before = asyncio.create_task(service.infer(received(service), protocol))
    await asyncio.to_thread(held.begun.wait)
    finishing = asyncio.create_task(service.finish())
    await asyncio.sleep(0)
    assert not finishing.done()
    sent = asyncio.Event()

    async def slow() -> bytes:
        await sent.wait()
        return bytes(await received(service))

    after = asyncio.create_task(service.infer(slow(), protocol))
    await asyncio.sleep(0)
    held.goes_on.set()
    await finishing
    assert before.done() and not after.done() and service.in_flight == 1
    sent.set()
    await service.finish()
    assert after.done() and is_over(service) and counted(service) == (2, 0, {200: 2})


async def test_a_body_or_a_tensor_for_which_there_is_no_memory_is_refused_and_the_next_request_is_answered(
    service: InferenceService,
) -> None:
    class Short(Sent):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield BODY
            raise MemoryError

    def decode(*arguments: Any) -> InferRequest:
        raise MemoryError("Unable to allocate 1 TiB")

    codec: Any = SimpleNamespace(decode=decode, encode=protocol.encode)
    for receive, decoder, unread in (
        (service.bodies.read(Short(), None), protocol, True),
        (received(service), codec, False),
    ):
        with pytest.raises(RequestError, match="not have enough memory for this request: send fewer items") as raised:
            await service.infer(receive, decoder)
        assert (raised.value.code, raised.value.unread) == (Code.UNAVAILABLE, unread)
        assert is_over(service)
    await service.infer(received(service), protocol)
    assert counted(service) == (3, 2, {503: 2, 200: 1})


async def test_a_body_that_finds_no_memory_to_grow_gives_back_all_that_was_reserved_for_it(
    service: InferenceService, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(bytearray):
        def __iadd__(self, part: object) -> Full:
            raise MemoryError

    monkeypatch.setattr(bodies, "bytearray", Full, raising=False)
    with pytest.raises(RequestError, match="not have enough memory"):
        await service.infer(service.bodies.read(Sent(BODY), None), protocol)
    assert is_over(service)


def test_what_needs_no_model_and_finds_no_memory_is_counted_as_it_is_answered(service: InferenceService) -> None:
    def metadata() -> tuple[Code, bytes]:
        raise MemoryError

    with pytest.raises(RequestError, match="not have enough memory") as raised:
        service.tell(metadata)
    assert raised.value.code is Code.UNAVAILABLE
    assert counted(service) == (1, 1, {503: 1})


async def test_a_request_that_waited_too_long_to_be_decoded_is_not(service: InferenceService, held: Held) -> None:
    service.settings = service.settings.model_copy(update={"queue_seconds": 0.0})
    codec: Any = SimpleNamespace(decode=held.decode, encode=protocol.encode)
    with pytest.raises(RequestError, match="waited more than 0 s to be decoded") as raised:
        await service.infer(received(service), codec, in_thread=True)
    assert (raised.value.code, held.calls) == (Code.UNAVAILABLE, 0)
    assert counted(service) == (*FAILED, {503: 1})


# ------------------------------------------------------------------------------------------------------------- clients in turn


def noted(held: Held, name: str, order: list[str]) -> Any:
    """A codec that notes what it does once it may."""

    def decode(*arguments: Any) -> InferRequest:
        held.wait()
        order.append(f"decode {name}")
        return protocol.decode(*arguments)

    def encode(*arguments: Any) -> bytes:
        order.append(f"encode {name}")
        return protocol.encode(*arguments)

    return SimpleNamespace(decode=decode, encode=encode)


async def test_the_bodies_of_one_client_do_not_keep_those_of_others_waiting(
    service: InferenceService, monkeypatch: pytest.MonkeyPatch, held: Held
) -> None:
    monkeypatch.setattr(service.model, "max_queue", 8)
    order: list[str] = []
    clients = [("greedy", f"greedy {number}") for number in range(5)] + [("other", "other")]
    requests = [
        asyncio.create_task(
            service.infer(received(service), noted(held, name, order), who=partial(str, client), in_thread=True)
        )
        for client, name in clients
    ]
    await asyncio.to_thread(held.begun.wait)
    held.goes_on.set()
    await asyncio.gather(*requests)
    decoded = [what for what in order if what.startswith("decode")]
    assert decoded[:2] == ["decode greedy 0", "decode other"]
    assert is_over(service)


async def test_an_answer_that_is_computed_does_not_wait_behind_bodies(
    service: InferenceService, monkeypatch: pytest.MonkeyPatch, held: Held
) -> None:
    monkeypatch.setattr(service.model, "max_queue", 8)
    monkeypatch.setattr("fettle.server.service.SMALL_ANSWER", 0)
    order: list[str] = []
    large = [
        asyncio.create_task(service.infer(received(service), noted(held, f"body {number}", order), in_thread=True))
        for number in range(3)
    ]
    await asyncio.to_thread(held.begun.wait)
    waits = service._codec_thread._waiting
    small = SimpleNamespace(decode=protocol.decode, encode=noted(held, "answer", order).encode)
    answered = asyncio.create_task(service.infer(received(service), small))
    async with asyncio.timeout(30):
        while not waits[""][0]:  # noqa: ASYNC110  until its answer waits for the thread, which nothing tells
            await asyncio.sleep(0)
    held.goes_on.set()
    await asyncio.gather(answered, *large)
    assert order[:2] == ["decode body 0", "encode answer"]
    assert is_over(service)


async def test_a_client_leaves_places_in_the_queue_of_bodies_to_others(
    service: InferenceService, monkeypatch: pytest.MonkeyPatch, held: Held
) -> None:
    monkeypatch.setattr(service.model, "max_queue", 8)
    service.decoding._most = 8

    def ask(client: str) -> asyncio.Task[bytes]:
        asked = service.infer(received(service), noted(held, client, []), who=partial(str, client), in_thread=True)
        return asyncio.create_task(asked)

    waiting = [ask("a") for _ in range(6)]
    await asyncio.to_thread(held.begun.wait)
    with pytest.raises(RequestError, match="6 requests of this client are already waiting to be decoded") as raised:
        await ask("a")
    assert raised.value.code is Code.UNAVAILABLE, "as any other full queue"
    waiting.append(ask("b"))
    await asyncio.sleep(0)
    with pytest.raises(RequestError, match="the rest is kept for other clients: try again later") as raised:
        await ask("a")
    assert (raised.value.code, raised.value.retry_after) == (Code.LIMITED, 1)
    held.goes_on.set()
    await asyncio.gather(*waiting)
    assert is_over(service) and service.decoding.taken == 0 and not service.decoding._shares._held


async def test_a_client_leaves_places_in_the_queue_of_the_model_to_others(service: InferenceService) -> None:
    for number, name in enumerate(["a"] * 190 + ["b"] * 2):
        service._queued.take(number, partial(str, name))
    first = service.infer(received(service), protocol, who=lambda: "c")
    second = service.infer(received(service), protocol, who=lambda: "a")
    service._crowd.note(lambda: "b", 0.0)
    service.in_flight = 2  # so that nobody is answered at once
    await first
    with pytest.raises(RequestError, match="190 requests of this client are already waiting for the model") as raised:
        await second
    assert raised.value.code is Code.LIMITED
