"""The management port: health, metrics, analysis windows and samples, apart from the data port so that a saturated server is still
observed.
"""

from __future__ import annotations

import hmac
import logging
from typing import Any
from urllib.parse import parse_qs

import orjson

from fettle.server.application import Application
from fettle.server.replay import AT_ONCE, PATH, Replay, Trouble, read_token
from fettle.server.samples import Head, pack

_JSON = [("content-type", "application/json")]
_BYTES = [("content-type", "application/octet-stream")]
_TEXT = [("content-type", "text/plain; version=0.0.4; charset=utf-8")]
log = logging.getLogger(__name__)


class Management:
    """Routes of the management port. `application` and `replay` are None until the model is loaded and warmed up."""

    def __init__(self) -> None:
        self.application: Application | None = None
        self.replay: Replay | None = None

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
        if scope.path not in ("/readyz", "/metrics", "/fettle/window", PATH):
            return 404, _TEXT, b"try /healthz, /readyz, /metrics or /fettle/window?since=SECONDS\n"
        if application is None:
            return 503, _TEXT, b"the model is loading\n"
        if scope.path == PATH:
            return _samples(scope, application)
        if scope.path == "/metrics":
            application.metrics.samples.set(len(application.samples))
            return 200, _TEXT, application.metrics.text()
        if scope.path == "/readyz":
            return (503, _TEXT, b"draining\n") if application.connections.draining else (200, _TEXT, b"ready\n")
        try:
            since = float(parse_qs(scope.query_string).get("since", ["0"])[0])
        except ValueError:
            return 400, _JSON, orjson.dumps({"error": "since must be a number of seconds (Unix time)"})
        told = application.windows.since(since)
        if self.replay is not None:
            told["agreement"] = self.replay.state()
        return 200, _JSON, orjson.dumps(told)


def _samples(scope: Any, application: Application) -> tuple[int, list[tuple[str, str]], bytes]:
    """Hand samples out, each once, to a pod of this ModelDeployment that is of another revision."""
    settings = application.settings
    if not settings.samples:
        return 404, _TEXT, b"server.samples is 0\n"
    if scope.method != "POST":
        return 405, [*_TEXT, ("allow", "POST")], b"take samples with POST: they are handed out once\n"
    try:
        expected = f"Bearer {read_token(settings.samples_token)}"
    except Trouble as trouble:
        return 503, _TEXT, trouble.message.encode()
    given = scope.headers.get("authorization") or ""
    if not hmac.compare_digest(given.encode(), expected.encode()):
        return 401, _TEXT, b"expected the token of this ModelDeployment's samples Secret\n"
    manifest = application.model.manifest
    head = Head(revision=settings.revision, signature=manifest.signature, comparisons=manifest.comparisons)
    fellow = scope.headers.get("fettle-revision") == settings.revision
    return 200, _BYTES, pack(head, application.samples.take(0 if fellow else AT_ONCE))
