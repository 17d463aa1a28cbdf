"""What trainings tell while they run, from their log into status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.api_server import ApiServer, serving

from fettle.api.progress import TrainingStatus, progress_in, progress_line
from fettle.cluster.client import Client
from fettle.cluster.progress import TrainingLogs

POD = {"metadata": {"uid": "uid-1", "namespace": "team", "name": "trains"}}
LOG = ("GET", "/api/v1/namespaces/team/pods/trains/log")


@pytest.fixture
async def api() -> AsyncIterator[tuple[ApiServer, Client]]:
    async with serving() as pair:
        yield pair


def after(epoch: int) -> TrainingStatus:
    """How far a training is after that epoch."""
    return TrainingStatus(
        epoch=epoch, epochs=20, loss=0.412, validation_loss=0.5, validation_score=0.931, best_epoch=epoch, seconds=1.5
    )


async def told(logs: TrainingLogs, client: Client, epoch: int) -> TrainingStatus:
    """What the pod said last, as soon as it is that epoch."""
    while True:
        newest = logs.newest(client, POD)
        if newest is not None and newest.epoch == epoch:
            return newest
        await asyncio.sleep(0)


async def test_however_often_one_looks_the_log_is_opened_once(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    lines = server.streams["trains"] = asyncio.Queue[str]()
    logs = TrainingLogs()
    assert logs.newest(client, POD) is None
    for epoch in (1, 2, 3):
        lines.put_nowait(f"12:00:00 fettle.loop: {progress_line(after(epoch))}\nsomething else\n")
        assert await told(logs, client, epoch) == after(epoch)
    assert server.requests == [LOG]
    lines.put_nowait("")


async def test_a_log_that_broke_off_is_opened_again_and_what_was_told_stays(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    server.logs["trains"] = f"{progress_line(after(4))}\n"  # which ends at once, as over a proxy with little patience
    logs = TrainingLogs()
    assert await told(logs, client, 4) == after(4)
    while len(server.requests) < 2:
        assert logs.newest(client, POD) == after(4)
        await asyncio.sleep(0)


async def test_a_log_that_cannot_be_read_leaves_a_training_without_figures(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    logs = TrainingLogs()
    while len(server.requests) < 2:
        assert logs.newest(client, POD) is None
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "epoch 3 of 20",
        "FETTLE-PROGRESS ",
        'FETTLE-PROGRESS {"epoch": "x"}',
        progress_line(after(3)).replace("0.412", "NaN"),
        progress_line(after(3)).replace(":20,", ":1e40,"),
    ],
)
def test_other_lines_of_a_log_are_no_progress(line: str) -> None:
    assert progress_in(line) is None


def test_progress_is_told_in_words() -> None:
    assert after(3).words == "epoch 3 of 20: loss 0.412, validation score 0.931"
