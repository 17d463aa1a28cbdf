"""An API server of a few objects over real HTTP, for what the command line sends and how it takes refusals."""

from __future__ import annotations

import json
import threading
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
    """`objects`: path -> what GET answers. `refuse`: path -> status and message. `written`: what came in."""

    port: int = 0
    objects: dict[str, Object] = field(default_factory=dict)
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    written: list[tuple[str, str, Object]] = field(default_factory=list)

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


@contextmanager
def api_server() -> Iterator[ApiServer]:
    """A server that runs for the length of a test."""
    state = ApiServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_PATCH(self) -> None:
            self._answer(self._body())

        do_POST = do_PATCH

        def _body(self) -> Object:
            found: Object = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            return found

        def _answer(self, body: Object | None) -> None:
            path = self.path.partition("?")[0]
            if path in state.refuse:
                status, message = state.refuse[path]
                self._send(status, {"kind": "Status", "status": "Failure", "message": message, "code": status})
                return
            if body is not None:
                state.written.append((self.command, path, body))
                self._send(200, {**state.objects.get(path, {}), **body})
            elif path in state.objects:
                self._send(200, state.objects[path])
            else:
                self._send(404, {"kind": "Status", "status": "Failure", "message": f"{path} not found", "code": 404})

        def _send(self, status: int, body: Object) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
