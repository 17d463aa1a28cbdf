"""Rows of bench/results/serve.json, and how they are read, put together and shown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.serve_load import Figures
from pydantic.alias_generators import to_camel
from rich.table import Table

CLOSED, OPEN = "closed", "open"  # loops


@dataclass(frozen=True)
class Row:
    """A server under one load. `concurrency`: of a closed loop; `rate`: requests a second of an open one. `error`: why there are no figures.

    The figures are medians of the rounds, `failed` the sum of all. `spread`: the lowest and the highest requests per second of a round.
    """

    server: str
    protocol: str
    model: str
    loop: str
    concurrency: int | None
    rate: float | None
    machine: str
    date: str
    requests_per_second: float | None = None
    spread: tuple[float, float] | None = None
    p50_milliseconds: float | None = None
    p99_milliseconds: float | None = None
    failed: int | None = None
    memory_bytes: int | None = None
    rounds: int = 0
    error: str | None = None

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What it is of: a later row of the same replaces it."""
        return (self.model, self.protocol, self.loop, self.server, self.concurrency or 0)

    def to_json(self) -> dict[str, Any]:
        """As the results have it: without what is not there."""
        return {to_camel(name): value for name, value in asdict(self).items() if value is not None}


def figures(rounds: Sequence[Figures], memory_bytes: int | None) -> dict[str, Any]:
    """A row's figures of those of its rounds."""
    rates = [one.requests_per_second for one in rounds]
    return {
        "requests_per_second": round(statistics.median(rates), 1),
        "spread": (round(min(rates), 1), round(max(rates), 1)),
        "p50_milliseconds": round(statistics.median(one.p50_milliseconds for one in rounds), 3),
        "p99_milliseconds": round(statistics.median(one.p99_milliseconds for one in rounds), 3),
        "failed": sum(one.failed for one in rounds),
        "memory_bytes": memory_bytes,
        "rounds": len(rounds),
    }


def read(path: Path) -> list[Row]:
    """The rows in a file; none where there is no file."""
    if not path.exists():
        return []
    names = {to_camel(name): name for name in Row.__dataclass_fields__}
    rows = [{names[name]: value for name, value in content.items()} for content in json.loads(path.read_text())]
    return [Row(**{"concurrency": None, "rate": None, **row}) for row in rows]


def merged(before: Iterable[Row], now: Iterable[Row]) -> list[Row]:
    """`now`, and those of `before` that it does not replace. A server that could not be had then, and can now, is no failure any more."""
    now = list(now)
    had = {(row.model, row.protocol, row.server) for row in now}
    kept = [row for row in before if row.error is None or (row.model, row.protocol, row.server) not in had]
    return list(({row.key: row for row in kept} | {row.key: row for row in now}).values())


def write(path: Path, rows: Iterable[Row]) -> None:
    """One row a line, in an order that no run changes."""
    lines = [json.dumps(row.to_json()) for row in sorted(rows, key=lambda row: row.key)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def table(rows: Iterable[Row], ours: str) -> Table:
    """The rows, and of each how many times as many requests `ours` answers under the same load."""
    rows = list(rows)
    best = {row.key[:3] + row.key[4:]: row.requests_per_second for row in rows if row.server == ours}
    shown = Table(
        "model", "protocol", "load", "server", "requests/s", "p50 ms", "p99 ms", "failed", "MiB", "ours / its"
    )
    for row in rows:
        load = f"c={row.concurrency}" if row.concurrency else f"{row.rate:g}/s" if row.rate else ""
        if row.error is not None or row.requests_per_second is None:
            shown.add_row(row.model, row.protocol, load, row.server, row.error or "", *[""] * 5)
            continue
        own = best.get(row.key[:3] + row.key[4:])
        ratio = f"{own / row.requests_per_second:.2f}" if own and row.requests_per_second else ""
        memory = f"{row.memory_bytes / 2**20:.0f}" if row.memory_bytes else ""
        times = (f"{row.p50_milliseconds:.2f}", f"{row.p99_milliseconds:.2f}")
        shown.add_row(
            row.model, row.protocol, load, row.server, f"{row.requests_per_second:,.0f}", *times, str(row.failed), memory, ratio
        )  # fmt: skip
    return shown
