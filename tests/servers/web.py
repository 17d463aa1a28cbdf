"""A web server on a loopback address: files with ranges and tags, passwords, and faults on demand."""

from __future__ import annotations

import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


@dataclass
class Request:
    """What arrived."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class WebServer:
    """Files by path, and how the server behaves. `breaks` is how many more answers end in the middle of their body."""

    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, tuple[int, bytes] | tuple[int, bytes, dict[str, str]]] = field(default_factory=dict)
    token: str | None = None
    password: tuple[str, str] | None = None
    ranges: bool = True
    heads: bool = True
    streams: bool = False  # files are sent without their length
    breaks: int = 0
    failures: int = 0
    requests: list[Request] = field(default_factory=list)
    port: int = 0
    tls: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}"

    def admits(self, authorization: str | None) -> bool:
        """Whether the header shows what is asked for."""
        wanted = None
        if self.token is not None:
            wanted = f"Bearer {self.token}"
        if self.password is not None:
            wanted = f"Basic {b64encode(':'.join(self.password).encode()).decode()}"
        return wanted is None or authorization == wanted

    def answer(self, request: Request, body: bytes) -> tuple[int, bytes, dict[str, str]] | None:
        """What a server says that has more than files: status, body and headers. None: as for a file."""
        return None

    def refusal(self, request: Request) -> dict[str, str]:
        """Headers of an answer that lets nobody in."""
        return {}


@contextmanager
def serving(server: WebServer | None = None) -> Iterator[WebServer]:
    """The server, while it runs."""
    told = server or WebServer()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"told": told}))
    told.port = http.server_port
    if told.tls is not None:
        http.socket = told.tls.wrap_socket(http.socket, server_side=True)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    told: WebServer

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: tests look at `requests`."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        told, path = self.told, unquote(self.path)
        shown = self.headers.get("Authorization")
        request = Request(self.command, path, self.headers.get("Range"), shown)
        told.requests.append(request)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command == "HEAD" and not told.heads:
            self._answer(405)
        elif told.failures:
            told.failures -= 1
            self._answer(503)
        elif path in told.statuses:
            self._answer(*told.statuses[path])
        elif (own := told.answer(request, body)) is not None:
            self._answer(*own)
        elif not told.admits(shown):
            self._answer(401, b"who are you?", told.refusal(request))
        elif path in told.redirects:
            self._answer(302, headers={"Location": told.redirects[path]})
        elif path not in told.files:
            self._answer(404)
        else:
            self._file(told.files[path])

    def _file(self, content: bytes) -> None:
        headers = {"ETag": f'"{sha256(content).hexdigest()[:16]}"'}
        if self.headers.get("If-Match") not in (None, headers["ETag"]):
            self._answer(412)
            return
        asked = self.headers.get("Range") if self.told.ranges else None
        if not asked:
            self._answer(200, content, headers)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(content)), len(content) - 1)
        if start >= len(content):
            self._answer(416)
            return
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self._answer(206, content[start : end + 1], headers)

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        told, streams = self.told, self.told.streams and status == 200
        self.send_response(status)
        length = {"Transfer-Encoding": "chunked"} if streams else {"Content-Length": str(len(body))}
        for name, value in {**(headers or {}), **length}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if status in (200, 206) and told.breaks and len(body) > 1:
            told.breaks -= 1
            self.wfile.write((b"%x\r\n" % len(body) if streams else b"") + body[: len(body) // 2])
            self.close_connection = True
            return
        chunks = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        self.wfile.write(chunks + b"0\r\n\r\n" if streams else body)
