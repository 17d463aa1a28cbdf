"""Moments of status and of annotations, which people can edit."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from fettle.plan import timestamps


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-02-30T00:00:00Z", "yesterday", "", None]
)
def test_what_is_no_moment_is_none(text: str | None) -> None:
    assert timestamps.read(text) is None


def test_a_moment_is_read_in_utc() -> None:
    found = timestamps.read("2026-03-01T14:00:00+02:00")
    assert found == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert timestamps.write(found) == "2026-03-01T12:00:00Z"
