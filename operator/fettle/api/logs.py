"""What a log line in JSON has, whoever writes it: one rule of a log collector reads the operator's and the servers'."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime


def json_fields(
    formatter: logging.Formatter, record: logging.LogRecord, more: Mapping[str, str] | None = None
) -> dict[str, str]:
    """`time`, `level`, `logger`, `message`, then `more`, and a traceback, as `formatter` writes it, as `exception`."""
    line = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
        **(more or {}),
    }
    if record.exc_info:
        line["exception"] = formatter.formatException(record.exc_info)
    return line
