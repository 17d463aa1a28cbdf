"""What `bench/optimize.py` found, and what it says of it: rows, their file, the table and the lines below. Nothing is run here."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic.alias_generators import to_camel
from rich.table import Table

from fettle.store.arrays import Arrays

FETTLE = "fettle"
HELD_OUT, CALIBRATION = 1 / 3, 1 / 4  # shares of a case's items; the rest evaluates


@dataclass(frozen=True)
class Row:
    """One tool on one model.

    `speedup`: the median of `speedups`, one of each process, relative to the original; rows of one model and one `date` were timed in turns in
    the same processes. `drop`: what the metric loses on the held-out items, `drop_interval` its 95 % interval.
    `milliseconds`: of the original for one item. `error`: why there is no model, or why its answers are none.
    """

    model: str
    tool: str
    cpu: str
    date: str
    metric: str
    max_drop: float
    items: int
    milliseconds: float | None = None
    speedup: float | None = None
    speedups: tuple[float, ...] = ()
    drop: float | None = None
    drop_interval: tuple[float, float] | None = None
    bytes: int | None = None
    wall_seconds: float | None = None
    promise_held: bool | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """With names as JSON has them."""
        return {to_camel(name): value for name, value in asdict(self).items()}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Row:
        """What `to_json` wrote."""
        fields = {name: content.get(to_camel(name)) for name in cls.__dataclass_fields__}
        interval = fields["drop_interval"]
        fields["drop_interval"] = tuple(interval) if interval else None
        return cls(**fields | {"speedups": tuple(fields["speedups"] or ())})


def keeps(drop: float | None, max_drop: float) -> bool:
    """Whether the promise is held: on items that no tool saw the metric loses at most what was allowed."""
    return drop is not None and drop <= max_drop


@dataclass(frozen=True)
class Split:
    """A case's items. Only the judge reads `held_out`."""

    held_out: Arrays
    calibration: Arrays
    evaluation: Arrays


def split(items: Arrays) -> Split:
    """Divide items by the digest of what they hold: where an item lies does not depend on the others, and no two parts share one."""
    digests = [_digest(items, index) for index in range(len(next(iter(items.values()))))]
    different = {digest: index for index, digest in reversed(list(enumerate(digests)))}
    order = [different[digest] for digest in sorted(different)]
    first = round(len(order) * HELD_OUT)
    second = first + round(len(order) * CALIBRATION)
    parts = (sorted(part) for part in (order[:first], order[first:second], order[second:]))
    return Split(*({name: array[part] for name, array in items.items()} for part in parts))


def _digest(items: Arrays, index: int) -> str:
    found = hashlib.sha256()
    for name in sorted(items):
        found.update(np.ascontiguousarray(items[name][index]).tobytes())
    return found.hexdigest()


def digest(items: Split, job: Mapping[str, Any]) -> str:
    """Of all that a tool is given: what it made of something else is of no use."""
    found = hashlib.sha256(json.dumps(job, sort_keys=True).encode())
    for part in (items.calibration, items.evaluation):
        for index in range(len(next(iter(part.values())))):
            found.update(_digest(part, index).encode())
    return found.hexdigest()


def merged(before: Iterable[Row], now: Iterable[Row], models: Sequence[str], tools: Sequence[str]) -> list[Row]:
    """Rows in the order of `models` and `tools`; those of `now` replace earlier ones of the same model and tool. Unknown ones are dropped."""
    found = {(row.model, row.tool): row for row in (*before, *now)}
    return [found[model, tool] for model in models for tool in tools if (model, tool) in found]


def read(path: Path) -> list[Row]:
    """The rows of a file; none where there is no file."""
    return [Row.of(content) for content in json.loads(path.read_text())] if path.exists() else []


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([row.to_json() for row in rows], indent=2) + "\n")


def faster(peer: Row, fettle: Row) -> bool:
    """Whether a peer that held its promise is faster than Fettle: in every process of one run, else by the medians."""
    if not peer.promise_held or peer.speedup is None:
        return False
    if peer.date == fettle.date and len(peer.speedups) == len(fettle.speedups) > 0:
        return all(one > other for one, other in zip(peer.speedups, fettle.speedups, strict=True))
    return peer.speedup > (fettle.speedup or 1.0)


def summary(rows: Sequence[Row]) -> list[str]:
    """The lines below the table. A model for which Fettle published nothing is served as it was, and counts as 1."""
    own = {row.model: row for row in rows if row.tool == FETTLE}
    if not own:
        return ["no row of Fettle's"]
    speedups = [row.speedup or 1.0 for row in own.values()]
    lost = [
        f"{row.model} ({row.tool})"
        for row in rows
        if row.tool != FETTLE and row.model in own and faster(row, own[row.model])
    ]
    models = len({name.split(" ")[0] for name in lost})
    broken = [row.model for row in own.values() if row.promise_held is False]
    return [
        f"Fettle on {len(own)} models: geometric mean {statistics.geometric_mean(speedups):.2f}, median {statistics.median(speedups):.2f}",
        f"a peer that held its promise was faster on {models} of {len(own)} models"
        + (f": {', '.join(lost)}" if lost else ""),
        f"Fettle's promise was broken on {len(broken)} of {len(own)} models"
        + (f": {', '.join(broken)}" if broken else ""),
    ]


def table(rows: Sequence[Row]) -> Table:
    """The results for a person."""
    made = Table(box=None, pad_edge=False)
    for name in ("MODEL", "TOOL", "ORIGINAL MS", "SPEEDUP", "DROP", "METRIC", "PROMISE", "MB", "SECONDS", "ERROR"):
        made.add_column(name, overflow="fold")
    for row in rows:
        made.add_row(*_cells(row))
    return made


def markdown(rows: Sequence[Row]) -> str:
    """The results for a page of documentation: a line a model, a column a tool, with the CPU and the days of the measurements.

    A speed-up in brackets is that of a model that broke the promise; a dash: there is no model.
    """
    if not rows:
        return "nothing was measured"
    tools = list(dict.fromkeys(row.tool for row in rows))
    found = {(row.model, row.tool): row for row in rows}
    lines = [f"| model | metric | ms | {' | '.join(tools)} |", "|---" * (len(tools) + 3) + "|"]
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        milliseconds = next((f"{row.milliseconds:.2f}" for row in own if row.milliseconds is not None), "")
        speedups = [_speedup(found.get((model, tool))) for tool in tools]
        lines.append(f"| {model} | {own[0].metric} | {milliseconds} | {' | '.join(speedups)} |")
    machines = ", ".join(sorted({row.cpu for row in rows}))
    days = sorted({row.date[:10] for row in rows})
    return "\n".join([f"{machines}; {' to '.join(dict.fromkeys((days[0], days[-1])))}", "", *lines])


def _speedup(row: Row | None) -> str:
    if row is None:
        return ""
    if row.speedup is None:
        return "–"
    return f"{row.speedup:.2f}" if row.promise_held else f"({row.speedup:.2f})"


def _cells(row: Row) -> tuple[str, ...]:
    speed = f"{row.speedup:.2f} [{min(row.speedups):.2f}, {max(row.speedups):.2f}]" if row.speedup is not None else ""
    interval = "" if row.drop_interval is None else " [{:.3f}, {:.3f}]".format(*row.drop_interval)
    drop = "" if row.drop is None else f"{row.drop:.3f}{interval} of {row.max_drop:g}"
    promise = {True: "held", False: "BROKEN", None: ""}[row.promise_held]
    milliseconds = "" if row.milliseconds is None else f"{row.milliseconds:.2f}"
    megabytes = "" if row.bytes is None else f"{row.bytes / 1e6:.2f}"
    seconds = "" if row.wall_seconds is None else f"{row.wall_seconds:.0f}"
    return (row.model, row.tool, milliseconds, speed, drop, row.metric, promise, megabytes, seconds, row.error or "")
