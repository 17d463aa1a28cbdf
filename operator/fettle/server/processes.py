"""How many processes answer a pod's requests, and each one's share of what the pod may hold.

One event loop decodes and encodes for as many cores as the model computes on. For a small model that takes longer than the model itself, so cores
beside those of its threads stay idle, unless more processes share the ports. Each of them holds the model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fettle.api import catalog
from fettle.api.measured import Measurement
from fettle.api.vocabulary import DeviceKind
from fettle.errors import UsageError
from fettle.runtimes import cpu
from fettle.server.settings import MOST_PROCESSES, ServerSettings
from fettle.server.shares import total_for
from fettle.store.manifest import Manifest, MeasurementRecord, read_fetched, read_figures

PATH_MILLISECONDS = 0.15  # of a core, which a small request takes without its model: the table in docs/design/server.md#several-processes
FRONTS_BYTES = 64 << 20  # of a process, beside what was measured with the model
SUPERVISOR_BYTES = 96 << 20
DECODING = 8  # bytes that a byte of a body takes while it is decoded, of which there is one at a time in each process
_UNLIMITED = 1 << 60  # cgroup v1 writes a huge number for 'no limit'
_MEASUREMENTS = TypeAdapter(list[Measurement])


@dataclass(frozen=True)
class Limits:
    """What a pod may use; infinity where nothing limits it."""

    cores: float
    memory: float  # bytes

    @classmethod
    def here(cls, root: Path = Path("/sys/fs/cgroup")) -> Limits:
        """This container's."""
        cores = cpu.quota(root)
        return cls(min(cores, len(os.sched_getaffinity(0))) if math.isfinite(cores) else cores, _memory(root))


@dataclass(frozen=True)
class ModelCost:
    """What was measured of a model: a run of its smallest batch, and the process that did it."""

    milliseconds: float
    memory: int  # bytes

    @classmethod
    def of(cls, figures: Iterable[MeasurementRecord]) -> ModelCost | None:
        """The highest of several measurements; None where nothing is known."""
        costs = [cost for record in figures for cost in _costs(record)]
        if not costs:
            return None
        return cls(max(cost.milliseconds for cost in costs), max(cost.memory for cost in costs))


def process_count(settings: ServerSettings) -> int:
    """As the settings say, or else as it pays for the fetched artifact here.

    Raises StoreError where there is no artifact, and UsageError where processes and a client's limits are both asked for.
    """
    limited = settings.client_max_requests_per_second is not None or settings.client_max_concurrent is not None
    if settings.processes is not None:
        if limited and settings.shares_ports:
            message = (
                f"FETTLE_SERVER_PROCESSES={settings.processes} and a limit per client cannot be combined, because each process would count "
                "a client's requests for itself: set it to 1, or remove FETTLE_SERVER_CLIENT_MAX_…"
            )
            raise UsageError(message)
        return settings.processes
    if limited:
        return 1
    manifest = read_fetched(settings.folder, settings.sha256)
    return best_count(settings, manifest, ModelCost.of(read_figures(settings.folder)), Limits.here())


def best_count(settings: ServerSettings, manifest: Manifest, cost: ModelCost | None, limits: Limits) -> int:
    """How many processes pay. 1 without limits: nobody then said how much of the node the pod may take."""
    entry = catalog.runtime(manifest.runtime)
    small = cost is not None and cost.milliseconds <= PATH_MILLISECONDS and entry.device is DeviceKind.CPU
    if cost is None or not small or not math.isfinite(limits.cores):
        return 1
    threads = (settings.threads or manifest.settings.threads) * manifest.settings.streams
    by_cores = int(limits.cores) // threads
    each = cost.memory + FRONTS_BYTES + DECODING * settings.max_body_bytes
    by_memory = (limits.memory - SUPERVISOR_BYTES) / each
    return max(1, int(min(by_cores, by_memory, MOST_PROCESSES)))


def share(settings: ServerSettings, count: int, number: int) -> ServerSettings:
    """The settings of process `number` of `count`: together they hold as much as one may, and one of them compares answers with stable's.

    What bounds a wait (queue, time) stays: each process has a model of its own that works its queue off. What is no setting is divided where it
    stands, by `ServerSettings.sharers`.
    """

    def part(total: int) -> int:
        return -(-total // count)

    # The largest body has room in each process, and leaves some of it to others.
    least = min(total_for(settings.max_body_bytes), settings.max_bodies_bytes)
    return settings.model_copy(
        update={
            "processes": count,
            "samples": part(settings.samples),
            "samples_max_bytes": part(settings.samples_max_bytes),
            "max_bodies_bytes": max(least, part(settings.max_bodies_bytes)),
            "max_reading": part(settings.max_reading),
            # Of fewer than four in a process, one client could hold all.
            "grpc_max_streams": max(min(4, settings.grpc_max_streams), part(settings.grpc_max_streams)),
            "stable": settings.stable if number == 0 else "",
        }
    )


def _costs(record: MeasurementRecord) -> list[ModelCost]:
    """That of the smallest batch; none in a row of another version."""
    try:
        rows = _MEASUREMENTS.validate_python(record.row.get("measurements") or [])
    except ValidationError:
        return []
    if not rows or any(row.peak_memory_bytes <= 0 for row in rows):  # no digest covers it
        return []
    least = min(rows, key=lambda row: row.batch_size)
    middle = least.latency_milliseconds.p50
    if middle is None:  # of too few runs
        middle = 1000 * least.batch_size / least.items_per_second if least.items_per_second else math.inf
    return [ModelCost(max(middle, 0.0), max(row.peak_memory_bytes for row in rows))]


def _memory(root: Path) -> float:
    for path in (root / "memory.max", root / "memory" / "memory.limit_in_bytes"):
        try:
            limit = int(path.read_text())
        except (OSError, ValueError):  # another version of cgroups, or 'max'
            continue
        return limit if limit < _UNLIMITED else math.inf
    return math.inf
