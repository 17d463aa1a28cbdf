"""Trying again: as often and as long as obstore's client does, counted from the first error."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import count

import pytest

from fettle.errors import StoreError
from fettle.store import places, web

BACKOFF = {"init_backoff": timedelta(0), "max_backoff": timedelta(0), "base": 2}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only the tests move."""
    moment = [0.0]
    monkeypatch.setattr(places, "RETRY", {"max_retries": 3, "retry_timeout": timedelta(minutes=2), "backoff": BACKOFF})
    monkeypatch.setattr(web.time, "monotonic", lambda: moment[0])
    return moment


def breaking(clock: list[float], seconds: float, times: int) -> Callable[[], int]:
    """What breaks so often, each time after so many seconds, and then returns how often it was called."""
    calls = count(1)

    def attempt() -> int:
        clock[0] += seconds
        number = next(calls)
        if number <= times:
            raise StoreError("the connection was lost", retryable=True)
        return number

    return attempt


@pytest.mark.parametrize(("seconds", "times"), [(1, 3), (3600, 1)])
def test_what_may_pass_is_tried_again_however_long_it_took_to_break(
    clock: list[float], seconds: float, times: int
) -> None:
    assert web.patiently(breaking(clock, seconds, times)) == times + 1


@pytest.mark.parametrize(("seconds", "times"), [(1, 4), (121, 2)])
def test_what_goes_on_breaking_is_told(clock: list[float], seconds: float, times: int) -> None:
    with pytest.raises(StoreError, match="the connection was lost"):
        web.patiently(breaking(clock, seconds, times))
