"""Log lines in JSON."""

from __future__ import annotations

import json
import logging
import sys

from fettle.controller.__main__ import JsonLines
from fettle.server.logs import JsonFormatter


def test_a_line_of_the_operator_has_the_fields_and_the_words_of_a_servers() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.LogRecord("fettle", logging.WARNING, __file__, 1, "%s failed", ("digits",), sys.exc_info())
    operator, server = (json.loads(formatter.format(record)) for formatter in (JsonLines(), JsonFormatter()))
    assert operator == server
    assert (operator["level"], operator["message"]) == ("warning", "digits failed")
    assert operator["exception"].endswith("ValueError: broken")
