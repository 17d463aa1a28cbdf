"""How clients try again, made short for tests."""

from __future__ import annotations

from datetime import timedelta

import pytest

from fettle.store import places


def retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few attempts, close to each other."""
    backoff = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5), "base": 2}
    monkeypatch.setattr(places, "RETRY", {"max_retries": 3, "retry_timeout": timedelta(seconds=20), "backoff": backoff})
