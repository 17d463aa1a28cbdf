"""The server's log: text or JSON, each line with the request that it belongs to, and a level that can be changed at run time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from enum import StrEnum

import orjson

from fettle.api.logs import json_fields
from fettle.api.text import clip
from fettle.store.credentials import CleanFormatter

REQUEST_ID = "x-request-id"
TRACE_CONTEXT, TRACE_STATE = "traceparent", "tracestate"  # by https://www.w3.org/TR/trace-context
PASSED_ON = (REQUEST_ID, TRACE_CONTEXT)
MOST_TOLD = 128  # bytes of what a client calls its request
LEVELS = ("debug", "info", "warning", "error")

Header = Callable[[str], str | None]
# How the request that is worked on tells its headers. They are only asked for where a line is written.
HEADERS: ContextVar[Header | None] = ContextVar("headers", default=None)


class LogFormat(StrEnum):
    """How a line looks."""

    TEXT = "Text"
    JSON = "JSON"


def told(header: Header | None) -> dict[str, str]:
    """What a request says of itself: its id and its trace, as far as they can be written on a line and sent back."""
    if header is None:
        return {}
    found = {name: header(name) for name in PASSED_ON}
    return {
        name: value[:MOST_TOLD] for name, value in found.items() if value and value.isascii() and value.isprintable()
    }


class TextFormatter(CleanFormatter):
    """Time, level, logger and message, and after them the request."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """One line, but for a traceback."""
        return " ".join([super().format(record), *(f"{name}={value!r}" for name, value in told(HEADERS.get()).items())])


class JsonFormatter(CleanFormatter):
    """A JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """`time`, `level`, `logger`, `message`, and where they apply `x-request-id`, `traceparent` and `exception`."""
        return self.clean(orjson.dumps(json_fields(self, record, told(HEADERS.get()))).decode())


def configure(form: LogFormat, level: str) -> None:
    """Write to stderr from now on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form is LogFormat.JSON else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def set_level(level: str) -> None:
    """Write what is at least of that level from now on: debug tells of every request. Raises ValueError."""
    if level.lower() not in LEVELS:
        raise ValueError(f"expected level={'|'.join(LEVELS)}, found {clip(level, 32)!r}")
    logging.getLogger().setLevel(level.upper())
