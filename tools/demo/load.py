"""A constant load on one V2 REST endpoint, from inside the cluster: half over keep-alive connections, half over new ones.

Standard library only: it runs as one file from a ConfigMap in a pod of the server image. Each second it prints a JSON line of totals, and a last
one on SIGTERM. A request fails by transport when no whole HTTP answer came back; a 5xx is booked to the revision that its `fettle-revision`
header names, so that a canary's own errors can be told from everybody else's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit


@dataclass
class Totals:
    """What happened so far. `transport` holds kinds of transport errors, `status` counts by code, `server_errors` 5xx by revision.

    `sent_by`, `failed_by`: by kind of connection; a failure is any request without a 2xx. `worst_ms_by` is the last line's second only.
    """

    sent: int = 0
    sent_by: Counter[str] = field(default_factory=Counter)
    failed_by: Counter[str] = field(default_factory=Counter)
    worst_ms_by: dict[str, float] = field(default_factory=dict)
    transport: Counter[str] = field(default_factory=Counter)
    status: Counter[int] = field(default_factory=Counter)
    server_errors: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    worst_ms: float = 0.0
    recent_ms: deque[float] = field(default_factory=lambda: deque(maxlen=400))
    samples: list[str] = field(default_factory=list)

    def line(self, final: bool = False) -> str:
        """One JSON line; latencies in milliseconds over the last 400 requests."""
        ordered = sorted(self.recent_ms)
        worst, self.worst_ms_by = self.worst_ms_by, {}
        return json.dumps(
            {
                "final": final,
                "time": time.time(),
                "sent": self.sent,
                "transport": sum(self.transport.values()),
                "transportKinds": dict(self.transport),
                "status": {str(code): count for code, count in self.status.items()},
                "serverErrors": dict(self.server_errors),
                "answered": dict(self.answered),
                "p50": round(ordered[len(ordered) // 2], 2) if ordered else None,
                "p99": round(ordered[int(len(ordered) * 0.99)], 2) if ordered else None,
                "worst": round(self.worst_ms, 2),
                "connections": {
                    kind: {"sent": count, "failed": self.failed_by[kind], "worst": round(worst.get(kind, 0.0), 2)}
                    for kind, count in self.sent_by.items()
                },
                "samples": self.samples[-3:],
            }
        )


class Connection:
    """One HTTP/1.1 connection; `request` opens it when there is none and drops it when the server asks so."""

    def __init__(self, host: str, address: str, port: int) -> None:
        self.host, self.address, self.port = host, address, port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def request(self, path: str, body: bytes, keep: bool) -> tuple[int, dict[str, str], bytes]:
        """POST `body`; returns status, headers (lower case) and body. Raises OSError, EOFError or ValueError."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.address, self.port)
        assert self.reader is not None
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        )
        self.writer.write(head.encode() + body)
        await self.writer.drain()
        raw = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(raw[0].split(" ", 2)[1])
        headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in raw[1:] if line)}
        answer = await self.reader.readexactly(int(headers.get("content-length", "0")))
        if not keep or headers.get("connection", "").lower() == "close":
            await self.close()
        return status, headers, answer

    async def close(self) -> None:
        """Drop the connection, if there is one."""
        writer, self.reader, self.writer = self.writer, None, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def client(
    options: argparse.Namespace, bodies: list[bytes], totals: Totals, number: int, stop: asyncio.Event
) -> None:
    """One user: sends at its share of the rate, even numbers over keep-alive connections."""
    target = urlsplit(options.url)
    connection = Connection(str(target.hostname), options.address, target.port or 80)
    keep = number % 2 == 0
    kind = "keep-alive" if keep else "new"
    period = options.clients / options.rate
    due = time.monotonic() + period * number / options.clients
    while not stop.is_set():
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        due = max(due + period, time.monotonic() - 5 * period)
        started = time.monotonic()
        body = bodies[totals.sent % len(bodies)]
        totals.sent += 1
        totals.sent_by[kind] += 1
        try:
            reused = connection.writer is not None
            async with asyncio.timeout(options.timeout):
                status, headers, answer = await connection.request(target.path, body, keep)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            totals.transport[f"{type(error).__name__}{' (reused connection)' if reused else ''}"] += 1
            totals.failed_by[kind] += 1
            totals.samples.append(f"{time.time():.1f} {error!r} reused={reused}")
            await connection.close()
            continue
        elapsed = (time.monotonic() - started) * 1000
        totals.recent_ms.append(elapsed)
        totals.worst_ms = max(totals.worst_ms, elapsed)
        totals.worst_ms_by[kind] = max(totals.worst_ms_by.get(kind, 0.0), elapsed)
        totals.status[status] += 1
        totals.answered[headers.get("fettle-revision", "unknown")] += 1
        totals.failed_by[kind] += not 200 <= status < 300
        if status >= 500:
            totals.server_errors[headers.get("fettle-revision", "unknown")] += 1
            totals.samples.append(f"{time.time():.1f} {status} {answer[:160]!r}")
    await connection.close()


async def run(options: argparse.Namespace, bodies: list[bytes]) -> None:
    """All users until the time is over or SIGTERM comes."""
    totals, stop = Totals(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    users = [asyncio.create_task(client(options, bodies, totals, number, stop)) for number in range(options.clients)]
    end = time.monotonic() + options.seconds
    while not stop.is_set() and time.monotonic() < end:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)
        print(totals.line(), flush=True)
    stop.set()
    await asyncio.gather(*users)
    print(totals.line(final=True), flush=True)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="http://service:8080/v2/models/NAME/infer")
    parser.add_argument("--bodies", required=True, help="file with one JSON request body a line")
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second over all clients")
    parser.add_argument("--clients", type=int, default=4, help="concurrent users; even ones keep their connection")
    parser.add_argument("--seconds", type=float, default=900.0, help="stop by itself after this long")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds after which a request counts as failed")
    options = parser.parse_args()
    # Asked once: the address of a Service stays, and a name server that is short of time is not what is measured.
    options.address = socket.gethostbyname(str(urlsplit(options.url).hostname))
    bodies = [line.encode() for line in Path(options.bodies).read_text().splitlines() if line]
    asyncio.run(run(options, bodies))
    sys.exit(0)


if __name__ == "__main__":
    main()
