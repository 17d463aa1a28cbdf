"""The management port: health, metrics and analysis windows, apart from the data port so that a saturated server is still observed."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import parse_qs

import orjson

from fettle.server.application import Application

_JSON = [("content-type", "application/json")]
_TEXT = [("content-type", "text/plain; version=0.0.4; charset=utf-8")]
log = logging.getLogger(__name__)


class Management:
    """Routes of the management port. `application` is None until the model is loaded and warmed up."""

    def __init__(self) -> None:
        self.application: Application | None = None

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Answer one request."""
        if scope.proto != "http":
            protocol.close(None)
            return
        status, headers, body = self._answer(scope)
        protocol.response_bytes(status, headers, body)

    def _answer(self, scope: Any) -> tuple[int, list[tuple[str, str]], bytes]:
        application = self.application
        if scope.path == "/healthz":
            return 200, _TEXT, b"ok\n"
        if scope.path not in ("/readyz", "/metrics", "/fettle/window"):
            return 404, _TEXT, b"try /healthz, /readyz, /metrics or /fettle/window?since=SECONDS\n"
        if application is None:
            return 503, _TEXT, b"the model is loading\n"
        if scope.path == "/metrics":
            return 200, _TEXT, application.metrics.text()
        if scope.path == "/readyz":
            return (503, _TEXT, b"draining\n") if application.connections.draining else (200, _TEXT, b"ready\n")
        try:
            since = float(parse_qs(scope.query_string).get("since", ["0"])[0])
        except ValueError:
            return 400, _JSON, orjson.dumps({"error": "since must be a number of seconds (Unix time)"})
        return 200, _JSON, orjson.dumps(application.windows.since(since))
