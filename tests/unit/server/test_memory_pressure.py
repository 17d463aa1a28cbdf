"""A server that may have no more memory: what needs more is refused, and the next good request is served. A real process with a limit."""

from __future__ import annotations

from pathlib import Path

import httpx
import psutil
from tests.unit.server.serving import EchoServer, answers_with

SIZE = 30 << 20  # bytes of a body; its numbers take four times as much
# Bytes of address space that are left to the server: a body has room even while it is copied, its numbers never have.
SPARE = 96 << 20
USUAL = 1 << 20  # bytes of a body that the thread for large ones decodes


def sent(server: EchoServer, content: bytes) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{server.port}/v2/models/echo/infer", content=content, timeout=120)


def ones(count: int) -> bytes:
    """Two bytes for each number, which takes eight in memory."""
    head = b'{"inputs": [{"name": "x_FP64", "datatype": "FP64", "shape": [1, %d], "data": [' % count
    return head + b"1," * (count - 1) + b"1]}]}"


def test_what_does_not_fit_into_memory_is_refused_and_the_next_request_is_served(tmp_path: Path) -> None:
    server = EchoServer(tmp_path, ["FP64"])
    try:
        # With all of its threads, whose stacks and heaps take up address space when they begin: how much depends on the machine.
        for size in (2, USUAL):
            assert sent(server, ones(size // 2)).status_code == 200
        process = psutil.Process(server.process.pid)
        process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + SPARE, psutil.RLIM_INFINITY))
        for turn in range(2):
            said = sent(server, ones(SIZE // 2))
            assert said.status_code == 503, said.text[:500]
            assert "does not have enough memory for this request: send fewer items" in said.json()["error"]
            assert sent(server, ones(1)).json()["outputs"][0]["data"] == [1]
            assert answers_with(server, 200) == 3 + turn
    finally:
        server.stop()
