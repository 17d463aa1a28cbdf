"""How much memory reading a request takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

from fettle.server.request import Code, RequestError


def peak(read: Callable[..., object], *arguments: Any) -> int:
    """The most bytes that are allocated at once while `read` reads a request, or refuses it as invalid."""
    tracemalloc.start()
    try:
        read(*arguments)
    except RequestError as error:
        assert error.code is Code.INVALID
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return most
