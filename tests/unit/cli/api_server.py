"""An API server of a few objects over real HTTP, for what the command line sends and how it takes refusals."""

from __future__ import annotations

import json
import queue
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]


@dataclass
class ApiServer:
    """`objects`: path -> what GET answers. `refuse`: path -> status and message. `written`: what came in.

    `watches`: path -> the events of a watch as they come; None ends it. `asked`: paths of what was read, with their query.
    """

    port: int = 0
    objects: dict[str, Object] = field(default_factory=dict)
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    written: list[tuple[str, str, Object]] = field(default_factory=list)
    watches: defaultdict[str, queue.Queue[Object | None]] = field(default_factory=lambda: defaultdict(queue.Queue))
    asked: list[str] = field(default_factory=list)

    def kubeconfig(self, folder: Path, *, namespace: str | None = None) -> Path:
        """A kubeconfig with two contexts, of which `here` is the current one."""
        context: Object = {"cluster": "c", "user": "u"} | ({"namespace": namespace} if namespace else {})
        path = folder / "kubeconfig"
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "here",
                    "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                    "users": [{"name": "u", "user": {"token": "t"}}],
                    "contexts": [
                        {"name": "here", "context": context},
                        {"name": "there", "context": {**context, "namespace": "elsewhere"}},
                    ],
                }
            )
        )
        return path


class Handler(BaseHTTPRequestHandler):
    """Answers from `state`, which a subclass names."""

    state: ApiServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.state.asked.append(self.path)
        if self._refused(path):
            return
        if "watch=true" in self.path:
            self._watch(path)
        elif path in self.state.objects:
            self._send(200, self.state.objects[path])
        else:
            self._send(404, {"kind": "Status", "status": "Failure", "message": f"{path} not found", "code": 404})

    def do_PATCH(self) -> None:
        path = self.path.partition("?")[0]
        body: Object = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._refused(path):
            self.state.written.append((self.command, path, body))
            self._send(200, {**self.state.objects.get(path, {}), **body})

    do_POST = do_PATCH

    def _refused(self, path: str) -> bool:
        if path not in self.state.refuse:
            return False
        status, message = self.state.refuse[path]
        self._send(status, {"kind": "Status", "status": "Failure", "message": message, "code": status})
        return True

    def _watch(self, path: str) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        while (event := self.state.watches[path].get()) is not None:
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.write(b"0\r\n\r\n")

    def _send(self, status: int, body: Object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def api_server() -> Iterator[ApiServer]:
    """A server that runs for the length of a test."""
    state = ApiServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"state": state}))
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        for events in list(state.watches.values()):
            events.put(None)
        server.server_close()
