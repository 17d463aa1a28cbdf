"""What trainings tell while they run, from their log into status."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.api_server import ApiServer, serving

from fettle.api.progress import TrainingStatus, progress_in, progress_line
from fettle.cluster.client import Client
from fettle.cluster.progress import LINES, MOST_BYTES, PROGRESS_SECONDS, TrainingLogs

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


class Clock:
    """Time that only the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_however_often_one_looks_the_log_is_read_now_and_then(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    clock = Clock()
    logs = TrainingLogs(clock)
    assert await logs.newest(client, POD) is None, "there is no log yet"
    for epoch in (1, 2, 3):
        lines = [f"12:00:00 fettle.loop: {progress_line(after(each))}" for each in range(epoch + 1)]
        server.logs["trains"] = "\n".join((*lines, "something else", ""))
        assert await logs.newest(client, POD) == (after(epoch - 1) if epoch > 1 else None)
        clock.now += PROGRESS_SECONDS
        for _ in range(100):
            assert await logs.newest(client, POD) == after(epoch)
    assert server.requests == [LOG] * 4


async def test_what_was_told_stays_where_a_log_cannot_be_read_or_says_other_things(
    api: tuple[ApiServer, Client],
) -> None:
    server, client = api
    clock = Clock()
    logs = TrainingLogs(clock)
    server.logs["trains"] = f"{progress_line(after(4))}\n"
    assert await logs.newest(client, POD) == after(4)
    for text in (None, "other things\n" * 50):
        server.logs = {} if text is None else {"trains": text}
        clock.now += PROGRESS_SECONDS
        assert await logs.newest(client, POD) == after(4)


async def test_little_of_a_log_is_asked_for(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    server.logs["trains"] = "x" * (MOST_BYTES * 3)
    assert await TrainingLogs().newest(client, POD) is None
    assert server.queries[-1] == {"container": "optimizer", "tailLines": str(LINES), "limitBytes": str(MOST_BYTES)}


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
