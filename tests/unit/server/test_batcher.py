"""The queue of the model: who runs when and with whom. The model here does as it is told, and nothing waits for the clock."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.server.in_process import an_hour_later

from fettle.api.signature import Signature, Tensor
from fettle.errors import RuntimeFailure
from fettle.runtimes.base import Array
from fettle.server.batcher import Batcher
from fettle.server.request import Code, InferRequest, RequestError

BAD = -1.0  # the model fails on an item of it


def signature(axis: int = 0) -> Signature:
    """x and y: items of any length, stacked along `axis`."""
    shape = (-1, -1)
    return Signature(
        inputs=(Tensor(name="x", dtype="FP32", shape=shape, batch_axis=axis),),
        outputs=(Tensor(name="y", dtype="FP32", shape=shape, batch_axis=axis),),
    )


class Doubling:
    """y = 2 x. Notes each run, and waits before each until it may go on."""

    def __init__(self) -> None:
        self.runs: list[Array] = []
        self.begun, self.goes_on = threading.Semaphore(0), threading.Semaphore(0)
        self.loses_items = False

    def __call__(self, inputs: dict[str, Array], rows: int, size: int) -> dict[str, Array]:
        assert size == inputs["x"].nbytes
        self.runs.append(inputs["x"])
        self.begun.release()
        self.goes_on.acquire()
        if (inputs["x"] == BAD).any():
            raise RuntimeFailure("a bad item")
        y = 2 * inputs["x"]
        return {"y": y[:-1] if self.loses_items and rows > 1 else y}

    async def busy(self) -> None:
        """Until the next run has begun."""
        await asyncio.to_thread(self.begun.acquire)

    def free(self, runs: int = 1000) -> None:
        """Let so many runs end."""
        self.goes_on.release(runs)

    @property
    def told(self) -> list[list[float]]:
        """The first number of each item of each run."""
        return [run[:, 0].tolist() for run in self.runs]


class Counted:
    """What was counted of runs."""

    def __init__(self) -> None:
        self.items: list[int] = []
        self.waits = 0

    def ran(self, items: int, seconds: float) -> None:
        self.items.append(items)

    def waited(self, seconds: float) -> None:
        self.waits += 1


@pytest.fixture
def model() -> Iterator[Doubling]:
    """A model that no failed test leaves waiting."""
    made = Doubling()
    yield made
    made.free()


@contextlib.contextmanager
def batching(model: Doubling, items: int, delay: float = 0.0, streams: int = 1, axis: int = 0) -> Iterator[Batcher]:
    batcher = Batcher(model, model, signature(axis), streams)
    batcher.items, batcher.delay, batcher.watch = items, delay, Counted()
    try:
        yield batcher
    finally:
        model.free()
        batcher.close()


def asked(batcher: Batcher, *numbers: float, width: int = 1, **waits: Any) -> asyncio.Task[Any]:
    """A request of one item for each number. `waits`: how long for the model."""
    x = np.repeat(np.array(numbers, np.float32)[:, None], width, axis=1)
    return asyncio.create_task(batcher.infer(request(x, len(numbers)), **waits))


def request(x: Array, rows: int) -> InferRequest:
    return InferRequest({"x": x}, rows, None, None)


async def until_queued() -> None:
    """Until what was begun has reached the queue."""
    await asyncio.sleep(0)


def answer(task: asyncio.Task[Any]) -> list[float]:
    return [float(number) for number in task.result()["y"][:, 0]]


async def test_requests_that_wait_run_together_and_each_gets_its_own_items(model: Doubling) -> None:
    with batching(model, 8) as batcher:
        first = asked(batcher, 1)
        await model.busy()
        others = [asked(batcher, 2), asked(batcher, 3, 4), asked(batcher, 5)]
        await until_queued()
        model.free()
        await asyncio.gather(first, *others)
        assert model.told == [[1], [2, 3, 4, 5]]
        assert [answer(task) for task in (first, *others)] == [[2], [4], [6, 8], [10]]
        assert isinstance(batcher.watch, Counted)
        assert (batcher.watch.items, batcher.watch.waits) == ([1, 4], 4)


@pytest.mark.parametrize(
    ("items", "requests", "runs"),
    [
        (1, [(1,), (2,), (3,)], [[1], [2], [3]]),
        (2, [(1,), (2,), (3,)], [[1, 2], [3]]),
        (4, [(1,), (2, 3), (4, 5)], [[1, 2, 3], [4, 5]]),  # the third would be one too many
        (4, [(1, 2, 3), (4, 5), (6,)], [[1, 2, 3, 6], [4, 5]]),  # whoever finds room joins, the head is next
        (4, [(1, 2, 3, 4, 5), (6,)], [[1, 2, 3, 4, 5], [6]]),  # a request above the size runs by itself
    ],
)
async def test_a_run_of_several_requests_never_exceeds_its_size(
    model: Doubling, items: int, requests: list[tuple[float, ...]], runs: list[list[float]]
) -> None:
    with batching(model, items) as batcher:
        head = asked(batcher, 0)
        await model.busy()
        others = [asked(batcher, *numbers) for numbers in requests]
        await until_queued()
        model.free()
        await asyncio.gather(head, *others)
        assert model.told == [[0], *runs]


async def test_a_request_of_another_form_does_not_join_and_waits_for_one_run_only(model: Doubling) -> None:
    with batching(model, 2) as batcher:
        head = asked(batcher, 0)
        await model.busy()
        others = [
            asked(batcher, 1),
            asked(batcher, 2, width=3),
            asked(batcher, 3),
            asked(batcher, 4),
            asked(batcher, 5),
        ]
        await until_queued()
        model.free()
        await asyncio.gather(head, *others)
        assert model.told == [[0], [1, 3], [2], [4, 5]]
        assert others[1].result()["y"].tolist() == [[4, 4, 4]]


async def test_items_along_another_axis_are_stacked_and_cut_along_it(model: Doubling) -> None:
    with batching(model, 8, axis=1) as batcher:
        arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float32).reshape(2, 2)]
        head = asyncio.create_task(batcher.infer(request(arrays[0][:, :1], 1)))
        await model.busy()
        tasks = [asyncio.create_task(batcher.infer(request(array, array.shape[1]))) for array in arrays]
        await until_queued()
        model.free()
        await asyncio.gather(head, *tasks)
        assert [run.shape for run in model.runs] == [(2, 1), (2, 5)]
        assert [task.result()["y"].tolist() for task in tasks] == [(2 * array).tolist() for array in arrays]


@pytest.mark.parametrize("culprit", [0, 1, 2])
async def test_a_request_that_makes_a_run_fail_fails_alone(model: Doubling, culprit: int) -> None:
    with batching(model, 8) as batcher:
        head = asked(batcher, 0)
        await model.busy()
        numbers = [1.0, 2.0, 3.0]
        numbers[culprit] = BAD
        tasks = [asked(batcher, number) for number in numbers]
        await until_queued()
        model.free()
        ends = await asyncio.gather(head, *tasks, return_exceptions=True)
        assert [isinstance(end, RuntimeFailure) for end in ends] == [False, *(number == BAD for number in numbers)]
        assert [answer(task) for task, number in zip(tasks, numbers, strict=True) if number != BAD] == [
            [2 * number] for number in numbers if number != BAD
        ]


async def test_a_run_whose_outputs_are_not_as_many_as_its_items_mixes_nobody_up(model: Doubling) -> None:
    model.loses_items = True
    with batching(model, 8) as batcher:
        head = asked(batcher, 0)
        await model.busy()
        tasks = [asked(batcher, 1), asked(batcher, 2)]
        await until_queued()
        model.free()
        await asyncio.gather(head, *tasks)
        assert [answer(task) for task in tasks] == [[2], [4]]


async def test_a_request_cancelled_in_a_run_ends_with_the_run_and_disturbs_nobody(model: Doubling) -> None:
    with batching(model, 8) as batcher:
        head = asked(batcher, 0)
        await model.busy()
        tasks = [asked(batcher, 1), asked(batcher, 2), asked(batcher, 3)]
        await until_queued()
        model.free(1)
        await model.busy()
        assert model.told == [[0], [1, 2, 3]]
        tasks[1].cancel()
        await until_queued()
        tasks[1].cancel()  # whoever asks twice gets no more
        await until_queued()
        assert not tasks[1].done()
        model.free()
        await asyncio.wait([head, *tasks])
        assert tasks[1].cancelled()
        assert [answer(tasks[0]), answer(tasks[2])] == [[2], [6]]


async def test_a_request_cancelled_before_its_turn_leaves_the_queue_at_once_and_never_runs(model: Doubling) -> None:
    with batching(model, 2) as batcher:
        head = asked(batcher, 0)
        await model.busy()
        tasks = [asked(batcher, number) for number in (1, 2, 3)]
        await until_queued()
        tasks[0].cancel()
        tasks[1].cancel()
        await asyncio.wait(tasks[:2])
        assert tasks[0].cancelled() and tasks[1].cancelled() and not head.done()
        model.free()
        await asyncio.wait([head, tasks[2]])
        assert (answer(tasks[2]), model.told) == ([6], [[0], [3]])


async def test_a_request_that_does_not_get_the_model_in_its_time_is_told_so_while_the_model_is_still_busy(
    model: Doubling, monkeypatch: pytest.MonkeyPatch
) -> None:
    with batching(model, 8) as batcher:
        head = asked(batcher, 0, seconds=60)
        await model.busy()
        late, patient = asked(batcher, 1, seconds=60), asked(batcher, 2)
        await until_queued()
        with an_hour_later(monkeypatch), pytest.raises(RequestError, match="not free within 60 s") as raised:
            await late
        assert raised.value.code is Code.UNAVAILABLE
        assert not head.done(), "whose run has begun is answered, however long it takes"
        model.free()
        await asyncio.gather(head, patient)
        assert (answer(head), answer(patient), model.told) == ([0], [4], [[0], [2]])


async def leaves() -> None:
    """A client that is gone."""


@pytest.mark.parametrize(
    ("what", "waits", "said"),
    [
        ("a deadline", {"deadline": 60}, "its deadline of 60 s"),
        ("a deadline before the server's own", {"deadline": 30, "seconds": 60}, "its deadline"),
        ("a client that leaves", {"gone": leaves}, "the client had left"),
        (
            "a client that leaves before its deadline",
            {"gone": leaves, "deadline": 7200, "seconds": 7200},
            "the client had left",
        ),
    ],
)
async def test_a_request_that_its_client_gives_up_leaves_the_queue_while_the_model_is_still_busy(
    model: Doubling, monkeypatch: pytest.MonkeyPatch, what: str, waits: dict[str, Any], said: str
) -> None:
    with batching(model, 8) as batcher:
        head = asked(batcher, 0, **waits)
        await model.busy()
        given_up, patient = asked(batcher, 1, **waits), asked(batcher, 2)
        await until_queued()
        with an_hour_later(monkeypatch), pytest.raises(RequestError, match=said) as raised:
            await given_up
        assert raised.value.code is Code.GONE, "which is no failure of the model"
        assert not head.done(), "whose run has begun is answered, whoever still wants it"
        model.free()
        await asyncio.gather(head, patient)
        assert (answer(head), answer(patient), model.told) == ([0], [4], [[0], [2]])


async def test_who_is_answered_is_no_longer_watched(model: Doubling) -> None:
    watched: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def stays() -> None:
        watched.set_result(asyncio.current_task())
        await asyncio.Event().wait()

    with batching(model, 8) as batcher:
        head = asked(batcher, 0, gone=stays)
        watching = await watched
        model.free()
        await head
        await asyncio.wait([watching])
        assert watching.cancelled()


async def test_a_cancelled_request_whose_time_is_over_leaves_the_queue(
    model: Doubling, monkeypatch: pytest.MonkeyPatch
) -> None:
    with batching(model, 8) as batcher:
        head = asked(batcher, 0)
        await model.busy()
        late = asked(batcher, 1, seconds=60)
        await until_queued()
        late.cancel()
        with an_hour_later(monkeypatch):
            await asyncio.wait([late])
        assert late.cancelled() and not head.done()
        model.free()
        await head


async def test_a_run_with_room_waits_for_more_and_begins_as_soon_as_it_is_full(model: Doubling) -> None:
    model.free()
    with batching(model, 3, delay=3600) as batcher:
        tasks = [asked(batcher, 1), asked(batcher, 2), asked(batcher, 3)]
        await asyncio.gather(*tasks)
        assert model.told == [[1, 2, 3]]


async def test_a_run_with_room_does_not_hold_up_who_cannot_join_it(model: Doubling) -> None:
    model.free()
    with batching(model, 8, delay=3600) as batcher:
        waits = asked(batcher, 1)
        await until_queued()
        other = asked(batcher, 2, width=2)
        await waits
        assert model.told[0] == [1]
        model.runs.clear()
        batcher.delay = 0.0
        asked(batcher, 3)
        await other


async def test_a_run_with_room_begins_by_itself_when_its_delay_is_over(model: Doubling) -> None:
    model.free()
    with batching(model, 8, delay=0.001) as batcher:
        assert (await asked(batcher, 1))["y"].tolist() == [[2]]


async def test_as_many_runs_are_under_way_as_there_are_streams(model: Doubling) -> None:
    with batching(model, 1, streams=2) as batcher:
        tasks = [asked(batcher, number) for number in (1, 2, 3)]
        await model.busy()
        await model.busy()
        assert sorted(run[0] for run in model.told) == [1, 2]
        assert not model.begun.acquire(blocking=False)
        model.free()
        await asyncio.gather(*tasks)


async def test_who_still_waits_when_it_is_closed_is_told_so(model: Doubling) -> None:
    batcher = Batcher(model, model, signature(), 1)
    head = asked(batcher, 0)
    await model.busy()
    left = asked(batcher, 1)
    await until_queued()
    closing = asyncio.create_task(asyncio.to_thread(batcher.close))
    with pytest.raises(RequestError, match="shutting down"):
        await left
    model.free()
    await closing
    assert answer(head) == [0]


REQUESTS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 2), st.booleans(), st.booleans()), min_size=1, max_size=24
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=REQUESTS, items=st.integers(1, 6), streams=st.integers(1, 3))
def test_whatever_is_asked_nobody_gets_what_is_anothers_and_heads_run_in_the_order_of_their_coming(
    requests: list[tuple[int, int, bool, bool]], items: int, streams: int
) -> None:
    async def run() -> None:
        model = Doubling()
        with batching(model, items, streams=streams) as batcher:
            tasks = []
            for number, (rows, width, bad, cancelled) in enumerate(requests, 1):
                numbers = [BAD if bad else 100.0 * number + row for row in range(rows)]
                tasks.append(asked(batcher, *numbers, width=width))
                await until_queued()
                if cancelled:
                    tasks[-1].cancel()
            model.free()
            await asyncio.wait(tasks)
            for number, (task, (rows, width, bad, cancelled)) in enumerate(zip(tasks, requests, strict=True), 1):
                if cancelled:
                    assert task.cancelled()
                elif bad:
                    assert isinstance(task.exception(), RuntimeFailure)
                else:
                    own = [[2 * (100.0 * number + row)] * width for row in range(rows)]
                    assert task.result()["y"].tolist() == own
            for x in model.runs:
                owners = {int(value // 100) for value in x[:, 0]}
                assert len(x) <= items or len(owners) == 1
            if streams == 1:
                heads = [int(x[0, 0] // 100) for x in model.runs if not (x == BAD).any()]
                assert heads == sorted(heads) or any(bad for _, _, bad, _ in requests)

    asyncio.run(run())
