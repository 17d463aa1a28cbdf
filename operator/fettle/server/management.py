"""The management port: health, metrics, analysis windows and samples, in a thread and an event loop of its own, so that a saturated
server is still observed.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import math
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import orjson

from fettle.api.window import written
from fettle.server import logs
from fettle.server.replay import AT_ONCE, PATH, Replay, Trouble, read_token
from fettle.server.samples import SamplesHead, pack
from fettle.server.service import InferenceService

_JSON = [("content-type", "application/json")]
_BYTES = [("content-type", "application/octet-stream")]
_TEXT = [("content-type", "text/plain; version=0.0.4; charset=utf-8")]
log = logging.getLogger(__name__)


LOG_LEVEL = "/fettle/log"
SILENCE_SECONDS = 60.0  # of the data port's event loop, after which the process is not live

HttpAnswer = tuple[int, list[tuple[str, str]], bytes]


class Management:
    """Routes of the management port. `service` and `replay` are None until the model is loaded and warmed up.

    `beat` is called by the data port's event loop each second: this port answers for a process in which that loop turns.
    """

    def __init__(self) -> None:
        self.service: InferenceService | None = None
        self.replay: Replay | None = None
        self._beaten_at = time.monotonic()
        self.client_of: Callable[[str], str | None] = lambda told: (
            told
        )  # who is behind what a port says of a connection

    def beat(self) -> None:
        """The data port's event loop turns."""
        self._beaten_at = time.monotonic()

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Answer one request."""
        if scope.proto != "http":
            protocol.close(None)
            return
        try:
            status, headers, body = self._answer(scope)
        except Exception as error:
            log.exception("%s %s failed", scope.method, scope.path)
            status, headers, body = 500, _TEXT, f"{type(error).__name__}; see the log\n".encode()
        protocol.response_bytes(status, headers, body)

    def _answer(self, scope: Any) -> HttpAnswer:
        service = self.service
        if scope.path == "/healthz":
            return self._health()
        if scope.path == LOG_LEVEL:
            return self._log_level(scope)
        if scope.path not in ("/readyz", "/metrics", "/fettle/window", PATH):
            return 404, _TEXT, b"try /healthz, /readyz, /metrics or /fettle/window?since=SECONDS\n"
        if service is None:
            return 503, _TEXT, b"the model is loading\n"
        if scope.path == PATH:
            return _samples(scope, service)
        if scope.path == "/metrics":
            service.metrics.samples.set(len(service.samples))
            return 200, _TEXT, service.metrics.text()
        if scope.path == "/readyz":
            return (503, _TEXT, b"draining\n") if service.draining else (200, _TEXT, b"ready\n")
        return self._window(service, scope.query_string)

    def _health(self) -> HttpAnswer:
        silent = time.monotonic() - self._beaten_at
        if silent > SILENCE_SECONDS:
            return 503, _TEXT, f"the data port's event loop has been blocked for {silent:.0f} s\n".encode()
        return 200, _TEXT, b"ok\n"

    def _log_level(self, scope: Any) -> HttpAnswer:
        """Change what is logged. Only for who is in the pod, as `kubectl port-forward` is."""
        if not _is_loopback(self.client_of(scope.client) or ""):
            return 403, _TEXT, b"the log's level is set from within the pod: kubectl port-forward POD 8081\n"
        if scope.method != "POST":
            return 405, [*_TEXT, ("allow", "POST")], b"POST /fettle/log?level=debug\n"
        try:
            logs.set_level(parse_qs(scope.query_string).get("level", [""])[0])
        except ValueError as error:
            return 400, _TEXT, f"{error}\n".encode()
        return 200, _TEXT, b"ok\n"

    def _window(self, service: InferenceService, query: str) -> HttpAnswer:
        try:
            since = float(parse_qs(query).get("since", ["0"])[0])
        except ValueError:
            since = math.nan
        if not math.isfinite(since):
            return 400, _JSON, orjson.dumps({"error": "since must be a number of seconds (Unix time)"})
        head, seconds = service.windows.since(since)
        if self.replay is not None:
            head = head.model_copy(update={"agreement": self.replay.state()})
        if service.drift is not None:
            head = head.model_copy(update={"drift": service.drift.window()})
        return 200, _JSON, written(head, seconds)


def _is_loopback(client: str) -> bool:
    """Whether a client, told as address:port, is in the pod. A port that listens on IPv6 tells IPv4's addresses as its own."""
    try:
        address = ipaddress.ip_address(client.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _samples(scope: Any, service: InferenceService) -> HttpAnswer:
    """Hand samples out, each once, to a pod of this ModelDeployment that is of another revision."""
    settings = service.settings
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
    manifest = service.model.manifest
    head = SamplesHead(revision=settings.revision, signature=manifest.signature, comparisons=manifest.comparisons)
    fellow = scope.headers.get("fettle-revision") == settings.revision
    return 200, _BYTES, pack(head, service.samples.take(0 if fellow else AT_ONCE))
