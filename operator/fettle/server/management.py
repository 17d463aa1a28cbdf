"""The management port: health, metrics, analysis windows and samples, in a thread and an event loop of its own, so that a saturated
server is still observed.
"""

from __future__ import annotations

import hmac
import logging
import math
from typing import Any
from urllib.parse import parse_qs

import orjson

from fettle.server import proxies
from fettle.server.listener import Listener
from fettle.server.replay import PATH, Trouble, read_token
from fettle.server.samples import MOST_AT_ONCE
from fettle.server.settings import ServerSettings
from fettle.server.state import Condition, NotTold, State

_JSON = [("content-type", "application/json")]
_BYTES = [("content-type", "application/octet-stream")]
_TEXT = [("content-type", "text/plain; version=0.0.4; charset=utf-8")]
log = logging.getLogger(__name__)


LOG_LEVEL = "/fettle/log"
SILENCE_SECONDS = 60.0  # of an event loop that answers requests, after which the pod is not live

HttpAnswer = tuple[int, list[tuple[str, str]], bytes]


class Management:
    """The management port, which tells of `state`."""

    def __init__(self, settings: ServerSettings, state: State) -> None:
        self._settings, self._state = settings, state
        # Probes have no certificate to show.
        self._listener = Listener(self, settings.host, settings.management_port, settings.tls_folder)

    async def serve(self) -> None:
        """Listen until `stop`. Raises as `Listener.serve`."""
        await self._listener.serve()

    def stop(self) -> None:
        """Stop listening."""
        self._listener.stop()

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Answer one request."""
        if scope.proto != "http":
            protocol.close(None)
            return
        try:
            status, headers, body = await self._answer(scope)
        except NotTold as error:
            status, headers, body = 503, _TEXT, f"{error}\n".encode()
        except Exception as error:
            log.exception("%s %s failed", scope.method, scope.path)
            status, headers, body = 500, _TEXT, f"{type(error).__name__}; see the log\n".encode()
        protocol.response_bytes(status, headers, body)

    async def _answer(self, scope: Any) -> HttpAnswer:
        if scope.path == "/healthz":
            return self._health()
        if scope.path == LOG_LEVEL:
            return await self._log_level(scope)
        if scope.path not in ("/readyz", "/metrics", "/fettle/window", PATH):
            return 404, _TEXT, b"try /healthz, /readyz, /metrics or /fettle/window?since=SECONDS\n"
        condition = self._state.condition
        if scope.path == "/readyz" or condition is Condition.LOADING:
            return 200 if condition is Condition.READY else 503, _TEXT, f"{condition}\n".encode()
        if scope.path == PATH:
            return await self._samples(scope)
        if scope.path == "/metrics":
            return 200, _TEXT, await self._state.metrics()
        return await self._window(scope.query_string)

    def _health(self) -> HttpAnswer:
        silent = self._state.silence()
        if silent > SILENCE_SECONDS:
            return 503, _TEXT, f"the data port's event loop has been blocked for {silent:.0f} s\n".encode()
        return 200, _TEXT, b"ok\n"

    async def _log_level(self, scope: Any) -> HttpAnswer:
        """Change what is logged. Only for who is in the pod, as `kubectl port-forward` is."""
        if not _is_loopback(self._listener.client(scope.client) or ""):
            return 403, _TEXT, b"the log's level is set from within the pod: kubectl port-forward POD 8081\n"
        if scope.method != "POST":
            return 405, [*_TEXT, ("allow", "POST")], b"POST /fettle/log?level=debug\n"
        try:
            await self._state.set_level(parse_qs(scope.query_string).get("level", [""])[0])
        except ValueError as error:
            return 400, _TEXT, f"{error}\n".encode()
        return 200, _TEXT, b"ok\n"

    async def _window(self, query: str) -> HttpAnswer:
        try:
            since = float(parse_qs(query).get("since", ["0"])[0])
        except ValueError:
            since = math.nan
        if not math.isfinite(since):
            return 400, _JSON, orjson.dumps({"error": "since must be a number of seconds (Unix time)"})
        return 200, _JSON, await self._state.window(since)

    async def _samples(self, scope: Any) -> HttpAnswer:
        """Hand samples out, each once, to a pod of this ModelDeployment that is of another revision."""
        settings = self._settings
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
        fellow = scope.headers.get("fettle-revision") == settings.revision
        return 200, _BYTES, await self._state.samples(0 if fellow else MOST_AT_ONCE)


def _is_loopback(client: str) -> bool:
    """Whether a client, told as address:port, is in the pod."""
    address = proxies.parsed(proxies.host(client))
    return address is not None and address.is_loopback
